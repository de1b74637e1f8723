"""Large requests that are not prepared yet, which are held as they came."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from ipc.errors import Code, CortexError

MEMORY = 1 << 30  # bytes of all of them


class HeldBodies:
    """There is always room for another account's: none holds more than is left, but for one request.

    Args:
        memory: bytes that may be held.
    """

    def __init__(self, memory: int = MEMORY) -> None:
        self._memory = memory
        self._of: Counter[str] = Counter()  # bytes by account

    @contextmanager
    def hold(self, account: str, size: int) -> Iterator[None]:
        """So many bytes are held meanwhile; QUEUE_FULL where there is no room for them."""
        own, held = self._of[account], self._of.total()
        left = self._memory - held - size
        if left < 0 or (own and own + size > left):
            raise CortexError(
                Code.QUEUE_FULL,
                f"large requests that wait to be prepared have {held} bytes, {own} of them this account's, "
                f"and {self._memory} are all that there may be",
                retry_after=1.0,
            )
        self._of[account] += size
        try:
            yield
        finally:
            self._of[account] -= size
            if not self._of[account]:
                del self._of[account]
