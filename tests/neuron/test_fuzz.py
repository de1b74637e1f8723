"""Whatever stands in a request, the neuron answers it under its id, exactly once, and goes on.

`CORTEX_FUZZ_EXAMPLES=5000` looks longer.
"""

from __future__ import annotations

import math
import os
import time

import msgspec
import pytest
import zmq
from hypothesis import given, settings
from hypothesis import strategies as st

from ipc.messages.framing import HEADER
from ipc.messages.replies import TERMINAL, AnyReply, Failed, HealthReply
from ipc.messages.requests import AnyRequest, Health
from tests.ipc.one_of_each import ONE_OF_EACH
from tests.neuron.harness import PATIENCE, Neuron, simulated

MODEL = "sim"
_TERMINAL = tuple(TERMINAL)

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(1 << 63), (1 << 64) - 1),
    st.floats(),
    st.text(max_size=20),
    st.binary(max_size=20),
    st.sampled_from([0, -1, 1 << 63, math.nan, math.inf, "", "x" * 5000, "\x00", b"", [], {}, MODEL, "demo"]),
)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=8,
)


def places(value: object, path: tuple = ()) -> list[tuple]:
    """The paths of everything inside a message."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found = [path] if path else []
    for key, each in inner:
        found += places(each, (*path, key))
    return found


def changed(value: object, path: tuple, new: object) -> object:
    """A copy of `value` with `new` at `path`."""
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = changed(copy[path[0]], path[1:], new)
    return copy


def whole(request: AnyRequest) -> dict:
    """A request as a map with every field in it, the defaults as well."""

    def plain(value: object) -> object:
        if isinstance(value, msgspec.Struct):
            tag = value.__struct_config__.tag
            fields = {name: plain(getattr(value, name)) for name in value.__struct_fields__}
            return fields | ({value.__struct_config__.tag_field: tag} if tag else {})
        if isinstance(value, dict):
            return {key: plain(each) for key, each in value.items()}
        return [plain(each) for each in value] if isinstance(value, list) else value

    return plain(request)


@st.composite
def requests(draw: st.DrawFn) -> dict:
    """One of each verb, with up to three of its fields replaced by anything."""
    message = whole(draw(st.sampled_from(ONE_OF_EACH)))
    if "model" in message:
        message["model"] = MODEL
    for _ in range(draw(st.integers(0, 3))):
        paths = [path for path in places(message) if path[0] not in ("id", "verb")]
        if paths:
            message = changed(message, draw(st.sampled_from(paths)), draw(values))
    return message


class Client:
    """A socket that sends maps and follows each to its end."""

    def __init__(self, endpoint: str) -> None:
        self._socket = zmq.Context.instance().socket(zmq.DEALER)
        self._socket.linger = 0
        self._socket.rcvtimeo = int(PATIENCE * 1000)
        self._socket.connect(endpoint)
        self._id = 0

    def ask(self, request: dict) -> AnyReply:
        """The terminal reply; what goes on is cancelled at its first sign of life."""
        self._id += 1
        self._say(request | {"id": self._id})
        cancelled, end = False, time.monotonic() + PATIENCE
        while time.monotonic() < end:  # heartbeats come in any case
            message = self._socket.recv()
            for reply in msgspec.msgpack.decode(message[len(HEADER) :], type=list[AnyReply]):
                if reply.id == 0 and not isinstance(reply, Failed):
                    continue  # a heartbeat
                assert reply.id == self._id, reply
                if isinstance(reply, _TERMINAL):
                    return reply
                if not cancelled:
                    self._say({"verb": "cancel", "id": self._id})
                    cancelled = True
        raise TimeoutError(f"{request} was not answered")

    def _say(self, request: dict) -> None:
        self._socket.send(HEADER + msgspec.msgpack.encode(request))

    def close(self) -> None:
        self._socket.close()


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    with Neuron(tmp_path_factory.mktemp("fuzz"), [simulated(MODEL)]) as neuron:
        client = Client(neuron.endpoint)
        yield client
        client.close()
        assert "Traceback" not in neuron.log, neuron.log


@settings(max_examples=int(os.environ.get("CORTEX_FUZZ_EXAMPLES", "120")), deadline=None)
@given(request=requests())
def test_every_request_is_answered_under_its_id(client, request):
    reply = client.ask(request)
    if isinstance(reply, Failed):
        assert reply.code != "internal", (request, reply)
        assert reply.message
    client.ask({"verb": "resume"})
    assert isinstance(client.ask(whole(Health(id=0))), HealthReply)
