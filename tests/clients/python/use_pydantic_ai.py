"""`pydantic-ai`: its agent by way of each API, streamed."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterable

from notes import BASE_URL, MODEL, TASK, edit_file, read_file
from pydantic_ai import Agent
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.openai import OpenAIProvider

openai = OpenAIProvider(base_url=f"{BASE_URL}/v1", api_key="none")
MODELS = {
    "chat": lambda: OpenAIChatModel(MODEL, provider=openai),
    "responses": lambda: OpenAIResponsesModel(MODEL, provider=openai),
    "anthropic": lambda: AnthropicModel(MODEL, provider=AnthropicProvider(base_url=BASE_URL, api_key="none")),
}
agent = Agent(MODELS[sys.argv[1]](), tools=[read_file, edit_file])


async def listen(_: object, events: AsyncIterable[object]) -> None:
    """Whoever listens has the answers streamed."""
    async for _ in events:
        pass


print(agent.run_sync(TASK, event_stream_handler=listen).output)
