"""Which tokens go through the engine in the next step.

Continuous batching under one token budget: sequences in decode take one token each, prompts share the rest
in chunks, in the order of the fair queue. Pages are allocated when they are needed and never reserved; when
they run out, the sequence of the lowest rank is preempted: it gives up its pages, waits, and later computes
its prompt and its output so far again, as far as they are not cached. Full pages are cached (`page_pool`), so
what sequences have in common is computed once; one whose next page is being computed now waits for it.

Plain data and no clock: a scheduler is a pure function of what it was told, so any run can be replayed.
"""

from __future__ import annotations

import heapq
from array import array
from itertools import chain

from ipc.errors import Code
from ipc.worker_messages import PAGE_SIZE, SequenceReport, Submit
from workers.scheduling.fair_queue import FairQueue
from workers.scheduling.page_pool import PagePool, extend_hashes
from workers.scheduling.sequence import Sequence
from workers.step.engine import Extra, StepResult
from workers.step.pages import pages_for
from workers.step.plan import NewSequence, Scheduled, StepPlan

Stepping = list[tuple[Sequence, Scheduled]]


class Scheduler:
    """Decides each step, and turns what it brought into reports.

    `submit` and `abort` are called between steps; a step is `plan`, then the engine, then `commit` or
    `step_failed`. A sequence is in the queue, then in `prefilling`, then in `decoding`, where one token is
    pending; a preemption takes it back to the queue.

    Args:
        max_sequences: slots of the engine. Never more of them run than there are tokens in the budget.
        max_step_tokens: the budget of one step.
        context_length: tokens of prompt and output together at which a sequence ends with "length".
        kv_pages: pages in the engine's pool. A sequence that alone fills the pool ends with "length" too.
    """

    def __init__(
        self, *, max_sequences: int, max_step_tokens: int, context_length: int, kv_pages: int
    ) -> None:
        if min(max_sequences, max_step_tokens, context_length, kv_pages) < 1:
            raise ValueError("max_sequences, max_step_tokens, context_length and kv_pages must be at least 1")
        self.max_step_tokens = max_step_tokens
        self.max_len = min(context_length, kv_pages * PAGE_SIZE)
        self.pool = PagePool(kv_pages)
        self.queue = FairQueue()
        self.prefilling: list[Sequence] = []
        self.decoding: list[Sequence] = []
        self.step = 0  # of the last plan
        self.decode_tokens = 0  # in the last plan
        self.prefill_tokens = 0  # the same, of prompts
        self._open: dict[int, Sequence] = {}  # by request id
        self._free_slots = list(range(min(max_sequences, max_step_tokens) - 1, -1, -1))
        self._released: list[int] = []  # slots that the next plan empties
        self._decodes: Stepping = []  # the plan that the engine has now
        self._prefills: Stepping = []
        self._suspect: Sequence | None = None  # preempted for memory, and not in a good step since
        self._reports: list[SequenceReport] = []
        self._counts = dict.fromkeys(("prompt_tokens", "cached_tokens", "preemptions", "out_of_memory"), 0)

    # --- what it is told --------------------------------------------------------------------------------

    def submit(self, request: Submit) -> None:
        """Queue a sequence. One that could never run is answered at once, with finish "error".

        Raises:
            ValueError: the request id is open already, or the prompt is no array of uint32.
        """
        if request.request_id in self._open:
            raise ValueError(f"request {request.request_id} is open already")
        token_ids = array("I", request.prompt)
        if problem := self._problem(len(token_ids), request.max_tokens):
            code, message = problem
            self._reports.append(SequenceReport(request.request_id, [], "error", message, code))
            return
        max_len = min(len(token_ids) + request.max_tokens, self.max_len)
        self._open[request.request_id] = self.queue.enter(request, token_ids, max_len)

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

    def commit(self, result: StepResult) -> None:
        """Take what the engine made of the last plan.

        Raises:
            ValueError: these are not as many tokens as the plan samples, or one is missing without a reason.
        """
        for sequence, entry in self._decodes:
            sequence.num_computed += 1
            if entry is not sequence.decode:
                self._offer_pages(sequence)
        sampled = [sequence for sequence, _ in self._decodes]
        for sequence, entry in self._prefills:
            sequence.num_computed += entry.num_tokens
            self._offer_pages(sequence)
            if not sequence.num_pending:
                sampled.append(sequence)
            elif not sequence.started:
                report = SequenceReport(sequence.request.request_id, [], "")
                self._begin(sequence, report)
                self._reports.append(report)
        if len(sampled) != len(result.tokens):
            raise ValueError(f"the plan samples {len(sampled)} tokens, and {len(result.tokens)} came back")
        extras, ended = result.extras, False
        for index, (sequence, token) in enumerate(zip(sampled, result.tokens, strict=True)):
            finish = ""
            if token < 0:
                token_ids = []
            else:
                token_ids = [token]
                sequence.token_ids.append(token)
                sequence.account.served += 1
                if token in sequence.stop_ids:
                    finish = "stop"
                elif len(sequence.token_ids) == sequence.max_len:
                    finish = "length"
            report = SequenceReport(sequence.request.request_id, token_ids, finish)
            if index in extras:
                _merge(report, extras[index])
            if token < 0 and not report.finish:
                raise ValueError(f"request {report.request_id} has no token, and does not end")
            if not sequence.started:
                self._begin(sequence, report)
            self._reports.append(report)
            if report.finish:
                self._end(sequence)
                ended = True
        if self._prefills:
            done = set(sampled)
            self.prefilling = [sequence for sequence in self.prefilling if sequence not in done]
        if ended or len(sampled) > len(self._decodes):
            self.decoding = [sequence for sequence in sampled if sequence.slot is not None]
        self._decodes = self._prefills = []
        if self._suspect is not None and self._suspect.slot is not None:
            self._suspect = None  # this step had it, and went well

    def step_failed(self, reason: str) -> None:
        """The device had too little memory for the last plan: nothing of it was computed.

        Slots and pages are as the plan said. The sequence with most tokens in it is preempted; one that was
        alone, or was preempted for this before and had no good step since, ends with "error".
        """
        self._counts["out_of_memory"] += 1
        for sequence, entry in self._prefills:
            sequence.account.served -= entry.num_tokens
        stepping = self._decodes + self._prefills
        self._decodes = self._prefills = []
        heaviest, _ = max(stepping, key=lambda pair: (pair[1].num_tokens, self.queue.rank(pair[0])))
        self.pool.clear()
        if len(stepping) > 1 and heaviest is not self._suspect:
            self._suspect = heaviest
            self._preempt(heaviest)
            return
        self._remove_running(heaviest)
        self._end(heaviest)
        self._reports.append(
            SequenceReport(heaviest.request.request_id, [], "error", reason, Code.INSUFFICIENT_MEMORY)
        )

    # --- what it says -----------------------------------------------------------------------------------

    def plan(self, chunk: int | None = None) -> StepPlan | None:
        """The next step, or None when nothing is open.

        Args:
            chunk: tokens of prompts that may go beside those in decode, so that these are not held up.
                None, or with nothing in decode: as many as the budget allows.
        """
        decodes = self._plan_decodes()
        budget = self.max_step_tokens - len(decodes)
        if decodes and chunk is not None:
            budget = min(budget, chunk)
        added: list[NewSequence] = []
        prefills = self._plan_prefills(budget, added)
        while not decodes and not prefills and self.prefilling:
            # each of several prompts waits for a page, and nobody is left to free one
            self._preempt(self._lowest())
            prefills = self._plan_prefills(budget, added)
        self._decodes, self._prefills = decodes, prefills
        self.decode_tokens = len(decodes)
        self.prefill_tokens = sum(entry.num_tokens for _, entry in prefills)
        if not decodes and not prefills:
            return None
        self.step += 1
        released, self._released = self._released, []
        return StepPlan(self.step, released, added, [entry for _, entry in chain(decodes, prefills)])

    def take_reports(self) -> list[SequenceReport]:
        """What happened to each sequence since the last call: at most one finish for each request."""
        reports, self._reports = self._reports, []
        return reports

    def take_page_news(self) -> tuple[list[bytes], list[bytes]]:
        """(`cached`, `evicted`) of a `StepReport`: how the pages to share changed since the last call."""
        return self.pool.take_news()

    def statistics(self) -> dict[str, int]:
        """The counts of a `StepReport`, by their names there."""
        running = len(self.prefilling) + len(self.decoding)
        return self._counts | {
            "running": running,
            "waiting": len(self._open) - running,
            "pages_free": self.pool.num_free,
            "pages_cached": self.pool.num_cached,
        }

    # --- planning ---------------------------------------------------------------------------------------

    def _plan_decodes(self) -> Stepping:
        """One token for each sequence in decode, and a page where it needs one: the lowest give up theirs."""
        while True:
            full = [s for s in self.decoding if s.num_computed == len(s.pages) * PAGE_SIZE]
            if len(full) <= self.pool.num_free:
                break
            self._preempt(self._lowest())
        stepping = [(s, s.decode) for s in self.decoding]
        if full:
            needs_page = set(full)
            stepping = [(s, self._schedule(s, 1) if s in needs_page else entry) for s, entry in stepping]
        return stepping

    def _plan_prefills(self, budget: int, added: list[NewSequence]) -> Stepping:
        """Chunks of at most `budget` tokens together, in order, for running prompts and heads of the queue.

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
        spare = self._spare_pages()
        planned: set[Sequence] = set()
        while budget and candidates:
            place, sequence = heapq.heappop(candidates)
            if order(sequence) > place:  # others of its account had their turn in this step
                heapq.heappush(candidates, (order(sequence), sequence))
                continue
            if sequence.slot is None:
                cached = self._find_cached(sequence)
                if (source := self._computing(sequence, len(cached))) is not None:
                    sequence = source
                else:
                    cost = pages_for(len(sequence.token_ids) + 1) - len(cached) + self.pool.count_idle(cached)
                    alone = not self.prefilling and not self.decoding
                    if not self._free_slots or (cost > spare and not alone):
                        candidates = sorted(pair for pair in candidates if pair[1].slot is not None)
                        continue
                    spare -= cost + 1
                    if (following := self.queue.admit(sequence)) is not None:
                        heapq.heappush(candidates, (order(following), following))
                    added.append(self._admit(sequence, cached))
            if sequence in planned:
                continue
            capacity = (len(sequence.pages) + self.pool.num_free) * PAGE_SIZE
            num_tokens = min(sequence.num_pending, budget, capacity - sequence.num_computed)
            if num_tokens:
                planned.add(sequence)
                stepping.append((sequence, self._schedule(sequence, num_tokens)))
                sequence.account.served += num_tokens
                budget -= num_tokens
        return stepping

    def _spare_pages(self) -> int:
        """Free pages that no running sequence is about to need: to finish its prompt, and one more each.

        Who is admitted must fit into these with its prompt as a whole: otherwise somebody would soon be
        preempted, and much be computed again.
        """
        unfinished = sum(pages_for(len(s.token_ids) + 1) - len(s.pages) for s in self.prefilling)
        return self.pool.num_free - unfinished - len(self.prefilling) - len(self.decoding)

    def _find_cached(self, sequence: Sequence) -> list[int]:
        """The pages that it need not compute."""
        extend_hashes(sequence.hashes, sequence.token_ids, sequence.request.cache_salt)
        return self.pool.find(sequence.hashes, sequence.may_reuse)

    def _computing(self, sequence: Sequence, num_cached: int) -> Sequence | None:
        """Who is about to compute the first page that a waiting sequence could reuse and cannot yet."""
        if num_cached >= sequence.may_reuse:
            return None
        for other in self.prefilling:
            ahead = other.num_offered <= num_cached < len(other.hashes)
            if ahead and other.hashes[num_cached] == sequence.hashes[num_cached]:
                return other
        return None

    def _admit(self, sequence: Sequence, cached: list[int]) -> NewSequence:
        """Give a waiting sequence a slot, and the cached pages that it starts with."""
        self.pool.share(cached)
        self.prefilling.append(sequence)
        slot = sequence.slot = self._free_slots.pop()
        sequence.decode = Scheduled(slot, 1)
        sequence.pages = list(cached)
        sequence.num_offered = len(cached)
        sequence.num_reused = sequence.num_computed = len(cached) * PAGE_SIZE
        request = sequence.request
        return NewSequence(
            slot=slot,
            prompt_len=sequence.prompt_len,
            token_ids=sequence.token_ids.tobytes(),
            params=sequence.params,
            constraint=request.constraint,
            pooling=request.pooling,
            tables=[cached] if cached else [],
        )

    def _schedule(self, sequence: Sequence, num_tokens: int) -> Scheduled:
        """Feed `num_tokens` more, with the pages that they need; the caller saw that these are free."""
        missing = pages_for(sequence.num_computed + num_tokens) - len(sequence.pages)
        new_pages = self.pool.allocate(max(0, missing))  # a step that failed may have left it some
        sequence.pages += new_pages
        return Scheduled(sequence.slot, num_tokens, [new_pages] if new_pages else [])

    # --- what becomes of a sequence ---------------------------------------------------------------------

    def _problem(self, prompt_len: int, max_tokens: int) -> tuple[str, str] | None:
        """Why a request can never run (code and message), or None."""
        if not prompt_len:
            return Code.BAD_REQUEST, "the prompt is empty"
        if max_tokens < 1:
            return Code.BAD_REQUEST, f"max_tokens is {max_tokens}, and must be at least 1"
        if prompt_len >= self.max_len:
            limit = f"prompt and answer together may have {self.max_len}"
            return Code.CONTEXT_LENGTH_EXCEEDED, f"the prompt has {prompt_len} tokens, and {limit}"
        return None

    def _begin(self, sequence: Sequence, report: SequenceReport) -> None:
        """Make `report` the first of its sequence."""
        sequence.started = True
        report.cached_tokens = sequence.num_reused
        self._counts["prompt_tokens"] += sequence.prompt_len
        self._counts["cached_tokens"] += sequence.num_reused

    def _offer_pages(self, sequence: Sequence) -> None:
        """Let others share the pages that are full and computed by now."""
        num_full = sequence.num_computed // PAGE_SIZE
        if num_full > sequence.num_offered:
            extend_hashes(sequence.hashes, sequence.token_ids, sequence.request.cache_salt)
            for index in range(sequence.num_offered, num_full):
                self.pool.cache(sequence.pages[index], sequence.hashes[index])
            sequence.num_offered = num_full

    def _lowest(self) -> Sequence:
        """Who is preempted first."""
        return max(chain(self.prefilling, self.decoding), key=self.queue.rank)

    def _preempt(self, sequence: Sequence) -> None:
        self._remove_running(sequence)
        self._release(sequence)
        self.queue.put_back(sequence)
        self._counts["preemptions"] += 1

    def _remove_running(self, sequence: Sequence) -> None:
        (self.prefilling if sequence in self.prefilling else self.decoding).remove(sequence)

    def _release(self, sequence: Sequence) -> None:
        """Take slot and pages from a running sequence. The next plan tells the engine first."""
        self._offer_pages(sequence)
        self.pool.free(sequence.pages)
        self._released.append(sequence.slot)
        self._free_slots.append(sequence.slot)
        sequence.pages = []
        sequence.num_computed = sequence.num_offered = 0
        sequence.slot = None

    def _end(self, sequence: Sequence) -> None:
        """The caller sees to the list that holds it."""
        del self._open[sequence.request.request_id]
        self.queue.leave(sequence)
        if sequence.slot is not None:
            self._release(sequence)


def _merge(report: SequenceReport, extra: Extra) -> None:
    """Add to a report what a step brought besides its token."""
    report.finish = "stop" if extra.embedding else extra.finish or report.finish
    report.message, report.code = extra.message, extra.code
    report.logprobs = [extra.logprobs] if extra.logprobs is not None else []
    report.prompt_logprobs = extra.prompt_logprobs
    report.embedding = extra.embedding
