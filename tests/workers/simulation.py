"""A reference for the scheduler: an engine that computes nothing, and remembers what each page would hold.

`STORM_STEPS` in the environment is how many steps each long storm of random events has.
"""

from __future__ import annotations

import os
import random
from array import array
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from ipc.worker_messages import PAGE_SIZE, SamplingParams, SequenceReport, Submit
from workers.scheduling import fair_queue
from workers.scheduling.scheduler import Scheduler
from workers.scheduling.sequence import Sequence
from workers.step.engine import Extra, StepResult
from workers.step.pages import pages_for
from workers.step.plan import StepPlan

END = 2  # the stop id of these tests
LANES = 12  # accounts times priorities in a storm
STORM_STEPS = int(os.environ.get("STORM_STEPS", "1500"))


def submit(request_id: int, prompt: list[int] | int, max_tokens: int = 1_000_000, **fields: Any) -> Submit:
    """A number stands for a prompt of that many tokens, like no other request's."""
    ids = array("I", prompt if isinstance(prompt, list) else [request_id + 10] * prompt)
    params = SamplingParams(0.0, stop_ids=[END], prompt_logprobs=fields.pop("prompt_logprobs", None))
    return Submit(request_id, ids.tobytes(), max_tokens, params, **fields)


def make_scheduler(
    *, max_sequences: int = 4, max_step_tokens: int = 64, context_length: int = 1_000, kv_pages: int = 100
) -> Scheduler:
    return Scheduler(
        max_sequences=max_sequences,
        max_step_tokens=max_step_tokens,
        context_length=context_length,
        kv_pages=kv_pages,
    )


def sample_seven(token_ids: list[int]) -> StepResult:
    return StepResult([7])


@dataclass
class Slot:
    salt: str
    pooling: str
    token_ids: list[int]
    pages: list[int]
    num_computed: int
    states: list[int] = field(default_factory=list)  # of each token computed: stands for it and all before it


