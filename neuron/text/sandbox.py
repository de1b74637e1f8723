"""Runs chat templates as transformers does, within bounds: a template is a program that came with a model.

Jinja's sandbox keeps a template from what it must not touch. What it takes is bounded here: each turn of a
loop and each call of a macro looks at the clock, what one operation does is counted before it is done, and
what makes much of little (padding, wrapping) is not there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import datetime
from types import BuiltinMethodType
from typing import Any, NoReturn

import jinja2
from jinja2 import filters, nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from neuron.text.budget import (
    MAX_BITS,
    MOST,
    SHORT,
    VALUE,
    VIEWS,
    Bounds,
    Budget,
    OverBudget,
    check_key,
    check_number,
    here,
    size,
    spend,
    spend_on,
    tick,
    weigh,
)
from neuron.text.template_filters import FILTERS, MAX_INDENT, OWN, metered, spend_on_replacing, text_of

COMPILE_SECONDS = 10.0
MAX_PROGRAM = 8 << 20  # characters that Jinja makes of a template

# Methods of texts that make no more of them, and those that are counted.
_METHODS = """
    capitalize casefold count endswith find format index isalnum isalpha isascii isdecimal isdigit islower
    isnumeric isspace istitle isupper join lower lstrip partition removeprefix removesuffix replace rfind
    rindex rpartition rsplit rstrip split splitlines startswith strip swapcase title upper
"""
METHODS = frozenset(_METHODS.split())
_DICT_NAMES = frozenset(dir(dict))
_DICT_METHODS = frozenset(("copy", "fromkeys", "get", "items", "keys", "values"))
_PLAIN = frozenset((str, bool, int, float, list, dict))
_OF_JINJA = ("_loop_vars", "_block_vars")  # what it hands to every call, for functions that want its context
PIECE = 48  # characters that a short text of its own takes the place of
_TESTS = "== eq equalto != ne < lt lessthan <= le > gt greaterthan >= ge"  # that compare


def parse(source: str) -> nodes.Template:
    """Raises: whatever Jinja says of what is no template."""
    return _ENVIRONMENT.parse(source)


def translate(source: str) -> str:
    """The Python program that Jinja makes of a template. What is constant in it is worked out already.

    Raises:
        Exception: whatever Jinja says of what is no template.
        OverBudget: it takes too long, or the program is too large to be read in one go.
    """
    with Budget(COMPILE_SECONDS):
        program = _ENVIRONMENT.compile(_Metering().visit(parse(source)), raw=True)
    if len(program) > MAX_PROGRAM:
        raise OverBudget(f"as a program it is longer than {MAX_PROGRAM:,} characters")
    return program


def load(program: str) -> jinja2.Template:
    """The template of a program that `translate` made. Raises what Python's compiler says of it."""
    code = compile(program, "<template>", "exec")
    return jinja2.Template.from_code(_ENVIRONMENT, code, dict(_ENVIRONMENT.globals))


def render(
    template: jinja2.Template, variables: Mapping[str, Any], seconds: float, bounds: Bounds = MOST
) -> str:
    """What `template` makes of `variables`.

    Raises:
        OverBudget: it takes more than `seconds`, or more than `bounds` allow, or than there is memory.
        Exception: whatever the template does wrong.
    """
    pieces, length = [], 0
    try:
        with Budget(seconds, tuple(variables.values()), bounds):
            for piece in template.root_render_func(template.new_context(variables)):
                length += len(piece)
                if length > bounds.text:
                    raise OverBudget(f"the prompt is longer than {bounds.text:,} characters")
                pieces.append(piece)
            return "".join(pieces)
    except MemoryError:
        raise OverBudget("it takes more memory than there is for it") from None


class _Metering(NodeTransformer):
    """Puts a look at the budget into every loop and macro, and before what may be much in one operation."""

    def _metered(self, node: Any) -> nodes.Node:
        own = sum(len(data.data) for data in node.find_all(nodes.TemplateData))
        own += SHORT * sum(len(output.nodes) for output in node.find_all(nodes.Output))
        own += VALUE * sum(len(made.items) for made in node.find_all((nodes.List, nodes.Tuple, nodes.Dict)))
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(_call(tick, nodes.Const(own))))
        return node

    visit_For = visit_Macro = visit_CallBlock = _metered

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _call(concat, *node.nodes)

    def visit_Pair(self, node: nodes.Pair) -> nodes.Node:
        self.generic_visit(node)
        if not isinstance(node.key, nodes.Const):
            node.key = _call(key, node.key)
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        if isinstance(node.arg, nodes.Slice):
            node.node = _call(sliced, node.node)
        elif not isinstance(node.arg, nodes.Const):
            node.arg = _call(key, node.arg)
        return node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        if any(operand.op in ("in", "notin") for operand in node.ops):
            return _one_by_one(node)
        if isinstance(node.expr, nodes.Const) or (
            len(node.ops) == 1 and isinstance(node.ops[0].expr, nodes.Const)
        ):
            return node  # what is compared with a text or a number is not walked through
        node.expr = _call(compared, node.expr)
        for operand in node.ops:
            operand.expr = _call(compared, operand.expr)
        return node


