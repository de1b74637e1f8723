"""Coding agents as people install them, told where the gateway is: each does its task and finishes."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.clients.conftest import DONE, MODULES
from tests.clients.recorder import Recorder
from tests.end_to_end.harness import SCRIPTS, Cortex, wait_until

TASK = "Make the colour in notes.txt blue."
BINARIES = MODULES / ".bin"
CODEX = """\
model = "{model}"
model_provider = "cortex"
[model_providers.cortex]
name = "cortex"
base_url = "{base}/v1"
wire_api = "responses"
"""


def claude(run: Callable[..., str], recorder: Recorder, task: str) -> dict[str, Any]:
    said = run(
        BINARIES / "claude",
        *("-p", task, "--dangerously-skip-permissions", "--output-format", "json"),
        ANTHROPIC_BASE_URL=recorder.base,
        ANTHROPIC_AUTH_TOKEN="none",
        CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC="1",
        DISABLE_AUTOUPDATER="1",
        IS_SANDBOX="1",  # else it wants no root to skip permissions
    )
    return json.loads(said)


def test_claude_code(run: Callable[..., str], recorder: Recorder) -> None:
    result = claude(run, recorder, TASK)
    assert (result["is_error"], result["result"], result["num_turns"]) == (False, DONE, 3)
    turns = [each.fields for each in recorder.posts() if each.fields.get("tools")]
    assert len(turns) == 3
    assert turns[0]["model"].startswith("claude-")
    thought, text, call = turns[1]["messages"][-2]["content"]
    assert (thought["type"], thought["thinking"]) == ("thinking", "The file first.")
    assert (text["type"], call["type"], call["name"]) == ("text", "tool_use", "Read")
    usage = result["usage"]
    assert usage["cache_read_input_tokens"] > usage["input_tokens"]  # each turn begins as the one before it


def test_claude_code_calls_two_tools_at_once_and_sends_a_helper(
    run: Callable[..., str], recorder: Recorder
) -> None:
    result = claude(run, recorder, f"DELEGATE this: {TASK}")
    assert (result["is_error"], result["result"]) == (False, DONE)
    turns = [each.fields for each in recorder.posts() if each.fields.get("tools")]
    helpers = [turn for turn in turns if "Paint it." in json.dumps(turn["messages"][0])]
    assert (len(turns), len(helpers)) == (6, 3)
    results = turns[1]["messages"][-1]["content"]
    assert [block["type"] for block in results] == ["tool_result"] * 2


@pytest.mark.parametrize("model", ["scripted", "gpt-5.5"])
def test_codex(run: Callable[..., str], recorder: Recorder, tmp_path: Path, model: str) -> None:
    """A model that it knows gets the tool that takes a patch as plain text."""
    (tmp_path / ".codex").mkdir()
    (tmp_path / ".codex" / "config.toml").write_text(CODEX.format(model=model, base=recorder.base))
    flags = ("--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox")
    assert run(BINARIES / "codex", "exec", *flags, TASK).strip() == DONE
    turns = [each.fields for each in recorder.posts()]
    assert len(turns) == 3
    kinds = [item["type"] for item in turns[2]["input"]]
    edit = "custom_tool_call" if model == "gpt-5.5" else "function_call"
    assert kinds[-7:-2] == ["reasoning", "message", "function_call", "function_call_output", "message"]
    assert kinds[-2:] == [edit, f"{edit}_output"]


def test_opencode(run: Callable[..., str], recorder: Recorder, tmp_path: Path) -> None:
    config = {
        "autoupdate": False,
        "share": "disabled",
        "model": "cortex/scripted",
        "permission": "allow",
        "provider": {
            "cortex": {
                "npm": "@ai-sdk/openai-compatible",
                "options": {"baseURL": f"{recorder.base}/v1"},
                "models": {"scripted": {"limit": {"context": 100_000, "output": 8_000}}},
            }
        },
    }
    (tmp_path / "opencode.json").write_text(json.dumps(config))
    told = {"OPENCODE_CONFIG": str(tmp_path / "opencode.json"), "OPENCODE_DISABLE_MODELS_FETCH": "1"}
    assert run(BINARIES / "opencode", "run", TASK, **told).strip().endswith(DONE)
    turns = [each.fields for each in recorder.posts() if each.fields.get("tools")]
    assert len(turns) == 3
    assert turns[1]["messages"][-2]["reasoning_content"] == "The file first."


LAUNCHED = {
    "claude": ("-p", TASK, "--dangerously-skip-permissions"),
    "codex": ("exec", "--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox", TASK),
    "opencode": ("run", TASK),
}


@pytest.mark.parametrize("client", LAUNCHED)
def test_cortex_launch_starts_it_so_that_it_works(
    run: Callable[..., str], recorder: Recorder, client: str
) -> None:
    options = ("--url", recorder.base, "--model", "scripted", "--exec")
    said = run(
        SCRIPTS / "cortex",
        *("launch", client, *options, "--", *LAUNCHED[client]),
        PATH=f"{BINARIES}{os.pathsep}{os.environ['PATH']}",
        IS_SANDBOX="1",
    )
    assert said.strip().endswith(DONE)
    assert all(each.fields["model"] == "scripted" for each in recorder.posts())


@pytest.mark.parametrize("client", LAUNCHED)
def test_an_agent_goes_on_after_a_worker_died_in_the_middle_of_a_thought(
    run: Callable[..., str], recorder: Recorder, system: Cortex, client: str
) -> None:
    """It is told of nothing: the next worker goes on with the thought."""

    def is_thinking() -> bool:
        return any(each.answer.count(b"data: ") > 100 for each in recorder.posts())

    def kill() -> None:
        wait_until(is_thinking, "a thought")
        os.kill(system.workers("scripted")[0], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    arguments = [f"{TASK} AT LENGTH" if argument == TASK else argument for argument in LAUNCHED[client]]
    options = ("--url", recorder.base, "--model", "scripted", "--exec")
    said = run(
        SCRIPTS / "cortex",
        *("launch", client, *options, "--", *arguments),
        PATH=f"{BINARIES}{os.pathsep}{os.environ['PATH']}",
        IS_SANDBOX="1",
    )
    killer.join()
    assert said.strip().endswith(DONE)
    assert not any(each.failed() for each in recorder.exchanges)
