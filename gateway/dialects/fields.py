"""Fields of requests in any dialect: their types, how a body is read, and errors that name a field."""

from __future__ import annotations

import re
from collections.abc import Callable
from operator import attrgetter
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta, Struct

from gateway.refusals import shown
from ipc.errors import Code, CortexError
from ipc.messages.values import MAX_NAME
from ipc.model_settings import MAX_MODEL_ID
from ipc.periods import parse_period

T = TypeVar("T")

MISSING = "a required field is missing"  # what is said of one that is not there

MAX_INT = (1 << 63) - 1  # of 64 bits with a sign: a message to a neuron holds little more
MAX_TOKEN_ID = 0xFFFF_FFFF
MAX_STOP = 1000  # characters of a text that ends an answer
MAX_BAD_WORD = 256  # characters of one that does not stand in it
MAX_STOPS = 16  # of one request

Int = Annotated[int, Meta(ge=-MAX_INT - 1, le=MAX_INT)]
NonNegative = Annotated[int, Meta(ge=0, le=MAX_INT)]
Count = Annotated[int, Meta(ge=1, le=MAX_INT)]
Name = Annotated[str, Meta(min_length=1)]
Model = Annotated[str, Meta(min_length=1, max_length=MAX_MODEL_ID)]
Short = Annotated[str, Meta(max_length=MAX_NAME)]
ShortName = Annotated[str, Meta(min_length=1, max_length=MAX_NAME)]
TokenId = Annotated[int, Meta(ge=0, le=MAX_TOKEN_ID)]
Stop = Annotated[str, Meta(min_length=1, max_length=MAX_STOP)]
BadWord = Annotated[str, Meta(min_length=1, max_length=MAX_BAD_WORD)]


def keep_alive(given: float | str | None) -> float | None:
    """Seconds that a model stays loaded after a request, as clients of Ollama say it: a number of them, or
    text such as `5m`; below 0: for ever. None: nothing is said.

    Raises:
        CortexError: it is neither.
    """
    if given is None:
        return None
    try:
        return parse_period(given)
    except ValueError as error:
        raise bad_request("keep_alive", str(error)) from error


def decode(decoder: msgspec.json.Decoder[T], body: bytes) -> T:
    """The typed body of a request; CortexError naming the field, by its path, when it is not one."""
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise invalid(error) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        text = str(error)
        if not body:
            text = "it is empty"
        elif text == "Input data was truncated":
            text = "it ends too soon, or has half of a surrogate pair"
        raise CortexError(Code.BAD_REQUEST, f"the body is not valid JSON: {text}") from error


def convert(value: Any, kind: Any, param: str) -> Any:
    """The value of the field `param` as a `kind`; CortexError naming the place when it is none."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise invalid(error, param) from error


# msgspec's words, in which a value of the client may stand, and the path.
_COMPLAINT = re.compile(r"(.*?)(?: - at `\$([^`]*)`)?", re.DOTALL)
_LONG_VALUE = re.compile(r"(['`])(.{100}).+\1", re.DOTALL)


def invalid(error: msgspec.ValidationError, root: str = "") -> CortexError:
    """msgspec's complaint as ours. `root`: the field that was validated, where it was not the whole body."""
    text, path = _COMPLAINT.fullmatch(str(error)).groups("")
    text = _LONG_VALUE.sub(r"\1\2...\1", text)
    param = (root + path).lstrip(".")
    if missing := re.fullmatch(r"Object missing required field `(\w+)`", text):
        param = f"{param}.{missing[1]}".lstrip(".")
        text = MISSING
    elif unknown := re.fullmatch(r"Object contains unknown field `(.+)`", text, re.DOTALL):
        param = f"{param}.{unknown[1]}".lstrip(".")
        text = "there is no such field"
    return CortexError(Code.BAD_REQUEST, f"{param}: {text}" if param else text, param=param or None)


def renamed(error: CortexError, names: dict[str, str]) -> CortexError:
    """The same error, with the client's names for fields, by the neuron's."""
    param = error.param or ""
    for name, own in names.items():
        if param == name or param.startswith((f"{name}.", f"{name}[")):
            error.param = own + param.removeprefix(name)
            error.message = re.sub(rf"^{re.escape(name)}(?!\w)", own, error.message)
            break
    return error


def bad_request(param: str, message: str) -> CortexError:
    """A field that is wrong."""
    return CortexError(Code.BAD_REQUEST, f"{param}: {message}", param=param)


def required(value: T | None, param: str) -> T:
    """The value of a field that has to be there in this place; CortexError where it is not."""
    if value is None:
        raise bad_request(param, MISSING)
    return value


def unsupported(param: str, message: str) -> CortexError:
    """A request for what cortex cannot do, at least not yet."""
    return CortexError(Code.NOT_SUPPORTED, f"{param}: {message}", param=param)


def refusing(base: type[Struct], neutral: dict[str, tuple[Any, ...]], *more: type[Struct]) -> type[Any]:
    """The fields of `base`, those of `more`, and those of `neutral`, for a `refuser` to see.
    (Structs cannot inherit from several.)"""
    fields = [
        (each.name, each.type, each.default) for group in more for each in msgspec.structs.fields(group)
    ]
    refused = [(name, Any, None) for name in neutral]
    return msgspec.defstruct("Refusing", fields + refused, bases=(base,), kw_only=True)


def refuser(neutral: dict[str, tuple[Any, ...]]) -> Callable[[Struct], None]:
    """What raises for the first field of `neutral` that asks for something. Nearly always none is there."""
    values_of, absent = attrgetter(*neutral), (None,) * len(neutral)

    def refuse(fields: Struct) -> None:
        given = values_of(fields)
        if given == absent:
            return
        for (name, values), value in zip(neutral.items(), given, strict=True):
            if value is not None and value not in values:
                raise unsupported(name, f"{shown(value)} is not supported; leave it out")

    return refuse
