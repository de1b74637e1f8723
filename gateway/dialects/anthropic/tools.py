"""Tools: the client's own, and those whose schemas Anthropic publishes and clients carry out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

from msgspec import Struct

from gateway.dialects import free_json
from gateway.dialects.anthropic.blocks import Block
from gateway.dialects.fields import ShortName, bad_request, convert, required, unsupported
from gateway.refusals import shown
from ipc.messages.conversation import MAX_TOOLS, Tool


class ToolField(Struct):
    """What is read of a tool. All tools are told to the model at once, so `defer_loading` makes no
    difference; neither do `cache_control`, `eager_input_streaming` and `allowed_callers`."""

    name: ShortName | None = None  # those of Anthropic's servers may have none
    type: str | None = None
    description: str | None = None
    input_schema: dict[str, Any] | None = None
    strict: bool | None = None
    input_examples: list[dict[str, Any]] | None = None


class ToolChoice(Struct):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class ToolChange(Struct):
    """The tool that a block of a conversation offers from there on or withdraws: one that was told of before,
    by name, or its definition."""

    type: str
    name: str | None = None
    definition: dict[str, Any] | None = None


# Parts of types that begin so are carried out by Anthropic's servers, or by nobody here.
_SERVER_SIDE = (
    "web_search_",
    "web_fetch_",
    "code_execution_",
    "tool_search_tool_",
    "mcp_toolset",
    "advisor_",
)

_PATH = {"type": "string", "description": "Absolute path of a file or a directory"}
_COMMANDS = {
    "view": "show a file, or list a directory",
    "create": "write a new file with file_text",
    "str_replace": "replace the one occurrence of old_str by new_str",
    "insert": "insert text behind line insert_line",
    "delete": "delete a file or a directory",
    "rename": "rename old_path to new_path",
}


def _command(*names: str) -> dict[str, Any]:
    told = "; ".join(f"{name}: {_COMMANDS[name]}" for name in names)
    return {"type": "string", "enum": list(names), "description": told}


_TEXT = {"type": "string"}
_LINE = {"type": "integer", "description": "Line number; 0 is before the first line"}
_RANGE = {
    "type": "array",
    "items": {"type": "integer"},
    "description": "First and last line to show, from 1; -1 is the end",
}
_FILES = {
    "path": _PATH,
    "view_range": _RANGE,
    "file_text": _TEXT,
    "old_str": _TEXT,
    "new_str": _TEXT,
    "insert_line": _LINE,
    "insert_text": _TEXT,
}
# By how the type begins: what the tool is for, its properties, and those that must be there.
_PUBLISHED: dict[str, tuple[str, dict[str, Any], list[str]]] = {
    "bash_": (
        "Run a command in a shell session that keeps its state.",
        {
            "command": {"type": "string", "description": "The command to run"},
            "restart": {"type": "boolean", "description": "Start the shell anew, instead of a command"},
        },
        [],
    ),
    "text_editor_": (
        "View, create and edit text files.",
        {
            "command": _command("view", "create", "str_replace", "insert"),
            **_FILES,
        },
        ["command", "path"],
    ),
    "memory_": (
        "Keep notes in files below /memories, which later conversations can read.",
        {
            "command": _command("view", "create", "str_replace", "insert", "delete", "rename"),
            **_FILES,
            "old_path": _PATH,
            "new_path": _PATH,
        },
        ["command"],
    ),
}


class Tools:
    """The tools of a request that the model is told of.

    Attributes:
        must_call: names of those of which the answer has to call some.
        parallel: whether it may call several.
        names: what the client calls the fields that a neuron may complain of.
    """

    def __init__(
        self,
        fields: Sequence[ToolField] | None,
        changes: Sequence[tuple[Block, str]],
        choice: ToolChoice | None,
    ) -> None:
        """`changes`: the blocks of the conversation that offer or withdraw a tool, and their places."""
        offered = _changed(_told(fields or ()), changes)
        told = offered if choice is None or choice.type != "none" else []
        if len(told) > MAX_TOOLS:
            raise bad_request("tools", f"there are {len(told)}, more than {MAX_TOOLS}")
        self.tools = [tool for tool, _ in told]
        self.must_call = _must_call(choice, [tool.name for tool in self.tools], fields or ())
        self.parallel = choice is None or not choice.disable_parallel_tool_use
        self.names = {f"tools[{i}]": place for i, (_, place) in enumerate(told)} | {
            "must_call": "tool_choice"
        }


Told = tuple[Tool, str]  # and what the client calls its field


def _told(fields: Sequence[ToolField]) -> Iterator[Told]:
    taken: set[str] = set()
    for i, field in enumerate(fields):
        place = f"tools[{i}]"
        if (tool := _tool(field, place)) is None:
            continue
        if tool.name in taken:
            raise bad_request(f"{place}.name", f"{shown(tool.name)} is the name of two tools")
        taken.add(tool.name)
        yield tool, place


def _changed(told: Iterable[Told], changes: Iterable[tuple[Block, str]]) -> list[Told]:
    """The tools that are offered at the end of a conversation. Names of none are passed over: they are of
    tools that no model here has."""
    known = {tool.name: (tool, place) for tool, place in told}
    offered = dict(known)
    for block, place in changes:
        place = f"{place}.tool"
        change = convert(required(block.tool, place), ToolChange, place)
        if change.type == "tool_definition":
            place = f"{place}.definition"
            field = convert(required(change.definition, place), ToolField, place)
            if (tool := _tool(field, place)) is not None:
                known[tool.name] = offered[tool.name] = tool, place
        elif change.type != "tool_reference":  # of an MCP server
            continue
        elif block.type == "tool_removal":
            offered.pop(required(change.name, f"{place}.name"), None)
        elif required(change.name, f"{place}.name") in known:
            offered.setdefault(change.name, known[change.name])
    return list(offered.values())


def _tool(field: ToolField, param: str) -> Tool | None:
    """The tool as templates know it; None where it is one of Anthropic's servers."""
    kind = field.type or "custom"
    if kind == "custom":
        schema = required(field.input_schema, f"{param}.input_schema")
        free_json.check(f"{param}.input_schema", schema)
        more: dict[str, Any] = {"description": field.description} if field.description is not None else {}
        more["parameters"] = schema
    elif (published := _published(kind)) is not None:
        description, properties, needed = published
        more = {
            "description": description,
            "parameters": {"type": "object", "properties": properties, "required": needed},
        }
    elif kind.startswith(_SERVER_SIDE):
        return None
    else:
        raise unsupported(f"{param}.type", f"{shown(kind)} is not supported")
    if field.input_examples:
        free_json.check(f"{param}.input_examples", field.input_examples)
        more["input_examples"] = field.input_examples
    if field.strict:
        more["strict"] = True
    return Tool.function(required(field.name, f"{param}.name"), **more)


def _published(kind: str) -> tuple[str, dict[str, Any], list[str]] | None:
    return next((each for start, each in _PUBLISHED.items() if kind.startswith(start)), None)


def _must_call(choice: ToolChoice | None, names: list[str], given: Sequence[ToolField]) -> list[str]:
    if choice is None or choice.type in ("auto", "none"):
        return []
    if choice.type == "tool":
        wanted = required(choice.name, "tool_choice.name")
        if wanted not in names and any(field.name == wanted for field in given):
            raise unsupported("tool_choice.name", f"{shown(wanted)} is a tool of Anthropic's servers")
        if wanted not in names:
            raise bad_request("tool_choice.name", f"{shown(wanted)} is none of the tools")
        return [wanted]
    if not names:
        raise bad_request("tool_choice", "needs tools to choose from")
    return names
