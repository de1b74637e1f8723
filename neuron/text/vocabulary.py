"""How a tokenizer writes each token: all that the event loop needs to make text of tokens.

The library reads the 151,669 tokens of Qwen in half a second, in which it holds the interpreter's lock and a
neuron serves nobody. So a text process reads large tokenizers, and the neuron gets this: a few strings of
bytes, which are looked into where they lie.
"""

from __future__ import annotations

from array import array
from collections.abc import Collection, Sequence
from itertools import accumulate

import msgspec
from tokenizers import Tokenizer, decoders, models

from workers.checkpoints.token_bytes import from_byte_level, from_sentencepiece

ADDED, HIDDEN, ABSENT = 1, 2, 4  # bits: a token of its own, written as it is; no text; no token at all


class PackedVocabulary(msgspec.Struct, array_like=True, frozen=True):
    """A vocabulary as it travels.

    Attributes:
        text: what is written for each token, one after the other, in UTF-8; nothing for ids without a token.
        ends: where each ends in it, uint32 of this machine.
        kinds: the bits of each.
        decoder: an empty tokenizer of the library with the decoder, in JSON.
        longest: characters of the longest.
    """

    text: bytes
    ends: bytes
    kinds: bytes
    decoder: str
    longest: int

    @classmethod
    def of(
        cls, tokenizer: Tokenizer, size: int, shown: Collection[str] = (), known: Sequence[str] = ()
    ) -> PackedVocabulary:
        """That of a tokenizer.

        Args:
            size: token ids that the model has.
            shown: contents of special tokens that are text for us all the same, such as tags.
            known: its tokens from the first one on, where somebody has them: to ask for each takes 0.2 s.
        """
        # One by one: `get_vocab` holds the interpreter's lock for a quarter of a second, and takes longer.
        pieces = [*known[:size], *map(tokenizer.id_to_token, range(len(known), size))]
        written = [(piece or "").encode() for piece in pieces]
        ends = array("I", accumulate(map(len, written)))
        kinds = bytearray(HIDDEN | ABSENT if piece is None else 0 for piece in pieces)
        for number, token in tokenizer.get_added_tokens_decoder().items():
            if number < size:
                kinds[number] |= ADDED
                kinds[number] |= HIDDEN if token.special and token.content not in shown else 0
        frame = Tokenizer(models.BPE())
        if tokenizer.decoder is not None:
            frame.decoder = tokenizer.decoder
        longest = max((len(piece) for piece in pieces if piece), default=0)
        return cls(b"".join(written), ends.tobytes(), bytes(kinds), frame.to_str(), longest)


class Vocabulary:
    """Token ids to text, for one model. The ids that its methods take are the model's.

    Attributes:
        packed: the same as it travels.
        size: token ids that the model has.
        context_free: what a token is written as does not depend on those before it.
    """

    __slots__ = ("_decoder", "_ends", "_written", "context_free", "packed", "size")

    def __init__(self, packed: PackedVocabulary) -> None:
        self.packed = packed
        self.size = len(packed.kinds)
        self._ends = memoryview(packed.ends).cast("I")
        self._decoder = Tokenizer.from_str(packed.decoder).decoder
        self.context_free = isinstance(self._decoder, decoders.ByteLevel)
        self._written: dict[int, bytes] = {}  # tokens that were written

    def piece(self, token_id: int) -> str:
        """How the vocabulary writes a token; nothing for an id that only pads it."""
        start = self._ends[token_id - 1] if token_id else 0
        return self.packed.text[start : self._ends[token_id]].decode()

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of token ids, with that of special tokens. Beside a token that is written as nothing, some
        decoders put a space all the same."""
        kinds = self.packed.kinds
        pieces = [self.piece(token) for token in token_ids if not kinds[token] & ABSENT]
        return self._decoder.decode(pieces) if self._decoder is not None else " ".join(pieces)

    def written(self, token_ids: Sequence[int]) -> bytes:
        """The bytes of token ids, of those that are text; for a vocabulary that is context-free."""
        known = self._written
        for token in token_ids:
            if token not in known:
                known[token] = b"" if self.hides(token) else from_byte_level(self.piece(token))
        return b"".join([known[token] for token in token_ids])

    def spell(self, token_id: int) -> bytes:
        """The bytes that a token stands for; nothing for an id that only pads the vocabulary."""
        piece = self.piece(token_id)
        if self.packed.kinds[token_id] & ADDED:
            return piece.encode()
        return from_byte_level(piece) if self.context_free else from_sentencepiece(piece)

    def hides(self, token_id: int) -> bool:
        """Whether an id is no text: a special token, or padding of the vocabulary."""
        return bool(self.packed.kinds[token_id] & HIDDEN)

    def shown(self, token_ids: Sequence[int]) -> list[int]:
        """Those ids that are text."""
        kinds = self.packed.kinds
        return [token for token in token_ids if not kinds[token] & HIDDEN]
