"""Whatever schemathesis makes of our OpenAPI document, no answer is a 500.

A few cases of each operation, always the same ones. With `CORTEX_HUNT=500` it makes 500 of each, other ones
each time, beside those that it derives from the document systematically.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from gateway.http.openapi import document
from tests.gateway.conftest import PATIENCE, GatewayProcess

schemathesis = pytest.importorskip("schemathesis")

HUNT = int(os.environ.get("CORTEX_HUNT", "0"))
CASES = HUNT or 5

# What most requests have, though no schema says that they must, lest all be refused for the same reason.
USUAL = {
    "ChatFields": ["messages"],
    "CompletionFields": ["prompt"],
    "EmbeddingFields": ["input"],
    "CreateFields": ["input"],
    "ContextFields": ["input"],
}
FURTHER = 2  # fields besides: with all of them, one is wrong in every request


def sharpened() -> dict[str, Any]:
    """The document, of which more requests get as far as a neuron."""
    whole = document()
    for name, schema in whole["components"]["schemas"].items():
        if not name.endswith("Fields"):
            continue
        fields = schema["properties"]
        fields["model"] = {
            "enum": ["nothing" if name == "EmbeddingFields" else "echo"]
        }  # it knows no vectors
        schema["required"] = sorted({*schema["required"], *USUAL.get(name, ())})
        schema["maxProperties"] = len(schema["required"]) + FURTHER
    return whole


api = schemathesis.openapi.from_dict(sharpened())
api.config.phases.coverage.enabled = bool(HUNT)


@api.parametrize()
@settings(
    max_examples=CASES,
    derandomize=not HUNT,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
def test_no_request_is_answered_with_a_500(case: Any, gateway: GatewayProcess) -> None:
    answer = case.call(base_url=gateway.base, timeout=PATIENCE)
    assert answer.status_code < 500, f"{case.as_curl_command()}: {answer.text}"
    assert answer.headers["x-request-id"]
