"""Whose next tokens are guessed in a step, and how many: as far as rows are free and pages are there."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from collections.abc import Sequence as Row
from dataclasses import dataclass, field

import msgspec

from ipc.worker_messages import FREE_ROWS, Logprobs, SequenceReport, Speculation, Submit
from workers.scheduling.drafts import DRAFTERS, Guessing
from workers.scheduling.sequence import Sequence
from workers.step.engine import Extra, StepResult
from workers.step.plan import Scheduled, drafts_of, verified

Stepping = list[tuple[Sequence, Scheduled]]
Drafts = dict[Sequence, list[int]]
NO_DRAFTS: Drafts = {}


@dataclass(slots=True)
class Right:
    """The drafts of a sequence that were right in a step, and what there is to say besides them."""

    token_ids: list[int]
    logprobs: list[Logprobs] = field(default_factory=list)
    prompt_logprobs: list[Logprobs] = field(default_factory=list)

    def put_into(self, report: SequenceReport) -> None:
        """Report them before the last token, which is in it already."""
        report.token_ids[:0] = self.token_ids
        if self.logprobs or self.prompt_logprobs:
            logprobs = self.logprobs + report.details.logprobs
            of_prompt = self.prompt_logprobs + report.details.prompt_logprobs
            report.more = msgspec.structs.replace(
                report.details, logprobs=logprobs, prompt_logprobs=of_prompt
            )


@dataclass(slots=True)
class Judged:
    """A result without its drafts."""

    tokens: list[int] = field(default_factory=list)  # of each sequence the last one that came
    extras: dict[int, Extra] = field(default_factory=dict)  # by the index in `tokens`
    right: dict[int, Right] = field(default_factory=dict)  # what came before, by request id

    def complete(self, reports: Iterable[SequenceReport]) -> None:
        """Put what came before into the reports of the tokens."""
        for report in reports:
            if (right := self.right.get(report.request_id)) is not None:
                right.put_into(report)


class Guesses:
    """The drafts of all sequences.

    Args:
        speculation: how tokens are guessed.
        max_step_tokens: the budget of one step.

    Attributes:
        drafted: tokens that were guessed, and checked.
        accepted: of these, that were right.
    """

    def __init__(self, speculation: Speculation, max_step_tokens: int) -> None:
        self._make_drafter = DRAFTERS[speculation]
        self._max_step_tokens = max_step_tokens
        self.drafted = self.accepted = 0

    def begin(self, request: Submit) -> Guessing | None:
        """What guesses for a request; None: nobody."""
        return Guessing(self._make_drafter()) if may_be_guessed(request) else None

    def has_to_know(self, latest: Drafts, decoding: Row[Sequence]) -> bool:
        """Whether the next step waits for what the last one brings: it has drafts (`latest`), or there is a
        row for somebody in decode who can be guessed for, once the last token is known."""
        if latest or len(decoding) >= FREE_ROWS:
            return bool(latest)
        return any(s.guessing is not None and not s.guessing.rests(len(s.token_ids)) for s in decoding)

    def put_behind(self, sequences: Row[Sequence], decodes: list[Scheduled]) -> Drafts:
        """Let sequences in decode, whose tokens are known, feed what these may go on with.

        Drafts stay in the page that the token before them is in: they take none that would have to be given
        back, and nobody is preempted for them. Of the budget that is left, prompts keep half at least.

        Args:
            sequences: these, in the order of the plan.
            decodes: their entries in it, changed where there are drafts.

        Returns:
            These, by their sequences.
        """
        drafts: Drafts = {}
        left = min(FREE_ROWS - len(decodes), (self._max_step_tokens - len(decodes)) // 2)
        for index, (sequence, entry) in enumerate(zip(sequences, decodes, strict=True)):
            if left < 1:
                break
            share = -(-left // (len(decodes) - index))
            if found := _draft(sequence, share):
                drafts[sequence] = found
                left -= len(found)
                decodes[index] = Scheduled(sequence.slot, 1 + len(found), entry.new_pages, found)
        return drafts

    def judge(
        self, result: StepResult, sampled: Row[Sequence], drafts: Drafts, gone: Collection[Sequence]
    ) -> Judged:
        """Take in which drafts of a step were right: their sequences have them, computed, from then on.

        Where drafts were fed and no token came in the end, nothing counts: see `Scheduler._guess_no_more`.

        Args:
            sampled: who got tokens, in the order of the result.
            gone: those of them that need none any more.

        Raises:
            ValueError: the result has too many tokens, or too few.
        """
        judged, coming, made, first = Judged(), iter(result.tokens), iter(result.drafts), 0
        for index, sequence in enumerate(sampled):
            fed = drafts_of(drafts.get(sequence, ()), made)
            *right, last = verified(coming, fed)
            extras = [result.extras.get(first + place) for place in range(len(right) + 1)]
            first += len(extras)
            judged.tokens.append(last)
            if extras[-1] is not None:
                judged.extras[index] = extras[-1]
            if fed and last >= 0 and sequence not in gone:
                self._take_in(sequence, len(fed), right)
                if right:
                    judged.right[sequence.request_id] = _told(right, extras)
        if (left := len(result.tokens) - first) > 0:
            raise ValueError(f"{left} of the {len(result.tokens)} tokens that came back are of no sequence")
        return judged

    def _take_in(self, sequence: Sequence, fed: int, right: list[int]) -> None:
        sequence.num_computed += len(right)
        sequence.token_ids.extend(right)
        sequence.account.served += len(right)
        sequence.guessing.judge(fed, len(right), len(sequence.token_ids) + 1)
        self.drafted += fed
        self.accepted += len(right)


def _told(right: list[int], extras: list[Extra | None]) -> Right:
    told = Right(right)
    for extra in extras[:-1]:
        if extra is not None:
            told.prompt_logprobs += extra.prompt_logprobs
            if extra.logprobs is not None:
                told.logprobs.append(extra.logprobs)
    return told


def may_be_guessed(request: Submit) -> bool:
    """Whether each token of an answer is chosen by its place and what the model says, and by nothing that has
    to follow the tokens one by one: a grammar, penalties, runs that may not come again."""
    params = request.params
    penalised = (params.repetition_penalty, params.presence_penalty, params.frequency_penalty) != (1, 0, 0)
    looks_back = params.no_repeat_ngram or any(len(word) > 1 for word in params.bad_words)
    return not (penalised or looks_back or request.constraint is not None or request.pooling)


def _draft(sequence: Sequence, most: int) -> list[int]:
    """At most so many tokens for one; none behind a token that ends it, or its length."""
    if sequence.guessing is None:
        return []
    in_page = sequence.capacity - sequence.num_computed - 1
    most = min(most, in_page, sequence.max_len - len(sequence.token_ids) - 1)
    if most < 1:
        return []
    found = sequence.guessing.draft(sequence.token_ids, most)
    end = next((number for number, token in enumerate(found) if token in sequence.stop_ids), None)
    return found[:end]
