"""Sixty JSON schemas as clients write them, and the formats that the validator does not check by itself."""

from __future__ import annotations

import datetime
import re
from typing import Any
from urllib.parse import urlsplit

from jsonschema import FormatChecker


def record(required: list[str] | None = None, **properties: Any) -> dict[str, Any]:
    """An object with these properties and no others; all are required unless said otherwise."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties) if required is None else required,
        "additionalProperties": False,
    }


def items(schema: Any, **bounds: int) -> dict[str, Any]:
    return {"type": "array", "items": schema} | bounds


def ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/$defs/{name}"}


STRING, INTEGER, NUMBER, BOOLEAN, NULL = (
    {"type": name} for name in ("string", "integer", "number", "boolean", "null")
)
SHORT = {"type": "string", "maxLength": 8}
OLD = "http://json-schema.org/draft-07/schema#"

SCHEMAS: dict[str, dict[str, Any]] = {
    # scalars
    "string": STRING,
    "integer": INTEGER,
    "number": NUMBER,
    "boolean": BOOLEAN,
    "null": NULL,
    "several types": {"type": ["string", "null", "integer"]},
    "constant": {"const": "yes, “really”\n"},
    "constant object": {"const": {"a": [1, {"b": None}], "c": "é"}},
    "enum of strings": {"enum": ["red", "green", "blue", 'with "quotes"', "back\\slash"]},
    "enum of everything": {"enum": [1, 2.5, True, None, "text", ["list", 1], {"key": "value"}]},
    # numbers
    "integer from to": {"type": "integer", "minimum": -17, "maximum": 4321},
    "positive integer": {"type": "integer", "exclusiveMinimum": 0},
    "number from to": {"type": "number", "minimum": 0, "maximum": 1},
    "number between": {"type": "number", "exclusiveMinimum": -2.5, "exclusiveMaximum": 1000.25},
    "multiple": {"type": "integer", "multipleOf": 7, "minimum": 0},
    "multiple of a half": {"type": "number", "multipleOf": 0.5, "minimum": -3, "maximum": 3},
    # strings
    "length": {"type": "string", "minLength": 3, "maxLength": 12},
    "pattern": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{4}(-[a-z]+)?$"},
    "pattern within": {"type": "string", "pattern": "[0-9]{3}", "maxLength": 30},
    "pattern of alternatives": {"type": "string", "pattern": "^(cat|dog)s?$|^none$"},
    "pattern with unicode": {"type": "string", "pattern": "^[äöüß€]{2,6}$"},
    "pattern with escapes": {"type": "string", "pattern": r'^\\["/]\t\.$'},
    "pattern and length": {"type": "string", "pattern": "^(ab|c)+$", "minLength": 4, "maxLength": 9},
    "date": {"type": "string", "format": "date"},
    "time": {"type": "string", "format": "time"},
    "date and time": {"type": "string", "format": "date-time"},
    "duration": {"type": "string", "format": "duration"},
    "email": {"type": "string", "format": "email", "maxLength": 40},
    "host name": {"type": "string", "format": "hostname"},
    "address of version 4": {"type": "string", "format": "ipv4"},
    "address of version 6": {"type": "string", "format": "ipv6"},
    "uuid": {"type": "string", "format": "uuid"},
    "uri": {"type": "string", "format": "uri", "maxLength": 60},
    # arrays
    "any items": {"type": "array", "maxItems": 3},
    "bounded items": items({"type": "integer", "minimum": 0, "maximum": 99}, minItems=2, maxItems=5),
    "exactly three": items(BOOLEAN, minItems=3, maxItems=3),
    "tuple": {"type": "array", "prefixItems": [SHORT, INTEGER, NULL], "items": False, "minItems": 2},
    "tuple of an older draft": {
        "$schema": OLD,
        "type": "array",
        "items": [INTEGER, SHORT],
        "additionalItems": BOOLEAN,
        "minItems": 2,
        "maxItems": 4,
    },
    "arrays in arrays": items(items({"enum": [0, 1]}, minItems=2, maxItems=2), minItems=1, maxItems=3),
    "no items": items(STRING, maxItems=0),
    # objects
    "person": record(
        name={"type": "string", "minLength": 1, "maxLength": 20},
        age={"type": "integer", "minimum": 0, "maximum": 150},
        email={"type": "string", "format": "email", "maxLength": 30},
    ),
    "optional properties": record(["b"], a=INTEGER, b=BOOLEAN, c=SHORT),
    "unicode names": record(
        größe={"type": "number", "minimum": 0, "maximum": 3}, 名前=SHORT, **{"a b/c~d": NULL}
    ),
    "map": {"type": "object", "additionalProperties": INTEGER, "minProperties": 1, "maxProperties": 3},
    "map beside properties": {
        "type": "object",
        "properties": {"kind": {"const": "map"}},
        "required": ["kind"],
        "additionalProperties": {"type": "boolean"},
        "maxProperties": 3,
    },
    "names by pattern": {
        "type": "object",
        "patternProperties": {"^n_[a-z]{1,3}$": INTEGER, "^s_[a-z]{1,3}$": SHORT},
        "additionalProperties": False,
        "minProperties": 1,
        "maxProperties": 2,
    },
    "nested": record(a=record(b=record(c=record(d=items(record(e=SHORT), minItems=1, maxItems=2))))),
    "any object": {"type": "object", "maxProperties": 3},
    "anything": {},
    "annotations": record(
        unit={"title": "Unit", "description": "of length", "default": "m", "enum": ["m", "km"]}
    ),
    # combinations
    "one of by type": {"oneOf": [INTEGER, SHORT, items(BOOLEAN, maxItems=2)]},
    "one of by constant": {
        "oneOf": [
            record(kind={"const": "circle"}, radius={"type": "number", "minimum": 0, "maximum": 9}),
            record(kind={"const": "square"}, side={"type": "integer", "minimum": 1, "maximum": 9}),
        ]
    },
    "any of": {"anyOf": [record(a=INTEGER), record(a=SHORT, b=BOOLEAN), NULL]},
    "all of": {
        "allOf": [
            {"type": "object", "properties": {"a": INTEGER}, "required": ["a"]},
            {"type": "object", "properties": {"b": BOOLEAN}, "required": ["b"]},
        ],
        "maxProperties": 2,
    },
    "all of numbers": {"allOf": [{"type": "integer", "minimum": 5}, {"maximum": 50}, {"multipleOf": 5}]},
    # references
    "references": {
        "$defs": {"point": record(x={"type": "integer", "maximum": 9}, y=ref("y")), "y": INTEGER},
        **record(start=ref("point"), end=ref("point")),
    },
    "list by reference": {
        "$defs": {"node": record(value=BOOLEAN, next={"anyOf": [ref("node"), NULL]})},
        "$ref": "#/$defs/node",
    },
    "tree": {
        "$defs": {"tree": record(leaf=INTEGER, children=items(ref("tree"), maxItems=2))},
        "$ref": "#/$defs/tree",
    },
    "reference to the whole": record(["value"], value=BOOLEAN, inner={"$ref": "#"}),
    "expression": {
        "$defs": {
            "expression": {"anyOf": [{"type": "integer", "minimum": 0, "maximum": 9}, ref("sum")]},
            "sum": record(
                operator={"enum": ["+", "*"]}, operands=items(ref("expression"), minItems=2, maxItems=2)
            ),
        },
        "$ref": "#/$defs/expression",
    },
}

formats = FormatChecker()


@formats.checks("time", ValueError)
def is_time(value: object) -> bool:
    return not isinstance(value, str) or is_moment(f"2000-01-01T{value}")


@formats.checks("date-time", ValueError)
def is_moment(value: object) -> bool:
    """RFC 3339. Python has no leap seconds, and no year 0."""
    if not isinstance(value, str):
        return True
    text = re.sub(r"(?i)^0000-(.*)z$", r"2000-\1Z", value.upper())
    text = re.sub(r"(T..:..):60", r"\1:59", text)
    return "T" in text and datetime.datetime.fromisoformat(text).tzinfo is not None


@formats.checks("date", ValueError)
def is_date(value: object) -> bool:
    return not isinstance(value, str) or bool(datetime.date.fromisoformat(re.sub("^0000", "2000", value)))


@formats.checks("duration")
def is_duration(value: object) -> bool:
    """RFC 3339, appendix A."""
    days, time = r"(\d+Y)?(\d+M)?(\d+D)?", r"T(?=\d)(\d+H)?(\d+M)?(\d+S)?"
    return not isinstance(value, str) or bool(re.fullmatch(rf"P(?=[\dT])(\d+W|{days}({time})?)", value))


@formats.checks("hostname")
def is_host(value: object) -> bool:
    """RFC 1123, section 2.1."""
    label = "[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
    return not isinstance(value, str) or (
        len(value) < 254 and bool(re.fullmatch(rf"{label}(\.{label})*", value))
    )


@formats.checks("uri", ValueError)
def is_uri(value: object) -> bool:
    if not isinstance(value, str):
        return True
    return bool(urlsplit(value).scheme) and bool(re.fullmatch(r"[!-~]*", value))
