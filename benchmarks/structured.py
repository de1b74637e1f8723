"""What grammars cost: trying one, reading a tokenizer, masks per step for 1, 32 and 256 sequences.

python -m benchmarks.structured [--tokenizer FILE --vocab 151936] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ipc.messages.sampling import Structured
from neuron.grammar.structured import constrain
from workers.sampling.grammar import Grammars
from workers.sampling.vocabulary import Vocabulary

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1},
        "email": {"type": "string", "format": "email"},
        "tags": {"type": "array", "items": {"type": "string"}, "maxItems": 8},
        "address": {
            "type": "object",
            "properties": {"street": {"type": "string"}, "zip": {"type": "string", "pattern": "^[0-9]{5}$"}},
            "required": ["street", "zip"],
        },
    },
    "required": ["name", "email", "tags", "address"],
}
ASKED = {
    "json": Structured(json=PERSON),
    "json_object": Structured(json_object=True),
    "regex": Structured(regex=r"([A-Z][a-z]+ ?){2,40}\."),
    "choice": Structured(choice=["positive", "negative", "neutral"] * 10),
}


def timed(action: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    value = action()
    return time.perf_counter() - start, value


def steps(
    grammars: Grammars, vocabulary: Vocabulary, sequences: int, asked: Structured, count: int
) -> tuple[list[float], list[float]]:
    """Seconds for the masks of each step, and for accepting its tokens."""
    constraint, rng = constrain(asked, lambda text: []), np.random.default_rng(0)
    masking, accepting = [], []
    for slot in range(sequences):
        grammars.add(slot, constraint, [], [])
    for step in range(count + 1):
        seconds, masks = timed(lambda: grammars.begin(range(sequences)).result().numpy())
        tokens = []
        for slot in range(sequences):
            bits = np.unpackbits(np.ascontiguousarray(masks[slot]).view(np.uint8), bitorder="little")
            tokens.append(int(rng.choice(np.flatnonzero(bits))))
        taken, ended = timed(lambda drawn=tokens: [grammars.accept(*pair) for pair in enumerate(drawn)])
        if step:  # the first one waits for the compilation
            masking.append(seconds)
            accepting.append(taken)
        for slot in np.flatnonzero(ended):
            grammars.add(int(slot), constraint, [], [])
    return masking, accepting


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--tokenizer",
        type=Path,
        default=Path("neuron/demo/tokenizer.json"),
        help="a tokenizer.json or GGUF file",
    )
    parser.add_argument("--vocab", type=int, default=1792, help="logits of the model")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--json", type=Path, help="write the figures here")
    args = parser.parse_args()
    figures: dict[str, float] = {}
    figures["try_new_ms"] = 1e3 * timed(lambda: constrain(ASKED["json"], lambda text: []))[0]
    figures["try_again_ms"] = 1e3 * timed(lambda: constrain(ASKED["json"], lambda text: []))[0]
    seconds, vocabulary = timed(lambda: Vocabulary.load(args.tokenizer, args.vocab))
    figures["read_tokenizer_ms"] = 1e3 * seconds
    grammars = Grammars(args.tokenizer, args.vocab)
    grammars.add(0, constrain(ASKED["choice"], lambda text: []), [], [])
    figures["first_mask_ms"] = 1e3 * timed(lambda: grammars.begin([0]).result())[0]
    grammars.add(0, constrain(ASKED["json"], lambda text: []), [], [])
    figures["compile_and_first_mask_ms"] = 1e3 * timed(lambda: grammars.begin([0]).result())[0]
    print("\n".join(f"{name:28}{value:10.2f}" for name, value in figures.items()))
    print(f"\n{'ms per step':14}{'sequences':>10}{'mask p50':>10}{'p99':>8}{'accept':>12}{'us/sequence':>13}")
    for name, asked in ASKED.items():
        for sequences in (1, 32, 256):
            masking, accepting = steps(grammars, vocabulary, sequences, asked, args.steps)
            p50, p99 = statistics.median(masking), statistics.quantiles(masking, n=100)[98]
            accept = statistics.median(accepting)
            figures |= {
                f"{name}_{sequences}_mask_p50_ms": 1e3 * p50,
                f"{name}_{sequences}_mask_p99_ms": 1e3 * p99,
            }
            figures[f"{name}_{sequences}_accept_p50_ms"] = 1e3 * accept
            print(
                f"{name:14}{sequences:10}{1e3 * p50:10.2f}{1e3 * p99:8.2f}{1e3 * accept:12.2f}"
                f"{1e6 * p50 / sequences:13.1f}"
            )
    grammars.close()
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
