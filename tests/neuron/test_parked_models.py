"""Models whose weights stay in the host's memory: what is woken answers as what was loaded did."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from ipc.messages.replies import Done, Finished
from ipc.messages.requests import ListModels, Load, Quote, Unload
from tests.neuron.folders import write_checkpoint
from tests.neuron.harness import PATIENCE, Neuron, chat, wait_until

SMALL = {"max_sequences": 2, "max_step_tokens": 64, "kv_memory": "4MiB", "dtype": "float32"}
NAME = "memfd:parked weights"


def write(folder, seed=1, **sizes):
    """A checkpoint with random weights."""
    write_checkpoint(folder, vocab_size=512, **sizes)
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")
    random = np.random.default_rng(seed).standard_normal((len(data) - start) // 2, np.float32)
    data[start:] = ((random * 0.2).view(np.uint32) >> 16).astype("<u2").tobytes()  # bfloat16
    path.write_bytes(data)
    return folder


def memories(pid):
    """Sizes of all that a process holds that weights are parked in."""
    found = []
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            if os.readlink(link).startswith(f"/{NAME}"):
                found.append(link.stat().st_size)
        except FileNotFoundError:
            continue  # it was closed in this moment
    return found


def ask(client, model):
    answer = client.ask(chat(model, 12, sampling={"temperature": 0.0, "logprobs": 2}, stream=False), PATIENCE)
    assert isinstance(answer, Finished)
    return answer.choices[0].text, answer.choices[0].logprobs


def loads(neuron, model):
    """How its weights came, each time."""
    lines = [line for line in neuron.log.splitlines() if f" model={model} seconds=" in line]
    return [("woken" if "model woken" in line else "loaded") for line in lines]


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_model_that_left_comes_back_from_memory_with_the_same_bits(tmp_path, ranks):
    folder = write(tmp_path / "m")
    models = [{"id": "m", "path": str(folder), "ranks": ranks, **SMALL}]
    with Neuron(tmp_path, models, standby=True, parking="64MiB") as neuron, neuron.client() as client:
        first = ask(client, "m")
        assert neuron.model("m").bytes_parked > 0  # as soon as it is loaded
        for pid in neuron.workers("m"):
            assert memories(pid) == []  # so that it is gone when the neuron lets go
        client.ask(Unload(id=0, model="m"), PATIENCE)
        left = neuron.model("m")
        assert (left.status, left.bytes_parked) == ("unloaded", sum(memories(neuron.process.pid)))
        assert client.ask(Quote(id=0, model="m"), PATIENCE).parked
        booked = neuron.health().devices[0].memory_reserved
        assert ask(client, "m") == first
        assert loads(neuron, "m") == ["loaded", "woken"]
        state = neuron.model("m")
        assert state.wake_seconds is not None
        assert state.bytes_parked == left.bytes_parked <= booked
        if ranks == 1:
            os.kill(neuron.workers("m")[0], signal.SIGKILL)  # a restart comes from memory, too
            neuron.wait_for("m", status="ready", restarts=1)
            assert ask(client, "m") == first
            assert loads(neuron, "m")[2:] == ["woken"]
            client.ask(Unload(id=0, model="m"), PATIENCE)
            write(folder, seed=2)  # other weights
            client.ask(ListModels(id=0), PATIENCE)
            assert neuron.model("m").bytes_parked == 0
            assert memories(neuron.process.pid) == []
            assert ask(client, "m") != first


def test_a_worker_that_is_killed_while_it_parks_leaves_no_half(tmp_path):
    sizes = {"hidden_size": 256, "intermediate_size": 8192, "num_hidden_layers": 4}  # 100 MB
    folder = write(tmp_path / "m", **sizes)
    models = [{"id": "m", "path": str(folder), **SMALL}]
    with Neuron(tmp_path, models, standby=True, parking="1GiB") as neuron, neuron.client() as client:
        loading = client.stream(Load(id=0, model="m"), PATIENCE)
        next(loading)
        wait_until(lambda: any(memories(neuron.process.pid)), "some of it to be parked")
        for pid in neuron.children():
            os.kill(pid, signal.SIGKILL)
        assert isinstance(list(loading)[-1], Done)
        neuron.wait_for("m", status="ready")
        [size] = memories(neuron.process.pid)
        assert neuron.model("m").bytes_parked == size
        first = ask(client, "m")
        client.ask(Unload(id=0, model="m"), PATIENCE)
        assert ask(client, "m") == first
        assert loads(neuron, "m")[-1] == "woken"


def test_two_that_fit_one_at_a_time_are_swapped_without_a_file_being_read(tmp_path):
    models = [
        {"id": name, "path": str(write(tmp_path / name, seed=i)), **SMALL} for i, name in enumerate("ab")
    ]
    # Of which one process takes half and more; with the CUDA build of torch it is larger.
    small = {"memory": "330MiB" if torch.version.cuda is None else "560MiB"}
    with (
        Neuron(tmp_path, models, cpu=small, standby=True, parking="64MiB") as neuron,
        neuron.client() as client,
    ):
        first = [ask(client, name) for name in "ab"]
        assert [ask(client, name) for name in "ab"] == first
        assert loads(neuron, "a") == loads(neuron, "b") == ["loaded", "woken"]
        a, b = neuron.model("a"), neuron.model("b")
        assert (a.status, a.evictions, a.wakes) == ("unloaded", 2, 1)
        assert (b.status, b.evictions, b.wakes) == ("ready", 1, 1)
