"""With `log_format: json` every process of gateway and neuron writes JSON, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.end_to_end.harness import Services, wait_until
from tests.neuron.harness import simulated


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_line_is_an_object(tmp_path: Path) -> None:
    neuron = {"models": [simulated("m")], "only_configured": True, "standby": False, "log_format": "json"}
    with Services(tmp_path, neuron, {"log_format": "json"}) as services:
        wait_until(services.ready, "the gateway")
        assert services.chat(model="m").status_code == 200
    (ended,) = [line for line in lines(services.gateway.log) if line["event"] == "request ended"]
    assert (ended["model"], ended["status"], ended["completion_tokens"]) == ("m", 200, 8)
    told = lines(services.neuron.log)
    assert any(line.get("rank") == 0 and line["event"] == "rank ready" for line in told)
    (same,) = [line for line in told if line["event"] == "request finished"]
    assert same["trace"] == ended["request_id"]
