"""A model's tokenizer, from its `tokenizer.json`."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer, decoders

from ipc.errors import Code, CortexError
from workers.checkpoints.safetensors import refuse
from workers.checkpoints.token_bytes import from_byte_level, from_sentencepiece


class TextTokenizer:
    """Text to token ids. Safe from several threads.

    Args:
        path: the `tokenizer.json`.
        vocabulary_size: token ids that the model has.
        shown: contents of special tokens that are text for us all the same, such as tags.

    Raises:
        CortexError: MODEL_LOAD_FAILED when the file is no tokenizer.
    """

    def __init__(self, path: Path, vocabulary_size: int, shown: tuple[str, ...]) -> None:
        try:
            self.tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises nothing more special
            refuse(path, f"is no tokenizer: {error}")
        # Files may carry the limits of the training run; cutting a prompt is not for the tokenizer to do.
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self.vocabulary_size = vocabulary_size
        self.hidden = hidden_ids(self.tokenizer, vocabulary_size, shown)
        self._added = self.tokenizer.get_added_tokens_decoder()
        by_bytes = isinstance(self.tokenizer.decoder, decoders.ByteLevel)
        self._bytes_of = from_byte_level if by_bytes else from_sentencepiece
        self._longest = max(map(len, self.tokenizer.get_vocab()))
        self._may_overrun = self.tokenizer.get_vocab_size() > vocabulary_size

    def encode(self, text: str, special: bool) -> list[int]:
        """Token ids of `text`. Lets other threads run meanwhile.

        Args:
            special: add what the tokenizer puts around a text (a begin-of-text token, mostly). A rendered
                chat template has it already.

        Raises:
            CortexError: NOT_SUPPORTED when the text has a token that the model does not have.
        """
        # `encode` itself holds the interpreter's lock all the while: 0.3 s for 200,000 tokens.
        (encoding,) = self.tokenizer.encode_batch_fast([text], add_special_tokens=special)
        ids = encoding.ids
        if self._may_overrun and ids and max(ids) >= self.vocabulary_size:
            raise CortexError(
                Code.NOT_SUPPORTED,
                f"the text has the token {max(ids)}, and the model has only {self.vocabulary_size}",
            )
        return ids

    def fewest(self, text: str) -> int:
        """A number of tokens that `text` has at least, known without reading it."""
        return len(text) // self._longest

    def spell(self, token_id: int) -> bytes:
        """The bytes that a token stands for; nothing for an id that only pads the vocabulary."""
        if (added := self._added.get(token_id)) is not None:
            return added.content.encode()
        piece = self.tokenizer.id_to_token(token_id)
        return self._bytes_of(piece) if piece is not None else b""


def hidden_ids(tokenizer: Tokenizer, vocabulary_size: int, shown: tuple[str, ...] = ()) -> frozenset[int]:
    """Ids that are no text: special tokens but those in `shown`, and ids that pad the model's vocabulary."""
    special = {
        token_id
        for token_id, token in tokenizer.get_added_tokens_decoder().items()
        if token.special and token.content not in shown
    }
    return frozenset(
        special.union(range(vocabulary_size)).difference(
            token_id for token_id in tokenizer.get_vocab().values() if token_id not in special
        )
    )
