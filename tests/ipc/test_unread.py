"""Of a large request a neuron reads whose it is, and looks at no more of it than takes a millisecond."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipc import unread
from ipc.errors import Code, CortexError
from ipc.messages.conversation import Message
from ipc.messages.requests import CountTokens, Detokenize, Embed, Generate, Rerank, Tokenize
from ipc.messages.sampling import Structured
from ipc.server import LARGE, MOST, Server
from ipc.unread import MOST_VALUES, Unread, first_fields

MANY = 200_000
TURNS = [Message(role="user", content="x")] * MANY
WHOSE = {"id": 5, "model": "m", "account": "a", "trace": "t"}

REQUESTS = {
    "generate": Generate(**WHOSE, messages=TURNS),
    "generate ids": Generate(**WHOSE, prompt=[1] * MANY),
    "generate written": Generate(**WHOSE, prompt="x", written=[[1] * MANY]),
    "embed": Embed(**WHOSE, input=["x"] * MANY),
    "rerank": Rerank(**WHOSE, input=["x"] * MANY, query="q"),
    "count_tokens": CountTokens(**WHOSE, messages=TURNS),
    "tokenize": Tokenize(**WHOSE, messages=TURNS),
    "detokenize": Detokenize(**WHOSE, token_ids=[1] * MANY),
}


def read(body):
    """What a server makes of it."""
    server = Server("tcp://127.0.0.1:0", lambda peer, request: None, lambda peer: None)
    return server._read(b"\0peer", memoryview(body))


@pytest.fixture
def looked_at(monkeypatch):
    """Counts the values that are looked at."""
    count = []
    plain = unread._open
    monkeypatch.setattr(unread, "_open", lambda body, at: count.append(at) or plain(body, at))
    return count


@pytest.mark.parametrize("name", REQUESTS)
def test_whose_a_large_request_is_stands_before_what_is_large(name, looked_at):
    body = msgspec.msgpack.encode(REQUESTS[name])
    request = read(body)
    assert isinstance(request, Unread)
    assert {field: getattr(request, field) for field in WHOSE} == WHOSE
    assert request.verb == name.split()[0]
    assert bytes(request.body) == body
    assert len(looked_at) <= MOST_VALUES + 1


def test_what_is_behind_large_texts_is_found(looked_at):
    body = {"verb": "generate", "messages": [{"role": "user", "content": "x" * LARGE}], **WHOSE}
    assert read(msgspec.msgpack.encode(body)).account == "a"
    assert len(looked_at) < 20


def test_what_is_behind_many_values_is_as_if_it_was_not_there(looked_at):
    first = {"verb": "generate", "id": 5, "model": "m"}
    request = read(msgspec.msgpack.encode({**first, "messages": [[]] * MANY, "account": "a"}))
    assert (request.model, request.account) == ("m", "")
    with pytest.raises(CortexError, match=r"model.*before") as refused:
        read(msgspec.msgpack.encode({"verb": "generate", "id": 5, "messages": [[]] * MANY, "model": "m"}))
    assert (refused.value.code, refused.value.details) == (Code.BAD_REQUEST, {"id": 5})
    with pytest.raises(CortexError, match="says its `verb` first"):
        read(msgspec.msgpack.encode({"id": 5, "messages": [[]] * MANY, "verb": "generate"}))
    with pytest.raises(CortexError, match="an id is from 1") as refused:
        read(msgspec.msgpack.encode({"verb": "generate", "model": "m", "messages": [[]] * MANY, "id": 5}))
    assert refused.value.param == "id"
    assert len(looked_at) <= 4 * (MOST_VALUES + 1)


def test_what_no_other_process_reads_may_not_be_large():
    body = msgspec.msgpack.encode({"verb": "hello", "unknown": [0] * (MOST - 100), "client": "c", "id": 5})
    assert (read(body).client, read(body).id) == ("c", 5)
    with pytest.raises(CortexError, match=f"{MOST} bytes") as refused:
        read(msgspec.msgpack.encode({"verb": "hello", "id": 5, "unknown": [0] * MOST}))
    assert (refused.value.code, refused.value.details) == (Code.BAD_REQUEST, {"id": 5})


@pytest.mark.parametrize(
    ("fields", "has_grammar"),
    [
        ({"structured": Structured(json_object=True)}, True),
        ({"structured": Structured(choice=["x"] * MANY)}, True),
        ({"must_call": ["f"]}, True),
        ({"must_call": []}, False),
        ({"structured": None}, False),
        ({}, False),
    ],
)
def test_it_is_known_whether_an_answer_must_look_like_something(fields, has_grammar):
    body = {"verb": "generate", **WHOSE, **fields, "prompt": "x" * LARGE}
    assert read(msgspec.msgpack.encode(body)).has_grammar is has_grammar


JSON = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(1 << 63), (1 << 64) - 1),
        st.floats(allow_nan=False),
        st.text(max_size=40),
        st.binary(max_size=40),
        st.builds(lambda size: "x" * size, st.sampled_from((31, 32, 255, 256, 65_535, 65_536))),
        st.builds(bytes, st.sampled_from((255, 256, 65_535, 65_536))),
        st.builds(
            lambda code, size: msgspec.msgpack.Ext(code, bytes(size)),
            st.integers(-128, 127),
            st.integers(0, 300),
        ),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=20), st.dictionaries(st.text(max_size=9), inner, max_size=20)
    ),
    max_leaves=30,
)


@given(st.dictionaries(st.text(max_size=8), JSON, max_size=20))
def test_the_way_past_any_value_ends_where_the_next_one_begins(fields):
    body = msgspec.msgpack.encode({**fields, "id": 7, "account": "a"})
    assert msgspec.msgpack.decode(first_fields(memoryview(body))) == {"id": 7, "account": "a"} | {
        name: value for name, value in fields.items() if name in ("verb", "model", "trace")
    }


@given(st.binary(min_size=1, max_size=60))
def test_any_bytes_are_fields_or_a_fault(noise):
    try:
        found = first_fields(memoryview(noise))
    except msgspec.DecodeError:
        return
    assert found[0] >> 4 == 0x8
