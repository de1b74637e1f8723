"""Libraries for programs: each holds a session that reads a file, edits it by a tool call, and finishes."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from tests.clients.conftest import DONE, HERE
from tests.clients.recorder import Recorder

PYTHON = os.environ.get("CORTEX_CLIENTS", "")  # the interpreter that has the clients


@pytest.mark.parametrize("api", ["chat", "responses", "stored"])
def test_openai(run: Callable[..., str], api: str) -> None:
    assert run(PYTHON, HERE / "python" / "use_openai.py", api).strip() == DONE


def test_anthropic(run: Callable[..., str]) -> None:
    assert run(PYTHON, HERE / "python" / "use_anthropic.py", "messages").strip() == DONE


def test_the_tool_runner_of_anthropic_sends_whole_conversations_once_it_is_told_to(
    run: Callable[..., str], recorder: Recorder
) -> None:
    assert run(PYTHON, HERE / "python" / "use_anthropic.py", "runner").strip() == DONE
    thread = recorder.exchanges.pop(0)
    assert (thread.status, thread.fields["thread"]) == (400, {"type": "create"})


@pytest.mark.parametrize("api", ["openai", "anthropic"])
def test_litellm(run: Callable[..., str], api: str) -> None:
    script = HERE / "python" / "use_litellm.py"
    assert run(PYTHON, script, api, LITELLM_LOCAL_MODEL_COST_MAP="True").strip() == DONE


@pytest.mark.parametrize("api", ["chat", "responses"])
def test_langchain_openai(run: Callable[..., str], api: str) -> None:
    assert run(PYTHON, HERE / "python" / "use_langchain.py", api).strip() == DONE


@pytest.mark.parametrize("api", ["chat", "responses", "anthropic"])
def test_pydantic_ai(run: Callable[..., str], api: str) -> None:
    assert run(PYTHON, HERE / "python" / "use_pydantic_ai.py", api).strip() == DONE


@pytest.mark.parametrize("api", ["chat", "responses"])
def test_openai_for_node(run: Callable[..., str], api: str) -> None:
    assert run("node", HERE / "node" / "use_openai.mjs", api).strip() == DONE


def test_anthropic_for_node(run: Callable[..., str]) -> None:
    assert run("node", HERE / "node" / "use_anthropic.mjs").strip() == DONE


@pytest.mark.parametrize("api", ["compatible", "anthropic"])
def test_ai_sdk(run: Callable[..., str], api: str) -> None:
    assert run("node", HERE / "node" / "use_ai.mjs", api).strip() == DONE
