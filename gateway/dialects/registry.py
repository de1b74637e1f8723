"""Which dialects there are."""

from __future__ import annotations

from gateway.dialects import MakeDialect
from gateway.dialects.openai.dialect import OpenAI

DIALECTS: tuple[MakeDialect, ...] = (OpenAI,)

# How errors look where no dialect is known: at other addresses, and where a request is no HTTP.
default_refuse = OpenAI.refuse
