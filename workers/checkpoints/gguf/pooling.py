"""How a GGUF file wants vectors made of hidden states, as its `pooling_type` says: converters write it for
models that were trained to embed, and for no others."""

from __future__ import annotations

import re

from workers.checkpoints.files import refuse
from workers.checkpoints.gguf.header import Gguf
from workers.checkpoints.gguf.keys import MODERN_BERT
from workers.checkpoints.vectors.rerankers import (
    QWEN3_BEFORE,
    QWEN3_BEHIND,
    QWEN3_INSTRUCTION,
    Question,
    Reranker,
)
from workers.checkpoints.vectors.stages import Pooling, Stage, StageActivation

KEY = "pooling_type"
NAMES = ("none", "mean", "cls", "last", "rank")  # by their numbers
OF_ENCODERS: tuple[Pooling, ...] = ("mean", "cls", "last")
OF_CLASSIFIERS: tuple[Pooling, ...] = ("mean", "cls")
OF_DECODERS: tuple[Pooling, ...] = ("mean", "last")  # which are computed in chunks, from prefixes

# Matrices behind the pooling, in their order, and what the folders of a checkpoint call them.
DENSE = {"dense_2.weight": "2_Dense.linear.weight", "dense_3.weight": "3_Dense.linear.weight"}


CLASSIFIER = HEAD, OUTPUT = "cls", "cls.output"  # its matrices
LABELS = "classifier.output_labels"
OF_CLASSIFIER = "classifier.pooling_type"
# How a causal model is asked, and what of that stands in the place of the pair.
TEMPLATE = "tokenizer.chat_template.rerank"
ASKS = re.compile(
    r"(?P<before>.*)<Instruct>: (?P<instruction>.*)\n<Query>: {query}\n<Document>: {document}(?P<behind>.*)",
    re.DOTALL,
)
ANSWERS = ("yes", "no")


def of_classifier(file: Gguf, size: int) -> Reranker | None:
    """How a model that ends in a classifier of one class scores a pair; None: it ends in none.

    Raises:
        CortexError: MODEL_LOAD_FAILED, it sorts into classes, or its first matrix was left out: converters
            take that of a BERT for one that is not used.
    """
    first, last = (file.tensors.get(f"{name}.weight") for name in CLASSIFIER)
    if first is None and last is None:
        return None
    if first is None or last is None:
        lost = CLASSIFIER[first is not None]
        refuse(file.path, f"ends in a classifier without {lost}.weight, so that its scores would be others")
    if last.shape[0] != 1:
        why = "one of a single class ranks"
        refuse(file.path, f"a classifier of {last.shape[0]} classes is not supported: {why}")
    modern = file.architecture == MODERN_BERT  # of which files may say nothing
    kind = file.get(f"{file.architecture}.{OF_CLASSIFIER}", NAMES.index("mean" if modern else "cls"))
    return Reranker(
        pooling=_known(file, kind, OF_CLASSIFIERS, OF_CLASSIFIER),
        stages=(
            _stage(file, HEAD, size, size, "gelu" if modern else "tanh"),
            _stage(file, OUTPUT, size, 1, "identity"),
        ),
    )


def _stage(file: Gguf, name: str, inputs: int, outputs: int, activation: StageActivation) -> Stage:
    bias, norm, of_norm = (f"{name}.{each}" in file.tensors for each in ("bias", "norm.weight", "norm.bias"))
    return Stage(name, inputs, outputs, bias, activation, f"{name}.norm" if norm else "", of_norm)


def of_answers(file: Gguf, size: int) -> Reranker | None:
    """How a causal model scores a pair that it is asked about: by the rows of its head that are the two
    answers, of which a file has nothing else. None: it is not asked.

    Raises:
        CortexError: MODEL_LOAD_FAILED, it is asked something else, or has other answers.
    """
    if file.get(f"{file.architecture}.{KEY}") != NAMES.index("rank"):
        return None
    labels = file.get(f"{file.architecture}.{LABELS}")
    if labels not in ([*ANSWERS], [*reversed(ANSWERS)]):
        why = "a causal model that ranks answers yes or no"
        refuse(file.path, f"{file.architecture}.{LABELS} {labels!r} is not supported: {why}")
    yes, no = map(labels.index, ANSWERS)
    return Reranker(
        question=_question(file, yes, no), stages=(Stage(OUTPUT, size, len(ANSWERS), bias=False),)
    )


def _question(file: Gguf, yes: int, no: int) -> Question:
    """As its template has it; Qwen3's, where there is none."""
    if (template := file.get(TEMPLATE)) is None:
        parts = {"before": QWEN3_BEFORE, "behind": QWEN3_BEHIND, "instruction": QWEN3_INSTRUCTION}
    elif isinstance(template, str) and (match := ASKS.fullmatch(template)) is not None:
        parts = match.groupdict()
    else:
        refuse(file.path, f"{TEMPLATE} {template!r} is not supported: it asks otherwise than Qwen3-Reranker")
    return Question(yes=yes, no=no, **parts)


def stages(file: Gguf, size: int) -> tuple[Stage, ...]:
    """What a pooled vector of `size` goes through, where the converter was asked to write it.

    Raises:
        CortexError: MODEL_LOAD_FAILED, a matrix takes vectors of another size.
    """
    found = []
    for stored, name in DENSE.items():
        if (matrix := file.tensors.get(stored)) is None:
            continue
        if len(matrix.shape) != 2 or matrix.shape[1] != size:
            refuse(matrix.file, f"{stored!r} is {list(matrix.shape)}, and is given vectors of {size}")
        found.append(Stage(name.removesuffix(".weight"), size, size := matrix.shape[0], bias=False))
    return tuple(found)


def of_encoder(file: Gguf) -> Pooling:
    """Means, where the file says nothing; raises as `of_decoder`."""
    kind = file.get(f"{file.architecture}.{KEY}", NAMES.index("mean"))
    return _known(file, kind, OF_ENCODERS)


def of_decoder(file: Gguf) -> Pooling | None:
    """None: it was made to write.

    Raises:
        CortexError: MODEL_LOAD_FAILED, vectors are made in another way.
    """
    kind = file.get(f"{file.architecture}.{KEY}", NAMES.index("none"))
    return None if kind == NAMES.index("none") else _known(file, kind, OF_DECODERS)


def _known(file: Gguf, kind: object, known: tuple[Pooling, ...], key: str = KEY) -> Pooling:
    name = NAMES[kind] if type(kind) is int and 0 <= kind < len(NAMES) else None
    if name in known:
        return name
    said = f"{kind!r} ({name})" if name else f"{kind!r}"
    listed = ", ".join(f"{NAMES.index(each)} ({each})" for each in known)
    hint = f": it has no {HEAD}.weight and {OUTPUT}.weight to rank with" if name == "rank" else ""
    named = f"{file.architecture}.{key} {said}"
    refuse(file.path, f"{named} is not supported in such a file{hint}; there are {listed}")
