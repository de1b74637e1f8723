"""Which sequences go through the next step, where each is computed as a whole and is done then.

What an encoder reads, it reads at once: nothing is kept from one step to the next, so there are no pages, no
chunks and no preemption. What is left is the order, which is the same fair queue's, and the budget of a step.
"""

from __future__ import annotations

from array import array
from collections import deque

from ipc.errors import Code
from ipc.worker_messages import Details, SequenceReport, Submit
from workers.scheduling.fair_queue import FairQueue
from workers.scheduling.sequence import Sequence
from workers.step.engine import StepResult
from workers.step.plan import NewSequence, Scheduled, StepPlan


class WholeScheduler:
    """Has the methods of `workers.scheduling.scheduler.Scheduler`, and the same order of calls.

    Args:
        max_sequences: of a step.
        max_step_tokens: the budget of one step; a sequence has no more tokens than that.
        context_length: tokens of a sequence, at most.
    """

    def __init__(self, *, max_sequences: int, max_step_tokens: int, context_length: int) -> None:
        if min(max_sequences, max_step_tokens, context_length) < 1:
            raise ValueError("max_sequences, max_step_tokens and context_length must be at least 1")
        self.max_sequences, self.max_step_tokens = max_sequences, max_step_tokens
        self.max_len = min(context_length, max_step_tokens)
        self.queue = FairQueue()
        self.step = 0  # of the last plan
        self.decode_tokens = 0  # always: nothing is decoded
        self.prefill_tokens = 0  # in the last plan
        self._open: dict[int, Sequence] = {}  # by request id
        self._in_flight: deque[list[Sequence]] = deque()
        self._most = max_sequences  # of the next step: fewer after one for which there was no memory
        self._used = 0  # slots of the last plan, which the next one empties
        self._reports: list[SequenceReport] = []
        self._counts = dict.fromkeys(("prompt_tokens", "out_of_memory"), 0)

    def submit(self, request: Submit) -> None:
        """Queue a sequence. One that could never run is answered at once, with finish "error".

        Raises:
            ValueError: the request id is open already, or the prompt is no array of uint32.
        """
        if request.request_id in self._open:
            raise ValueError(f"request {request.request_id} is open already")
        token_ids = array("I", request.prompt)
        if problem := self._problem(request, len(token_ids)):
            code, message = problem
            self._reports.append(SequenceReport(request.request_id, [], "error", Details(message, code)))
            return
        self._open[request.request_id] = self.queue.enter(request, token_ids, len(token_ids), len(token_ids))

    def abort(self, request_id: int) -> None:
        """End a sequence. One that is in a step is computed all the same, and nobody is told."""
        sequence = self._open.get(request_id)
        if sequence is None:
            return
        if sequence.slot is None:
            self.queue.remove(sequence)
        self._end(sequence)
        self._reports.append(SequenceReport(request_id, [], "aborted"))

    @property
    def is_empty(self) -> bool:
        """Whether nothing is open."""
        return not self._open

    @property
    def has_prompts(self) -> bool:
        """Whether any is not computed: all that is open."""
        return bool(self._open)

    def plan(self, chunk: int | None = None, work: int | None = None) -> StepPlan | None:
        """The next step, which counts as sent; None when nothing waits.

        Args:
            chunk, work: are for those who have something in decode.
        """
        sequences: list[Sequence] = []
        budget = self.max_step_tokens
        while len(sequences) < self._most:
            following = min(self.queue.heads(), key=self.queue.order, default=None)
            if following is None or len(following.token_ids) > budget:
                break  # nobody slips past who waits for a step of its own
            self.queue.admit(following)
            following.slot = len(sequences)
            following.account.served += len(following.token_ids)
            budget -= len(following.token_ids)
            sequences.append(following)
        if not sequences:
            return None
        self.step += 1
        self.prefill_tokens = self.max_step_tokens - budget
        self._in_flight.append(sequences)
        released, self._used = list(range(self._used)), len(sequences)
        scheduled = [Scheduled(sequence.slot, len(sequence.token_ids)) for sequence in sequences]
        return StepPlan(self.step, released, [_new(each) for each in sequences], scheduled)

    def observe(self, result: StepResult) -> None:
        """Take what the engine made of the oldest step in flight.

        Raises:
            ValueError: it brought nothing for one of its sequences.
        """
        sequences = self._in_flight.popleft()
        self._most = self.max_sequences
        for index, sequence in enumerate(sequences):
            request_id = sequence.request_id
            if self._open.get(request_id) is not sequence:  # it was aborted
                continue
            extra = result.extras.get(index)
            if extra is None or not (extra.embedding or extra.finish):
                raise ValueError(f"request {request_id} has no vector, and does not end")
            details = Details(extra.message, extra.code, embedding=extra.embedding)
            report = SequenceReport(request_id, [], extra.finish or "stop", details)
            self._counts["prompt_tokens"] += sequence.prompt_len
            self._end(sequence)
            self._reports.append(report)

    def step_failed(self, reason: str) -> None:
        """The device had too little memory for the oldest step in flight, so nothing of it was computed.

        Its sequences wait again, and the next step has half as many; one that was alone ends with "error".
        """
        self._counts["out_of_memory"] += 1
        count = len(self._in_flight[0])
        steps, self._in_flight = self._in_flight, deque()
        for sequence in (each for step in steps for each in step):
            if self._open.get(sequence.request_id) is not sequence:
                continue
            if count == 1 and sequence is steps[0][0]:
                self._end(sequence)
                details = Details(reason, Code.INSUFFICIENT_MEMORY)
                self._reports.append(SequenceReport(sequence.request_id, [], "error", details))
                continue
            sequence.slot = None
            sequence.account.served -= len(sequence.token_ids)
            self.queue.put_back(sequence)
        self._most = max(1, count // 2)

    def take_reports(self) -> list[SequenceReport]:
        """What happened to each sequence since the last call."""
        reports, self._reports = self._reports, []
        return reports

    def take_page_news(self) -> tuple[list[bytes], list[bytes]]:
        """No page is ever shared."""
        return [], []

    def statistics(self) -> dict[str, int]:
        """The counts of a `StepReport`, by their names there."""
        running = sum(map(len, self._in_flight))
        waiting = sum(sequence.slot is None for sequence in self._open.values())
        return self._counts | {"running": running, "waiting": waiting, "pages_free": 0}

    def _problem(self, request: Submit, length: int) -> tuple[str, str] | None:
        """Why a request can never run (code and message), or None."""
        if not request.pooling:
            return Code.NOT_SUPPORTED, "the model writes no text"
        if not length:
            return Code.BAD_REQUEST, "the input is empty"
        if length > self.max_len:
            limit = f"the model takes {self.max_len}"
            return Code.CONTEXT_LENGTH_EXCEEDED, f"the input has {length} tokens, and {limit}"
        return None

    def _end(self, sequence: Sequence) -> None:
        del self._open[sequence.request_id]
        self.queue.leave(sequence)


def _new(sequence: Sequence) -> NewSequence:
    request = sequence.request
    return NewSequence(
        slot=sequence.slot,
        prompt_len=sequence.prompt_len,
        token_ids=sequence.token_ids.tobytes(),
        params=request.params,
        pooling=request.pooling,
        second=request.second,
    )
