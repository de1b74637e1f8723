"""What the layers of a model keep of a sequence on one rank, in pages and bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ipc.worker_messages import PAGE_SIZE, CacheGroup
from workers.checkpoints.caches import LIVE_STATES, most_pages, num_states, page_bytes, state_bytes

EVERY_TOKEN = CacheGroup(kind="full", layers=[])
STATE_SHARE = 0.25  # of what weights and steps leave, that states may take: the rest is for keys and values


@dataclass(frozen=True, slots=True)
class CachePlan:
    """Pages of all groups come from one pool, and are all of one size.

    Args:
        groups: of layers that keep the same; none: one of layers that keep every token, in no bytes.
        chunk: tokens of a prompt that one step computes at most: a window slides after the step.
    """

    groups: tuple[CacheGroup, ...] = ()
    chunk: int = 0

    @property
    def page_bytes(self) -> int:
        """Bytes of one page on one rank, which is as large in each group."""
        return page_bytes(self.groups)

    @property
    def state_bytes(self) -> int:
        """Bytes of one state of all layers that keep one."""
        return state_bytes(self.groups)

    def states_in(self, room: int, sequences: int) -> int:
        """States that are planned where `room` bytes are left beside the weights, for so many sequences.

        One sequence has to go. All of them do if they need no more than STATE_SHARE; else fewer run at once.
        """
        if not self.state_bytes:
            return 0
        most = max(LIVE_STATES, int(room * STATE_SHARE) // self.state_bytes)
        return min(num_states(self.groups, sequences), most)

    @property
    def _paged(self) -> Sequence[CacheGroup]:
        """The groups that have pages."""
        return [group for group in self.groups if group.kind != "state"] or [EVERY_TOKEN]

    def pages_for(self, tokens: int) -> int:
        """Pages that one sequence of so many tokens takes, at most."""
        return sum(most_pages(group, tokens, self.chunk) for group in self._paged)

    def longest(self, pages: int, wanted: int) -> int:
        """Tokens of one sequence that has all `pages`, up to `wanted`."""
        if self.pages_for(wanted) <= pages:
            return wanted
        fits, too_many = 0, -(-wanted // PAGE_SIZE)  # in pages of one group
        while too_many - fits > 1:
            middle = (fits + too_many) // 2
            if self.pages_for(middle * PAGE_SIZE) <= pages:
                fits = middle
            else:
                too_many = middle
        return fits * PAGE_SIZE

    def tokens_in(self, pages: int) -> int:
        """Tokens that a pool holds, of all sequences together, at least."""
        return pages // len(self._paged) * PAGE_SIZE
