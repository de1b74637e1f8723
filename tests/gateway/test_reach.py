"""Which hosts may be asked for images: none inside, none that nobody vouches for."""

from __future__ import annotations

import asyncio
import shutil
import socket
import ssl
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from gateway.fetching.hosts import canonical
from gateway.fetching.linked import Unfetchable
from gateway.fetching.names import LOOKUPS, Names
from gateway.fetching.reach import Reach
from ipc.errors import CortexError
from tests.gateway.image_sites import (
    IMAGE,
    Site,
    admitted,
    fetched,
    filled,
    images,
    question,
    refused,
    reply,
    the_image,
)

INSIDE = [
    *("127.0.0.1", "127.1.2.3", "0.0.0.0", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1"),
    *("169.254.169.254", "100.64.0.1", "192.0.0.1", "192.0.2.1", "198.18.0.1", "198.51.100.1", "203.0.113.1"),
    *("224.0.0.1", "239.255.255.250", "240.0.0.1", "255.255.255.255", "192.88.99.1"),
    *("::", "::1", "::127.0.0.1", "fe80::1", "fe80::1%eth0", "fc00::1", "fd12::1", "fec0::1", "ff02::1"),
    *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "64:ff9b::7f00:1", "64:ff9b::a00:1"),
    *("64:ff9b:1::1", "2002:7f00:1::", "2001::1", "2001:db8::1", "100::1", "3fff::1", "5f00::1", "4000::1"),
]
OUTSIDE = [
    "1.1.1.1",
    "93.184.215.14",
    "2606:4700::1111",
    "::ffff:1.1.1.1",
    "64:ff9b::101:101",
    "2a00:1450::1",
]


def test_only_public_addresses_may_be_reached() -> None:
    reach = Reach((), ())
    assert [each for each in INSIDE if reach.allows(each)] == []
    assert [each for each in OUTSIDE if not reach.allows(each)] == []


def test_networks_that_are_named_may_be_reached_as_well() -> None:
    reach = Reach((), ("10.1.0.0/16", "fd12::/64"))
    allowed = ("10.1.2.3", "::ffff:10.1.2.3", "fd12::5", "1.1.1.1")
    assert all(map(reach.allows, allowed))
    assert not any(map(reach.allows, ("10.2.0.1", "127.0.0.1", "fd12:1::5")))
    as_written = Reach((), ("64:ff9b::/96", "::ffff:10.3.0.0/112"))
    assert all(map(as_written.allows, ("64:ff9b::a01:203", "::ffff:10.3.0.1")))
    assert not as_written.allows("10.1.2.3")


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "127.0.0.1",
        "2130706433",
        "0x7f000001",
        "127.1",
        "017700000001",
        "[::1]",
        "[::ffff:7f00:1]",
    ],
)
def test_no_way_of_writing_it_reaches_this_host(host: str) -> None:
    with pytest.raises(CortexError, match=r"no public address|not found"):
        filled(question(f"http://{host}:9/"), images(networks=()))


def test_a_redirect_inward_is_refused() -> None:
    """The first host may be reached, the one that it names may not."""

    async def inward(path: str, writer: asyncio.StreamWriter) -> None:
        reply(
            writer, status="302 Found", location=f"http://127.0.0.2:{writer.get_extra_info('sockname')[1]}/"
        )

    assert "127.0.0.2 is at no public address" in refused(inward, networks=("127.0.0.1/32",))


def test_the_address_that_was_judged_is_the_one_that_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name server that says another one a moment later makes no difference."""
    answers = [["127.0.0.1"], ["127.0.0.2"]]
    looked: list[str] = []
    look = socket.getaddrinfo

    def resolve(host: Any, port: Any, *more: Any, **options: Any) -> Any:
        if host != "rebound.example":
            return look(host, port, *more, **options)
        looked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, port)) for each in answers.pop(0)]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)

    async def ask() -> str:
        async with Site(the_image) as site:
            await images(networks=("127.0.0.1/32",)).fill(
                question(f"http://rebound.example:{site.port}/"), {}, admitted, "somebody"
            )
            return site.asked[0]

    assert "Host: rebound.example:" in asyncio.run(ask())
    assert looked == ["rebound.example"]


def test_of_a_name_with_several_addresses_none_inside_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, 9)) for each in ("10.0.0.1", "127.0.0.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **options: found)
    tried = []

    class Backend:
        async def connect_tcp(self, host: str, *more: Any) -> None:
            tried.append(host)

    reach = Reach((), ("127.0.0.1/32",))
    reach._backend = Backend()
    asyncio.run(reach.connect_tcp("both.example", 9))
    assert tried == ["127.0.0.1"]
    with pytest.raises(Unfetchable, match="no public address"):
        asyncio.run(Reach((), ()).connect_tcp("both.example", 9))


def test_where_hosts_are_named_no_others_are_asked() -> None:
    for host, named in {
        "example.com": True,
        "EXAMPLE.com.": True,
        "a.example.com": False,
        "img.cdn.example": True,
        "cdn.example": False,
        "evilcdn.example": False,
        "bücher.example": True,
        "2001:db8::1": True,
    }.items():
        reach = Reach(("example.com", "*.cdn.example", "Bücher.example", "2001:db8:0::1"), ())
        reach._addresses = lambda host, port: asyncio.sleep(0, [])
        with pytest.raises(Unfetchable) as caught:
            asyncio.run(reach.connect_tcp(canonical(host), 443))
        assert ("images.hosts" in str(caught.value)) is not named


SILENT_RESOLVER = """
import asyncio, socket, threading
from gateway.fetching.reach import Reach

