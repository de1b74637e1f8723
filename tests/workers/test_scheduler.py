from __future__ import annotations

import random
from array import array
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipc.worker_messages import SamplingParams, Submit
from workers.engine import StepResult
from workers.pages import PAGE_SIZE, pages_for
from workers.plan import StepPlan
from workers.scheduler import Scheduler

END = 2  # the stop id of these tests


def submit(request_id: int, prompt: list[int] | int, max_tokens: int = 1_000_000, stop_ids=(END,)) -> Submit:
    ids = array("I", prompt if isinstance(prompt, list) else [request_id + 10] * prompt)
    return Submit(request_id, ids.tobytes(), max_tokens, SamplingParams(0.0, stop_ids=list(stop_ids)))


def scheduler(*, max_sequences=4, max_step_tokens=64, context_length=1_000, kv_pages=100) -> Scheduler:
    return Scheduler(
        max_sequences=max_sequences,
        max_step_tokens=max_step_tokens,
        context_length=context_length,
        kv_pages=kv_pages,
    )


@dataclass
class Slot:
    token_ids: list[int]
    pages: list[int] = field(default_factory=list)
    num_computed: int = 0


class CheckedEngine:
    """An engine that computes nothing, and refuses every plan that breaks the rules of `workers.plan`."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.max_slots = len(scheduler._free_slots)
        self.slots: dict[int, Slot] = {}

    def execute(self, plan: StepPlan, sample) -> list[int]:
        for slot in plan.released:
            del self.slots[slot]
        for new in plan.added:
            assert new.slot not in self.slots
            assert 0 <= new.slot < self.max_slots
            self.slots[new.slot] = Slot(list(array("I", new.token_ids)))
        assert plan.scheduled
        assert len({entry.slot for entry in plan.scheduled}) == len(plan.scheduled)
        assert sum(entry.num_tokens for entry in plan.scheduled) <= self.scheduler.max_step_tokens
        sampled = []
        for entry in plan.scheduled:
            slot = self.slots[entry.slot]
            slot.pages += entry.new_pages
            slot.num_computed += entry.num_tokens
            assert entry.num_tokens >= 1
            assert slot.num_computed <= len(slot.token_ids)
            assert pages_for(slot.num_computed) <= len(slot.pages)
            if slot.num_computed == len(slot.token_ids):
                sampled.append(sample(slot.token_ids))
                slot.token_ids.append(sampled[-1])
        held = [page for slot in self.slots.values() for page in slot.pages]
        assert len(held) == len(set(held)), "a page is shared"
        assert set(held) <= set(range(self.scheduler.pool.total))
        return sampled


class Run:
    """A scheduler with its engine, and what each request got so far."""

    def __init__(self, scheduler: Scheduler, sample=lambda token_ids: 7) -> None:
        self.scheduler = scheduler
        self.engine = CheckedEngine(scheduler)
        self.sample = sample
        self.output: dict[int, list[int]] = {}
        self.finish: dict[int, str] = {}
        self.touches: dict[int, int] = {}  # reports without a token and without a finish
        self.message: dict[int, str] = {}

    def step(self) -> StepPlan | None:
        plan = self.scheduler.plan()
        if plan is not None:
            self.scheduler.commit(StepResult(self.engine.execute(plan, self.sample)))
        for report in self.scheduler.take_reports():
            assert report.request_id not in self.finish, "a report after the end"
            self.output.setdefault(report.request_id, []).extend(report.token_ids)
            if not report.token_ids and not report.finish:
                self.touches[report.request_id] = self.touches.get(report.request_id, 0) + 1
            if report.finish:
                self.finish[report.request_id] = report.finish
                self.message[report.request_id] = report.message
        return plan

    def to_the_end(self) -> Run:
        while self.step() is not None:
            pass
        return self

    def assert_nothing_is_held(self) -> None:
        pool = self.scheduler.pool
        assert sorted(pool._free) == list(range(pool.total)), "a page is leaked or was freed twice"
        assert sorted(self.scheduler._free_slots) == list(range(self.engine.max_slots))
        assert not self.scheduler._open
        assert not self.scheduler.running
        assert not self.scheduler.waiting


# --- each promise alone -------------------------------------------------------------------------------


def test_max_tokens_ends_with_length():
    run = Run(scheduler())
    run.scheduler.submit(submit(1, 5, max_tokens=3))
    run.to_the_end().assert_nothing_is_held()
    assert run.output == {1: [7, 7, 7]}
    assert run.finish == {1: "length"}


def test_the_stop_token_is_reported_and_ends_with_stop():
    run = Run(scheduler(), sample=lambda token_ids: END if len(token_ids) == 8 else 7)
    run.scheduler.submit(submit(1, 5))
    run.to_the_end().assert_nothing_is_held()
    assert run.output == {1: [7, 7, 7, END]}
    assert run.finish == {1: "stop"}


def test_the_context_ends_with_length_and_holds_no_token_more():
    run = Run(scheduler(context_length=20))
    run.scheduler.submit(submit(1, 5))
    run.to_the_end().assert_nothing_is_held()
    assert len(run.output[1]) == 15
    assert run.finish == {1: "length"}


def test_a_sequence_that_alone_fills_the_pool_ends_with_length():
    run = Run(scheduler(kv_pages=2))
    run.scheduler.submit(submit(1, 5))
    run.to_the_end().assert_nothing_is_held()
    assert len(run.output[1]) == 2 * PAGE_SIZE - 5
    assert run.finish == {1: "length"}


@pytest.mark.parametrize(
    ("prompt", "max_tokens", "message"),
    [
        (0, 5, "empty"),
        (3, 0, "max_tokens is 0"),
        (50, 5, "prompt has 50 tokens.*may have 50"),
        (96, 5, "prompt has 96 tokens"),
    ],
)
def test_a_request_that_can_never_run_is_answered_with_error(prompt, max_tokens, message):
    run = Run(scheduler(context_length=50, kv_pages=3))
    run.scheduler.submit(submit(1, prompt, max_tokens))
    run.to_the_end().assert_nothing_is_held()
    assert run.finish == {1: "error"}
    with pytest.raises(ValueError, match=message):
        raise ValueError(run.message[1])


def test_a_request_id_that_is_open_is_refused():
    run = Run(scheduler())
    run.scheduler.submit(submit(1, 5))
    with pytest.raises(ValueError, match="1 is open already"):
        run.scheduler.submit(submit(1, 5))


def test_abort_frees_pages_before_the_next_step():
    run = Run(scheduler())
    run.scheduler.submit(submit(1, 40))
    run.scheduler.submit(submit(2, 40))
    run.step()
    run.step()
    run.scheduler.abort(1)
    plan = run.step()
    assert run.finish == {1: "aborted"}
    assert len(plan.released) == 1
    assert run.scheduler.pool.num_free == 100 - pages_for(
        run.engine.slots[plan.scheduled[0].slot].num_computed
    )


def test_abort_of_a_waiting_request_ends_it_without_a_step():
    run = Run(scheduler())
    run.scheduler.submit(submit(1, 40))
    run.scheduler.abort(1)
    assert run.step() is None
    assert run.finish == {1: "aborted"}
    run.assert_nothing_is_held()


def test_abort_of_an_ended_request_says_nothing():
    run = Run(scheduler())
    run.scheduler.submit(submit(1, 5, max_tokens=1))
    run.to_the_end()
    run.scheduler.abort(1)
    run.scheduler.abort(99)
    assert run.scheduler.take_reports() == []


def test_running_sequences_decode_while_a_long_prompt_joins_in_chunks():
    run = Run(scheduler(max_step_tokens=64))
    run.scheduler.submit(submit(1, 5))
    run.step()
    run.scheduler.submit(submit(2, 200))
    while not run.output.get(2):
        before = len(run.output[1])
        plan = run.step()
        assert len(run.output[1]) == before + 1
        assert plan.scheduled[0].num_tokens == 1
        assert sum(entry.num_tokens for entry in plan.scheduled) <= 64
    assert run.touches == {2: 1}, "the first chunk is told once, later ones are not"


def test_the_budget_bounds_the_running_sequences():
    run = Run(scheduler(max_sequences=8, max_step_tokens=3))
    for request_id in range(8):
        run.scheduler.submit(submit(request_id, 2, max_tokens=20))
    run.to_the_end().assert_nothing_is_held()
    assert all(len(output) == 20 for output in run.output.values())


def test_out_of_pages_the_youngest_resumes_with_prompt_and_output():
    def successor(token_ids: list[int]) -> int:
        return 1_000 + len(token_ids)

    run = Run(scheduler(kv_pages=6, max_step_tokens=256), sample=successor)
    for request_id in range(3):
        run.scheduler.submit(submit(request_id, 30, max_tokens=100))
    preempted = 0
    while (plan := run.step()) is not None:
        preempted += sum(len(new.token_ids) // 4 > new.prompt_len for new in plan.added)
        for new in plan.added:
            ids = list(array("I", new.token_ids))
            assert ids[30:] == [1_000 + n for n in range(30, len(ids))]
    assert preempted >= 1
    assert list(run.finish) == [0, 1, 2], "the oldest is never the one to wait"
    assert all(output == [1_000 + n for n in range(30, 130)] for output in run.output.values())
    run.assert_nothing_is_held()


def test_a_pool_that_is_far_too_small_is_not_wasted_on_computing_again():
    run = Run(scheduler(kv_pages=64, max_step_tokens=512, max_sequences=32))
    for request_id in range(32):
        run.scheduler.submit(submit(request_id, 40, max_tokens=100))
    computed = 0
    while (plan := run.step()) is not None:
        computed += sum(entry.num_tokens for entry in plan.scheduled)
    assert all(len(output) == 100 for output in run.output.values())
    assert computed < 1.3 * 32 * 140


def test_a_prompt_that_finds_no_page_waits_while_its_elders_decode():
    run = Run(scheduler(kv_pages=5, max_step_tokens=2))
    run.scheduler.submit(submit(1, 25, max_tokens=120))
    run.step()
    run.scheduler.submit(submit(2, 90, max_tokens=5))
    waited = 0
    while run.step() is not None:
        waited += not run.scheduler.pool.num_free and len(run.scheduler._stepping) == 1 < len(
            run.scheduler.running
        )
    assert waited >= 1
    assert [len(run.output[request_id]) for request_id in (1, 2)] == [120, 5]
    run.assert_nothing_is_held()


def test_too_few_or_too_many_sampled_tokens_are_an_error():
    for sampled in ([], [7, 7]):
        run = Run(scheduler())
        run.scheduler.submit(submit(1, 5))
        run.scheduler.plan()
        with pytest.raises(ValueError, match="zip"):
            run.scheduler.commit(StepResult(sampled))


# --- all promises together, at random -----------------------------------------------------------------


@dataclass(frozen=True)
class Shape:
    max_sequences: int
    max_step_tokens: int
    context_length: int
    kv_pages: int


def storm(shape: Shape, seed: int, steps: int) -> None:
    """Submit and abort at random for `steps` steps, then let it end; check everything, always."""
    random_ = random.Random(seed)

    def sample(token_ids: list[int]) -> int:
        # depends on the tokens alone, as a seeded sampler does, so an answer is known in advance
        return END if hash((len(token_ids), token_ids[0], seed)) % 300 == 0 else len(token_ids) % 1_000 + 3

    scheduler_ = Scheduler(**vars(shape))
    run = Run(scheduler_, sample)
    sent: dict[int, Submit] = {}
    aborted: set[int] = set()
    first_token: list[int] = []
    limit = min(shape.context_length, shape.kv_pages * PAGE_SIZE)

    def step() -> StepPlan | None:
        silent = {request_id for request_id in sent if not run.output.get(request_id)}
        plan = run.step()
        first_token.extend(sorted(request_id for request_id in silent if run.output.get(request_id)))
        arrivals = [sequence.request.request_id for sequence in scheduler_.running]
        arrivals += [sequence.request.request_id for sequence in scheduler_.waiting]
        assert arrivals == sorted(arrivals), "somebody overtook"
        assert all(sequence.num_pending == 1 for sequence in scheduler_.running[:-1])
        used = sum(len(sequence.pages) for sequence in scheduler_.running)
        assert used + scheduler_.pool.num_free == shape.kv_pages
        return plan

    for _ in range(steps):
        while random_.random() < 0.15 and len(scheduler_.waiting) < 20:
            request_id = len(sent)
            longest = random_.choice([2, 20, limit // 2, int(limit * 1.1)])
            prompt = [random_.randint(3, 50)] + [9] * random_.randint(-1, longest)
            prompt = prompt if random_.random() > 0.02 else []
            sent[request_id] = submit(request_id, prompt, random_.choice([0, 1, 5, 60, 10_000]))
            scheduler_.submit(sent[request_id])
        if sent and random_.random() < 0.03:
            request_id = random_.randrange(max(0, len(sent) - 20), len(sent))
            scheduler_.abort(request_id)
            aborted.add(request_id)
        step()
    while step() is not None:
        pass

    run.assert_nothing_is_held()
    assert run.finish.keys() == sent.keys(), "each request ends exactly once"
    assert first_token == sorted(first_token), "first come, first served"
    for request_id, request in sent.items():
        prompt = array("I", request.prompt).tolist()
        finish, output = run.finish[request_id], run.output[request_id]
        expected = list(prompt)
        for token in output:
            assert token == sample(expected), "an answer changed on the way"
            expected.append(token)
        if finish == "stop":
            assert output[-1] == END
        elif finish == "length":
            assert len(output) == request.max_tokens or len(expected) == limit
        elif finish == "error":
            assert not prompt or request.max_tokens < 1 or len(prompt) >= limit
        else:
            assert finish == "aborted"
            assert request_id in aborted
        assert run.touches.get(request_id, 0) <= 1


@pytest.mark.parametrize("kv_pages", [5, 12, 40])
@pytest.mark.parametrize("max_step_tokens", [7, 64, 512])
@pytest.mark.parametrize("max_sequences", [1, 4, 32])
def test_a_long_storm_leaks_nothing_and_answers_everybody(max_sequences, max_step_tokens, kv_pages):
    shape = Shape(max_sequences, max_step_tokens, context_length=300, kv_pages=kv_pages)
    storm(shape, seed=hash(shape), steps=5_000)


@settings(max_examples=60, deadline=None)
@given(
    shape=st.builds(
        Shape,
        max_sequences=st.integers(1, 12),
        max_step_tokens=st.integers(1, 100),
        context_length=st.integers(2, 300),
        kv_pages=st.integers(1, 20),
    ),
    seed=st.integers(0, 2**32),
)
def test_any_shape_leaks_nothing_and_answers_everybody(shape, seed):
    storm(shape, seed, steps=60)


def test_the_same_events_give_the_same_plans():
    def plans() -> list[StepPlan]:
        run = Run(scheduler(kv_pages=8))
        made = []
        for request_id in range(6):
            run.scheduler.submit(submit(request_id, 20 * request_id + 1, max_tokens=50))
            made.append(run.step())
        while (plan := run.step()) is not None:
            made.append(plan)
        return made

    assert plans() == plans()