class ReferenceEngine:
    """Refuses a plan that breaks the rules of `workers.step.plan`, or reads or writes what it must not."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.num_slots = len(scheduler._free_slots)
        self.slots: dict[int, Slot] = {}
        self.memory: list[list[int | None]] = [[None] * PAGE_SIZE for _ in range(scheduler.pool.total)]
        self.meaning: dict[bytes, tuple[int | None, ...]] = {}  # what pages with that hash hold
        self.hash_of: dict[tuple[int | None, ...], bytes] = {}
        self.computed = 0  # tokens
        self.admitted: list[Sequence] = []  # each as often as it was

    def execute(self, plan: StepPlan, sample: Any, fails: bool = False) -> StepResult | None:
        """None: it failed for want of memory."""
        for slot in plan.released:
            del self.slots[slot]
        for new in plan.added:
            assert new.slot not in self.slots
            assert 0 <= new.slot < self.num_slots
            [sequence] = [s for s in self._running() if s.slot == new.slot]
            self.admitted.append(sequence)
            request = sequence.request
            ids = array("I", new.token_ids).tolist()
            computed = len(new.tables[0]) * PAGE_SIZE if new.tables else 0
            assert computed < len(ids), "a token is left to compute"
            slot = Slot(
                request.cache_salt,
                new.pooling,
                ids,
                [page for table in new.tables for page in table],
                computed,
            )
            self._extend_states(slot, computed)
            self.slots[new.slot] = slot
        assert plan.scheduled
        assert len({entry.slot for entry in plan.scheduled}) == len(plan.scheduled)
        assert sum(entry.num_tokens for entry in plan.scheduled) <= self.scheduler.max_step_tokens
        users = Counter(page for slot in self.slots.values() for page in slot.pages)
        users.update(page for entry in plan.scheduled for pages in entry.new_pages for page in pages)
        assert all(
            users[page] == 1 for entry in plan.scheduled for pages in entry.new_pages for page in pages
        )
        for entry in plan.scheduled:
            self.slots[entry.slot].pages += [page for pages in entry.new_pages for page in pages]
        if fails:
            return None
        result = StepResult([])
        for entry in plan.scheduled:
            slot = self.slots[entry.slot]
            self._check_what_it_reads(slot)
            start, end = slot.num_computed, slot.num_computed + entry.num_tokens
            assert start < end <= len(slot.token_ids)
            assert pages_for(end) <= len(slot.pages)
            self._extend_states(slot, end)
            for position in range(start, end):
                page = slot.pages[position // PAGE_SIZE]
                assert users[page] == 1, "a shared page is written"
                assert page not in self.scheduler.pool._hash_of, "a page that can be shared is written"
                self.memory[page][position % PAGE_SIZE] = slot.states[position]
            slot.num_computed = end
            self.computed += entry.num_tokens
            if end == len(slot.token_ids):
                one = (
                    StepResult([-1], {0: Extra(embedding=b"1234")})
                    if slot.pooling
                    else sample(slot.token_ids)
                )
                if one.extras:
                    result.extras[len(result.tokens)] = one.extras[0]
                result.tokens += one.tokens
                slot.token_ids += one.tokens
        return result

    def check_pages(self) -> None:
        """Every page is in use, idle or empty, as the sequences say; its hash means what it holds."""
        pool = self.scheduler.pool
        users = Counter(page for sequence in self._running() for page in sequence.pages)
        assert pool._users == [users[page] for page in range(pool.total)]
        unused = [page for page in range(pool.total) if not users[page]]
        assert sorted([*pool._empty, *pool._idle]) == unused, "a page is leaked or was freed twice"
        assert all(page in pool._hash_of for page in pool._idle)
        assert not any(page in pool._hash_of for page in pool._empty)
        assert {digest: page for page, digest in pool._hash_of.items()} == pool._page_of
        for digest, page in pool._page_of.items():
            held = tuple(self.memory[page])
            assert None not in held
            assert self.meaning.setdefault(digest, held) == held
            assert self.hash_of.setdefault(held, digest) == digest

    def _running(self) -> list[Sequence]:
        return self.scheduler.prefilling + self.scheduler.decoding

    def _extend_states(self, slot: Slot, end: int) -> None:
        state = slot.states[-1] if slot.states else hash(slot.salt)
        for token in slot.token_ids[len(slot.states) : end]:
            state = hash((state, token))
            slot.states.append(state)

    def _check_what_it_reads(self, slot: Slot) -> None:
        for index in range(pages_for(slot.num_computed)):
            start, end = index * PAGE_SIZE, min((index + 1) * PAGE_SIZE, slot.num_computed)
            assert self.memory[slot.pages[index]][: end - start] == slot.states[start:end], (
                "it reads what is wrong"
            )


class Recorded:
    """A scheduler whose every event is kept, so that another one can be told the same."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self.events: list[tuple[str, Any]] = []

    def __getattr__(self, name: str) -> Any:
        tell = getattr(self._scheduler, name)
        if name not in ("submit", "abort", "plan", "commit", "step_failed"):
            return tell

        def told(argument: Any = None) -> Any:
            self.events.append((name, argument))
            return tell(argument)

        return told


def replay(
    scheduler: Scheduler, events: list[tuple[str, Any]]
) -> tuple[list[StepPlan | None], list[SequenceReport]]:
    """Tell a new scheduler what another one was told; returns its plans and its reports."""
    answers = [getattr(scheduler, name)(argument) for name, argument in events]
    plans = [answer for (name, _), answer in zip(events, answers, strict=True) if name == "plan"]
    return plans, scheduler.take_reports()


