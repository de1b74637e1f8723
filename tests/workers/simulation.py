"""A reference for the scheduler: an engine that computes nothing, and remembers what each page would hold.

`STORM_STEPS` in the environment is how many steps each long storm of random events has.
"""

from __future__ import annotations

import os
import random
from array import array
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ipc.worker_messages import (
    PAGE_SIZE,
    CacheGroup,
    PlacedImage,
    SamplingParams,
    SequenceReport,
    Speculation,
    Submit,
)
from workers.checkpoints.caches import first_page_seen
from workers.scheduling import fair_queue
from workers.scheduling.drafts import Drafter
from workers.scheduling.scheduler import Scheduler
from workers.scheduling.sequence import Sequence
from workers.step.engine import Extra, StepResult
from workers.step.pages import pages_for
from workers.step.plan import HOLE, UNKNOWN, LookAt, StepPlan

END = 2  # the stop id of these tests
WRONG = 999_999  # a token that nobody writes
PIECES = 7  # that a look at an image has
LANES = 12  # accounts times priorities in a storm
STORM_STEPS = int(os.environ.get("STORM_STEPS", "1500"))


def submit(request_id: int, prompt: list[int] | int, max_tokens: int = 1_000_000, **fields: Any) -> Submit:
    """A number stands for a prompt of that many tokens, like no other request's."""
    ids = array("I", prompt if isinstance(prompt, list) else [request_id + 10] * prompt)
    params = SamplingParams(0.0, stop_ids=[END], prompt_logprobs=fields.pop("prompt_logprobs", None))
    return Submit(request_id, ids.tobytes(), max_tokens, params, **fields)


def make_scheduler(
    *,
    max_sequences: int = 4,
    max_step_tokens: int = 64,
    context_length: int = 1_000,
    kv_pages: int = 100,
    **caches: Any,
) -> Scheduler:
    return Scheduler(
        max_sequences=max_sequences,
        max_step_tokens=max_step_tokens,
        context_length=context_length,
        kv_pages=kv_pages,
        **caches,
    )


def group(kind: str, window: int = 0) -> CacheGroup:
    return CacheGroup(kind=kind, layers=[], window=window)


def sample_seven(token_ids: list[int]) -> StepResult:
    return StepResult([7])


@dataclass
class Slot:
    salt: str
    pooling: str
    token_ids: list[int]
    tables: list[list[int]]
    num_computed: int
    images: list[PlacedImage] = field(default_factory=list)
    stands_for: list[int] = field(default_factory=list)  # of each token computed: it and all before it


