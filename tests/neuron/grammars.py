"""What somebody writes who knows nothing but a grammar."""

from __future__ import annotations

import random

from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from neuron.grammar.check import Bytes


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
