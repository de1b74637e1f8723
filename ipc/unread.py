"""Of a large request no more than whose it is, so that others are not kept waiting while it is decoded.

To look for these fields among tens of millions of small values takes a tenth of a second. So they are taken
from the fields that come first, up to the first that has many values in it.
"""

from __future__ import annotations

import msgspec

from ipc.messages.requests import CountTokens, Detokenize, Embed, Generate, Rerank, Tokenize
from ipc.messages.values import ModelId, Name

MOST_VALUES = 1000  # that are looked at: a millisecond

_WANTED = frozenset(map(msgspec.msgpack.encode, ("verb", "id", "model", "account", "trace")))
_OF_GRAMMARS = frozenset(map(msgspec.msgpack.encode, ("structured", "must_call")))
_NOTHING = (0xC0, 0x90)  # how nil begins, and an empty list
_HAS_GRAMMAR = msgspec.msgpack.encode("has_grammar"), msgspec.msgpack.encode(True)

# By the first byte of a value in msgpack: how many bytes it has; or how many of them say the number of those
# that follow, or of the values in it.
_SIZES = dict.fromkeys((0xC0, 0xC2, 0xC3), 1) | {0xCA: 5, 0xCB: 9}
_SIZES |= {0xCC: 2, 0xCD: 3, 0xCE: 5, 0xCF: 9, 0xD0: 2, 0xD1: 3, 0xD2: 5, 0xD3: 9}
_SIZES |= {0xD4: 3, 0xD5: 4, 0xD6: 6, 0xD7: 10, 0xD8: 18}
_LENGTHS = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4}
_EXTENSIONS = {0xC7: 1, 0xC8: 2, 0xC9: 4}
_LISTS = {0xDC: 2, 0xDD: 4}
_MAPS = {0xDE: 2, 0xDF: 4}


class Unread(msgspec.Struct, kw_only=True):
    """A large request as a handler gets it, who has another process read it: the least that there is to know.

    What has too many values in it to be looked for is as if it was not there, `account` and `trace` too.
    `ipc.messages.requests.misread` is the error for a body that is no such request after all.
    """

    verb: str
    id: int = 0
    model: ModelId | None = None
    account: Name = ""
    trace: Name = ""
    has_grammar: bool = False  # an answer must look like something, which takes a while to prepare
    body: memoryview = memoryview(b"")  # all of it


UNREAD_VERBS = frozenset(
    request.__struct_config__.tag for request in (Generate, Embed, Rerank, CountTokens, Tokenize, Detokenize)
)


class _EnoughError(Exception):
    """So many values were looked at as may be."""


def first_fields(body: memoryview) -> bytes:
    """What a request says of itself first: a map, in msgpack, of those fields of an `Unread` that are there.

    Raises:
        msgspec.DecodeError: it is no map.
    """
    if body[0] >> 4 != 0x8 and body[0] not in _MAPS:
        raise msgspec.DecodeError("it begins with something else")
    found: dict[bytes, bytes] = {}
    try:
        _find(body, found)
    except _EnoughError:
        pass
    except IndexError as error:
        raise msgspec.DecodeError("it ends too soon") from error
    return bytes((0x80 | len(found),)) + b"".join(key + value for key, value in found.items())


def _find(body: memoryview, found: dict[bytes, bytes]) -> None:
    """Put the fields there that are looked for."""
    at, values = _open(body, 0)
    left = MOST_VALUES
    for _ in range(values // 2):
        start, (at, left) = at, _skip(body, at, left)
        key, start = bytes(body[start:at]), at
        if key in _OF_GRAMMARS and body[at] not in _NOTHING:
            found.update([_HAS_GRAMMAR])
        at, left = _skip(body, at, left)
        if key in _WANTED:
            found[key] = bytes(body[start:at])


def _skip(body: memoryview, at: int, left: int) -> tuple[int, int]:
    """Where the value that begins there ends, and how many more may be looked at."""
    values = 1
    while values:
        if not left:
            raise _EnoughError
        at, inside = _open(body, at)
        values += inside - 1
        left -= 1
    return at, left


def _open(body: memoryview, at: int) -> tuple[int, int]:
    """Where the value that begins there goes on, or ends, and how many values are in it."""
    first = body[at]
    if first < 0x80 or first >= 0xE0 or first in _SIZES:  # most are small numbers
        return at + _SIZES.get(first, 1), 0
    if first < 0xA0:
        return at + 1, (first & 0x0F) * (1 if first & 0x10 else 2)
    if first < 0xC0:
        return at + 1 + (first & 0x1F), 0
    if (width := _LENGTHS.get(first)) is not None:
        return at + 1 + width + _number(body, at + 1, width), 0
    if (width := _EXTENSIONS.get(first)) is not None:
        return at + 2 + width + _number(body, at + 1, width), 0
    if (width := _LISTS.get(first)) is not None:
        return at + 1 + width, _number(body, at + 1, width)
    if (width := _MAPS.get(first)) is not None:
        return at + 1 + width, 2 * _number(body, at + 1, width)
    raise msgspec.DecodeError(f"no value begins with {first:#x}")


def _number(body: memoryview, at: int, width: int) -> int:
    return int.from_bytes(body[at : at + width], "big")
