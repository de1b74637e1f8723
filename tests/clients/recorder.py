"""A proxy that keeps what a client asked and what it was answered, and holds both against the rules."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

from tests import streams

PATIENCE = 120.0
BETWEEN_HOPS = {"connection", "transfer-encoding", "content-length", "host"}


@dataclass(slots=True)
class Exchange:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    status: int
    answer: bytes

    @property
    def fields(self) -> dict[str, Any]:
        return json.loads(self.body)

    def failed(self) -> bool:
        """Whether it was refused with an error that invites a retry, or ended so in a sound stream."""
        try:
            self.check()
        except streams.Failed:
            return True
        except AssertionError:
            return self.status in (503, 529)
        return False

    def check(self) -> None:
        """It went well, and what was streamed passes the strict reader of its dialect."""
        assert self.status == 200, f"{self.method} {self.path}: {self.status} {self.answer[:2000]!r}"
        if self.method != "POST" or not self.fields.get("stream"):
            return
        match urlsplit(self.path).path.rsplit("/", 1)[-1]:
            case "messages":
                streams.anthropic(self.answer)
            case "responses":
                streams.responses(self.answer)
            case "completions":
                options = self.fields.get("stream_options") or {}
                streams.chat(self.answer, usage=bool(options.get("include_usage")))
            case other:
                raise AssertionError(f"nobody reads the streams of {other}")


class Recorder:
    """What went through the proxy at `base`."""

    def __init__(self, base: str) -> None:
        self.base = base
        self.exchanges: list[Exchange] = []

    def posts(self) -> list[Exchange]:
        return [each for each in self.exchanges if each.method == "POST"]

    def check(self) -> None:
        for each in self.exchanges:
            each.check()


@contextmanager
def recording(upstream: str) -> Iterator[Recorder]:
    """Pass everything on to `upstream`, as it comes."""
    recorder = Recorder("")

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _pass_on(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            headers = {key: value for key, value in self.headers.items() if key.lower() not in BETWEEN_HOPS}
            connection = HTTPConnection(urlsplit(upstream).netloc, timeout=PATIENCE)
            connection.request(self.command, self.path, body or None, headers)
            response = connection.getresponse()
            exchange = Exchange(self.command, self.path, headers, body, response.status, b"")
            recorder.exchanges.append(exchange)
            self.send_response(response.status)
            for key, value in response.getheaders():
                if key.lower() not in BETWEEN_HOPS:
                    self.send_header(key, value)
            self.send_header("connection", "close")
            self.end_headers()
            while data := response.read1(65_536):
                exchange.answer += data
                self.wfile.write(data)
                self.wfile.flush()
            connection.close()
            self.close_connection = True

        do_GET = do_HEAD = do_POST = do_DELETE = _pass_on

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        recorder.base = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield recorder
        finally:
            server.shutdown()
