"""The APIs that clients speak. A dialect is two things: reading a request, and writing its answer.

Reading gives the one canonical `Generate` and a `Renderer`; writing turns replies into bytes. Nothing else of
a dialect is known outside its file.
"""

from __future__ import annotations

from typing import Protocol

from ipc.errors import CortexError
from ipc.messages import Delta, Finished, Started


class Renderer(Protocol):
    """Writes one answer: either `whole`, or `started`, then `delta` as it comes, then one of the others."""

    def whole(self, started: Started, finished: Finished) -> bytes:
        """The body of an unstreamed answer."""
        ...

    def started(self, started: Started) -> bytes:
        """The beginning of a stream."""
        ...

    def delta(self, delta: Delta) -> bytes:
        """The piece of stream for new output; may be empty."""
        ...

    def finished(self, finished: Finished) -> bytes:
        """The regular end of a stream."""
        ...

    def in_client_words(self, error: CortexError) -> CortexError:
        """An error of the neuron, with the field called as the client calls it."""
        ...

    def failed(self, error: CortexError) -> bytes:
        """The end of a stream that broke; it cannot be taken for a regular one."""
        ...
