"""Which tokens go through the engine in the next step.

Continuous batching under one token budget: sequences in decode take one token each, prompts share the rest
in chunks, in the order of the fair queue. Pages are allocated when they are needed and never reserved; when
they run out, the sequence of the lowest rank is preempted: it gives up its pages, waits, and later computes
its prompt and its output so far again, as far as they are not cached. Full pages are cached (by the cache
manager), so what sequences have in common is computed once; one whose next page is being computed now waits
for it.

A step that is planned is sent: the scheduler *advances*, and counts what it feeds as computed. When its
tokens are there, it *observes* them: sequences grow, stop and are reported. In between the next step can be
planned, and sent while the first one runs: in decode it feeds a token that nobody but the device knows yet.
What turns out to be in vain (the token after a stop) is computed and not looked at. When pages are short, the
steps in flight are observed first, so nobody is preempted for want of pages that come back in a moment.

Where tokens are guessed (`speculation` beside this), a sequence in decode may take several. Whoever guesses
has to know the last token, so no step is sent ahead of that.

Plain data and no clock: a scheduler is a pure function of what it was told, so any run can be replayed.
"""

from __future__ import annotations

import heapq
from array import array
from collections import deque
from collections.abc import Sequence as Row
from itertools import chain, repeat

import msgspec

from ipc.errors import Code
from ipc.worker_messages import (
    FREE_ROWS,
    PAGE_SIZE,
    CacheGroup,
    Details,
    SequenceReport,
    Speculation,
    Submit,
)
from workers.scheduling.cache_manager import CacheManager, Table
from workers.scheduling.fair_queue import FairQueue
from workers.scheduling.sequence import Sequence
from workers.scheduling.speculation import NO_DRAFTS, Drafts, Guesses, Stepping
from workers.scheduling.undivided import undivided
from workers.scheduling.unseen import Glance, look_cost, look_refund, unseen
from workers.step.engine import Extra, StepResult
from workers.step.plan import LookAt, NewSequence, Scheduled, StepPlan

NO_EXTRAS = repeat(None)  # what a step brings besides tokens, most times


class SentStep(msgspec.Struct):
    """A step from its plan to its result."""

    sampled: list[Sequence]  # who gets a token, in the order of the plan: first those in decode
    decodes: list[Scheduled]  # of the latter
    prefills: Stepping
    ends: list[int]  # of each of these, how many of its tokens are computed then
    grown: list[Sequence]  # who in decode began a page
    drafts: Drafts  # fed behind their tokens
    look: Glance | None = None  # what an image is looked at for beside that
    gone: frozenset[Sequence] = frozenset()  # who ended or was preempted since: its token is nothing

    def entries(self) -> Stepping:
        """Of those that are still there."""
        all_entries = chain(zip(self.sampled, self.decodes, strict=False), self.prefills)
        return [pair for pair in all_entries if pair[0] not in self.gone]


