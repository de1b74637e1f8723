"""A load generator that costs little: `python -m benchmarks.load PORT CONNECTIONS SECONDS BODY`.

Each connection sends the same request again as soon as it is answered. Prints one line of JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
from time import perf_counter

import uvloop

WARM_UP_SECONDS = 1.0


class Connection(asyncio.Protocol):
    """One connection. `latencies` are seconds from the request's last byte to the answer's last byte."""

    def __init__(self, request: bytes, streamed: bool) -> None:
        self.request, self.streamed = request, streamed
        self.latencies: list[float] = []
        self.failures: list[str] = []
        self._tail = b""
        self._missing = 0  # bytes of an unstreamed answer

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self.send()

    def send(self) -> None:
        self._sent = perf_counter()
        self._transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        if self.streamed:
            self._tail = self._tail[-400:] + data
            if self._tail.endswith(b"0\r\n\r\n"):
                self._answered(b"data: [DONE]" in self._tail and b'"completion_tokens":64' in self._tail)
            return
        if not self._missing:
            head, _, body = data.partition(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
            self._missing = length - len(body)
            self._tail = head
        else:
            self._missing -= len(data)
        if not self._missing:
            self._answered(self._tail.startswith(b"HTTP/1.1 200"))

    def _answered(self, well: bool) -> None:
        self.latencies.append(perf_counter() - self._sent)
        if not well:
            self.failures.append(self._tail.decode(errors="replace"))
        self._tail = b""
        self.send()

    def connection_lost(self, exc: Exception | None) -> None:
        self.failures.append(f"the connection was lost: {exc}")


async def run(port: int, connections: int, seconds: float, body: bytes) -> dict[str, float]:
    """Requests per second, and their latency in milliseconds."""
    loop = asyncio.get_running_loop()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    )
    streamed = bool(json.loads(body).get("stream"))
    protocols = [Connection(head.encode() + body, streamed) for _ in range(connections)]
    for protocol in protocols:
        await loop.create_connection(lambda protocol=protocol: protocol, "127.0.0.1", port)
    await asyncio.sleep(WARM_UP_SECONDS)
    for protocol in protocols:
        protocol.latencies.clear()
    began = perf_counter()
    await asyncio.sleep(seconds)
    lasted = perf_counter() - began
    latencies = sorted(latency for protocol in protocols for latency in protocol.latencies)
    if failures := [failure for protocol in protocols for failure in protocol.failures]:
        raise SystemExit(f"{len(failures)} answers failed; the first: {failures[0]}")
    if not latencies:
        raise SystemExit("no answer came")
    return {
        "requests_per_second": len(latencies) / lasted,
        "p50_ms": latencies[len(latencies) // 2] * 1000,
        "p99_ms": latencies[int(len(latencies) * 0.99)] * 1000,
    }


if __name__ == "__main__":
    _port, _connections, _seconds, _body = sys.argv[1:]
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        print(json.dumps(runner.run(run(int(_port), int(_connections), float(_seconds), _body.encode()))))