def _one_by_one(node: nodes.Compare) -> nodes.Node:
    """A comparison in which something is looked for."""
    left, found = node.expr, []
    for operand in node.ops:
        if operand.op in ("in", "notin"):
            test: nodes.Expr = _call(contains, operand.expr, left)
            found.append(test if operand.op == "in" else nodes.Not(test))
        else:
            other = nodes.Operand(operand.op, _call(compared, operand.expr))
            found.append(nodes.Compare(_call(compared, left), [other]))
        left = operand.expr
    whole = found[0]
    for test in found[1:]:
        whole = nodes.And(whole, test)
    return whole


def _call(function: Callable[..., Any], *args: nodes.Expr) -> nodes.Call:
    name = nodes.ImportedName(f"{function.__module__}.{function.__name__}")
    return nodes.Call(name, list(args), [], None, None)


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

    def visit_Getattr(self, node: nodes.Getattr, frame: Frame) -> None:
        """Most are those of turns: what a plain object has is looked up where it is asked for."""
        if node.attr in _DICT_NAMES:
            super().visit_Getattr(node, frame)
            return
        self.write(f"(of[{node.attr!r}] if type(of := ")
        self.visit(node.node, frame)
        self.write(f") is dict and {node.attr!r} in of else environment.getattr(of, {node.attr!r}))")


def concat(*values: Any) -> str:
    """Called for `~`."""
    texts = [text_of(value) for value in values]
    spend(sum(map(len, texts)))
    return "".join(texts)


def compared(value: Any) -> Any:
    """Called for what is compared: a list that holds another twice, and that one a third, has no end."""
    if isinstance(value, (list, tuple, dict, *VIEWS)):
        spend_on(value)
    return value


def key(value: Any) -> Any:
    """Called for the names of what is put into an object."""
    if type(value) is not str:
        check_key(value)
    return value


def sliced(value: Any) -> Any:
    """Called for that of which a part is taken, which is a copy."""
    if isinstance(value, str | list | tuple) and len(value) > SHORT:
        spend(size(value))
    return value


def contains(container: Any, value: Any) -> bool:
    """Called for `in`: a list compares the value with each of its own."""
    if type(value) is not str or len(value) > SHORT or type(container) not in (str, list, tuple, dict):
        _spend_on_finding(container, value)
    elif len(container) > SHORT:
        spend(len(container))
    return value in container


def _spend_on_finding(container: Any, *values: Any) -> None:
    if isinstance(container, str):
        if len(container) > SHORT:
            spend(len(container))
    elif isinstance(container, Mapping):
        for value in values:
            check_key(value)
    else:
        length = len(container) if hasattr(container, "__len__") else SHORT
        short = all(value is None or isinstance(value, int | float) for value in values) or all(
            isinstance(value, str) and len(value) <= SHORT for value in values
        )
        spend(length if short else (1 + length) * weigh(*values)[0])