class Run:
    """A scheduler with its engine, and what each request got so far."""

    def __init__(self, scheduler: Scheduler, sample: Any = sample_seven) -> None:
        self.recorded = Recorded(scheduler)
        self.scheduler = scheduler
        self.engine = ReferenceEngine(scheduler)
        self.sample = sample
        self.plans: list[StepPlan | None] = []
        self.reports: list[SequenceReport] = []
        self.output: dict[int, list[int]] = {}
        self.finish: dict[int, str] = {}
        self.cached: dict[int, int] = {}
        self.hashes: set[bytes] = set()  # as told by news

    def step(self, chunk: int | None = None, fails: bool = False) -> StepPlan | None:
        plan = self.recorded.plan(chunk)
        self.plans.append(plan)
        if plan is not None:
            result = self.engine.execute(plan, self.sample, fails)
            if result is None:
                self.recorded.step_failed("no memory")
            else:
                self.recorded.commit(result)
        self.take()
        return plan

    def take(self) -> None:
        reports = self.scheduler.take_reports()
        self.reports += reports
        for report in reports:
            assert report.request_id not in self.finish, "a report after the end"
            if report.request_id not in self.output:
                self.output[report.request_id] = []
                self.cached[report.request_id] = report.cached_tokens
            else:
                assert not report.cached_tokens
                assert report.token_ids or report.finish, "only the first report of a sequence says nothing"
            self.output[report.request_id] += report.token_ids
            if report.finish:
                self.finish[report.request_id] = report.finish
        cached, evicted = self.scheduler.take_page_news()
        assert self.hashes.isdisjoint(cached)
        assert self.hashes.issuperset(evicted)
        self.hashes = (self.hashes | set(cached)) - set(evicted)
        assert self.hashes == self.scheduler.pool._page_of.keys()

    def to_the_end(self) -> Run:
        while self.step() is not None:
            pass
        return self

    def assert_nothing_is_held(self) -> None:
        self.engine.check_pages()
        pool = self.scheduler.pool
        assert pool.num_free == pool.total, "a page is leaked"
        assert sorted(self.scheduler._free_slots) == list(range(self.engine.num_slots))
        statistics = self.scheduler.statistics()
        assert (statistics["running"], statistics["waiting"]) == (0, 0)
        assert not self.scheduler._open
        assert not self.scheduler.queue._lanes
        assert not self.scheduler.queue._accounts


@dataclass(frozen=True)
class Shape:
    max_sequences: int
    max_step_tokens: int
    context_length: int
    kv_pages: int


