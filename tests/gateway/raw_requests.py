"""Requests as bytes, on a connection that the test holds."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.gateway.conftest import PATIENCE, GatewayProcess

BODY = json.dumps({"model": "echo", "prompt": "one two"}).encode()
POST = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
CHUNKED = POST + b"transfer-encoding: chunked\r\n\r\n"
GET = b"GET /ready HTTP/1.1\r\nhost: x\r\n\r\n"
LATE = 25.0  # seconds: more than any limit of a test takes on a busy machine, less than the defaults


@contextmanager
def connected(gateway: GatewayProcess, *sent: bytes) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=PATIENCE) as client:
        for data in sent:
            client.sendall(data)
        yield client


def answer(client: socket.socket) -> tuple[int, dict[str, str], Any]:
    """Status, headers and JSON of one answer."""
    file = client.makefile("rb", buffering=0)  # which reads nothing of the next answer
    status = int(file.readline().split()[1])
    headers = {}
    while line := file.readline().strip():
        name, _, value = line.decode().partition(":")
        headers[name.lower()] = value.strip()
    body, length = b"", int(headers["content-length"])
    while piece := file.read(length - len(body)):
        body += piece
    return status, headers, json.loads(body)


def head(length: int) -> bytes:
    return POST + b"content-length: %d\r\n\r\n" % length
