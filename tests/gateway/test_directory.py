"""Where models are, and what is left alone for a while."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from gateway.fleet.breaker import FAILURES, MAX_SECONDS, SECONDS, TRIAL_SECONDS, Breaker
from gateway.fleet.directory import Directory, Listed
from ipc.messages.state import ModelState
from tests.doubles import stands_for


@stands_for(Listed)
@dataclass(eq=False)
class Host:
    name: str
    models: dict[str, ModelState] = field(default_factory=dict)
    healthy: bool = True
    draining: bool = False
    in_flight: dict[str, int] = field(default_factory=dict)

    def has(self, **statuses: str) -> Host:
        self.models = {model: ModelState(id=model, status=status) for model, status in statuses.items()}
        return self


def names(hosts: list[Host]) -> str:
    return "".join(host.name for host in hosts)


def test_a_directory_tells_who_has_a_model_and_who_has_it_loaded() -> None:
    directory: Directory[Host] = Directory()
    a, b, c = Host("a").has(m="ready"), Host("b").has(m="unloaded", n="ready"), Host("c").has(m="ready")
    for host in (c, a, b):
        directory.update(host, host.models)
    copies = directory.of("m")
    assert (names(copies.known), names(copies.ready), names(copies.others)) == ("abc", "ac", "b")
    a.draining = True
    c.healthy = False
    b.has(m="loading")
    for host in (a, b, c):
        directory.update(host, ["m", "n"])
    assert (names(copies.known), names(copies.ready), names(copies.others)) == ("abc", "", "b")
    assert "n" not in directory
    assert directory.of("n").known == []
    assert "m" in directory


@pytest.mark.parametrize("state", ["drained", "retired"])
def test_a_model_that_is_drained_or_retired_on_a_host_gets_nothing_there(state: str) -> None:
    directory: Directory[Host] = Directory()
    a = Host("a", {name: ModelState(id=name, status="ready", **{state: name == "m"}) for name in "mn"})
    directory.update(a, "mn")
    assert [names(directory.of(name).ready) for name in "mn"] == ["", "a"]
    assert (names(directory.of("m").known), names(directory.of("m").others)) == ("a", "")


def test_a_model_that_was_asked_for_is_coming_before_its_host_says_so() -> None:
    directory: Directory[Host] = Directory()
    a, b = Host("a").has(m="unloaded"), Host("b").has(m="loading")
    for host in (a, b):
        directory.update(host, ["m"])
    assert names(directory.of("m").coming) == "b"
    a.in_flight = {"m": 1}
    directory.update(a, ["m"])
    assert names(directory.of("m").coming) == "ab"
    b.has(m="ready")
    directory.update(b, ["m"])
    assert names(directory.of("m").coming) == "a"


def test_a_breaker_opens_after_failures_in_a_row_lets_one_through_and_opens_for_longer() -> None:
    breaker = Breaker()
    for _ in range(FAILURES - 1):
        assert breaker.failed(0.0) is None
    assert not breaker.is_open(0.0)
    assert not breaker.has_opened
    assert breaker.failed(0.0) == SECONDS
    assert breaker.failed(0.0) is None  # it is open as it was
    assert breaker.has_opened
    assert breaker.is_open(SECONDS - 0.1)
    assert not breaker.is_open(SECONDS)
    breaker.began(SECONDS)  # the trial
    assert breaker.is_open(SECONDS + TRIAL_SECONDS - 0.1)
    assert breaker.failed(10.0) == 2 * SECONDS
    assert breaker.is_open(10.0 + 2 * SECONDS - 0.1)
    assert not breaker.is_open(10.0 + 2 * SECONDS)
    now = 10.0
    for _ in range(9):
        now += MAX_SECONDS
        breaker.began(now)
        breaker.failed(now)
    assert breaker.is_open(now + MAX_SECONDS - 0.1)
    assert not breaker.is_open(now + MAX_SECONDS)


def test_a_crash_under_many_requests_opens_a_breaker_for_no_longer() -> None:
    breaker = Breaker()
    for _ in range(50):
        breaker.failed(0.0)
    assert not breaker.is_open(SECONDS)
