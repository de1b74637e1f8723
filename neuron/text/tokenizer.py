"""A model's tokenizer, from its `tokenizer.json` or what a GGUF file has in its place."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import msgspec
from tokenizers import Encoding, Tokenizer

from ipc.errors import Code, CortexError
from neuron.text.assembly import assemble
from neuron.text.growth import growth
from neuron.text.vocabulary import PackedVocabulary, Vocabulary
from workers.checkpoints.files import read_bytes, refuse
from workers.checkpoints.gguf.header import SUFFIX, read_header
from workers.checkpoints.gguf.tokenizer import tokenizer_parts

log = logging.getLogger("neuron.tokenizer")

PROBES = ("a", "A", " ", "0", "\n", "-", ".", "\u00e9", "\u4e00", "'")
PROBE_LENGTH = 64
MAX_PROBES = 64
ANCHOR = "\u263a"  # joins with nothing that follows
PROBE_SECONDS = 0.25  # microseconds are usual
MAX_GROWTH = 10_000  # characters that steps before the tokens make of one
MAX_DECODED = 100  # those behind them, whose work is done for each token of an answer
QUICK_GROWTH = 100
QUICK_WORD = 1000  # characters of a word that is looked at in all its parts


class _Model(msgspec.Struct, frozen=True):
    max_input_chars_per_word: Any = 0  # of WordPiece


class _Added(msgspec.Struct, frozen=True):
    content: str = ""
    id: Any = None


class TokenizerFile(msgspec.Struct):
    normalizer: Any = None
    pre_tokenizer: Any = None
    decoder: Any = None
    model: _Model = _Model()
    added_tokens: list[_Added] | None = None

    @property
    def added(self) -> dict[str, Any]:
        """The id that it says for each text that is a token of its own."""
        return {token.content: token.id for token in self.added_tokens or () if token.content}


class TextTokenizer:
    """Text to token ids. Safe from several threads.

    Args:
        path: the `tokenizer.json`, or a GGUF file.
        vocabulary_size: token ids that the model has.
        shown: contents of special tokens that are text for us all the same, such as tags.

    Raises:
        CortexError: MODEL_LOAD_FAILED when the file is no tokenizer.
    """

    def __init__(self, path: Path, vocabulary_size: int, shown: tuple[str, ...]) -> None:
        try:
            self.tokenizer, file, known = _read(path)
            grown, decoded = growth([file.normalizer, file.pre_tokenizer]), growth(file.decoder)
        except CortexError:
            raise
        except BaseException as error:  # the library raises nothing more special
            if not isinstance(error, Exception) and not is_panic(error):
                raise
            refuse(path, f"is no tokenizer: {error}")
        if grown > MAX_GROWTH or decoded > MAX_DECODED:
            refuse(
                path,
                f"makes a text up to {max(grown, decoded):,.0f} times as long, in steps one upon another",
            )
        for content, number in file.added.items():
            if (given := self.tokenizer.token_to_id(content)) != number:
                refuse(
                    path, f"says that {content!r} is the token {number}, and is read as if it were {given}"
                )
        # Files may carry the limits of the training run; cutting a prompt is not for the tokenizer to do.
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self.vocabulary_size = vocabulary_size
        self.vocabulary = Vocabulary(PackedVocabulary.of(self.tokenizer, vocabulary_size, shown, known))
        self._added = self.tokenizer.get_added_tokens_decoder()
        self._path = path
        self._longest = self.vocabulary.packed.longest or 1
        self._may_overrun = self.tokenizer.get_vocab_size() > vocabulary_size
        doubtful = list(filter(nests, regexes(file)))
        # In time, and with no large factor, as far as a look at them tells.
        self.is_linear = not doubtful and grown <= QUICK_GROWTH and _has_short_words(file.model)
        if doubtful:
            self._try(doubtful)

    def encode(self, text: str, special: bool) -> list[int]:
        """Token ids of `text`. Lets other threads run meanwhile.

        Args:
            special: add what the tokenizer puts around a text (a begin-of-text token, mostly). A rendered
                chat template has it already.

        Raises:
            CortexError: NOT_SUPPORTED when the text has a token that the model does not have, or is more than
                the tokenizer's regular expressions can take.
        """
        return self.encoding(text, special).ids

    def encoding(self, text: str | tuple[str, str], special: bool) -> Encoding:
        """The same with what else is known of each token; of two texts, as the tokenizer puts them together.

        Raises:
            CortexError: as of `encode`.
        """
        try:
            # `encode` itself holds the interpreter's lock all the while: 0.3 s for 200,000 tokens.
            (encoding,) = self.tokenizer.encode_batch_fast([text], add_special_tokens=special)
        except BaseException as error:
            if not is_panic(error):
                raise
            log.warning("a tokenizer gave up file=%s reason=%s", self._path, error)
            message = "the model's tokenizer gave up: its regular expressions take too long for this text"
            raise CortexError(Code.NOT_SUPPORTED, message) from error
        ids = encoding.ids
        if self._may_overrun and ids and max(ids) >= self.vocabulary_size:
            raise CortexError(
                Code.NOT_SUPPORTED,
                f"the text has the token {max(ids)}, and the model has only {self.vocabulary_size}",
            )
        return encoding

    def begin(self) -> list[int]:
        """What the tokenizer puts before a text."""
        marked, plain = self.encode("a", special=True), self.encode("a", special=False)
        return marked[: -len(plain)] if plain and marked[-len(plain) :] == plain else []

    def encode_inside(self, text: str) -> list[int]:
        """Token ids of a text within another: without the space that some tokenizers put before one."""
        anchor = self.encode(ANCHOR, special=False)
        ids = self.encode(ANCHOR + text, special=False)
        is_whole = ids[: len(anchor)] == anchor
        return ids[len(anchor) :] if is_whole else self.encode(text, special=False)

    def id_of(self, token: str) -> int | None:
        """The id of a token of the model, by how the vocabulary writes it."""
        number = self.tokenizer.token_to_id(token)
        return number if number is not None and number < self.vocabulary_size else None

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of token ids, with that of special tokens. Lets other threads run meanwhile."""
        return self.tokenizer.decode_batch([token_ids], skip_special_tokens=False)[0]

    def _try(self, doubtful: list[str]) -> None:
        """See that regular expressions which look as if they could take time without bound do not.

        What repeats a choice may take twice as long for each further character, where it finds no end. The
        library gives up by itself after ten million steps at one place.
        """
        letters = {*PROBES, *"".join(doubtful)}
        for letter, end in product(sorted(letters)[:MAX_PROBES], ("", "\x01")):
            started = time.thread_time()
            try:
                self.encode(letter * PROBE_LENGTH + end, special=False)
                slow = time.thread_time() - started > PROBE_SECONDS
            except CortexError:
                slow = True
            if slow:
                refuse(
                    self._path,
                    f"has a regular expression that takes time without bound ({letter!r} many times)",
                )

    def tokens_of(self, tags: Iterable[str]) -> dict[int, str]:
        """Those of some tags that are tokens of their own, by id."""
        ids = self.added
        return {ids[tag]: tag for tag in tags if tag in ids}

    @property
    def added(self) -> dict[str, int]:
        """The ids of texts that are tokens of their own, those too that the model does not have."""
        return {token.content: number for number, token in self._added.items()}

    def fewest(self, characters: int) -> int:
        """A number of tokens that so much text has at least, known without reading it."""
        return characters // self._longest


