"""The OpenAPI document: it has every address, and each that it has is there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import falcon.inspect
import httpx
import jsonschema
import pytest

from gateway.config import GatewayConfig
from gateway.http.application import Gateway


@pytest.fixture
def document(http: httpx.Client) -> dict[str, Any]:
    return http.get("/openapi.json").json()


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield method.upper(), path, operation


def test_it_has_every_route_of_the_application_and_no_other(document: dict[str, Any]) -> None:
    gateway = Gateway(GatewayConfig())
    routes = {
        (method.method, re.sub(r":\w+}", "}", route.path))
        for route in falcon.inspect.inspect_routes(gateway._falcon)
        for method in route.methods
        if not method.internal and method.method not in ("OPTIONS", "HEAD")
    }
    assert {(method, path) for method, path, _ in operations(document)} == routes


def test_each_operation_is_there(document: dict[str, Any], http: httpx.Client) -> None:
    """What is asked is nonsense: the answer is never that there is no such address or method."""
    for method, path, operation in operations(document):
        url = re.sub(r"{\w+}", "x", path)
        body = {"json": {}} if "requestBody" in operation else {}
        answer = http.request(method, url, **body)
        is_json = answer.headers["content-type"].startswith("application/json")
        error = answer.json().get("error") or {} if is_json else {}
        assert error.get("code") not in ("route_not_found", "method_not_allowed"), (method, path)
        assert answer.status_code < 500, (method, path, answer.text)


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]

    def references(value: Any) -> Iterator[str]:
        if isinstance(value, dict):
            if isinstance(value.get("$ref"), str):
                yield value["$ref"]
            for each in value.values():
                yield from references(each)
        elif isinstance(value, list):
            for each in value:
                yield from references(each)

    used = set(references(document))
    assert len(used) > 30
    assert used <= {f"#/components/schemas/{name}" for name in schemas}
    for schema in schemas.values():
        jsonschema.Draft202012Validator.check_schema(schema)
    ids = [operation["operationId"] for _, _, operation in operations(document)]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a b"}]}),
        ("/v1/completions", {"prompt": ["a", "b"]}),
        ("/v1/responses", {"input": "a b"}),
        ("/v1/messages", {"messages": [{"role": "user", "content": "a b"}], "max_tokens": 3}),
        ("/v1/messages/count_tokens", {"messages": [{"role": "user", "content": "a b"}]}),
        ("/tokenize", {"prompt": "a b"}),
        ("/detokenize", {"tokens": [1, 2]}),
    ],
)
@pytest.mark.parametrize("model", ["echo", "nothing"])
def test_what_it_says_of_bodies_is_so(
    document: dict[str, Any], http: httpx.Client, path: str, body: dict[str, Any], model: str
) -> None:
    operation = document["paths"][path]["post"]
    ask = body | {"model": model}
    answer = http.post(path, json=ask)
    told = operation["responses"]["200" if answer.status_code == 200 else "default"]
    for schema, value in (
        (operation["requestBody"]["content"]["application/json"]["schema"], ask),
        (told["content"]["application/json"]["schema"], answer.json()),
    ):
        jsonschema.Draft202012Validator(schema | {"components": document["components"]}).validate(value)
