"""How many launches a layer of a decode step takes on a GPU, counted without one.

Counted are torch's operations that are no view, and Triton's kernels; what a library launches for one of its
products is not seen. Between the bytes that a small step reads they are what its time is made of.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import (
    DeepseekV2Config,
    DeepseekV3Config,
    PretrainedConfig,
    Qwen2MoeConfig,
    Qwen3Config,
    Qwen3MoeConfig,
)

from benchmarks.driver import write_hollow
from benchmarks.quantised_models import write_gguf
from ipc.worker_messages import SamplingParams
from workers.checkpoints.card import ModelCard
from workers.checkpoints.reading import read_card

pytest.importorskip("triton")  # whose kernels a step on a GPU has

from tests.workers.counted import on_a_gpu
from workers.kernels.fused import INTERPRETED
from workers.kernels.launch import Launcher
from workers.models.decoder import Block
from workers.step.plan import NewSequence, Scheduled, StepPlan

pytestmark = pytest.mark.skipif(
    INTERPRETED, reason="kernels are to do nothing, and are not to be interpreted"
)
SMALL = {
    "vocab_size": 1024,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "tie_word_embeddings": False,
    "dtype": "bfloat16",
}
EXPERTS = {"moe_intermediate_size": 128, "num_experts": 16, "num_experts_per_tok": 8, "norm_topk_prob": True}
LATENT = {name: size for name, size in SMALL.items() if name != "head_dim"} | {
    "num_key_value_heads": 4,
    "q_lora_rank": 128,
    "kv_lora_rank": 64,
    "qk_rope_head_dim": 32,
    "qk_nope_head_dim": 64,
    "v_head_dim": 64,
    "n_routed_experts": 16,
    "n_shared_experts": 1,
    "num_experts_per_tok": 4,
    "moe_intermediate_size": 128,
    "first_k_dense_replace": 0,
}
GROUPS = {"n_group": 4, "topk_group": 2}


class Launches(TorchDispatchMode):
    """Names of what is launched, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **kwargs or {})
        given = {StorageWeakRef(x.untyped_storage()) for x in tree_leaves(args) if isinstance(x, Tensor)}
        made = [x for x in tree_leaves(found) if isinstance(x, Tensor)]
        is_view = all(StorageWeakRef(x.untyped_storage()) in given for x in made)
        name = func._schema.name.removeprefix("aten::")
        if func._schema.is_mutable or not (is_view or name.startswith(("empty", "new_empty"))):
            self.names.append(name)
        return found


def launches_of_a_layer(
    card: ModelCard, tokens: int, monkeypatch: pytest.MonkeyPatch, **limits: Any
) -> list[str]:
    """Of a decode step of so many sequences."""
    launches = Launches()
    limits |= {"max_step_tokens": 64, "context_length": 2048}
    with on_a_gpu(card, **limits) as runner, monkeypatch.context() as within:
        within.setattr(
            Launcher, "__call__", lambda self, *_, **__: launches.names.append(self._kernel.__name__)
        )
        within.setattr("workers.sampling.sampler.fetched", lambda x: lambda: [0] * x.numel())
        pages = [[0] for _ in runner.groups]
        prompt = array("I", [1, 2])
        added = [NewSequence(n, len(prompt), prompt.tobytes(), SamplingParams()) for n in range(tokens)]
        runner.execute(StepPlan(1, [], added, [Scheduled(n, len(prompt), pages) for n in range(tokens)]))
        run = Block.__call__

        def watched(*given: Any) -> None:
            launches.names.clear()
            with launches:
                run(*given)
            names.extend(launches.names)

        names: list[str] = []
        within.setattr(Block, "__call__", watched)
        runner.execute(StepPlan(2, [], [], [Scheduled(n, 1) for n in range(tokens)]))
    return names


def written(folder: Path, config: PretrainedConfig, write: Callable[..., Path] = write_hollow) -> ModelCard:
    return read_card(write(folder, config))


def attention(product: str = "linear") -> list[str]:
    """What every layer begins with, up to what its MLP reads."""
    ahead = ["norm_kernel", product, "heads_kernel", "attention_kernel", "join_kernel"]
    return [*ahead, product, "norm_kernel"]


