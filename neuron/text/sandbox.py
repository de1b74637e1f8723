"""Runs chat templates as transformers does, within bounds: a template is a program that came with a model.

Jinja's sandbox keeps a template from what it must not touch. What it takes is bounded here: each turn of a
loop and each call of a macro looks at the clock, text is counted before it comes into being, and what makes
much of little (padding, wrapping) is not there.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import wraps
from typing import Any, NoReturn

import jinja2
from jinja2 import filters, nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

MAX_TEXT = 32 << 20  # characters of any one text, a prompt among them
MAX_WORK = 16 * MAX_TEXT  # characters that are read and written on the way to a prompt
MAX_VALUES = 1 << 20  # in a list or an object that becomes text
MANY_VALUES = 20_000  # take some milliseconds to write
MAX_INDENT = 256  # characters
SHORT = 256  # characters; of texts up to here the loop around them takes note
MAX_BITS = 4096  # of a number that is the result of a multiplication

# Methods of texts that make no more of them, and those that are counted.
_METHODS = """
    capitalize casefold count endswith find format index isalnum isalpha isascii isdecimal isdigit islower
    isnumeric isspace istitle isupper join lower lstrip partition removeprefix removesuffix replace rfind
    rindex rpartition rsplit rstrip split splitlines startswith strip swapcase title upper
"""
METHODS = frozenset(_METHODS.split())
# Filters: their work is in proportion to the items that they are given, or to all that is in these.
_OF_ITEMS = """
    abs attr batch count d default first items last length list map random reject rejectattr reverse select
    selectattr sum
"""
_OF_TEXT = "capitalize e escape float forceescape int lower safe string title trim upper urlencode wordcount"
_COMPARING = "dictsort groupby max min sort unique"
OF_ITEMS = frozenset(_OF_ITEMS.split())
FILTERS = OF_ITEMS | frozenset(_OF_TEXT.split()) | frozenset(_COMPARING.split())
_TESTS = "== eq equalto != ne < lt lessthan <= le > gt greaterthan >= ge in"  # that compare


class OverBudget(jinja2.TemplateError):
    """A template took more than it may."""


class _Budget(threading.local):
    """What the rendering in this thread may still take."""

    deadline = work = float("inf")  # while nothing is rendered
    given: tuple[Any, ...] = ()  # variables

    def spend(self, characters: int) -> None:
        """Take note of text that is about to be read or written."""
        if characters > MAX_TEXT:
            raise OverBudget(f"a text in it is longer than {MAX_TEXT:,} characters")
        self.work -= characters
        if self.work < 0:
            raise OverBudget(f"it reads and writes more than {MAX_WORK:,} characters")


_budget = _Budget()


def parse(source: str) -> nodes.Template:
    """Raises: whatever Jinja says of what is no template."""
    return _ENVIRONMENT.parse(source)


def compile_template(source: str) -> jinja2.Template:
    """Raises: whatever Jinja, and Python's compiler behind it, say of what is no template."""
    code = _ENVIRONMENT.compile(_Metering().visit(parse(source)))
    return jinja2.Template.from_code(_ENVIRONMENT, code, _ENVIRONMENT.make_globals(None))


def render(template: jinja2.Template, variables: Mapping[str, Any], seconds: float) -> str:
    """What `template` makes of `variables`.

    Raises:
        OverBudget: it takes more than `seconds`, or makes too much text.
        Exception: whatever the template does wrong.
    """
    _budget.deadline, _budget.work = time.monotonic() + seconds, MAX_WORK
    _budget.given = tuple(variables.values())
    try:
        pieces, size = [], 0
        for piece in template.generate(variables):
            size += len(piece)
            if size > MAX_TEXT:
                raise OverBudget(f"the prompt is longer than {MAX_TEXT:,} characters")
            pieces.append(piece)
        return "".join(pieces)
    finally:
        del _budget.deadline, _budget.work, _budget.given


