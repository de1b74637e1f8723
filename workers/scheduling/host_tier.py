"""Which states that left the device are in the host's memory, and where. No tensor is here.

A state is large, so a device keeps few that nobody uses. The one that was left longest ago makes way for the
next, and is copied to the host before its place is written over; whoever begins with what it stands for has
it copied back. A plan carries these copies in their order (`workers.step.plan.StateMove`), and all ranks make
them before the step that it is of: so what comes back is what went, to the bit.
"""

from __future__ import annotations

from collections import OrderedDict

from workers.scheduling.page_pool import PagePool
from workers.step.plan import StateMove


class HostTier:
    """Places `0..total-1` in the host's memory, each for one state. Who was wanted last stays longest.

    Args:
        total: places; none: what leaves the device is gone.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self._empty = list(range(total - 1, -1, -1))
        self._place_of: OrderedDict[tuple[int, bytes], int] = OrderedDict()  # by cache group and hash
        self._moves: list[StateMove] = []  # that no plan has told yet

    def __contains__(self, key: tuple[int, bytes]) -> bool:
        """Whether the state is here that a cache group has at the end of the page with that hash."""
        return key in self._place_of

    def __len__(self) -> int:
        return len(self._place_of)

    def keep(self, state: int, group: int, digest: bytes) -> None:
        """Take in what number `state` of the device holds, which is about to be written over."""
        key = group, digest
        if key in self._place_of:  # what has the same hash is the same
            self._place_of.move_to_end(key)
            return
        if self._empty:
            place = self._empty.pop()
        elif self._place_of:
            _, place = self._place_of.popitem(last=False)
        else:
            return
        self._place_of[key] = place
        self._moves.append(StateMove(state, place, leaves=True))

    def bring_back(self, group: int, digest: bytes, states: PagePool) -> int:
        """The number that the state has on the device from now on: one that is free there, for one user."""
        place = self._place_of.pop((group, digest))  # where nothing goes that makes way for it
        [state] = states.allocate(1)
        self._place_of[group, digest] = place
        self._moves.append(StateMove(state, place, leaves=False))
        return state

    def make_way(self, group: int, digest: bytes) -> None:
        """Of all that is here, let that state be the first to leave: nobody is likely to want it."""
        if (group, digest) in self._place_of:
            self._place_of.move_to_end((group, digest), last=False)

    def clear(self) -> None:
        """Forget all of it."""
        self._empty += self._place_of.values()
        self._place_of.clear()

    def take_moves(self) -> list[StateMove]:
        """The copies to make before the next step, in their order."""
        moves, self._moves = self._moves, []
        return moves
