"""Whether a tokenizer would be read, without building what takes it long: for a check.

The library builds BPE of a large vocabulary for a second. All that it can find wrong there is a merge of what
is no token, which is looked up here in a third of the time; the rest of the file it reads itself, without a
vocabulary. Whatever is unlike what is known here, it is given as a whole.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, KeysView, Mapping
from contextlib import contextmanager
from operator import itemgetter
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import msgspec
from tokenizers import Tokenizer

from neuron.processes.beside import Beside
from neuron.text.growth import growth
from neuron.text.tokenizer import (
    MAX_DECODED,
    MAX_GROWTH,
    TextTokenizer,
    TokenizerFile,
    is_panic,
    nests,
    regexes,
)
from workers.checkpoints.files import read_bytes
from workers.checkpoints.gguf.header import SUFFIX, read_header
from workers.checkpoints.gguf.tokenizer import tokenizer_parts
from workers.checkpoints.text import TOKENIZER

COMMENT = "#version"  # how lines among merges begin that are none
STDERR = 2
Number = Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)]


class _Bpe(msgspec.Struct):
    """What takes long."""

    type: str
    vocab: dict[str, Number]
    merges: msgspec.Raw
    continuing_subword_prefix: str | None = None


class Outline:
    """A tokenizer's outline, which is read beside whatever else is looked at.

    Args:
        path: where the model is; None: nothing is read before somebody asks.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._file = None if path is None else _first_look(path)
        self._beside = None if self._file is None else Beside(self._read)

    def added_tokens(self, file: Path, vocabulary_size: int) -> dict[str, int]:
        """See the function of that name."""
        read = self._beside.result() if self._beside is not None else b""
        if read and file == self._file:
            return msgspec.json.decode(read, type=dict[str, int])
        return added_tokens(file, vocabulary_size)

    def _read(self) -> bytes:
        with unheard():
            frame = frame_of(self._file)
        return b"" if frame is None else msgspec.json.encode(frame.added)


def _first_look(path: Path) -> Path | None:
    """Where the tokenizer of a model at `path` stands, as far as that can be seen from its name."""
    if path.suffix == SUFFIX:
        return path
    file = (path if os.path.isdir(path) else path.parent) / TOKENIZER
    return file if os.path.isfile(file) else None


def added_tokens(path: Path, vocabulary_size: int) -> dict[str, int]:
    """Texts that are tokens of their own in the tokenizer at `path`, as `TextTokenizer.added` has them.

    Raises:
        CortexError: where `TextTokenizer` does, for the same reason.
    """
    with unheard():
        frame = frame_of(path)
        return frame.added if frame is not None else TextTokenizer(path, vocabulary_size, shown=()).added


@contextmanager
def unheard() -> Iterator[None]:
    """Let the library say nothing: where it panics, it writes a page about that to this process's stderr, and
    what it cannot read is raised all the same. For commands, of which nothing else runs."""
    kept = os.dup(STDERR)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), STDERR)
    try:
        yield
    finally:
        os.dup2(kept, STDERR)
        os.close(kept)


class Frame(NamedTuple):
    """A tokenizer without its vocabulary, and the tokens that it finds whole in any text."""

    tokenizer: Tokenizer
    added: dict[str, int]


def frame_of(path: Path) -> Frame | None:
    """That of the tokenizer at `path`; None: whether it can be read is not known here."""
    if path.suffix == SUFFIX:
        parts = tokenizer_parts(read_header(path), merges=False)
        if parts["model"]["type"] != "BPE":
            return None
        return _framed(parts, parts["model"], parts["model"]["vocab"])  # whose merges would be of tokens
    source = read_bytes(path)
    try:
        parts = msgspec.json.decode(source, type=dict[str, msgspec.Raw])
        model = msgspec.json.decode(parts["model"], type=dict[str, msgspec.Raw])
        bpe = msgspec.json.decode(parts["model"], type=_Bpe)
        if (
            bpe.type != "BPE"
            or bpe.continuing_subword_prefix
            or not _are_tokens(bpe.merges, bpe.vocab.keys())
        ):
            return None
        return _framed(parts, model, bpe.vocab)
    except (msgspec.MsgspecError, KeyError):
        return None


def _are_tokens(merges: msgspec.Raw, vocabulary: KeysView[str]) -> bool:
    """Whether both parts of each merge are tokens, and so is what it makes of them."""
    pairs: list[Any]
    try:
        pairs = msgspec.json.decode(merges, type=list[tuple[str, str]])
    except msgspec.ValidationError:  # as files had them once
        lines = msgspec.json.decode(merges, type=list[str])
        pairs = [line.split(" ") for line in lines if not line.startswith(COMMENT)]
        if any(len(pair) != 2 for pair in pairs):
            return False
    # Parts are few that come often, and wholes are many that come once.
    parts = (set(map(itemgetter(number), pairs)) for number in range(2))
    return all(map(vocabulary.__ge__, parts)) and all(map(vocabulary.__contains__, map("".join, pairs)))


def _are_in_order(added: Mapping[str, Any], vocabulary: Mapping[str, int]) -> bool:
    """Whether tokens have the ids that the library gives them, whatever the file says: those of the
    vocabulary their own, and the others the next one in turn."""
    following = len(vocabulary)
    for content, number in added.items():
        if number != vocabulary.get(content, following):
            return False
        following = max(following, number + 1)
    return True


def _framed(parts: dict[str, Any], model: dict[str, Any], vocabulary: Mapping[str, int]) -> Frame | None:
    """`parts` with a model that knows no token."""
    frame = msgspec.json.encode(parts | {"model": model | {"vocab": {}, "merges": []}})
    file = msgspec.json.decode(frame, type=TokenizerFile)
    if growth([file.normalizer, file.pre_tokenizer]) > MAX_GROWTH or growth(file.decoder) > MAX_DECODED:
        return None
    if any(map(nests, regexes(file))):  # which has to be tried
        return None
    if not _are_in_order(file.added, vocabulary):
        return None
    try:
        return Frame(Tokenizer.from_buffer(frame), file.added)
    except BaseException as error:  # the library raises nothing more special
        if not isinstance(error, Exception) and not is_panic(error):
            raise
        return None
