"""Images behind addresses: fetched where the configuration allows it, and never from where it must not be."""

from __future__ import annotations

import asyncio
from typing import Any

import falcon
import pytest

from gateway.fetching.images import MAX_LINKS, Images
from gateway.fetching.settings import ImageSettings
from ipc.errors import Code, CortexError
from ipc.messages.conversation import ImagePart, TextPart
from ipc.messages.requests import Generate
from tests.gateway.image_sites import (
    IMAGE,
    Handler,
    Site,
    admitted,
    fetched,
    filled,
    images,
    message,
    question,
    refused,
    reply,
    the_image,
)

# --- what comes of one ----------------------------------------------------------------------------------


def test_an_image_is_what_its_host_sends() -> None:
    assert fetched(the_image) == ImagePart(data=IMAGE, media_type="image/png")


def test_a_request_is_asked_for_as_it_stands_and_says_nothing_of_the_client() -> None:
    async def ask() -> str:
        async with Site(the_image) as site:
            request = question(f"{site.base}/a b/%C3%A4?q=ä&r=[1]#part")
            await images().fill(request, {}, admitted, "somebody")
            return site.asked[0]

    head = asyncio.run(ask())
    line, *fields = head.strip().split("\r\n")
    assert line == "GET /a%20b/%C3%A4?q=%C3%A4&r=[1] HTTP/1.1"
    assert {field.partition(":")[0].lower() for field in fields} == {
        "host",
        "user-agent",
        "accept",
        "accept-encoding",
    }


def test_an_image_that_stands_in_several_places_is_fetched_once() -> None:
    async def ask() -> tuple[list[Any], int]:
        async with Site(the_image) as site:
            request = question(site.base + "/a", site.base + "/b", site.base + "/a")
            await images().fill(request, {}, admitted, "somebody")
            return request.messages[0].content, len(site.asked)

    content, asked = asyncio.run(ask())
    assert content == [ImagePart(data=IMAGE, media_type="image/png")] * 3
    assert asked == 2


@pytest.mark.parametrize(("requests", "most"), [(1, 2), (5, 8)])
def test_no_more_connections_are_open_than_may_be_and_one_request_has_a_quarter(
    requests: int, most: int
) -> None:
    async def slowly(path: str, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.02)
        reply(writer, IMAGE)

    async def ask() -> int:
        async with Site(slowly) as site:
            given, urls = images(at_once=8), [f"{site.base}/{n}" for n in range(7)]
            await asyncio.gather(
                *(given.fill(question(*urls), {}, admitted, "somebody") for _ in range(requests))
            )
            return site.most

    assert asyncio.run(ask()) == most


def test_an_image_that_is_kept_waits_for_no_connection() -> None:
    async def answer(path: str, writer: asyncio.StreamWriter) -> None:
        if path == "/silent":
            silent.set()
            await asyncio.sleep(60)
        reply(writer, IMAGE, **FRESH)

    async def ask() -> Any:
        async with Site(answer) as site:
            given, kept = images(at_once=1, seconds=30), site.base + "/kept"
            await given.fill(question(kept), {}, admitted, "somebody")
            other = given.fill(question(site.base + "/silent"), {}, admitted, "somebody")
            waits = asyncio.create_task(other)
            await asyncio.wait_for(silent.wait(), 30)
            request = question(kept)
            await asyncio.wait_for(given.fill(request, {}, admitted, "somebody"), 20)
            assert not waits.done()
            waits.cancel()
            return request.messages[0].content[0]

    silent = asyncio.Event()
    assert asyncio.run(ask()).data == IMAGE


