"""A worker process: what it does before, between and after the ranks that it is."""

import gc
import os
import re
import signal
import subprocess
import sys
import weakref
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest

import workers
from ipc.control import Control
from ipc.worker_messages import Waiting, WarmUp
from tests.workers.engines import make_spec
from workers.process import life

PATIENCE = 120.0  # seconds


@pytest.fixture
def worker():
    """A process without orders, and the line to it."""
    control, theirs = Control.pair()
    with control, theirs:
        fd = theirs.fileno()
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "workers"),
                *("--control-fd", str(fd), "--supervisor-pid", str(os.getpid())),
            ],
            pass_fds=[fd],
            stderr=subprocess.PIPE,
        )
        theirs.close()
        yield process, control
    process.kill()
    process.wait(PATIENCE)
    process.stderr.close()


def test_a_warm_process_says_what_it_holds_and_that_is_its_baseline_until_sigterm_ends_it(worker):
    process, control = worker
    control.send(WarmUp(device="cpu"))
    report = control.receive()
    assert isinstance(report, Waiting)
    assert report.loads == 0
    assert report.baseline.host > 1 << 20
    assert abs(report.held.host - report.baseline.host) < 4 << 20
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE) == 0
    assert process.stderr.read() == b""


def test_a_load_collects_no_garbage_among_what_was_imported_before_it(monkeypatch):
    class Cycle:
        pass

    walked, ended = [], []

    def serve(spec):
        walked.append(len(gc.get_objects()))  # of all that a collection would look at
        cycle = Cycle()
        cycle.itself = cycle
        weakref.finalize(cycle, ended.append, spec.epoch)
        gc.freeze()  # as a load does with its model
        return True

    orders = [WarmUp(device="cpu"), make_spec(epoch=1), make_spec(epoch=2), None]
    said = []
    monkeypatch.setattr(life, "be", serve)
    assert life.live(SimpleNamespace(receive=lambda: orders.pop(0), send=said.append)) == 0
    assert max(walked) < 1000 < gc.get_freeze_count()
    assert ended == [1, 2]
    assert [each.loads for each in said] == [0, 1, 2]


def test_without_orders_it_ends_when_nobody_can_give_any(worker):
    process, control = worker
    control.hang_up()
    assert process.wait(PATIENCE) == 0
    assert process.stderr.read() == b""


def test_what_is_no_order_ends_it(worker):
    process, control = worker
    control._socket.send(b"garbage")
    assert process.wait(PATIENCE) == 1
    assert b"ControlBroken" in process.stderr.read()


def test_the_threads_of_a_process_that_waited_are_those_that_its_model_asks_for():
    code = (
        "import os, torch\n"
        "x = torch.ones(600, 600)\n"
        "seen = []\n"
        "for threads in (1, 3, 2):\n"
        "    torch.set_num_threads(threads)\n"
        "    (x @ x).add_(1).exp_()\n"
        "    seen.append(len(os.listdir('/proc/self/task')))\n"
        "print(seen)\n"
    )
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, timeout=PATIENCE, check=True
    )
    assert done.stdout == b"[1, 3, 2]\n"


def test_what_is_imported_beforehand_is_there():
    assert all(find_spec(each) for each in (*life.RUNNERS, *life.ON_GPUS))


def test_whatever_a_gpu_needs_later_is_imported_beforehand():
    """All that functions and methods import of what has a backend for GPUs."""
    later = re.compile(r"^ +from (workers\.(?:attention|kernels)[.\w]*) import ([\w, ]+)", re.MULTILINE)
    found = set()
    for file in Path(workers.__file__).parent.rglob("*.py"):
        for module, names in later.findall(file.read_text()):
            inside = module in ("workers.attention", "workers.kernels")
            found |= {f"{module}.{name.strip()}" for name in names.split(",")} if inside else {module}
    assert found == {*life.ON_GPUS}
