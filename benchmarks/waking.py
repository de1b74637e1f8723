"""From a model that is not there to its first token, by a worker that waits: `python -m benchmarks.waking`.

The weights come from files in the page cache ("load"), or from memory in which they are parked ("wake"). The
first load of all parks them; it is the one that meets everything for the first time (kernels, libraries).
Beside the seconds stands what the bytes alone would take, at the rate of the page cache or of a copy to the
device, measured in the same run; then what the seconds went to: `weights` until they are there, with the
making of the tensors and, on a CPU, their packing, `step` for the measurement of the largest one and the
pages, and `token` for the first of a prompt.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from transformers import PretrainedConfig

from benchmarks.driver import Driver, write_hollow
from benchmarks.engine import SHAPE
from benchmarks.one_rank import spec_of
from benchmarks.roofline import measure_limits
from benchmarks.shapes import EIGHT_BILLION
from ipc import parked
from workers.checkpoints.card import ModelCard
from workers.checkpoints.reading import read_card
from workers.checkpoints.shares import ALONE
from workers.execution.model_runner import ModelRunner
from workers.process.life import settled, warm_up
from workers.step.pages import pages_for
from workers.weights import lanes, loader, parking
from workers.weights.lanes import threads_for

PROMPT = 64  # tokens
STEP = 2048  # tokens of the largest step
GOALS = {"load": 5.0, "wake": 0.6}  # seconds, of 8 billion weights in bfloat16 on a GPU


class Seconds(NamedTuple):
    """What a first token took."""

    weights: float
    step: float
    token: float


def rows(device: str, shape: PretrainedConfig, copy: float) -> Iterator[tuple[str, float, Seconds]]:
    """Of each way: its name, the seconds that its bytes alone take, and those of all.

    Args:
        copy: bytes a second from the host's memory to the device.
    """
    warm_up(device)
    settled(device)
    fd = parked.create("benchmark")
    try:
        with tempfile.TemporaryDirectory() as folder:
            card = read_card(write_hollow(Path(folder), shape))
            [weights] = card.bytes_per_rank(ALONE)
            cached = page_cache(Path(folder) / "model.safetensors", threads_for(torch.device(device)))
            for name, memory, rate in (
                ("load and park", fd, min(cached, copy)),
                ("load", None, min(cached, copy)),
                ("wake", fd, copy),
                ("wake again", fd, copy),
            ):
                woken, seconds = first_token(card, device, memory)
                if woken != name.startswith("wake"):
                    raise RuntimeError(f"{name}: weights came from {'memory' if woken else 'files'}")
                yield name, weights / rate, seconds
                settled(device)
    finally:
        os.close(fd)


def page_cache(path: Path, count: int) -> float:
    """Bytes a second that so many threads read from a file which has been read before."""
    size = path.stat().st_size
    fd = os.open(path, os.O_RDONLY)

    def read(number: int) -> None:
        buffer, block = memoryview(bytearray(lanes.BLOCK)), lanes.BLOCK
        for start in range(number * block, size, count * block):
            os.preadv(fd, [buffer], start)

    best = float("inf")
    with ThreadPoolExecutor(count) as threads:
        for _ in range(4):  # of which the first fills it
            began = time.perf_counter()
            list(threads.map(read, range(count)))
            best = min(best, time.perf_counter() - began)
    os.close(fd)
    return size / best


def first_token(card: ModelCard, device: str, parking_fd: int | None) -> tuple[bool, Seconds]:
    """Load, or wake, and answer one prompt; whether it woke."""
    spec = spec_of(
        device=device,
        threads=len(os.sched_getaffinity(0)),
        context_length=4096,
        max_sequences=16,
        max_step_tokens=STEP if device != "cpu" else PROMPT,
        kv_pages=pages_for(4096),
        parking_fd=None if parking_fd is None else os.dup(parking_fd),
    )
    ends = [time.perf_counter()]

    def progress(fraction: float, message: str) -> None:
        if message == "measuring a step":
            ends.append(time.perf_counter())

    runner = ModelRunner(spec, card)
    try:
        loaded = runner.load(progress)
        ends.append(time.perf_counter())
        Driver(runner, pages_for(PROMPT)).prompts([0], PROMPT)  # which waits for its token
        ends.append(time.perf_counter())
    finally:
        runner.close()
    return loaded.woken, Seconds(*(end - begin for begin, end in pairwise(ends)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", help="cpu, or cuda:N")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers there, too")
    parser.add_argument("--block", type=int, metavar="MIB", help="that a lane brings at once, instead of 16")
    parser.add_argument("--large", action="store_true", help="Qwen3-8B's shape, not Qwen3-0.6B's")
    arguments = parser.parse_args()
    for module in (lanes, loader, parking) if arguments.block else ():
        module.BLOCK = arguments.block << 20
    _, _, copy = measure_limits(arguments.device)
    title, shape = ("Qwen3-8B", EIGHT_BILLION) if arguments.large else ("Qwen3-0.6B", SHAPE)
    table = Table("seconds", "its bytes alone", "all", *Seconds._fields, title=f"{title} shape, bfloat16")
    found = {}
    for name, limit, taken in rows(arguments.device, shape, copy):
        found[name] = {"limit": limit, **taken._asdict()}
        table.add_row(name, *(f"{value:.2f}" for value in (limit, sum(taken), *taken)))
    Console().print(table)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
