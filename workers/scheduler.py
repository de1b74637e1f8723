"""Which tokens go through the engine in the next step.

Continuous batching under one token budget: sequences in decode take one token each, prompts take the rest in
chunks, first come first served. Pages are allocated when they are needed and never reserved; when they run
out, the youngest running sequence is preempted: it gives up its pages, waits at the head of the queue, and
later computes its prompt and its output so far again.

Plain data and no clock: a scheduler is a pure function of what it was told, so any run can be replayed.
"""

from __future__ import annotations

from array import array
from collections import deque

from ipc.worker_messages import SequenceReport, Submit
from workers.engine import StepResult
from workers.pages import PAGE_SIZE, PagePool, pages_for
from workers.plan import NewSequence, Scheduled, StepPlan
from workers.sequence import Sequence


class Scheduler:
    """Decides each step, and turns sampled tokens into reports.

    `submit` and `abort` are called between steps; a step is `plan`, then the engine, then `commit`.
    Two things hold between steps, and the code leans on both: `running` is in order of arrival and older
    than all of `waiting`; at most one running sequence is in prefill, and it is the last.

    Args:
        max_sequences: slots of the engine. Never more of them run than there are tokens in the budget: who
            joins takes a token of the same step that the others take theirs from.
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
        self.running: list[Sequence] = []
        self.waiting: deque[Sequence] = deque()
        self.step = 0  # of the last plan
        self._open: dict[int, Sequence] = {}  # by request id
        self._free_slots = list(range(max_sequences - 1, -1, -1))
        self._released: list[int] = []  # slots that the next plan empties
        self._stepping: list[tuple[Sequence, Scheduled]] = []  # the plan that the engine has now
        self._reports: list[SequenceReport] = []

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
            self._reports.append(SequenceReport(request.request_id, [], "error", problem))
            return
        max_len = min(len(token_ids) + request.max_tokens, self.max_len)
        sequence = Sequence(request, token_ids, len(token_ids), max_len, frozenset(request.params.stop_ids))
        self._open[request.request_id] = sequence
        self.waiting.append(sequence)

    def abort(self, request_id: int) -> None:
        """End a sequence and free its pages now. One that ended already has had its last report."""
        if (sequence := self._open.get(request_id)) is None:
            return
        if sequence.slot is None:
            self.waiting.remove(sequence)
        else:
            self.running.remove(sequence)
        self._end(sequence)
        self._reports.append(SequenceReport(request_id, [], "aborted"))

    def commit(self, result: StepResult) -> None:
        """Take what the engine made of the last plan.

        Raises:
            ValueError: these are not as many tokens as the plan samples.
        """
        complete = []
        for sequence, entry in self._stepping:
            sequence.num_computed += entry.num_tokens
            if sequence.num_computed == len(sequence.token_ids):
                complete.append(sequence)
            elif not sequence.started:
                sequence.started = True
                self._reports.append(SequenceReport(sequence.request.request_id, [], ""))
        ended = False
        for sequence, token in zip(complete, result.tokens, strict=True):
            sequence.started = True
            sequence.token_ids.append(token)
            finish = ""
            if token in sequence.stop_ids:
                finish = "stop"
            elif len(sequence.token_ids) == sequence.max_len:
                finish = "length"
            self._reports.append(SequenceReport(sequence.request.request_id, [token], finish))
            if finish:
                self._end(sequence)
                ended = True
        if ended:
            self.running = [sequence for sequence in self.running if sequence.slot is not None]

    # --- what it says -----------------------------------------------------------------------------------

    def plan(self) -> StepPlan | None:
        """The next step, or None when nothing is open."""
        stepping: list[tuple[Sequence, Scheduled]] = []
        added: list[NewSequence] = []
        budget = self.max_step_tokens
        running = self.running
        while len(stepping) < len(running):
            sequence = running[len(stepping)]
            if sequence.num_pending > 1:
                break
            if sequence.num_computed < len(sequence.pages) * PAGE_SIZE:
                entry = sequence.decode
            elif self._find_page_for(sequence):
                entry = self._schedule(sequence, 1)
            else:
                break
            stepping.append((sequence, entry))
        budget -= len(stepping)
        while budget:
            if len(stepping) == len(running):
                if not self._may_admit():
                    break
                added.append(self._admit())
            sequence = running[len(stepping)]
            room = (len(sequence.pages) + self.pool.num_free) * PAGE_SIZE - sequence.num_computed
            num_tokens = min(sequence.num_pending, budget, room)
            if not num_tokens:
                break
            stepping.append((sequence, self._schedule(sequence, num_tokens)))
            budget -= num_tokens
        self._stepping = stepping
        if not stepping:
            return None
        self.step += 1
        released, self._released = self._released, []
        return StepPlan(self.step, released, added, [entry for _, entry in stepping])

    def take_reports(self) -> list[SequenceReport]:
        """What happened to each sequence since the last call: at most one finish for each request."""
        reports, self._reports = self._reports, []
        return reports

    # --- inside -----------------------------------------------------------------------------------------

    def _problem(self, prompt_len: int, max_tokens: int) -> str:
        """Why a request can never run, or nothing."""
        if not prompt_len:
            return "the prompt is empty"
        if max_tokens < 1:
            return f"max_tokens is {max_tokens}, and must be at least 1"
        if prompt_len >= self.max_len:
            return (
                f"the prompt has {prompt_len} tokens, and prompt and answer together may have {self.max_len}"
            )
        return ""

    def _find_page_for(self, sequence: Sequence) -> bool:
        """Preempt the youngest until a page is free. False: `sequence` was the youngest itself."""
        while not self.pool.num_free:
            youngest = self.running.pop()
            self._release(youngest)
            self.waiting.appendleft(youngest)
            if youngest is sequence:
                return False
        return True

    def _may_admit(self) -> bool:
        """Is there a slot, and room for the first in the queue?

        Its pending tokens must fit as a whole, with a page left for each running sequence: otherwise it would
        soon be preempted again, and each time all that it computed is lost.
        """
        if not self.waiting or not self._free_slots:
            return False
        needed = pages_for(self.waiting[0].num_pending + 1) + len(self.running)
        return not self.running or needed <= self.pool.num_free

    def _admit(self) -> NewSequence:
        sequence = self.waiting.popleft()
        self.running.append(sequence)
        slot = sequence.slot = self._free_slots.pop()
        sequence.decode = Scheduled(slot, 1)
        request = sequence.request
        return NewSequence(
            slot=slot,
            prompt_len=sequence.prompt_len,
            token_ids=sequence.token_ids.tobytes(),
            params=request.params,
            constraint=request.constraint,
            pooling=request.pooling,
        )

    def _schedule(self, sequence: Sequence, num_tokens: int) -> Scheduled:
        """Feed `num_tokens` more, with the pages that they need; the caller saw that these are free."""
        missing = pages_for(sequence.num_computed + num_tokens) - len(sequence.pages)
        new_pages = self.pool.allocate(missing)
        sequence.pages += new_pages
        return Scheduled(sequence.slot, num_tokens, new_pages)

    def _release(self, sequence: Sequence) -> None:
        """Take slot and pages from a running sequence. The next plan tells the engine first."""
        self.pool.free(sequence.pages)
        self._released.append(sequence.slot)
        self._free_slots.append(sequence.slot)
        sequence.pages = []
        sequence.num_computed = 0
        sequence.slot = None

    def _end(self, sequence: Sequence) -> None:
        del self._open[sequence.request.request_id]
        if sequence.slot is not None:
            self._release(sequence)
