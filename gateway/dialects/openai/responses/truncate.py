"""`truncation: auto`: a conversation that is too long for its model loses its beginning.

As little as possible goes, by the model's own count: whole turns, a call with what it came to, never the
instructions, nor the turn that is to be answered.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from itertools import accumulate
from math import inf

import msgspec

from gateway.fleet.view import Fleet
from ipc.errors import Code, CortexError
from ipc.messages.conversation import Message
from ipc.messages.requests import CountTokens, Generate

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

        async def tokens(dropped: int) -> float:
            """What is left without so many turns; without end where it is so long that nobody counts it."""
            count = CountTokens(
                id=0,
                model=model,
                messages=without(generate.messages, dropped),
                tools=generate.tools,
                thinking=generate.thinking,
                account=account,
                trace=trace,
            )
            try:
                return (await neuron.client.ask(count, COUNT_SECONDS)).tokens
            except CortexError as error:
                if error.code != Code.CONTEXT_LENGTH_EXCEEDED:
                    raise
                return inf

        generate.messages = without(generate.messages, await fewest(generate.messages, tokens, limit))


async def fewest(messages: Sequence[Message], tokens: Callable[[int], Awaitable[float]], limit: int) -> int:
    """How many turns have to go at least, or all that may where that is not enough.

    The first count tells how many tokens a character has, and so about how many turns have to go. From there
    on it looks further and further away, until it knows of too few and of enough, and then between these.

    Args:
        tokens: counts what is left without so many turns.
    """
    whole = await tokens(0)
    if whole <= limit:
        return 0
    too_few, enough = 0, droppable(messages)
    place, step, found = _estimate(messages, whole, limit), 1, set[bool]()
    while too_few + 1 < enough:
        place = min(max(place, too_few + 1), enough - 1)
        fits = await tokens(place) <= limit
        found.add(fits)
        if fits:
            enough = place
        else:
            too_few = place
        place = (too_few + enough) // 2 if len(found) == 2 else place - step if fits else place + step
        step *= 2
    return enough


def _estimate(messages: Sequence[Message], whole: float, limit: int) -> int:
    """How many turns probably have to go of so many tokens; half of the turns where nobody knows."""
    sizes = [sum(len(msgspec.msgpack.encode(messages[i])) for i in turn) for turn in _turns(messages)]
    if whole == inf:
        return len(sizes) // 2
    excess = (whole - limit) / whole * sum(sizes)
    return next((i for i, size in enumerate(accumulate(sizes), 1) if size >= excess), len(sizes))


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
