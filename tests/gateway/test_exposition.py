"""Metrics are those of all processes together, also when one of them is killed."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from prometheus_client.core import REGISTRY, CounterMetricFamily

from gateway.telemetry import exposition
from ipc.messages.state import RankState
from tests.gateway.conftest import ROOT, GatewayProcess, NeuronThread, eventually

JSON = {"content-type": "application/json"}
CHAT = "/v1/chat/completions"


@pytest.fixture
def pair(neuron: NeuronThread, tmp_path: Path) -> Iterator[GatewayProcess]:
    """A gateway of two processes."""
    process = GatewayProcess(tmp_path, neuron.endpoint, workers=2)
    try:
        process.wait_ready()
        eventually(lambda: len(process.workers()) == 2, "two processes")
        yield process
    finally:
        process.stop()


def ask(gateway: GatewayProcess, model: str, stream: bool = False) -> httpx.Response:
    fields = {"model": model, "stream": stream, "messages": [{"role": "user", "content": "one two three"}]}
    return httpx.post(gateway.base + CHAT, json=fields, trust_env=False)


def open_stream(gateway: GatewayProcess, model: str) -> socket.socket:
    body = json.dumps(
        {"model": model, "stream": True, "messages": [{"role": "user", "content": "x"}]}
    ).encode()
    client = socket.create_connection(("127.0.0.1", gateway.port), timeout=150)
    client.sendall(
        b"POST %s HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n" % CHAT.encode()
        + b"content-length: %d\r\n\r\n" % len(body)
        + body
    )
    assert client.recv(12) == b"HTTP/1.1 200"
    return client


def test_ranks_and_neurons_tell_for_how_long(gateway: GatewayProcess, neuron: NeuronThread) -> None:
    stuck = RankState(rank=0, pid=1, device="cpu", state="collective", step=3, age=7.5, memory=11)
    idle = RankState(rank=1, pid=2, device="cpu", state="ready", step=3, age=70.0, memory=12)
    neuron.neuron.ranks = {"echo": [stuck, idle]}
    try:
        told = gateway.metrics()
    finally:
        neuron.neuron.ranks = {}
    labels = 'model="echo",neuron="fake",rank='
    assert told[f'cortex_rank_busy_seconds{{{labels}"0"}}'] == 7.5
    assert told[f'cortex_rank_busy_seconds{{{labels}"1"}}'] == 0.0
    assert told[f'cortex_rank_memory{{{labels}"1"}}'] == 12
    assert told['cortex_neuron_uptime_seconds{neuron="fake"}'] == 1.0
    assert not any(name.startswith("cortex_rank_") for name in gateway.metrics())


def test_counts_are_the_sums_of_all_processes(pair: GatewayProcess) -> None:
    for i in range(20):  # each on a connection of its own, so both processes get some
        assert ask(pair, "echo", stream=i % 2 == 0).status_code == 200
    assert ask(pair, "fails/queue_full").status_code == 503
    assert ask(pair, "made-up-by-a-client").status_code == 404
    assert httpx.post(pair.base + CHAT, content=b"{", headers=JSON, trust_env=False).status_code == 400
    last = 'cortex_requests_total{model="unknown",neuron="",status="400"}'
    counts = eventually(lambda: last in (now := pair.metrics()) and now, "that the last one is counted")
    label = 'model="echo",neuron="fake"'
    assert counts[f'cortex_requests_total{{{label},status="200"}}'] == 20
    assert counts['cortex_requests_total{model="fails/queue_full",neuron="fake",status="503"}'] == 1
    assert counts['cortex_requests_total{model="unknown",neuron="",status="404"}'] == 1
    assert counts[last] == 1
    assert counts[f"cortex_prompt_tokens_total{{{label}}}"] == 60
    assert counts[f"cortex_completion_tokens_total{{{label}}}"] == 60
    assert counts[f"cortex_cached_prompt_tokens_total{{{label}}}"] == 20
    for name in ("time_to_first_token", "queue", "gateway_added", "request_duration"):
        assert counts[f"cortex_{name}_seconds_count{{{label}}}"] == 20
    assert counts[f"cortex_inter_token_seconds_count{{{label}}}"] <= 20
    assert counts['cortex_requests_in_flight{model="echo"}'] == 0
    refused = 'model="fails/queue_full",neuron="fake"'
    assert counts[f"cortex_request_errors_total{{{refused}}}"] == 1
    assert counts[f'cortex_model_rejections_total{{{refused},reason="queue_full"}}'] == 1
    assert counts['cortex_placement_seconds_count{model="echo"}'] == 20


def test_state_of_the_fleet_comes_from_the_neurons(pair: GatewayProcess) -> None:
    counts = pair.metrics()
    assert counts['cortex_neuron_up{neuron="fake"}'] == 1
    assert counts['cortex_model_pages_free{model="echo",neuron="fake"}'] == 50
    assert counts['cortex_device_memory_free{device="cpu",neuron="fake"}'] == 1 << 29


def connections(pid: int, port: int) -> int:
    """How many a process holds of those that came in at a port."""
    held = psutil.Process(pid).net_connections("tcp")
    return sum(each.laddr.port == port and each.status == psutil.CONN_ESTABLISHED for each in held)


def test_process_killed_in_mid_stream_takes_only_its_own_requests(
    pair: GatewayProcess, neuron: NeuronThread
) -> None:
    streams = [open_stream(pair, "stuck") for _ in range(12)]
    in_flight = 'cortex_requests_in_flight{model="stuck"}'
    eventually(lambda: pair.metrics()[in_flight] == 12, "twelve requests are in flight")
    cancelled = neuron.neuron.cancelled
    # Which process takes a connection is the kernel's choice, and it may choose one for all of them.
    other, victim = sorted(pair.workers(), key=lambda pid: connections(pid, pair.port))
    os.kill(victim, signal.SIGKILL)
    eventually(lambda: neuron.neuron.cancelled - cancelled, "the neuron drops what the dead had asked for")
    eventually(
        lambda: pair.metrics().get(in_flight, 0) == neuron.working("stuck") < 12,
        "the dead have nothing in flight",
    )
    cut = neuron.neuron.cancelled - cancelled
    eventually(lambda: len(pair.workers()) == 2, "another process takes its place")
    assert other in pair.workers()
    for _ in range(6):
        assert ask(pair, "echo").status_code == 200
    ended = 0
    for stream in streams:
        stream.settimeout(0.05)
        try:
            data = stream.recv(65536)
            while data:
                data = stream.recv(65536)
            ended += 1
        except ConnectionResetError:
            ended += 1
        except TimeoutError:
            continue
        finally:
            stream.close()
    assert ended == cut
    eventually(lambda: not neuron.working("stuck"), "the others are cancelled when they leave")


@pytest.fixture(scope="module")
def exposed(gateway: GatewayProcess) -> str:
    """What a gateway says that has answered something."""
    for model in ("echo", "cold/none", "fails/queue_full"):
        ask(gateway, model)
    return httpx.get(f"http://127.0.0.1:{gateway.metrics_port}/metrics", trust_env=False).text


# What `promtool check metrics` finds wrong in names.
ABBREVIATED = {"s", "ms", "us", "ns", "sec", "b", "kb", "mb", "gb", "tb", "m", "h", "d", "pct"}
KINDS = {"gauge", "counter", "histogram", "summary", "untyped", "info"}


def test_names_are_as_prometheus_wants_them(exposed: str) -> None:
    kinds = dict(line.split()[2:4] for line in exposed.splitlines() if line.startswith("# TYPE "))
    helps = dict(line.split(None, 3)[2:] for line in exposed.splitlines() if line.startswith("# HELP "))
    assert kinds.keys() == helps.keys()
    for name, kind in kinds.items():
        assert kind in KINDS
        assert name.endswith("_total") == (kind == "counter"), name
        assert not set(name.split("_")) & (ABBREVIATED | KINDS), name
        assert name == name.lower()
        assert helps[name]


@pytest.mark.skipif(shutil.which("promtool") is None, reason="Prometheus' own check is not installed")
def test_promtool_has_nothing_to_say(exposed: str) -> None:
    checked = subprocess.run(
        ["promtool", "check", "metrics"], input=exposed, text=True, capture_output=True, timeout=60
    )
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


def names_in(exposed: str) -> set[str]:
    """Of all series that there may be, those included in which nothing was counted yet."""
    kinds = {line.split()[2] for line in exposed.splitlines() if line.startswith("# TYPE ")}
    kinds |= {family.name for family in REGISTRY.collect()}
    return {f"{name}{end}" for name in kinds for end in ("", "_total", "_bucket")}


# What dashboards of the system before this one ask for, but for what Prometheus would not have in a name.
KNOWN = {
    "counter": """requests_total request_errors_total cold_starts_total prompt_tokens_total
        completion_tokens_total cached_prompt_tokens_total evictions_total spend_tokens_total
        spend_prompt_tokens_total spend_completion_tokens_total model_rejections_total""",
    "histogram": "request_duration_seconds time_to_first_token_seconds tokens_per_second",
    "gauge": "model_in_flight model_queue_depth model_max_in_flight",
}


def test_names_that_dashboards_know_are_there(exposed: str) -> None:
    kinds = dict(line.split()[2:4] for line in exposed.splitlines() if line.startswith("# TYPE "))
    there = kinds | {f"{family.name}_total": family.type for family in REGISTRY.collect()}
    there |= {family.name: family.type for family in REGISTRY.collect()}
    for kind, names in KNOWN.items():
        assert {name: there.get(f"cortex_{name}") for name in names.split()} == dict.fromkeys(
            names.split(), kind
        )


def test_all_that_the_documentation_names_is_there(exposed: str) -> None:
    page = (ROOT / "docs" / "operations.md").read_text()
    rows = re.findall(r"^\| (`cortex_.*?) \|", page, re.M)
    named = {name for row in rows for name in re.findall(r"`(cortex_\w+)`", row)}
    assert len(named) > 20
    assert named <= names_in(exposed), named - names_in(exposed)


def test_the_dashboard_shows_what_there_is(exposed: str) -> None:
    board = json.loads((ROOT / "docs" / "grafana.json").read_text())
    there = names_in(exposed)
    asked = {
        name
        for panel in board["panels"]
        for target in panel["targets"]
        for name in re.findall(r"cortex_\w+", target["expr"])
    }
    assert asked
    assert asked <= there, asked - there
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])


def test_counts_of_a_model_that_is_gone_are_not_shown() -> None:
    class Counts:
        def collect(self) -> Iterator[CounterMetricFamily]:
            family = CounterMetricFamily("x", "Of models.", labels=["model"])
            for model in ("here", "gone", "unknown"):
                family.add_metric([model], 1)
            family.add_sample("y_total", {}, 1)
            yield family

    (family,) = exposition.OfKnownModels(Counts(), "here".__eq__).collect()
    assert [sample.labels.get("model") for sample in family.samples] == ["here", "unknown", None]


def test_what_ends_in_total_is_a_counter(gateway: GatewayProcess) -> None:
    """Prometheus keeps that ending for counters, and so do its rules."""
    text = httpx.get(f"http://127.0.0.1:{gateway.metrics_port}/metrics", trust_env=False).text
    kinds = dict(line.split()[2:4] for line in text.splitlines() if line.startswith("# TYPE "))
    assert {"cortex_model_pages", "cortex_device_memory"} <= kinds.keys()
    assert {kind for name, kind in kinds.items() if name.endswith("_total")} == {"counter"}


FORKED = """
import os
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client import CollectorRegistry
from gateway.telemetry import metrics

