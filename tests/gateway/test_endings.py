"""A gateway process that is to end answers first, says what it does not answer, and ends in time."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gateway.http.connections import LAST_SECONDS, Worker
from tests.gateway.conftest import GatewayProcess, NeuronThread, eventually
from tests.gateway.raw_requests import BODY, GET, LATE, answer, connected, head


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_idle_connections_do_not_hold_up_a_stop_before_which_all_is_logged(
    neuron: NeuronThread, tmp_path: Any, number: signal.Signals
) -> None:
    process = GatewayProcess(tmp_path, neuron.endpoint).wait_ready()
    try:
        with connected(process, GET) as idle, connected(process) as silent:
            assert answer(idle)[0] == 200
            with connected(process, head(len(BODY)) + BODY) as asking:
                assert answer(asking)[0] == 200
                process.process.send_signal(number)
            process.process.wait(LATE)
            assert idle.recv(1) == silent.recv(1) == b""
        assert process.log.read_text().count("request ended") == 1
    finally:
        process.stop()


def test_a_client_that_was_not_told_of_the_end_is_answered_once_more(
    neuron: NeuronThread, tmp_path: Path
) -> None:
    process = GatewayProcess(tmp_path, neuron.endpoint).wait_ready()
    slow = json.dumps({"model": "slow", "prompt": "one " * 60}).encode()
    try:
        with connected(process, head(len(slow)) + slow) as client:
            eventually(lambda: neuron.working("slow"), "the neuron has the request")
            process.process.send_signal(signal.SIGTERM)
            status, headers, _ = answer(client)  # begun before that, or after
            assert (status, headers.get("connection")) == (200, None)
            client.sendall(GET)
            status, headers, _ = answer(client)
            assert (status, headers["connection"]) == (200, "close")
            assert client.recv(1) == b""
        process.process.wait(LATE)
    finally:
        process.stop()


def test_a_connection_that_was_idle_long_before_the_end_is_answered_once_more(
    neuron: NeuronThread, tmp_path: Path
) -> None:
    process = GatewayProcess(tmp_path, neuron.endpoint).wait_ready()
    try:
        with connected(process, GET) as client:
            assert answer(client)[0] == 200
            time.sleep(LAST_SECONDS + 0.2)
            process.process.send_signal(signal.SIGTERM)
            time.sleep(0.5)  # the end has begun
            client.sendall(GET)
            status, headers, _ = answer(client)
            assert (status, headers["connection"]) == (200, "close")
        process.process.wait(LATE)
    finally:
        process.stop()


@contextmanager
def streaming_while_replaced(
    neuron: NeuronThread, folder: Path, seconds: int
) -> Iterator[tuple[GatewayProcess, int, int, socket.socket]]:
    """A gateway that was reloaded while it streams, its old process, the new one, and the client.

    Args:
        seconds: that a process has for its requests where the gateway stops.
    """
    process = GatewayProcess(folder, neuron.endpoint, "--graceful-timeout", str(seconds)).wait_ready()
    body = json.dumps({"model": "breaks/template_failed", "prompt": "one", "stream": True}).encode()
    [old] = process.workers()
    try:
        with connected(process, head(len(body)) + body) as client:
            assert b" 200 " in client.recv(4096)
            process.process.send_signal(signal.SIGHUP)
            [new] = eventually(lambda: set(process.workers()) - {old}, "another process")
            process.wait_ready()
            yield process, old, new, client
    finally:
        process.stop()


def test_a_process_that_is_replaced_ends_its_requests_first_and_another_serves_meanwhile(
    neuron: NeuronThread, tmp_path: Path
) -> None:
    with streaming_while_replaced(neuron, tmp_path, 2) as (process, old, new, client):
        time.sleep(1)  # longer than it would have if none came in its place
        assert old in process.workers()
        os.kill(new, signal.SIGKILL)
        eventually(lambda: set(process.workers()) - {old, new}, "one in the place of that one")
        process.wait_ready()
        neuron.let_fail()
        with client.makefile("rb") as rest:
            assert b'"error"' in rest.read()
        eventually(lambda: old not in process.workers(), "it ends")


def test_a_process_that_is_replaced_says_what_it_ends_where_the_gateway_stops(
    neuron: NeuronThread, tmp_path: Path
) -> None:
    with streaming_while_replaced(neuron, tmp_path, 6) as (process, *_):
        process.process.send_signal(signal.SIGTERM)
        process.process.wait(LATE)
        told = process.log.read_text()
        assert "connections are ended that still had requests count=1" in told
        assert told.count("request ended") == 1


def test_a_process_ends_though_ending_its_connections_fails() -> None:
    worker = Worker.__new__(Worker)
    worker.servers, worker.connections, worker.alive, worker.age = [], {object()}, True, 1
    worker.log, worker.cfg = logging.getLogger("gunicorn"), SimpleNamespace(graceful_timeout=0)

    async def end() -> None:
        worker.loop = asyncio.get_running_loop()
        await worker._end()

    with pytest.raises(AttributeError):
        asyncio.run(end())
    assert not worker.alive


@pytest.mark.parametrize("at_once", [False, True])
def test_the_application_ends_what_it_has_open_however_a_process_is_stopped(at_once: bool) -> None:
    worker, ended = Worker.__new__(Worker), []

    class Lifespan:
        async def shutdown(self) -> None:
            ended.append(1)

    worker.servers, worker.connections, worker.nr_conns = [], set(), 0
    worker.log, worker.lifespan = logging.getLogger("gunicorn"), Lifespan()
    worker._quick_shutdown = at_once
    asyncio.run(worker._shutdown())
    assert ended == [1]
