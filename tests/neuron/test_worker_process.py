"""A worker process that is started only to be measured: it ends within a bound, whatever it does."""

import os
import sys

import pytest

import neuron.processes.worker
from neuron.processes.worker import Worker
from tests.neuron.harness import children_of


@pytest.mark.parametrize(
    ("program", "ready_seconds", "words"),
    [
        ("import time; time.sleep(1000)", 0.05, "a worker for cpu was not ready within 0.05 seconds"),
        ("raise SystemExit(3)", 150.0, "a worker for cpu did not start: exit code 3"),
    ],
)
def test_a_process_that_cannot_be_measured_is_told_of_and_reaped(monkeypatch, program, ready_seconds, words):
    monkeypatch.setattr(neuron.processes.worker, "PROGRAM", (sys.executable, "-c", program))
    monkeypatch.setattr(neuron.processes.worker, "READY_SECONDS", ready_seconds)
    monkeypatch.setattr(neuron.processes.worker, "FAREWELL_SECONDS", 150.0)
    before, descriptors = children_of(os.getpid()), len(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError, match=words):
        Worker.measure("cpu")
    assert children_of(os.getpid()) == before
    assert len(os.listdir("/proc/self/fd")) == descriptors