@pytest.mark.parametrize("leaves", [True, False])
def test_images_that_were_given_up_keep_nobody_elses_from_coming(leaves: bool) -> None:
    async def silent_at_first(path: str, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(20 if path.startswith("/silent") else 0)
        reply(writer, IMAGE)

    async def ask() -> Any:
        async with Site(silent_at_first) as site:
            given = images(at_once=2, seconds=0.3)
            silent = [question(*(f"{site.base}/silent?{n}" for n in range(3))) for _ in range(3)]
            for task in [asyncio.create_task(given.fill(each, {}, admitted, "somebody")) for each in silent]:
                if leaves:
                    await asyncio.sleep(0.02)
                    task.cancel()
                with pytest.raises((CortexError, asyncio.CancelledError)):
                    await task
            request = question(site.base + "/good")
            await given.fill(request, {}, admitted, "somebody")
            return request.messages[0].content[0]

    assert asyncio.run(ask()).data == IMAGE


def test_nothing_is_fetched_for_who_may_not_ask() -> None:
    def refuse(request: object) -> None:
        raise CortexError(Code.BAD_REQUEST, "no more today")

    async def ask() -> list[str]:
        async with Site(the_image) as site:
            with pytest.raises(CortexError, match="no more today"):
                await images().fill(question(site.base), {}, refuse, "somebody")
            return site.asked

    assert asyncio.run(ask()) == []


def asked_again(*heads: dict[str, str], accounts: str = "aa", **settings: Any) -> list[str]:
    """The heads of what a site was asked that answers with such fields, for requests of these accounts.

    With a field `status` it answers with that, and without an image.
    """
    answers = iter(heads)

    async def answer(path: str, writer: asyncio.StreamWriter) -> None:
        fields = dict(next(answers))
        status = fields.pop("status", "")
        reply(writer, b"" if status else IMAGE, status=status or "200 OK", **fields)

    async def ask() -> list[str]:
        async with Site(answer) as site:
            given = images(**settings)
            for account in accounts:
                request = question(site.base + "/a")
                await asyncio.wait_for(given.fill(request, {}, admitted, account), 30)
                assert request.messages[0].content == [ImagePart(data=IMAGE, media_type="image/png")]
            return site.asked

    return asyncio.run(ask())


FRESH, TAGGED = {"cache_control": 'public, Max-Age="60"'}, {"etag": '"1"', "last_modified": "yesterday"}
SAME = {"status": "304 Not Modified"}


def test_an_image_that_may_be_kept_is_fetched_once_for_each_account() -> None:
    assert len(asked_again(FRESH, accounts="aaa")) == 1
    assert len(asked_again(FRESH, FRESH, accounts="abab")) == 2


def test_one_that_may_have_changed_is_asked_for_in_a_way_that_says_which_was_had() -> None:
    first, second, third = asked_again(TAGGED, SAME, SAME | FRESH, accounts="aaaa")
    assert "if-none-match" not in first.lower()
    for head in (second, third):
        assert 'If-None-Match: "1"\r\nIf-Modified-Since: yesterday\r\n' in head
    assert len(asked_again(TAGGED | {"cache_control": "no-cache, max-age=60"}, TAGGED)) == 2
    assert 'If-None-Match: "ä"' in asked_again({"etag": '"ä"'}, SAME)[1]


@pytest.mark.parametrize(
    ("fields", "settings"),
    [
        ({}, {}),
        (FRESH | TAGGED | {"cache_control": "no-store, max-age=60"}, {}),
        ({"Cache-Control": "no-store"} | FRESH, {}),
        (FRESH | {"vary": "accept, *"}, {}),
        (FRESH | {"age": "60"}, {}),
        ({"cache_control": "max-age=soon"}, {}),
        (FRESH, {"cache": 0}),
        (FRESH, {"cache": len(IMAGE) - 1}),
        (FRESH | {"etag": "x" * 40_000}, {"cache": len(IMAGE) + 40_000}),
    ],
    ids=str,
)
def test_what_may_not_be_kept_is_fetched_again(fields: dict[str, str], settings: dict[str, int]) -> None:
    first, second = asked_again(fields, fields, **settings)
    assert first == second


def test_what_is_kept_is_bounded_counts_as_what_comes_and_is_no_error() -> None:
    async def answer(path: str, writer: asyncio.StreamWriter) -> None:
        missing = "503 Busy" if path == "/missing" else "200 OK"
        reply(writer, IMAGE, status=missing, **FRESH)

    async def ask() -> tuple[list[str], int]:
        held: list[int] = []
        async with Site(answer) as site:
            given = images(cache=3 * len(IMAGE), hold=lambda scope, size: held.append(size))
            for path in ("/1", "/2", "/1", "/3", "/1", "/2"):
                await given.fill(question(site.base + path), {}, admitted, "somebody")
            for _ in range(2):
                with pytest.raises(CortexError, match="503"):
                    await given.fill(question(site.base + "/missing"), {}, admitted, "somebody")
            return [head.split()[1] for head in site.asked], sum(held)

    asked, held = asyncio.run(ask())
    assert asked == ["/1", "/2", "/3", "/2", "/missing", "/missing"]
    assert held == 6 * len(IMAGE)


def test_a_few_redirects_are_followed() -> None:
    async def to_umlaut(path: str, writer: asyncio.StreamWriter) -> None:
        if path == "/%C3%A4.png":
            reply(writer, IMAGE)
        else:
            reply(writer, status="302 Found", location="/ä.png")

    async def onward(path: str, writer: asyncio.StreamWriter) -> None:
        number = int(path.strip("/"))
        if number:
            reply(writer, status="302 Found", location=f"/{number - 1}")
        else:
            reply(writer, IMAGE)

    assert fetched(onward, "/3").data == IMAGE
    assert fetched(to_umlaut).data == IMAGE
    assert "redirected more than 3 times" in refused(onward, "/4")


# --- what does not come ---------------------------------------------------------------------------------


async def missing(path: str, writer: asyncio.StreamWriter) -> None:
    reply(writer, b"none", status="404 Not Found")


async def nothing(path: str, writer: asyncio.StreamWriter) -> None:
    reply(writer)


async def cut(path: str, writer: asyncio.StreamWriter) -> None:
    reply(writer, IMAGE, length=2 * len(IMAGE))


async def nonsense(path: str, writer: asyncio.StreamWriter) -> None:
    writer.write(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")


async def coded(path: str, writer: asyncio.StreamWriter) -> None:
    reply(writer, IMAGE, content_encoding="gzip")


async def nowhere(path: str, writer: asyncio.StreamWriter) -> None:
    reply(writer, status="302 Found")


async def to_a_file(path: str, writer: asyncio.StreamWriter) -> None:
    reply(writer, status="302 Found", location="file:///etc/passwd")


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (missing, "the status 404"),
        (nothing, "it is empty"),
        (cut, "closed"),
        (nonsense, "illegal status line"),
        (coded, "encoded ('gzip')"),
        (nowhere, "redirected to nowhere"),
        (to_a_file, "http://host/"),
    ],
)
def test_what_a_host_does_wrong_is_a_400_that_says_what_to_do(answer: Handler, reason: str) -> None:
    assert reason in refused(answer)


