"""The tools of a chat, and which of them the answer may or has to call."""

from __future__ import annotations

from typing import Annotated, Any, Literal, NamedTuple

from msgspec import Meta, Struct

from gateway.dialects import free_json
from gateway.dialects.fields import MISSING, ShortName, bad_request, convert, required, unsupported
from gateway.dialects.openai.custom_tools import as_function
from gateway.refusals import shown
from ipc.messages.conversation import MAX_TOOLS, Tool


class Function(Struct):
    """What is read of a function; the chat template gets it as the client wrote it."""

    name: ShortName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Grammar(Struct):
    definition: str
    syntax: Literal["lark", "regex"]


class Format(Struct):
    type: Literal["text", "grammar"]
    grammar: Grammar | None = None


class CustomTool(Struct):
    name: ShortName
    description: str | None = None
    format: Format | None = None


class ToolField(Struct):
    type: str
    function: Function | None = None
    custom: CustomTool | None = None


class Named(Struct):
    name: ShortName


class NamedFunction(Struct, tag_field="type", tag="function"):
    function: Named


class NamedCustom(Struct, tag_field="type", tag="custom"):
    custom: Named


class AllowedTools(Struct):
    mode: Literal["auto", "required"]
    tools: list[NamedFunction | NamedCustom]


class OnlyAllowed(Struct, tag_field="type", tag="allowed_tools"):
    allowed_tools: AllowedTools


ManyTools = Annotated[list[dict[str, Any]], Meta(max_length=MAX_TOOLS)]


class ToolFields(Struct, kw_only=True):
    """The fields of a request. `functions` and `function_call` are what came before `tools`."""

    tools: ManyTools | None = None
    tool_choice: (
        Literal["none", "auto", "required", "any"] | NamedFunction | NamedCustom | OnlyAllowed | None
    ) = None
    parallel_tool_calls: bool | None = None
    functions: ManyTools | None = None
    function_call: Literal["none", "auto"] | Named | None = None


class ChosenTools(NamedTuple):
    """What a request says of its tools.

    Attributes:
        tools: that the model is told of.
        must_call: names of those that it has to choose from, where it has to call one.
        parallel: whether it may call several.
        custom: names of those that take a text of any form.
        is_old: whether the client knows no more than one call of a function.
        param: the field that chooses.
    """

    tools: list[Tool]
    must_call: list[str]
    parallel: bool
    custom: frozenset[str]
    is_old: bool
    param: str


NO_TOOLS = ChosenTools([], [], True, frozenset(), False, "tool_choice")


def tool_choice(fields: ToolFields) -> ChosenTools:
    """What was asked for.

    Raises:
        CortexError: a tool is none that we know, or one is chosen that is not there; `param` names it.
    """
    if not fields.tools and not fields.functions and fields.tool_choice is fields.function_call is None:
        return NO_TOOLS
    if fields.functions and fields.tools:
        raise bad_request("functions", "it and tools contradict each other: send one of them")
    is_old = bool(fields.functions)
    if is_old:
        tools, custom = _functions(fields.functions), frozenset[str]()
        chosen, param = fields.function_call, "function_call"
        if isinstance(chosen, Named):
            chosen = NamedFunction(chosen)
    else:
        tools, custom = _tools(fields.tools or [])
        chosen, param = fields.tool_choice, "tool_choice"
        if isinstance(fields.function_call, Named):
            raise bad_request("function_call", "needs functions to choose from")
    parallel = fields.parallel_tool_calls is not False and not is_old
    if chosen == "none":  # the model is not told of any
        return ChosenTools([], [], parallel, custom, is_old, param)
    must_call: list[str] = []
    names = [tool.name for tool in tools]
    if isinstance(chosen, OnlyAllowed):
        param += ".allowed_tools"
        allowed = [
            _name(each, names, custom, f"{param}.tools[{i}]")
            for i, each in enumerate(chosen.allowed_tools.tools)
        ]
        tools = [tool for tool in tools if tool.name in allowed]
        chosen, names = chosen.allowed_tools.mode, [tool.name for tool in tools]
    if type(chosen) in (NamedFunction, NamedCustom):
        must_call = [_name(chosen, names, custom, param, is_old)]
    elif chosen in ("required", "any"):  # as Mistral calls it
        if not names:
            raise bad_request(param, "needs tools to choose from")
        must_call = names
    return ChosenTools(tools, must_call, parallel, custom, is_old, param)


def _name(
    named: NamedFunction | NamedCustom,
    names: list[str],
    custom: frozenset[str],
    param: str,
    is_old: bool = False,
) -> str:
    kind, name = (
        ("function", named.function.name)
        if isinstance(named, NamedFunction)
        else ("custom", named.custom.name)
    )
    if name not in names or (name in custom) != (kind == "custom"):
        param += ".name" if is_old else f".{kind}.name"
        raise bad_request(param, f"{shown(name)} is none of the tools")
    return name


def _functions(given: list[dict[str, Any]]) -> list[Tool]:
    convert(given, list[Function], "functions")
    for i, function in enumerate(given):
        free_json.check(f"functions[{i}]", function)
    return [Tool(definition={"type": "function", "function": function}) for function in given]


def _tools(given: list[dict[str, Any]]) -> tuple[list[Tool], frozenset[str]]:
    """The tools, and the names of those that take a text of any form."""
    tools, custom = [], set()
    for i, tool in enumerate(convert(given, list[ToolField], "tools")):
        if tool.type == "function" and tool.function is not None:
            free_json.check(f"tools[{i}]", given[i])
            tools.append(Tool(definition=given[i]))
        elif tool.type == "custom" and tool.custom is not None:
            tools.append(_custom(tool.custom, f"tools[{i}].custom.format"))
            custom.add(tool.custom.name)
        elif tool.type in ("function", "custom"):
            raise bad_request(f"tools[{i}].{tool.type}", MISSING)
        else:
            raise unsupported(
                f"tools[{i}].type", f"{shown(tool.type)} is not supported; function and custom are"
            )
    return tools, frozenset(custom)


def _custom(tool: CustomTool, param: str) -> Tool:
    if tool.format is None or tool.format.type == "text":
        return as_function(tool.name, tool.description)
    grammar = required(tool.format.grammar, f"{param}.grammar")
    return as_function(tool.name, tool.description, grammar.syntax, grammar.definition)
