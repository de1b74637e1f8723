"""One catalogue for a gateway and two neurons, as they run: what changes in the file counts on both hosts."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

import gateway.config
import gateway.fleet.view
from tests.end_to_end.harness import PATIENCE, Program, is_ready, wait_until
from tests.gateway.fleets import eventually
from tests.neuron.harness import Neuron, simulated
from tests.ports import free_port


def entry(name: str, **keys: Any) -> dict[str, Any]:
    return {"id": name, "simulated": {}, **keys}


class Fleet:
    """A gateway of two processes in front of two neurons, `a` and `b`."""

    def __init__(self, folder: Path, endpoints: dict[str, str]) -> None:
        self.catalogue = folder / "models.yaml"
        port, metrics = free_port(), free_port()
        self.base = f"http://127.0.0.1:{port}"
        gateway = {"listen": f"127.0.0.1:{port}", "metrics_listen": f"127.0.0.1:{metrics}", "workers": 2}
        config = {
            "gateway": gateway,
            "store": {"enabled": False},
            "models_config": "models.yaml",
            "neurons": [{"name": name, "endpoint": each} for name, each in endpoints.items()],
        }
        self.config = folder / "cortex.yaml"
        self.config.write_text(json.dumps(config))
        self._folder = folder

    def say(self, *models: dict[str, Any], **more: Any) -> None:
        """Put another catalogue in place."""
        new = self.catalogue.with_suffix(".new")
        new.write_text(json.dumps({"models": models, **more}))
        new.rename(self.catalogue)

    def start(self) -> Program:
        return Program("cortex", "serve", "--config", self.config, folder=self._folder)

    def ready(self) -> bool:
        return is_ready(self.base)

    def listed(self) -> dict[str, dict[str, Any]]:
        data = httpx.get(f"{self.base}/v1/models", timeout=PATIENCE).json()["data"]
        return {each["id"]: each for each in data}

    def places(self, model: str) -> set[str]:
        """The neurons that say that they have it."""
        return {each["neuron"] for each in self.listed().get(model, {"locations": []})["locations"]}

    def tokens(self, model: str) -> int | None:
        """Of an answer that may have 100; None where there is none."""
        message = {"role": "user", "content": "Hello!"}
        body = {"model": model, "messages": [message], "max_tokens": 100}
        response = httpx.post(f"{self.base}/v1/chat/completions", json=body, timeout=PATIENCE)
        return response.json().get("usage", {}).get("completion_tokens")

    def health(self) -> dict[str, Any]:
        return httpx.get(f"{self.base}/health", timeout=PATIENCE).json()

    def impaired(self) -> dict[str, Any] | None:
        """The health, as a process says it that has seen that the file cannot be used."""
        health = self.health()
        return health if health["catalogue"]["error"] else None


@pytest.fixture
def hosts(tmp_path: Path):
    own = [simulated("own", settings={"priority": 1})]
    with Neuron(tmp_path / "a", own) as a, Neuron(tmp_path / "b") as b:
        yield {"a": a, "b": b}


def test_what_the_file_says_counts_on_both_hosts_and_a_change_touches_only_what_changed(
    hosts, tmp_path
) -> None:
    fleet = Fleet(tmp_path, {name: each.endpoint for name, each in hosts.items()})
    fleet.say(
        entry("everywhere", aliases=["gpt-4o"], max_output=4, cost={"input": 1, "output": 2}),
        entry("here", pinned_on=["b"]),
        entry("own", priority=2),
    )
    with fleet.start() as program:
        wait_until(fleet.ready, "the gateway to be ready")
        wait_until(lambda: fleet.places("everywhere") == {"a", "b"}, "both hosts to be told")
        wait_until(lambda: fleet.places("here") == {"b"}, "one host to be told")
        assert fleet.tokens("gpt-4o") == 4
        listed = fleet.listed()["gpt-4o"]
        assert (listed["alias_of"], listed["max_output_tokens"]) == ("everywhere", 4)
        assert listed["cost"] == {"input": 1.0, "output": 2.0}
        at_a = next(each for each in fleet.health()["neurons"] if each["name"] == "a")["catalogue"]
        assert at_a["own"] == {"own": ["priority"]}
        assert at_a["origin"] == f"{socket.gethostname()}:{fleet.catalogue}"
        assert hosts["a"].model("own").priority == 1

        serving = next(each for each in hosts.values() if each.model("everywhere").status == "ready")
        workers = serving.workers("everywhere")
        fleet.say(entry("everywhere", aliases=["claude-*"], max_output=6), entry("new", pinned_on=["a"]))
        wait_until(lambda: fleet.places("new") == {"a"}, "a change to count")
        wait_until(lambda: not fleet.places("here"), "a model to be gone")
        wait_until(lambda: "gpt-4o" not in fleet.listed(), "its old name to be gone")
        # Either process may answer, and the next change is no good: both have to have read this one.
        wait_until(lambda: {fleet.tokens("claude-3") for _ in range(12)} == {6}, "its limit to count")
        assert serving.workers("everywhere") == workers

        version = fleet.health()["catalogue"]["version"]
        fleet.catalogue.write_text("models:\n- id: everywhere\n  rank: 2\n")
        health = wait_until(fleet.impaired, "its word on the file")
        assert health["status"] == "impaired"
        assert "models[0].rank: unknown key" in health["catalogue"]["error"]
        assert "(line 3)" in health["catalogue"]["error"]
        assert health["catalogue"]["version"] == version
        assert fleet.tokens("claude-3") == 6

        # New processes go on with what the old ones had: the copy that those left.
        old = {process.pid for process in program.family()}
        program.process.send_signal(signal.SIGHUP)
        wait_until(lambda: not old & {process.pid for process in program.family()}, "other processes")
        health = wait_until(fleet.impaired, "a new process")
        assert health["catalogue"]["version"] == version
        assert fleet.tokens("claude-3") == 6


def test_of_two_gateways_the_newer_file_counts_and_the_other_one_says_so(tmp_path) -> None:
    def fleet(name: str, written: float, endpoint: str) -> gateway.fleet.view.Fleet:
        path = tmp_path / f"{name}.yaml"
        path.write_text(json.dumps({"models": [entry(name)]}))
        os.utime(path, (written, written))
        places = [gateway.config.NeuronSettings(name="a", endpoint=endpoint)]
        return gateway.fleet.view.Fleet(gateway.config.GatewayConfig(neurons=places, models_config=str(path)))

    async def scenario(endpoint: str) -> None:
        fleets = fleet("newer", 1.7e9, endpoint), fleet("older", 1e9, endpoint)
        newer, older = (each.neurons[0].catalogue for each in fleets)
        try:
            for each, at in zip(fleets, (newer, older), strict=True):  # the older one speaks last
                await each.start(patience=PATIENCE)
                await eventually(partial(getattr, at, "reply"))
            assert older.told()["origin"] == newer.told()["origin"]
            assert older.told()["origin"].endswith("/newer.yaml")
            assert fleets[1].knows("newer")
            assert not fleets[1].knows("older")
        finally:
            for each in fleets:
                await each.stop()

    with Neuron(tmp_path / "a") as neuron:
        asyncio.run(scenario(neuron.endpoint))
        assert "passed_over" in neuron.log
