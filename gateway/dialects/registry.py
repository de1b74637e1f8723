"""Which dialects there are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from gateway.dialects import MakeDialect
from gateway.dialects.admin.dialect import Admin
from gateway.dialects.anthropic import models as anthropic_models
from gateway.dialects.anthropic.dialect import Anthropic
from gateway.dialects.openai import models as openai_models
from gateway.dialects.openai.dialect import OpenAI
from gateway.dialects.openai.envelope import refuse
from gateway.dialects.openai.responses.dialect import Responses
from gateway.dialects.vllm.dialect import VLLM
from gateway.fleet.listing import ListedModel
from gateway.refusals import Refusal

DIALECTS: tuple[MakeDialect, ...] = (OpenAI, Responses, Anthropic, VLLM, Admin)

# How errors look where nothing is known of the client, and where a request is no HTTP.
default_refuse = refuse


class ModelShapes(Protocol):
    """How a dialect writes what it is told of models."""

    def model_list(
        self, models: Sequence[ListedModel], param: Callable[[str], str | None]
    ) -> dict[str, Any]: ...

    def model(self, listed: ListedModel) -> dict[str, Any]: ...


def refuse_shape(header: Callable[[str], str | None]) -> Callable[[Refusal], tuple[int, bytes]]:
    """How errors look to the client with these headers, at addresses that are no dialect's own."""
    return default_refuse if header("anthropic-version") is None else Anthropic.refuse


def model_shapes(header: Callable[[str], str | None]) -> ModelShapes:
    """Those of the client with these headers: two dialects list models at one address."""
    return openai_models if header("anthropic-version") is None else anthropic_models