class _Metering(NodeTransformer):
    """Puts a look at the budget into every loop and macro, and before `~` and comparisons."""

    def _metered(self, node: Any) -> nodes.Node:
        own = sum(len(data.data) for data in node.find_all(nodes.TemplateData))
        own += SHORT * sum(len(output.nodes) for output in node.find_all(nodes.Output))
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(_call("tick", nodes.Const(own))))
        return node

    visit_For = visit_Macro = visit_CallBlock = _metered

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _call("concat", *node.nodes)

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        if isinstance(node.expr, nodes.Const) or (
            len(node.ops) == 1 and isinstance(node.ops[0].expr, nodes.Const)
        ):
            return node  # what is compared with a text or a number is not walked through
        node.expr = _call("compared", node.expr)
        for operand in node.ops:
            if operand.op not in ("in", "notin"):
                operand.expr = _call("compared", operand.expr)
        return node


def _call(name: str, *args: nodes.Expr) -> nodes.Call:
    return nodes.Call(nodes.ImportedName(f"{__name__}.{name}"), list(args), [], None, None)


class _Code(CodeGenerator):
    """What was put into a template is called as it is; it is none of the template's business."""

    def visit_Call(self, node: nodes.Call, frame: Frame, forward_caller: bool = False) -> None:
        if not isinstance(node.node, nodes.ImportedName):
            super().visit_Call(node, frame, forward_caller=forward_caller)
            return
        self.visit(node.node, frame)
        self.write("(")
        for argument in node.args:
            self.visit(argument, frame)
            self.write(", ")
        self.write(")")


def tick(characters: int) -> None:
    """Called in each turn of a loop, which writes so many characters at most, but for long texts."""
    _budget.spend(characters)
    if time.monotonic() > _budget.deadline:
        raise OverBudget("it takes too long")


def concat(*values: Any) -> str:
    """Called for `~`."""
    texts = [as_text(value) for value in values]
    _budget.spend(sum(map(len, texts)))
    return "".join(texts)


def compared(value: Any) -> Any:
    """Called for what is compared: a list that holds another twice, and that one a third, has no end."""
    if isinstance(value, list | tuple | dict):
        _spend_on(value)
    return value


def as_text(value: Any) -> str:
    """Called for all that is written."""
    if isinstance(value, str):
        if len(value) > SHORT:
            _budget.spend(len(value))
        return value
    _spend_on(value)
    return str(value)


def _spend_on(*values: Any, times: int = 1) -> int:
    """Take note of the texts in `values`, each of which is read or written so many times.

    Returns:
        How many values there are, those inside of others included. One may hold another twice, and that one a
        third: there is a bound.
    """
    pending, characters, seen = list(values), 0, 0
    while pending:
        value = pending.pop()
        seen += 1
        if isinstance(value, str):
            characters += len(value)
        elif isinstance(value, dict):
            pending += value.keys()
            pending += value.values()
        elif isinstance(value, list | tuple | set):
            pending += value
        if seen + len(pending) > MAX_VALUES:
            raise OverBudget(f"it writes a list or an object of more than {MAX_VALUES:,} values")
    _budget.spend(characters * times)
    return seen


class _Environment(ImmutableSandboxedEnvironment):
    code_generator_class = _Code
    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "+" and type(left) is type(right) is str:
            _budget.spend(len(left) + len(right))
            return left + right
        numbers = isinstance(left, int) and isinstance(right, int)
        if operator == "+" and not numbers:
            _budget.spend(_size(left) + _size(right))
        elif operator == "%" and isinstance(left, str):
            _spend_on(left, right, times=_fields(left, "%"))
        elif operator == "*" and not numbers:
            _budget.spend(abs(_size(left) * _size(right)))
        elif operator in ("*", "**") and numbers:
            bits = (
                left.bit_length() * abs(right) if operator == "**" else left.bit_length() + right.bit_length()
            )
            if bits > MAX_BITS:
                raise OverBudget("a number in it is too large")
        return super().call_binop(context, operator, left, right)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if isinstance(obj, str):
            return attr in METHODS
        if attr in ("append", "pop") and isinstance(
            obj, list
        ):  # some collect turns so; what they were given stays
            return not any(obj is given for given in _budget.given)
        return super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None
        form = value.__self__

        def formatted(*args: Any, **kwargs: Any) -> str:
            _spend_on(form, args, kwargs, times=_fields(form, "{"))
            return wrapped(*args, **kwargs)

        return formatted

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        text = getattr(__obj, "__self__", None)
        if isinstance(text, str):
            name = __obj.__name__
            _budget.spend(len(text))
            if name == "replace" and len(args) >= 2:
                _spend_on_replacing(text, *args[:2])
            elif name == "join" and args:
                args = (list(args[0]), *args[1:])
                _spend_on(args[0])
                _budget.spend(len(text) * len(args[0]))
        return super().call(__context, __obj, *args, **kwargs)


