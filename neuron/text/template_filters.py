"""The filters of chat templates, each of which takes note of what it is about to do."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from functools import wraps
from types import GeneratorType
from typing import Any

import jinja2
from jinja2 import filters, nodes
from jinja2.utils import Namespace

from neuron.text.budget import (
    MAX_BITS,
    SHORT,
    VALUE,
    VIEWS,
    OverBudget,
    check_key,
    here,
    size,
    spend,
    spend_on,
    tick,
    weigh,
)

MANY_VALUES = 20_000  # take some milliseconds to write
MAX_INDENT = 256  # characters

# Their work is in proportion to the items that they are given, or to all that is in these.
_OF_ITEMS = """
    abs attr batch count d default first items last length list map random reject rejectattr reverse select
    selectattr sum
"""
_OF_TEXT = "capitalize e escape float forceescape int lower safe string title trim upper urlencode wordcount"
_COMPARING = "dictsort groupby max min sort unique"
OF_ITEMS = frozenset(_OF_ITEMS.split())
COMPARING = frozenset(_COMPARING.split())
FILTERS = OF_ITEMS | frozenset(_OF_TEXT.split()) | COMPARING
# How much more than to read a text it is to do this with each of its characters.
EFFORT = {"title": 32, "wordcount": 16, "urlencode": 16, "list": 8, "e": 4, "escape": 4, "forceescape": 4}


def metered(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter or a test that takes note of what it is given."""
    effort = EFFORT.get(name, 1)

    @wraps(function)  # with the marks that tell Jinja what to hand over before the value
    def filtered(*args: Any, **kwargs: Any) -> Any:
        if len(args) == 1 and type(args[0]) is str and len(args[0]) <= SHORT and not kwargs:
            return function(*args)
        if name in COMPARING:
            args = tuple(list(each) if isinstance(each, Iterator) else each for each in args)
        for each in kwargs.values():
            check_key(each)  # an attribute, mostly
        for place, each in enumerate(args):
            if place:
                check_key(each)
            if isinstance(each, str):
                if len(each) > SHORT:
                    spend(len(each) * (effort if each.isascii() else max(effort, 4)))
            elif isinstance(each, list | tuple | dict):
                if name in OF_ITEMS:
                    spend(size(each) if not isinstance(each, dict) else len(each))
                else:
                    spend_on(each, times=len(each).bit_length() if name in COMPARING else 1)
            elif isinstance(each, (Namespace, *VIEWS)):
                spend_on(each)
        made = function(*args, **kwargs)
        return _ticking(made) if isinstance(made, GeneratorType) else made

    return filtered


def _ticking(items: Iterator[Any]) -> Iterator[Any]:
    """The same: what is made as it is taken takes its time then."""
    for item in items:
        tick(0)
        yield item


def spend_on_replacing(text: str, old: Any, new: Any) -> None:
    """Take note of a text in which every `old` becomes `new`."""
    old, new = str(old), str(new)
    spend(len(text) + text.count(old) * (VALUE + len(new)))


def text_of(value: Any) -> str:
    """A value as it is written."""
    if isinstance(value, str):
        if len(value) > SHORT:
            spend(len(value))
        return value
    spend_on(value)
    return str(value)


def _replace(value: Any, old: Any, new: Any, count: int = -1) -> str:
    text = text_of(value)
    spend_on_replacing(text, old, new)
    return text.replace(str(old), str(new), -1 if count is None else count)


def _indent(value: Any, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    space = width if isinstance(width, str) else " " * min(width, MAX_INDENT)
    text = text_of(value)
    spend(len(text) + (text.count("\n") + 1) * len(space))
    return filters.do_indent(text, space, first, blank)


@jinja2.pass_eval_context
def _join(context: nodes.EvalContext, value: Any, d: str = "", attribute: str | int | None = None) -> str:
    check_key(attribute)
    values = list(value)
    spend_on(values)
    spend(len(values) * len(d))
    return filters.sync_do_join(context, values, d, attribute)


def _round(value: float, precision: int = 0, method: str = "common") -> float:
    return filters.do_round(value, max(-MAX_INDENT, min(precision, MAX_INDENT)), method)


def _int(value: Any, default: int = 0, base: int = 10) -> int:
    if isinstance(value, str) and len(value) > MAX_BITS:
        raise OverBudget("a number in it is too large")
    return filters.do_int(value, default, base)


def _batch(value: Iterable[Any], linecount: int, fill_with: Any = None) -> Any:
    if linecount > here.budget.bounds.values:
        raise OverBudget(f"it makes a list of more than {here.budget.bounds.values:,} values")
    return _ticking(filters.do_batch(value, linecount, fill_with))


@jinja2.pass_environment
def _sum(
    environment: jinja2.Environment, iterable: Any, attribute: str | int | None = None, start: Any = 0
) -> Any:
    """One by one: lists grow with each."""
    if isinstance(start, str):
        raise TypeError("texts are joined, not summed")
    check_key(attribute)
    if attribute is not None:
        iterable = map(filters.make_attrgetter(environment, attribute), iterable)
    total = start
    for each in iterable:
        if isinstance(total, list | tuple):
            tick(size(total) + size(each))
        total = total + each
    return total


@jinja2.pass_environment
def _unique(
    environment: jinja2.Environment,
    value: Iterable[Any],
    case_sensitive: bool = False,
    attribute: str | int | None = None,
) -> Any:
    check_key(attribute)
    values = list(value)
    spend_on(values)
    looked_up = filters.make_attrgetter(environment, attribute)
    for each in values:
        check_key(looked_up(each))
    return filters.do_unique(environment, values, case_sensitive, attribute)


def _word_count(text: Any) -> int:
    """One by one: a list of all words is many times as large as the text."""
    text = text_of(text)
    if len(text) > SHORT:
        spend(len(text) * EFFORT["wordcount"])
    return sum(1 for _ in re.finditer(r"\w+", text))


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as Python writes it: Jinja's own filter escapes for HTML, which models were not trained on."""
    weight, values = weigh(value)
    spend(weight)
    if indent is not None:
        indent = indent[:MAX_INDENT] if isinstance(indent, str) else max(0, min(indent, MAX_INDENT))
        spend(values * (len(indent) if isinstance(indent, str) else indent))
    encoder = json.JSONEncoder(
        ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
    # In one go it holds the interpreter's lock to its end, which is long where there is much to write.
    return encoder.encode(value) if values <= MANY_VALUES else "".join(encoder.iterencode(value))


OWN = {
    "batch": _batch,
    "indent": _indent,
    "int": _int,
    "join": _join,
    "replace": _replace,
    "round": _round,
    "sum": _sum,
    "tojson": _to_json,
    "unique": _unique,
    "wordcount": _word_count,
}
