"""Whose key is for some models is not told of others by what neurons say."""

from __future__ import annotations

import asyncio
import fnmatch
import json
from types import SimpleNamespace

import falcon.asgi
import msgspec
import pytest

from gateway.access.principal import ANYBODY, Principal
from gateway.dialects.openai import models
from gateway.fleet import listing
from gateway.fleet.discretion import discreet
from gateway.fleet.exchange import Exchange
from gateway.http.models import ModelsResource, _for
from gateway.store.key_store import Key, Terms
from ipc.errors import Code, CortexError
from ipc.messages.replies import Failed, Progress, State
from ipc.messages.requests import AnyRequest, Generate
from ipc.server import Peer
from tests.gateway.fake_neuron import FakeNeuron
from tests.gateway.fleets import fleet_of, quote, run

MODELS = ("mine", "org/secret", "org/secret-2", "mine-too")
HELD = {"needed": [9], "held": {"org/secret": {"cpu": 5}, "mine-too": {"cpu": 1}}}
TEXT = "mine needs 9 GiB; org/secret holds 5 GiB on cpu and is pinned; org/secret-2, mine-too: they stay"
FOR_MINE = TEXT.replace("org/secret-2", "another model").replace("org/secret", "another model")


class Full(FakeNeuron):
    """Has no memory, and says for whom."""

    def _on_request(self, peer: Peer, request: AnyRequest) -> None:
        if not isinstance(request, Generate):
            super()._on_request(peer, request)
            return
        peer.send(Progress(id=request.id, stage="queued", message="memory that org/secret holds"))
        failed = Failed(id=request.id, code=Code.INSUFFICIENT_MEMORY, message=TEXT, details=HELD)
        asyncio.get_running_loop().call_later(0.2, peer.send, failed)

    def state(self, request_id: int) -> State:
        state = super().state(request_id)
        told = [msgspec.structs.replace(each, error=TEXT) for each in state.models]
        return msgspec.structs.replace(state, models=told)


def holder(**terms: object) -> Principal:
    meter = SimpleNamespace(note=lambda *used: None)
    return Principal("account", Key(1, "id", b"", "dan", 0.0, None, None, Terms(**terms)), meter=meter)


async def hear(exchange: Exchange, told: list[str]) -> None:
    while True:
        told += [each.message for each in await exchange.take(1.0) if isinstance(each, Progress)]


@pytest.mark.parametrize(
    ("principal", "text", "held"),
    [
        (ANYBODY, TEXT, {"org/secret", "mine-too"}),
        (holder(models=("mine*",), admin=True), TEXT, {"org/secret", "mine-too"}),
        (holder(models=("mine*",)), FOR_MINE, {"mine-too"}),
    ],
    ids=["anybody", "an administrator", "for some"],
)
def test_a_refusal_a_place_in_line_and_a_placement_name_no_model_that_a_key_is_not_for(
    principal: Principal, text: str, held: set[str]
) -> None:
    async def scenario() -> None:
        evicts = quote("evicts", 4.0, evicts=["org/secret"])
        hosts = [
            Full(name=name, models=MODELS, status=dict.fromkeys(MODELS, "unloaded"), quotes={"mine": evicts})
            for name in "ab"
        ]
        async with fleet_of(*hosts) as fleet:
            exchange = Exchange(fleet, "r", principal)
            await exchange.send(Generate(id=0, model="mine", prompt="one", stream=True))
            await exchange.placed()
            told = [exchange.placement]
            with pytest.raises(CortexError) as caught:
                await hear(exchange, told)
            exchange.close()
        assert caught.value.message.startswith(text)
        assert caught.value.details["held"].keys() == held
        assert {"org/secret" in each for each in told} == {"org/secret" in held}
        assert len(told) > 1

    run(scenario)