@pytest.mark.parametrize("tokens", [1, 8])
def test_a_layer_of_qwen3(tmp_path, monkeypatch, tokens):
    card = written(tmp_path, Qwen3Config(**SMALL))
    launches = launches_of_a_layer(card, tokens, monkeypatch)
    assert launches == [*attention(), "linear", "gated_kernel", "linear"]


@pytest.mark.parametrize("tokens", [1, 8])
def test_a_layer_of_qwen3_in_blocks_whose_gates_open_in_their_product(tmp_path, monkeypatch, tokens):
    card = written(tmp_path, Qwen3Config(**SMALL), write_gguf)
    launches = launches_of_a_layer(card, tokens, monkeypatch)
    assert launches == [*attention("product_kernel"), "product_kernel", "product_kernel"]


@pytest.mark.parametrize("tokens", [1, 8])
def test_a_layer_of_experts(tmp_path, monkeypatch, tokens):
    card = written(tmp_path, Qwen3MoeConfig(**SMALL, **EXPERTS))
    launches = launches_of_a_layer(card, tokens, monkeypatch)
    experts = ["router_kernel", "experts_kernel", "experts_kernel", "chosen_kernel"]
    assert launches == [*attention(), *experts]


@pytest.mark.parametrize("tokens", [1, 8])
@pytest.mark.parametrize(
    "config",
    [
        DeepseekV2Config(**LATENT, **GROUPS, topk_method="group_limited_greedy"),
        DeepseekV3Config(**LATENT, **GROUPS),
    ],
    ids=["best", "best_two"],
)
def test_a_layer_whose_router_chooses_groups_of_experts_first(tmp_path, monkeypatch, config, tokens):
    card = written(tmp_path, config)
    assert (card.config.experts.groups, card.config.experts.groups_chosen) == (4, 2)
    launches = launches_of_a_layer(card, tokens, monkeypatch)
    ahead = ["norm_kernel", "linear", "norm_kernel", "linear", "bmm", "latent_kernel", "write_kernel"]
    found = ["attention_kernel", "join_kernel", "bmm", "linear", "norm_kernel"]
    experts = ["router_kernel", "experts_kernel", "experts_kernel", "chosen_kernel"]
    assert launches == [*ahead, *found, "linear", "gated_kernel", "linear", *experts]


def test_a_layer_of_gpt_oss(tiny, monkeypatch):
    """Whose columns are no whole steps, but whole groups of 32: 2,880, and here 160 and 192."""
    launches = launches_of_a_layer(read_card(tiny("gpt_oss_mxfp4").folder), 1, monkeypatch)
    experts = ["experts_kernel", "experts_kernel", "chosen_kernel"]
    assert launches == [*attention(), "router_kernel", *experts]


def test_a_layer_of_experts_with_inputs_that_only_the_kernel_for_many_pairs_takes(tiny, monkeypatch):
    """Of 48 numbers, behind which gates open; what they open has 64."""
    launches = launches_of_a_layer(read_card(tiny("gpt_oss").folder), 1, monkeypatch)
    experts = ["grouped_kernel", "gated_kernel", "experts_kernel", "chosen_kernel"]
    assert launches == [*attention(), "router_kernel", *experts]


def test_a_layer_whose_shared_expert_has_a_gate(tmp_path, monkeypatch):
    """What it gives is opened and added where what the others give is summed."""
    card = written(tmp_path, Qwen2MoeConfig(**SMALL, **EXPERTS, shared_expert_intermediate_size=128))
    launches = launches_of_a_layer(card, 1, monkeypatch)
    shared = ["linear", "gated_kernel", "linear", "linear"]
    experts = ["router_kernel", "experts_kernel", "experts_kernel", "chosen_kernel"]
    assert launches == [*attention(), *shared, *experts]


def test_a_layer_whose_experts_are_the_best_by_their_logits(tiny, monkeypatch):
    launches = launches_of_a_layer(read_card(tiny("kolibri1").folder), 1, monkeypatch)
    shared = ["linear", "gated_kernel", "linear"]
    experts = ["router_kernel", "grouped_kernel", "gated_kernel", "experts_kernel", "chosen_kernel"]
    assert launches == [*attention(), "norm_kernel", *shared, *experts, "norm_kernel"]