counts = metrics.of("m", "n")
for process in (counts, metrics.of("m", "other")):
    process.prompt_tokens.inc(3)
    process.duration.observe(0.2)
if not os.fork():
    counts.prompt_tokens.inc(4)
    counts.duration.observe(7.0)
    os._exit(0)
os.wait()
counts.prompt_tokens.inc(10)
counts.inter_token.observe_many(0.004, 5)
registry = CollectorRegistry()
MultiProcessCollector(registry)
labels = {"model": "m", "neuron": "n"}
for name, more in (
    ("prompt_tokens_total", {}),
    ("request_duration_seconds_sum", {}),
    ("request_duration_seconds_count", {}),
    ("request_duration_seconds_bucket", {"le": "0.25"}),
    ("request_duration_seconds_bucket", {"le": "10.0"}),
    ("inter_token_seconds_count", {}),
):
    print(registry.get_sample_value(f"cortex_{name}", labels | more))
"""


def test_what_is_counted_before_a_fork_and_on_both_sides_of_it_is_all_there(tmp_path: Path) -> None:
    environment = os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    told = subprocess.run([sys.executable, "-c", FORKED], env=environment, capture_output=True, text=True)
    assert told.stdout.split() == ["17.0", "7.2", "2.0", "1.0", "2.0", "5.0"], told.stderr