class ReferenceEngine:
    """Refuses plans that break the rules of `workers.step.plan`, or read or write what they should not."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.cache = scheduler.cache
        self.groups = self.cache.groups
        self.num_slots = len(scheduler._free_slots)
        self.slots: dict[int, Slot] = {}
        # what each page holds: of which group, and what stands for each of its tokens, or for its state
        self.pages: list[list[Any]] = [[None] * PAGE_SIZE for _ in range(self.cache.pages.total)]
        self.states: list[Any] = [None] * self.cache.states.total
        self.host_states: list[Any] = [None] * self.cache.host.total
        self.came_back = 0  # states
        self.meaning: dict[bytes, int] = {}  # what stands for the last token of a page with that hash
        self.hash_of: dict[int, bytes] = {}
        self.computed = 0  # tokens
        self.most_held = 0  # pages in use at once
        self.admitted: list[Sequence] = []  # each as often as it was
        self.guesser: Drafter | None = None  # of drafts that a plan leaves to the engine
        self.begun: tuple[bytes, int] | None = None  # what image is looked at, and how many pieces it was
        self.seen: set[bytes] = set()  # images
        self.shown: set[bytes] = set()  # in the last step

    def execute(self, plan: StepPlan, sample: Any, fails: bool = False) -> StepResult | None:
        """None: it failed for want of memory, or because a step before it did."""
        for slot in plan.released:
            del self.slots[slot]
        for new in plan.added:
            assert new.slot not in self.slots
            assert 0 <= new.slot < self.num_slots
            [sequence] = [s for s in self._running() if s.slot == new.slot]
            self.admitted.append(sequence)
            request = sequence.request
            ids = array("I", new.token_ids).tolist()
            tables = [list(table) for table in new.tables] or [[] for _ in self.groups]
            assert len({len(table) for table in tables}) == 1, "tables are equally long"
            assert len(tables) == len(self.groups)
            computed = len(tables[0]) * PAGE_SIZE
            assert computed < len(ids), "a token is left to compute"
            slot = Slot(request.cache_salt, new.pooling, ids, tables, computed, new.images)
            self._extend(slot, computed)
            self.slots[new.slot] = slot
        assert plan.scheduled
        assert len({entry.slot for entry in plan.scheduled}) == len(plan.scheduled)
        assert sum(entry.num_tokens for entry in plan.scheduled) <= self.scheduler.max_step_tokens
        for entry in plan.scheduled:
            if entry.new_pages:
                assert len(entry.new_pages) == len(self.groups)
                assert len({len(pages) for pages in entry.new_pages}) == 1
                for table, pages in zip(self.slots[entry.slot].tables, entry.new_pages, strict=True):
                    table += pages
        for move in plan.moves:
            if move.leaves:
                self.host_states[move.place] = self.states[move.state]
            else:
                self.states[move.state] = self.host_states[move.place]
                self.came_back += 1
        if fails:
            self.begun = None
            return None
        users = [Counter(self._seen(paged)) for paged in (True, False)]
        self.most_held = max(self.most_held, len(users[0]))
        result = StepResult([], seen=self._look(plan.look))
        self.shown.clear()
        for entry in plan.scheduled:
            slot = self.slots[entry.slot]
            start, end = slot.num_computed, slot.num_computed + entry.num_tokens
            known, drafts = len(slot.token_ids), entry.drafts
            if UNKNOWN in drafts:
                drafts = self.guess(slot.token_ids, len(drafts))
                result.drafts += drafts
            slot.token_ids += drafts
            self.shown |= {each.digest for each in slot.images if start < each.end and each.start < end}
            assert start < end <= len(slot.token_ids)
            assert not drafts or end == len(slot.token_ids) == start + 1 + len(drafts)
            self._extend(slot, end)
            for index, group in enumerate(self.groups):
                assert pages_for(end) <= len(slot.tables[index])
                if group.kind == "state":
                    self._step_state(slot, index, start, end, users[1])
                else:
                    self._step_pages(slot, index, start, end, users[0])
            slot.num_computed = end
            self.computed += entry.num_tokens
            if end == len(slot.token_ids):
                del slot.token_ids[known:]
                for draft in (*drafts, None):
                    one = (
                        StepResult([-1], {0: Extra(embedding=b"1234")})
                        if slot.pooling
                        else sample(slot.token_ids)
                    )
                    if one.extras:
                        result.extras[len(result.tokens)] = one.extras[0]
                    result.tokens += one.tokens
                    slot.token_ids += one.tokens
                    if one.tokens != [draft]:
                        break
                slot.num_computed = len(slot.token_ids) - 1
                del slot.stands_for[slot.num_computed :]
                if drafts:
                    self._adopt(slot)
        return result

    def _look(self, order: LookAt | None) -> bool:
        """Whether that image is seen now."""
        if order is None:
            self.begun = None
            return False
        digest, pieces = order.image.digest, 0
        assert any(order.image in slot.images for slot in self.slots.values()), "its pixels are there"
        if self.begun is not None and self.begun[0] == digest:
            pieces = self.begun[1]
        self.begun = digest, pieces + order.work
        if self.begun[1] >= PIECES:
            self.seen.add(digest)
        return digest in self.seen

    def guess(self, token_ids: list[int], count: int) -> list[int]:
        """So many drafts that a plan leaves to the engine."""
        found = self.guesser.draft(array("I", token_ids), count)
        found += [WRONG] * (count - len(found))
        return [UNKNOWN if draft == END else draft for draft in found]

    def check_pages(self) -> None:
        """Every page is in use, idle or empty, as the sequences say; its hash means what it holds."""
        for pool, paged in ((self.cache.pages, True), (self.cache.states, False)):
            users = Counter(
                page
                for sequence in self._running()
                for group, table in zip(self.groups, sequence.tables, strict=True)
                if (group.kind != "state") == paged
                for page in table
                if page != HOLE
            )
            assert pool._users == [users[page] for page in range(pool.total)]
            unused = [page for page in range(pool.total) if not users[page]]
            assert sorted([*pool._empty, *pool._idle]) == unused, "a page is leaked or was freed twice"
            assert all(page in pool._cached for page in pool._idle)
            assert not any(page in pool._cached for page in pool._empty)
            found = {
                page: (i, digest) for i, each in enumerate(pool._page_of) for digest, page in each.items()
            }
            assert found == {page: (group, digest) for page, (group, digest, _) in pool._cached.items()}
            for page, (index, digest) in found.items():
                self._check_meaning(index, digest, self.pages[page] if paged else [self.states[page]])
        host = self.cache.host
        assert sorted([*host._empty, *host._place_of.values()]) == list(range(host.total))
        if not host._moves:
            for (index, digest), place in host._place_of.items():
                self._check_meaning(index, digest, [self.host_states[place]])

    def _check_meaning(self, index: int, digest: bytes, held: list[Any]) -> None:
        assert {each[0] for each in held} == {index}
        assert self.meaning.setdefault(digest, held[-1][1]) == held[-1][1]
        assert self.hash_of.setdefault(held[-1][1], digest) == digest

    def _running(self) -> list[Sequence]:
        return self.scheduler.prefilling + self.scheduler.decoding

    def _seen(self, paged: bool) -> Iterator[int]:
        """The pages that the next tokens of all sequences see, or are written to."""
        for slot in self.slots.values():
            for group, table in zip(self.groups, slot.tables, strict=True):
                if (group.kind != "state") == paged:
                    pages = set(table[first_page_seen(group, slot.num_computed) :])
                    yield from pages - {HOLE}

    def _extend(self, slot: Slot, end: int) -> None:
        state = slot.stands_for[-1] if slot.stands_for else hash(slot.salt)
        for token in slot.token_ids[len(slot.stands_for) : end]:
            state = hash((state, token))
            slot.stands_for.append(state)

    def _step_pages(self, slot: Slot, index: int, start: int, end: int, users: Counter) -> None:
        table = slot.tables[index]
        for number in range(first_page_seen(self.groups[index], start), pages_for(start)):
            first, last = number * PAGE_SIZE, min((number + 1) * PAGE_SIZE, start)
            expected = [(index, each) for each in slot.stands_for[first:last]]
            assert self.pages[table[number]][: last - first] == expected, "it reads what is wrong"
        for position in range(start, end):
            page = table[position // PAGE_SIZE]
            assert page >= 0
            assert users[page] == 1, "a shared page is written"
            assert page not in self.cache.pages._cached, "a page that can be shared is written"
            self.pages[page][position % PAGE_SIZE] = (index, slot.stands_for[position])

    def _step_state(self, slot: Slot, index: int, start: int, end: int, users: Counter) -> None:
        table = slot.tables[index]
        if start:
            page = table[(start - 1) // PAGE_SIZE]
            assert page >= 0
            assert self.states[page] == (index, slot.stands_for[start - 1]), "it reads what is wrong"
        page = table[(end - 1) // PAGE_SIZE]
        assert page >= 0
        assert users[page] == 1, "a shared state is written"
        assert page not in self.cache.states._cached, "a state that can be shared is written"
        self.states[page] = (index, slot.stands_for[end - 1])

    def _adopt(self, slot: Slot) -> None:
        """What a step left of the states of a sequence with drafts has those in it that were right."""
        for index, group in enumerate(self.groups):
            if group.kind == "state":
                page = slot.tables[index][(slot.num_computed - 1) // PAGE_SIZE]
                self.states[page] = (index, slot.stands_for[slot.num_computed - 1])


class Recorded:
    """A scheduler whose every event is kept, so that another one can be told the same."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self.events: list[tuple[str, Any]] = []

    def __getattr__(self, name: str) -> Any:
        tell = getattr(self._scheduler, name)
        if name not in ("submit", "abort", "plan", "observe", "step_failed"):
            return tell

        def told(*arguments: Any) -> Any:
            self.events.append((name, arguments))
            return tell(*arguments)

        return told


