"""How fast weights come from the page cache, and what memory that takes: `python -m benchmarks.loading`.

Random weights in the shape of Qwen3-0.6B, bfloat16, on the CPU. Beside each other, in turn:

* read: the bytes of the file into one buffer that is used again, as fast as this machine reads.
* weights: the same bytes into the tensors of a model, without packing them for oneDNN.
* packed: the same, and every weight packed for oneDNN as soon as it is there, into memory that nobody touched
  before; in a new process that reports its peak.
* load: all that a worker does, the measurement of its largest step and the KV pages included.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.engine import write_weights
from workers.checkpoints.reading import read_card
from workers.models.decoder import Decoder
from workers.parallel import RankGroup
from workers.weights.loader import BLOCK, Shard, WeightFiles

ONE_LOAD = """
import json, sys, time
from pathlib import Path
from benchmarks.loading import memory
from benchmarks.one_rank import spec_of
from workers.checkpoints.reading import read_card
from workers.execution.model_runner import ModelRunner
spec = spec_of(device="cpu", threads=int(sys.argv[2]), context_length=4096, max_sequences=16,
    max_step_tokens=512, kv_pages=512)
runner = ModelRunner(spec, read_card(sys.argv[1]))
before, began, read = memory("VmRSS"), time.perf_counter(), []
def progress(fraction, message):
    if message == "measuring a step":
        read.extend((time.perf_counter() - began, memory("VmHWM")))
loaded = runner.load(progress)
seconds = time.perf_counter() - began
packed, peak = read
print(json.dumps({"packed": packed, "seconds": seconds, "over": peak - before - loaded.memory.weights}))
"""


def memory(name: str) -> int:
    """Bytes of this process: "VmRSS", what it holds now, or "VmHWM", the most that it held."""
    lines = Path("/proc/self/status").read_text().splitlines()
    [line] = [line for line in lines if line.startswith(f"{name}:")]
    return int(line.split()[1]) << 10


def read(file: Path) -> float:
    """Seconds for a bare read."""
    buffer = memoryview(bytearray(BLOCK))
    fd = os.open(file, os.O_RDONLY)
    began, offset = time.perf_counter(), 0
    while count := os.preadv(fd, [buffer], offset):
        offset += count
    os.close(fd)
    return time.perf_counter() - began


def weights(folder: Path) -> float:
    """Seconds for the weights alone, into memory that was touched before."""
    card = read_card(folder)
    model = Decoder(card.config, RankGroup(), torch.bfloat16)
    parts = [Shard(part.pieces) for part in model.parts()]
    for part in parts:
        for piece in part.pieces:
            piece.into.zero_()
    began = time.perf_counter()
    WeightFiles(card).load(parts, lambda fraction: None)
    return time.perf_counter() - began


def load(folder: Path, threads: int) -> dict[str, float]:
    """Seconds of a whole load, and bytes over the weights' own size at its worst moment."""
    arguments = [sys.executable, "-c", ONE_LOAD, str(folder), str(threads)]
    return json.loads(subprocess.run(arguments, check=True, stdout=subprocess.PIPE).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers there, too")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_weights(folder)
        file = folder / "model.safetensors"
        size = file.stat().st_size
        rounds = [(read(file), weights(folder), load(folder, options.threads)) for _ in range(options.rounds)]
    reads, weighed, loads = zip(*rounds, strict=True)
    seconds = {
        "read": statistics.median(reads),
        "weights": statistics.median(weighed),
        "packed": statistics.median(each["packed"] for each in loads),
        "load": statistics.median(each["seconds"] for each in loads),
    }
    over = max(each["over"] for each in loads)
    table = Table(f"{size / 1e9:.2f} GB", "seconds", "GB/s", "of the bare read")
    for what, taken in seconds.items():
        table.add_row(what, f"{taken:.2f}", f"{size / taken / 1e9:.1f}", f"{seconds['read'] / taken:.0%}")
    Console().print(table)
    Console().print(f"at its worst moment a load held {over / 1e6:.0f} MB over the weights' own size")
    if options.json:
        options.json.write_text(
            json.dumps({"bytes": size, "seconds": seconds, "over": over}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
