"""A gateway, as commands ask it: with the key of the environment, in JSON."""

from __future__ import annotations

import json
import os
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException, HTTPResponse
from typing import Any
from urllib.error import HTTPError

from gateway.commands.clients import KEY_VARIABLE
from gateway.commands.options import LOCAL

ANSWER_SECONDS = 30.0  # of a gateway that is there, on a busy host, until it says something


class Unreachable(Exception):
    """Why there is no answer, in one sentence."""


def fetch(endpoint: str, path: str = "/health", option: str = "--endpoint") -> bytes:
    """What a GET gives.

    Args:
        endpoint: the gateway's address, e.g. "http://127.0.0.1:31313".
        path: what is asked for.
        option: of the command line, by which people name another gateway.

    Raises:
        Unreachable: nothing answers there, or with an error.
    """
    request = _request(endpoint, path, option=option)
    with _open(endpoint, request, option) as response, _reading(endpoint):
        return response.read()


def post(endpoint: str, path: str, body: dict[str, Any], within: float = ANSWER_SECONDS) -> Any:
    """What a POST gives; Unreachable as for `fetch`."""
    request = _posted(endpoint, path, body)
    with _open(endpoint, request, within=within) as response, _reading(endpoint):
        return json.load(response)


def follow(endpoint: str, path: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The lines that a POST gives, as they come; Unreachable as for `fetch`, also in between."""
    with _open(endpoint, _posted(endpoint, path, body)) as response, _reading(endpoint):
        for line in response:
            if line.strip():
                yield json.loads(line)


def events(endpoint: str, path: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The events of a stream, as they come; Unreachable as for `follow`, also where it has no end."""
    with _open(endpoint, _posted(endpoint, path, body)) as response, _reading(endpoint):
        for line in response:
            if line == b"data: [DONE]\n":
                return
            if line.startswith(b"data: "):
                yield json.loads(line.removeprefix(b"data: "))
    raise Unreachable("the stream broke off")


@contextmanager
def _reading(endpoint: str) -> Iterator[None]:
    """What may go wrong with an answer that has begun, in our words."""
    try:
        yield
    except (OSError, HTTPException) as error:
        raise Unreachable(f"the gateway at {endpoint} is gone: {error}") from error
    except ValueError as error:  # it is no JSON
        raise Unreachable(f"what answers at {endpoint} is no gateway: {error}") from error


def _request(
    endpoint: str, path: str, body: bytes | None = None, option: str = "--endpoint"
) -> urllib.request.Request:
    try:
        request = urllib.request.Request(f"{endpoint.rstrip('/')}{path}", body)
    except ValueError:
        request = None
    if request is None or request.type not in ("http", "https") or not request.host:
        raise Unreachable(f"{option}: Expected an address such as {LOCAL}, not {endpoint!r}")
    return request


def _posted(endpoint: str, path: str, body: dict[str, Any]) -> urllib.request.Request:
    request = _request(endpoint, path, json.dumps(body).encode())
    request.add_header("Content-Type", "application/json")
    return request


def _open(
    endpoint: str,
    request: urllib.request.Request,
    option: str = "--endpoint",
    within: float = ANSWER_SECONDS,
) -> HTTPResponse:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    if key := os.environ.get(KEY_VARIABLE, "").strip():
        if not (key.isascii() and key.isprintable()):  # what http.client says of it would show it
            raise Unreachable(f"{KEY_VARIABLE}: Expected a key as `cortex keys create` shows it")
        request.add_unredirected_header("Authorization", f"Bearer {key}")
    try:
        return opener.open(request, timeout=within)
    except HTTPError as error:
        raise Unreachable(_why(endpoint, error)) from error
    except (OSError, HTTPException, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise Unreachable(
            f"no gateway answers at {endpoint} ({reason}); start one with `cortex up` or `cortex serve`, "
            f"or name another with {option}"
        ) from error


def _why(endpoint: str, error: HTTPError) -> str:
    """What the gateway says is wrong."""
    if error.code == 401:
        return f"the gateway at {endpoint} wants an API key that holds; put one into {KEY_VARIABLE}"
    try:
        return json.load(error)["error"]["message"]
    except (ValueError, KeyError, TypeError, OSError):
        return f"what answers at {endpoint} says {error.code} {error.reason}"
