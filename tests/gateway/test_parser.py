"""Our parser takes what gunicorn's takes, as that does, and refuses what it refuses, but for a few."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from gunicorn.asgi.parser import (
    InvalidHeader,
    InvalidHeaderName,
    InvalidHTTPVersion,
    InvalidRequestLine,
    InvalidRequestMethod,
    ParseError,
    PythonProtocol,
    UnsupportedTransferCoding,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.http.parser import Parser

# What gunicorn says one word of, and we a sentence with that word in it.
TERSE = InvalidRequestMethod, InvalidHTTPVersion, InvalidHeaderName, UnsupportedTransferCoding
LIMITS = {"limit_request_field_size": 60, "limit_request_fields": 5}


def read(kind: type[PythonProtocol], pieces: list[bytes], limits: dict[str, int]) -> list[Any]:
    """All that is heard of a request that comes in these pieces, and how that ends."""
    heard: list[Any] = []
    parser = kind(
        on_headers_complete=lambda: heard.append(("headers", list(parser.headers))),
        on_body=lambda chunk: heard.append(("body", chunk)),
        on_message_complete=lambda: heard.append("end"),
        **limits,
    )
    try:
        for piece in pieces:
            parser.feed(piece)
    except ParseError as error:
        return [*heard, type(error), "" if isinstance(error, TERSE) else str(error)]
    return [*heard, parser.remaining(), parser.content_length, parser.is_chunked, parser.should_keep_alive]


name = st.sampled_from([b"Host", b"content-length", b"Connection", b"x-a", b"x_b!", b"x c", b"", b"x\xe9"])
value = st.sampled_from(
    [b"", b" a b\t", b"2", b"close", b"\xe9", b"a\x00", b"a\rb", b"a\nb", b" c:d ", b"e" * 70]
)
ends = st.sampled_from([b"\r\n"] * 8 + [b"\n", b"\r", b""])
lines = st.builds(lambda *parts: b"".join(parts), name, st.sampled_from([b":"] * 8 + [b""]), value, ends)


@settings(max_examples=400, deadline=None)
@given(
    st.lists(lines, max_size=6),
    st.sampled_from([b"\r\n"] * 4 + [b""]),
    st.lists(st.integers(0, 200), max_size=3),
)
def test_requests_are_read_as_gunicorn_reads_them(fields: list[bytes], end: bytes, cuts: list[int]) -> None:
    request = b"POST /v1 HTTP/1.1\r\nhost: x\r\n" + b"".join(fields) + end + b"{}GET / HTTP/1.1\r\n\r\n"
    places = [0, *sorted(cuts), len(request)]
    pieces = [request[start:stop] for start, stop in pairwise(places)]
    for limits in ({}, LIMITS):
        ours, theirs = read(Parser, pieces, limits), read(PythonProtocol, pieces, limits)
        if len(fields) > 1 and isinstance(theirs[-1], str):  # of several faults each may name another
            ours, theirs = ours[:-1], theirs[:-1]
        assert ours == theirs


@pytest.mark.parametrize("line", [b"a" * 500_000, b"a:" * 250_000 + b"\0"])
def test_a_long_line_that_is_no_field_is_not_gone_through_from_each_byte(
    line: bytes,
) -> None:
    heard = read(Parser, [b"GET / HTTP/1.1\r\n" + line + b"\r\n\r\n"], {"limit_request_field_size": 1 << 20})
    assert heard[0] is InvalidHeader


def test_a_length_of_very_many_digits_is_refused_as_one_that_is_none() -> None:
    request = [b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: " + b"9" * 5000 + b"\r\n\r\n"]
    assert read(Parser, request, {}) == [InvalidHeader, "Invalid Content-Length value"]


@pytest.mark.parametrize("method", [b"GET", b"G(T", b"", b"POST\x7f", b"M-SEARCH"])
def test_a_method_is_a_token(method: bytes) -> None:
    request = [method + b" / HTTP/1.1\r\nhost: x\r\n\r\n"]
    assert read(Parser, request, {}) == read(PythonProtocol, request, {})


@pytest.mark.parametrize(
    ("address", "path", "host"),
    [
        (b"http://a.local:31313/v1/models?limit=1", b"/v1/models?limit=1", b"a.local:31313"),
        (b"HTTPS://[::1]/v1", b"/v1", b"[::1]"),
        (b"http://a", b"/", b"a"),
        (b"http://a?b=http://c", b"/?b=http://c", b"a"),
        (b"/v1/models/http://c", b"/v1/models/http://c", b"x"),
    ],
)
@pytest.mark.parametrize("version", [b"1.1", b"1.0"])
def test_of_an_address_in_full_the_path_is_the_path_and_its_host_counts(
    address: bytes, path: bytes, host: bytes, version: bytes
) -> None:
    parser = Parser()
    parser.feed(b"GET %s HTTP/%s\r\nhost: x\r\na: b\r\n\r\n" % (address, version))
    assert parser.is_complete
    assert (parser.path, sorted(parser.headers)) == (path, [(b"a", b"b"), (b"host", host)])


def test_an_address_in_full_is_its_own_host_where_old_clients_name_none() -> None:
    parser = Parser()
    parser.feed(b"GET http://a/v1 HTTP/1.0\r\n\r\n")
    assert parser.headers == [(b"host", b"a")]


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        (b"GET ftp://a/ HTTP/1.1\r\nhost: a\r\n\r\n", InvalidRequestLine),
        (b"GET http:///v1 HTTP/1.1\r\nhost: a\r\n\r\n", InvalidRequestLine),
        (b"GET http://me@a/v1 HTTP/1.1\r\nhost: a\r\n\r\n", InvalidRequestLine),
        (b"GET http://a/ HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n", InvalidHeader),
        (b"GET http://a/ HTTP/1.1\r\n\r\n", InvalidHeader),
        (b"GET / HTTP/1.1\r\n\r\n", InvalidHeader),
    ],
)
def test_an_address_of_nothing_here_and_a_request_without_a_host_are_refused(
    request_: bytes, error: type[ParseError]
) -> None:
    assert read(Parser, [request_], {})[0] is error


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (b"get / HTTP/1.1\r\n", "'get' is no method of HTTP"),
        (b"GET / HTTP/3\r\n", "'HTTP/3' is not spoken here, HTTP/1.1 is"),
        (b"GET / HTTP/1.1\r\nx : y\r\n\r\n", "'x ' cannot be the name of a header"),
        (
            b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: br\r\n\r\n",
            "the transfer coding 'br' is not supported, chunked is",
        ),
        (
            b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: GZip, chunked\r\n\r\n",
            "the transfer coding 'GZip' is not supported, chunked is",
        ),
        (
            b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: deflate\r\ntransfer-encoding: chunked\r\n\r\n",
            "the transfer coding 'deflate' is not supported, chunked is",
        ),
        (
            b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: gzip\r\n\r\n",
            "Transfer-Encoding does not end with chunked",
        ),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(request_: bytes, message: str) -> None:
    with pytest.raises(ParseError, match=f"^{message}$"):
        Parser().feed(request_)
