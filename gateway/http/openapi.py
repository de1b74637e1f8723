"""`GET /openapi.json`: all addresses, with what their bodies may be, from the structs that read them."""

from __future__ import annotations

import asyncio
import re
from functools import cache
from typing import Any

import falcon.asgi
import msgspec

from gateway.dialects.large import Large
from gateway.dialects.operations import JSON, OPERATIONS, Operation, Schema, having
from ipc.version import version

_REFERENCE = "#/components/schemas/{name}"
_OPENAIS, _ANTHROPICS = "OpenAIError", "AnthropicError"


class OpenAPIResource:
    """The document."""

    async def on_get(self, req: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        resp.data = await asyncio.to_thread(_encoded)  # for the first who asks, some hundredths of a second

    on_head = on_get


@cache
def _encoded() -> bytes:
    # Structs of one name have the module's before it, which is nobody's business out there.
    return msgspec.json.encode(document()).replace(b"gateway.dialects.", b"")


def document() -> dict[str, Any]:
    """OpenAPI 3.1, whole."""
    structs = {kind for each in OPERATIONS for kind in (each.body, each.answer) if isinstance(kind, type)}
    kinds = sorted(structs, key=lambda kind: (kind.__module__, kind.__name__))
    references, schemas = msgspec.json.schema_components(
        kinds, schema_hook={Large: {"type": "array"}}.get, ref_template=_REFERENCE
    )
    schemas |= _errors()
    by_struct: dict[Any, Schema] = dict(zip(kinds, references, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for each in OPERATIONS:
        paths.setdefault(each.path, {})[each.method] = _operation(each, by_struct)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "cortex",
            "version": version(),
            "summary": "Open-weight models, in the words of OpenAI, Anthropic and vLLM.",
            "license": {"name": "GPL-3.0", "identifier": "GPL-3.0-only"},
        },
        "paths": paths,
        "components": {"schemas": schemas},
    }


def _operation(each: Operation, by_struct: dict[Any, Schema]) -> dict[str, Any]:
    answer = each.answer if isinstance(each.answer, dict) else by_struct[each.answer]
    content: dict[str, Any] = {
        media: {"schema": answer if media == JSON else {"type": "string"}} for media in each.media
    }
    if each.streamed:
        content["text/event-stream"] = {"schema": {"type": "string"}}
    responses: dict[str, Any] = {"200": {"description": "what was asked for", "content": content}}
    for status in each.statuses:
        responses[str(status)] = {"description": "the same", "content": content}
    responses["default"] = {
        "description": "an error",
        "headers": {
            "x-request-id": {"schema": {"type": "string"}, "description": "finds it in the log"},
            "Retry-After": {"schema": {"type": "integer"}, "description": "seconds"},
        },
        "content": {"application/json": {"schema": _error(each.anthropics)}},
    }
    operation: dict[str, Any] = {
        "operationId": re.sub(r"\W+", "_", f"{each.method}{each.path}").strip("_"),
        "summary": each.summary,
        "parameters": [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
            for name in re.findall(r"{(\w+)}", each.path)
        ]
        + [{"name": name, "in": "query", "schema": schema} for name, schema in each.query],
        "responses": responses,
    }
    if each.body is not None:
        body = {"application/json": {"schema": by_struct[each.body]}}
        operation["requestBody"] = {"required": True, "content": body}
    return operation


def _error(anthropics: bool | None) -> Schema:
    names = (_OPENAIS, _ANTHROPICS) if anthropics is None else (_ANTHROPICS if anthropics else _OPENAIS,)
    schemas = [{"$ref": _REFERENCE.format(name=name)} for name in names]
    return schemas[0] if len(schemas) == 1 else {"anyOf": schemas}


def _errors() -> dict[str, Schema]:
    text, maybe = {"type": "string"}, {"type": ["string", "null"]}
    ours = having(message=text, type=text, param=maybe, code=text)
    theirs = having(type=text, message=text)
    for error in (ours, theirs):
        error["properties"]["details"] = {"type": "object"}
    return {
        _OPENAIS: having(error=ours),
        _ANTHROPICS: having(type={"const": "error"}, error=theirs, request_id=maybe),
    }