def _size(value: Any) -> int:
    """Characters or items of what has any; a number counts as itself."""
    if isinstance(value, str | list | tuple):
        return len(value)
    return value if isinstance(value, int) else 1


def _fields(form: str, mark: str) -> int:
    """How many fields a format has at most; none may be wide, or as wide as a value says."""
    if mark == "%":
        wide = any("*" in field or _WIDE.search(field) for field in _PERCENT.findall(form))
    else:
        fields = form.replace("{{", "").replace("}}", "")
        wide = _BRACES.search(fields) is not None
    if wide:
        raise OverBudget("it writes into a field of 1,000 characters or more")
    return 1 + form.count(mark)


_WIDE = re.compile(r"\d{4}")
_PERCENT = re.compile(r"%(?:\([^)]*\))?[-+ #.\d*]*")
_BRACES = re.compile(r"\{[^{}]*(?:\{|\d{4})")


def _spend_on_replacing(text: str, old: Any, new: Any) -> None:
    old, new = str(old), str(new)
    _budget.spend(len(text) + text.count(old) * len(new))


def _metered(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that takes note of what it is given."""

    @wraps(function)  # with the marks that tell Jinja what to hand over before the value
    def filtered(*args: Any, **kwargs: Any) -> Any:
        for each in args:
            if isinstance(each, str) or (name not in OF_ITEMS and isinstance(each, list | tuple | dict)):
                _spend_on(each)
            elif isinstance(each, list | tuple | dict):
                _budget.spend(len(each))
        return function(*args, **kwargs)

    return filtered


def _replace(value: Any, old: Any, new: Any, count: int = -1) -> str:
    text = as_text(value)
    _spend_on_replacing(text, old, new)
    return text.replace(str(old), str(new), -1 if count is None else count)


def _indent(value: Any, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    space = width if isinstance(width, str) else " " * min(width, MAX_INDENT)
    text = as_text(value)
    _budget.spend(len(text) + (text.count("\n") + 1) * len(space))
    return filters.do_indent(text, space, first, blank)


@jinja2.pass_eval_context
def _join(context: nodes.EvalContext, value: Any, d: str = "", attribute: str | int | None = None) -> str:
    values = list(value)
    _spend_on(values)
    _budget.spend(len(values) * len(d))
    return filters.sync_do_join(context, values, d, attribute)


def _round(value: float, precision: int = 0, method: str = "common") -> float:
    return filters.do_round(value, max(-MAX_INDENT, min(precision, MAX_INDENT)), method)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as Python writes it: Jinja's own filter escapes for HTML, which models were not trained on."""
    values = _spend_on(value)
    if indent is not None:
        indent = indent[:MAX_INDENT] if isinstance(indent, str) else min(indent, MAX_INDENT)
        _budget.spend(values * (len(indent) if isinstance(indent, str) else indent))
    encoder = json.JSONEncoder(
        ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
    # In one go it holds the interpreter's lock to its end, which is long where there is much to write.
    return encoder.encode(value) if values <= MANY_VALUES else "".join(encoder.iterencode(value))


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    if len(form) > MAX_INDENT:
        raise OverBudget("it asks for a date in too many words")
    return datetime.now().astimezone().strftime(form)


class _GenerationTag(Extension):
    """`{% generation %}` marks the assistant's part for training; here its body is simply rendered."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> _Environment:
    environment = _Environment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _GenerationTag], finalize=as_text
    )
    environment.filters = {name: _metered(name, filters.FILTERS[name]) for name in FILTERS}
    environment.filters |= {
        "indent": _indent,
        "join": _join,
        "replace": _replace,
        "round": _round,
        "tojson": _to_json,
    }
    for name in _TESTS.split():
        environment.tests[name] = _metered(name, environment.tests[name])
    del environment.globals["lipsum"]
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


_ENVIRONMENT = _environment()
