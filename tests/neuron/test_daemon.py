"""The process: how it starts, refuses to start, and ends."""

import json
import os
import signal
import socket
import subprocess
import sys

import pytest

from ipc.blocking_client import BlockingClient
from ipc.errors import Code
from ipc.keys import generate, load_public, load_secret
from ipc.messages.replies import Delta, HelloReply, State
from ipc.messages.requests import Hello, Watch
from ipc.version import version
from tests.neuron.harness import PATIENCE, ROOT, Neuron, chat, is_running, simulated, wait_until


def neuron_command(*args, **options):
    """Run the `neuron` command to its end."""
    command = [sys.executable, "-m", "neuron", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, cwd=ROOT, **options)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_with_all_its_workers(tmp_path, number):
    model = simulated("sim", step_seconds=0.01, settings={"ranks": 2})
    with Neuron(tmp_path, [model]) as neuron, neuron.client() as client:
        stream = client.stream(chat("sim", 30_000), PATIENCE)
        while not isinstance(next(stream), Delta):
            pass
        workers = neuron.children()
        assert len(workers) == 2
        neuron.process.send_signal(number)
        failed = list(stream)[-1]
        assert failed.code == Code.SHUTTING_DOWN
        assert neuron.process.wait(PATIENCE) == 0
        assert not any(map(is_running, workers))


def test_it_ends_while_a_model_loads(tmp_path):
    model = simulated("sim", load_seconds=60, settings={"pin": True})
    with Neuron(tmp_path, [model]) as neuron:
        [worker] = wait_until(neuron.children, "the worker to start")
        neuron.process.terminate()
        assert neuron.process.wait(PATIENCE) == 0
        assert not is_running(worker)
        assert "Traceback" not in neuron.log


def test_it_ends_when_a_worker_does_not_answer(tmp_path):
    with Neuron(tmp_path, [simulated("sim", settings={"pin": True})]) as neuron:
        neuron.wait_for("sim", status="ready")
        [worker] = neuron.workers("sim")
        os.kill(worker, signal.SIGSTOP)
        neuron.process.terminate()
        assert neuron.process.wait(PATIENCE) == 0
        assert not is_running(worker)


def test_a_port_in_use_is_one_line_and_exit_code_1(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        (tmp_path / "n.yaml").write_text(f"listen: tcp://127.0.0.1:{port}")
        ended = neuron_command("serve", "--config", tmp_path / "n.yaml")
    assert ended.returncode == 1
    [line] = ended.stderr.splitlines()
    assert f"127.0.0.1:{port}" in line
    assert "in use" in line


def test_off_loopback_without_keys_it_does_not_start(tmp_path):
    (tmp_path / "n.yaml").write_text("listen: tcp://0.0.0.0:*")
    ended = neuron_command("serve", "--config", tmp_path / "n.yaml")
    assert ended.returncode == 1
    [line] = ended.stderr.splitlines()
    assert "cortex keygen" in line


def test_with_keys_only_known_clients_are_answered(tmp_path):
    mine, _ = generate(tmp_path, "gateway")
    theirs, public = generate(tmp_path, "neuron")
    keys = {"key_file": str(theirs), "allowed_keys": [str(tmp_path / "gateway.key")]}
    with Neuron(tmp_path, listen="tcp://0.0.0.0:*", **keys) as neuron:
        endpoint = neuron.endpoint.replace("0.0.0.0", "127.0.0.1")
        known = {"secret": load_secret(mine), "server_public": load_public(public)}
        with BlockingClient(endpoint, silence=PATIENCE, **known) as client:
            assert isinstance(client.ask(Hello(id=0), PATIENCE), HelloReply)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("modles: []", "modles"),
        ("models: [{id: a, ranks: 0}]", "models[0].ranks"),
        ("devices: [cuda:99]", "cuda:99"),
        ("models: [", "n.yaml"),
        ("key_file: /nope", "n.yaml: key_file: cannot read the key file /nope"),
        ("allowed_keys: [abc]", "n.yaml: allowed_keys[0]: cannot read the key file abc"),
    ],
)
def test_a_bad_configuration_is_one_line_that_names_the_thing(tmp_path, text, words):
    (tmp_path / "n.yaml").write_text(text)
    ended = neuron_command("serve", "--config", tmp_path / "n.yaml")
    assert ended.returncode == 1
    [line] = ended.stderr.splitlines()
    assert words in line


