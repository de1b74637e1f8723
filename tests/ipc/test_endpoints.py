"""Where a server listens: with keys off loopback, on a port or at a path that is free."""

import asyncio
import socket

import pytest
import zmq

from ipc.errors import CortexError
from ipc.server import Server
from ipc.socket_file import check_free
from tests.ipc.serving import Desk, RawClient, serving


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


def listening(endpoint):
    server = Server(endpoint, print, print)
    server.start()
    return server


@pytest.mark.usefixtures("no_descriptors_left")
def test_a_path_that_somebody_listens_at_is_refused_and_stays_theirs(tmp_path):
    endpoint = f"ipc://{tmp_path}/neuron"

    async def main():
        desk = Desk()
        first = Server(endpoint, desk.handle, desk.on_gone)
        first.start()
        with pytest.raises(OSError, match=f"cannot listen on {endpoint}: Address already in use; end what"):
            listening(endpoint)
        client = RawClient(endpoint)
        assert await client.quiet()
        client.close()
        first.close()
        assert not list(tmp_path.iterdir())
        listening(endpoint).close()

    asyncio.run(main())


def test_what_a_dead_server_left_at_its_path_is_no_obstacle(tmp_path):
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "neuron"))
        dead.listen()

    async def main():
        async with serving(endpoint=f"ipc://{tmp_path}/neuron") as (*_, client):
            assert await client.quiet()

    asyncio.run(main())
    assert not list(tmp_path.iterdir())


def test_one_that_listens_and_takes_nobody_keeps_its_path(tmp_path):
    with socket.socket(socket.AF_UNIX) as hung, socket.socket(socket.AF_UNIX) as other:
        hung.bind(str(tmp_path / "neuron"))
        hung.listen(0)
        other.connect(str(tmp_path / "neuron"))
        with pytest.raises(OSError, match="in use"):
            check_free(str(tmp_path / "neuron"))


def test_a_name_without_a_file_is_the_kernels_to_refuse():
    with socket.socket(socket.AF_UNIX) as one:
        one.bind("")  # a name that is free
        one.listen()
        check_free(f"\0{one.getsockname()[1:].decode()}")


def test_a_file_that_is_no_socket_is_not_removed(tmp_path):
    (tmp_path / "notes").write_text("mine")

    async def main():
        with pytest.raises(OSError, match="no socket"):
            listening(f"ipc://{tmp_path}/notes")

    asyncio.run(main())
    assert (tmp_path / "notes").read_text() == "mine"


def test_who_ends_leaves_the_path_to_another_that_has_it_by_now(tmp_path):
    async def main():
        first = listening(f"ipc://{tmp_path}/neuron")
        (tmp_path / "neuron").unlink()
        second = listening(f"ipc://{tmp_path}/neuron")
        first.close()
        assert list(tmp_path.iterdir())
        second.close()
        assert not list(tmp_path.iterdir())

    asyncio.run(main())


@pytest.mark.parametrize("endpoint", ["ipc://*", "ipc://@cortex-test-endpoints"])
def test_an_endpoint_without_a_path_of_its_own_needs_no_file(endpoint):
    async def main():
        listening(endpoint).close()

    asyncio.run(main())
