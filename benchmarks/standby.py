"""From a request for a model that is not loaded to its first token: a new process against one that waits.

    python -m benchmarks.standby [--checkpoint FOLDER] [--rounds 5] [--json PATH]

The models are the demo and one of the shape of Qwen3-0.6B, in bfloat16, both in the page cache. `bytes` is
what it takes to read the weights once, with one thread: about the least that a load can cost.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.engine import write_weights
from ipc.blocking_client import BlockingClient
from ipc.messages.replies import Delta
from ipc.messages.requests import Generate, Unload
from ipc.messages.sampling import Sampling
from neuron.catalogue.catalogue import DEMO_FOLDER
from tests.neuron.harness import Neuron, wait_until

PATIENCE = 120.0  # seconds that any single wait may take
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def first_token(client: BlockingClient, model: str) -> float:
    """Seconds from a request for `model` to its first token. It is not loaded before, nor afterwards."""
    request = Generate(id=0, model=model, prompt=[1] * 16, sampling=Sampling(max_tokens=2), stream=True)
    began = time.perf_counter()
    seconds = None
    for reply in client.stream(request, PATIENCE):
        if seconds is None and isinstance(reply, Delta):
            seconds = time.perf_counter() - began
    client.ask(Unload(id=0, model=model), PATIENCE)
    if seconds is None:
        raise SystemExit(f"{model} gave no token: {reply}")
    return seconds


def measure(folder: Path, models: list[dict[str, str]], *, standby: bool, rounds: int) -> dict[str, float]:
    """Seconds to the first token of each model, the median of `rounds` loads."""
    with Neuron(folder, models, standby=standby) as neuron, neuron.client() as client:
        if standby:
            wait_until(lambda: "standby ready" in neuron.log, "a warm process")
        wait_until(lambda: len(neuron.health().models) >= len(models), "the models to be known")
        return {
            model["id"]: statistics.median(first_token(client, model["id"]) for _ in range(rounds))
            for model in models
        }


def read_seconds(folder: Path) -> float:
    """Seconds to read the weights of `folder` once, from the page cache into memory that is there already."""
    paths = list(folder.glob("*.safetensors"))
    buffers = [memoryview(bytearray(path.stat().st_size)) for path in paths]
    best = float("inf")
    for _ in range(3):
        began = time.perf_counter()
        for path, buffer in zip(paths, buffers, strict=True):
            with path.open("rb", buffering=0) as file:
                done = 0
                while count := file.readinto(buffer[done:]):
                    done += count
        best = min(best, time.perf_counter() - began)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--checkpoint", type=Path, help="instead of random weights in the shape of Qwen3-0.6B"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", metavar="PATH", help="write the results there, too")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="cortex-benchmark-") as name:
        large = arguments.checkpoint or Path(name) / "large"
        if arguments.checkpoint is None:
            large.mkdir()
            write_weights(large)
            for file in TOKENIZER:
                shutil.copy(DEMO_FOLDER / file, large)
        folders = {"demo": DEMO_FOLDER, "large": large}
        models = [{"id": model, "path": str(folder)} for model, folder in folders.items()]
        results = {
            "bytes": {model: read_seconds(folder) for model, folder in folders.items()},
            "cold": measure(Path(name) / "cold", models, standby=False, rounds=arguments.rounds),
            "warm": measure(Path(name) / "warm", models, standby=True, rounds=arguments.rounds),
        }
    table = Table(title="seconds from a request for an unloaded model to its first token")
    for heading in ("model", *results):
        table.add_column(heading, justify="left" if heading == "model" else "right")
    for model in folders:
        table.add_row(model, *(f"{seconds[model]:.2f}" for seconds in results.values()))
    Console().print(table)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(results, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