def test_readiness_is_told_to_the_service_manager(tmp_path, monkeypatch):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(PATIENCE)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        with Neuron(tmp_path) as neuron:
            assert manager.recv(100) == b"READY=1"
            neuron.process.terminate()
            assert manager.recv(100) == b"STOPPING=1"


def test_it_dies_with_the_parent_that_it_was_told_of(tmp_path):
    (tmp_path / "n.yaml").write_text("listen: tcp://127.0.0.1:*")
    parent = (
        "import os, subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-m', 'neuron', 'serve', '--config', sys.argv[1],\n"
        "                          '--die-with-parent', str(os.getpid())], stderr=subprocess.PIPE)\n"
        "child.stderr.readline()\n"
        "print(child.pid, flush=True)\n"
        "sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", parent, str(tmp_path / "n.yaml")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT) as started:
        child = int(started.stdout.readline())
        assert is_running(child)
        started.kill()
        wait_until(lambda: not is_running(child), "the neuron to die with its parent")


def test_why_a_gpu_is_not_used_is_said_at_the_start(tmp_path, monkeypatch):
    """By a warning: `cortex up` shows these, and the model that it loads is slow on the CPU."""
    (tmp_path / "pynvml.py").write_text(
        "class NVMLError(Exception): value = 18\n"
        "NVML_ERROR_LIB_RM_VERSION_MISMATCH = 18\n"
        "def nvmlInit(): raise NVMLError\n"
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(tmp_path), os.environ.get("PYTHONPATH", ""))))
    (tmp_path / "n.yaml").write_text("listen: tcp://127.0.0.1:*")
    command = [sys.executable, "-m", "neuron", "serve", "--config", str(tmp_path / "n.yaml")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT) as started:
        line = started.stderr.readline()
        started.terminate()
    assert "WARNING" in line
    assert "a GPU is not used reason=the NVIDIA driver was updated" in line
    ended = neuron_command("discover")
    assert "CUDA cannot be used: the NVIDIA driver was updated" in ended.stdout


def test_discover_shows_the_cpu(tmp_path):
    ended = neuron_command("discover", env=os.environ | {"COLUMNS": "160"})
    assert ended.returncode == 0
    assert "cpu" in ended.stdout


def test_check_says_what_would_fit(tmp_path):
    settings = {"only_configured": True, "cpu": {"memory": "8GiB"}}
    settings["models"] = [{"id": "a", "simulated": {"memory": "1GiB"}}]
    (tmp_path / "n.yaml").write_text(json.dumps(settings))
    environment = os.environ | {"COLUMNS": "200", "HF_HUB_CACHE": str(tmp_path)}
    ended = neuron_command("check", "--config", tmp_path / "n.yaml", env=environment)
    assert ended.returncode == 0
    assert "1.0 GiB" in ended.stdout


def test_check_places_a_real_model_on_a_cpu(tmp_path):
    (tmp_path / "n.yaml").write_text(
        '{"only_configured": true, "devices": ["cpu"], "models": [{"id": "demo"}]}'
    )
    environment = os.environ | {"COLUMNS": "200"}
    ended = neuron_command("check", "--config", tmp_path / "n.yaml", env=environment)
    assert ended.returncode == 0, ended.stdout
    assert "demo" in ended.stdout


