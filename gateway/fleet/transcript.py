"""What a streamed answer has said so far, so that another neuron can go on with it where its own is lost.

The other one is given the token ids. It tells the answer again from its beginning, as its parser makes it of
these tokens, and goes on; what the client has had already is left out here.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ipc.errors import Code, CortexError
from ipc.messages.answers import ToolCallDelta
from ipc.messages.replies import Delta
from ipc.messages.requests import MAX_WRITTEN


@dataclass(slots=True)
class Told:
    """A text that comes in pieces, perhaps more than once from its beginning.

    Attributes:
        shown: characters that the client had when it was last told from its beginning.
        seen: the same that this neuron has told.
    """

    shown: int = 0
    seen: int = 0

    def new(self, piece: str) -> str:
        """As much of a piece as the client does not have."""
        start = self.shown - self.seen
        self.seen += len(piece)
        return piece[start:] if start > 0 else piece

    def again(self) -> None:
        """From now on it comes from its beginning."""
        self.shown, self.seen = max(self.shown, self.seen), 0


@dataclass(slots=True)
class ToldCall:
    """A call of a tool.

    Attributes:
        begun: the client has its id and its name.
    """

    arguments: Told = field(default_factory=Told)
    begun: bool = False


@dataclass(slots=True)
class Said:
    """One choice."""

    token_ids: list[int] = field(default_factory=list)
    seen: int = 0  # tokens that this neuron has told
    text: Told = field(default_factory=Told)
    reasoning: Told = field(default_factory=Told)
    calls: dict[int, ToldCall] = field(default_factory=dict)


class Transcript:
    """Of one request.

    Args:
        choices: of all its prompts.
        with_ids: whether the client wants to see token ids.

    Attributes:
        is_whole: every token was told with its id, and they are not too many to be told again.
    """

    def __init__(self, choices: int, with_ids: bool) -> None:
        self.is_whole = True
        self._left = MAX_WRITTEN  # tokens that may still come
        self._with_ids = with_ids
        self._said = [Said() for _ in range(choices)]

    def take(self, delta: Delta) -> bool:
        """Note a delta, and leave in it what is new; whether that is anything.

        Raises:
            CortexError: it is of a choice that nobody asked for.
        """
        if delta.index >= len(self._said):
            self.is_whole = False
            raise CortexError(Code.INTERNAL, f"the neuron answers choice {delta.index} of {len(self._said)}")
        said = self._said[delta.index]
        token_ids = delta.token_ids or []
        if len(token_ids) != delta.tokens:
            self.is_whole = False
        start = len(said.token_ids) - said.seen
        said.seen += len(token_ids)
        if start > 0:  # it is told again
            token_ids = token_ids[start:]
            delta.tokens = max(delta.tokens - start, 0)
        said.token_ids += token_ids
        self._left -= len(token_ids)
        if self._left < 0:
            self.is_whole = False
        delta.token_ids = token_ids if self._with_ids else None
        if delta.text:
            delta.text = said.text.new(delta.text)
        if delta.reasoning:
            delta.reasoning = said.reasoning.new(delta.reasoning)
        if delta.tool_calls:
            delta.tool_calls = [piece for call in delta.tool_calls if (piece := _new(said, call)) is not None]
        return bool(
            delta.tokens
            or delta.text
            or delta.reasoning
            or delta.tool_calls
            or delta.logprobs
            or delta.prompt_logprobs
        )

    def written(self) -> list[list[int]]:
        """The tokens of each choice; from now on they are told again."""
        for said in self._said:
            said.seen = 0
            said.text.again()
            said.reasoning.again()
            for call in said.calls.values():
                call.arguments.again()
        return [said.token_ids for said in self._said]


def _new(said: Said, piece: ToolCallDelta) -> ToolCallDelta | None:
    """As much of a piece of a call as the client does not have; None: nothing."""
    call = said.calls.get(piece.index)
    if call is None:
        call = said.calls[piece.index] = ToldCall()
    arguments = call.arguments.new(piece.arguments)
    begins = piece.call_id is not None and not call.begun
    call.begun = call.begun or begins
    if not begins and not arguments:
        return None
    return ToolCallDelta(
        index=piece.index,
        call_id=piece.call_id if begins else None,
        name=piece.name if begins else None,
        arguments=arguments,
    )
