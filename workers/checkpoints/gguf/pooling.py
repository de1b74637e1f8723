"""How a GGUF file wants vectors made of hidden states, as its `pooling_type` says: converters write it for
models that were trained to embed, and for no others."""

from __future__ import annotations

from workers.checkpoints.files import refuse
from workers.checkpoints.gguf.header import Gguf
from workers.checkpoints.vectors.rerankers import Reranker
from workers.checkpoints.vectors.stages import Pooling, Stage

KEY = "pooling_type"
NAMES = ("none", "mean", "cls", "last", "rank")  # by their numbers
OF_ENCODERS: tuple[Pooling, ...] = ("mean", "cls", "last")
OF_DECODERS: tuple[Pooling, ...] = ("mean", "last")  # which are computed in chunks, from prefixes

# Matrices behind the pooling, in their order, and what the folders of a checkpoint call them.
DENSE = {"dense_2.weight": "2_Dense.linear.weight", "dense_3.weight": "3_Dense.linear.weight"}


CLASSIFIER = ("cls", "cls.output")  # its matrices, each with a bias


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
    shapes = zip(CLASSIFIER, (size, 1), ("tanh", "identity"), strict=True)
    return Reranker(
        pooling="cls", stages=tuple(Stage(name, size, rows, True, made) for name, rows, made in shapes)
    )


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
    return _known(file, file.get(f"{file.architecture}.{KEY}", NAMES.index("mean")), OF_ENCODERS)


def of_decoder(file: Gguf) -> Pooling | None:
    """None: it was made to write.

    Raises:
        CortexError: MODEL_LOAD_FAILED, vectors are made in another way, or scores, as of a reranker.
    """
    kind = file.get(f"{file.architecture}.{KEY}", NAMES.index("none"))
    return None if kind == NAMES.index("none") else _known(file, kind, OF_DECODERS)


def _known(file: Gguf, kind: object, known: tuple[Pooling, ...]) -> Pooling:
    name = NAMES[kind] if type(kind) is int and 0 <= kind < len(NAMES) else None
    if name in known:
        return name
    said = f"{kind!r} ({name})" if name else f"{kind!r}"
    listed = ", ".join(f"{NAMES.index(each)} ({each})" for each in known)
    hint = ". Rerankers are served from safetensors" if name == "rank" else ""
    refuse(
        file.path,
        f"{file.architecture}.{KEY} {said} is not supported in such a file; there are {listed}{hint}",
    )
