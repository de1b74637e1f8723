"""Which JSON schemas an answer can be held to: what asks for something that nobody would enforce is refused.

What asks for nothing is worth a line in the log: keywords of no draft, formats that nobody defined
(annotations, says 2020-12 in section 7.2.3), and keywords with a value that every answer satisfies.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Callable
from itertools import chain
from math import inf, nextafter
from typing import Any
from urllib.parse import unquote

from ipc.worker_messages import GRAMMAR_LIMITS

log = logging.getLogger("neuron.grammar.json_schema")

MAX_DEPTH = 64  # of schemas inside of each other
MAX_HOSTNAME = 253  # characters (RFC 1123)

_ENFORCED = """
    $ref additionalItems additionalProperties allOf anyOf const enum exclusiveMaximum exclusiveMinimum
    format items maxItems maxLength maxProperties maximum minItems minLength minProperties minimum
    multipleOf oneOf pattern patternProperties prefixItems properties required type
"""
# They say something about an answer, and nothing about whether it is valid.
_ANNOTATIONS = """
    $anchor $comment $defs $id $schema $vocabulary contentEncoding contentMediaType contentSchema default
    definitions deprecated description examples id readOnly title writeOnly
"""
KNOWN = frozenset(_ENFORCED.split() + _ANNOTATIONS.split())
# Characters that any string of an answer may have to have: a longer one is more states than a lexer may have.
MAX_NEEDED = GRAMMAR_LIMITS["max_lexer_states"] // 10

# As far from 0 as a bound may be: llguidance reads numbers as float64, and takes whole ones for 64 bits.
FURTHEST = (1 << 63) - 1024
NEAREST = 1e-9  # of a bound, or of 1 if that is more: how far beside it is the one that takes its place

FORMATS = ("date", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "time", "uri", "uuid")
DRAFTS = ("2020-12/schema", "2019-09/schema", "draft-07/schema", "draft-06/schema", "draft-04/schema")
LOWS, HIGHS = ("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")
NUMBERS = (*LOWS, *HIGHS, "multipleOf")
COUNTS = ("maxItems", "maxLength", "maxProperties", "minItems", "minLength", "minProperties")
MAPS = ("$defs", "definitions", "patternProperties", "properties")  # of schemas
LISTS = ("allOf", "anyOf", "oneOf", "prefixItems")
TEXTS = ("$ref", "pattern")
SINGLES = ("additionalItems", "additionalProperties", "items")
_CLASSES = re.compile(r"\\[pP](?:\{[^}]*\}|\w)")  # classes that Python's `re` does not have


def _is_any(schema: Any) -> bool:
    """Whether it holds for whatever there is, as far as a look tells."""
    return schema is True or schema == {}


# Keywords that nobody enforces, and whether one asks for nothing, from its value and the schema around it.
UNENFORCED: dict[str, Callable[[Any, dict[str, Any]], bool]] = {
    "$dynamicAnchor": lambda value, schema: True,  # a name for references that are refused themselves
    "$dynamicRef": lambda value, schema: False,
    "$recursiveAnchor": lambda value, schema: True,
    "$recursiveRef": lambda value, schema: False,
    "contains": lambda value, schema: schema.get("minContains") == 0 and "maxContains" not in schema,
    "dependencies": lambda value, schema: all(each == [] or _is_any(each) for each in _values(value)),
    "dependentRequired": lambda value, schema: all(each == [] for each in _values(value)),
    "dependentSchemas": lambda value, schema: all(map(_is_any, _values(value))),
    "else": lambda value, schema: "if" not in schema or _is_any(value),
    "if": lambda value, schema: _is_any(schema.get("then", True)) and _is_any(schema.get("else", True)),
    "maxContains": lambda value, schema: "contains" not in schema,
    "minContains": lambda value, schema: "contains" not in schema or value == 0,
    "not": lambda value, schema: value is False,
    "propertyNames": lambda value, schema: _is_any(value) or value == {"type": "string"},
    "then": lambda value, schema: "if" not in schema or _is_any(value),
    "unevaluatedItems": lambda value, schema: _is_any(value),
    "unevaluatedProperties": lambda value, schema: _is_any(value),
    "uniqueItems": lambda value, schema: value is False,
    "x-guidance": lambda value, schema: True,  # to llguidance it is an order, which is not a client's to give
}


class Unfit(Exception):
    """A schema that cannot be honoured: `pointer` (a JSON pointer) says where, the message why."""

    def __init__(self, pointer: str, reason: str) -> None:
        super().__init__(reason)
        self.pointer, self.reason = pointer, reason


def check(schema: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """See that every keyword in `schema` is one that llguidance enforces, or one that asks for nothing.

    Returns:
        The schema, changed in place: formats and bounds that llguidance takes too lightly are stricter, and
        what asks for nothing is gone; and the JSON pointers to all schemas in it, its own ("") included.

    Raises:
        Unfit: naming the first that is not.
    """
    if not isinstance(schema, dict):
        raise Unfit("", "a schema is an object, true or false")
    pending: list[tuple[str, Any, int]] = [("", schema, 0)]
    tuples = _has_tuples(schema)
    found: dict[str, dict[str, Any]] = {}
    notes: list[str] = []
    while pending:
        pointer, each, depth = pending.pop()
        if pointer in found:
            continue
        if depth > MAX_DEPTH:
            raise Unfit(pointer, f"schemas lie in each other more than {MAX_DEPTH} deep")
        if isinstance(each, bool):
            continue
        if not isinstance(each, dict):
            raise Unfit(pointer, "a schema is an object, true or false")
        found[pointer] = each
        notes += _drop_what_asks_for_nothing(pointer, each)
        _check_keywords(pointer, each)
        if each.get("format") == "hostname":
            each["maxLength"] = min(each.get("maxLength", MAX_HOSTNAME), MAX_HOSTNAME)
        _move_bounds_in(each)
        _shut_out_bounds(each)
        for key, inner in _schemas_in(pointer, each, tuples):
            pending.append((f"{pointer}/{key}", inner, depth + 1))
        pending += _referred(schema, each)
    if notes:
        log.info(
            "these parts of a schema ask for nothing: %s (%d in all)", ", ".join(notes[:5])[:500], len(notes)
        )
    _check_ends(found)
    return schema, list(found)


def _has_tuples(schema: dict[str, Any]) -> bool:
    """Whether `items` may be a list, as it could until draft 2019-09."""
    named = schema.get("$schema")
    if named is None:
        return False
    if not isinstance(named, str) or not named.rstrip("#").endswith(DRAFTS):
        raise Unfit("/$schema", f"only JSON schema drafts 4 to 2020-12 are known, and not {named!r}")
    return not named.rstrip("#").endswith(DRAFTS[0])


def _drop_what_asks_for_nothing(pointer: str, schema: dict[str, Any]) -> list[str]:
    """Take out what changes no answer, and where llguidance would stumble over it. Returns pointers to it.

    Keywords of no draft are noted, and stay: llguidance passes over them, and references may lead into them.
    """
    unknown = [key for key in schema if key not in KNOWN and key not in UNENFORCED]
    form = schema.get("format")
    dropped = [
        key for key, asks_nothing in UNENFORCED.items() if key in schema and asks_nothing(schema[key], schema)
    ]
    if "format" in schema and form not in FORMATS:
        dropped.append("format")
    if "additionalItems" in schema and not isinstance(schema.get("items"), list):
        dropped.append("additionalItems")
    for limit, key in (LOWS, HIGHS):
        # Draft 4 has it so, and OpenAPI 3.0.
        if schema.get(key) is False:
            dropped.append(key)
        elif schema.get(key) is True and limit in schema:
            schema[key] = schema.pop(limit)
    if schema.get("required") is False:  # of a property, as draft 3 has it
        dropped.append("required")
    for key in dropped:
        del schema[key]
    for key in COUNTS:
        if isinstance(value := schema.get(key), float) and value.is_integer():
            schema[key] = int(value)
    return [f"{pointer}/{_escaped(key)}" for key in dropped + unknown]


def _check_keywords(pointer: str, schema: dict[str, Any]) -> None:
    for key, value in schema.items():
        here = f"{pointer}/{_escaped(key)}"
        if key in UNENFORCED:
            raise Unfit(here, f"the keyword {key!r} cannot be enforced")
        if key in NUMBERS and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise Unfit(here, f"{key} must be a number")
        if key in COUNTS and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
            raise Unfit(here, f"{key} must be a whole number, 0 or more")
        if key in MAPS and not isinstance(value, dict):
            raise Unfit(here, f"{key} must be an object")
        if key in TEXTS and not isinstance(value, str):
            raise Unfit(here, f"{key} must be a text")
        if key == "enum" and not isinstance(value, list):
            raise Unfit(here, "enum must be a list")
        if key in ("const", "enum") and (odd := _rounded(value)) is not None:
            raise Unfit(here, f"the whole number {odd} has more digits than a float64 holds")
        if key == "type" and not _is_type(value):
            raise Unfit(here, "type must be the name of a type, or a list of such")
        if key in LISTS and not (isinstance(value, list) and value):
            raise Unfit(here, f"{key} must be a list, and not an empty one")
        if key == "multipleOf" and value <= 0:
            raise Unfit(here, "multipleOf must be above 0")
        needed = value if key == "minLength" else shortest(value) if key == "pattern" else 0
        if needed > MAX_NEEDED:
            raise Unfit(
                here,
                f"it asks for {needed} characters at least, and more than {MAX_NEEDED} cannot be counted",
            )
    for name in schema.get("properties", ()):
        # JSON has several ways to write such a character, and an object could have the property twice
        if any(ord(character) < 0x20 for character in name):
            raise Unfit(f"{pointer}/properties", f"the property name {name!r} has a control character")
    required = schema.get("required", [])
    if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
        raise Unfit(f"{pointer}/required", "required must be a list of strings")
    # Names that are not listed may come twice, and would be counted twice.
    if schema.get("minProperties", 0) > len(set(required)) + 1:
        raise Unfit(
            f"{pointer}/minProperties",
            "more properties than the required ones and one more cannot be enforced",
        )


def _move_bounds_in(schema: dict[str, Any]) -> None:
    """Let bounds that would be rounded, or are not read at all, be the next ones that allow nothing more."""
    for keys, side in ((HIGHS, 1), (LOWS, -1)):
        for key in keys:
            if key in schema:
                schema[key] = side * _at_most(side * schema[key])


def _shut_out_bounds(schema: dict[str, Any]) -> None:
    """Move whole numbers in that bound from outside: they are let through where the other bound is further
    from 0, and nearer than the next whole number."""
    lows, highs = ([schema[key] for key in keys if key in schema] for keys in (LOWS, HIGHS))
    if not (lows and highs and 0 < (width := min(highs) - max(lows)) < 1):
        return
    for (_, key), side in ((LOWS, 1), (HIGHS, -1)):
        bound = schema.get(key)
        if bound is not None and bound == bound // 1 and side * bound >= 0:
            schema[key] += side * min(NEAREST * max(1, abs(bound)), width / 2)


def _at_most(bound: float) -> float:
    """The highest bound up to this one that is read as it stands."""
    bound = min(bound, FURTHEST)
    if bound < -FURTHEST or (near := float(bound)) <= bound:
        return bound
    return int(nextafter(near, -inf))


def _rounded(value: Any) -> int | None:
    """A whole number in a JSON value that would become another one, if there is any."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value if abs(value) > FURTHEST or int(float(value)) != value else None
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return next((odd for each in inner if (odd := _rounded(each)) is not None), None)


