"""Whose next tokens are guessed in a step, and how many: as far as rows are free and pages are there."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Row

from ipc.worker_messages import Speculation, Submit
from workers.scheduling.drafts import DRAFTERS, FREE_ROWS, Guessing
from workers.scheduling.sequence import Sequence
from workers.step.plan import Scheduled

Stepping = list[tuple[Sequence, Scheduled]]


class Guesses:
    """The drafts of all sequences.

    Args:
        speculation: how tokens are guessed; None: not at all.
        max_step_tokens: the budget of one step.

    Attributes:
        drafted: tokens that were guessed, and checked.
        accepted: of these, that were right.
    """

    def __init__(self, speculation: Speculation | None, max_step_tokens: int) -> None:
        self._make_drafter = None if speculation is None else DRAFTERS[speculation]
        self._max_step_tokens = max_step_tokens
        self.drafted = self.accepted = 0

    def begin(self, request: Submit) -> Guessing | None:
        """What guesses for a request; None: nobody."""
        if self._make_drafter is None or not may_be_guessed(request):
            return None
        return Guessing(self._make_drafter())

    def has_to_know(self, decoding: Iterable[Sequence]) -> bool:
        """Whether somebody in decode can be guessed for, once the last token is known."""
        if self._make_drafter is None:
            return False
        return any(s.guessing is not None and not s.guessing.rests(len(s.token_ids)) for s in decoding)

    def put_behind(self, decodes: Stepping) -> dict[Sequence, list[int]]:
        """Let sequences in decode, whose tokens are known, feed what these may go on with.

        Drafts stay in the page that the token before them is in: they take none that would have to be given
        back, and nobody is preempted for them. Of the budget that is left, prompts keep half at least.

        Args:
            decodes: changed where there are drafts.

        Returns:
            These, by their sequences.
        """
        drafts: dict[Sequence, list[int]] = {}
        if self._make_drafter is None:
            return drafts
        left = min(FREE_ROWS - len(decodes), (self._max_step_tokens - len(decodes)) // 2)
        for index, (sequence, entry) in enumerate(decodes):
            if left < 1:
                break
            share = -(-left // (len(decodes) - index))
            if found := _draft(sequence, share):
                drafts[sequence] = found
                left -= len(found)
                more = Scheduled(sequence.slot, 1 + len(found), entry.new_pages, found)
                decodes[index] = sequence, more
        return drafts

    def judge(self, sequence: Sequence, drafts: Row[int], brought: Row[int]) -> None:
        """Take in what a step brought: all of its tokens but the last were drafts, and are computed."""
        right = len(brought) - 1
        sequence.num_computed += right
        sequence.guessing.judge(len(drafts), right, len(sequence.token_ids) + len(brought))
        self.drafted += len(drafts)
        self.accepted += right


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
