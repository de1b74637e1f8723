"""A model's tokens as the bytes that they stand for, from its `tokenizer.json`."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import msgspec
import numpy as np
from llguidance import LLTokenizer, TokenizerWrapper

from ipc.errors import Code, CortexError
from workers.checkpoints import tokenizer
from workers.checkpoints.token_bytes import from_byte_level, from_sentencepiece

SPACE = b" \t\r\n"
TAG = re.compile(r"<[^<>]+>|\[[^\[\]]+\]")


class _Model(msgspec.Struct):
    vocab: dict[str, int] | list[tuple[str, float]]


class _Added(msgspec.Struct):
    id: int
    content: str
    special: bool = False


class _Decoder(msgspec.Struct):
    type: str
    decoders: list[_Decoder] = []


class _File(msgspec.Struct):
    model: _Model
    added_tokens: list[_Added] = []
    decoder: _Decoder | None = None


class Vocabulary:
    """What grammars need to know of a tokenizer. A mask is one bit for each id: uint32 [words].

    Args:
        tokens: the bytes of each token id; empty where the model's vocabulary is only padded.
        control: ids of tokens that tell the model something besides their text, special ones and tags. They
            are no part of an answer that follows a grammar, which can write the same text with others.
    """

    def __init__(self, tokens: list[bytes], control: frozenset[int]) -> None:
        self.tokens, self.control = tokens, control
        self.words = (len(tokens) + 31) // 32
        # For matchers. It has one token more than the model, which ends a text: no other does.
        self.matching = LLTokenizer(TokenizerWrapper(_Tokens(self)))
        # The mask of all tokens that are not padding.
        self.known = self.mask(token_id for token_id, text in enumerate(tokens) if text)
        # Tokens of nothing but space, and their mask.
        self.space = frozenset(
            token_id
            for token_id, text in enumerate(tokens)
            if text and not text.strip(SPACE) and token_id not in control
        )
        self.spaces = self.mask(self.space)
        self._beginning: dict[int, list[int]] = defaultdict(list)  # ids by first byte
        for token_id, text in enumerate(tokens):
            if text:
                self._beginning[text[0]].append(token_id)
        self._beyond: dict[tuple[bytes, ...], np.ndarray] = {}

    @classmethod
    def load(cls, path: Path, vocab_size: int) -> Vocabulary:
        """Read the tokenizer at `path`, a `tokenizer.json` or GGUF file, without ids from `vocab_size` on.

        Raises:
            CortexError: NOT_SUPPORTED for a kind of tokenizer of which the bytes of a token are not known.
        """
        file = msgspec.json.decode(tokenizer.read(path), type=_File)
        vocab = file.model.vocab
        if isinstance(vocab, list):
            vocab = {piece: token_id for token_id, (piece, _) in enumerate(vocab)}
        decoders = {each.type for each in (file.decoder, *file.decoder.decoders)} if file.decoder else set()
        if "ByteLevel" in decoders:
            to_bytes, added_to_bytes = from_byte_level, str.encode
        elif decoders & {"ByteFallback", "Metaspace"}:
            to_bytes = added_to_bytes = from_sentencepiece
        else:
            raise CortexError(
                Code.NOT_SUPPORTED,
                "grammars need a byte-level or a sentencepiece tokenizer, and the model's is neither",
                param="structured_outputs",
            )
        pieces = [(token_id, to_bytes(piece)) for piece, token_id in vocab.items()]
        pieces += [(token.id, added_to_bytes(token.content)) for token in file.added_tokens]
        tokens = [b""] * vocab_size
        for token_id, text in pieces:
            if token_id < vocab_size:
                tokens[token_id] = text
        return cls(
            tokens,
            frozenset(each.id for each in file.added_tokens if each.special or TAG.fullmatch(each.content)),
        )

    def beyond(self, tag: bytes, text: bytes) -> np.ndarray:
        """The mask of tokens that would complete `tag` after `text`, and go on with more than space."""
        ends = tuple(tag[length:] for length in range(len(tag)) if text.endswith(tag[:length]))
        if ends not in self._beyond:
            self._beyond[ends] = self.mask(
                token_id
                for end in ends
                for token_id in self._beginning[end[0]]
                if self.tokens[token_id].startswith(end) and self.tokens[token_id][len(end) :].strip(SPACE)
            )
        return self._beyond[ends]

    def mask(self, ids: Iterable[int]) -> np.ndarray:
        """Bits set for `ids`."""
        bits = np.zeros(self.words * 32, dtype=np.uint8)
        bits[np.fromiter(ids, dtype=np.int64)] = 1
        return np.packbits(bits, bitorder="little").view(np.uint32)


class _Tokens:
    """A vocabulary as llguidance asks for it."""

    bos_token_id = None

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.eos_token_id = len(vocabulary.tokens)
        self.tokens = [*vocabulary.tokens, b"<end>"]
        self.special_token_ids = [
            *(token_id for token_id in vocabulary.control if token_id < self.eos_token_id),
            self.eos_token_id,
        ]

    def __call__(self, text: str) -> list[int]:
        """Asked for text that a grammar forces, where it did not say `no_forcing`."""
        raise NotImplementedError("a grammar must say no_forcing")
