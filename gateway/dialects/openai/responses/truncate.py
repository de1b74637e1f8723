"""`truncation: auto`: a conversation that is too long for its model loses its beginning.

As little as possible goes, by the model's own count: whole turns, a call with what it came to, never the
instructions, nor the turn that is to be answered.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from gateway.fleet.view import Fleet
from ipc.errors import Code, CortexError
from ipc.messages import CountTokens, Generate, Message

COUNT_SECONDS = 30.0
USUAL_ROOM = 1024  # tokens that are left for an answer without a limit of its own


async def truncate(fleet: Fleet, generate: Generate, account: str, trace: str) -> None:
    """Shorten the messages of a request until they fit. Where that cannot be told, the neuron says so.

    Args:
        account: who asks, as neurons are told.
        trace: the request's id.
    """
    with suppress(CortexError):
        model = fleet.resolve(generate.model)
        neuron, _ = await fleet.place(model, needs_load=False)
        state = neuron.models.get(model)
        if state is None or not state.context_length:
            return
        wanted = generate.sampling.max_tokens or USUAL_ROOM
        limit = state.context_length - min(wanted, max(1, state.context_length // 4))

        async def fits(dropped: int) -> bool:
            messages = without(generate.messages, dropped)
            count = CountTokens(
                id=0,
                model=model,
                messages=messages,
                tools=generate.tools,
                thinking=generate.thinking,
                account=account,
                trace=trace,
            )
            try:
                return (await neuron.client.ask(count, COUNT_SECONDS)).tokens <= limit
            except CortexError as error:
                if error.code != Code.CONTEXT_LENGTH_EXCEEDED:  # so long that nobody counts it
                    raise
                return False

        if await fits(0):
            return
        enough, most = 1, droppable(generate.messages)
        while enough < most:
            middle = (enough + most) // 2
            if await fits(middle):
                most = middle
            else:
                enough = middle + 1
        generate.messages = without(generate.messages, most)


def droppable(messages: Sequence[Message]) -> int:
    """How many turns may go."""
    return max(0, len(_turns(messages)) - 1)


def without(messages: Sequence[Message], dropped: int) -> list[Message]:
    """The messages without the first so many turns."""
    gone = {i for turn in _turns(messages)[:dropped] for i in turn}
    return [message for i, message in enumerate(messages) if i not in gone]


def _turns(messages: Sequence[Message]) -> list[list[int]]:
    """Places of messages that go together: results of tools go with the calls before them."""
    turns: list[list[int]] = []
    for i, message in enumerate(messages):
        if message.role in ("system", "developer"):
            continue
        if message.role == "tool" and turns:
            turns[-1].append(i)
        else:
            turns.append([i])
    return turns
