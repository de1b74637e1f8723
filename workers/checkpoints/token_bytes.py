"""How tokenizers spell bytes: the supervisor names tokens by it, and workers hold texts to grammars."""

from __future__ import annotations

# Byte-level tokenizers write each byte as a character that can be seen: itself, else one from U+0100 on.
_VISIBLE = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
_HIDDEN = [byte for byte in range(256) if byte not in _VISIBLE]
_BYTE_OF = {chr(byte): byte for byte in _VISIBLE}
_BYTE_OF |= {chr(0x100 + place): byte for place, byte in enumerate(_HIDDEN)}


def from_byte_level(piece: str) -> bytes:
    """The bytes of a token of a byte-level tokenizer."""
    try:
        return bytes([_BYTE_OF[character] for character in piece])
    except KeyError:  # a token that somebody added to the vocabulary as text
        return piece.encode()


def from_sentencepiece(piece: str) -> bytes:
    """The bytes of a token of a sentencepiece tokenizer."""
    if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
        return bytes([int(piece[3:5], 16)])
    return piece.replace("\N{LOWER ONE EIGHTH BLOCK}", " ").encode()
