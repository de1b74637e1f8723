"""However many ask for a model that no host has, and of however many processes, it is fetched once."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from tests.end_to_end.harness import wait_until
from tests.gateway.conftest import PATIENCE, GatewayProcess
from tests.neuron.harness import Neuron
from tests.neuron.hub import Repository, serving

DEMO = {path.name: path.read_bytes() for path in Path("neuron/demo").iterdir() if path.is_file()}
MODEL = "org/demo"
REQUESTS = 12
BODY = {"model": MODEL, "messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 2}


async def ask_all(base: str, on_pulling: Callable[[], None]) -> list[str]:
    """What each of them is answered, streamed or not; told once a stream says how far the pull is."""
    async with httpx.AsyncClient(base_url=base, timeout=PATIENCE, trust_env=False) as client:

        async def ask(number: int) -> str:
            body = BODY | {"stream": number % 2 == 0}
            text = ""
            async with client.stream("POST", "/v1/chat/completions", json=body) as answer:
                async for part in answer.aiter_text():
                    text += part
                    if f"pulling {MODEL}" in text:
                        on_pulling()
            assert answer.status_code == 200, text
            return text

        return await asyncio.gather(*(ask(number) for number in range(REQUESTS)))


def test_a_model_that_no_host_has_is_fetched_by_one_of_them_once_and_answers_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ExitStack() as stack:
        go_on = threading.Event()
        hub = stack.enter_context(serving({MODEL: Repository(DEMO, held=go_on)}))
        stack.callback(go_on.set)
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
        monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        models = [{"id": MODEL, "pull": True, "kv_memory": "64MiB"}]
        neurons = [stack.enter_context(Neuron(tmp_path / f"n{i}", models)) for i in range(2)]
        gateway = GatewayProcess(
            tmp_path,
            neurons[0].endpoint,
            neurons={"n1": neurons[1].endpoint},
            workers=2,
            load_wait_seconds=PATIENCE,
        )
        stack.callback(gateway.stop)
        gateway.wait_ready()

        def listed() -> list[dict[str, object]]:
            models = httpx.get(f"{gateway.base}/v1/models", trust_env=False).json()["data"]
            return next((each["locations"] for each in models if each["id"] == MODEL), [])

        offered = wait_until(lambda: found if len(found := listed()) == 2 else None, "both hosts to offer it")
        assert [each["status"] for each in offered] == ["unloaded", "unloaded"]
        assert all("bytes_to_pull" in each for each in offered)
        answers = asyncio.run(ask_all(gateway.base, go_on.set))
        assert all("[DONE]" in answer or '"usage"' in answer for answer in answers)
        assert [name for name, _ in hub.given].count("model.safetensors") == 1
        begun = [neuron.log.count("pull begins model=org/demo ") for neuron in neurons]
        assert sorted(begun) == [0, 1]
