"""Types that threads use are known before."""

import subprocess
import sys
from pathlib import Path

import pytest

from gateway import startup
from neuron import daemon
from neuron.config import NeuronConfig

# Without `learn_structs` it ends with SIGSEGV, mostly in one of the first rounds.
THREADS = """
import sys
from threading import Barrier, Thread

import msgspec

from ipc.structs import learn_structs


def decode(kind, together):
    together.wait()
    msgspec.json.decode(b'{"f0": [{"values": {"a": [1]}}], "f39": []}', type=kind)


sys.setswitchinterval(1e-6)
for _ in range(200):
    inner = msgspec.defstruct("Inner", [("values", dict[str, list[int]])])
    kind = msgspec.defstruct("Outer", [(f"f{i}", list[inner] | None, None) for i in range(40)])
    learn_structs()
    together = Barrier(4)
    threads = [Thread(target=decode, args=(kind, together)) for _ in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
"""


def test_threads_may_decode_a_type_at_once_for_the_first_time():
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", THREADS], cwd=root, check=True, timeout=150)


class Learned(Exception):
    """It was called."""


@pytest.fixture
def learning(monkeypatch):
    def learn():
        raise Learned

    for module in (daemon, startup):
        monkeypatch.setattr(module, "learn_structs", learn)


def test_a_neuron_knows_them_before_it_serves(learning, monkeypatch):
    monkeypatch.setattr(daemon, "serve", None)
    with pytest.raises(Learned):
        daemon.run(NeuronConfig())


def test_a_gateway_process_knows_them_before_it_serves(learning, monkeypatch):
    monkeypatch.setattr(startup.metrics_directory, "ensure", lambda: None)
    monkeypatch.setattr("gateway.http.application.Gateway", None)
    with pytest.raises(Learned):
        startup.application()
