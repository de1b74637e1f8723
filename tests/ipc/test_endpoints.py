"""Where a server listens: with keys off loopback, on a port that is free."""

import asyncio
import socket

import pytest
import zmq

from ipc.errors import CortexError
from ipc.server import Server
from tests.ipc.serving import serving


@pytest.mark.parametrize(
    "endpoint", ["tcp://0.0.0.0:0", "tcp://*:0", "tcp://192.168.1.5:13131", "tcp://[::]:0", "tcp://beast:1"]
)
def test_off_loopback_without_keys_is_refused(endpoint):
    with pytest.raises(CortexError, match="keygen"):
        Server(endpoint, print, print)
    Server(endpoint, print, print, insecure=True)
    public, secret = (key.decode() for key in zmq.curve_keypair())
    Server(endpoint, print, print, secret=secret, allowed=[public])


@pytest.mark.parametrize(
    "endpoint", ["tcp://127.0.0.1:0", "tcp://127.3.2.1:1", "tcp://[::1]:0", "ipc:///tmp/x"]
)
def test_loopback_needs_no_keys(endpoint):
    Server(endpoint, print, print)


def test_a_secret_key_that_nobody_may_use_is_refused():
    with pytest.raises(CortexError, match="belong together"):
        Server("tcp://127.0.0.1:0", print, print, secret=zmq.curve_keypair()[1].decode())


@pytest.mark.usefixtures("no_descriptors_left")
def test_a_port_in_use_is_named_and_leaves_nothing_behind():
    async def main(endpoint):
        server = Server(endpoint, print, print)
        with pytest.raises(OSError, match=f"cannot listen on {endpoint}: Address already in use"):
            server.start()
        server.close()

    with socket.create_server(("127.0.0.1", 0)) as taken:
        asyncio.run(main(f"tcp://127.0.0.1:{taken.getsockname()[1]}"))


def test_an_endpoint_with_port_0_says_which_port_it_got():
    async def main():
        async with serving(clients=0) as (server, _):
            assert int(server.endpoint.rpartition(":")[2]) > 0
            assert server.endpoint.startswith("tcp://127.0.0.1:")

    asyncio.run(main())
