"""The resources: each asks a neuron for what it alone can do."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, TypeVar

import falcon.asgi
import msgspec

from gateway.dialects import Services
from gateway.dialects.admin import progress
from gateway.dialects.admin.fields import LoadFields, ModelFields, NeuronFields, PinFields, UnloadFields
from gateway.dialects.fields import bad_request, decode, keep_alive
from gateway.fleet import availability
from gateway.fleet.neuron import Neuron
from gateway.refusals import FORBIDDEN, shown
from ipc.errors import CortexError
from ipc.messages.replies import Quoted
from ipc.messages.requests import AnyRequest, Drain, Load, Pin, Quote, Resume, Unload

T = TypeVar("T")

ANSWER_SECONDS = 10.0  # of a neuron, for what takes it no time
UNLOAD_SECONDS = 600.0  # for what runs to end


class AdminResource:
    """What they have in common."""

    def __init__(self, services: Services) -> None:
        self._services, self._fleet = services, services.fleet

    async def _read(self, req: falcon.asgi.Request, kind: type[T]) -> T:
        """The body; CortexError unless an administrator sends it."""
        self._require_admin(req)
        return decode(msgspec.json.Decoder(kind), await self._services.read(req))

    def _require_admin(self, req: falcon.asgi.Request) -> None:
        if not self._services.context(req).principal.admin:
            text = (
                "only a key of an administrator allows this; one is made by `cortex keys create NAME --admin`"
            )
            raise CortexError(FORBIDDEN, text)

    def _neuron(self, name: str) -> Neuron:
        for neuron in self._fleet.neurons:
            if neuron.name == name:
                return neuron
        names = ", ".join(neuron.name for neuron in self._fleet.neurons)
        raise bad_request("neuron", f"{shown(name)} is none of this gateway's, which are {names}")

    def _meant(self, fields: NeuronFields) -> tuple[Neuron, str]:
        """A neuron, and the own name of a model; "": all of its models."""
        model = self._fleet.resolve(fields.model) if fields.model is not None else ""
        return self._neuron(fields.neuron), model

    def _having(self, fields: ModelFields) -> tuple[str, Sequence[Neuron]]:
        """The model's own name, and the neurons that are meant."""
        model = self._fleet.resolve(fields.model)
        if fields.neuron is not None:
            return model, [self._neuron(fields.neuron)]
        having = [neuron for neuron, _ in self._fleet.states(model)]
        if not having:
            raise availability.absent(self._fleet.neurons, model)
        return model, having

    async def _ask_all(self, neurons: Sequence[Neuron], request: AnyRequest, within: float) -> dict[str, Any]:
        """What each of them replies, by name."""
        # Each neuron's client numbers its own copy.
        asked = [neuron.client.ask(msgspec.structs.replace(request), within) for neuron in neurons]
        replies = await asyncio.gather(*asked, return_exceptions=True)
        for reply in replies:
            if isinstance(reply, BaseException) and not isinstance(reply, CortexError):
                raise reply
        errors = [reply for reply in replies if isinstance(reply, CortexError)]
        if len(errors) == len(replies):
            raise errors[0]
        return dict(zip((neuron.name for neuron in neurons), replies, strict=True))


class LoadResource(AdminResource):
    """`POST /admin/models/load`."""

    async def on_post(self, req: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        fields = await self._read(req, LoadFields)
        model = self._fleet.resolve(fields.model)
        if fields.neuron is not None:
            neuron = self._neuron(fields.neuron)
        else:
            neuron, _ = await self._fleet.place(model)
        load = Load(id=0, model=model, keep_alive=keep_alive(fields.keep_alive))
        progress.send(resp, neuron.client.open(load), neuron.name)


class UnloadResource(AdminResource):
    """`POST /admin/models/unload`."""

    async def on_post(self, req: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        fields = await self._read(req, UnloadFields)
        model, having = self._having(fields)
        replies = await self._ask_all(having, Unload(id=0, model=model, force=fields.force), UNLOAD_SECONDS)
        resp.data = msgspec.json.encode({"neurons": _outcomes(replies)})


class PinResource(AdminResource):
    """`POST /admin/models/pin`."""

    async def on_post(self, req: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        fields = await self._read(req, PinFields)
        model, having = self._having(fields)
        if fields.pinned and len(having) > 1:
            having = [(await self._fleet.place(model))[0]]
        replies = await self._ask_all(having, Pin(id=0, model=model, pinned=fields.pinned), ANSWER_SECONDS)
        resp.data = msgspec.json.encode({"neurons": _outcomes(replies)})


class QuoteResource(AdminResource):
    """`POST /admin/models/quote`: what it would take to serve a model, on each neuron."""

    async def on_post(self, req: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        fields = await self._read(req, ModelFields)
        model = self._fleet.resolve(fields.model)
        healthy = [neuron for neuron in self._fleet.neurons if neuron.healthy]
        asked = [self._neuron(fields.neuron)] if fields.neuron is not None else healthy
        if not asked:
            raise availability.absent(self._fleet.neurons, model)
        replies = await self._ask_all(asked, Quote(id=0, model=model), ANSWER_SECONDS)
        quotes = [
            {"neuron": name} | (_quoted(reply) if isinstance(reply, Quoted) else _error(reply))
            for name, reply in replies.items()
        ]
        resp.data = msgspec.json.encode({"model": model, "quotes": quotes})


class DrainResource(AdminResource):
    """`POST /admin/neurons/drain`: answered when nothing is open there any more, of a model or at all."""

    async def on_post(self, req: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        neuron, model = self._meant(await self._read(req, NeuronFields))
        progress.send(resp, neuron.client.open(Drain(id=0, model=model)), neuron.name)


class ResumeResource(AdminResource):
    """`POST /admin/neurons/resume`."""

    async def on_post(self, req: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        neuron, model = self._meant(await self._read(req, NeuronFields))
        await neuron.client.ask(Resume(id=0, model=model), ANSWER_SECONDS)
        resp.data = msgspec.json.encode({"neurons": [{"neuron": neuron.name, "done": True}]})


def _outcomes(replies: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {"neuron": name} | (_error(reply) if isinstance(reply, CortexError) else {"done": True})
        for name, reply in replies.items()
    ]


def _error(error: CortexError) -> dict[str, Any]:
    return {"error": {"code": error.code, "message": error.message}}


def _quoted(quote: Quoted) -> dict[str, Any]:
    return {name: getattr(quote, name) for name in Quoted.__struct_fields__ if name != "id"}
