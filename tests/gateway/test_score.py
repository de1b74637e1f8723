"""Which of the neurons that have a model loaded gets a request."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass, field
from math import inf, nan

import pytest

from gateway.fleet.prefixes import EXPECTED_SECONDS, MOST, Prefixes
from gateway.fleet.prompts import Prompt, read
from gateway.fleet.score import Asked, Loaded, Score, best, some
from ipc.messages.conversation import ImagePart, Message, TextPart, Tool
from ipc.messages.requests import Generate
from ipc.messages.state import ModelState
from tests.doubles import stands_for

PLAIN = Asked("m")


@stands_for(Loaded)
@dataclass(eq=False)
class Host:
    name: str
    models: dict[str, ModelState]
    in_flight: dict[str, int] = field(default_factory=dict)
    shaky: bool = False

    def is_shaky(self, model: str) -> bool:
        return self.shaky


def host(name: str, running: int = 0, *, mine: int = 0, shaky: bool = False, **fields) -> Host:
    values = {
        "running": running,
        "max_sequences": 10,
        "request_seconds": 2.0,
        "prefill_rate": 1000.0,
    } | fields
    return Host(name, {"m": ModelState(id="m", status="ready", **values)}, {"m": mine}, shaky)


def prompt(*turns: str, system: str = "", **fields) -> Prompt:
    messages = [Message(role="system", content=system)] if system else []
    messages += [
        Message(role=("user", "assistant")[number % 2], content=turn) for number, turn in enumerate(turns)
    ]
    return read(Generate(id=1, model="m", messages=messages, **fields))


def chosen(hosts: list[Host], asked: Asked = PLAIN, prefixes: Prefixes[Host] | None = None) -> Score[Host]:
    return best(hosts, asked, prefixes or Prefixes())


def holding(*held: tuple[Host, Prompt, int]) -> Prefixes[Host]:
    prefixes: Prefixes[Host] = Prefixes()
    for each, of, tokens in held:
        prefixes.learn(each, "m", {of.places[0].digest: tokens})
    return prefixes


# --- load -----------------------------------------------------------------------------------------------


def test_the_least_loaded_gets_it_and_own_requests_count_before_the_neuron_says_so() -> None:
    assert chosen([host("a", 3), host("b", 1), host("c", 2)]).host.name == "b"
    assert chosen([host("a", mine=2), host("b", 1)]).host.name == "b"


def test_a_host_with_more_places_and_faster_answers_is_less_busy_with_the_same_load() -> None:
    assert chosen([host("a", 4, max_sequences=40), host("b", 4)]).host.name == "a"
    assert chosen([host("a", 4), host("b", 4, request_seconds=0.5)]).host.name == "b"


def test_a_request_waits_where_more_are_open_than_there_are_places_and_only_where_it_was_measured() -> None:
    for running, waits in ((9, 0.0), (10, 0.2), (29, 4.0)):
        assert chosen([host("a", running)]).waits == waits
    assert chosen([host("a", 29, request_seconds=0.0)]).waits == 0.0


def test_what_failed_lately_comes_last() -> None:
    hosts = [host("a", shaky=True), host("b", 9)]
    assert chosen(hosts).host.name == "b"
    assert chosen(hosts[:1]).host.name == "a"


@pytest.mark.parametrize(
    "lie",
    [
        {"request_seconds": nan},
        {"request_seconds": inf},
        {"request_seconds": -1e9},
        {"prefill_rate": 5e-324},
        {"prefill_rate": nan},
        {"max_sequences": -1},
        {"running": -100},
    ],
)
def test_a_host_that_cannot_be_as_it_says_comes_last_and_the_others_serve(lie: dict) -> None:
    liar, busy = host("a", **lie), host("b", 9)
    liar.in_flight["m"] = 3
    asked = Asked("m", prompt("a long one" * 100))
    assert chosen([liar, busy], asked).host is busy
    assert chosen([liar], asked).waits >= 0.0


def test_equals_share_what_has_nothing_in_common_and_the_same_goes_to_the_same_one() -> None:
    hosts = [host(name) for name in "abc"]
    served = Counter(chosen(hosts, Asked("m", key=bytes([key]))).host.name for key in range(60))
    assert len(served) == 3
    assert min(served.values()) > 5
    assert len({chosen(order, Asked("m", key=b"k")).host.name for order in (hosts, hosts[::-1])}) == 1


# --- prompts --------------------------------------------------------------------------------------------


def test_a_prompt_goes_where_most_of_it_is_cached_unless_that_costs_more_than_it_saves() -> None:
    asked = Asked("m", prompt("x" * 4000))  # some 1000 tokens, which take a second
    for running, there in ((0, "a"), (4, "a"), (6, "b")):
        a, b = host("a", running), host("b")
        assert chosen([a, b], asked, holding((a, asked.prompt, 992))).host.name == there


def test_a_conversation_that_grew_is_found_by_what_it_was() -> None:
    a, b = host("a", 1), host("b")
    before, after = prompt("q" * 4000), prompt("q" * 4000, "an answer", "another question")
    score = chosen([a, b], Asked("m", after), holding((a, before, 992)))
    assert (score.host.name, score.cached) == ("a", 992)


def test_other_conversations_with_the_same_instructions_are_found_by_these() -> None:
    a, b = host("a", 1), host("b")
    first, second = prompt("one", system="s" * 8000), prompt("two", system="s" * 8000)
    prefixes: Prefixes[Host] = Prefixes()
    prefixes.learn(a, "m", {first.head.digest: 2000})
    assert chosen([a, b], Asked("m", second), prefixes).host.name == "a"


def test_a_session_stays_unless_its_host_is_markedly_busier() -> None:
    asked = Asked("m", prompt("hi", session="s"))
    for running, there in ((2, "a"), (4, "b")):  # 0.4 s and 0.8 s, of which a quarter of 2 s is forgiven
        a, b = host("a", running), host("b")
        prefixes: Prefixes[Host] = Prefixes()
        prefixes.learn(a, "m", {asked.prompt.session: 32})
        assert chosen([a, b], asked, prefixes).host.name == there


def test_the_reason_is_in_words() -> None:
    asked = Asked("m", prompt("x" * 4000, session="s"))
    a = host("a", 2)
    prefixes = holding((a, asked.prompt, 992))
    prefixes.learn(a, "m", {asked.prompt.session: 992})
    reason = chosen([a, host("b", 9)], asked, prefixes).reason(asked, 2)
    assert reason.startswith("loaded, 0.4")
    assert "2 open, 992 of about 10" in reason
    assert reason.endswith("tokens cached, its session; best of 2")


# --- many hosts -----------------------------------------------------------------------------------------


def lines_run(action) -> int:
    """How many lines of Python that takes: a cost that no other process changes."""
    count = 0

    def trace(frame, event, argument):
        nonlocal count
        count += event == "line"
        return trace

    sys.settrace(trace)
    try:
        action()
    finally:
        sys.settrace(None)
    return count


def test_a_choice_among_a_thousand_costs_what_one_among_twenty_does() -> None:
    asked = Asked("m", prompt("x" * 4000, "y", "z"), key=b"k")
    costs = []
    for count in (20, 1000):
        hosts = [host(f"h{number:04}", number % 4) for number in range(count)]
        prefixes = holding((hosts[-1], asked.prompt, 960))
        score = chosen(hosts, asked, prefixes)
        assert (score.host, score.cached) == (hosts[-1], 960)
        costs.append(lines_run(lambda hosts=hosts, prefixes=prefixes: chosen(hosts, asked, prefixes)))
    assert costs[1] < 1.2 * costs[0]


def test_of_many_hosts_all_get_their_share() -> None:
    hosts = [host(f"h{number:03}") for number in range(200)]
    for key in range(2000):
        chosen(hosts, Asked("m", key=key.to_bytes(2))).host.in_flight["m"] += 1
    loads = sorted(each.in_flight["m"] for each in hosts)
    assert (loads[0], loads[-1]) >= (8, 8)
    assert loads[-1] <= 12
    assert len(set(map(id, some(hosts, 12, "m", b"k")))) == 12


# --- names of prompts -----------------------------------------------------------------------------------


def test_a_prompt_has_a_name_for_each_place_where_another_may_have_ended() -> None:
    long, short = prompt("a", "b", "c", system="s"), prompt("a", system="s")
    assert short.places[0] in long.places
    assert long.places[0].size == long.size
    assert long.head == short.head
    assert len({place.digest for place in long.places}) == 4


def test_all_that_a_template_is_given_is_in_the_name() -> None:
    tool = Tool.function("f")
    names = {
        each.places[0].digest
        for each in (
            prompt("a"),
            prompt("b"),
            prompt("a", tools=[tool]),
            prompt("a", cache_salt="x"),
            prompt("a", template_args={"k": 1}),
        )
    }
    assert len(names) == 5
    assert prompt("a", tools=[tool]).head == prompt("b", tools=[tool]).head


def test_a_neuron_is_sent_three_marks_at_most_with_how_far_they_reach() -> None:
    whole, head, session = prompt("a" * 400, "b", "c", system="s" * 400, session="x").marks()
    assert (whole.share, session.share) == (1.0, 1.0)
    assert 0.4 < head.share < 0.6
    assert len(prompt("a").marks()) == 1
    assert read(Generate(id=1, model="m", prompt="x")).marks() == []


def test_an_image_is_not_as_long_as_its_file() -> None:
    picture = [TextPart(text="what?"), ImagePart(data=bytes(1 << 20))]
    message = Message(role="user", content=picture)
    assert read(Generate(id=1, model="m", messages=[message])).size < 8000


# --- who holds them -------------------------------------------------------------------------------------


def test_what_was_sent_counts_as_held_until_its_host_should_have_said_so() -> None:
    prefixes: Prefixes[str] = Prefixes()
    prefixes.expect("a", "m", [(b"1", 64), (b"2", 32)], now=0.0)
    prefixes.learn("a", "m", {b"2": 32})
    assert (prefixes.held(b"1"), prefixes.held(b"2")) == ({"a": 64}, {"a": 32})
    prefixes.expect("b", "m", [], now=EXPECTED_SECONDS + 1)
    assert (prefixes.held(b"1"), prefixes.held(b"2")) == (None, {"a": 32})


def test_what_a_host_says_counts_more_than_what_is_expected_of_it() -> None:
    prefixes: Prefixes[str] = Prefixes()
    prefixes.learn("a", "m", {b"1": 64})
    prefixes.expect("a", "m", [(b"1", 500)], now=0.0)
    assert prefixes.held(b"1") == {"a": 64}
    prefixes.learn("a", "m", {b"1": 0, b"never": 0})
    assert (prefixes.held(b"1"), len(prefixes)) == (None, 0)


def test_nothing_is_left_of_a_model_that_left_its_host() -> None:
    prefixes: Prefixes[str] = Prefixes()
    for each in "ab":
        prefixes.learn(each, "m", {b"1": 64})
        prefixes.expect(each, "m", [(b"2", 64)], now=0.0)
        prefixes.learn(each, "n", {b"3": 64})
    prefixes.forget("a", ["m"])
    assert [prefixes.held(name) for name in (b"1", b"2")] == [{"b": 64}, {"b": 64}]
    assert prefixes.held(b"3") == {"a": 64, "b": 64}
    prefixes.forget("a", ["m", "n"])
    prefixes.forget("b", ["m", "n"])
    prefixes.expect("a", "m", [], now=100.0)
    assert (len(prefixes), prefixes._of, dict(prefixes._expected)) == (0, {}, {})


def test_a_host_that_claims_to_hold_more_than_any_can_is_not_believed() -> None:
    prefixes: Prefixes[str] = Prefixes()
    prefixes.learn("honest", "m", {b"1": 64})
    claims = {number.to_bytes(4): 64 for number in range(MOST + 1)}
    assert not prefixes.learn("liar", "m", claims | {b"1": 64})
    assert (len(prefixes), prefixes.held(b"1")) == (1, {"honest": 64})
    assert prefixes.learn("liar", "m", {b"1": 64})
