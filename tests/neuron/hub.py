"""A hub of a few repositories, on loopback, as the library for the Hugging Face hub asks one."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

HELD_SECONDS = 120.0  # a file is held back no longer, whatever becomes of the test
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Repository:
    """Files by name; those in `large` have checksums, as files in Git LFS."""

    files: dict[str, bytes]
    large: tuple[str, ...] = (".safetensors", ".gguf")
    token: str = ""  # that is needed
    gated: bool = False  # its owner asks for consent
    says: bytes | None = None  # of itself, in place of what it has
    said: dict[str, int] = field(default_factory=dict)  # sizes of files that are said wrongly
    damaged: set[str] = field(default_factory=set)  # files that come with another first byte
    cut: dict[str, int] = field(default_factory=dict)  # bytes after which the connection breaks, once
    busy: list[tuple[int, str]] = field(default_factory=list)  # statuses and Retry-After of the next answers
    held: threading.Event | None = None  # until it is set, of each large file but half comes


class Hub(ThreadingHTTPServer):
    """Serves `repositories`, and notes what it was asked for."""

    daemon_threads = True

    def __init__(self, repositories: dict[str, Repository]) -> None:
        self.repositories = repositories
        self.given: list[tuple[str, int]] = []  # files, and from which byte on
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def do_HEAD(self) -> None:
        self._answer(head=True)

    def do_GET(self) -> None:
        self._answer(head=False)

    def _answer(self, head: bool) -> None:
        path = self.path.partition("?")[0]
        info = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(?:revision|tree)/([^/]+))?/?", path)
        file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        found = info or file
        repository = self.server.repositories.get(found[1]) if found else None
        if repository is None or (
            repository.token and self.headers.get("authorization") != f"Bearer {repository.token}"
        ):
            self._refuse(401, "RepoNotFound")
        elif repository.busy:
            status, after = repository.busy.pop(0)
            self._send(b"{}", {"Retry-After": after} if after else {}, head, status)
        elif repository.gated:
            self._refuse(403, "GatedRepo")
        elif found[2] not in (None, "main", COMMIT):
            self._refuse(404, "RevisionNotFound")
        elif info and repository.says is not None:
            self._send(repository.says, {"Content-Type": "application/json"}, head)
        elif info:
            said = _tree(repository) if "/tree/" in path else _info(found[1], repository)
            self._send(json.dumps(said).encode(), {"Content-Type": "application/json"}, head)
        elif file[3] not in repository.files:
            self._refuse(404, "EntryNotFound")
        else:
            self._give(repository, file[3], head)

    def _give(self, repository: Repository, path: str, head: bool) -> None:
        data = repository.files[path]
        tag = _sha256(data)
        headers = {"ETag": f'"{tag}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if path in repository.damaged:
            data = bytes([data[0] ^ 1]) + data[1:]
        begin = 0
        status = 200
        if path in repository.said:
            headers["X-Linked-Size"] = str(repository.said[path])
        if (wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("range", ""))) is not None:
            begin, status = int(wanted[1]), 206
            if begin >= len(data):
                self.server.given.append((path, begin))
                self._send(b"", {"Content-Range": f"bytes */{len(data)}"}, head, 416)
                return
            headers["Content-Range"] = f"bytes {begin}-{len(data) - 1}/{len(data)}"
        if not head:
            self.server.given.append((path, begin))
        cut = repository.cut.pop(path, None) if not head else None
        held = repository.held if path.endswith(repository.large) else None
        self._send(data[begin:], headers, head, status, cut, held)

    def _send(
        self,
        data: bytes,
        headers: dict[str, str],
        head: bool,
        status: int = 200,
        cut: int | None = None,
        held: threading.Event | None = None,
    ) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        with suppress(ConnectionError):  # whoever asked may be gone
            if not head and held is not None:
                self.wfile.write(data[: len(data) // 2])
                held.wait(HELD_SECONDS)
                data = data[len(data) // 2 :]
            if not head:
                self.wfile.write(data if cut is None else data[:cut])
        if cut is not None:
            self.close_connection = True

    def _refuse(self, status: int, code: str) -> None:
        self._send(b"{}", {"X-Error-Code": code, "X-Error-Message": code}, self.command == "HEAD", status)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving(repositories: dict[str, Repository]) -> Iterator[Hub]:
    with Hub(repositories) as hub:
        threading.Thread(target=hub.serve_forever, daemon=True).start()
        yield hub
        hub.shutdown()


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _info(name: str, repository: Repository) -> dict[str, Any]:
    siblings = []
    for path, data in repository.files.items():
        size = repository.said.get(path, len(data))
        each: dict[str, Any] = {"rfilename": path, "size": size, "blobId": "b" * 40}
        if path.endswith(repository.large):
            each["lfs"] = {"sha256": _sha256(data), "size": size, "pointerSize": 130}
        siblings.append(each)
    return {"id": name, "modelId": name, "sha": COMMIT, "siblings": siblings, "private": False, "tags": []}


def _tree(repository: Repository) -> list[dict[str, Any]]:
    found = []
    for path, data in repository.files.items():
        size = repository.said.get(path, len(data))
        each: dict[str, Any] = {"type": "file", "path": path, "size": size, "oid": "b" * 40}
        if path.endswith(repository.large):
            each["lfs"] = {"oid": _sha256(data), "size": size, "pointerSize": 130}
        found.append(each)
    return found
