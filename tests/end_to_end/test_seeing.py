"""A model that sees, behind a gateway: an image in any dialect comes to the answer of transformers."""

from __future__ import annotations

import base64
import io
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

from tests.end_to_end.harness import PATIENCE, Services, wait_until
from tests.workers import seeing

IMAGE = np.random.default_rng(3).integers(0, 256, (24, 32, 3), dtype=np.uint8)
TOKENS = 6


def png(image):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """The system with such a model, and what transformers answers."""
    folder = tmp_path_factory.mktemp("seeing")
    torch.set_num_threads(1)
    model = seeing.write(folder / "model")
    ids, images = seeing.prompt(list(map(ord, "u:what is ")), torch.from_numpy(IMAGE), list(map(ord, "?;a:")))
    expected = seeing.greedy(model, ids, images, TOKENS)
    models = {"id": "eyes", "path": str(folder / "model"), "dtype": "float32", "context_length": 512}
    neuron = {"models": [models], "only_configured": True, "devices": ["cpu"]}
    fetched = {"fetch": True, "networks": ["127.0.0.1/32"]}
    with Services(folder, neuron, {}, images=fetched) as system:
        wait_until(system.ready, "the system")
        with httpx.Client(base_url=f"{system.base}/v1", timeout=PATIENCE, trust_env=False) as http:
            yield http, expected, len(ids)


URL = f"data:image/png;base64,{png(IMAGE)}"
SOURCE = {"type": "base64", "media_type": "image/png", "data": png(IMAGE)}
QUESTION = "what is "
CHAT = [
    {"type": "text", "text": QUESTION},
    {"type": "image_url", "image_url": {"url": URL}},
    {"type": "text", "text": "?"},
]
INPUT = [
    {"type": "input_text", "text": QUESTION},
    {"type": "input_image", "image_url": URL},
    {"type": "input_text", "text": "?"},
]
BLOCKS = [
    {"type": "text", "text": QUESTION},
    {"type": "image", "source": SOURCE},
    {"type": "text", "text": "?"},
]

TOOL = {"id": "1", "type": "function"}


