"""The engine beside llama.cpp on the same file: `python -m benchmarks.gguf MODEL.gguf --peer PYTHON`.

PYTHON is that of an environment with llama-cpp-python. Both compute on one thread of a CPU, in turn, so
that a busy moment of the machine hits both; figures are CPU time, the least of all rounds. With `--q8` both
read the model as llama.cpp writes it in Q8_0; with `--quantization int8` (or another) the engine makes that
of a file of plain numbers while it reads it, beside Q8_0 of llama.cpp.

* decode: the next token after 128, of one sequence alone and of 8 at once.
* prefill: a prompt of 512 tokens and its first token.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import time
from array import array
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.llama_cpp_peer import CONTEXT, SEQUENCES
from benchmarks.one_rank import spec_of
from ipc.worker_messages import SamplingParams
from workers.checkpoints.reading import read_card
from workers.checkpoints.shares import WHOLE
from workers.execution.model_runner import ModelRunner
from workers.step.pages import pages_for
from workers.step.plan import NewSequence, Scheduled, StepPlan

PEER = Path(__file__).with_name("llama_cpp_peer.py")
MEASURES = {"decode alone": ("decode", 1), "decode 8 at once": ("decode", 8), "prefill 512": ("prefill", 512)}
STEPS = {"decode alone": 6, "decode 8 at once": 3, "prefill 512": 1}  # in a round


class Cortex:
    def __init__(self, path: Path, rounds: int, quantization: str | None = None) -> None:
        card = read_card(path)
        self.groups = len(card.cache_groups(WHOLE, "bfloat16"))
        self.pages = pages_for(
            max(512, CONTEXT + (rounds + 1) * max(STEPS.values()))
        )  # of each sequence and group
        spec = spec_of(
            device="cpu",
            quantization=quantization,
            threads=1,
            context_length=4096,
            max_sequences=16,
            max_step_tokens=512,
            kv_pages=self.groups * self.pages * 10,
        )
        self.runner = ModelRunner(spec, card)
        self.runner.load(lambda fraction, message: None)
        for slots in SEQUENCES.values():
            for slot in slots:
                self.prompt(slot, CONTEXT)

    def prompt(self, slot: int, tokens: int) -> None:
        prompt = array("I", range(100, 100 + tokens)).tobytes()
        new = NewSequence(slot, tokens, prompt, SamplingParams(0.0))
        first = slot * self.groups * self.pages
        tables = [[*range(first + n * self.pages, first + (n + 1) * self.pages)] for n in range(self.groups)]
        released = [slot] if slot in self.runner.slots else []
        self.runner.execute(StepPlan(1, released, [new], [Scheduled(slot, tokens, tables)]))

    def prefill(self, tokens: int) -> None:
        self.prompt(0, tokens)

    def decode(self, sequences: int) -> None:
        self.runner.execute(StepPlan(1, [], [], [Scheduled(slot, 1) for slot in SEQUENCES[sequences]]))

    def seconds(self, name: str, count: int) -> float:
        start = time.process_time()
        getattr(self, name)(count)
        return time.process_time() - start


class LlamaCpp:
    """In a process of its own, of another Python."""

    def __init__(self, python: str, path: Path, threads: int = 1) -> None:
        command = [python, str(PEER), str(path), "--threads", str(threads)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def prefill(self, tokens: int) -> None:
        self.seconds("prefill", tokens)

    def decode(self, sequences: int) -> None:
        self.seconds("decode", sequences)

    def seconds(self, name: str, count: int) -> float:
        print(name, count, file=self.process.stdin, flush=True)
        if not (line := self.process.stdout.readline()):
            raise SystemExit(f"llama.cpp ended with {self.process.wait()}")
        return float(line)

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def write_q8(python: str, model: Path, path: Path) -> None:
    """Have llama.cpp write a GGUF file in Q8_0."""
    subprocess.run([python, str(PEER), str(model), str(path)], check=True)


def measure(engines: dict[str, Callable[[str, int], float]], rounds: int) -> dict[str, dict[str, float]]:
    """Milliseconds of CPU time a token, by engine and measure."""
    least: dict[str, dict[str, float]] = {name: dict.fromkeys(MEASURES, float("inf")) for name in engines}
    for _ in range(rounds):
        for measure, (name, count) in MEASURES.items():
            for _ in range(STEPS[measure]):
                for engine, seconds in engines.items():
                    took = 1000 * seconds(name, count) / count
                    least[engine][measure] = min(least[engine][measure], took)
    return least


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="a GGUF file")
    parser.add_argument("--peer", required=True, help="a Python that has llama-cpp-python")
    parser.add_argument("--q8", action="store_true", help="write it in Q8_0 first")
    parser.add_argument("--quantization", help="what the engine makes of it, beside Q8_0 of llama.cpp")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", metavar="PATH", help="write the results there, too")
    arguments = parser.parse_args()

    path: Path = arguments.model
    with tempfile.TemporaryDirectory(prefix="cortex-benchmark-") as folder:
        if arguments.q8 or arguments.quantization:
            path = Path(folder, "q8_0.gguf")
            write_q8(arguments.peer, arguments.model, path)
        peer = LlamaCpp(arguments.peer, path)
        ours = arguments.model if arguments.quantization else path
        cortex = Cortex(ours, arguments.rounds, arguments.quantization)
        results = measure({"cortex": cortex.seconds, "llama.cpp": peer.seconds}, arguments.rounds)
        peer.close()

    table = Table(
        title=f"ms of CPU time a token, one thread, {arguments.model.name} as "
        f"{arguments.quantization or ('Q8_0' if arguments.q8 else 'it is')}"
    )
    for heading in ("", *results, "llama.cpp / cortex"):
        table.add_column(heading, justify="right" if heading else "left")
    for name in MEASURES:
        ours, theirs = (result[name] for result in results.values())
        table.add_row(name, f"{ours:.2f}", f"{theirs:.2f}", f"{theirs / ours:.2f}")
    Console().print(table)
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump(results, file, indent=2)


if __name__ == "__main__":
    main()
