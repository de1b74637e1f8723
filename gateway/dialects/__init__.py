"""The APIs that clients speak. A dialect owns its edges; nothing else knows one.

It says which addresses are its own and how requests there are read, how answers are written, what stands in
a stream while there is nothing to say, and how an error looks. Reading gives one of the canonical requests
and a `Renderer`, which turns the replies into bytes. What is neither, such as reading a stored answer, is a
Falcon resource of the dialect's own. `registry` lists the dialects. Headers that every answer has
stand in `gateway.http`, under the names of several.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import falcon.asgi
import msgspec

from gateway.access.keyring import Keyring
from gateway.access.principal import ANYBODY, Principal
from gateway.dialects.large import Body
from gateway.fetching.images import Images
from gateway.fleet.exchange import Exchange
from gateway.fleet.view import Fleet
from gateway.refusals import Refusal
from gateway.store.response_store import ResponseStore
from gateway.telemetry.history import History
from ipc.errors import CortexError
from ipc.messages.replies import Delta, Finished, Progress, Started
from ipc.messages.requests import CountTokens, Detokenize, Embed, Generate


def no_header(name: str) -> None:
    """The headers of a request that came without any."""
    return None


class RequestContext(msgspec.Struct, frozen=True):
    """What is known of a request beside its body."""

    request_id: str
    account: str = ""  # who asks, as neurons are told
    header: Callable[[str], str | None] = no_header  # a header's value, by its name
    principal: Principal = ANYBODY


@dataclass(frozen=True, slots=True)
class Services:
    """What a dialect may use of the process that serves it."""

    fleet: Fleet
    read: Callable[[falcon.asgi.Request], Awaitable[bytes | bytearray]]  # the body of a request
    context: Callable[[falcon.asgi.Request], RequestContext]  # of a request to a resource of its own
    # The same, and the receipt of one that a neuron is asked for.
    open: Callable[[falcon.asgi.Request], tuple[RequestContext, Exchange]]
    store: ResponseStore | None  # what is kept for clients; None: nothing is
    keys: Keyring
    history: History
    images: Images  # those that only their address is there of


class Renderer(Protocol):
    """Writes one answer: either `whole`, or `started`, then `delta` as it comes, then one of the others."""

    def whole(self, started: Started, finished: Finished) -> Body:
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


class ReplyRenderer(Protocol):
    """Writes the answer to a request that a neuron answers by one reply, such as one for embeddings."""

    def whole(self, reply: Any) -> Body:
        """The body, of a reply of the kind that answers the request."""
        ...

    def in_client_words(self, error: CortexError) -> CortexError:
        """As in `Renderer`."""
        ...


# Takes a body and its context. Reading may wait, as for what a store holds; CortexError names a wrong field.
Parse = Callable[[bytes, RequestContext], Coroutine[Any, Any, tuple[Generate, Renderer]]]
AskedOnce = Embed | CountTokens | Detokenize
ParseOne = Callable[[bytes, RequestContext], Coroutine[Any, Any, tuple[AskedOnce, ReplyRenderer]]]


class Dialect(Protocol):
    """One API, in one process.

    Attributes:
        generations: how requests for text are read, by path.
        replies: the same, of requests that one reply answers, such as those for vectors.
        resources: Falcon resources of its own, by path, which may be a template.
    """

    generations: Mapping[str, Parse]
    replies: Mapping[str, ParseOne]
    resources: Mapping[str, object]

    def refuse(self, refusal: Refusal) -> tuple[int, bytes]:
        """The status and the body of an error at one of its addresses."""
        ...


MakeDialect = Callable[[Services], Dialect]
