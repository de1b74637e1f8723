"""One request inside the scheduler, and the account that it is for."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field

import msgspec

from ipc.worker_messages import PAGE_SIZE, SamplingParams, Submit
from workers.scheduling.drafts import Guessing
from workers.step.plan import Scheduled


@dataclass(slots=True)
class Account:
    """Somebody with open sequences, or who had some and was served more than those who still have."""

    # tokens of prompts and output, and what looks at images are worth; what was computed twice counts twice
    served: int = 0
    open: int = 0  # sequences


@dataclass(slots=True, eq=False)
class Sequence:
    """One stream of tokens on its way through the engine.

    `token_ids` holds prompt and output together, as far as they are known. The first `num_computed` have
    their keys and values in the pages of `tables` once all steps that were sent are done; in decode that may
    be one more than are known. Everything else about progress is derived from those two.
    """

    request: Submit
    token_ids: array[int]
    prompt_len: int
    max_len: int  # tokens at which it ends with "length"
    account: Account
    arrival: int  # its number in the order of arrival
    first_since: int | None = None  # departures from the queue when nobody of its lane was before it any more
    started: bool = False  # its supervisor knows that it left the queue
    slot: int | None = None  # None while it waits
    decode: Scheduled | None = None  # the entry of a step that needs no page, made once per slot
    tables: list[list[int]] = field(default_factory=list)  # page numbers of each group, see `step.plan`
    capacity: int = 0  # tokens that its tables have entries for
    undisturbed: int = 0  # tokens up to which it needs no page in decode, and its last step is not sent
    hashes: list[bytes] = field(default_factory=list)  # of its full pages, computed or not, as far as known
    num_offered: int = 0  # pages at the beginning of its tables that were offered to others
    num_dropped: list[int] = field(default_factory=list)  # entries at the beginning of each table given up
    parts_at: int = 0  # tokens that it has in common with others, where no state was kept; 0: it has one
    last_kept: int = 0  # tokens at the last of its states that is kept for others
    passing: bytes = b""  # hash at the state that it left last, which is kept until it leaves another
    shares: bool = True  # what it computes is offered to others
    num_reused: int = 0  # tokens that were in cached pages when it was admitted last
    num_prefill: int = 0  # tokens that it had then: so many are computed before the next one is sampled
    num_settled: int = 0  # tokens of these that are computed for certain: the step has been observed
    num_computed: int = 0
    num_seen: int = 0  # of its images, those at the beginning that were seen before a step shows them
    num_charged: int = 0  # the same, those whose looks its account was charged for
    pixels: tuple[object, ...] | list[object] = ()  # of its images: kept here, looked at elsewhere
    guessing: Guessing | None = None  # where tokens are guessed
    request_id: int = field(init=False)
    stop_ids: frozenset[int] = field(init=False)

    def __post_init__(self) -> None:
        self.request_id = self.request.request_id
        self.stop_ids = frozenset(self.request.params.stop_ids)

    @property
    def num_certain(self) -> int:
        """Tokens whose keys and values are in its pages, whatever becomes of the steps in flight."""
        return self.num_settled if self.num_settled < self.num_prefill else len(self.token_ids) - 1

    @property
    def params(self) -> SamplingParams:
        """How its next tokens are chosen. The prompt's log-probabilities came with the first of them."""
        params = self.request.params
        if params.prompt_logprobs is None or len(self.token_ids) == self.prompt_len:
            return params
        return msgspec.structs.replace(params, prompt_logprobs=None)

    @property
    def may_reuse(self) -> int:
        """Full pages that may come from the cache.

        The last token is always computed: its hidden state gives the next one. Log-probabilities of the
        prompt, and the mean over it, need the hidden state of every token.
        """
        if self.request.pooling == "mean" or self.params.prompt_logprobs is not None:
            return 0
        return (len(self.token_ids) - 1) // PAGE_SIZE
