"""Which pages each sequence has in each group of layers: given, shared, dropped and taken back.

A group is a set of layers that keep the same of the tokens before (`workers.checkpoints.caches`). A sequence
has one table of pages a group, and all of its tables are equally long (`workers.step.plan`): a page that no
layer of its group can see any more is a hole there, and its place serves somebody else. All groups that keep
something of each token draw from one pool, because their pages are of one size: what windows give back serves
whoever needs it, and nothing has to be divided beforehand. A state is larger than a page, and there is one
for each sequence and not for each of its pages, so states have a pool of their own.

What was computed before can be reused up to the last page boundary for which every group has what it needs: a
full group all pages before, one with a window those in sight, one with a state the state at the boundary
itself. A state is large, so it is kept where it is likely to be wanted, as long as nobody needs the room:
where a prompt ends, but for what the next turn may write in another way; where an answer ends; every
CHECKPOINT_TOKENS; and where texts were seen to part. One that leaves the device for want of room goes to the
host's memory, if there is some for it (`workers.scheduling.host_tier`).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from collections.abc import Sequence as Row

import msgspec

from ipc.worker_messages import PAGE_SIZE, CacheGroup
from workers.checkpoints.caches import LIVE_STATES, first_page_seen, most_pages
from workers.scheduling.host_tier import HostTier
from workers.scheduling.page_pool import PagePool, extend_hashes
from workers.scheduling.sequence import Sequence
from workers.step.pages import pages_for
from workers.step.plan import HOLE

FULL = CacheGroup(kind="full", layers=[])
CHECKPOINT_TOKENS = 2048  # between the states of a long prompt or answer that are kept
REWRITTEN = 16  # tokens at the end of a prompt that ask for an answer, and are often others once it is there
WORTH_A_STATE = 4  # pages before the place where two texts part, that could be reused if there were a state

Table = list[int]


class Amount(msgspec.Struct, frozen=True, gc=False):
    """Free places, or such as are needed."""

    pages: int
    states: int = 0

    def holds(self, other: Amount) -> bool:
        return self.pages >= other.pages and self.states >= other.states

    def without(self, other: Amount, count: int = 1) -> Amount:
        return Amount(self.pages - count * other.pages, self.states - count * other.states)


class CacheManager:
    """The pools of a rank and the tables of its sequences.

    Args:
        groups: of the model's layers. None: all layers see everything.
        pages: in the pool that all groups but those with a state share.
        states: in the pool of those with a state.
        chunk: tokens of one sequence in a step, at most.
        host_states: that there is room for in the host's memory, of such as left their pool.
        together: tokens that a step feeds at least, where it feeds an image (`PlacedImage.together`).

    Raises:
        ValueError: a sequence of one token would not fit.
    """

    def __init__(
        self,
        groups: Row[CacheGroup] = (),
        *,
        pages: int,
        states: int = 0,
        chunk: int,
        host_states: int = 0,
        together: int = 0,
    ) -> None:
        self.groups = list(groups) or [FULL]
        self._chunk, self._together = chunk, together
        self.pages = PagePool(pages, len(self.groups))
        self.host = HostTier(host_states)
        self.states = PagePool(states, len(self.groups), self.host.keep if host_states else None)
        stateful = [group.kind == "state" for group in self.groups]
        self._pools = [self.states if state else self.pages for state in stateful]
        # what a sequence takes for PAGE_SIZE tokens more
        self.row = Amount(stateful.count(False), stateful.count(True))
        self._forgetful = [i for i, group in enumerate(self.groups) if group.window or group.kind == "state"]
        self.keeps_states = any(stateful)
        self.max_pages = self._most_pages()  # of one sequence, the only one
        if not self.max_pages or states < LIVE_STATES * self.row.states:
            raise ValueError(
                f"{pages} pages and {states} states do not hold one sequence of {len(self.groups)} groups"
            )

    # --- what there is room for -------------------------------------------------------------------------

    def can_grow(self, count: int) -> bool:
        """Whether `count` sequences can each get a page more in every group."""
        row = self.row
        return count * row.pages <= self.pages.num_free and count * row.states <= self.states.num_free

    def room_for(self, sequence: Sequence) -> int:
        """Tokens that can be computed of it now, if nobody else takes a page."""
        rows = self.pages.num_free // self.row.pages if self.row.pages else self._chunk
        if self.states.num_free < self.row.states:
            rows = 0
        return sequence.capacity - sequence.num_computed + rows * PAGE_SIZE

    def spare(self, prefilling: Iterable[Sequence], num_decoding: int) -> Amount:
        """What no running sequence is about to need: to finish its prompt, and one more row each.

        Who is admitted must fit into this with its prompt as a whole: otherwise somebody would soon be
        preempted, and much be computed again.
        """
        pages, running = self.pages.num_free, num_decoding
        for sequence in prefilling:
            pages -= self._missing(sequence)
            running += 1
        return Amount(pages, self.states.num_free).without(self.row, running)

    def cost(self, sequence: Sequence, found: list[Table]) -> Amount:
        """What a waiting sequence takes for its prompt and a token more, where it can share `found`."""
        if not self._forgetful:
            pages = self.row.pages * (
                pages_for(len(sequence.token_ids) + 1) - (len(found[0]) if found else 0)
            )
            return Amount(pages + sum(map(self.pages.count_idle, found)))
        pages = sum(self._most_held(group, len(sequence.token_ids) + 1) for group in self.groups)
        states = LIVE_STATES * self.row.states
        for pool, table in zip(self._pools, found, strict=False):
            shared = [page for page in table if page != HOLE]
            idle = pool.count_idle(shared)
            if pool is self.states:
                states += idle + (table[-1] == HOLE)  # what comes back from the host takes one, too
            else:
                pages += idle - len(shared)
        return Amount(pages, states)

    # --- tables -----------------------------------------------------------------------------------------

    def find(self, sequence: Sequence) -> list[Table]:
        """The pages that it need not compute, as tables of one length; none where there are none.

        A table of states ends with a HOLE where the state is in the host's memory: `share` brings it back.
        """
        request = sequence.request
        extend_hashes(
            sequence.hashes, sequence.token_ids, request.cache_salt, request.adapter, request.images
        )
        hashes, length = sequence.hashes, sequence.may_reuse
        tables: list[Table] = [[] for _ in self.groups]
        sequence.parts_at = 0
        for index, group in enumerate(self.groups):
            if group.kind in ("full", "latent"):
                tables[index] = self.pages.find(hashes, length, index)
                length = len(tables[index])
        agreed, there = -1, length
        while self._forgetful and length != agreed:
            agreed = length
            for index in self._forgetful:
                length = self._reach(index, hashes, length)
        if self.keeps_states and there - length >= WORTH_A_STATE and there < sequence.may_reuse:
            sequence.parts_at = there * PAGE_SIZE
        if not length:
            return []
        for index in self._forgetful:
            first = first_page_seen(self.groups[index], length * PAGE_SIZE)
            page_of = self._pools[index].cached(index)
            tables[index] = [HOLE] * first + [page_of.get(digest, HOLE) for digest in hashes[first:length]]
        return [table[:length] for table in tables]

    def share(self, sequence: Sequence, tables: list[Table]) -> None:
        """Begin with these tables, which `find` found, and which are whole afterwards."""
        for pool, table in zip(self._pools, tables, strict=False):
            pool.share(self._there(table))
        for index, table in enumerate(tables):
            if self._pools[index] is self.states and table[-1] == HOLE:
                table[-1] = self._bring_back(sequence, index, len(table) - 1)
        sequence.tables = [list(table) for table in tables] or [[] for _ in self.groups]
        num_pages = len(sequence.tables[0])
        sequence.capacity = num_pages * PAGE_SIZE
        sequence.num_offered = num_pages
        sequence.shares = True
        sequence.num_dropped = [first_page_seen(group, sequence.capacity) for group in self.groups]
        sequence.last_kept, sequence.passing = sequence.capacity, b""

    def chunk_end(self, sequence: Sequence, end: int) -> int:
        """Where a step that could go on to `end` of a prompt shall stop: where a state is worth keeping."""
        if not self.keeps_states:
            return end
        begun = sequence.num_computed
        stops = [stop for stop in (_prompt_kept(sequence), sequence.parts_at) if begun < stop < end]
        if stops:
            return min(stops)
        boundary = end // PAGE_SIZE * PAGE_SIZE
        return boundary if begun < boundary and end < len(sequence.token_ids) else end

    def grow(self, sequence: Sequence, end: int) -> list[Table]:
        """Give it the pages that it needs for its tokens up to `end`; the caller saw that these are free."""
        count = pages_for(end) - len(sequence.tables[0])
        if count <= 0:  # a step that failed may have left it some
            return []
        sequence.capacity += count * PAGE_SIZE
        if len(self._pools) == 1 and not self.keeps_states:
            pages = self.pages.allocate(count)
            sequence.tables[0] += pages
            return [pages]
        added = [
            self._next_state(sequence, table, count) if pool is self.states else pool.allocate(count)
            for pool, table in zip(self._pools, sequence.tables, strict=True)
        ]
        for table, pages in zip(sequence.tables, added, strict=True):
            table += pages
        return added

    def settle(self, sequence: Sequence, end: int) -> None:
        """Its first `end` tokens are computed: let others share what is full, and drop what none can see."""
        if end // PAGE_SIZE > sequence.num_offered:
            self._offer(sequence, end // PAGE_SIZE)
        for index in self._forgetful:
            self._drop(sequence, index, first_page_seen(self.groups[index], end))

    def release(self, sequence: Sequence) -> None:
        """Take back all of its pages. Its last ones are evicted before those that they continue."""
        for pool, table in zip(self._pools, sequence.tables, strict=True):
            pool.free(reversed(self._there(table)))
        sequence.tables = []
        sequence.capacity = sequence.num_offered = 0

    def reaches(self, sequence: Sequence, pages: int) -> bool:
        """Whether it has pages behind the first `pages` of the pool."""
        return any(
            page >= pages
            for pool, table in zip(self._pools, sequence.tables, strict=True)
            if pool is self.pages
            for page in table
        )

    def resize(self, pages: int) -> None:
        """Give the first `pages` of the pool from now on; no sequence may have others."""
        self.pages.resize(pages)
        self.max_pages = self._most_pages()

    def withdraw(self, sequence: Sequence, running: Iterable[Sequence], reused: bool) -> None:
        """Let nobody share any more what this sequence computed, nor what was computed from it.

        Args:
            running: who may be computing from it now.
            reused: not even what it found in the cache.
        """
        first = 0 if reused else sequence.num_reused // PAGE_SIZE
        hashes = sequence.hashes
        digests = {
            hashes[number]
            for index, table in enumerate(sequence.tables)
            for number in range(first, sequence.num_offered)
            if table[number] in (HOLE, self._pools[index].cached(index).get(hashes[number]))
        }
        withdrawn = self.pages.withdraw(digests) | self.states.withdraw(digests) if digests else set()
        self.host.clear()  # what continues what is withdrawn may be here while nothing between is anywhere
        sequence.shares = False
        for other in running:
            if not withdrawn.isdisjoint(other.hashes[: other.num_offered]):
                other.shares = False

    # --- the parts of it --------------------------------------------------------------------------------

    def _there(self, table: Table) -> Table:
        """The pages of a table, without its holes."""
        return [page for page in table if page != HOLE] if self._forgetful else table

    def _most_held(self, group: CacheGroup, num_tokens: int) -> int:
        """Pages of a group while a prompt of so many tokens is computed, and one more row in the end."""
        return most_pages(group, num_tokens, self._chunk)

    def _missing(self, sequence: Sequence) -> int:
        """Pages that one in prefill still needs to finish its prompt, and for the token after it."""
        length, num_pages = len(sequence.token_ids) + 1, len(sequence.tables[0])
        if not self._forgetful:
            return self.row.pages * (pages_for(length) - num_pages)
        missing = 0
        for group, dropped in zip(self.groups, sequence.num_dropped, strict=True):
            if group.kind != "state":
                missing += max(0, self._most_held(group, length) - (num_pages - dropped))
        return missing

    def _most_pages(self) -> int:
        """How long the tables of a sequence can become that has the pool to itself."""

        def held(length: int) -> int:
            return sum(
                min(length, pages_for(group.window + self._together) + 2) if group.window else length
                for group in self.groups
                if group.kind != "state"
            )

        return bisect_right(range(1 << 32), self.pages.total, key=held) - 1

    def _reach(self, index: int, hashes: list[bytes], limit: int) -> int:
        """The last boundary, at most `limit` pages on, for which a forgetful group has what it needs."""
        group, page_of = self.groups[index], self._pools[index].cached(index)

        def is_missing(number: int) -> bool:
            return hashes[number] not in page_of and (index, hashes[number]) not in self.host

        length = limit
        while length:
            needed = range(length - 1, first_page_seen(group, length * PAGE_SIZE) - 1, -1)
            missing = next(filter(is_missing, needed), None)
            if missing is None:
                break
            length = missing
        return length

    def _bring_back(self, sequence: Sequence, index: int, number: int) -> int:
        """The state at the end of its page `number`, which is in the host's memory, for it and for others."""
        hashes = sequence.hashes
        state = self.host.bring_back(index, hashes[number], self.states)
        self.states.cache([state], [hashes[number]], hashes[number - 1] if number else b"", index)
        return state

    def _next_state(self, sequence: Sequence, table: Table, count: int) -> Table:
        """Where the state after a step will be.

        A state at a page's end stays, for others to begin with; one in the midst of a page is written over.
        """
        if table and sequence.num_computed % PAGE_SIZE:
            last, table[-1] = table[-1], HOLE
        else:
            [last] = self.states.allocate(1)
        return [HOLE] * (count - 1) + [last]

    def _offer(self, sequence: Sequence, num_full: int) -> None:
        """Let others share its first `num_full` pages."""
        hashes, tables, request = sequence.hashes, sequence.tables, sequence.request
        extend_hashes(hashes, sequence.token_ids, request.cache_salt, request.adapter, request.images)
        if sequence.shares:
            first = sequence.num_offered
            parent = hashes[first - 1] if first else b""
            for index, (pool, table) in enumerate(zip(self._pools, tables, strict=True)):
                # in that of a state there are holes where no step ended
                pool.cache(table[first:num_full], hashes[first:num_full], parent, index)
        sequence.num_offered = num_full

    def _drop(self, sequence: Sequence, index: int, first: int) -> None:
        """Give up the pages of a group before number `first`."""
        table, done = sequence.tables[index], sequence.num_dropped[index]
        if first > done:
            pages = table[done:first]
            table[done:first] = [HOLE] * len(pages)
            sequence.num_dropped[index] = first
            if self.groups[index].kind == "state":
                self._leave_states(sequence, index, done, pages)
            else:
                self._pools[index].free(page for page in pages if page != HOLE)

    def _leave_states(self, sequence: Sequence, index: int, first: int, states: Table) -> None:
        """Give up these, from entry number `first` on, as long as there is room for them: the last one, from
        which the sequence would go on, or the next turn, and those that are worth it."""
        for number, state in enumerate(states, first):
            if state == HOLE:
                continue
            self.states.free([state])
            if sequence.passing:
                self.states.discard(sequence.passing, index)
                self.host.make_way(index, sequence.passing)
            end, sequence.passing = (number + 1) * PAGE_SIZE, b""
            chosen = end in (_prompt_kept(sequence), sequence.parts_at)
            if chosen or end <= sequence.num_reused or end - sequence.last_kept >= CHECKPOINT_TOKENS:
                sequence.last_kept = max(end, sequence.last_kept)
            elif self.states.cached(index).get(sequence.hashes[number]) == state:
                sequence.passing = sequence.hashes[number]


def _prompt_kept(sequence: Sequence) -> int:
    """Tokens of its prompt, up to a page's end, that the next turn most likely begins with."""
    return max(0, sequence.prompt_len - REWRITTEN) // PAGE_SIZE * PAGE_SIZE
