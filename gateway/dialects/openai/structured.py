"""What an answer must look like, in the ways that clients say it: `response_format`, and vLLM's spellings."""

from __future__ import annotations

from operator import attrgetter
from typing import Any, Literal

import msgspec
from msgspec import Struct

from gateway.dialects import free_json
from gateway.dialects.fields import bad_request, required
from ipc.messages.sampling import Structured


class JsonSchema(Struct):
    """`strict` makes no difference: the schema is honoured, or the request refused."""

    name: str = ""
    description: str | None = None
    schema: dict[str, Any] | bool | None = None
    strict: bool | None = None


class ResponseFormat(Struct):
    """`schema` stands beside the type as llama.cpp and others take it, also for a `json_object`."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None
    schema: dict[str, Any] | bool | None = None


class StructuredOutputs(Struct, forbid_unknown_fields=True):
    """vLLM's, without its options for white space."""

    json: dict[str, Any] | bool | str | None = None
    json_object: bool | None = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None


class StructuredFields(Struct, kw_only=True):
    """The fields of a request; at most one of them asks for something."""

    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    # as older versions of vLLM have it
    guided_json: dict[str, Any] | bool | str | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    # as llama.cpp and SGLang have it
    json_schema: dict[str, Any] | bool | str | None = None
    regex: str | None = None


_asked = attrgetter(*StructuredFields.__struct_fields__)
_NOTHING = (None,) * len(StructuredFields.__struct_fields__)

GUIDED = {f"guided_{name}": name for name in ("json", "regex", "choice", "grammar")}
GUIDED |= {"json_schema": "json", "regex": "regex"}


def structured(fields: StructuredFields) -> tuple[Structured | None, dict[str, str]]:
    """What was asked for, and under which names: the neuron's name of a field, and the client's.

    Raises:
        CortexError: two fields ask for something, or one is incomplete; `param` names it.
    """
    if _asked(fields) == _NOTHING:
        return None, {}
    asked: dict[str, dict[str, Any]] = {}
    names: dict[str, str] = {}
    form = fields.response_format
    if form is not None and form.type != "text":
        schema, param = _schema(form)
        asked["response_format"] = {"json_object": True} if schema is None else {"json": schema}
        names = {"structured_outputs.json": param, "structured_outputs": "response_format"}
    if fields.structured_outputs is not None:
        values = msgspec.structs.asdict(fields.structured_outputs)
        asked["structured_outputs"] = {name: value for name, value in values.items() if value is not None}
    for guided, name in GUIDED.items():
        if (value := getattr(fields, guided)) is not None:
            asked[guided] = {name: value}
            names = {f"structured_outputs.{name}": guided, "structured_outputs": guided}
    if len(asked) > 1:
        first, second, *_ = asked
        raise bad_request(second, f"it and {first} contradict each other: send one of them")
    for param, values in asked.items():
        if isinstance(schema := values.get("json"), str):
            values["json"] = _decoded(schema, param if param in GUIDED else f"{param}.json")
        free_json.check(param, values)
        return Structured(**values), {"structured": param} | names
    return None, names


def _schema(form: ResponseFormat) -> tuple[dict[str, Any] | bool | None, str]:
    """The schema that a form has, and where it stands."""
    nested = form.json_schema.schema if form.json_schema is not None else None
    if nested is None and (form.schema is not None or form.type == "json_object"):
        return form.schema, "response_format.schema"
    param = "response_format.json_schema"
    param += ".schema" if form.json_schema is not None else ""
    return required(nested, param), param


def _decoded(schema: str, param: str) -> Any:
    try:
        return msgspec.json.decode(schema, type=dict[str, Any] | bool)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise bad_request(param, f"it is no JSON schema: {error}") from error
