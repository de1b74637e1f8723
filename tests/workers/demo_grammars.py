"""Grammars over the vocabulary of the demo model: what they allow, and answers under them."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence

import numpy as np
from jsonschema import Draft7Validator, Draft202012Validator
from tokenizers import Tokenizer

from ipc.worker_messages import Constraint
from tests.demo import DEMO
from tests.workers.schemas import SCHEMAS, formats
from workers.sampling.grammar import Grammars
from workers.sampling.vocabulary import Vocabulary

SIZE, VOCAB = 1792, 1856  # tokens that the demo model's tokenizer has; here it is padded
END, TURN, THINK, END_THINK, CALL = 0, 2, 3, 4, 5
STOPS = (END, TURN)
TOKENIZER = Tokenizer.from_file(str(DEMO / "tokenizer.json"))
VOCABULARY = Vocabulary.load(DEMO / "tokenizer.json", VOCAB)


def encode(text: str) -> list[int]:
    return TOKENIZER.encode(text, add_special_tokens=False).ids


ENDS = {*STOPS, *(encode(mark)[0] for mark in '"}]')}


def text_of(tokens: Sequence[int]) -> str:
    return b"".join(VOCABULARY.tokens[token] for token in tokens if token not in STOPS).decode(
        errors="replace"
    )


def allowed(row: np.ndarray) -> np.ndarray:  # [words] int32 -> [VOCAB] bool
    return np.unpackbits(np.ascontiguousarray(row).view(np.uint8), bitorder="little").astype(bool)[:VOCAB]


def masks(grammars: Grammars, slots: Sequence[int]) -> np.ndarray:  # [slots, VOCAB] bool
    return np.stack([allowed(row) for row in grammars.begin(slots).result().numpy()])


def ids(grammars: Grammars, slot: int = 0) -> set[int]:
    return set(np.flatnonzero(masks(grammars, [slot])[0]).tolist())


def completion(grammars: Grammars, constraint: Constraint, output: list[int]) -> list[int]:
    """What a model adds to `output` that wants to come to an end, and has no plan how."""
    grammars.add(0, constraint, output, STOPS)
    rng = random.Random(0)
    added: list[int] = []
    for _ in range(400):
        allow = ids(grammars)
        ends = allow & ENDS
        shortest = min(len(VOCABULARY.tokens[token]) for token in allow)
        short = [token for token in sorted(allow) if len(VOCABULARY.tokens[token]) == shortest]
        added.append(min(ends) if ends and rng.random() < 0.8 else rng.choice(short))
        if grammars.accept(0, added[-1]):
            return added
    raise AssertionError(f"no end: {text_of(output + added)!r}")


def errors(name: str, text: str) -> list[str]:
    """What is wrong with an answer to the schema `name`."""
    schema = SCHEMAS[name]
    kind = Draft7Validator if "$schema" in schema else Draft202012Validator
    return [error.message for error in kind(schema, format_checker=formats).iter_errors(json.loads(text))]
