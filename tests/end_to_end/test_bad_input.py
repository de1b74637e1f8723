"""Wrong requests: each gets one clear error that names the thing, and everything else goes on."""

import httpx
import pytest

from tests.end_to_end.harness import PATIENCE

HELLO = [{"role": "user", "content": "Hello!"}]
CHAT = "/v1/chat/completions"
JSON = {"content-type": "application/json"}


@pytest.fixture(autouse=True)
def still_serving(cortex):
    yield
    assert cortex.chat(model="simulated").status_code == 200


def error_of(response: httpx.Response, status: int) -> dict:
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert error["message"]
    return error


@pytest.mark.parametrize("body", [b"", b"{", b"not json", b'"text"', b"[]", b"\xff\xfe", b"null"])
def test_what_is_no_json_object_is_refused(cortex, body):
    error_of(httpx.post(cortex.base + CHAT, content=body, headers=JSON, timeout=PATIENCE), 400)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model", 5),
        ("messages", "Hello!"),
        ("messages", []),
        ("messages", [{"role": "wizard", "content": "x"}]),
        ("messages", [{"role": "user", "content": 5}]),
        ("temperature", "warm"),
        ("temperature", -1),
        ("top_p", 0),
        ("top_p", 1.5),
        ("max_tokens", 0),
        ("max_tokens", -3),
        ("stop", [5]),
        ("stream", "yes"),
        ("n", 0),
        ("logprobs", "all"),
        ("logit_bias", [5]),
        ("tools", [{"type": "function"}]),
    ],
)
def test_a_wrong_field_is_named(cortex, field, value):
    error = error_of(cortex.post(CHAT, **{"model": "simulated", "messages": HELLO, field: value}), 400)
    assert field in (error["param"] or "")


def test_an_unknown_model_is_named(cortex):
    error = error_of(cortex.chat(model="gpt-9"), 404)
    assert error["code"] == "model_not_found"
    assert "gpt-9" in error["message"]


def test_a_prompt_over_the_context_is_refused_streamed_or_not(cortex):
    context = cortex.model("demo").context_length
    for stream in (False, True):
        error = error_of(cortex.chat("cortex " * 3 * context, model="demo", stream=stream), 400)
        assert error["code"] == "context_length_exceeded"
        assert str(context) in error["message"]


def test_a_body_over_the_limit_is_refused(cortex):
    error_of(httpx.post(cortex.base + CHAT, content=b" " * (33 << 20), headers=JSON, timeout=PATIENCE), 413)


def test_an_unknown_address_and_a_wrong_method_are_told(cortex):
    error_of(httpx.get(f"{cortex.base}/v1/nothing"), 404)
    error_of(httpx.get(cortex.base + CHAT), 405)
