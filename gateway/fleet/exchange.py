"""One request on its way: to a neuron, and to another where that one refuses or is lost, which goes on with
what has begun. Where there is no other, the lost one does once it is back."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from time import monotonic
from typing import TypeVar

from gateway.access.principal import ANYBODY, Principal
from gateway.aliases import naming_both
from gateway.fleet import prompts
from gateway.fleet.attempts import Attempts
from gateway.fleet.breaker import FAULTS
from gateway.fleet.neuron import Neuron
from gateway.fleet.patience import NOT_THERE, waited_too_long
from gateway.fleet.pieces import Pieces
from gateway.fleet.prompts import NOTHING
from gateway.fleet.receipt import Asked, OneReply, Receipt
from gateway.fleet.transcript import Transcript
from gateway.fleet.view import Fleet
from gateway.refusals import STATUSES, shown
from gateway.telemetry import metrics
from ipc.call import Call
from ipc.errors import Code, CortexError
from ipc.messages.replies import (
    Cancelled,
    Delta,
    Embeddings,
    Failed,
    Finished,
    LogprobPiece,
    Progress,
    Ranked,
    Reply,
    Started,
    VectorPiece,
)
from ipc.messages.requests import CountTokens, Detokenize, Embed, Generate

T = TypeVar("T")

logger = logging.getLogger("gateway.requests")

EXCHANGE = "cortex.exchange"  # in a request's ASGI scope: its exchange
# A stream that fails so soon gets an HTTP status; later it has begun, and says it itself.
VERDICT_SECONDS = 0.5
LAST_WORD_SECONDS = 5.0  # that a neuron has to say what a request came to whose client left
STALE_SECONDS = 3.0  # after which a request waits no more whose neuron has not said so again
LOOK_SECONDS = 1.0  # between two looks at whether a request waits that is not streamed

ONE_REPLY = OneReply.__args__


class Exchange:
    """A request, and what is done for it. Whoever makes one calls `close` in the end, whatever happened.

    Args:
        principal: who asks.
        session: the conversation that it belongs to, where its headers say so; else the request may.

    Attributes:
        receipt: what it comes to.
        goes_on: it outlives its HTTP request; whoever notes that closes it.
    """

    def __init__(
        self, fleet: Fleet, request_id: str, principal: Principal = ANYBODY, session: str = ""
    ) -> None:
        self.receipt = Receipt(request_id, principal, fleet.ended)
        self.request_id = request_id
        self.goes_on = False
        self._fleet = fleet
        self._principal, self._session = principal, session
        self._request: Asked | None = None
        # Whether a worker has to do with it. What has not says nothing of how a neuron serves the model.
        self._needs_load = True
        self._neuron: Neuron | None = None
        self._call: Call | None = None
        self._prompt = NOTHING
        self._attempts: Attempts  # from its admission on
        self._moving: asyncio.Task[None] | None = None  # to another neuron
        self._waits_for: Progress | None = None  # as its neuron said last, and
        self._told = 0.0  # when; or when that neuron was asked
        self._waits_since: float | None = self.receipt.began  # None: it has begun
        self._answered = False  # some of the answer has passed through here
        self._transcript: Transcript | None = None  # of it, where it can go on elsewhere
        self._pieces: Pieces | None = None  # that came before its end

    @property
    def started(self) -> Started | None:
        """The neuron's word that the prompt is accepted."""
        return self.receipt.started

    @property
    def finished(self) -> Finished | None:
        """Its regular end."""
        return self.receipt.finished

    @property
    def reply(self) -> OneReply | None:
        """The same, of a request that one reply answers."""
        return self.receipt.reply

    @property
    def placement(self) -> str:
        """The neuron that has it, and why, in words for its sender."""
        return self._for_its_sender(self.receipt.placement)

    # --- the way ----------------------------------------------------------------------------------------

    def admit(self, request: Asked) -> None:
        """Count the request as one of its sender's; `send` does, unless something was done for it before.

        Raises:
            CortexError: its sender may not use that model, or not now.
        """
        request.account, request.trace = self._principal.account, self.request_id
        self.receipt.asked, request.model = request.model, self._fleet.resolve(request.model)
        self._request = self.receipt.request = request
        self._attempts = Attempts(self._fleet, request.model, self._principal.may_use)
        self._needs_load = type(request) not in (CountTokens, Detokenize)
        if self._fleet.knows(request.model):
            self.receipt.model = self.receipt.name = request.model
        else:
            self.receipt.name = shown(request.model)
        try:
            self._principal.admit(request.model)
        except CortexError as error:
            raise self._as_told(error) from None
        self.receipt.admitted = True

    async def send(self, request: Asked) -> None:
        """Hand the request over, or where it is streamed see to it that a neuron is found for it.

        Raises:
            CortexError: its sender may not use that model, or no neuron can take it. Of a stream for which
                neurons have to be asked that comes later, as all that becomes of it.
        """
        if not self.receipt.admitted:
            self.admit(request)
        if isinstance(request, Generate):
            request.session = prompts.session_name(self._principal.account, self._session or request.session)
            if self._fleet.has_choice(request.model):
                self._prompt = prompts.read(request)
                request.marks = self._prompt.marks()
            if request.stream:
                request.resumable = True
                self._transcript = Transcript(_choices(request), request.return_token_ids)
            else:
                request.in_pieces = request.sampling.tells
        elif isinstance(request, Embed):
            request.in_pieces = True
        if isinstance(request, Generate | Embed):
            request.priority = self._principal.weigh(request.priority)
        if self._transcript is None:
            await self._begin()
        elif not self._begin_at_once():  # neurons have to be asked, and a stream says so meanwhile
            self._waits_for = Progress(id=0, stage="queued", message="for a neuron that takes it")
            self._moving = asyncio.create_task(self._begin())

    async def placed(self) -> None:
        """Return once a neuron has it, or none takes it."""
        if self._moving is not None:
            await asyncio.wait((self._moving,))

    async def take(self, within: float) -> list[Reply]:
        """The replies that came since the last time, after waiting up to `within` seconds for the first.

        Raises:
            CortexError: the request failed, and what came before that has been taken.
        """
        self.check()
        if self._moving is not None:
            await asyncio.wait((self._moving,), timeout=within)
            if not self._moving.done():
                return [self._waits_for] if self._waits_for is not None else []
            moving, self._moving = self._moving, None
            moving.result()
            self.check()
            return []
        replies = await self._call.take(within)
        if (transcript := self._transcript) is not None:
            try:
                replies = [each for each in replies if type(each) is not Delta or transcript.take(each)]
            except CortexError as error:
                self._give_up(error)
                return []
        tokens = 0
        for reply in replies:
            kind = type(reply)
            if kind is Delta:
                tokens += max(reply.tokens, 0)
                self._answered = True
            elif kind is Started:
                if self.started is not None:  # at the neuron before this one, and the client was told
                    replies = [other for other in replies if other is not reply]
                self.receipt.started, self._waits_for, self._told = reply, None, 0.0
            elif kind is Progress:
                reply.message = self._for_its_sender(reply.message)
                self._waits_for, self._told = reply, monotonic()
            elif kind is Finished:
                if not self._has_all_choices(reply):
                    text = (
                        f"the neuron ends other choices than the {_choices(self._request)} it was asked for"
                    )
                    self._give_up(CortexError(Code.INTERNAL, text))
                    return []
                self.receipt.finished = reply if self._pieces is None else self._pieces.join(reply)
                self._neuron.served(self._request.model)
            elif kind is LogprobPiece or kind is VectorPiece:
                self._pieces = self._pieces or Pieces()
                self._pieces.take(reply)
            elif kind in ONE_REPLY:
                if self._pieces is not None:
                    reply = self._pieces.join_vectors(reply)
                if lack := self._lack(reply):
                    self._give_up(CortexError(Code.INTERNAL, f"the neuron answers with {lack}"))
                    return []
                self.receipt.reply = reply
                if self._needs_load:
                    self._neuron.served(self._request.model)
            elif kind is Failed or kind is Cancelled:
                replies.pop()  # the last one: it is terminal
                self._fail(reply)
        if tokens:
            self.receipt.on_tokens(tokens)
        return replies

    async def verdict(self) -> list[Reply]:
        """The replies until the neuron takes a streamed request, or has had its time to refuse it.

        Raises:
            CortexError: it failed, and nothing was written yet.
        """
        replies: list[Reply] = []
        deadline = monotonic() + VERDICT_SECONDS
        while self.started is None and (left := deadline - monotonic()) > 0:
            replies += await self.take(left)
        self.check()
        return replies

    def check(self) -> None:
        """Raise the failure of the request, where there is one."""
        if self.receipt.error is not None:
            raise self.receipt.error

    async def whole(self) -> Finished:
        """Wait for the end of an unstreamed request. CortexError when it failed."""
        while self.finished is None:
            await self._wait()
        return self.finished

    async def one(self) -> OneReply:
        """Wait for the reply that answers the request by itself. CortexError when it failed."""
        while self.reply is None:
            await self._wait()
        return self.reply

    async def _wait(self) -> None:
        """Take what comes next for a client that is told nothing meanwhile.

        Raises:
            CortexError: it failed, or waits and has done so for longer than such a client should. What had
                begun waits anew where its worker was lost, and goes on with the next one.
        """
        now, patience = monotonic(), self._fleet.load_wait_seconds
        state = self._neuron.models.get(self._request.model) if self._needs_load else None
        is_told = now - self._told < STALE_SECONDS
        is_away = state is not None and state.status in NOT_THERE
        if not (is_told or is_away or self._moving is not None):
            self._waits_since = None
        elif self._waits_since is None:
            self._waits_since = now
        left = LOOK_SECONDS
        if self._waits_since is not None and (until := self._waits_since + patience) > now:
            left = min(left, until - now)
        elif self._waits_since is not None:
            waits_for = self._waits_for if is_told else None
            error = waited_too_long(self._request.model, state, waits_for, patience)
            if error is not None:
                self.receipt.fail(self._as_told(error))
                self.check()
        await self.take(left)

    async def _begin(self) -> None:
        """Hand the request to its first neuron. CortexError when no neuron can take it."""
        try:
            began = monotonic()
            self._hold(*await self._place())
            self._metrics.placement.observe(monotonic() - began)
        except CortexError as error:
            self.receipt.fail(self._as_told(error))
            self.check()

    def _begin_at_once(self) -> bool:
        """The same where nobody has to be asked; False: somebody has to be."""
        began = monotonic()
        there = self._fleet.place_at_once(self._request.model, prompt=self._prompt, key=self._key)
        if there is None:
            return False
        self._hold(*there)
        self._metrics.placement.observe(monotonic() - began)
        return True

    @property
    def _key(self) -> bytes:
        return self._prompt.key or self.request_id.encode()

    async def _place(self) -> tuple[Neuron, str]:
        return await self._fleet.place(
            self._request.model,
            self._attempts.avoided,
            needs_load=self._needs_load,
            prompt=self._prompt,
            key=self._key,
            may_use=self._principal.may_use,
        )

    def _fail(self, reply: Failed | Cancelled) -> None:
        """Go elsewhere, or note what ended the request."""
        if isinstance(reply, Cancelled):
            error = CortexError(Code.INTERNAL, "the neuron cancelled the request, and nobody had asked it to")
        else:
            error = reply.error()
        metrics.rejected(self.receipt.model, self._neuron.name, _label(error)).inc(1)
        if error.code in FAULTS and self._needs_load:
            self._neuron.failed(self._request.model)
        has_copies = self._transcript is not None and self._request.replicated
        self._attempts.note_whether_it_comes_back(self._neuron, self._instance, error, has_copies)
        if self._may_move(error):
            self._attempts.refuse(self._neuron, error)
            self._waits_for = None
            self._moving = asyncio.create_task(self._move(error))
        else:
            self.receipt.fail(self._as_told(error))

    def _give_up(self, error: CortexError) -> None:
        """End a request whose neuron says what cannot be."""
        self._call.cancel()
        self._fail(Failed.of(0, error))

    def _lack(self, reply: OneReply) -> str:
        """What of a reply that has one part for each input is not as it was asked for; nothing: all is."""
        found = (
            reply.vectors if type(reply) is Embeddings else reply.scores if type(reply) is Ranked else None
        )
        if found is None or not isinstance(self._request, Embed) or len(found) == len(self._request.input):
            return ""
        return f"{len(found)} results for {len(self._request.input)} inputs"

    def _has_all_choices(self, finished: Finished) -> bool:
        """Whether it ends the choices that were asked for, each once."""
        return [choice.index for choice in finished.choices] == list(range(_choices(self._request)))

    async def _move(self, error: CortexError) -> None:
        """Hand the request to another neuron; where none takes it, to one that was lost and is back."""
        refusal = error
        try:
            try:
                there = await self._place()
            except CortexError:
                refusal = error if self._answered else self._attempts.refusal()
                if not await self._is_one_back():
                    raise
                there = await self._place()
            if self._answered:
                self._attempts.resume(error)
                self._request.written = self._transcript.written()
            self._hold(*there)
        except CortexError:
            self.receipt.fail(self._as_told(refusal))
            return
        metrics.retried(self.receipt.model, self._neuron.name, _label(error)).inc(1)
        if self._attempts.resumes:
            self._metrics.resumes.inc(1)

    async def _is_one_back(self) -> bool:
        """Whether one of those that were lost answers again, after waiting for that; then it may be asked."""
        if not (names := self._attempts.awaited):
            return False
        self._told = monotonic()
        message = f"for {', '.join(names)} to be back, which was lost"
        self._waits_for = Progress(id=0, stage="queued", message=message)
        return await self._attempts.wait_for_one()

    def _may_move(self, error: CortexError) -> bool:
        """Whether another neuron might serve it, or go on with what this one has begun."""
        if not self._answered:
            return self._attempts.may_go_elsewhere(self._neuron, error)
        return self._transcript is not None and self._transcript.is_whole and self._attempts.may_resume(error)

    def _as_told(self, error: CortexError) -> CortexError:
        error.message = self._for_its_sender(error.message)
        error.details = self._for_its_sender(error.details)
        return naming_both(error, self.receipt.asked, self._request.model)

    def _for_its_sender(self, told: T) -> T:
        return told if self._principal.sees_all else self._fleet.for_one(told, self._principal.may_use)

    def _hold(self, neuron: Neuron, reason: str) -> None:
        if self._transcript is not None:
            others = {neuron, *self._attempts.avoided}
            self._request.replicated = self._fleet.has_replica(self._request.model, others)
        call = neuron.client.open(self._request)
        if self._call is not None:
            self._let_go()
        self._neuron, self._instance, self._call = neuron, neuron.instance, call
        self._waits_for, self._told = None, monotonic()
        self._pieces = None  # this one tells all of them
        if self._attempts.resumes:
            reason += f", to go on after {sum(map(len, self._request.written))} tokens"
        if self._needs_load:
            neuron.began(self._request.model)
        self._fleet.placed(neuron, self._request.model, self._prompt)
        self._metrics = metrics.of(self.receipt.model, neuron.name)
        self.receipt.on_handed_over(neuron.name, reason, self._metrics)
        self._metrics.in_flight.inc(1)
        is_away = self._needs_load and _is_away(neuron, self._request.model)
        if is_away:
            self._metrics.cold_starts.inc(1)
        # Of all others the last line says it, too: one more would take as long as the choice.
        if self._attempts.refusals or self._attempts.returns or (is_away and len(self._fleet.neurons) > 1):
            logger.info(
                "request placed request_id=%s model=%s alias=%s neuron=%s reason=%s refused=%s",
                self.request_id,
                self.receipt.name,
                self.receipt.alias,
                neuron.name,
                reason,
                ",".join(f"{other.name}:{error.code}" for other, error in self._attempts.refusals.items()),
            )

    def _let_go(self) -> None:
        if self._needs_load:
            self._neuron.left(self._request.model)
        self._metrics.in_flight.inc(-1)

    # --- its end ----------------------------------------------------------------------------------------

    def close(self) -> None:
        """The last byte is sent, or never will be: end what still runs, and write its receipt."""
        if self._moving is not None:
            self._moving.cancel()
        if self._call is None:
            self.receipt.close()
            return
        self._call.cancel()  # does nothing to one that has ended
        self._let_go()
        if self.receipt.left and not self._call.closed:
            self._fleet.finish(self._close_account())
            return
        self._end_account()

    async def _close_account(self) -> None:
        """The same, once the neuron has said what it came to for a client that left."""
        deadline = monotonic() + LAST_WORD_SECONDS
        try:
            while not self._call.closed and (left := deadline - monotonic()) > 0:
                self._hear_last_word(await self._call.take(left))
            self._hear_last_word(await self._call.take(0.0))
        finally:
            self._end_account()

    def _hear_last_word(self, replies: Sequence[Reply]) -> None:
        for reply in replies:
            if isinstance(reply, Cancelled | Finished):
                self.receipt.cut_short = reply.usage

    def _end_account(self) -> None:
        retried = bool(self._attempts.refusals or self._attempts.returns)
        usage = self.receipt.close(retried=retried, call_ended=self._call.ended)
        if self.finished is not None:
            self._fleet.measure(self._request.model, self._prompt, usage.prompt_tokens)


def _choices(request: Generate) -> int:
    """How many answers there will be: `n` of each prompt."""
    several = isinstance(request.prompt, list) and not isinstance(request.prompt[0], int)
    return request.sampling.n * (len(request.prompt) if several else 1)


def _label(error: CortexError) -> str:
    """Its code, for a metric: neurons cannot make labels up."""
    return error.code if error.code in STATUSES else metrics.UNKNOWN


def _is_away(neuron: Neuron, model: str) -> bool:
    """Whether the model is not loaded there."""
    state = neuron.models.get(model)
    return state is None or state.status in NOT_THERE