def said(http, path, **body):
    answer = http.post(path, json={"model": "eyes", "temperature": 0} | body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_an_answer_is_that_of_transformers_in_each_dialect(seen):
    http, expected, tokens = seen
    chat = said(
        http,
        "/chat/completions",
        messages=[{"role": "user", "content": CHAT}],
        max_tokens=TOKENS,
        return_token_ids=True,
    )
    assert chat["choices"][0]["token_ids"] == expected
    assert chat["usage"]["prompt_tokens"] == tokens
    words = chat["choices"][0]["message"]["content"]
    response = said(http, "/responses", input=[{"role": "user", "content": INPUT}], max_output_tokens=TOKENS)
    assert response["output"][0]["content"][0]["text"] == words
    message = said(http, "/messages", messages=[{"role": "user", "content": BLOCKS}], max_tokens=TOKENS)
    assert message["content"][0]["text"] == words
    asked = {"model": "eyes", "messages": [{"role": "user", "content": BLOCKS}]}
    assert http.post("/messages/count_tokens", json=asked).json() == {"input_tokens": tokens}


def test_an_image_in_the_result_of_a_tool_is_seen_in_each_dialect(seen):
    http, _, _ = seen
    ask, call = {"role": "user", "content": QUESTION}, {"name": "look", "arguments": "{}"}
    chat = [ask, {"role": "assistant", "content": None, "tool_calls": [TOOL | {"function": call}]}]
    tokens = {}
    for shown in (False, True):
        result = {"role": "tool", "tool_call_id": "1", "content": CHAT if shown else [CHAT[0], CHAT[2]]}
        answer = said(http, "/chat/completions", messages=[*chat, result], max_tokens=TOKENS)
        tokens[shown] = answer["usage"]["prompt_tokens"]
    assert tokens[True] - tokens[False] == 12 + 2  # of the image, and around it
    words = answer["choices"][0]["message"]["content"]
    items = [ask, call | {"type": "function_call", "call_id": "1"}]
    output = {"type": "function_call_output", "call_id": "1", "output": INPUT}
    response = said(http, "/responses", input=[*items, output], max_output_tokens=TOKENS)
    assert response["usage"]["input_tokens"] == tokens[True]
    assert response["output"][0]["content"][0]["text"] == words
    used = {"type": "tool_use", "id": "1", "name": "look", "input": {}}
    result = {"type": "tool_result", "tool_use_id": "1", "content": BLOCKS}
    turns = [ask, {"role": "assistant", "content": [used]}, {"role": "user", "content": [result]}]
    message = said(http, "/messages", messages=turns, max_tokens=TOKENS)
    assert message["content"][0]["text"] == words


@pytest.fixture
def address():
    """Where the image is."""

    class Site(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(base64.b64decode(png(IMAGE)))

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Site)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/image"
    server.shutdown()
    thread.join()
    server.server_close()


def test_an_image_behind_an_address_is_the_same_in_each_dialect(seen, address):
    http, expected, tokens = seen
    image = {"type": "image_url", "image_url": {"url": address}}
    asked = [{"role": "user", "content": [CHAT[0], image, CHAT[2]]}]
    chat = said(http, "/chat/completions", messages=asked, max_tokens=TOKENS, return_token_ids=True)
    assert chat["choices"][0]["token_ids"] == expected
    words = chat["choices"][0]["message"]["content"]
    given = [{"role": "user", "content": [INPUT[0], INPUT[1] | {"image_url": address}, INPUT[2]]}]
    response = said(http, "/responses", input=given, max_output_tokens=TOKENS)
    assert response["output"][0]["content"][0]["text"] == words
    source = {"type": "image", "source": {"type": "url", "url": address}}
    blocks = [{"role": "user", "content": [BLOCKS[0], source, BLOCKS[2]]}]
    assert said(http, "/messages", messages=blocks, max_tokens=TOKENS)["content"][0]["text"] == words
    count = http.post("/messages/count_tokens", json={"model": "eyes", "messages": blocks})
    assert count.json() == {"input_tokens": tokens}


def test_the_second_turn_has_the_image_cached(seen):
    http, _, _ = seen
    messages = [{"role": "user", "content": [*CHAT, {"type": "text", "text": "x" * 90}]}]
    said(http, "/chat/completions", messages=messages, max_tokens=1)
    messages += [{"role": "assistant", "content": "A"}, {"role": "user", "content": "and?"}]
    usage = said(http, "/chat/completions", messages=messages, max_tokens=1)["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] >= 96


def test_models_that_see_are_listed_so(seen):
    http, _, _ = seen
    assert "vision" in http.get("/models/eyes").json()["capabilities"]


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("data:image/png;base64," + base64.b64encode(b"no image").decode(), "cannot be read as an image"),
        ("http://127.0.0.2/image.png", "127.0.0.2 is at no public address"),
    ],
)
def test_a_bad_image_is_a_400_that_names_it(seen, url, reason):
    http, _, _ = seen
    content = [{"type": "text", "text": "?"}, {"type": "image_url", "image_url": {"url": url}}]
    answer = http.post(
        "/chat/completions", json={"model": "eyes", "messages": [{"role": "user", "content": content}]}
    )
    error = answer.json()["error"]
    assert answer.status_code == 400, error
    assert reason in error["message"]
    assert error["param"].startswith("messages[0].content[1]")


def test_several_answers_see_one_image_and_one_can_be_gone_on_with(seen):
    http, expected, _ = seen
    turn = {"role": "user", "content": CHAT}
    asked = {"messages": [turn], "max_tokens": TOKENS, "return_token_ids": True}
    choices = said(http, "/chat/completions", n=3, **asked)["choices"]
    assert [choice["token_ids"] for choice in choices] == [expected] * 3
    begun = {"role": "assistant", "content": "".join(map(chr, expected[:2]))}
    options = {"add_generation_prompt": False, "continue_final_message": True}
    answer = said(http, "/chat/completions", messages=[turn, begun], max_tokens=2, **options)
    assert answer["usage"]["completion_tokens"] == 2


def test_a_prompt_with_a_mark_for_an_image_is_a_400(seen):
    http, _, _ = seen
    for body in ({"prompt": "u:<image>"}, {"prompt": [117, seeing.IMAGE]}):
        answer = http.post("/completions", json={"model": "eyes", "max_tokens": 1} | body)
        error = answer.json()["error"]
        assert (answer.status_code, error["param"]) == (400, "prompt"), error
        assert "mark for an image" in error["message"]
