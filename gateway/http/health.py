"""How the gateway and its fleet are."""

from __future__ import annotations

import sys
from importlib import metadata

import falcon
import falcon.asgi
import msgspec

from gateway.fleet.view import Fleet
from ipc.messages.framing import PROTOCOL_MAJOR, PROTOCOL_MINOR
from ipc.version import version


class HealthResource:
    """`GET /health`: everything known of every neuron, and for those who may not ask for all models the
    status alone. That of HTTP is 200 as long as this process answers.

    "ok": all neurons answer and every model that should serve can; "impaired": some do not, or the file of
    the catalogue cannot be used as it is now; "degraded": no neuron answers.
    """

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    async def on_get(self, req: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        neurons = self._fleet.neurons
        healthy = [neuron for neuron in neurons if neuron.healthy]
        broken = [
            {"neuron": neuron.name, "model": model.id, "reason": model.error or model.status}
            for neuron in healthy
            for model in neuron.own_models
            if model.status in ("failed", "restarting")
        ]
        catalogue = self._fleet.catalogue.told() if self._fleet.catalogue is not None else None
        if not healthy:
            status = "degraded"
        elif broken or len(healthy) < len(neurons) or (catalogue is not None and catalogue["error"]):
            status = "impaired"
        else:
            status = "ok"
        if req.context.principal is None or not req.context.principal.sees_all:
            resp.data = msgspec.json.encode({"status": status})
            return
        details = [
            {
                "name": neuron.name,
                "endpoint": neuron.client.endpoint,
                "healthy": neuron.healthy,
                "reason": neuron.reason,
                "draining": neuron.draining,
                "avoided": neuron.avoided if neuron.healthy else [],
                "version": neuron.version,
                "instance": neuron.instance,
                "devices": neuron.devices if neuron.healthy else [],
                "models": neuron.own_models if neuron.healthy else [],
                "text_memory": neuron.text_memory if neuron.healthy else 0,
                "parked_memory": neuron.parked_memory if neuron.healthy else 0,
                "parking": neuron.parking if neuron.healthy else 0,
                "catalogue": neuron.catalogue.told() if neuron.catalogue is not None else None,
            }
            for neuron in neurons
        ]
        resp.data = msgspec.json.encode(
            {"status": status, "unservable": broken, "catalogue": catalogue, "neurons": details}
        )

    on_head = on_get


class ReadyResource:
    """`GET /ready`: 200 while some neuron takes requests, else 503."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    async def on_get(self, req: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        ready = any(neuron.healthy and not neuron.draining for neuron in self._fleet.neurons)
        resp.status = falcon.HTTP_200 if ready else falcon.HTTP_503
        resp.data = msgspec.json.encode({"ready": ready})

    on_head = on_get


class VersionResource:
    """`GET /version`: what runs here."""

    async def on_get(self, req: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        resp.data = msgspec.json.encode(
            {
                "version": version(),
                "protocol": f"{PROTOCOL_MAJOR}.{PROTOCOL_MINOR}",
                "python": sys.version.split()[0],
                "gunicorn": metadata.version("gunicorn"),
                "falcon": metadata.version("falcon"),
            }
        )

    on_head = on_get