def test_the_list_of_models_says_of_mine_what_is_wrong_without_the_names_of_others() -> None:
    async def scenario() -> None:
        async with fleet_of(Full(name="a", models=MODELS)) as fleet:
            mine = next(each for each in listing.every(fleet) if each.id == "mine")
            for principal, text in ((ANYBODY, TEXT), (holder(models=("mine*",)), FOR_MINE)):
                entry = models.model(_for(principal, mine, fleet.directory))
                assert entry["locations"][0]["error"] == text

    run(scenario)


@pytest.mark.parametrize("kind", [FakeNeuron, Full])
def test_a_list_of_many_models_costs_each_of_them_a_few_looks(
    kind: type[FakeNeuron], monkeypatch: pytest.MonkeyPatch
) -> None:
    count = 1200
    looks: list[str] = []
    translated: list[str] = []
    translate = fnmatch.translate
    monkeypatch.setattr(
        fnmatch, "translate", lambda pattern: translated.append(pattern) or translate(pattern)
    )

    class Looking(Principal):
        def may_use(self, model: str) -> bool:
            looks.append(model)
            return super().may_use(model)

    async def scenario() -> None:
        key = holder(models=(f"{kind.__name__}/*",))._key
        request = SimpleNamespace(
            get_header=lambda *_, **__: None,
            get_param=lambda *_, **__: None,
            context=SimpleNamespace(principal=Looking("account", key)),
        )
        names = (*MODELS, *(f"{kind.__name__}/{number:04}" for number in range(count)))
        async with fleet_of(kind(name="a", models=names)) as fleet:
            response = falcon.asgi.Response()
            await ModelsResource(fleet).on_get(request, response)
            body = response.data or b"".join([piece async for piece in response.stream])
            assert len(json.loads(body)["data"]) == count
        assert translated == [f"{kind.__name__}/*"]
        # Whether it is listed, and each other that a model's error speaks of.
        assert len(looks) <= len(names) + len(MODELS) * count

    run(scenario)


@pytest.mark.parametrize("word", ["needed", "free", "cpu", "memory", "holds", "requests", "held"])
def test_a_model_whose_name_is_a_word_is_left_out_where_a_model_stands_and_nowhere_else(word: str) -> None:
    def written(name: str) -> list[str]:
        return [
            f"mine needs 9.00 GiB; free are 4.00 GiB on cpu; {name} holds 5.00 GiB on cpu and works",
            f"mine does not fit: 9.00 GiB are needed on cpu and 4.00 GiB are free (held: {name} 5.00 GiB)",
            f"number 2 in the line for memory that mine, {name} hold",
            f"mine waited 9 s (memory.wait_seconds) for memory that {name} had not finished with",
            f"{name}, org/other would have to leave",
            f"it quoted evicts ({name}, {name}) in 4.0 s",
            f"the model '{name}' is one of 3 requests",
        ]

    sizes = {"needed": [9], "free": {"cpu": 4}, "of": "requests"}
    told = {
        "said": written(word),
        "here": {**sizes, "held": {word: {"cpu": 5}, f"parked {word}": {"cpu": 5}, "mine": {"cpu": 1}}},
        word: sizes,
    }
    assert discreet(told, {"mine", word}, "mine".__eq__) == {
        "said": written("another model"),
        "here": {**sizes, "held": {"mine": {"cpu": 1}}},
        word: sizes,
    }


def test_names_are_whole_words_and_leave_mappings_and_lists() -> None:
    names, hidden = {"a", "b.5", "org/c", "d"}, {"a", "b.5", "org/c"}
    told = {"x": ["a, b.5: a.b", {"held": {"a": 1, "ba": 2, "parked org/c": 3}, "y": "org/c:"}], "n": 3}
    assert discreet(told, names, lambda model: model not in hidden) == {
        "x": ["another model, another model: a.b", {"held": {"ba": 2}, "y": "another model:"}],
        "n": 3,
    }
    assert json.dumps(discreet(told, names, lambda model: True)) == json.dumps(told)
