"""The commands that README.md and docs/ show do what stands beside them, typed as they stand there."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from gateway.commands.cli import app
from tests.end_to_end.harness import PATIENCE, SCRIPTS, Program, Services, wait_until
from tests.end_to_end.pages import BLOCKS, ROOT
from tests.neuron.harness import simulated

BIG, LARGER = "Qwen/Qwen3-8B", "Qwen/Qwen3-32B"
MODELS = [simulated(model, memory="600MiB", settings={"context_length": 32768}) for model in (BIG, LARGER)]


def typed(command: str) -> list[str]:
    """The lines of the pages' blocks that begin with a command, without prompt, folder and comment."""
    lines = [line.rpartition(".venv/bin/")[2] for _, _, body in BLOCKS for line in body.splitlines()]
    return [shlex.join(shlex.split(line, comments=True)) for line in lines if line.startswith(command)]


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    """The fleet of the pages: a host `beast`, which has room for one of two models."""
    folder = tmp_path_factory.mktemp("fleet")
    neuron = {"models": MODELS, "only_configured": True, "cpu": {"memory": "1GiB"}}
    with Services(folder, neuron, {}) as system, pytest.MonkeyPatch.context() as patch:
        patch.setenv("CORTEX_ENDPOINT", system.base)
        patch.setenv("CORTEX_CONFIG", str(folder / "cortex.yaml"))
        patch.setenv("XDG_STATE_HOME", str(system.gateway.tmp))
        patch.chdir(folder)
        wait_until(system.ready, "the gateway")
        yield system


def ran(line: str) -> str:
    """What a command says; it has to end well."""
    result = CliRunner().invoke(app, shlex.split(line)[1:])
    assert result.exit_code == 0, (line, result.output)
    return result.output


def test_models_are_loaded_and_hosts_drained_as_the_page_says(fleet: Services) -> None:
    (load, unload, pin, evict, drain, resume) = (
        line
        for command in ("load", "unload", "pin", "evict", "drain", "resume")
        for line in typed(f"cortex {command} ")
    )
    assert f"{BIG} is loaded on beast" in ran(load)
    assert fleet.model(BIG).status == "ready"
    assert {"beast", BIG} <= set(ran(evict).split())
    assert "unloaded" in ran(unload)
    assert fleet.model(LARGER).status == "unloaded"
    ran(pin)
    wait_until(lambda: fleet.model(BIG).pinned, "it is pinned")
    ran("cortex unpin " + BIG)
    assert "beast is drained" in ran(drain)
    wait_until(lambda: fleet.fleet().neurons[0].draining, "it takes no work")
    ran(resume)
    fleet.serves_again(BIG)


def test_models_are_listed_checked_and_measured_as_the_page_says(fleet: Services) -> None:
    (models,) = typed("cortex models list")
    assert {BIG, LARGER} <= set(ran(models).split())
    (check,) = typed("cortex models check")
    Path(check.split()[-1]).write_text(f"models:\n- id: {BIG}\n  keep_alive: 30m\n")
    assert "beast" in ran(check)
    (bench,) = typed("cortex bench")
    assert "32 of 32 answered" in ran(bench)


def test_logs_are_read_and_followed_as_the_page_says(fleet: Services, tmp_path: Path) -> None:
    (follow,) = [line for line in typed("cortex logs") if line.endswith("-f")]
    (of_one,) = [line for line in typed("cortex logs") if line != follow]

    def ask() -> None:
        body = {"model": BIG, "messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 2}
        headers = {"x-request-id": of_one.split()[-1]}
        address = f"{fleet.base}/v1/chat/completions"
        assert httpx.post(address, json=body, headers=headers, timeout=PATIENCE).status_code == 200

    def told(program: Program, pattern: str) -> bool:
        ask()
        return program.said(pattern)

    ask()
    assert "request finished" in ran(of_one)
    for endless, pattern in ((follow, "^beast: .*req-7"), (typed("cortex top")[0], BIG)):
        with Program(*shlex.split(endless), folder=tmp_path) as program:
            wait_until(partial(told, program, pattern), f"{endless} to tell of it")
            assert program.end(signal.SIGINT) == 0


def test_keys_are_made_and_revoked_as_the_page_says(fleet: Services) -> None:
    for_ann, for_ci, listing, usage, revoke = typed("cortex keys")
    ran(for_ann)
    ran(for_ci)
    assert {"ann", "ci", "Qwen/*"} <= set(ran(listing).split())
    ran(usage)
    assert "(ann) is revoked" in ran(revoke)


def test_agents_are_launched_as_the_page_says(fleet: Services, tmp_path: Path) -> None:
    lines = typed("cortex launch")
    fleet.serves_again(BIG)
    for line in lines:
        program = tmp_path / shlex.split(line)[2]
        program.write_text(f"#!{sys.executable}\nimport os, sys\nprint(sys.argv[1:], dict(os.environ))\n")
        program.chmod(0o755)
        command = shlex.split(line.replace("http://gateway:31313", fleet.base))
        ended = subprocess.run(
            [SCRIPTS / command[0], *command[1:]],
            env=os.environ | {"PATH": str(tmp_path), "HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        assert ended.returncode == 0, (line, ended.stderr)
        assert fleet.base in ended.stdout, line
    assert len(lines) == 4


def test_real_models_come_up_under_the_names_that_they_are_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bundled model's files stand for theirs: an id in the Hugging Face cache, a folder, and aliases."""
    (models,) = [line for line in typed("cortex up") if "my-checkpoint" in line]
    (aliases,) = [line for line in typed("cortex up") if "--alias" in line]
    demo = ROOT / "neuron" / "demo"
    repository = tmp_path / "hub" / "models--Qwen--Qwen3-0.6B"
    for folder in (repository / "snapshots" / "a1", tmp_path / "my-checkpoint"):
        shutil.copytree(demo, folder)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    both = [*shlex.split(models), *shlex.split(aliases)[2:], "--model", "demo", "--listen", "127.0.0.1:0"]
    with Program(*both, folder=tmp_path) as program:
        base = program.wait_for(r"cortex is up at (http://\S+)/v1")[1]
        listed = httpx.get(f"{base}/v1/models", timeout=PATIENCE).json()["data"]
        ids = {each["id"] for each in listed}
        assert {"Qwen/Qwen3-0.6B", "my-checkpoint", "gpt-4o"} <= ids
        body = {"messages": [{"role": "user", "content": "What is 17 plus 25?"}], "max_tokens": 40}
        for model in ("Qwen/Qwen3-0.6B", "my-checkpoint", "claude-any", "gpt-4o"):
            answer = httpx.post(
                f"{base}/v1/chat/completions", json=body | {"model": model}, timeout=PATIENCE
            ).json()
            assert "42" in answer["choices"][0]["message"]["content"]
