"""Clients that have no tokenizer are told which of their prompts a worker still holds."""

from __future__ import annotations

import time
from pathlib import Path

from ipc.messages.replies import State
from ipc.messages.requests import Generate, Load, Mark, Watch
from ipc.messages.sampling import Sampling
from ipc.worker_messages import MemoryUse, Ready, StepReport
from neuron.tenancy.prefixes import Prefixes
from neuron.tenancy.statistics import Statistics
from tests.neuron.harness import PATIENCE, Neuron, simulated

A, B, C = (bytes([number]) * 16 for number in range(3))


def test_a_mark_is_held_for_as_long_as_its_last_page() -> None:
    prefixes = Prefixes()
    prefixes.note(b"head", 64, A)
    prefixes.note(b"all", 96, B)
    prefixes.note(b"session", 96, B)
    assert prefixes.take_news() == {b"head": 64, b"all": 96, b"session": 96}
    prefixes.forget([B, C])
    assert prefixes.whole() == {b"head": 64}
    assert prefixes.take_news() == {b"all": 0, b"session": 0}
    assert prefixes.take_news() == {}


def test_a_mark_moves_to_a_longer_prompt_and_the_old_page_means_nothing_any_more() -> None:
    prefixes = Prefixes()
    prefixes.note(b"session", 64, A)
    prefixes.note(b"session", 128, B)
    prefixes.note(b"session", 128, B)
    prefixes.forget([A])
    assert (prefixes.whole(), prefixes.take_news()) == ({b"session": 128}, {b"session": 128})


def test_of_too_many_marks_the_oldest_are_forgotten() -> None:
    prefixes = Prefixes(limit=2)
    for mark in (b"1", b"2", b"1", b"3"):
        prefixes.note(mark, 32, A)
    assert prefixes.whole() == {b"1": 32, b"3": 32}
    prefixes.forget([A])
    assert not prefixes.whole()


def test_pages_that_never_came_are_not_counted_on() -> None:
    figures = Statistics([Ready(1, 20, MemoryUse(), 0.1)])
    figures.prefixes.note(b"there", 32, A)
    figures.prefixes.note(b"given up", 64, B)
    figures.take([StepReport(step=1, sequences=[], running=0, waiting=0, pages_free=7, cached=[A])])
    figures.doubt([A, B])
    assert figures.prefixes.whole() == {b"there": 32}


def test_watches_are_told_what_a_worker_holds_and_what_it_no_longer_does(tmp_path: Path) -> None:
    def ask(first: int, *marks: Mark) -> Generate:
        prompt = [first] * 100
        return Generate(id=0, model="sim", prompt=prompt, marks=list(marks), sampling=Sampling(max_tokens=2))

    with (
        Neuron(tmp_path, [simulated("sim", settings={"context_length": 256, "max_sequences": 1})]) as neuron,
        neuron.client() as client,
        neuron.client() as watching,
    ):
        client.ask(Load(id=0, model="sim"), PATIENCE)
        states = watching.stream(Watch(id=0), PATIENCE)

        known: dict[bytes, int] = {}

        def until(held: dict[bytes, int]) -> None:
            nonlocal known
            deadline = time.monotonic() + PATIENCE
            while known != held:
                assert time.monotonic() < deadline, known
                if isinstance(state := next(states), State):
                    known = {} if state.whole else known
                    known |= state.prefixes.get("sim", {})
                    known = {mark: tokens for mark, tokens in known.items() if tokens}

        client.ask(
            ask(5, Mark(digest=b"all"), Mark(digest=b"half", share=0.5), Mark(digest=b"less", share=0.1)),
            PATIENCE,
        )
        until({b"all": 96, b"half": 32})
        client.ask(ask(6, Mark(digest=b"all")), PATIENCE)
        until({b"all": 96, b"half": 32})
        client.ask(Generate(id=0, model="sim", prompt=[7] * 240, sampling=Sampling(max_tokens=2)), PATIENCE)
        until({})