def test_check_places_pinned_models_together(tmp_path):
    model = {"pin": True, "simulated": {"memory": "1.5GiB"}}
    models = [{"id": "a", **model}, {"id": "b", **model}, {"id": "c", "simulated": {"memory": "1.5GiB"}}]
    settings = {"only_configured": True, "cpu": {"memory": "2GiB"}, "models": models}
    (tmp_path / "n.yaml").write_text(json.dumps(settings))
    environment = os.environ | {"COLUMNS": "200", "HF_HUB_CACHE": str(tmp_path)}
    ended = neuron_command("check", "--config", tmp_path / "n.yaml", env=environment)
    assert ended.returncode == 1
    assert "a (pinned)" in ended.stdout
    assert "b: b needs at least 1.50 GiB" in ended.stdout
    assert "c: c needs at least 1.50 GiB" in ended.stdout


def test_check_ends_with_1_where_a_model_cannot_be_served(tmp_path):
    settings = {"only_configured": True, "models": [{"id": "a", "path": "/nonexistent/a"}]}
    (tmp_path / "n.yaml").write_text(json.dumps(settings))
    environment = os.environ | {"COLUMNS": "200", "HF_HUB_CACHE": str(tmp_path)}
    ended = neuron_command("check", "--config", tmp_path / "n.yaml", env=environment)
    assert ended.returncode == 1
    assert "/nonexistent/a" in ended.stdout


def test_whoever_watches_is_told_of_all_models_once_all_were_looked_for(tmp_path):
    names = {f"sim{number}" for number in range(20)}
    with Neuron(tmp_path, [simulated(name) for name in sorted(names)]) as neuron, neuron.client() as client:
        watch = client.stream(Watch(id=0), PATIENCE)
        found = next(reply for reply in watch if isinstance(reply, State) and not reply.searching)
        assert found.whole
        assert {state.id for state in found.models} >= names
        watch.close()


def test_it_says_which_version_it_is():
    ended = neuron_command("--version")
    assert (ended.returncode, ended.stdout) == (0, f"neuron {version()}\n")


WITHOUT_THE_EXTRA = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("jinja2", "llguidance", "numpy", "pynvml", "tokenizers", "torch"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
sys.argv = ["neuron", *sys.argv[1:]]
from neuron.cli import main
main()
"""


def test_without_its_extra_it_says_what_to_install_and_helps_all_the_same(tmp_path):
    def neuron(*arguments):
        command = [sys.executable, "-c", WITHOUT_THE_EXTRA, *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, cwd=ROOT)

    assert "check" in neuron("--help").stdout
    (tmp_path / "n.yaml").write_text("listen: tcp://127.0.0.1:*")
    for command in ("check", "serve"):
        ended = neuron(command, "--config", str(tmp_path / "n.yaml"))
        [line] = ended.stderr.splitlines()
        assert "pip install '.[neuron]'" in line
        assert ended.returncode == 1


def test_a_reload_is_no_end(tmp_path):
    with Neuron(tmp_path) as neuron, neuron.client() as client:
        neuron.process.send_signal(signal.SIGHUP)
        wait_until(lambda: "configuration read" in neuron.log, "its word on the signal")
        assert isinstance(client.ask(Hello(id=0), PATIENCE), HelloReply)


def test_the_end_of_its_terminal_ends_it(tmp_path):
    (tmp_path / "n.yaml").write_text("listen: tcp://127.0.0.1:*")
    command = [sys.executable, "-m", "neuron", "serve", "--config", str(tmp_path / "n.yaml")]
    ours, theirs = os.openpty()
    with subprocess.Popen(command, stdin=theirs, stderr=subprocess.PIPE, cwd=ROOT) as neuron:
        assert b"neuron listens" in neuron.stderr.readline()
        neuron.send_signal(signal.SIGHUP)
        assert neuron.wait(PATIENCE) == 0
    os.close(ours)
    os.close(theirs)


def test_the_end_of_a_request_is_logged_under_the_clients_id(tmp_path):
    with Neuron(tmp_path, [simulated("sim")]) as neuron, neuron.client() as client:
        for trace, word in (("abc-1", "abc-1"), ("a b\nc", r"'a b\nc'")):
            client.ask(chat("sim", 2, trace=trace), PATIENCE)
            wait_until(lambda word=word: f"trace={word} model=sim" in neuron.log, "its line")
