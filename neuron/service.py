"""What a neuron answers: every verb, from a decoded request to its terminal reply."""

from __future__ import annotations

import asyncio
import itertools
import logging
import secrets
import socket
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from functools import partial
from inspect import CORO_CREATED, getcoroutinestate

from ipc.errors import Code, CortexError
from ipc.messages.catalogue import FleetCatalogue
from ipc.messages.framing import PROTOCOL_MAJOR, PROTOCOL_MINOR
from ipc.messages.replies import (
    Appraisals,
    Cancelled,
    Claimed,
    Discovery,
    Done,
    Failed,
    HealthReply,
    HelloReply,
    LogLines,
    ModelList,
    PageHashes,
    Reply,
    State,
)
from ipc.messages.requests import (
    STRATEGIES,
    AnyRequest,
    CachedPages,
    Cancel,
    CheckCatalogue,
    Claim,
    CountTokens,
    Detokenize,
    Discover,
    Drain,
    Embed,
    Eviction,
    Generate,
    Health,
    Hello,
    ListModels,
    Load,
    Logs,
    Pin,
    Quote,
    Request,
    Rerank,
    Resume,
    SetCatalogue,
    Tokenize,
    Unload,
    Watch,
)
from ipc.model_settings import check_models
from ipc.server import Encoded, Peer
from ipc.settings import ConfigError
from ipc.unread import Unread
from ipc.worker_messages import PAGE_SIZE
from neuron.catalogue.succession import Succession
from neuron.claims import Claims
from neuron.config import NeuronConfig
from neuron.models.managed import ManagedModel
from neuron.models.manager import ModelManager
from neuron.preparation.held import HeldBodies
from neuron.preparation.preparation import Preparation
from neuron.preparation.prompt import is_quick, validate_prompt
from neuron.preparation.tokens import count_tokens
from neuron.recent_log import RecentLog
from neuron.refusals import replaced
from neuron.requests.drains import ALL, Drains
from neuron.requests.embedding import Embedding
from neuron.requests.ended import EndedLog
from neuron.requests.generation import Generation
from neuron.requests.open_requests import OpenRequests
from neuron.requests.progress import LoadProgress
from neuron.requests.request import OpenRequest
from neuron.requests.reranking import Reranking
from neuron.text.answers import AnswerText
from neuron.text.budget import QUICK_SECONDS, OverBudget
from neuron.trace import traced, word
from neuron.watches import Watches

log = logging.getLogger("neuron.service")


