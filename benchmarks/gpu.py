"""All that waits for a GPU, in ten minutes at most: `python -m benchmarks.gpu OUT [--device cuda:0]`.

In this order, so that the first minutes tell most:

* equalities: unlike requests answered alone, batched, chunked, cached and preempted. In float32 all of them
  are equal, and with `exact` in bfloat16 to the last bit, or that is a failure; in bfloat16 how many are.
* experts, gguf, fp8, mamba, hybrid, large, engine: random weights in the shape of 6 of the 48 layers of
  Qwen3-30B-A3B, of Qwen3-8B in Q4_K and FP8, of Granite 4 H Micro, of 12 of the 64 layers of a Qwen3.5 of 27
  billion, of Qwen3-8B, and of Qwen3-0.6B. What the device can do at most is measured first (reading memory,
  multiplying matrices, copying from the host); the load, prefill and decode are given as shares of that, and
  memory as planned and as measured. Of experts, a step is to read those that its tokens choose by lot. Beside
  the decode of one sequence stands the share that it is meant to reach; to miss it is no failure. A decode
  step that is a graph is shown with the time that the graph takes when nothing is between two of it, with the
  share of the step that is not that (the gap), and with an eager step's time. A step behind a long context is
  shown as a part of what the short one and the keys and values that it reads more come to.
* dependent: decode of one sequence in the shapes of Qwen3-0.6B, of the experts and of a GGUF of 8B, with
  launches that begin before the one before them has ended and without, and with such whose products ask for
  weights before they wait, by turns; to answer otherwise is a failure.
* mixed: requests of all lengths at once in the shapes of Qwen3-0.6B and 8B, beside transformers' continuous
  batching, and one alone.
* waking: from files in the page cache, and from parked memory, to the first token of Qwen3-8B.
* 4b, 14b, awq, nvfp4: as those above, of Qwen3-4B and 14B, and of Qwen3-8B in AWQ and NVFP4.
* products: quantised weights in every format, right and at what share of the rate at which memory is read.
* attention: right, and at what share of the rate of memory or of products; over keys and values in 8 bits as
  well; what is beside it in a layer.
* tests: `pytest -m gpu` over the engine's tests.
* ranks: small tensors that two ranks add themselves, right and beside NCCL; a Qwen3.5 of 27 billion in q6 on
  two GPUs, through a neuron: its first load, which quantises, and its second, a prompt and an answer, beside
  what a system before this one took on two RTX 5090. With one GPU sums are made by two processes on it, which
  are right or not, and what was not measured says so.

Each part runs in a process of its own with a time limit, so that one that faults or hangs leaves the rest as
it is, and what it found before that is kept. OUT/gpu.txt has failures first; OUT/gpu.json says the same for
programs; both are written anew after each part. Not all parts may fit into ten minutes: what was not reached
is named with the call that does it. The exit code is 0, 1 after a failure, or 2 where there is no such
device. `--device cpu` rehearses it over tiny shapes.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import msgspec
import torch

from benchmarks import gpu_parts
from benchmarks.gpu_parts import LEAST, PARTS, ROOT, Result

SECONDS = 570.0  # for everything
LIMITS = {
    "equalities": 120.0,
    "experts": 120.0,
    "gguf": 90.0,
    "fp8": 90.0,
    "mamba": 90.0,
    "hybrid": 90.0,
    "large": 90.0,
    "engine": 90.0,
    "dependent": 150.0,
    "mixed": 120.0,
    "waking": 90.0,
    "4b": 90.0,
    "14b": 90.0,
    "awq": 90.0,
    "nvfp4": 90.0,
    "products": 120.0,
    "attention": 110.0,
    "tests": 300.0,
    "ranks": 300.0,
}  # of each part, in their order


def run_part(name: str, command: Sequence[str], found: Path, seconds: float) -> list[Result]:
    """The results that `command` writes to `found`; what goes wrong with it is one, too."""
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, start_new_session=True)
        try:
            code = process.wait(seconds)
            problem = f"ended with {code}" if code else ""
        except subprocess.TimeoutExpired:
            problem = f"not done within {seconds:.0f} s"
        finally:
            with suppress(ProcessLookupError):  # and whatever it started
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        log.seek(0)
        said = log.read()[-4000:]
    results: list[Result] = []
    with suppress(FileNotFoundError, msgspec.DecodeError):
        results = msgspec.json.decode(found.read_bytes(), type=list[Result])
    if problem or not results:
        results.append(Result(name, name, False, problem or "it said nothing", detail=said))
    return results


def report(results: Sequence[Result], facts: dict[str, str]) -> str:
    """The text: failures first, in full, then everything in its order."""
    failures = [result for result in results if not result.ok]
    lines = [f"{key}: {value}" for key, value in facts.items()]
    lines += ["", f"{len(failures)} failures" if failures else "no failures"]
    for result in failures:
        lines += ["", f"FAILED {result.part}: {result.name}: {result.value}", result.detail.rstrip()]
    lines.append("")
    width = max((len(result.name) for result in results), default=0)
    for result in results:
        lines.append(
            f"{result.part:11} {'ok' if result.ok else 'FAILED':7} {result.name:{width}}  {result.value}"
        )
    return "\n".join(lines) + "\n"


def absent(device: str) -> str:
    """Why `device` cannot be used; empty when it can."""
    if device == "cpu":
        return ""
    if not torch.cuda.is_available():
        return f"PyTorch {torch.__version__} finds no GPU here"
    count, _, number = torch.cuda.device_count(), *device.partition(":")[1:]
    return "" if int(number or 0) < count else f"there are {count} GPUs, and {device} is none of them"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "out", type=Path, help="a folder for gpu.txt and gpu.json; it is made where it is missing"
    )
    parser.add_argument("--device", default="cuda:0", help="cuda:N, or cpu to rehearse it over tiny shapes")
    parser.add_argument("--only", choices=PARTS, action="append", help="this part, as often as you like")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)  # be that part's process
    parser.add_argument("--until", type=float, default=math.inf, help=argparse.SUPPRESS)  # and end by then
    arguments = parser.parse_args()
    device, out = arguments.device, arguments.out.resolve()
    if reason := absent(device):
        print(f"benchmarks.gpu: {reason}; --device cpu rehearses it", file=sys.stderr)
        return 2
    if arguments.part:
        gpu_parts.until = arguments.until
        results = []
        for result in PARTS[arguments.part](device, out):
            results.append(result)
            (out / f"{arguments.part}.json").write_bytes(msgspec.json.encode(results))
        return 0

    out.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    facts = {"device": device, "torch": torch.__version__, "started": time.strftime("%Y-%m-%d %H:%M:%S %Z")}
    if device != "cpu":
        facts["name"] = torch.cuda.get_device_name(device)
    results: list[Result] = []
    late: list[str] = []
    for name in arguments.only or LIMITS:
        found = out / f"{name}.json"
        found.unlink(missing_ok=True)
        seconds = min(LIMITS[name], SECONDS - (time.monotonic() - began))
        if seconds < LEAST:
            late.append(name)
        else:
            print(f"{name} …", flush=True)
            command = [sys.executable, "-m", "benchmarks.gpu", str(out), "--device", device, "--part", name]
            command += ["--until", str(time.monotonic() + seconds)]
            results += run_part(name, command, found, seconds)
        facts["seconds"] = f"{time.monotonic() - began:.0f}"
        if late:
            facts["not reached"] = " ".join(("OUT", *(f"--only {each}" for each in late)))
        text = report(results, facts)
        (out / "gpu.txt").write_text(text)
        (out / "gpu.json").write_text(
            json.dumps({"facts": facts, "results": msgspec.to_builtins(results)}, indent=1)
        )
    print(text)
    return 0 if all(result.ok for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
