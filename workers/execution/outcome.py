"""What comes of a step, once its tokens are known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ipc.errors import Code, CortexError
from workers.sampling.grammar import Grammars
from workers.sampling.sampled import Launched, Sampled
from workers.step.batch import Slot
from workers.step.engine import Extra, StepResult
from workers.step.plan import drafts_of, verified

NOT_FINITE = CortexError(
    Code.INTERNAL,
    "the model's numbers are not finite here: its weights are damaged, or the prompt leads beyond what its "
    "type of numbers can hold",
)
NO_CHOICE = CortexError(Code.BAD_REQUEST, "the settings of the request leave no token to choose")


@dataclass(slots=True)
class Outcome:
    """A step that was sent. Implements `workers.step.engine.Sent`.

    The slots are kept themselves: when the tokens are there their numbers may be others'.
    """

    # who has no pending token left: their numbers, and the drafts that were fed
    complete: Sequence[tuple[int, Slot, Sequence[int]]]
    launched: Launched | None  # None: no token is sampled, or not on this rank
    grammars: Grammars | None
    ahead: bool
    looked: int = 0  # as of `StepResult`
    seen: bool = False

    def result(self) -> StepResult:
        """Wait for the tokens, append them, and say what else came of each sequence."""
        sampled = self.launched.result() if self.launched is not None else Sampled([])
        result = StepResult([], looked=self.looked, seen=self.seen, drafts=sampled.drafts)
        tokens, row, logprobs, made = iter(sampled.tokens), 0, sampled.logprobs, iter(sampled.drafts)
        for number, slot, drafts in self.complete:
            if slot.new.pooling:
                result.extras[len(result.tokens)] = _embedding(slot)
                result.tokens.append(-1)
                continue
            known = verified(tokens, drafts_of(drafts, made))
            slot.know(known)
            for token in known:
                more = token < 0 or slot.new.constraint is not None or slot.prompt_logprobs or row in logprobs
                if more and (extra := self._extra(sampled, row, number, slot)) is not None:
                    result.extras[len(result.tokens)] = extra
                result.tokens.append(token)
                row += 1
        return result

    def _extra(self, sampled: Sampled, row: int, number: int, slot: Slot) -> Extra | None:
        """What there is to say besides one of the tokens of a slot."""
        token, entry = sampled.tokens[row], sampled.logprobs.get(row)
        if token < 0:
            error = NOT_FINITE if row in sampled.broken else self._nothing_to_choose(slot, number)
            return Extra("error", error.code, error.message)
        finish, prompt_logprobs = "", slot.prompt_logprobs
        if slot.new.constraint is not None and self.grammars.accept(number, token):
            finish = "stop"
        if not (finish or entry is not None or prompt_logprobs):
            return None
        slot.prompt_logprobs = []
        return Extra(finish, logprobs=entry, prompt_logprobs=prompt_logprobs)

    def _nothing_to_choose(self, slot: Slot, number: int) -> CortexError:
        return NO_CHOICE if slot.new.constraint is None else self.grammars.error(number)


def _embedding(slot: Slot) -> Extra:
    vector = np.array(slot.vector())
    if not np.isfinite(vector).all():
        return Extra("error", NOT_FINITE.code, NOT_FINITE.message)
    return Extra(embedding=vector.astype("<f4").tobytes())
