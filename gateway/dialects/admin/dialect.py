"""The addresses below /admin."""

from __future__ import annotations

from collections.abc import Mapping

from gateway.dialects import Parse, ParseOne, Services
from gateway.dialects.admin import logs, reports, resources
from gateway.dialects.openai.envelope import refuse


class Admin:
    """Changes the fleet, for administrators."""

    def __init__(self, services: Services) -> None:
        self.generations: Mapping[str, Parse] = {}
        self.replies: Mapping[str, ParseOne] = {}
        self.resources: Mapping[str, object] = {
            "/admin/models/load": resources.LoadResource(services),
            "/admin/models/unload": resources.UnloadResource(services),
            "/admin/models/pin": resources.PinResource(services),
            "/admin/models/quote": resources.QuoteResource(services),
            "/admin/neurons/drain": resources.DrainResource(services),
            "/admin/neurons/resume": resources.ResumeResource(services),
            "/admin/logs": logs.LogsResource(services),
            "/admin/keys": reports.KeysResource(services),
            "/admin/usage": reports.UsageResource(services),
            "/admin/history": reports.HistoryResource(services),
        }

    refuse = staticmethod(refuse)