class Storm:
    """Requests at random: conversations, priorities, accounts, aborts, steps that fail."""

    def __init__(self, shape: Shape, seed: int) -> None:
        self.shape = shape
        self.random = random.Random(seed)
        self.run = Run(Scheduler(**vars(shape)), self.sample)
        self.sent: dict[int, Submit] = {}
        self.aborted: set[int] = set()
        self.failures = 0
        self.lanes: dict[tuple[int, str], list[int]] = {}  # requests in order of their first admission
        self.texts: list[list[int]] = [[9] * 40]  # beginnings of prompts
        self.limit = min(shape.context_length, shape.kv_pages * PAGE_SIZE)

    def sample(self, token_ids: list[int]) -> StepResult:
        """Depends on the tokens alone, as a seeded sampler does, so an answer is known in advance."""
        draw = hash((len(token_ids), *token_ids[:3], token_ids[-1])) % 300
        if draw == 0:
            return StepResult([END])
        if draw == 1:
            return StepResult([-1], {0: Extra(finish="stop")})
        if draw == 2:
            return StepResult([-1], {0: Extra(finish="error", code="bad_request", message="no")})
        if draw == 3:
            return StepResult([draw], {0: Extra(finish="stop")})
        return StepResult([draw])

    def rage(self, steps: int) -> Storm:
        scheduler, dice = self.run.recorded, self.random
        for step in range(steps):
            while dice.random() < 0.15 and scheduler.statistics()["waiting"] < 20:
                request = self._request(len(self.sent))
                self.sent[request.request_id] = request
                scheduler.submit(request)
            if self.sent and dice.random() < 0.03:
                request_id = dice.randrange(max(0, len(self.sent) - 20), len(self.sent))
                scheduler.abort(request_id)
                self.aborted.add(request_id)
            fails = dice.random() < 0.01
            self._step(dice.choice((None, 1, 10, 100)), fails)
            if step % 8 == 0:
                self.run.engine.check_pages()
        return self

    def calm(self) -> Storm:
        """Let it end, and look at the whole of it."""
        bound = sum(len(request.prompt) // 4 + 1 for request in self.sent.values()) * 20 + 100_000
        while self._step(None, False) is not None:
            assert (bound := bound - 1), "it goes on for ever"
        self.run.assert_nothing_is_held()
        assert self.run.finish.keys() == self.sent.keys(), "each request ends exactly once"
        for admitted in self.lanes.values():
            assert admitted == sorted(admitted), "first come, first served"
        for request in self.sent.values():
            self._check_answer(request)
        return self

    def _step(self, chunk: int | None, fails: bool) -> StepPlan | None:
        scheduler = self.run.scheduler
        plan = self.run.step(chunk, fails)
        if plan is not None and chunk is not None and scheduler.decode_tokens:
            assert scheduler.prefill_tokens <= chunk
        self.failures += plan is not None and fails
        for sequence in self.run.engine.admitted:
            request = sequence.request
            lane = self.lanes.setdefault((request.priority, request.account), [])
            if request.request_id not in lane:
                lane.append(request.request_id)
                passed = scheduler.queue._departures - sequence.first_since
                assert passed <= fair_queue.PASSING + LANES + self.shape.max_sequences, (
                    "it was passed too often"
                )
        self.run.engine.admitted.clear()
        return plan

    def _request(self, request_id: int) -> Submit:
        dice = self.random
        text = list(dice.choice(self.texts))
        if dice.random() < 0.5:
            text = []
        longest = dice.choice([2, 20, self.limit // 2, int(self.limit * 1.1)])
        text += [dice.randint(3, 50)] + [9] * dice.randint(0, longest)
        if dice.random() < 0.3:  # the conversation goes on with some answer
            done = [r for r in list(self.sent)[-20:] if self.run.finish.get(r) == "length"]
            if done:
                text = [*array("I", self.sent[done[-1]].prompt), *self.run.output[done[-1]], 5]
        if dice.random() < 0.3:
            self.texts = [*self.texts[-5:], text]
        pooling = dice.choice([""] * 8 + ["last", "mean"])
        return submit(
            request_id,
            [] if dice.random() < 0.02 else text,
            1 if pooling else dice.choice([0, 1, 5, 60, 10_000]),
            prompt_logprobs=dice.choice([None] * 9 + [0]),
            pooling=pooling,
            priority=dice.choice([0, 0, 0, 1, -5]),
            account=dice.choice(["", "", "a", "b", "c"]),
            cache_salt=dice.choice(["", "", "", "salt"]),
        )

    def _check_answer(self, request: Submit) -> None:
        prompt = array("I", request.prompt).tolist()
        finish, output = self.run.finish[request.request_id], self.run.output[request.request_id]
        cached = self.run.cached[request.request_id]
        assert not cached or cached < len(prompt)
        if request.pooling:
            assert not output
            return
        text = list(prompt)
        for token in output:
            assert [token] == self.sample(text).tokens, "an answer changed on the way"
            text.append(token)
        match finish:
            case "stop":
                assert output[-1:] in ([END], [3]) or self.sample(text).tokens == [-1]
            case "length":
                assert len(output) == request.max_tokens or len(text) == self.limit
            case "error":
                refused = not prompt or request.max_tokens < 1 or len(prompt) >= self.limit
                assert refused or self.failures or self.sample(text).tokens == [-1]
            case _:
                assert finish == "aborted"
                assert request.request_id in self.aborted