@pytest.mark.parametrize("told", [True, False], ids=["told", "untold"])
def test_an_image_that_is_too_large_is_given_up(told: bool) -> None:
    sent = 0

    async def endless(path: str, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        size = "content-length: 16777216" if told else "transfer-encoding: chunked"
        writer.write(f"HTTP/1.1 200 OK\r\n{size}\r\n\r\n".encode())
        chunk = bytes(1 << 14)
        while sent < 1 << 24:
            writer.write(chunk if told else b"%x\r\n%b\r\n" % (len(chunk), chunk))
            await writer.drain()
            sent += len(chunk)

    assert "100000 bytes (images.limit)" in refused(endless, limit=100_000)
    assert sent < 1 << 24


def test_all_images_of_a_request_share_the_limit_in_each_place_where_they_stand() -> None:
    async def ask(limit: int) -> None:
        async with Site(the_image) as site:
            urls = [f"{site.base}/{n}" for n in (1, 2, 1)]
            await images(limit=limit).fill(question(*urls), {}, admitted, "somebody")

    asyncio.run(ask(3 * len(IMAGE)))
    with pytest.raises(CortexError, match=r"images\.limit"):
        asyncio.run(ask(3 * len(IMAGE) - 1))


def test_what_is_fetched_counts_as_the_body_does() -> None:
    scope, held = {"type": "http"}, []

    def hold(of: dict[str, Any], size: int) -> None:
        assert of is scope
        held.append(size)
        if sum(held) > len(IMAGE):
            raise falcon.HTTPServiceUnavailable(description="full")

    async def ask(count: int) -> None:
        async with Site(the_image) as site:
            await images(hold=hold).fill(
                question(*(f"{site.base}/{n}" for n in range(count))), scope, admitted, "somebody"
            )

    asyncio.run(ask(1))
    assert sum(held) == len(IMAGE)
    with pytest.raises(falcon.HTTPServiceUnavailable):
        asyncio.run(ask(1))


@pytest.mark.parametrize("begun", [False, True])
def test_a_host_that_says_nothing_is_given_up_in_time(begun: bool) -> None:
    async def silent(path: str, writer: asyncio.StreamWriter) -> None:
        if begun:
            reply(writer, IMAGE, length=2 * len(IMAGE))
        await asyncio.sleep(20)

    assert "0.1 s to come (images.seconds)" in refused(silent, seconds=0.1)


def test_a_client_that_leaves_ends_what_was_asked_for() -> None:
    async def ask() -> int:
        arrived = asyncio.Event()

        async def silent(path: str, writer: asyncio.StreamWriter) -> None:
            arrived.set()
            while not writer.is_closing():
                writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                await writer.drain()
                await asyncio.sleep(0.01)

        async with Site(silent) as site:
            task = asyncio.create_task(images().fill(question(site.base), {}, admitted, "somebody"))
            await arrived.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await asyncio.wait_for(site.left.wait(), 20)
            return site.open

    assert asyncio.run(ask()) == 0


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://", "http://host/"),
        ("http:/a.png", "http://host/"),
        ("http://[::1/", "no address"),
        ("http://127.0.0.1:99999/", "no address"),
        ("http://me:secret@127.0.0.1/", "a password"),
        ("http://a..b/", "no address"),
        ("http://localhost\x00.allowed.example/", "no address"),
        ("https://localhost\x00x/", "no address"),
        ("http://a%2fb/", "no address"),
        ("http://" + "a" * 70 + ".example/", "not found"),
        ("http://127.0.0.1/" + "a" * 9000, "8192 characters"),
    ],
)
def test_what_is_no_address_is_a_400(url: str, reason: str) -> None:
    with pytest.raises(CortexError) as caught:
        filled(question(url), images())
    assert reason in caught.value.message
    assert caught.value.code == Code.BAD_REQUEST


