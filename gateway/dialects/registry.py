"""Which dialects there are."""

from __future__ import annotations

from gateway.dialects import Dialect
from gateway.dialects.openai.dialect import OpenAI

DIALECTS: tuple[Dialect, ...] = (OpenAI(),)

DEFAULT = DIALECTS[0]  # speaks where no dialect is known: at other addresses, and where a request is no HTTP
