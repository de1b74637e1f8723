"""Whoever sends a request: the holder of a key, or somebody without one."""

from __future__ import annotations

import fnmatch
import re
from functools import lru_cache
from operator import attrgetter
from typing import Protocol

from gateway.access.limits import Limit, Limits
from gateway.refusals import FORBIDDEN, RATE_LIMITED
from gateway.store.key_store import Key, Terms
from ipc.errors import CortexError
from ipc.messages.answers import Usage

LEFTOVERS = 100  # the priority of who has no key, where others have one

_NO_TERMS = Terms()


class Meter(Protocol):
    """Where usage is noted."""

    def note(self, key_id: str, model: str, usage: Usage) -> None:
        """Add what one request of that key came to."""
        ...


class Principal:
    """The sender of one request.

    Args:
        account: a name for it, as neurons are told.
        key: its key; None: it has none.
        priority: of its requests at least; None: as they say.
        admin: it may change the fleet though it has no key.

    Attributes:
        key_id: for the log; empty: it has no key.
        name: whose the key is.
        admin: it may change the fleet.
        limits: as they stood when a request was last admitted, or was not; the minute's first.
    """

    def __init__(
        self,
        account: str,
        key: Key | None = None,
        priority: int | None = None,
        limits: Limits | None = None,
        meter: Meter | None = None,
        admin: bool = False,
    ) -> None:
        self.account = account
        self.key_id = key.id if key is not None else ""
        self.name = key.name if key is not None else ""
        self.admin = key.terms.admin if key is not None else admin
        self._key, self._priority, self._limits, self._meter = key, priority, limits, meter
        self.limits: list[Limit] = []
        self._terms = key.terms if key is not None else _NO_TERMS

    @property
    def sees_all(self) -> bool:
        """Whether it may know what there is in the fleet."""
        return self.admin or not self._terms.models

    def may_use(self, model: str) -> bool:
        """Whether it may ask for the model of that name."""
        return not self._terms.models or _matches(self._terms.models, model)

    def may_reach(self, path: str) -> bool:
        """Whether it may ask at that address."""
        return not self._terms.endpoints or _matches(self._terms.endpoints, path)

    def require(self, model: str) -> None:
        """CortexError, unless it may ask for that model."""
        if not self.may_use(model):
            raise CortexError(
                FORBIDDEN, f"model: this key allows {', '.join(self._terms.models)} only", param="model"
            )

    def admit(self, model: str) -> None:
        """Count a request to `model`.

        Raises:
            CortexError: its key does not allow it, or allows no more of them now.
        """
        self.require(model)
        if self._key is None or not (self._terms.limits_requests or self._terms.limits_tokens):
            return
        self.limits = self._limits.admit(self._key.number, self._terms)
        if spent := [limit for limit in self.limits if not limit.left]:
            reached = max(spent, key=attrgetter("reset"))
            details = {"limit": reached.allowed, "of": reached.what, "per": reached.period}
            text = f"this key allows {reached.allowed} {reached.what} per {reached.period}, and they are used"
            raise CortexError(RATE_LIMITED, text, details=details, retry_after=reached.reset)
        self.limits = [limit.after_one() for limit in self.limits]

    def weigh(self, priority: int) -> int:
        """The priority of a request of its that asks for `priority`: never sooner than it may."""
        return priority if self._priority is None else max(priority, self._priority)

    def charge(self, model: str, usage: Usage) -> None:
        """Count what a request that was admitted came to."""
        if self._key is None:
            return
        if self._terms.limits_tokens:
            self._limits.charge(self._key.number, usage.prompt_tokens + usage.completion_tokens)
        self._meter.note(self.key_id, model, usage)


ANYBODY = Principal("")  # where nobody asked who it is


def _matches(patterns: tuple[str, ...], text: str) -> bool:
    return _any_of(patterns).match(text) is not None


@lru_cache(1024)
def _any_of(patterns: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(map(fnmatch.translate, patterns)))
