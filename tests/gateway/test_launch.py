"""`cortex launch`: what each coding agent is told, and what is checked before."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from typer.testing import CliRunner

from gateway.commands.cli import app
from gateway.commands.clients import CLIENTS

BIG = {"id": "org/big", "context_length": 131_072, "capabilities": ["completion", "chat", "tools"]}
MODELS = [
    BIG,
    {
        "id": "loaded",
        "context_length": 65_536,
        "capabilities": ["chat", "tools", "reasoning"],
        "loaded": True,
    },
    {"id": "small", "context_length": 4096, "capabilities": ["chat", "tools"], "loaded": True},
    {"id": "bare", "context_length": 131_072, "capabilities": ["completion"], "loaded": True},
    {"id": "cold", "capabilities": ["chat", "tools"]},
    BIG | {"id": "gpt-4o", "alias_of": "org/big", "loaded": True},
]
TO_CLAUDE = BIG | {"id": "claude-any", "alias_of": "org/big"}


class Models(BaseHTTPRequestHandler):
    """A gateway, as far as its models go."""

    def do_GET(self) -> None:
        answers = {"/v1/models": {"data": MODELS}, "/v1/models/claude-any": TO_CLAUDE}
        known = self.path in answers
        self.send_response(200 if known else 404)
        self.end_headers()
        self.wfile.write(json.dumps(answers.get(self.path, {"error": {}})).encode())

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Models)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


Launch = Callable[..., tuple[list[str], dict[str, str], str]]


@pytest.fixture
def launched(url: str, tmp_path: Path) -> Launch:
    """Runs `cortex launch --exec` with programs that only note their arguments and environment."""
    home = tmp_path / "home"
    home.mkdir()

    def launch(client: str, *options: str, **variables: str) -> tuple[list[str], dict[str, str], str]:
        program = tmp_path / client
        program.write_text(
            f"#!{sys.executable}\nimport json, os, sys\n"
            f"json.dump([sys.argv[1:], dict(os.environ)], open({str(tmp_path / 'told')!r}, 'w'))\n"
        )
        program.chmod(0o755)
        cortex = (sys.executable, "-c", "from gateway.commands.cli import main; main()")
        ended = subprocess.run(
            [*cortex, "launch", client, "--url", url, "--exec", *options],
            env=os.environ | {"PATH": str(tmp_path), "HOME": str(home)} | variables,
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            timeout=150,
        )
        assert ended.returncode == 0, ended.stderr
        assert list(home.iterdir()) == [], "nothing of the user's is written"
        arguments, environment = json.loads((tmp_path / "told").read_text())
        return arguments, environment, ended.stderr

    return launch


def said(*arguments: str) -> tuple[int, str, str]:
    ended = CliRunner().invoke(app, ["launch", *arguments])
    return ended.exit_code, ended.stdout, ended.stderr


def test_claude_code_is_told_where_to_ask_and_for_what(launched: Launch, url: str) -> None:
    arguments, told, errors = launched("claude", "--", "-p", "hello", ANTHROPIC_API_KEY="sk-real")
    assert (arguments, errors) == (["-p", "hello"], "")
    assert told["ANTHROPIC_BASE_URL"] == url  # it adds /v1 itself
    assert told["ANTHROPIC_AUTH_TOKEN"]
    assert "ANTHROPIC_API_KEY" not in told  # it would be sent instead
    roles = ("ANTHROPIC_MODEL", "ANTHROPIC_DEFAULT_HAIKU_MODEL", "CLAUDE_CODE_SUBAGENT_MODEL")
    assert {told[role] for role in roles} == {"loaded"}
    assert told["CLAUDE_CODE_MAX_CONTEXT_TOKENS"] == "65536"
    assert told["CLAUDE_CODE_MAX_OUTPUT_TOKENS"] == "16384"


def test_codex_is_told_by_its_command_line(launched: Launch, url: str) -> None:
    arguments, _, _ = launched("codex", "--model", "org/big", "--", "exec", "hello")
    assert arguments[-2:] == ["exec", "hello"]
    assert set(arguments[0:-2:2]) == {"-c"}
    config = tomllib.loads("\n".join(arguments[1:-2:2]))
    assert (config["model"], config["model_provider"]) == ("org/big", "cortex")
    assert config["model_context_window"] == 131_072
    provider = {"name": "cortex", "base_url": f"{url}/v1", "wire_api": "responses"}
    assert config["model_providers"]["cortex"] == provider


def test_opencode_is_told_by_a_configuration_of_its_own(launched: Launch, url: str) -> None:
    _, told, _ = launched("opencode")
    config = json.loads(told["OPENCODE_CONFIG_CONTENT"])
    assert config["model"] == config["small_model"] == "cortex/loaded"
    provider = config["provider"]["cortex"]
    assert provider["options"]["baseURL"] == f"{url}/v1"
    limit = {"context": 65_536, "output": 16_384}
    assert provider["models"]["loaded"] == {
        "name": "loaded",
        "tool_call": True,
        "reasoning": True,
        "limit": limit,
    }


def test_aider_is_told_by_both(launched: Launch, url: str) -> None:
    arguments, told, _ = launched("aider", "--", "file.py")
    assert arguments[:2] == ["--model", "openai/loaded"]
    assert arguments[-1] == "file.py"
    assert told["OPENAI_API_BASE"] == f"{url}/v1"


@pytest.mark.parametrize("client", CLIENTS)
def test_without_exec_it_says_what_to_type(client: str, url: str) -> None:
    code, out, errors = said(client, "--url", url + "/", "--model", "org/big")
    assert (code, errors) == (0, "")
    assert "org/big" in out
    assert f"{url}" in out
    assert f"{url}//" not in out
    assert any(line.split()[0] == client for line in out.splitlines() if line)


def test_what_codex_would_keep_is_toml(url: str) -> None:
    _, out, _ = said("codex", "--url", url)
    kept = tomllib.loads(out.partition("config.toml:\n")[2])
    assert kept["model_providers"]["cortex"]["wire_api"] == "responses"


@pytest.mark.parametrize(
    ("client", "model", "reason"),
    [
        ("claude", "small", "4096 tokens, and claude wants 32768"),
        ("codex", "bare", "no chat template"),
        ("opencode", "bare", "takes no tools"),
        ("aider", "small", "wants 8192"),
    ],
)
def test_a_model_that_does_not_suffice_is_not_launched(
    url: str, client: str, model: str, reason: str
) -> None:
    code, out, errors = said(client, "--url", url, "--model", model)
    assert (code, reason in errors) == (0, True)
    assert out  # it says how, all the same
    code, out, errors = said(client, "--url", url, "--model", model, "--exec")
    assert (code, out, reason in errors, "--anyway" in errors) == (1, "", True, True)


def test_one_that_does_not_suffice_is_launched_where_somebody_insists(launched: Launch) -> None:
    _, told, errors = launched("claude", "--model", "small", "--anyway")
    assert told["ANTHROPIC_MODEL"] == "small"
    assert "4096" in errors


def test_of_a_model_that_was_never_loaded_the_context_may_be_unknown(launched: Launch) -> None:
    _, told, errors = launched("claude", "--model", "cold")
    assert "CLAUDE_CODE_MAX_CONTEXT_TOKENS" not in told
    assert errors == ""


def test_a_name_that_a_pattern_takes_is_a_model(launched: Launch) -> None:
    _, told, _ = launched("claude", "--model", "claude-any")
    assert told["ANTHROPIC_MODEL"] == "claude-any"
    assert told["CLAUDE_CODE_MAX_CONTEXT_TOKENS"] == "131072"


def test_what_is_not_there_is_said(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    code, _, errors = said("claude", "--url", url, "--model", "none")
    assert (code, "org/big" in errors) == (1, True)
    code, _, errors = said("claude", "--url", "http://127.0.0.1:9")
    assert (code, "--url" in errors) == (1, True)
    monkeypatch.setenv("PATH", "/nowhere")
    code, _, errors = said("codex", "--url", url, "--exec")
    assert (code, "npm install -g @openai/codex" in errors) == (1, True)