def test_a_request_has_so_many_addresses_at_most() -> None:
    with pytest.raises(CortexError, match=f"behind {MAX_LINKS} addresses") as caught:
        filled(question(*(f"http://127.0.0.1:1/{n}" for n in range(MAX_LINKS + 1))), images())
    assert caught.value.param == f"messages[0].content[{MAX_LINKS}].image_url.url"


# --- dialects -------------------------------------------------------------------------------------------


def result(url: str) -> Generate:
    """A result of a tool that shows an image."""
    block = {"type": "image", "source": {"type": "url", "url": url}}
    call = {"type": "tool_use", "id": "t", "name": "f", "input": {}}
    shown = {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "text", "text": "see"}, block]}
    turns = [
        {"role": "user", "content": "go"},
        {"role": "assistant", "content": [call]},
        {"role": "user", "content": [shown]},
    ]
    return message(messages=turns)


TOLD = TextPart(text="(A block of type 'image', which cannot be read here.)")


def test_an_image_that_a_tool_shows_and_nobody_has_is_told_of() -> None:
    """The user has not chosen to show it, and it stays in the conversation."""

    async def ask(given: Images, handler: Handler) -> Any:
        async with Site(handler) as site:
            request = result(site.base)
            await given.fill(request, {}, admitted, "somebody")
            return request.messages[2].content[0].content[1]

    assert asyncio.run(ask(images(), the_image)) == ImagePart(data=IMAGE, media_type="image/png")
    assert asyncio.run(ask(images(), missing)) == TOLD
    assert asyncio.run(ask(images(fetch=False), the_image)) == TOLD


def test_anthropic_names_an_image_by_its_url() -> None:
    block = {"type": "image", "source": {"type": "url", "url": "http://10.0.0.1/"}}
    asked = message(messages=[{"role": "user", "content": [block]}])
    for settings, code in (({}, Code.BAD_REQUEST), ({"fetch": False}, Code.NOT_SUPPORTED)):
        with pytest.raises(CortexError, match="with a source of type base64") as caught:
            filled(asked, images(**settings))
        assert (caught.value.code, caught.value.param) == (code, "messages[0].content[0].source.url")


def test_without_a_word_nothing_is_fetched() -> None:
    async def ask() -> int:
        async with Site(the_image) as site:
            with pytest.raises(CortexError, match="nothing is fetched here") as caught:
                await Images(ImageSettings(), lambda scope, size: None).fill(
                    question(site.base), {}, admitted, "somebody"
                )
            assert caught.value.code == Code.NOT_SUPPORTED
            return len(site.asked)

    assert asyncio.run(ask()) == 0