def replay(
    scheduler: Scheduler, events: list[tuple[str, Any]]
) -> tuple[list[StepPlan | None], list[SequenceReport]]:
    """Tell a new scheduler what another one was told; returns its plans and its reports."""
    answers = [getattr(scheduler, name)(*arguments) for name, arguments in events]
    plans = [answer for (name, _), answer in zip(events, answers, strict=True) if name == "plan"]
    return plans, scheduler.take_reports()


class Run:
    """A scheduler with its engine, and what each request got so far."""

    def __init__(self, scheduler: Scheduler, sample: Any = sample_seven, in_flight: int = 0) -> None:
        self.in_flight = in_flight  # steps that may be, when the next is planned
        self.results: deque[StepResult | None] = deque()  # of steps that were sent and not observed
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

    def step(self, chunk: int | None = None, fails: bool = False, work: int | None = None) -> StepPlan | None:
        """Send a step, and observe those that shall be in flight no longer; None: nothing is open."""
        while (plan := self.send(chunk, fails, work)) is None and self.results:
            self.observe()
        if len(self.results) > self.in_flight:
            self.observe()
        return plan

    def send(self, chunk: int | None = None, fails: bool = False, work: int | None = None) -> StepPlan | None:
        plan = self.recorded.plan(chunk, work)
        self.plans.append(plan)
        if plan is not None:
            fails = fails or None in self.results
            self.results.append(self.engine.execute(plan, self.sample, fails))
            if work is not None and self.scheduler.decode_tokens and not fails:
                assert self.engine.shown <= self.engine.seen, "an answer waited for a look"
        self.take()
        return plan

    def observe(self) -> None:
        result = self.results.popleft()
        if result is None:
            self.recorded.step_failed("no memory")
            self.results.clear()
        else:
            self.recorded.observe(result)
        self.take()

    def take(self) -> None:
        reports = self.scheduler.take_reports()
        self.reports += reports
        for report in reports:
            assert report.request_id not in self.finish, "a report after the end"
            if report.request_id not in self.output:
                self.output[report.request_id] = []
                self.cached[report.request_id] = report.details.cached_tokens
            else:
                assert not report.details.cached_tokens
                assert report.token_ids or report.finish, "only the first report of a sequence says nothing"
            self.output[report.request_id] += report.token_ids
            if report.finish:
                self.finish[report.request_id] = report.finish
        cached, evicted = self.scheduler.take_page_news()
        assert self.hashes.isdisjoint(cached)
        assert self.hashes.issuperset(evicted)
        self.hashes = (self.hashes | set(cached)) - set(evicted)
        assert self.hashes == self.scheduler.cache.pages._page_of[0].keys()

    def to_the_end(self) -> Run:
        while self.step() is not None:
            pass
        return self

    def assert_nothing_is_held(self) -> None:
        self.engine.check_pages()
        for pool in (self.scheduler.cache.pages, self.scheduler.cache.states):
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
    caches: tuple[CacheGroup, ...] = ()
    states: int = 0
    host_states: int = 0
    speculation: Speculation | None = None


class Storm:
    """Requests at random: conversations, priorities, accounts, aborts, steps that fail."""

    def __init__(self, shape: Shape, seed: int, in_flight: int = 0) -> None:
        self.shape = shape
        self.random = random.Random(seed)
        self.run = Run(Scheduler(**vars(shape)), self.sample, in_flight)
        self.sent: dict[int, Submit] = {}
        self.aborted: set[int] = set()
        self.failures = 0
        self.lanes: dict[tuple[int, str], list[int]] = {}  # requests in order of their first admission
        self.texts: list[list[int]] = [[9] * 40]  # beginnings of prompts
        self.limit = self.run.scheduler.max_len

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
        plan = self.run.step(chunk, fails, self._work(chunk))
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

    def _work(self, chunk: int | None) -> int | None:
        """Pieces of a look that may ride along with so many tokens of prompts."""
        return None

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
