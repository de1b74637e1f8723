"""Drafts that a head of the model makes (`workers.models.mtp`), and what it has to read for them.

Its layer has keys and values in the pages, as every other layer has, of the hidden state of a token and the
token behind it. So each step ends with its own tokens in the head, once it is known what follows them: of a
draft, right or wrong, what was sampled there, and what is wrong is written over as in the other layers. Where
a page is shared, the token behind its last one may have been another: no answer depends on that.

A step with drafts begins with them: the host has said for whom and how many, and never waits for what they
are. The first of a sequence is what the head says of its last token; for each that follows, the head goes one
token on, with its own draft and its own state.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from ipc.worker_messages import FREE_ROWS
from workers.attention.backend import Attend, AttentionBackend
from workers.execution.input_buffers import InputBuffers
from workers.models.decoder import Seen
from workers.models.mtp import MtpHead
from workers.parallel import RankGroup
from workers.sampling.inputs import sent
from workers.step.batch import Segment, Slot, Step
from workers.step.plan import MOST_AHEAD
from workers.step.positions import axes

INPUTS = ("following", "drafted_rows")  # what it has among the inputs of a step, of one element a token


class HeadDrafts:
    """The drafts of one rank's sequences.

    Args:
        head: of the model.
        group: of the ranks.
        attention: over the pages, for steps of one token of each of FREE_ROWS sequences.
    """

    def __init__(self, head: MtpHead, group: RankGroup, attention: AttentionBackend) -> None:
        self._head, self._group, self._attention = head, group, attention
        sizes = {"positions": FREE_ROWS} | attention.sizes
        # of each token that the head goes on: none is filled again before a step has been waited for
        self._inputs = [InputBuffers(sizes, group.device) for _ in range(MOST_AHEAD - 1)]
        self._last: Tensor | None = None  # [sampled, hidden], what the head made of the last step

    def arrays(self, segments: Sequence[Segment]) -> dict[str, array[int]]:
        """For the input buffers: the tokens that follow those of a step, as far as they are known, and the
        rows of drafts."""
        following, rows = array("q"), array("q")
        for segment in segments:
            following.extend(segment.slot.token_ids[segment.start + 1 : segment.end + 1])
            following.extend([0] * (segment.rows.stop - len(following)))
            rows.extend(range(segment.rows.stop - segment.drafts, segment.rows.stop))
        return dict(zip(INPUTS, (following, rows), strict=True))

    def follow(
        self,
        step: Step,
        slots: dict[int, Slot],
        inputs: dict[str, Tensor],
        attend: Attend,
        positions: Tensor,
        hidden: Tensor,
        seen: Seen | None,
        tokens: Tensor | None,
    ) -> None:
        """Let the head read a step.

        Args:
            step: whose slots are as they were before it.
            slots: by their numbers.
            inputs: with `arrays`.
            attend: of its segments.
            positions: of its tokens.
            hidden: `[tokens, hidden]`, of the model, before its last norm.
            seen: which of the tokens behind these are images.
            tokens: `[sampled]` int64, below 0 where there is none; None on other ranks, or where none is.
        """
        following, rows = inputs[INPUTS[0]], inputs["sampled_rows"]
        if step.sampled:
            chosen = torch.zeros_like(rows) if tokens is None else tokens.clamp(min=0)
            following = following.index_copy(0, rows, self._group.from_first(chosen))
        state = self._head(following, self._head.model.norm(hidden), positions, attend, seen)
        self._last = state[rows]
        for index, number in reversed([*enumerate(step.sampled)]):
            slots[number].head_row = index - slots[number].length

    def draft(self, step: Step) -> Tensor:  # [drafts] int64
        """What the head guesses behind the pending tokens of a step, in the order of its rows."""
        drafting = [segment for segment in step.segments if segment.drafts]
        order = sorted(range(len(drafting)), key=lambda number: -drafting[number].drafts)
        those, device = [drafting[number] for number in order], self._group.device
        hidden = self._last[sent([each.slot.head_row + each.start for each in those], device)]
        tokens = self._head.best(hidden)
        found, begins = [tokens], [0]  # of each token ahead, those of whoever has so many
        for ahead, buffers in enumerate(self._inputs):
            those = [each for each in those if each.drafts > ahead + 1]
            if not those:
                break
            rows = [
                Segment(each.slot, range(row, row + 1), each.start + ahead) for row, each in enumerate(those)
            ]
            places = {"positions": array("q", [_position(row) for row in rows])}
            inputs = buffers.fill(places | self._attention.arrays(rows))
            attend = partial(self._attention.run, self._attention.prepare(rows, inputs))
            count = len(those)
            hidden = self._head(tokens[:count], hidden[:count], inputs["positions"], attend)
            tokens = self._head.best(hidden)
            begins.append(begins[-1] + len(found[-1]))
            found.append(tokens)
        place = {number: index for index, number in enumerate(order)}
        wanted = [
            begins[ahead] + place[number]
            for number, segment in enumerate(drafting)
            for ahead in range(segment.drafts)
        ]
        return torch.cat(found)[sent(wanted, device)]


def _position(segment: Segment) -> int:
    """Of its one token, which is of no image."""
    images = segment.slot.new.images
    return axes(images, segment.start, segment.end)[0][0] if images else segment.start
