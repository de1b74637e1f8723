"""Tokens that only the device knows yet, and are fed all the same: so a step can be sent while one runs."""

from __future__ import annotations

import torch
from torch import Tensor

from workers.parallel import RankGroup


class LatestTokens:
    """The newest token of each slot. It is the same on all ranks: who does not sample takes it from rank 0.

    Args:
        slots: numbers from 0.

    Attributes:
        nobody: a number that stands for none of them, where there has to be one.
    """

    def __init__(self, slots: int, group: RankGroup) -> None:
        self.nobody, self._group = slots, group
        self._tokens = torch.zeros(slots + 1, dtype=torch.int64, device=group.device)

    def fill_in(self, token_ids: Tensor) -> Tensor:  # [tokens] int64
        """What a step feeds: in place of -1 - n stands the newest token of slot n (`make_step`)."""
        return torch.where(token_ids < 0, self._tokens[(-1 - token_ids).clamp_(min=0)], token_ids)

    def keep(self, slots: Tensor, tokens: Tensor | None) -> None:
        """They are the newest now.

        Args:
            slots: `[rows]` int64.
            tokens: the same, below 0 where there is none; None on the other ranks.
        """
        self._tokens[slots] = self._group.from_first(
            torch.zeros_like(slots) if tokens is None else tokens.clamp(min=0)
        )
