"""What the sampler knows of a sequence."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from ipc.worker_messages import SamplingParams
from workers.sampling.penalties import NGrams


@dataclass(slots=True)
class SamplingSlot:
    """A sequence: how it wants to be sampled, and what of its past matters for that."""

    params: SamplingParams
    prompt_len: int
    length: int  # tokens, prompt included: the place of the next one
    output: list[int]  # as far as it is known
    allowed: Tensor | None  # [vocabulary] bool
    bias: tuple[list[int], list[float]]  # ids and values
    ngrams: NGrams | None  # of prompt and output, where none may come twice
    behind: int | None = None  # the draft before it, if this is not a sequence but a place behind a draft

    def forbidden(self) -> Iterator[int]:
        """What may not come next: the ends of bad words, of runs that were there, and what begins nothing."""
        for word in self.params.bad_words:
            before = len(word) - 1
            if not before or self.output[-before:] == word[:-1]:
                yield word[-1]
        if self.length == self.prompt_len:
            yield from self.params.begin_suppress_ids
        if self.ngrams is not None:
            yield from self.ngrams.repeating()

    def push(self, token: int) -> None:
        """It is known with which token it goes on."""
        self.output.append(token)
        if self.ngrams is not None:
            self.ngrams.push(token)

    @property
    def looks_back(self) -> bool:
        """Whether what comes next depends on tokens that have to be known."""
        return self.ngrams is not None or any(len(word) > 1 for word in self.params.bad_words)

    @property
    def too_short(self) -> bool:
        """Whether it may not end yet."""
        return self.length - self.prompt_len < self.params.min_tokens

    @property
    def edited(self) -> bool:
        """Whether its logits may change, penalties and grammar aside."""
        params = self.params
        return bool(
            params.logit_bias
            or params.allowed_token_ids
            or params.bad_words
            or self.too_short
            or self.ngrams is not None
            or (params.begin_suppress_ids and self.length == self.prompt_len)
        )

    @property
    def filtered(self) -> bool:
        params = self.params
        return bool(params.top_k) or params.top_p < 1 or params.min_p > 0
