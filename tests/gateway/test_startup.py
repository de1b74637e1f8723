"""What cannot work is refused at the start, in words, and gunicorn ends instead of trying for ever."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.gateway.conftest import PATIENCE, ROOT, GatewayProcess, NeuronThread, eventually
from tests.ports import free_ports


def start(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run gunicorn in `folder` until it gives up."""
    return subprocess.run(
        [sys.executable, "-m", "gunicorn", *arguments, "gateway:app"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(folder)} | variables,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )


@pytest.mark.parametrize("worker", ["sync", "gthread", "asgi"])
def test_wrong_worker_class_is_named_once_and_nothing_is_left_running(tmp_path: Path, worker: str) -> None:
    (tmp_path / "gunicorn.conf.py").write_text("from gateway.gunicorn_conf import *\n")
    ended = start(tmp_path, "--worker-class", worker)
    assert ended.returncode != 0
    assert ended.stderr.count("cortex needs its own kind of gunicorn's asgi worker") == 1
    assert "gunicorn -c python:gateway.gunicorn_conf gateway:app" in ended.stderr


def test_directory_without_gunicorn_settings_is_told_the_command_that_works(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    ended = start(tmp_path, "--bind", f"127.0.0.1:{port}", "--no-control-socket")
    assert ended.returncode != 0
    assert ended.stderr.count("gunicorn -c python:gateway.gunicorn_conf gateway:app") == 1


def test_bad_configuration_is_one_line_with_file_key_and_value(tmp_path: Path) -> None:
    path = tmp_path / "cortex.toml"
    path.write_text("[gateway]\nlisten = 'here'\n")
    ended = start(tmp_path, "-c", "python:gateway.gunicorn_conf")
    assert ended.returncode != 0
    assert ended.stderr == "cortex: cortex.toml: gateway.listen: Expected host:port, not 'here'\n"


@pytest.mark.parametrize("which", ["listen", "metrics_listen"])
def test_port_in_use_is_one_line_that_names_it(tmp_path: Path, which: str) -> None:
    (other,) = free_ports(1)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ports = {"listen": other, "metrics_listen": other} | {which: port}
        lines = "".join(f"{key} = '127.0.0.1:{value}'\n" for key, value in ports.items())
        (tmp_path / "cortex.toml").write_text("[gateway]\n" + lines)
        ended = start(tmp_path, "-c", "python:gateway.gunicorn_conf")
    assert ended.returncode != 0
    assert ended.stderr.splitlines()[-1].startswith(f"cortex: cannot listen on 127.0.0.1:{port}: ")


def test_path_in_use_is_one_line_that_names_it_and_stays_whose_it_is(tmp_path: Path) -> None:
    path = tmp_path / "gateway"
    with socket.socket(socket.AF_UNIX) as taken:
        taken.bind(str(path))
        taken.listen()
        ended = start(tmp_path, "-c", "python:gateway.gunicorn_conf", "--bind", f"unix:{path}")
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
    assert ended.returncode != 0
    assert ended.stderr.splitlines()[-1] == f"cortex: cannot listen on {path}: Address already in use"


def test_gateway_leaves_no_file_behind(neuron: NeuronThread, tmp_path: Path) -> None:
    (tmp_path / "cortex-metrics-of-1-left").mkdir()  # by one that was killed
    process = GatewayProcess(tmp_path, neuron.endpoint)
    process.wait_ready()
    assert len(list(tmp_path.glob("cortex-metrics-*"))) == 1
    process.stop()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cortex.yaml", "log"]


def test_process_told_to_stop_while_it_starts_stops(neuron: NeuronThread, tmp_path: Path) -> None:
    process = GatewayProcess(tmp_path, neuron.endpoint, "--graceful-timeout", "600", workers=2)
    eventually(lambda: len(process.workers()) == 2, "two processes, of which none is ready")
    process.stop()


def test_bind_on_the_command_line_wins_and_metrics_stay(neuron: NeuronThread, tmp_path: Path) -> None:
    (port,) = free_ports(1)
    process = GatewayProcess(tmp_path, neuron.endpoint, "--bind", f"127.0.0.1:{port}")
    try:
        process.base = f"http://127.0.0.1:{port}"
        process.wait_ready()
        assert process.metrics()['cortex_neuron_up{neuron="fake"}'] == 1
    finally:
        process.stop()


def test_metrics_stay_at_a_reload_beside_a_bind_on_the_command_line(
    neuron: NeuronThread, tmp_path: Path
) -> None:
    (port,) = free_ports(1)
    process = GatewayProcess(tmp_path, neuron.endpoint, "--bind", f"127.0.0.1:{port}")
    path = tmp_path / "cortex.yaml"
    try:
        process.base = f"http://127.0.0.1:{port}"
        process.wait_ready()
        path.write_text(path.read_text().replace('"fake"', '"renamed"'))
        process.process.send_signal(1)
        eventually(lambda: names(process) == ["renamed"], "the new configuration is used")
        # The old process still answers until it has ended.
        eventually(lambda: process.metrics().get('cortex_neuron_up{neuron="renamed"}') == 1, "so do metrics")
    finally:
        process.stop()


def test_reload_takes_the_new_configuration_or_keeps_the_old_one(
    neuron: NeuronThread, tmp_path: Path
) -> None:
    process = GatewayProcess(tmp_path, neuron.endpoint)
    path = tmp_path / "cortex.yaml"
    text = path.read_text()
    try:
        process.wait_ready()
        path.write_text(text.replace('"fake"', '"renamed"'))
        process.process.send_signal(1)
        eventually(lambda: names(process) == ["renamed"], "the new configuration is used")
        path.write_text("nonsense: 1")
        process.process.send_signal(1)
        eventually(lambda: "the old configuration stays" in process.log.read_text(), "it is refused")
        eventually(lambda: names(process) == ["renamed"], "the gateway serves as before")
    finally:
        process.stop()


def names(process: GatewayProcess) -> list[str]:
    try:
        health = httpx.get(f"{process.base}/health", trust_env=False).json()
    except httpx.TransportError:
        return []
    return [neuron["name"] for neuron in health["neurons"]]


@pytest.mark.parametrize(("host", "words"), [("0.0.0.0", 1), ("127.0.0.1", 0)])
def test_an_api_that_serves_whoever_reaches_it_says_so_once(
    neuron: NeuronThread, tmp_path: Path, host: str, words: int
) -> None:
    (port,) = free_ports(1)
    access = {"anonymous": True}
    process = GatewayProcess(tmp_path, neuron.endpoint, access=access, workers=2, listen=f"{host}:{port}")
    process.base = f"http://127.0.0.1:{port}"
    try:
        process.wait_ready()
        assert process.log.read_text().count("serves whoever reaches it") == words
    finally:
        process.stop()


@pytest.mark.parametrize("where", ["listen", "--bind"])
def test_an_api_that_others_can_reach_does_not_start_without_keys(tmp_path: Path, where: str) -> None:
    address = f"0.0.0.0:{free_ports(1)[0]}"
    lines = [f"listen = '{address}'"] if where == "listen" else []
    (tmp_path / "cortex.toml").write_text("\n".join(["[gateway]", *lines, "[access]", "path = 'keys.db'"]))
    bind = ("--bind", address) if where == "--bind" else ()
    ended = start(tmp_path, "-c", "python:gateway.gunicorn_conf", *bind)
    assert ended.returncode != 0
    said = ended.stderr.splitlines()[-1]
    assert address in said
    assert "cortex keys create NAME" in said
    assert not (tmp_path / "keys.db").exists()


@pytest.mark.parametrize("how", ["systemd", "fd", "upgrade"])
def test_a_socket_that_is_handed_over_is_looked_at_whatever_is_configured(tmp_path: Path, how: str) -> None:
    (tmp_path / "cortex.toml").write_text("access.path = 'keys.db'\ngateway.metrics_listen = '127.0.0.1:1'")
    gunicorn = f"{sys.executable} -m gunicorn -c python:gateway.gunicorn_conf gateway:app"
    with socket.create_server(("0.0.0.0", 0)) as handed:
        port = handed.getsockname()[1]
        command = {
            "systemd": f"export LISTEN_FDS=1 LISTEN_PID=$$; exec {gunicorn} 3<&0",
            "fd": f"exec {gunicorn} --bind fd://3 3<&0",
            "upgrade": f"export GUNICORN_PID=$$ GUNICORN_FD=3; exec {gunicorn} 3<&0",
        }[how]
        ended = subprocess.run(
            ["sh", "-c", command],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)},
            stdin=handed,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
    assert ended.returncode != 0
    said = ended.stderr.splitlines()[-1]
    assert f"0.0.0.0:{port}" in said
    assert "cortex keys create NAME" in said


def test_a_store_of_keys_that_cannot_be_read_stops_the_start_off_loopback(tmp_path: Path) -> None:
    (tmp_path / "keys.db").write_text("no database " * 100)
    lines = ("[gateway]", f"listen = '0.0.0.0:{free_ports(1)[0]}'", "[access]", "path = 'keys.db'")
    (tmp_path / "cortex.toml").write_text("\n".join(lines))
    ended = start(tmp_path, "-c", "python:gateway.gunicorn_conf")
    assert ended.returncode != 0
    assert ended.stderr.splitlines()[-1].startswith("cortex: the store of keys, keys.db, cannot be used: ")
