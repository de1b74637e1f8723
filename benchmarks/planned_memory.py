"""What is planned for models on a CPU, and what their ranks find: `python -m benchmarks.planned_memory`.

Random weights in the shape of Qwen3-0.6B, of which a few layers do: what is shared by all layers is planned,
and layers add their weights to it. Each is loaded by a neuron, in every type and quantisation, and `health`
says both figures, of all of its ranks. Its pool has the smallest size that is of use, so that the rest shows,
and is taken off both: a pool takes what is left, and would hide a plan that is wrong.

Exits 1 where the two differ by more than 3 %.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import Qwen3Config

from benchmarks.engine import SHAPE, write_weights
from benchmarks.quantised_models import write_fp8, write_gguf
from ipc.messages.replies import Done
from ipc.messages.requests import Load, Unload
from neuron.catalogue.catalogue import DEMO_FOLDER
from tests.neuron.harness import Neuron

SECONDS = 300.0  # for a load
MOST = 0.03  # of what is planned
CONTEXT = 2048  # tokens, and of the pool as many
DTYPES = ("bfloat16", "float16", "float32")
QUANTIZATIONS = ("q8", "q6", "q4", "int8", "fp8")


def models(folder: Path, layers: int) -> Iterator[dict[str, Any]]:
    """Their settings: each way to keep the same weights, on one rank, and some of them on two."""
    few = {"num_hidden_layers": layers, "layer_types": None, "max_position_embeddings": CONTEXT}
    shape = Qwen3Config(**SHAPE.to_dict() | few)
    plain, fp8, gguf = (folder / name for name in ("plain", "fp8", "gguf"))
    for each in (plain, fp8, gguf):
        each.mkdir()
    write_weights(plain, shape)
    write_fp8(fp8, shape)
    for each in (plain, fp8):
        shutil.copy(DEMO_FOLDER / "tokenizer.json", each)
    path = write_gguf(gguf, shape)
    for ranks in (1, 2):
        for dtype in DTYPES:
            yield {"id": f"{dtype}, {ranks}", "path": str(plain), "dtype": dtype, "ranks": ranks}
        for kept in QUANTIZATIONS:
            yield {"id": f"{kept}, {ranks}", "path": str(plain), "quantization": kept, "ranks": ranks}
        yield {"id": f"FP8 checkpoint, {ranks}", "path": str(fp8), "ranks": ranks}
        yield {"id": f"Q4_K of a GGUF file, {ranks}", "path": str(path), "ranks": ranks}


def figures(neuron: Neuron, model: str) -> tuple[int, int]:
    """Bytes that were planned for a model, and bytes that its ranks measured."""
    with neuron.client() as client:
        reply = client.ask(Load(id=0, model=model), SECONDS)
        if not isinstance(reply, Done):
            raise SystemExit(f"{model} was not loaded: {reply}")
        state = neuron.model(model)
        client.ask(Unload(id=0, model=model), SECONDS)
    return state.bytes_reserved, state.bytes_measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--only", default="", help="those whose name has this in it")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers there, too")
    options = parser.parse_args()
    found: dict[str, dict[str, float]] = {}
    print(f"{'kept as, ranks':28} {'planned MB':>11} {'measured MB':>12} {'over the plan':>14}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        settings = [each | {"devices": ["cpu"]} for each in models(folder, options.layers)]
        settings = [each for each in settings if options.only in each["id"]]
        pool = 2 * options.layers * SHAPE.num_key_value_heads * SHAPE.head_dim * CONTEXT
        for each in settings:
            each["kv_memory"] = pool * (4 if each.get("dtype") == "float32" else 2) // each["ranks"]
        with Neuron(folder / "neuron", settings) as neuron:
            for each in settings:
                neuron.wait_for(each["id"])
                pools = each["kv_memory"] * each["ranks"]
                planned, measured = (size - pools for size in figures(neuron, each["id"]))
                over = measured / planned - 1
                found[each["id"]] = {"planned": planned, "measured": measured, "over": over}
                sizes = f"{planned / 1e6:11.0f} {measured / 1e6:12.0f} {over:14.1%}"
                print(f"{each['id']:28} {sizes}{' !' if abs(over) >= MOST else ''}", flush=True)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    if any(abs(each["over"]) >= MOST for each in found.values()):
        sys.exit(f"a plan is wrong by {MOST:.0%} or more")


if __name__ == "__main__":
    main()