class Scheduler:
    """Decides each step, and turns what it brought into reports.

    `submit` and `abort` may be called at any time; a step is `plan`, then the engine, then `observe` or
    `step_failed`, and steps are observed in their order. A sequence is in the queue, then in `prefilling`,
    then in `decoding`, where one token is pending; a preemption takes it back to the queue.

    Args:
        max_sequences: slots of the engine. Never more of them run than there are tokens in the budget.
        max_step_tokens: the budget of one step.
        context_length: tokens of prompt and output together at which a sequence ends with "length".
        kv_pages: pages in the engine's pool. A sequence that alone fills the pool ends with "length" too.
        caches: the groups of the model's layers; none: all are alike, and see everything.
        states: in the engine's pool, where a group has one.
        host_states: that the engine has room for in the host's memory besides.
        speculation: how tokens are guessed.
        together: tokens of an image that one step computes, at most (`PlacedImage.together`). A step has room
            for them beside all that decode may take.
    """

    def __init__(
        self,
        *,
        max_sequences: int,
        max_step_tokens: int,
        context_length: int,
        kv_pages: int,
        caches: Row[CacheGroup] = (),
        states: int = 0,
        host_states: int = 0,
        speculation: Speculation | None = None,
        together: int = 0,
    ) -> None:
        if min(max_sequences, max_step_tokens, context_length, kv_pages) < 1:
            raise ValueError("max_sequences, max_step_tokens, context_length and kv_pages must be at least 1")
        if together and max_step_tokens < together + max(max_sequences, FREE_ROWS):
            raise ValueError(f"a step of {max_step_tokens} tokens has no room for {together} of an image")
        self.max_step_tokens = max_step_tokens
        self.cache = CacheManager(
            caches,
            pages=kv_pages,
            states=states,
            chunk=max_step_tokens,
            host_states=host_states,
            together=together,
        )
        self._guesses = None if speculation is None else Guesses(speculation, max_step_tokens)
        self.max_len = min(context_length, self.cache.max_pages * PAGE_SIZE)
        self.queue = FairQueue()
        self.prefilling: list[Sequence] = []
        self.decoding: list[Sequence] = []
        self.step = 0  # of the last plan
        self.decode_tokens = 0  # in the last plan
        self.prefill_tokens = 0  # the same, of prompts
        self._open: dict[int, Sequence] = {}  # by request id
        self._free_slots = list(range(min(max_sequences, max_step_tokens) - 1, -1, -1))
        self._released: list[int] = []  # slots that the next plan empties
        self._untold: list[int] = []  # tokens that no plan has told
        self._untold_drafts: list[int] = []  # the same, of drafts that the engine made
        self._in_flight: deque[SentStep] = deque()
        self._glance: Glance | None = None  # whose tokens wait, or are fed: there is no other one meanwhile
        # preempted for memory, and what was computed of each then: it has not come further since
        self._suspects: dict[Sequence, int] = {}
        self._reports: list[SequenceReport] = []
        self._counts = dict.fromkeys(("prompt_tokens", "cached_tokens", "preemptions", "out_of_memory"), 0)

    # --- what it is told --------------------------------------------------------------------------------

    def submit(self, request: Submit, pixels: Row[object] = ()) -> None:
        """Queue a sequence. One that could never run is answered at once, with finish "error".

        Args:
            pixels: of its images, which are kept as long as it is open.

        Raises:
            ValueError: the request id is open already, or the prompt is no array of uint32.
        """
        if request.request_id in self._open:
            raise ValueError(f"request {request.request_id} is open already")
        token_ids = array("I", request.prompt + request.output)
        prompt_len = len(request.prompt) // token_ids.itemsize
        if problem := self._problem(prompt_len, len(token_ids), request.max_tokens):
            code, message = problem
            self._reports.append(SequenceReport(request.request_id, [], "error", Details(message, code)))
            return
        max_len = min(prompt_len + request.max_tokens, self.max_len)
        sequence = self.queue.enter(request, token_ids, max_len, prompt_len)
        sequence.pixels = pixels
        if self._guesses is not None:
            sequence.guessing = self._guesses.begin(request)
        self._open[request.request_id] = sequence

    def abort(self, request_id: int) -> None:
        """End a sequence and free its pages now. One that ended already has had its last report."""
        if (sequence := self._open.get(request_id)) is None:
            return
        if sequence.slot is None:
            self.queue.remove(sequence)
        else:
            self._remove_running(sequence)
        self._end(sequence)
        self._reports.append(SequenceReport(request_id, [], "aborted"))

    def resize(self, pages: int) -> None:
        """Use the first `pages` of the pool from now on. Who has others is preempted; what was cached in them
        is gone. No step may be in flight, and a whole context must have room still.
        """
        running = [*self.decoding, *self.prefilling]
        for sequence in sorted(running, key=self.queue.rank, reverse=True):
            if self.cache.reaches(sequence, pages):
                self._preempt(sequence)
        self.cache.resize(pages)

    def observe(self, result: StepResult) -> None:
        """Take what the engine made of the oldest step in flight.

        Raises:
            ValueError: these are not as many tokens as the plan samples, or one is missing without a reason.
        """
        step = self._in_flight.popleft()
        sampled, gone = step.sampled, step.gone
        if result.seen and step.look is not None and step.look.sequence not in gone:
            step.look.be_seen()
        tokens, extras, judged = result.tokens, result.extras, None
        if step.drafts:
            judged = self._guesses.judge(result, sampled, step.drafts, gone)
            tokens, extras = judged.tokens, judged.extras
        if len(sampled) != len(tokens):
            raise ValueError(f"the plan samples {len(sampled)} tokens, and {len(tokens)} came back")
        for sequence in step.grown:
            if sequence not in gone:
                self.cache.settle(sequence, len(sequence.token_ids))
        if step.prefills:
            for (sequence, _), end in zip(step.prefills, step.ends, strict=True):
                if sequence not in gone:
                    self._settle_prompt(sequence, end)
        besides = map(extras.get, range(len(tokens))) if extras else NO_EXTRAS
        brought = zip(sampled, tokens, besides, strict=False)
        if gone:
            brought = [each for each in brought if each[0] not in gone]
        reports, ended = self._reports, False
        told = len(reports)
        for sequence, token, extra in brought:
            if token < 0:
                if sequence in step.drafts:
                    self._guess_no_more(sequence)
                    continue
                report = SequenceReport(sequence.request_id, [])
            else:
                token_ids = sequence.token_ids
                token_ids.append(token)
                sequence.account.served += 1
                finish = ""
                if token in sequence.stop_ids:
                    finish = "stop"
                elif len(token_ids) == sequence.max_len:
                    finish = "length"
                report = SequenceReport(sequence.request_id, [token], finish)
            if extra is not None:
                _merge(report, extra)
            if not sequence.started:
                self._begin(sequence, report)
            reports.append(report)
            if report.finish:
                if report.finish == "error":
                    self._distrust(sequence, report.details.code)
                self._end(sequence)
                ended = True
            elif token < 0:
                raise ValueError(f"request {report.request_id} has no token, and does not end")
        if judged is not None:
            judged.complete(reports[told:])
        if ended:
            self.decoding = [sequence for sequence in self.decoding if sequence.slot is not None]
        self._untold += result.tokens
        self._untold_drafts += result.drafts
        if self._suspects:
            self._suspects = {each: at for each, at in self._suspects.items() if each.num_certain <= at}

    def step_failed(self, reason: str) -> None:
        """The device had too little memory for the oldest step in flight, so nothing of it was computed.

        Nor was anything of the steps after it. Slots and pages are as the plans said. Where guesses were in
        it, it is done again without them. Else, where an image was looked at, that begins again. Else the
        sequence with most tokens in the step is preempted. One that was alone, or looked or was preempted
        for this before and came no further since, ends with "error". Where sequences have states, which may
        have changed half-way, all of the steps begin again from kept ones.
        """
        self._counts["out_of_memory"] += 1
        first = self._in_flight[0]
        failed, looking = first.entries(), None
        if first.look is not None and first.look.sequence not in first.gone:
            looking = first.look.sequence
        steps, self._in_flight = self._in_flight, deque()
        for step in reversed(steps):
            self._take_back(step)
        self.cache.pages.clear()
        self.cache.states.clear()
        if not failed:
            return
        if guessed := [sequence for sequence in steps[0].drafts if sequence not in steps[0].gone]:
            for sequence in guessed:
                sequence.guessing = None
        else:
            self._relieve(failed, looking, reason)
        if self.cache.keeps_states:  # what a step reads stands where the last one would have left it
            stepping = {sequence: None for step in steps for sequence, _ in step.entries()}
            for sequence in stepping:
                if sequence.slot is not None:
                    self._preempt(sequence)

    def _relieve(self, failed: Stepping, looking: Sequence | None, reason: str) -> None:
        """See that the next step is a smaller one than that which failed."""
        heaviest, _ = max(failed, key=lambda pair: (pair[1].num_tokens, self.queue.rank(pair[0])))
        if looking is not None:
            heaviest = looking
        if (len(failed) > 1 or looking is not None) and heaviest not in self._suspects:
            self._suspects[heaviest] = heaviest.num_certain
            if looking is None:  # a look begins again by itself
                self._preempt(heaviest)
            return
        self._distrust(heaviest, Code.BAD_REQUEST)
        self._remove_running(heaviest)
        self._end(heaviest)
        details = Details(reason, Code.INSUFFICIENT_MEMORY)
        self._reports.append(SequenceReport(heaviest.request_id, [], "error", details))

    # --- what it says -----------------------------------------------------------------------------------

    @property
    def is_empty(self) -> bool:
        """Whether nothing is open."""
        return not self._open

    @property
    def has_prompts(self) -> bool:
        """Whether any is not computed to its end."""
        return len(self._open) > len(self.decoding)

    def plan(self, chunk: int | None = None, work: int | None = None) -> StepPlan | None:
        """The next step, which counts as sent; None when nothing is open, or a step must be observed first.

        Args:
            chunk: tokens of prompts that may go beside those in decode, so that these are not held up.
                None, or with nothing in decode: as many as the budget allows.
            work: multiplications for an image that may be done instead, before its tokens are fed. None, or
                with nothing in decode: images are looked at by the steps that show them.
        """
        if self._glance is not None and self._glance.is_over:
            self._glance = None
        if not self._open:
            return None
        guesses, drafts = self._guesses, NO_DRAFTS
        flying = self._in_flight
        if guesses is not None and flying and guesses.has_to_know(flying[-1].drafts, self.decoding):
            return None
        ready, grown = self._make_room()
        if grown is None:
            return None
        decodes = self._plan_decodes(ready, grown)
        budget = self.max_step_tokens - len(decodes)
        if guesses is not None and not flying:
            drafts = guesses.put_behind(ready, decodes)
            budget -= sum(map(len, drafts.values()))
        most = budget
        if decodes and chunk is not None:
            budget = min(budget, chunk)
        added: list[NewSequence] = []
        glances: list[Glance] | None = [] if decodes and work is not None else None
        prefills = self._plan_prefills(budget, most, added, glances)
        look = None if glances is None else self._look(glances, 0 if prefills else work)
        while not decodes and not prefills and self.prefilling and not self._in_flight:
            # each of several prompts waits for a page, and nobody is left to free one
            self._preempt(self._lowest())
            prefills = self._plan_prefills(budget, most, added, None)
        if not decodes and not prefills:
            return None
        glance = self._glance if look is not None and look.work else None
        self._advance(SentStep(ready, decodes, prefills, [], grown, drafts, glance))
        self.step += 1
        released, self._released = self._released, []
        untold, self._untold = self._untold, []
        made, self._untold_drafts = self._untold_drafts, []
        scheduled = decodes + [entry for _, entry in prefills] if prefills else decodes
        moves = self.cache.host.take_moves() if self.cache.keeps_states else []
        return StepPlan(self.step, released, added, scheduled, untold, moves, look, made)

    def take_reports(self) -> list[SequenceReport]:
        """What happened to each sequence since the last call: at most one finish for each request."""
        reports, self._reports = self._reports, []
        return reports

    def take_page_news(self) -> tuple[list[bytes], list[bytes]]:
        """(`cached`, `evicted`) of a `StepReport`: how the pages to share changed since the last call."""
        return self.cache.pages.take_news()

    def statistics(self) -> dict[str, int]:
        """The counts of a `StepReport`, by their names there."""
        running = len(self.prefilling) + len(self.decoding)
        pages, guesses = self.cache.pages, self._guesses
        return {
            **self._counts,
            "running": running,
            "waiting": len(self._open) - running,
            "pages_free": pages.num_free,
            "pages_cached": pages.num_cached,
            "drafted": 0 if guesses is None else guesses.drafted,
            "accepted": 0 if guesses is None else guesses.accepted,
        }

    # --- planning ---------------------------------------------------------------------------------------

    def _make_room(self) -> tuple[list[Sequence], list[Sequence] | None]:
        """(who in decode is in the next step, who of these begins a page): the lowest make room for them.

        Who ends with the token that it has in flight is in no further step. Instead of the latter there is
        None if there is no room, and a step in flight may give back some.
        """
        while True:
            ready = self.decoding[:]
            grown = [s for s in ready if s.num_computed >= s.undisturbed]
            if grown:  # or some end
                ready = [s for s in ready if s.num_computed + 1 < s.max_len]
                grown = [s for s in ready if s.num_computed == s.capacity]
            if not grown or self.cache.can_grow(len(grown)):
                return ready, grown
            if self._in_flight:
                return ready, None
            self._preempt(self._lowest())

    def _plan_decodes(self, ready: list[Sequence], grown: list[Sequence]) -> list[Scheduled]:
        """One token for each sequence in decode, and a page for those that need one."""
        if not grown:
            return [s.decode for s in ready]
        begin = set(grown)
        return [self._schedule(s, 1) if s in begin else s.decode for s in ready]

    def _look(self, glances: list[Glance], work: int) -> LookAt | None:
        """What image is looked at in this step: the one that was begun, or the first that a prompt waits for.

        Args:
            glances: at what prompts wait for, in order.
        """
        if self._glance is None and glances and work:
            self._glance = glances[0]
        if self._glance is None or self._glance.is_seen:
            return None
        return LookAt(self._glance.image, work if self._glance in glances else 0)

    def _plan_prefills(
        self, budget: int, most: int, added: list[NewSequence], glances: list[Glance] | None
    ) -> Stepping:
        """Chunks of at most `budget` tokens together, in order, for running prompts and heads of the queue;
        or of `most`, where there is an image that cannot be divided.

        A chunk ends before an image that was not seen yet, which is added to `glances`; None: it need not be.

        The queue is closed for this step as soon as its next finds no slot or no room: nobody behind it slips
        through. Who waits for a page that another prompt is computing lends that one its turn.
        """
        stepping: Stepping = []
        if not budget or len(self._open) == len(self.decoding):
            return stepping
        order = self.queue.order
        candidates = [(order(sequence), sequence) for sequence in self.prefilling]
        if self._free_slots:
            candidates += [(order(sequence), sequence) for sequence in self.queue.heads()]
        heapq.heapify(candidates)
        spare = self.cache.spare(self.prefilling, len(self.decoding))
        planned: set[Sequence] = set()
        while budget > 0 and candidates:
            place, sequence = heapq.heappop(candidates)
            if order(sequence) > place:  # others of its account had their turn in this step
                heapq.heappush(candidates, (order(sequence), sequence))
                continue
            if sequence.slot is None:
                cached = self.cache.find(sequence)
                if (source := self._computing(sequence, len(cached[0]) if cached else 0)) is not None:
                    sequence = source
                else:
                    cost = self.cache.cost(sequence, cached)
                    alone = not self.prefilling and not self.decoding
                    if not self._free_slots or not (alone or spare.holds(cost)):
                        candidates = sorted(pair for pair in candidates if pair[1].slot is not None)
                        continue
                    spare = spare.without(cost).without(self.cache.row)
                    if (following := self.queue.admit(sequence)) is not None:
                        heapq.heappush(candidates, (order(following), following))
                    added.append(self._admit(sequence, cached))
            if sequence in planned:
                continue
            num_pending = len(sequence.token_ids) - sequence.num_computed
            begun, room = sequence.num_computed, self.cache.room_for(sequence)
            if num_tokens := min(num_pending, budget, room):
                end = self.cache.chunk_end(sequence, begun + num_tokens)
                end = undivided(sequence.request.images, begun, end, begun + min(most, room))
                if glances is not None and (glance := unseen(sequence, begun, end)) is not None:
                    glances.append(glance)
                    end = max(begun, glance.image.start)
                    if end == begun and not stepping and self._glance in (None, glance):
                        break  # it has its turn, in which it looks
                num_tokens = end - begun
            if num_tokens:
                planned.add(sequence)
                stepping.append((sequence, self._schedule(sequence, num_tokens)))
                sequence.account.served += num_tokens + look_cost(sequence, end)
                budget -= num_tokens
                most -= num_tokens
        return stepping

    def _computing(self, sequence: Sequence, num_cached: int) -> Sequence | None:
        """Who is about to compute the first page that a waiting sequence could reuse and cannot yet."""
        if num_cached >= sequence.may_reuse:
            return None
        for other in self.prefilling:
            ahead = other.num_offered <= num_cached < len(other.hashes)
            if ahead and other.hashes[num_cached] == sequence.hashes[num_cached]:
                return other
        return None

    def _admit(self, sequence: Sequence, cached: list[Table]) -> NewSequence:
        """Give a waiting sequence a slot, and the cached pages that it starts with."""
        self.cache.share(sequence, cached)
        self.prefilling.append(sequence)
        slot = sequence.slot = self._free_slots.pop()
        sequence.decode = Scheduled(slot, 1)
        sequence.num_reused = sequence.num_computed = sequence.num_settled = sequence.capacity
        sequence.num_prefill = len(sequence.token_ids)
        request = sequence.request
        return NewSequence(
            slot=slot,
            prompt_len=sequence.prompt_len,
            token_ids=sequence.token_ids.tobytes(),
            params=sequence.params,
            constraint=request.constraint,
            pooling=request.pooling,
            tables=cached,
            adapter=request.adapter,
            images=request.images,
        )

    def _schedule(self, sequence: Sequence, num_tokens: int) -> Scheduled:
        """Feed `num_tokens` more, with the pages that they need; the caller saw that these are free."""
        new_pages = self.cache.grow(sequence, sequence.num_computed + num_tokens)
        sequence.undisturbed = min(sequence.capacity, sequence.max_len - 1)
        return Scheduled(sequence.slot, num_tokens, new_pages)

    def _advance(self, step: SentStep) -> None:
        """A step is sent: what it feeds counts as computed from now on."""
        for sequence in step.sampled:  # in decode
            sequence.num_computed += 1
        self.decode_tokens, self.prefill_tokens = len(step.decodes), 0
        for sequence, entry in step.prefills:
            sequence.num_computed += entry.num_tokens
            self.prefill_tokens += entry.num_tokens
            step.ends.append(sequence.num_computed)
            if sequence.num_computed == sequence.num_prefill:
                step.sampled.append(sequence)
                self.prefilling.remove(sequence)
                self.decoding.append(sequence)
        self._in_flight.append(step)

    def _take_back(self, step: SentStep) -> None:
        """The reverse of `_advance`, for those of its sequences that are still there."""
        for sequence, entry in step.entries():
            sequence.num_computed -= entry.num_tokens - len(entry.drafts)
        for (sequence, entry), end in zip(step.prefills, step.ends, strict=True):
            refund = look_refund(sequence, end - entry.num_tokens)
            sequence.account.served -= entry.num_tokens + refund
        for sequence in step.sampled[len(step.decodes) :]:
            if sequence not in step.gone:
                self.decoding.remove(sequence)
                self.prefilling.append(sequence)

    # --- what becomes of a sequence ---------------------------------------------------------------------

    def _problem(self, prompt_len: int, length: int, max_tokens: int) -> tuple[str, str] | None:
        """Why a request can never run (code and message), or None."""
        if not prompt_len:
            return Code.BAD_REQUEST, "the prompt is empty"
        if max_tokens < 1:
            return Code.BAD_REQUEST, f"max_tokens is {max_tokens}, and must be at least 1"
        if prompt_len >= self.max_len:
            limit = f"prompt and answer together may have {self.max_len}"
            return Code.CONTEXT_LENGTH_EXCEEDED, f"the prompt has {prompt_len} tokens, and {limit}"
        if length >= min(prompt_len + max_tokens, self.max_len):
            return Code.CONTEXT_LENGTH_EXCEEDED, "the answer so far leaves no room for more of it"
        return None

    def _begin(self, sequence: Sequence, report: SequenceReport) -> None:
        """Make `report` the first of its sequence."""
        sequence.started = True
        cached = min(sequence.num_reused, sequence.prompt_len)
        if cached or sequence.request.marks:
            marks = tuple(sequence.hashes[number] for number in sequence.request.marks)
            report.more = msgspec.structs.replace(report.details, cached_tokens=cached, marks=marks)
        self._counts["prompt_tokens"] += sequence.prompt_len
        self._counts["cached_tokens"] += cached

    def _settle_prompt(self, sequence: Sequence, end: int) -> None:
        """So many of its tokens are computed; the first time this is reported."""
        sequence.num_settled = end
        self.cache.settle(sequence, end)
        if end < sequence.num_prefill and not sequence.started:
            report = SequenceReport(sequence.request_id, [])
            self._begin(sequence, report)
            self._reports.append(report)

    def _distrust(self, sequence: Sequence, code: str) -> None:
        """It ends with an error, so nobody shall share what it computed.

        Where it is not the request's own fault, what it found in the cache may be what was wrong.
        """
        running = chain(self.prefilling, self.decoding)
        self.cache.withdraw(sequence, running, reused=code != Code.BAD_REQUEST)

    def _lowest(self) -> Sequence:
        """Who is preempted first."""
        return max(chain(self.prefilling, self.decoding), key=self.queue.rank)

    def _preempt(self, sequence: Sequence) -> None:
        self._remove_running(sequence)
        self._release(sequence)
        self.queue.put_back(sequence)
        self._counts["preemptions"] += 1

    def _guess_no_more(self, sequence: Sequence) -> None:
        """Forget a step in which drafts were fed, and no token came.

        A draft may lead to numbers that are not finite, and these into all that its page and its step have of
        the sequence. Without drafts it is computed again, in pages of its own, up to the same answer or the
        error that is the model's own.
        """
        sequence.guessing = None
        sequence.num_computed -= 1
        self._preempt(sequence)

    def _remove_running(self, sequence: Sequence) -> None:
        (self.prefilling if sequence in self.prefilling else self.decoding).remove(sequence)

    def _release(self, sequence: Sequence) -> None:
        """Take slot and pages from a running sequence. The next plan tells the engine first."""
        self.cache.settle(sequence, sequence.num_certain)
        self.cache.release(sequence)
        self._released.append(sequence.slot)
        self._free_slots.append(sequence.slot)
        for step in self._in_flight:
            step.gone |= {sequence}
        sequence.num_computed = sequence.num_settled = sequence.num_seen = 0
        sequence.slot = None

    def _end(self, sequence: Sequence) -> None:
        """The caller sees to the list that holds it."""
        del self._open[sequence.request_id]
        self._suspects.pop(sequence, None)
        self.queue.leave(sequence)
        if sequence.slot is not None:
            self._release(sequence)


def _merge(report: SequenceReport, extra: Extra) -> None:
    """Add to a report what a step brought besides its token."""
    report.finish = "stop" if extra.embedding else extra.finish or report.finish
    report.more = Details(
        extra.message,
        extra.code,
        logprobs=[extra.logprobs] if extra.logprobs is not None else [],
        prompt_logprobs=extra.prompt_logprobs,
        embedding=extra.embedding,
    )
