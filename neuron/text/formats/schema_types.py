"""What a JSON schema says of the type of a value that was written without one."""

from __future__ import annotations

import ast
import json
import re
import warnings
from collections.abc import Mapping
from typing import Any

import msgspec

from neuron.text.formats.json_scan import mended
from neuron.text.tags import SPACE

ANY = frozenset(("array", "boolean", "integer", "null", "number", "object", "string"))
STRING = frozenset(("string",))
PYTHON = {"True": "true", "False": "false", "None": "null"}  # as templates in Jinja write them
MAX_PYTHON = 1 << 16  # characters of a value that may be Python's
MAX_DEPTH = 16  # of schemas in each other that are looked at
_HUGE = re.compile(r"[0-9][eE]\+?[0-9]{3}|[0-9]{300}")  # what may be in such a number
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")


def types_of(schema: Any, root: Mapping[str, Any] | None = None) -> frozenset[str]:
    """The types of the values that `schema` allows; all of them where it does not say.

    Args:
        root: the schema that its references point into.
    """
    return _types(schema, root, MAX_DEPTH, {})


def _types(
    schema: Any, root: Mapping[str, Any] | None, depth: int, known: dict[int, frozenset[str]]
) -> frozenset[str]:
    """The same.

    Args:
        known: the types of schemas that were looked at, by their identity: one may be referred to from many
            places, itself among them, and is looked at once.
    """
    if not isinstance(schema, Mapping) or depth == 0:
        return ANY
    if id(schema) in known:
        return known[id(schema)]
    types = known[id(schema)] = ANY
    named = schema.get("type")
    if isinstance(named, str):
        types &= {named}
    elif isinstance(named, list):
        types &= {each for each in named if isinstance(each, str)}
    if "number" in types:
        types |= {"integer"}
    if "const" in schema:
        types &= {type_of(schema["const"])}
    if isinstance(schema.get("enum"), list):
        types &= {type_of(each) for each in schema["enum"]}
    for key in ("anyOf", "oneOf"):
        if isinstance(schema.get(key), list):
            types &= frozenset().union(*(_types(each, root, depth - 1, known) for each in schema[key]))
    if isinstance(schema.get("allOf"), list):
        for each in schema["allOf"]:
            types &= _types(each, root, depth - 1, known)
    if isinstance(schema.get("$ref"), str):
        types &= _types(referred(schema["$ref"], root), root, depth - 1, known)
    known[id(schema)] = types or ANY
    return types or ANY


def referred(reference: str, root: Mapping[str, Any] | None) -> Any:
    """The schema that a reference into `root` means; None where there is none."""
    if not reference.startswith("#"):
        return None
    place: Any = root
    for step in reference.removeprefix("#").split("/")[1:]:
        place = place.get(step.replace("~1", "/").replace("~0", "~")) if isinstance(place, Mapping) else None
    return place


def type_of(value: Any) -> str:
    """The name that JSON schema has for the type of a value."""
    if value is None:
        return "null"
    for kind, name in (
        (bool, "boolean"),
        (int, "integer"),
        (str, "string"),
        (list, "array"),
        (dict, "object"),
    ):
        if isinstance(value, kind):
            return name
    return "integer" if isinstance(value, float) and value.is_integer() else "number"


def typed(text: str, types: frozenset[str]) -> str:
    """The JSON for a value that was written as bare text.

    It is of one of `types` other than a string where it can be; else it is a string, of exactly this text.
    """
    bare = text.strip(SPACE)
    if "number" in types and _NUMBER.fullmatch(bare):  # also one that is too large for others
        return bare
    for written in (PYTHON.get(bare, bare), mended(bare), _from_python(bare)):
        try:
            value = _value(written)
        except (ValueError, RecursionError):
            continue
        if not isinstance(value, str) and type_of(value) in types:
            return written
        if isinstance(value, str) and "string" not in types:
            break
    return msgspec.json.encode(text).decode()


def _value(written: str) -> Any:
    """What JSON stands for; also with numbers in it that are too large for others."""
    try:
        return msgspec.json.decode(written)
    except msgspec.MsgspecError:
        if not _HUGE.search(written):
            raise
        return json.loads(written, parse_constant=_no_constant)


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _from_python(text: str) -> str:
    """The JSON for a list or an object that is written as Python writes it; other text as it is."""
    if not text.startswith(("[", "{")) or len(text) > MAX_PYTHON:
        return text
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes that are none
            return json.dumps(ast.literal_eval(text))
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text
