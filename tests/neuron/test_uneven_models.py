"""A neuron with a model that its ranks cannot have equal shares of: three, where there are four key heads."""

from __future__ import annotations

import os
import shutil
import signal

import torch

from ipc.messages.requests import Generate
from ipc.messages.sampling import Sampling
from tests.demo import DEMO
from tests.neuron.harness import PATIENCE, Neuron
from tests.workers.oracle import fill
from tests.workers.tiny_models import qwen3

PROMPT = [(7 * i + 3) % 131 for i in range(70)]


def test_uneven_ranks_answer_as_one_does_and_come_back_after_a_kill(tmp_path):
    torch.manual_seed(5)
    oracle = qwen3(num_attention_heads=8, num_key_value_heads=4)
    fill(oracle, std=0.3)
    oracle.save_pretrained(tmp_path / "model")
    shutil.copy(DEMO / "tokenizer.json", tmp_path / "model")
    kind = {"path": str(tmp_path / "model"), "dtype": "float32", "max_sequences": 2, "max_step_tokens": 64}
    kind |= {"kv_memory": "8MiB"}
    greedily = {
        "prompt": PROMPT,
        "sampling": Sampling(temperature=0.0, max_tokens=20),
        "return_token_ids": True,
    }
    (tmp_path / "neuron").mkdir()
    with (
        Neuron(tmp_path / "neuron", [{"id": "one", **kind}, {"id": "three", "ranks": 3, **kind}]) as neuron,
        neuron.client() as client,
    ):

        def answer(model: str) -> list[int]:
            return client.ask(Generate(id=0, model=model, **greedily), PATIENCE).choices[0].token_ids

        alone = answer("one")
        assert len(alone) == 20
        assert answer("three") == alone
        assert "parts=1:1:2" in neuron.log
        os.kill(neuron.workers("three")[1], signal.SIGKILL)
        neuron.wait_for("three", status="ready", epoch=2)
        assert answer("three") == alone