def is_panic(error: BaseException) -> bool:
    """Whether it is one of Rust's panics: no `Exception`, and without a public name."""
    return type(error).__name__ == "PanicException"


def _read(path: Path) -> tuple[Tokenizer, TokenizerFile, list[str]]:
    """What is at `path`, the steps in it, and its tokens from the first one on, where they are known without
    asking for each."""
    if path.suffix == SUFFIX:
        parts = tokenizer_parts(read_header(path))
        known = list(parts["model"]["vocab"]) if parts["model"]["type"] == "BPE" else []
        return assemble(parts), msgspec.convert(parts, TokenizerFile), known
    source = read_bytes(path)
    return Tokenizer.from_buffer(source), msgspec.json.decode(source, type=TokenizerFile), []


def _has_short_words(model: _Model) -> bool:
    longest = model.max_input_chars_per_word
    return isinstance(longest, int) and longest <= QUICK_WORD


def regexes(file: TokenizerFile) -> Iterator[str]:
    """The regular expressions in a `tokenizer.json`, outside of its vocabulary."""
    pending: list[Any] = [file.normalizer, file.pre_tokenizer, file.decoder]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            if isinstance(pattern := value.get("Regex"), str):
                yield pattern
            pending += value.values()
        elif isinstance(value, list):
            pending += value


def nests(pattern: str) -> bool:
    """Whether a regular expression repeats without bound what can be read in several ways: a group that has a
    repetition without bound in it, or alternatives."""
    repeated = [False]  # whether one of these is in each of the open groups
    closed = False  # the last thing was a group with one of them
    for piece in _PIECES.findall(pattern):
        if piece[0] == "(":
            repeated.append(False)
            closed = False
        elif piece == ")" and len(repeated) > 1:
            closed = repeated.pop()
            repeated[-1] = repeated[-1] or closed
        elif piece in "*+" or _UNBOUNDED.fullmatch(piece):
            if closed:
                return True
            repeated[-1] = True
        elif piece == "|":
            repeated[-1] = True
        else:
            closed = False
    return False


# A class, an escape, a group's opening, a count, or one character.
_PIECES = re.compile(
    r"\[\^?\]?(?:\\.|\[:\w+:\]|[^\]\\])*\]|\\[pP]\{[^}]*\}|\\.|\(\?[^:)]*:?|\{\d*,?\d*\}|.", re.DOTALL
)
_UNBOUNDED = re.compile(r"\{\d*,\}")
