"""Readiness goes to the socket that the service manager names, and nowhere else."""

import os
import socket

import pytest

from ipc.notify import sd_notify


@pytest.mark.parametrize("abstract", [False, True])
def test_the_manager_hears_each_state(tmp_path, monkeypatch, abstract):
    name = f"@cortex-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(name.replace("@", "\0"))
        manager.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        sd_notify("READY=1")
        sd_notify("STATUS=loading démo")
        assert manager.recv(100) == b"READY=1"
        assert manager.recv(100).decode() == "STATUS=loading démo"


def test_without_a_manager_nothing_happens(monkeypatch):
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    sd_notify("READY=1")
