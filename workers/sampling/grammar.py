"""Holds answers to grammars, and thoughts to budgets: which tokens may come next, computed in threads while
the device runs.

Only rank 0 samples, so only rank 0 has grammars. llguidance counts its work and looks at no clock: a grammar
that explodes is given up at the same token each time, and a preempted sequence goes on as before.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from llguidance import LLExecutor, LLMatcher, LLParserLimits

from ipc.errors import Code, CortexError
from ipc.worker_messages import GRAMMAR_LIMITS, Constraint
from workers.sampling.vocabulary import Vocabulary

Phase = Literal["opening", "thought", "gap", "answer", "free"]

LIMITS = LLParserLimits(verbose_errors=False, **GRAMMAR_LIMITS)
MAX_GAP = 4  # tokens of space between the end of a thought and the answer
MAX_THREADS = 8  # for masks
COMPILERS = 4  # threads. Each sequence compiles for itself: shared, one could use up the limits of another


class Grammars:
    """The grammars of the sequences in a batch, by slot.

    Args:
        tokenizer: a `tokenizer.json` or GGUF file, read when the first grammar comes, or at `prepare`.
        vocab_size: of the model; ids that its tokenizer does not have are never allowed.
    """

    def __init__(self, tokenizer: Path, vocab_size: int) -> None:
        self._tokenizer, self._vocab_size = tokenizer, vocab_size
        self._words = (vocab_size + 31) // 32
        self._slots: dict[int, Future[_Follower]] = {}
        self._compiling = ThreadPoolExecutor(COMPILERS, "grammar-compile")
        self._masking = ThreadPoolExecutor(1, "grammar-mask")
        self._vocabulary: Future[Vocabulary] | None = None
        self._threads: LLExecutor | None = None
        self._masks = torch.empty(0, 0, dtype=torch.int32)

    def prepare(self) -> None:
        """Begin to read the tokenizer, so that the first grammar need not wait for it."""
        if self._vocabulary is None:
            self._vocabulary = self._compiling.submit(Vocabulary.load, self._tokenizer, self._vocab_size)

    def add(self, slot: int, constraint: Constraint, output: Sequence[int], stop_ids: Sequence[int]) -> None:
        """A sequence enters. A thread compiles its grammar; if that fails, its mask allows nothing: `error`.

        Args:
            output: what it wrote before a preemption.
            stop_ids: tokens that end it. They are allowed where the grammar may end and nowhere else; in a
                thought neither, because an answer that ends there does not follow the grammar.
        """
        self.prepare()
        self._slots[slot] = self._compiling.submit(
            _Follower, self._vocabulary, constraint, tuple(output), frozenset(stop_ids)
        )

    def remove(self, slot: int) -> None:
        """A sequence left; one without a grammar may leave, too."""
        self._slots.pop(slot, None)

    def begin(self, slots: Sequence[int]) -> PendingMasks | None:
        """Begin to compute what `slots` may write next; None when none of them has a grammar.

        The masks of one step are gone when those of the next begin.
        """
        rows = {
            row: follower
            for row, slot in enumerate(slots)
            if (follower := self._slots.get(slot)) is not None and not _is_free(follower)
        }
        return PendingMasks(self._masking.submit(self._fill, rows, len(slots))) if rows else None

    def accept(self, slot: int, token: int) -> bool:
        """The sequence goes on with `token`, which its mask allowed.

        Returns:
            Whether it is over: `token` is a stop id, or the last token of an answer to which nothing can be
            added. (That token is part of the text, as a stop id is not.) False for a slot without a grammar.
        """
        follower = self._slots.get(slot)
        return follower is not None and follower.result().accept(token)

    def error(self, slot: int) -> CortexError | None:
        """Why a sequence had no token to choose; None for one without a grammar."""
        follower = self._slots.get(slot)
        if follower is None:
            return None
        failed = follower.exception()
        if isinstance(failed, CortexError):
            return failed
        reason = repr(failed) if failed else follower.result().failure
        return _refused(reason or "it and the request's other settings leave no token to choose")

    def close(self) -> None:
        """End the threads."""
        self._slots.clear()
        for pool in (self._compiling, self._masking):
            pool.shutdown(cancel_futures=True)

    def _fill(self, rows: dict[int, Future[_Follower]], count: int) -> torch.Tensor:
        """Compute the masks of `rows` out of `count`; all others allow everything."""
        followers = {row: each.result() for row, each in rows.items() if each.exception() is None}
        width = self._vocab_size // 32 + 1  # a matcher knows one token more than the model
        if len(self._masks) < count:
            # memory that a GPU can read while the CPU goes on, where there is one
            pinned = torch.cuda.is_initialized()
            self._masks = torch.empty(count, width, dtype=torch.int32, pin_memory=pinned)
        masks = self._masks[:count]
        words = masks.numpy().view(np.uint32)
        words.fill(0xFFFFFFFF)
        words[list(rows)] = 0
        if self._threads is None:
            self._threads = LLExecutor(min(MAX_THREADS, os.cpu_count() or 1))
        matching = [(each.matcher, row) for row, each in followers.items() if each.matching]
        if matching:
            self._threads.unsafe_compute_mask_ptr(matching, masks.data_ptr(), 4 * width, count)
        for row, each in followers.items():
            each.finish(words[row, : self._words])
        return masks[:, : self._words]


class PendingMasks:
    """Masks on their way."""

    def __init__(self, masks: Future[torch.Tensor]) -> None:
        self._masks = masks

    def result(self) -> torch.Tensor:  # [slots, ceil(vocab / 32)] int32, on the CPU
        """Wait for them. Bit i of word w stands for token 32 w + i; without a grammar all are set."""
        return self._masks.result()


class _Follower:
    """One sequence and its grammar.

    It is in one of five phases: "opening" (a thought may begin, or the answer), "thought" (nothing is held to
    the grammar), "gap" (space between the two), "answer", and "free" (an answer without a grammar).

    Its state follows from the tokens alone: a sequence that was preempted comes to the same.

    Raises:
        CortexError: BAD_REQUEST when the grammar cannot be compiled; NOT_SUPPORTED, see `Vocabulary.load`.
    """

    def __init__(
        self,
        vocabulary: Future[Vocabulary],
        constraint: Constraint,
        output: tuple[int, ...],
        stop_ids: frozenset[int],
    ) -> None:
        self._vocabulary = vocabulary.result()
        self._think, self._end_think, self._stop_ids = constraint.think, constraint.end_think, stop_ids
        # A tag of several tokens is looked for in the text, as the answer's reader does: there are many ways
        # to write it. One that is a token is that token.
        self._end_tag = b"".join(self._vocabulary.tokens[token] for token in constraint.end_think)
        self._tag_tokens = frozenset(constraint.end_think)
        self._budget = constraint.budget
        self._thought = b""  # the end of it
        self._thought_ids: list[int] = []  # the same
        self._length = 0  # tokens of it
        self._opened = 0  # tokens of `think` that the output began with
        self._spaces = 0  # tokens of the gap
        self._behind: Phase = "gap" if constraint.grammar else "free"  # a thought
        self._answer: Phase = "answer" if constraint.grammar else "free"
        self.phase: Phase = (
            "thought" if constraint.in_thought else "opening" if constraint.think else self._answer
        )
        self._fits = True  # the output so far is the beginning of an answer
        self.matcher: LLMatcher | None = None
        if constraint.grammar:
            self.matcher = LLMatcher(
                self._vocabulary.matching, constraint.grammar, log_level=0, limits=LIMITS
            )
            if self.failure:
                raise _refused(self.failure)
        for token in output:
            self.accept(token)

    @property
    def failure(self) -> str:
        """What went wrong with the grammar, or nothing."""
        return self.matcher.get_error().partition("\n")[0][:200] if self.matcher is not None else ""

    @property
    def matching(self) -> bool:
        """Whether the next mask is a matter for the matcher."""
        return (
            self.matcher is not None
            and self.phase != "thought"
            and self._fits
            and not self.matcher.is_error()
        )

    def finish(self, words: np.ndarray) -> None:
        """Complete a mask, uint32 [words], in which the matcher (if it was `matching`) set what it allows."""
        if self.phase == "thought" and self._budget is not None and self._length >= self._budget:
            words[:] = 0
            _allow(words, self._end_think[self._ended()])
            return
        if self.matcher is None:
            words[:] = 0xFFFFFFFF
            return
        if self.phase == "thought":
            words[:] = self._vocabulary.known
            if len(self._end_think) > 1:
                words &= ~self._vocabulary.beyond(self._end_tag, self._thought)
        elif self.matcher.is_error():
            words[:] = 0
        if self.phase == "gap" and self._spaces < MAX_GAP:
            words |= self._vocabulary.spaces
        if self.phase == "opening":
            _allow(words, self._think[self._opened])
        may_end = self.matching and self.matcher.is_accepting()
        for token in self._stop_ids:
            if may_end:
                _allow(words, token)
            else:
                words[token >> 5] &= ~np.uint32(1 << (token & 31))

    def accept(self, token: int) -> bool:
        """Go on; see `Grammars.accept`."""
        if self.phase == "thought":
            self._accept_thought(token)
            return False
        if self.matcher is None:
            self._accept_freely(token)
            return False
        if token in self._stop_ids:
            return True
        if self.phase == "gap" and token in self._vocabulary.space and self._spaces < MAX_GAP:
            self._spaces += 1
            return False
        if self.phase == "opening":
            if token == self._think[self._opened]:
                self._opened += 1
                if self._opened == len(self._think):
                    self.phase, self._fits = "thought", True
                    self.matcher.reset()
                    return False
                self._fits = self._fits and self.matcher.validate_tokens([token]) == 1
                if not self._fits:
                    return False
            else:
                self.phase = "answer"
        else:
            self.phase = "answer"
        return self.matcher.consume_token(token) and self.phase == "answer" and self.matcher.is_stopped()

    def _accept_freely(self, token: int) -> None:
        """Go on without a grammar: of interest is a thought that begins, behind space as for a reader."""
        if self.phase != "opening":
            return
        if token == self._think[self._opened]:
            self._opened += 1
            if self._opened == len(self._think):
                self.phase = "thought"
        elif self._opened or token not in self._vocabulary.space:
            self.phase = "free"

    def _accept_thought(self, token: int) -> None:
        """Go on in a thought; the tag ends it."""
        self._length += 1
        if len(self._end_think) == 1:
            ended = token == self._end_think[0]
        else:
            if token in self._tag_tokens or token not in self._vocabulary.control:
                self._thought += self._vocabulary.tokens[token]
            ended = self._end_tag in self._thought
            self._thought = self._thought[1 - len(self._end_tag) :]
            self._thought_ids = [*self._thought_ids, token][1 - len(self._end_think) :]
        if ended:
            self.phase = self._behind

    def _ended(self) -> int:
        """How many tokens of the tag the thought ends with."""
        lengths = range(len(self._thought_ids), 0, -1)
        return next((n for n in lengths if self._thought_ids[-n:] == self._end_think[:n]), 0)


def _is_free(follower: Future[_Follower]) -> bool:
    """Whether anything may follow, to the end."""
    return follower.done() and follower.exception() is None and follower.result().phase == "free"


def _allow(words: np.ndarray, token: int) -> None:
    words[token >> 5] |= np.uint32(1 << (token & 31))


def _refused(reason: str) -> CortexError:
    return CortexError(
        Code.BAD_REQUEST, f"the grammar cannot be followed: {reason}", param="structured_outputs"
    )
