"""What a neuron answers: every verb, from a decoded request to its terminal reply."""

from __future__ import annotations

import asyncio
import itertools
import logging
import secrets
import socket
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from functools import partial

from ipc.errors import Code, CortexError
from ipc.messages import (
    AnyRequest,
    Cancel,
    Cancelled,
    CountTokens,
    Discover,
    Discovery,
    Done,
    Drain,
    Embed,
    Failed,
    Generate,
    Health,
    HealthReply,
    Hello,
    HelloReply,
    Load,
    ModelList,
    Progress,
    Reply,
    Request,
    Resume,
    State,
    TokenCount,
    Unload,
    Watch,
)
from ipc.messages import Models as ModelsRequest
from ipc.server import Peer
from neuron.config import NeuronConfig
from neuron.generation import Generation
from neuron.lifecycle import ManagedModel
from neuron.models import Models
from neuron.prompt import encode_prompt, size_of, validate, validate_prompt

log = logging.getLogger("neuron.service")

STATE_INTERVAL = 0.1  # seconds between two `State` of one watch, at least
INLINE_CHARACTERS = 2000  # up to here tokenising takes less than half a millisecond


class Service:
    """Dispatches requests; owns what is open.

    Args:
        config: the neuron's.
        version: what `hello` says.
        models: all that this neuron can serve.
    """

    def __init__(self, config: NeuronConfig, version: str, models: Models) -> None:
        self._config = config
        self._version = version
        self._models = models
        self._instance = secrets.token_hex(8)
        self._started = time.monotonic()
        self._keys = itertools.count(1)
        self._generations: dict[Peer, dict[int, Generation]] = {}
        self._open = 0  # generations in all
        self._tasks: dict[asyncio.Task[None], tuple[Peer, int]] = {}
        self._watches: set[tuple[Peer, int]] = set()
        self._pushing: asyncio.TimerHandle | None = None
        self._pushed = 0.0
        self._draining = False
        self._drained: asyncio.Future[None] | None = None  # while draining: done when nothing is open
        self._ending = False
        self._settled = asyncio.Event()  # nothing is open
        self._settled.set()
        self._verbs: dict[type[Request], Callable] = {
            Generate: self._generate,
            Cancel: self._cancel,
            Watch: self._watch,
            Hello: self._hello,
            Resume: self._resume,
            Embed: self._embed,
            Load: partial(self._later, self._load),
            Unload: partial(self._later, self._unload),
            Discover: partial(self._later, self._discover),
            Health: partial(self._later, self._health),
            ModelsRequest: partial(self._later, self._list_models),
            CountTokens: partial(self._later, self._count_tokens),
            Drain: partial(self._later, self._drain),
        }

    def handle(self, peer: Peer, request: AnyRequest) -> None:
        """Begin to answer. What is raised here is answered by the server, as `Failed`."""
        self._verbs[type(request)](peer, request)

    def on_gone(self, peer: Peer) -> None:
        """A peer is gone: nobody wants its answers any more."""
        for generation in list(self._generations.get(peer, {}).values()):
            generation.cancel()
        for task, (owner, _) in list(self._tasks.items()):
            if owner is peer:
                task.cancel()
        self._watches = {watch for watch in self._watches if watch[0] is not peer}

    # --- generate ---------------------------------------------------------------------------------------

    def _generate(self, peer: Peer, request: Generate) -> None:
        self._refuse_new_work()
        validate(request)
        generation = Generation(next(self._keys), request, peer.send, partial(self._ended, peer))
        self._generations.setdefault(peer, {})[request.id] = generation
        self._open += 1
        self._settled.clear()
        model = self._models.known(request.model)
        text = model.text_now if model is not None else None
        if text is not None and size_of(request) <= INLINE_CHARACTERS:
            with _failing(generation):
                generation.prepare(text, model.blueprint, model.context_length)
                self._admit(model, generation)
        else:
            self._later(partial(self._prepare, generation), peer, request)

    async def _prepare(self, generation: Generation, peer: Peer, request: Generate) -> None:
        """The way of the first request of a model, and of long prompts: with files and threads."""
        with _failing(generation):
            model = await self._models.open(request.model)
            text = await model.text()
            await asyncio.to_thread(generation.prepare, text, model.blueprint, model.context_length)
            self._admit(model, generation)

    def _admit(self, model: ManagedModel, generation: Generation) -> None:
        """Let a prepared request in, unless it ended meanwhile."""
        if generation.outcome is None:
            generation.model = model
            model.admit(generation)

    def _ended(self, peer: Peer, generation: Generation) -> None:
        mine = self._generations[peer]
        del mine[generation.request.id]
        if not mine:
            del self._generations[peer]
        if generation.model is not None:
            generation.model.leave(generation)
        self._open -= 1
        if not self._open:
            self._settled.set()
            self._check_drained()

    def _cancel(self, peer: Peer, request: Cancel) -> None:
        self._watches.discard((peer, request.id))
        generation = self._generations.get(peer, {}).get(request.id)
        if generation is not None:
            generation.cancel()
        for task, owner in list(self._tasks.items()):
            if owner == (peer, request.id):
                task.cancel()

    def _refuse_new_work(self) -> None:
        if self._ending:
            raise CortexError(Code.SHUTTING_DOWN, "this neuron is shutting down", retry_after=5.0)
        if self._draining:
            raise CortexError(Code.DRAINING, "this neuron is being drained and takes no new work")

    # --- models -----------------------------------------------------------------------------------------

    async def _load(self, peer: Peer, request: Load) -> Reply:
        self._refuse_new_work()
        model = await self._models.open(request.model)
        await model.load(
            lambda message, fraction: peer.send(
                Progress(id=request.id, stage="loading", message=message, fraction=fraction)
            )
        )
        return Done(id=request.id)

    async def _unload(self, peer: Peer, request: Unload) -> Reply:
        model = await self._models.open(request.model)
        await model.unload(request.force)
        return Done(id=request.id)

    async def _list_models(self, peer: Peer, request: ModelsRequest) -> Reply:
        await self._models.find_all()
        return ModelList(id=request.id, models=self._models.states())

    async def _count_tokens(self, peer: Peer, request: CountTokens) -> Reply:
        validate_prompt(request)
        model = await self._models.open(request.model)
        ids, _ = await asyncio.to_thread(encode_prompt, await model.text(), request)
        return TokenCount(id=request.id, tokens=len(ids))

    def _embed(self, peer: Peer, request: Embed) -> None:
        raise CortexError(
            Code.NOT_SUPPORTED, f"embed: this neuron has no engine that embeds text, {request.model} included"
        )

    # --- the neuron itself ------------------------------------------------------------------------------

    def _hello(self, peer: Peer, request: Hello) -> None:
        if request.eviction is not None:
            self._models.eviction = request.eviction
        log.info("client says hello client=%s eviction=%s", request.client, request.eviction)
        peer.send(
            HelloReply(
                id=request.id, neuron=self._config.name, version=self._version, instance=self._instance
            )
        )

    async def _discover(self, peer: Peer, request: Discover) -> Reply:
        devices = await self._models.refresh_devices()
        return Discovery(
            id=request.id,
            hostname=socket.gethostname(),
            devices=devices,
            cuda_unavailable=self._models.cuda_unavailable,
        )

    async def _health(self, peer: Peer, request: Health) -> Reply:
        devices = await self._models.refresh_devices()
        return HealthReply(
            id=request.id,
            uptime=time.monotonic() - self._started,
            draining=self._draining,
            devices=devices,
            models=self._models.states(),
            ranks=self._models.ranks(),
        )

    async def _drain(self, peer: Peer, request: Drain) -> Reply:
        log.info("draining open=%d", self._open)
        self._draining = True
        self.changed()
        if self._drained is None:
            self._drained = asyncio.get_running_loop().create_future()
        self._check_drained()
        await asyncio.shield(self._drained)
        return Done(id=request.id)

    def _check_drained(self) -> None:
        if self._drained is not None and not self._open and not self._drained.done():
            self._drained.set_result(None)

    def _resume(self, peer: Peer, request: Resume) -> None:
        log.info("resumed")
        self._draining = False
        drained, self._drained = self._drained, None
        if drained is not None and not drained.done():
            drained.set_exception(CortexError(Code.DRAINING, "the drain was ended by a resume"))
        self.changed()
        peer.send(Done(id=request.id))

    # --- watch ------------------------------------------------------------------------------------------

    def _watch(self, peer: Peer, request: Watch) -> None:
        self._watches.add((peer, request.id))
        peer.send(self._state(request.id))

    def changed(self) -> None:
        """Something that `State` tells is not what it was: tell the watches, soon and together."""
        if self._watches and self._pushing is None:
            wait = max(0.0, self._pushed + STATE_INTERVAL - time.monotonic())
            self._pushing = asyncio.get_running_loop().call_later(wait, self._push)

    def _push(self) -> None:
        self._pushing = None
        self._pushed = time.monotonic()
        for peer, request_id in self._watches:
            peer.send(self._state(request_id))

    def _state(self, request_id: int) -> State:
        return State(
            id=request_id,
            neuron=self._config.name,
            instance=self._instance,
            draining=self._draining,
            devices=self._models.devices(),
            models=self._models.states(),
        )

    # --- tasks and the end ------------------------------------------------------------------------------

    def _later(
        self,
        verb: Callable[[Peer, AnyRequest], Coroutine[None, None, Reply | None]],
        peer: Peer,
        request: AnyRequest,
    ) -> None:
        """Answer in a task of its own, which `cancel` and a lost peer end."""
        task = asyncio.create_task(self._answer(verb, peer, request))
        self._tasks[task] = (peer, request.id)
        task.add_done_callback(self._tasks.pop)

    async def _answer(
        self, verb: Callable[[Peer, AnyRequest], Awaitable[Reply | None]], peer: Peer, request: AnyRequest
    ) -> None:
        try:
            reply = await verb(peer, request)
        except CortexError as error:
            reply = Failed.of(request.id, error)
        except asyncio.CancelledError:
            reply = Cancelled(id=request.id)
        except Exception as error:
            log.exception("verb failed verb=%s id=%d", type(request).__name__, request.id)
            reply = Failed(id=request.id, code=Code.INTERNAL, message=f"{type(error).__name__}: {error}")
        if reply is not None:
            peer.send(reply)

    async def close(self, grace: float) -> None:
        """Take nothing new; give what runs `grace` seconds to finish; answer all that is still open.

        Workers are not its business: `Models.close` ends them.
        """
        self._ending = True
        error = CortexError(Code.SHUTTING_DOWN, "this neuron is shutting down", retry_after=5.0)
        for generations in list(self._generations.values()):
            for generation in list(generations.values()):
                if not generation.begun:
                    generation.fail(error)
        with suppress(TimeoutError):
            await asyncio.wait_for(self._settled.wait(), grace)
        for generations in list(self._generations.values()):
            for generation in list(generations.values()):
                generation.fail(error)
        for task, (peer, request_id) in list(self._tasks.items()):
            peer.send(Failed.of(request_id, error))
            task.cancel()
        for peer, request_id in self._watches:
            peer.send(Failed.of(request_id, error))
        self._watches.clear()
        if self._pushing is not None:
            self._pushing.cancel()


@contextmanager
def _failing(generation: Generation) -> Iterator[None]:
    """Whatever goes wrong inside ends `generation`, so that it is answered and forgotten."""
    try:
        yield
    except CortexError as error:
        generation.fail(error)
    except Exception as error:
        log.exception("request cannot be prepared id=%d", generation.key)
        generation.fail(CortexError(Code.INTERNAL, f"{type(error).__name__}: {error}"))
