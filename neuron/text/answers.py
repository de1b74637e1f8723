"""From the token ids of an answer to text, reasoning and tool calls, for one model."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from ipc.messages.conversation import Tool
from ipc.messages.requests import Generate
from neuron.text.detokenizer import Detokenizer
from neuron.text.formats.registry import BY_NAME
from neuron.text.formats.tool_format import ToolFormat
from neuron.text.offered_tool import OfferedTool
from neuron.text.parser import AnswerParser
from neuron.text.reasoning import ReasoningSplitter, ThinkTags, Thought
from neuron.text.vocabulary import PackedVocabulary, Vocabulary


class AnswerFacts(msgspec.Struct, frozen=True):
    """What reading answers takes, as it travels.

    Attributes:
        calls_as: the name of the format in which the model writes tool calls.
        thinks: it was taught to.
        tags: those of its tags that are tokens, by id.
        is_quick: small requests take little time: that of its tokenizer is in proportion to the text.
    """

    vocabulary: PackedVocabulary
    calls_as: str
    think_tags: ThinkTags
    thinks: bool
    tags: dict[int, str]
    is_quick: bool


class AnswerText:
    """Reads the answers of a model whose requests a text process reads.

    Attributes:
        encoded: the `ModelText` that it was read from, in msgpack.
        is_quick: whether small requests can be prepared here, in little time.
        is_quick_apart: the same of a text process.
    """

    is_quick = False

    def __init__(self, facts: AnswerFacts, encoded: bytes) -> None:
        self.encoded = encoded
        self.is_quick_apart = facts.is_quick
        self._take(
            Vocabulary(facts.vocabulary), BY_NAME[facts.calls_as], facts.think_tags, facts.thinks, facts.tags
        )

    def _take(
        self,
        vocabulary: Vocabulary,
        tool_format: ToolFormat,
        think_tags: ThinkTags,
        thinks: bool,
        tags: dict[int, str],
    ) -> None:
        """Take in what answers are read by; see `AnswerFacts`."""
        self.tool_format = tool_format
        self.think_tags = think_tags
        self.thinks = thinks
        self.vocabulary_size = vocabulary.size
        self._vocabulary = vocabulary
        self._tags = tags
        self._tokens = frozenset(tags.values())
        self._tags_in_text = think_tags.spelled(self._tokens)

    def spell(self, token_id: int) -> bytes:
        """The bytes that a token stands for."""
        return self._vocabulary.spell(token_id)

    def detokenizer(self, after: Sequence[int] = ()) -> Detokenizer:
        """For one answer; `after` is the prompt whose text it continues, nothing for a conversation."""
        return Detokenizer(self._vocabulary, after, {} if after else self._tags)

    def answer_parser(
        self, thought: Thought | None, request: Generate, tools: Sequence[Tool | OfferedTool]
    ) -> AnswerParser:
        """For one answer to `request`.

        Args:
            thought: where its messages leave a model of these tags; None: it has none.
            tools: that it offers.
        """
        stop, include_stop = request.sampling.stop, request.sampling.include_stop
        if thought is None:
            return AnswerParser(stop=stop, include_stop=include_stop)
        calls = None
        if tools or self.tool_format.frames_text:
            calls = self.tool_format.parser(
                [tool for tool in tools if not request.must_call or tool.name in request.must_call],
                None if request.parallel_tool_calls else 1,
                only=bool(request.must_call),
                first=request.structured is not None,
                tokens=self._tokens,
            )
        reasoning = ReasoningSplitter(thought, self._tags_in_text)
        return AnswerParser(reasoning, calls, stop, include_stop)
