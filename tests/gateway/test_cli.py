"""The `cortex` command: what it refuses takes one line and exit code 1, and starts nothing."""

import json
import os
import socket
import subprocess
import sysconfig

import pytest
from typer.testing import CliRunner

from gateway.commands import remote
from gateway.commands.cli import app
from ipc.keys import load_public, load_secret
from ipc.version import version


def cortex(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def refusal(result) -> str:
    """The one line that a refused command says."""
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    return result.stderr


def test_keygen_writes_a_pair_that_loads(tmp_path):
    result = cortex("keygen", "--out", tmp_path / "keys", "--name", "beast")
    assert result.exit_code == 0
    assert load_secret(tmp_path / "keys/beast.secret")
    assert load_public(tmp_path / "keys/beast.key") in result.stdout


def test_keygen_overwrites_nothing(tmp_path):
    cortex("keygen", "--out", tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert "exists" in refusal(cortex("keygen", "--out", tmp_path))
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_status_says_when_nothing_answers():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{unused.getsockname()[1]}"
        assert endpoint in refusal(cortex("status", "--endpoint", endpoint))


def serve(config) -> str:
    """The last words of a `cortex serve` that cannot start."""
    command = [sysconfig.get_path("scripts") + "/cortex", "serve", "--config", str(config)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=150, check=False)
    assert result.returncode == 1
    return result.stderr.splitlines()[-1]


def test_serve_names_the_unknown_key(tmp_path):
    config = tmp_path / "cortex.yaml"
    config.write_text("gateway: {listn: '127.0.0.1:0'}")
    said = serve(config)
    assert str(config) in said
    assert "gateway.listn" in said


def test_serve_names_what_is_wrong_with_the_catalogue_or_that_it_is_not_there(tmp_path):
    config, models = tmp_path / "cortex.yaml", tmp_path / "models.yaml"
    config.write_text("models_config: models.yaml")
    assert f"{models}: cannot be read" in serve(config)
    models.write_text("models:\n- id: a\n  pinned_on: [beast]\n")
    assert f"{models}: models[0].pinned_on[0]: 'beast' is no neuron" in serve(config)


def test_serve_names_the_port_in_use(tmp_path):
    config = tmp_path / "cortex.yaml"
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        config.write_text(json.dumps({"gateway": {"listen": address, "metrics_listen": None}}))
        assert address in serve(config)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--device", "gpu"], "--device gpu"),
        (["--model", "/nowhere/at/all"], "/nowhere/at/all"),
        (["--listen", "nonsense"], "--listen"),
        (["--device", "cuda:0", "--ranks", "2"], "--ranks 2"),
    ],
)
def test_up_refuses_in_one_line(arguments, named):
    assert named in refusal(cortex("up", *arguments))


def test_it_says_which_version_it_is():
    result = cortex("--version")
    assert (result.exit_code, result.stdout) == (0, f"cortex {version()}\n")


def test_a_bar_shows_names_as_they_are(monkeypatch):
    news = {"stage": "loading", "message": "reads [/shard]", "fraction": 0.5, "seconds_left": None}
    lines = [{"neuron": "beast"}, news | {"position": None}, {"done": True}]
    monkeypatch.setattr(remote, "follow", lambda *asked: iter(lines))
    result = CliRunner().invoke(app, ["load", "[/red]"], env={"FORCE_COLOR": "1", "COLUMNS": "100"})
    assert result.exit_code == 0, result.output
    assert "loading [/red]" in result.stderr
    assert "reads [/shard]" in result.stderr
    assert "[/red] is loaded on beast" in result.stdout


@pytest.mark.parametrize(("typed", "offered"), [("cortex ev", ["evict"]), ("cortex keys l", ["list"])])
def test_a_shell_completes_its_commands(typed, offered):
    words = {"COMP_WORDS": typed, "COMP_CWORD": str(typed.count(" "))}
    environment = os.environ | words | {"_CORTEX_COMPLETE": "complete_bash"}
    command = [sysconfig.get_path("scripts") + "/cortex"]
    said = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=150).stdout
    assert said.split() == offered