def _is_type(value: Any) -> bool:
    names = value if isinstance(value, list) and value else [value]
    return all(isinstance(name, str) for name in names)


def _referred(root: dict[str, Any], schema: dict[str, Any]) -> list[tuple[str, Any, int]]:
    """The schema that a reference leads to, which may lie where schemas are not looked for."""
    reference = schema.get("$ref")
    if not isinstance(reference, str) or not reference.startswith("#/"):
        return []
    pointer, place = unquote(reference[1:]), root
    for step in pointer.split("/")[1:]:
        step = step.replace("~1", "/").replace("~0", "~")
        if isinstance(place, list) and step.isdecimal() and int(step) < len(place):
            place = place[int(step)]
        elif isinstance(place, dict) and step in place:
            place = place[step]
        else:
            return []
    return [(pointer, place, 1)]


def shortest(pattern: Any) -> int:
    """Characters that a text has at least which a regular expression matches; 0 where that is not known."""
    if not isinstance(pattern, str):
        return 0
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return re._parser.parse(_CLASSES.sub(".", pattern)).getwidth()[0]
    except (re.error, OverflowError, RecursionError):  # llguidance will say what is wrong with it
        return 0


def _values(value: Any) -> list[Any]:
    """The members of an object; of what should be one and is not, something that no rule allows."""
    return list(value.values()) if isinstance(value, dict) else [None]


