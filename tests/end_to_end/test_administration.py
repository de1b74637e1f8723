"""The command line changes the fleet: what it says is so, and its exit code tells whether."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from gateway.commands.cli import app
from tests.end_to_end.harness import PATIENCE, SCRIPTS, Program, Services, wait_until
from tests.neuron.harness import simulated

MODELS = [
    simulated("one", memory="600MiB"),
    simulated("two", memory="600MiB"),
    simulated("slow", memory="1MiB", load_seconds=3.0),
    simulated("huge", memory="64GiB"),
    simulated("broken", failure={"fail_load": "the weights are wrong"}),
]


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory):
    """A host of 1 GiB, where one of two models fits."""
    neuron = {"models": MODELS, "only_configured": True, "cpu": {"memory": "1GiB"}, "standby": False}
    with Services(tmp_path_factory.mktemp("administration"), neuron, {}) as system:
        wait_until(system.ready, "the gateway")
        yield system


def cortex(services: Services, *arguments: str, code: int = 0) -> Any:
    """What a command says: all of it, or where it failed its one line."""
    result = CliRunner().invoke(app, [*arguments, "--endpoint", services.base])
    assert result.exit_code == code, result.output
    if code:
        assert result.stderr.count("\n") == 1
        return result.stderr
    return (
        [json.loads(line) for line in result.stdout.splitlines()] if "--json" in arguments else result.stdout
    )


def status(services: Services, model: str) -> str:
    return services.model(model).status


def test_a_model_is_loaded_and_unloaded(services: Services) -> None:
    assert "one is loaded on beast after" in cortex(services, "load", "one")
    assert services.model("one").status == "ready"
    assert cortex(services, "load", "one", "--json")[-1] == {"done": True}
    assert "beast: unloaded" in cortex(services, "unload", "one")
    wait_until(lambda: status(services, "one") == "unloaded", "it is unloaded")
    assert cortex(services, "unload", "one", "--json") == [[{"neuron": "beast", "done": True}]]


def test_the_progress_of_a_load_is_told(services: Services) -> None:
    lines = cortex(services, "load", "slow", "--json")
    assert lines[0] == {"neuron": "beast"}
    assert [line["stage"] for line in lines[1:-1]].count("loading") > 1
    assert lines[-1] == {"done": True}
    cortex(services, "unload", "slow")


def test_a_load_that_fails_says_why(services: Services) -> None:
    assert "the weights are wrong" in cortex(services, "load", "broken", code=1)
    assert "beast" in cortex(services, "load", "huge", code=1)
    assert "does not exist" in cortex(services, "load", "nothing", code=1)
    assert "is none of this gateway's" in cortex(services, "load", "one", "--neuron", "other", code=1)
    assert "keep_alive" in cortex(services, "load", "one", "--keep-alive", "soon", code=1)


def test_a_load_goes_on_though_nobody_waits_for_it(services: Services) -> None:
    command = [SCRIPTS / "cortex", "load", "slow", "--endpoint", services.base]
    with subprocess.Popen(command, env=os.environ, stderr=subprocess.PIPE) as process:
        wait_until(lambda: status(services, "slow") == "loading", "it loads")
        process.send_signal(signal.SIGKILL)
    wait_until(lambda: status(services, "slow") == "ready", "it is loaded")
    cortex(services, "unload", "slow")


def test_a_pinned_model_stays_until_it_is_unpinned(services: Services) -> None:
    cortex(services, "pin", "one")
    wait_until(lambda: services.model("one").pinned and status(services, "one") == "ready", "it is there")
    cortex(services, "load", "two", code=1)
    cortex(services, "unpin", "one")
    wait_until(lambda: not services.model("one").pinned, "the gateway knows")
    cortex(services, "load", "two")
    assert (status(services, "one"), status(services, "two")) == ("unloaded", "ready")


def test_who_would_leave_is_told_and_leaves_when_asked(services: Services) -> None:
    cortex(services, "load", "one")

    def would_leave() -> bool:
        (line,) = cortex(services, "evict", "two", "--dry-run").splitlines()[1:]
        return line.split()[:3] == ["beast", "evicts", "one"]

    wait_until(would_leave, "it may leave: what was just loaded stays a moment")
    assert cortex(services, "evict", "two", "--dry-run", "--json")[0][0]["evicts"] == ["one"]
    assert status(services, "one") == "ready"
    assert "beast has room for two without one" in cortex(services, "evict", "two")
    wait_until(lambda: status(services, "one") == "unloaded", "it left")
    assert cortex(services, "evict", "two", "--json") == [{"neuron": "beast", "evicted": []}]
    for options in ((), ("--dry-run",), ("--dry-run", "--json")):
        assert "no neuron can make room for huge" in cortex(services, "evict", "huge", *options, code=1)


def test_a_drained_neuron_takes_nothing_until_it_is_resumed(services: Services) -> None:
    assert "beast is drained" in cortex(services, "drain", "beast")
    wait_until(lambda: services.fleet().neurons[0].draining, "the gateway knows")
    assert services.chat(model="slow").status_code == 503
    cortex(services, "resume", "beast")
    wait_until(lambda: not services.fleet().neurons[0].draining, "the gateway knows")
    assert services.chat(model="slow").status_code == 200


def test_the_log_of_a_neuron_is_read_through_the_gateway(services: Services) -> None:
    headers = {"x-request-id": "looked-for.1"}
    body = {"model": "one", "messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 2}
    answer = httpx.post(f"{services.base}/v1/chat/completions", json=body, headers=headers, timeout=PATIENCE)
    assert answer.status_code == 200, answer.text
    said = cortex(services, "logs", "--request", "looked-for.1")
    assert re.fullmatch(r"beast: .* request finished id=\d+ trace=looked-for\.1 .*\n", said)
    assert cortex(services, "logs", "--request", "looked-for", "--json") == [{"done": True}]
    assert len(cortex(services, "logs", "beast", "--lines", "3").splitlines()) == 3
    assert "'nobody' is none of this gateway's" in cortex(services, "logs", "nobody", code=1)


def test_the_log_of_a_neuron_is_followed_until_ctrl_c(services: Services, tmp_path: Path) -> None:
    command = ["logs", "--lines", "0", "--follow", "--request", "followed", "--endpoint", services.base]
    with Program("cortex", *command, folder=tmp_path) as program:

        def told() -> bool:
            body = {"model": "one", "messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 1}
            headers = {"x-request-id": "followed"}
            httpx.post(f"{services.base}/v1/chat/completions", json=body, headers=headers, timeout=PATIENCE)
            return bool(program.said(r"^beast: .* trace=followed "))

        wait_until(told, "its lines")
        assert program.end(signal.SIGINT) == 0
    assert all("trace=followed" in line for line in program.lines)


def test_models_are_listed(services: Services) -> None:
    lines = cortex(services, "models", "list").splitlines()[1:]
    assert sorted(line.split()[0] for line in lines) == ["broken", "huge", "one", "slow", "two"]
    assert {each["id"] for each in cortex(services, "models", "list", "--json")[0]["data"]} >= {"one", "two"}


def test_a_bench_measures_what_was_answered(services: Services) -> None:
    load = ("--requests", "6", "--concurrency", "3", "--max-tokens", "5", "--words", "20")
    shown = cortex(services, "bench", "slow", *load)
    assert "6 of 6 answered" in shown
    assert "first token, s" in shown
    (said,) = cortex(services, "bench", "slow", *load, "--json")
    assert [answer["tokens"] for answer in said["answers"]] == [5] * 6
    assert all(0 < answer["first_token"] <= answer["total"] for answer in said["answers"])


def test_a_bench_does_not_measure_the_load(services: Services) -> None:
    before = services.model("two").finished
    cortex(services, "bench", "two", "--requests", "2", "--max-tokens", "2")
    wait_until(lambda: services.model("two").finished == before + 3, "one was for the load")


def test_a_bench_of_nothing_fails_with_the_reason(services: Services) -> None:
    arguments = ["bench", "nothing", "--requests", "2", "--endpoint", services.base]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1
    assert result.stderr.startswith("cortex bench: the model 'nothing' does not exist")
    assert result.stdout == ""


def test_top_shows_what_is_there_until_it_is_ended(services: Services, tmp_path: Path) -> None:
    cortex(services, "load", "one")
    command = [SCRIPTS / "cortex", "top", "--endpoint", services.base, "--every", "0.1"]

    def heed() -> None:  # Ctrl-C, which shells have what they start in the background ignore
        signal.signal(signal.SIGINT, signal.default_int_handler)

    with (
        (tmp_path / "out").open("w") as out,
        subprocess.Popen(command, stdout=out, stderr=out, preexec_fn=heed) as process,
    ):
        try:
            wait_until(lambda: "ready" in (tmp_path / "out").read_text(), "it shows the model")
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 0
        finally:
            process.kill()
    shown = (tmp_path / "out").read_text()
    for part in ("fleet", "beast", "one", "ready", "GiB"):
        assert part in shown