class Service:
    """Dispatches requests; owns what is open.

    Args:
        config: the neuron's.
        version: what `hello` says.
        models: all that this neuron can serve.
        preparation: where requests are prepared that take long.
        recent_log: what was written lately.
    """

    def __init__(
        self,
        config: NeuronConfig,
        version: str,
        models: ModelManager,
        preparation: Preparation,
        recent_log: RecentLog,
    ) -> None:
        self._config = config
        self._version = version
        self._models = models
        self._preparation = preparation
        self._recent_log = recent_log
        self._instance = secrets.token_hex(8)
        self._started = time.monotonic()
        self._keys = itertools.count(1)
        self._open = OpenRequests()
        self._bodies = HeldBodies()
        self._ended_log = EndedLog()
        self._tasks: dict[asyncio.Task[None], tuple[Peer, int]] = {}
        self._watches = Watches(models, self._state)
        self._claims = Claims()
        self._eviction: Succession[Eviction] = Succession("eviction")
        self._drains = Drains(self._is_idle)
        self._ending = False
        self._verbs: dict[type[Request], Callable] = {
            Generate: self._generate,
            Cancel: self._cancel,
            Watch: self._watch,
            Logs: self._logs,
            Hello: self._hello,
            Resume: partial(self._later, self._resume),
            Embed: self._embed,
            Rerank: self._rerank,
            Load: partial(self._later, self._load),
            Unload: partial(self._later, self._unload),
            Pin: partial(self._later, self._pin),
            Discover: partial(self._later, self._discover),
            Health: partial(self._later, self._health),
            ListModels: partial(self._later, self._list_models),
            CountTokens: partial(self._later, self._count_tokens),
            Tokenize: partial(self._later, self._reply_with_tokens),
            Detokenize: partial(self._later, self._reply_with_text),
            Unread: self._unread,
            CachedPages: partial(self._later, self._cached_pages),
            Quote: partial(self._later, self._quote),
            Claim: self._claim,
            Drain: partial(self._later, self._drain),
            SetCatalogue: partial(self._later, self._set_catalogue),
            CheckCatalogue: partial(self._later, self._check_catalogue),
        }

    def handle(self, peer: Peer, request: AnyRequest | Unread) -> None:
        """Begin to answer. What is raised here is answered by the server, as `Failed`."""
        self._verbs[type(request)](peer, request)

    def on_gone(self, peer: Peer) -> None:
        """A peer is gone: nobody wants its answers any more."""
        for opened in self._open.of(peer):
            opened.cancel()
        for task, (owner, _) in list(self._tasks.items()):
            if owner is peer:
                task.cancel()
        self._watches.leave(peer)
        for follower in self._recent_log.followers:
            if follower[0] is peer:
                self._recent_log.leave(follower)

    # --- work for workers ---------------------------------------------------------------------------------

    def _unread(self, peer: Peer, request: Unread) -> None:
        """A large request: what it says will be known once it is prepared."""
        begin = {"generate": self._generate, "embed": self._embed, "rerank": self._rerank}.get(request.verb)
        if begin is not None:
            begin(peer, request)
        else:
            self._later(self._reply_with_text, peer, request)

    def _generate(self, peer: Peer, request: Generate | Unread) -> None:
        self._begin(peer, Generation(self._keys, request, peer.send, partial(self._ended, peer)))

    def _embed(self, peer: Peer, request: Embed | Unread) -> None:
        self._begin(peer, Embedding(self._keys, request, peer.send, partial(self._ended, peer)))

    def _rerank(self, peer: Peer, request: Rerank | Unread) -> None:
        self._begin(peer, Reranking(self._keys, request, peer.send, partial(self._ended, peer)))

    def _begin(self, peer: Peer, opened: OpenRequest) -> None:
        """Prepare and admit: at once where that takes no time, else in a task."""
        self._open.add(peer, opened)
        try:
            self._refuse_new_work()
            if (model := self._models.known(opened.request.model)) is not None:
                self._refuse_drained(model)
                if (text := model.text_now) is not None and self._prepare_now(model, text, opened):
                    return
        except Exception as error:
            _fail(opened, error)
        if opened.outcome is None:
            self._later(partial(self._prepare, opened), peer, opened.request)

    def _prepare_now(self, model: ManagedModel, text: AnswerText, opened: OpenRequest) -> bool:
        """Prepare and admit, where that takes no time; whether that was done."""
        if not self._is_quick(text, opened.request):
            return False
        args = text, model.description, model.context_length, QUICK_SECONDS
        try:
            traced(opened.request.trace, opened.prepare, *args)
        except OverBudget:
            return False
        model.admit(opened)
        return True

    def _is_quick(self, text: AnswerText, request: AnyRequest | Unread) -> bool:
        return text.is_quick and not isinstance(request, Unread) and is_quick(request)

    async def _prepare(self, opened: OpenRequest, peer: Peer, request: Generate | Embed | Unread) -> None:
        """The way of the first request of a model, and of what takes long: with files and processes."""
        try:
            with self._bodies.hold(request.account, _unread_bytes(request)):
                await self._prepare_and_admit(opened, request)
        except asyncio.CancelledError:  # answered here: its id may be another's when this task has ended
            opened.cancel()
        except Exception as error:
            _fail(opened, error)

    async def _prepare_and_admit(self, opened: OpenRequest, request: Generate | Embed | Unread) -> None:
        model = await self._models.obtain(request.model, request.account, opened.progress)
        self._refuse_drained(model)
        try:
            with model.expecting():
                text = await model.text()
                if opened.outcome is not None or self._prepare_now(model, text, opened):
                    return
                args = text, model.description, model.context_length
                prepared = await self._preparation.prepare(request, *args)
                if opened.outcome is None:
                    opened.accept(prepared, text, model.description)
                    for _ in opened.recall():
                        await asyncio.sleep(0)
                if opened.outcome is None:
                    if model.text_now is not text:
                        raise replaced(model.id)
                    model.admit(opened)
        finally:
            self._drains.check()

    def _ended(self, peer: Peer, opened: OpenRequest) -> None:
        self._open.remove(peer, opened)
        self._ended_log.add(opened.ended)
        if opened.model is not None:
            opened.model.leave(opened)
        opened.parts = ()  # they know it, and what goes in a circle is found by looks for garbage alone
        self._drains.check()

    def _cancel(self, peer: Peer, request: Cancel) -> None:
        self._watches.drop(peer, request.id)
        if self._recent_log.leave((peer, request.id)):
            peer.send(Cancelled(id=request.id))
        opened = self._open.get(peer, request.id)
        if opened is not None:
            opened.cancel()
        for task, owner in list(self._tasks.items()):
            if owner == (peer, request.id):
                task.cancel()
                if opened is None and getcoroutinestate(task.get_coro()) == CORO_CREATED:
                    peer.send(Cancelled(id=request.id))  # it will not run as far as to answer

    def _refuse_new_work(self) -> None:
        if self._ending:
            raise CortexError(Code.SHUTTING_DOWN, "this neuron is shutting down", retry_after=5.0)
        self._drains.refuse(ALL)

    def _refuse_drained(self, model: ManagedModel) -> None:
        if model.drained:  # else it is another one of that name
            self._drains.refuse(model.id)

    # --- models -----------------------------------------------------------------------------------------

    async def _load(self, peer: Peer, request: Load) -> Reply:
        self._refuse_new_work()

        def tell(progress: LoadProgress) -> None:
            peer.send(progress.reply(request.id))

        model = await self._models.obtain(request.model, "", tell)
        self._refuse_drained(model)
        await model.load(tell, request.keep_alive)
        return Done(id=request.id)

    async def _unload(self, peer: Peer, request: Unload) -> Reply:
        model = self._models.retired(request.model)
        if model is None and (pull := await self._models.absent(request.model)) is not None:
            await pull.stop("somebody unloaded it")
            return Done(id=request.id)
        model = model or await self._models.open(request.model)
        await model.unload(request.force)
        return Done(id=request.id)

    async def _pin(self, peer: Peer, request: Pin) -> Reply:
        self._models.pin(await self._models.open(request.model), request.pinned)
        return Done(id=request.id)

    async def _list_models(self, peer: Peer, request: ListModels) -> Reply:
        await self._models.finder.find_all()
        return ModelList(id=request.id, models=self._models.states())

    async def _count_tokens(self, peer: Peer, request: CountTokens) -> Reply | Encoded:
        validate_prompt(request)
        model = await self._models.open(request.model)
        text = await model.text()
        if self._is_quick(text, request):
            with suppress(OverBudget):
                return traced(request.trace, count_tokens, text, request, model.context_length, QUICK_SECONDS)
        return await self._preparation.answer(request, text, model.description, model.context_length)

    async def _reply_with_tokens(self, peer: Peer, request: Tokenize) -> Encoded:
        validate_prompt(request)
        return await self._reply_with_text(peer, request)

    async def _reply_with_text(self, peer: Peer, request: Tokenize | Detokenize | Unread) -> Encoded:
        """What is read or written in a text process, and needs no worker."""
        with self._bodies.hold(request.account, _unread_bytes(request)):
            model = await self._models.open(request.model)
            text = await model.text()
            return await self._preparation.answer(request, text, model.description, model.context_length)

    async def _cached_pages(self, peer: Peer, request: CachedPages) -> Reply:
        model = await self._models.open(request.model)
        return PageHashes(id=request.id, page_size=PAGE_SIZE, hashes=model.page_hashes())

    async def _quote(self, peer: Peer, request: Quote) -> Reply:
        self._refuse_new_work()
        if (pull := await self._models.absent(request.model)) is not None:
            return await pull.quote(request.id)
        model = await self._models.open(request.model)
        self._refuse_drained(model)
        return await self._models.quote(model, request.id)

    def _claim(self, peer: Peer, request: Claim) -> None:
        neuron = self._claims.settle(request.model, request.equals, request.others)
        peer.send(Claimed(id=request.id, neuron=neuron))

    async def _set_catalogue(self, peer: Peer, request: SetCatalogue) -> Reply:
        _check(request.catalogue)
        return await self._models.finder.take_catalogue(request.catalogue, request.id)

    async def _check_catalogue(self, peer: Peer, request: CheckCatalogue) -> Reply:
        _check(request.catalogue)
        return Appraisals(id=request.id, models=await self._models.appraise(request.catalogue))

    # --- the neuron itself ------------------------------------------------------------------------------

    def _hello(self, peer: Peer, request: Hello) -> None:
        said = request.eviction
        if said is not None and said.strategy not in STRATEGIES:
            text = "eviction is not taken, for this version knows no such strategy strategy=%s origin=%s"
            log.warning(text, said.strategy, said.origin)
        elif said is not None and self._eviction.take(said):
            self._models.room.eviction = said
            self.changed()  # other gateways hear that theirs counts no longer
        log.info("client says hello client=%s eviction=%s", request.client, request.eviction)
        peer.send(
            HelloReply(
                id=request.id,
                neuron=self._config.name,
                version=self._version,
                instance=self._instance,
                protocol=(PROTOCOL_MAJOR, PROTOCOL_MINOR),
                eviction=self._eviction.current,
            )
        )

    async def _discover(self, peer: Peer, request: Discover) -> Reply:
        await self._models.room.refresh()
        return Discovery(
            id=request.id,
            hostname=socket.gethostname(),
            devices=self._models.room.devices(),
            cuda_unavailable=self._models.cuda_unavailable,
        )

    async def _health(self, peer: Peer, request: Health) -> Reply:
        await self._models.room.refresh()
        return HealthReply(
            id=request.id,
            uptime=time.monotonic() - self._started,
            draining=ALL in self._drains,
            devices=self._models.room.devices(),
            models=self._models.states(),
            ranks=self._models.ranks(),
            text_memory=self._preparation.memory,
            parked_memory=self._models.parking.held,
            parking=self._models.parking.budget,
        )

    async def _drain(self, peer: Peer, request: Drain) -> Reply:
        model = await self._models.open(request.model) if request.model else None
        log.info("draining open=%d model=%s", len(self._open), word(request.model))
        if model is not None and not model.drained:
            self._drains.end(model.id)  # of one that had its name
        drained = self._drains.begin(model.id if model is not None else ALL)
        if model is not None:
            model.drain(True)
        self.changed(True)
        await asyncio.shield(drained)
        return Done(id=request.id)

    def _is_idle(self, model_id: str) -> bool:
        if model_id == ALL:
            return not self._open
        model = self._models.known(model_id)
        return model is None or model.is_idle

    async def _resume(self, peer: Peer, request: Resume) -> Reply:
        model = await self._models.open(request.model) if request.model else None
        log.info("resumed model=%s", word(request.model))
        self._drains.end(model.id if model is not None else ALL)
        if model is not None:
            model.drain(False)
        self.changed(True)
        return Done(id=request.id)

    def _logs(self, peer: Peer, request: Logs) -> None:
        def tell(lines: list[str]) -> None:
            peer.send(LogLines(id=request.id, lines=lines))

        self._ended_log.write()
        lines = self._recent_log.last(request.lines, request.request)
        if lines or request.follow:  # who follows sees at once that it does
            tell(lines)
        if request.follow:
            self._recent_log.follow((peer, request.id), request.request, tell)
        else:
            peer.send(Done(id=request.id))

    # --- watch ------------------------------------------------------------------------------------------

    def _watch(self, peer: Peer, request: Watch) -> None:
        if self._ending:  # it would take us for one that serves
            self._refuse_new_work()
        self._watches.add(peer, request.id)

    def changed(self, now: bool = False) -> None:
        """Something that `State` tells is not what it was; see `Watches.changed`."""
        self._watches.changed(now)

    def _state(self) -> State:
        """All that a watch is told, but for prefixes."""
        return State(
            id=0,
            neuron=self._config.name,
            instance=self._instance,
            draining=ALL in self._drains,
            devices=self._models.room.devices(),
            models=self._models.states(),
            text_memory=self._preparation.memory,
            parked_memory=self._models.parking.held,
            parking=self._models.parking.budget,
            catalogue=self._models.finder.catalogue_version,
            eviction=self._eviction.current,
            searching=not self._models.searched,
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
            verb_name, trace = type(request).__name__, getattr(request, "trace", "")
            log.exception("verb failed verb=%s id=%d trace=%s", verb_name, request.id, word(trace))
            reply = Failed(id=request.id, code=Code.INTERNAL, message=f"{type(error).__name__}: {error}")
        if _is_about_text(request):
            log.info(
                "request answered trace=%s model=%s reply=%s",
                word(request.trace),
                word(request.model),
                f"{reply.code}: {reply.message!a}" if isinstance(reply, Failed) else _kind(reply),
            )
        if reply is not None:
            peer.send(reply)

    async def close(self, grace: float) -> None:
        """Take nothing new; give what runs `grace` seconds to finish; answer all that is still open.

        Workers are not its business: `ModelManager.close` ends them.
        """
        self._ending = True
        error = CortexError(Code.SHUTTING_DOWN, "this neuron is shutting down", retry_after=5.0)
        self._watches.end(error)  # first: who is refused then knows that we leave
        for opened in self._open:
            if not opened.begun:
                opened.fail(error)
        with suppress(TimeoutError):
            await asyncio.wait_for(self._open.settle(), grace)
        for opened in self._open:
            opened.fail(error)
        self._ended_log.write()
        for task, (peer, request_id) in list(self._tasks.items()):
            peer.send(Failed.of(request_id, error))
            task.cancel()
        for peer, request_id in self._recent_log.followers:
            peer.send(Failed.of(request_id, error))
            self._recent_log.leave((peer, request_id))


def _unread_bytes(request: AnyRequest | Unread) -> int:
    """What is held of a large request until it is prepared."""
    return len(request.body) if isinstance(request, Unread) else 0


def _is_about_text(request: AnyRequest | Unread) -> bool:
    """Whether a request wants nothing but tokens of a text, or text of tokens."""
    if isinstance(request, Unread):
        return request.verb not in ("generate", "embed", "rerank")
    return isinstance(request, CountTokens | Tokenize | Detokenize)


def _kind(reply: Reply | Encoded) -> str:
    return reply.kind if isinstance(reply, Encoded) else type(reply).__name__


def _fail(opened: OpenRequest, error: Exception) -> None:
    """Whatever went wrong before it was admitted: it is answered and forgotten."""
    if not isinstance(error, CortexError):
        trace = word(opened.request.trace)
        log.error("request cannot be prepared id=%d trace=%s", opened.key, trace, exc_info=error)
        error = CortexError(Code.INTERNAL, f"{type(error).__name__}: {error}")
    opened.fail(error)


def _check(catalogue: FleetCatalogue) -> None:
    """See that a catalogue makes sense: BAD_REQUEST naming the key where it does not."""
    try:
        check_models({f"models[{i}]": model for i, model in enumerate(catalogue.models)}, None, "catalogue")
    except ConfigError as error:
        raise CortexError(Code.BAD_REQUEST, str(error), param=f"catalogue.{error.key}") from error
