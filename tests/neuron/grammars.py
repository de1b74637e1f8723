"""What somebody writes who knows nothing but a grammar."""

from __future__ import annotations

import random

from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from neuron.grammar.check import Bytes
from neuron.text.tags import TOKEN


def encode(text: str) -> list[int]:
    """Tokens that are bytes."""
    return list(text.encode())


BYTES = LLTokenizer(TokenizerWrapper(Bytes()))


def follow(grammar: str, seed: int, length: int = 2000) -> str:
    """A text of that grammar, one byte after the other, chosen by a die."""
    rng, text = random.Random(seed), b""
    matcher = LLMatcher(BYTES, grammar, log_level=0)
    while not matcher.is_stopped() and len(text) < length:
        mask = int.from_bytes(matcher.compute_bitmask(), "little")
        # nobody who guesses ends a string that has no bound soon: quotes are likelier
        choices = [byte for byte in range(256) if mask >> byte & 1] or [256]
        byte = ord('"') if ord('"') in choices and rng.random() < 0.5 else rng.choice(choices)
        if mask >> 256 & 1 and rng.random() < 0.5:
            break
        matcher.consume_token(byte)
        text += bytes([byte])
    return text.decode(errors="replace")


class WithMarkers(Bytes):
    """A tokenizer of bytes that has a token for each marker besides."""

    def __init__(self, markers):
        self.eos_token_id = 256 + len(markers)
        self.tokens = [*Bytes.tokens[:256], *(marker.encode() for marker in markers), b"<end>"]
        self.special_token_ids = [*range(256, self.eos_token_id + 1)]


def follow_tokens(grammar, markers, seed, length=4000):
    """What somebody writes who knows nothing but the grammar, and how it comes from the detokenizer."""
    tokenizer, rng, said = WithMarkers(markers), random.Random(seed), [b""]
    matcher = LLMatcher(LLTokenizer(TokenizerWrapper(tokenizer)), grammar, log_level=0)
    while not matcher.is_stopped() and len(said) < length:
        mask = int.from_bytes(matcher.compute_bitmask(), "little")
        choices = [token for token in range(tokenizer.eos_token_id) if mask >> token & 1]
        # nobody who guesses ends a string that has no bound soon: what ends one is likelier
        ends = [token for token in choices if token >= 256 or token in b'"<']
        if not choices or (mask >> tokenizer.eos_token_id & 1 and rng.random() < 0.5):
            break
        token = rng.choice(ends if ends and rng.random() < 0.5 else choices)
        matcher.consume_token(token)
        said.append(TOKEN.encode(errors="surrogatepass") * (token >= 256) + tokenizer.tokens[token])
    assert not matcher.is_error(), matcher.get_error()
    return b"".join(said).decode(errors="surrogatepass")