socket.getaddrinfo = lambda *args, **options: threading.Event().wait()


async def ask() -> None:
    async with asyncio.timeout(0.01):
        await Reach((), ()).connect_tcp("silent.example", 9)


try:
    asyncio.run(ask())
except TimeoutError:
    print("given up")
"""


def test_a_name_server_that_is_silent_holds_up_no_end_of_the_process() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", SILENT_RESOLVER], capture_output=True, text=True, timeout=120, check=True
    )
    assert ended.stdout == "given up\n"


def test_lookups_that_were_given_up_keep_their_places_until_they_end(monkeypatch: pytest.MonkeyPatch) -> None:
    go_on, begun, asked = threading.Event(), threading.Semaphore(0), []

    def resolve(host: str, *more: Any, **options: Any) -> list[Any]:
        asked.append(host)
        begun.release()
        go_on.wait(120)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("203.0.113.1", 9))]

    async def ask() -> None:
        lookups = Names()
        given_up = [asyncio.create_task(lookups.addresses(f"{n}.example", 9)) for n in range(LOOKUPS)]
        for _ in range(LOOKUPS):
            assert await asyncio.to_thread(begun.acquire, timeout=120)
        for task in given_up:
            task.cancel()
        last = asyncio.create_task(lookups.addresses("last.example", 9))
        await asyncio.wait(given_up)
        await asyncio.sleep(0)
        assert len(asked) == LOOKUPS
        go_on.set()
        assert await last == ["203.0.113.1"]

    monkeypatch.setattr("gateway.fetching.names.socket.getaddrinfo", resolve)
    asyncio.run(ask())


# --- TLS ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pem(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A key, and a certificate for 127.0.0.1."""
    if (program := shutil.which("openssl")) is None:
        pytest.skip("there is no openssl here to make a certificate")
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    made = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=here -days 9"
    name = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(path), "-out", f"{path}.crt"]
    subprocess.run([program, *made.split(), *name], check=True, capture_output=True, timeout=150)
    path.write_text(path.read_text() + Path(f"{path}.crt").read_text())
    return path


@pytest.fixture
def tls(pem: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    return context


def test_a_host_that_nobody_vouches_for_is_not_asked(tls: ssl.SSLContext) -> None:
    assert "CERTIFICATE_VERIFY_FAILED" in refused(the_image, tls=tls)


def test_certificates_of_ones_own_are_trusted_where_openssl_is_told_of_them(
    tls: ssl.SSLContext, pem: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(pem))
    assert fetched(the_image, tls=tls).data == IMAGE

    async def downward(path: str, writer: asyncio.StreamWriter) -> None:
        reply(writer, status="302 Found", location="http://127.0.0.1:9/")

    assert "from https to something else" in refused(downward, tls=tls)


def test_a_certificate_of_another_name_is_none(
    tls: ssl.SSLContext, pem: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(pem))
    found = (socket.AF_INET, socket.SOCK_STREAM, 6, "")
    resolve = lambda host, port, **options: [(*found, ("127.0.0.1", port))]  # noqa: E731

    async def ask() -> None:
        async with Site(the_image, tls) as site:
            monkeypatch.setattr("gateway.fetching.names.socket.getaddrinfo", resolve)
            await images().fill(question(f"https://other.example:{site.port}/"), {}, admitted, "somebody")

    with pytest.raises(CortexError, match="CERTIFICATE_VERIFY_FAILED"):
        asyncio.run(ask())