def _schemas_in(pointer: str, schema: dict[str, Any], tuples: bool) -> list[tuple[str, Any]]:
    """The schemas directly in `schema`, by the rest of their pointers."""
    found = []
    for key in MAPS:
        found += [(f"{key}/{_escaped(name)}", inner) for name, inner in schema.get(key, {}).items()]
    for key in LISTS:
        found += [(f"{key}/{place}", inner) for place, inner in enumerate(schema.get(key, []))]
    for key in SINGLES:
        if key not in schema:
            continue
        value = schema[key]
        if key == "items" and isinstance(value, list) and tuples:
            found += [(f"{key}/{place}", inner) for place, inner in enumerate(value)]
        elif key == "additionalItems" and not tuples:
            raise Unfit(f"{pointer}/{key}", "additionalItems is of older drafts: use prefixItems and items")
        else:
            found.append((key, value))
    return found


def _check_ends(found: dict[str, dict[str, Any]]) -> None:
    """See that every schema in `found` has an answer that comes to an end."""
    needs = {pointer: _needs(pointer, schema) for pointer, schema in found.items()}
    asking: dict[str, list[str]] = {}
    for pointer, groups in needs.items():
        for needed in chain.from_iterable(groups):
            asking.setdefault(needed, []).append(pointer)
    ending: set[str] = set()
    pending = list(found)
    while pending:
        pointer = pending.pop()
        if pointer not in ending and all(
            any(needed in ending or needed not in found for needed in group) for group in needs[pointer]
        ):
            ending.add(pointer)
            pending += asking.get(pointer, [])
    for pointer in found:
        if pointer not in ending:
            raise Unfit(pointer, "it refers to itself without end, so no answer can be complete")


def _needs(pointer: str, schema: dict[str, Any]) -> list[list[str]]:
    """Groups of pointers: an answer ends only if of each group one schema has an answer that ends."""
    if "const" in schema or "enum" in schema:
        return []
    groups = [[f"{pointer}/allOf/{place}"] for place in range(len(schema.get("allOf", ())))]
    groups += [
        [f"{pointer}/{key}/{place}" for place in range(len(schema[key]))]
        for key in ("anyOf", "oneOf")
        if key in schema
    ]
    reference = schema.get("$ref")
    if isinstance(reference, str) and (reference == "#" or reference.startswith("#/")):
        groups.append([unquote(reference[1:])])
    if schema.get("type") == "object":
        named = set(schema.get("required", ())) & schema.get("properties", {}).keys()
        groups += [[f"{pointer}/properties/{_escaped(name)}"] for name in named]
    if schema.get("type") == "array":
        places, least = len(schema.get("prefixItems", ())), schema.get("minItems", 0)
        groups += [[f"{pointer}/prefixItems/{place}"] for place in range(min(places, least))]
        if least > places:
            groups.append([f"{pointer}/items"])
    return groups


def _escaped(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")
