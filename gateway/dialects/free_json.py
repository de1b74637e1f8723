"""JSON of a client that no type of ours describes: schemas, and variables of chat templates."""

from __future__ import annotations

from typing import Any

import msgspec

from gateway.dialects.fields import bad_request

SPARE_LEVELS = 50  # of nesting and of the stack: the message is encoded around it, and further in


def check(param: str, value: Any) -> None:
    """See that a message to a neuron can hold it; CortexError naming the field, `param`, if not."""
    for _ in range(SPARE_LEVELS):
        value = [value]
    try:
        msgspec.msgpack.encode(value)
    except OverflowError as error:
        raise bad_request(param, "a number in it does not fit into 64 bits") from error
    except RecursionError as error:
        raise bad_request(param, "it is nested too deeply") from error