class _Environment(ImmutableSandboxedEnvironment):
    code_generator_class = _Code
    intercepted_binops = frozenset(("+", "-", "*", "**", "%", "//"))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "+" and type(left) is type(right) is str:
            spend(len(left) + len(right))
            return left + right
        if isinstance(left, int) and isinstance(right, int):
            check_number(left, right)
            if operator == "**" and left.bit_length() * abs(right) > MAX_BITS:
                raise OverBudget("a number in it is too large")
        elif operator == "+":
            spend(size(left) + size(right))
        elif operator == "%" and isinstance(left, str):
            spend_on(left, right, times=_fields(left, "%"))
        elif operator == "*":
            spend(abs(size(left) * size(right)))
        return super().call_binop(context, operator, left, right)

    def getattr(self, obj: Any, attribute: str) -> Any:
        if type(obj) is dict and attribute not in _DICT_NAMES:  # no error has to be made and caught
            return obj[attribute] if attribute in obj else self.undefined(obj=obj, name=attribute)
        if type(obj) is Namespace and not attribute.startswith("_"):
            value = object.__getattribute__(obj, "_Namespace__attrs").get(attribute)
            if type(value) in _PLAIN:  # which no sandbox keeps from anybody
                return value
        return super().getattr(obj, attribute)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if isinstance(obj, str):
            return attr in METHODS
        if type(obj) is dict:
            return attr in _DICT_METHODS
        if isinstance(obj, int | float):  # an int makes bytes of itself, as many as it is told
            return False
        if attr in ("append", "pop") and isinstance(
            obj, list
        ):  # some collect turns so; what they were given stays
            return not any(obj is given for given in here.budget.given)
        return super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None
        form = value.__self__

        def formatted(*args: Any, **kwargs: Any) -> str:
            spend_on(form, args, kwargs, times=_fields(form, "{"))
            return wrapped(*args, **kwargs)

        return formatted

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        kind = type(__obj)
        if len(args) + len(kwargs) > SHORT:  # they were a list or an object
            spend(VALUE * (len(args) + len(kwargs)))
        if kind is Macro:
            for name in _OF_JINJA:
                kwargs.pop(name, None)
            if not kwargs and _takes_just(__obj, len(args)) and not __context.eval_ctx.autoescape:
                return __obj._func(*args)
            return __obj(__context.eval_ctx, *args, **kwargs)
        if __obj is Namespace:
            for name in _OF_JINJA:
                kwargs.pop(name, None)
            return __obj(*((_dict(*args),) if args else ()), **kwargs)  # it makes an object of them
        owner = getattr(__obj, "__self__", None)
        if isinstance(owner, str):
            args = _spend_on_method(owner, __obj.__name__, args)
        elif isinstance(owner, list | tuple) and __obj.__name__ in ("index", "count"):
            _spend_on_finding(owner, *args)
        elif owner is dict:  # its `fromkeys`
            args = ([key(each) for each in args[0]], *args[1:]) if args else args
            spend(sum(map(size, args[:1])))
        elif isinstance(owner, list | dict) and __obj.__name__ == "copy":
            spend(VALUE * len(owner))
        elif isinstance(owner, dict) and args:
            check_key(args[0])
        elif isinstance(owner, LoopContext):  # its `changed` compares them
            spend_on(args)
        if kind is BuiltinMethodType and type(owner) in (str, dict):
            for name in _OF_JINJA:
                kwargs.pop(name, None)
            return __obj(*args, **kwargs)
        return super().call(__context, __obj, *args, **kwargs)


def _takes_just(macro: Macro, count: int) -> bool:
    """Whether so many arguments are what its function wants, as they are."""
    more = macro.caller or macro.catch_kwargs or macro.catch_varargs
    return count == macro._argument_count and not more


def _spend_on_method(text: str, name: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Take note of what a method of a text will do. Returns its arguments."""
    if len(text) > SHORT:
        spend(len(text) * (1 if text.isascii() else 4))
    if name == "replace" and len(args) >= 2:
        spend_on_replacing(text, *args[:2])
    elif name == "join" and args:
        args = (list(args[0]), *args[1:])
        spend_on(args[0])
        spend(len(text) * len(args[0]))
    elif name in ("split", "rsplit", "splitlines") and len(text) > SHORT:
        known = name != "splitlines" and args and isinstance(args[0], str) and args[0]
        spend(PIECE * (text.count(args[0]) if known else len(text) // 2))
    return args


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


def _raise_exception(message: Any) -> NoReturn:
    raise jinja2.TemplateError(text_of(message))


def _strftime_now(form: str) -> str:
    if len(form) > MAX_INDENT:
        raise OverBudget("it asks for a date in too many words")
    return datetime.now().astimezone().strftime(form)


def _dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    """`dict`, as a template may call it."""
    pairs = [each.items() if isinstance(each, Mapping) else list(each) for each in args]
    spend(VALUE * sum(map(len, pairs)))
    return dict(*([(key(name), value) for name, value in each] for each in pairs), **kwargs)


class _GenerationTag(Extension):
    """`{% generation %}` marks the assistant's part for training; here its body is simply rendered."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> _Environment:
    environment = _Environment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _GenerationTag], finalize=text_of
    )
    environment.filters = {name: metered(name, filters.FILTERS[name]) for name in FILTERS} | OWN
    for name in _TESTS.split():
        environment.tests[name] = metered(name, environment.tests[name])
    environment.tests["in"] = lambda value, container: contains(container, value)
    environment.globals["dict"] = _dict
    del environment.globals["lipsum"]
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


_ENVIRONMENT = _environment()
