"""`cortex status` shows what `/health` says, for people and for programs."""

import io
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import msgspec
import pytest
from rich.console import Console
from typer.testing import CliRunner

from gateway.commands import status
from gateway.commands.cli import app
from ipc.messages.state import Device, ModelState

GIB = 1 << 30
BEAST = status.NeuronHealth(
    name="beast",
    endpoint="tcp://beast.internal:13131",
    healthy=True,
    reason="",
    draining=False,
    version="0.1.0",
    devices=[
        Device(
            id="cuda:0",
            kind="cuda",
            name="RTX 5090",
            memory_total=32 * GIB,
            memory_free=12 * GIB,
            memory_reserved=18 * GIB,
            utilization=0.5,
            temperature=61.0,
        )
    ],
    models=[
        ModelState(id="Qwen/Qwen3-8B", status="ready", bytes_measured=17 * GIB, running=3, waiting=2),
        ModelState(id="large", status="loading", progress=0.4, seconds_left=3.2),
        ModelState(id="kept", status="ready", pinned=True),
        ModelState(id="closed", status="ready", drained=True),
        ModelState(id="ending", status="ready", retired=True),
        ModelState(id="dressed", status="ready", adapters=["a", "b", "c"], adapters_loaded=["a", "c"]),
        ModelState(id="near", status="unloaded", bytes_parked=3 * GIB),
        ModelState(id="broken", status="failed", error="a shard is missing"),
    ],
)
AWAY = status.NeuronHealth("attic", "tcp://attic:13131", False, "no answer within 5 s", False, "", [], [])
FLEET = status.FleetHealth("impaired", [BEAST, AWAY])


@pytest.fixture
def gateway():
    """Something that answers GET with `gateway.body`."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(server.body)

        def log_message(self, *arguments):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    server.body = msgspec.json.encode(FLEET)
    server.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def lines_of(fleet: status.FleetHealth) -> list[list[str]]:
    out = io.StringIO()
    status.show(fleet, Console(file=out, width=200))
    return [line.split() for line in out.getvalue().splitlines()]


def line_with(word: str, fleet: status.FleetHealth = FLEET) -> list[str]:
    return next(line for line in lines_of(fleet) if line and line[0] == word)


def test_a_device_shows_what_is_used_of_it():
    assert {"20.0", "18.0", "32.0", "50%", "61"} <= set(line_with("cuda:0"))


def test_a_model_shows_status_memory_and_requests():
    line = line_with("Qwen/Qwen3-8B")
    assert line[1:5] == ["beast", "ready", "17.0", "GiB"]
    assert line[-3:] == ["3", "2", "0"]


def test_a_load_shows_how_far_it_is_and_a_failure_why():
    assert "loading 40%, 3 s left" in " ".join(line_with("large"))
    assert "shard" in line_with("broken")


def test_a_pinned_model_says_so():
    assert line_with("kept")[2:4] == ["ready,", "pinned"]


def test_a_model_that_takes_nothing_new_says_so():
    assert line_with("closed")[2:4] == ["ready,", "drained"]


def test_a_model_that_only_ends_what_it_has_begun_says_so():
    assert "ready, no longer served" in " ".join(line_with("ending"))


def test_a_model_says_which_adapters_are_in_memory():
    assert "ready, with a, c" in " ".join(line_with("dressed"))


def test_a_model_whose_weights_are_in_memory_says_so():
    assert "unloaded, parked (3.0 GiB)" in " ".join(line_with("near"))


def test_a_lost_neuron_says_why():
    assert line_with("attic")[1:4] == ["lost:", "no", "answer"]


def test_the_command_prints_tables_without_control_characters(gateway):
    result = CliRunner().invoke(app, ["status", "--endpoint", gateway.url])
    assert result.exit_code == 0
    assert "Qwen/Qwen3-8B" in result.stdout
    assert all(character.isprintable() or character == "\n" for character in result.stdout)


def test_json_is_what_the_gateway_said(gateway):
    result = CliRunner().invoke(app, ["status", "--endpoint", f"{gateway.url}/", "--json"])
    assert msgspec.json.decode(result.stdout) == msgspec.json.decode(gateway.body)


def test_something_else_behind_the_address_is_told_from_a_gateway(gateway):
    gateway.body = b"<html>hello</html>"
    result = CliRunner().invoke(app, ["status", "--endpoint", gateway.url])
    assert result.exit_code == 1
    assert "no cortex gateway" in result.stderr


def test_a_catalogue_that_cannot_be_used_is_told_of():
    catalogue = status.CatalogueHealth("/m.yaml", "/m.yaml: models[0].id: no")
    fleet = status.FleetHealth("impaired", [BEAST], catalogue)
    assert line_with("the", fleet)[1:3] == ["catalogue", "stays"]
    assert line_with("the", fleet)[-1] == "no"
