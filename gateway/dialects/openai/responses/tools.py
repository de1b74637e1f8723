"""The tools of a request: what the model is told of them, and how its calls go back to the client.

A model knows functions. A custom tool is shown as one with a single text, `input`; the tools of a namespace
stand beside the others, under names that begin with the namespace's. Tools that a provider runs itself, such
as `web_search`, are skipped, as are kinds that nobody here has heard of: agents name them in every request.
So are those that clients run and only models of OpenAI's were taught, such as `local_shell`: to a model that
they do not know clients describe them as functions.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal, NamedTuple

from msgspec import Meta, Struct

from gateway.dialects import free_json
from gateway.dialects.fields import MISSING, ShortName, bad_request, convert, required, unsupported
from gateway.dialects.openai.custom_tools import as_function
from gateway.dialects.openai.responses.fields import CreateFields, NamedTool
from gateway.refusals import shown
from ipc.messages.conversation import Tool
from ipc.messages.values import MAX_NAME


class FunctionTool(Struct):
    name: ShortName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class CustomFormat(Struct):
    type: Literal["text", "grammar"] = "text"
    syntax: Literal["lark", "regex"] | None = None
    definition: str | None = None


class CustomTool(Struct):
    name: ShortName
    description: str | None = None
    format: CustomFormat | None = None


class Namespace(Struct):
    name: ShortName
    tools: Annotated[list[dict[str, Any]], Meta(max_length=1024)]
    description: str | None = None


class Origin(NamedTuple):
    """A tool as the client knows it."""

    kind: Literal["function", "custom"]
    name: str
    namespace: str | None = None


class Tools:
    """What a request says of its tools.

    Attributes:
        told: what the model is told of.
        must_call: the model's names of those that it has to choose from, where it has to call one.
        parallel: whether it may call several.
    """

    def __init__(self, fields: CreateFields, additional: Iterable[tuple[str, dict[str, Any]]] = ()) -> None:
        """`additional`: tools that came elsewhere, each behind the name of its field."""
        self._origins: dict[str, Origin] = {}  # by the model's name
        self._skipped: list[str] = []  # the kinds of those that no model here is told of
        tools: list[Tool] = []
        given = [(f"tools[{i}]", tool) for i, tool in enumerate(fields.tools or ())]
        for param, tool in (*given, *additional):
            tools += self._read(tool, param, None)
        self.parallel = fields.parallel_tool_calls is not False
        self.told, self.must_call = self._chosen(tools, fields.tool_choice)

    def origin(self, name: str) -> Origin:
        """Which tool of the client the model calls; one that it made up is a function."""
        return self._origins.get(name) or Origin("function", name)

    def _read(self, given: dict[str, Any], param: str, namespace: str | None) -> list[Tool]:
        kind = given.get("type")
        if not isinstance(kind, str):
            raise bad_request(f"{param}.type", "Expected `str`" if "type" in given else MISSING)
        free_json.check(param, given)
        if kind == "function":
            tool = convert(given, FunctionTool, param)
            members = {
                key: value
                for key in ("description", "parameters", "strict")
                if (value := given.get(key)) is not None
            }
            name = self._name(Origin("function", tool.name, namespace), param)
            return [Tool.function(name, **members)]
        if kind == "custom":
            return [self._custom(convert(given, CustomTool, param), param, namespace)]
        if kind == "namespace" and namespace is None:
            space = convert(given, Namespace, param)
            inner = [
                self._read(each, f"{param}.tools[{j}]", space.name) for j, each in enumerate(space.tools)
            ]
            return [tool for tools in inner for tool in tools]
        self._skipped.append(kind)
        return []

    def _custom(self, tool: CustomTool, param: str, namespace: str | None) -> Tool:
        name, form = self._name(Origin("custom", tool.name, namespace), param), tool.format
        if form is None or form.type == "text":
            return as_function(name, tool.description)
        for field in ("syntax", "definition"):
            required(getattr(form, field), f"{param}.format.{field}")
        return as_function(name, tool.description, form.syntax, form.definition)

    def _name(self, origin: Origin, param: str) -> str:
        """The model's name for a tool."""
        name = flat_name(origin.name, origin.namespace)
        if len(name) > MAX_NAME:
            raise bad_request(f"{param}.name", f"with its namespace it has more than {MAX_NAME} characters")
        if name in self._origins:
            raise bad_request(f"{param}.name", f"{shown(name)} is the name of a tool before it already")
        self._origins[name] = origin
        return name

    def _chosen(
        self, tools: list[Tool], choice: Literal["none", "auto", "required"] | NamedTool | None
    ) -> tuple[list[Tool], list[str]]:
        names = [tool.name for tool in tools]
        if choice == "none":  # the model is not told of any
            return [], []
        if choice is None or choice == "auto":
            return tools, []
        if choice == "required":
            if not names:
                others = f"; {shown(self._skipped[0])} is not supported" if self._skipped else ""
                raise bad_request("tool_choice", f"needs tools to choose from{others}")
            return tools, names
        if choice.type != "allowed_tools":
            return tools, [self._named(choice, "tool_choice")]
        for field in ("mode", "tools"):
            required(getattr(choice, field), f"tool_choice.{field}")
        allowed = {
            self._named(each, f"tool_choice.tools[{i}]")
            for i, each in enumerate(choice.tools)
            if each.type in ("function", "custom")  # we skip the others wherever they stand
        }
        if choice.mode == "required":
            if not allowed:
                raise bad_request("tool_choice.tools", "needs tools to choose from")
            return tools, [name for name in names if name in allowed]
        return [tool for tool in tools if tool.name in allowed], []

    def _named(self, choice: NamedTool, param: str) -> str:
        if choice.type not in ("function", "custom"):
            raise unsupported(
                f"{param}.type", f"{shown(choice.type)} is not supported; function and custom are"
            )
        required(choice.name, f"{param}.name")
        wanted = Origin(choice.type, choice.name, choice.namespace)
        for name, origin in self._origins.items():
            in_full = choice.namespace is None and name == choice.name and origin.kind == choice.type
            if origin == wanted or in_full:
                return name
        raise bad_request(f"{param}.name", f"{shown(choice.name)} is none of the tools")


def flat_name(name: str, namespace: str | None) -> str:
    """The model's name for a tool of a namespace."""
    if not namespace:
        return name
    return f"{namespace}{name}" if namespace.endswith("__") else f"{namespace}__{name}"
