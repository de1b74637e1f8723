"""The APIs that clients speak. A dialect owns its edges; nothing else knows one.

It says which addresses are its own and how requests there are read, how answers are written, what stands in
a stream while there is nothing to say, and how an error looks. Reading gives one of the canonical requests
and a `Renderer`, which turns the replies into bytes. `registry` lists the dialects.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol

from gateway.refusals import Refusal
from ipc.errors import CortexError
from ipc.messages import Delta, Embed, Embeddings, Finished, Generate, Progress, Started


class Renderer(Protocol):
    """Writes one answer: either `whole`, or `started`, then `delta` as it comes, then one of the others."""

    def whole(self, started: Started, finished: Finished) -> bytes:
        """The body of an unstreamed answer."""
        ...

    def waiting(self, progress: Progress | None) -> bytes:
        """What a stream says in silence, at any time before its end; `progress` is news of the wait."""
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


class VectorRenderer(Protocol):
    """Writes the answer to a request for embeddings."""

    def whole(self, reply: Embeddings) -> bytes:
        """The body."""
        ...

    def in_client_words(self, error: CortexError) -> CortexError:
        """As in `Renderer`."""
        ...


# A request's body and id. Reading may wait, as for what a store holds; CortexError names the field at fault.
Parse = Callable[[bytes, str], Awaitable[tuple[Generate, Renderer]]]
ParseEmbed = Callable[[bytes, str], Awaitable[tuple[Embed, VectorRenderer]]]


class Dialect(Protocol):
    """One API.

    Attributes:
        generations: how requests for text are read, by path.
        embeddings: the same, of requests for vectors.
    """

    generations: Mapping[str, Parse]
    embeddings: Mapping[str, ParseEmbed]

    def refuse(self, refusal: Refusal) -> tuple[int, bytes]:
        """The status and the body of an error at one of its addresses."""
        ...
