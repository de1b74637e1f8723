"""All that stands between messages and token ids, for one model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Encoding

from ipc.errors import Code, CortexError
from ipc.messages import Generate, Message, Thinking, Tool
from neuron.text.detokenizer import Detokenizer
from neuron.text.formats.registry import BY_NAME, tool_format
from neuron.text.formats.tool_format import ToolFormat
from neuron.text.infill import infill
from neuron.text.parser import AnswerParser
from neuron.text.reasoning import KNOWN, THINK, ReasoningSplitter, Thought, think_tags
from neuron.text.template import ChatTemplate
from neuron.text.thinking import is_off
from neuron.text.tokenizer import TextTokenizer
from workers.checkpoints.card import ModelCard
from workers.checkpoints.text import TOKENIZER

NOTHING_SAID = Thinking()
TOOL_TEMPLATE = "tool_use"  # the name that transformers gives to a template for requests with tools


class TextFrontEnd:
    """A model's tokenizer and chat templates. `render` and `encode` are safe from several threads."""

    def __init__(
        self, tokenizer: TextTokenizer, templates: dict[str, ChatTemplate], tool_format: ToolFormat
    ) -> None:
        self.tool_format = tool_format
        self._tokenizer = tokenizer
        self._templates = templates
        texts = [text for template in templates.values() for text in template.texts]
        # Vocabularies have tags of thoughts for models, too, that were never taught to think.
        self.thinks = think_tags(texts) is not None
        self.think_tags = think_tags(texts, tokenizer.added) or THINK
        self._tags = tokenizer.tokens_of((*self.think_tags.pieces, *tool_format.markers))
        self._tokens = frozenset(self._tags.values())
        self._tags_in_text = self.think_tags.spelled(self._tokens)
        self.vocabulary_size = tokenizer.vocabulary_size
        self.infill = infill(tokenizer.id_of)  # None: the model cannot fill in

    @classmethod
    def load(cls, checkpoint: ModelCard, calls_as: str | None = None) -> TextFrontEnd:
        """Read the tokenizer and compile the templates: up to a second, for a thread.

        Args:
            calls_as: the name of the format in which it writes tool calls; None: what its templates speak of.

        Raises:
            CortexError: MODEL_LOAD_FAILED.
        """
        calls = BY_NAME[calls_as] if calls_as else tool_format(checkpoint.chat_templates.values())
        known = {piece for tags in KNOWN for piece in tags.pieces}
        tokenizer = TextTokenizer(
            checkpoint.tokenizer_file, checkpoint.config.vocab_size, shown=(*known, *calls.markers)
        )
        templates = {
            name: ChatTemplate(source, checkpoint.special_tokens, _template_file(checkpoint))
            for name, source in checkpoint.chat_templates.items()
        }
        return cls(tokenizer, templates, calls)

    @property
    def is_quick(self) -> bool:
        """Whether the time that its tokenizer takes is in proportion to the text."""
        return self._tokenizer.is_linear

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Tool],
        args: dict[str, Any],
        seconds: float | None = None,
        thinking: Thinking = NOTHING_SAID,
    ) -> str:
        """The prompt for the next turn of a conversation.

        Args:
            args: variables of the template; they count more than `thinking`.
            seconds: that it may take; see `ChatTemplate.render`.
            thinking: how much the model is to think.

        Raises:
            CortexError: NOT_SUPPORTED when the model has no template; TEMPLATE_FAILED with its own words.
        """
        if not self._templates:
            raise CortexError(
                Code.NOT_SUPPORTED,
                "the model has no chat template: it completes text, and takes no messages",
                param="messages",
            )
        default = next(iter(self._templates.values()))
        template = self._templates.get(TOOL_TEMPLATE, default) if tools else default
        values = template.thinking.values(thinking)
        prompt = template.render(messages, tools, values | args, seconds)
        # Nobody can be told not to think by a template that does not listen: but the thought can be over.
        deaf = not values or self.think_tags.state(prompt) == "open"
        if self.thinks and deaf and is_off(thinking) and template.thinking.names.isdisjoint(args):
            return self.think_tags.without_thought(prompt)
        return prompt

    def thought_after(self, rendered: str | None) -> Thought:
        """Where a prompt leaves the model.

        Args:
            rendered: what messages became; None: they are no conversation, and no thought comes.
        """
        return "none" if rendered is None or not self.thinks else self.think_tags.state(rendered)

    def encode(self, text: str, special: bool) -> list[int]:
        """Token ids of `text`; see `TextTokenizer.encode`."""
        return self._tokenizer.encode(text, special)

    def encoding(self, text: str | tuple[str, str], special: bool = True) -> Encoding:
        """Of a text, or of two that belong together; `special`: with what the tokenizer puts around them."""
        return self._tokenizer.encoding(text, special)

    def encode_infill(self, prefix: str | Sequence[int], suffix: str) -> list[int]:
        """Token ids of the prompt for what stands between two texts.

        Raises:
            CortexError: NOT_SUPPORTED when the vocabulary has no tokens for it.
        """
        if self.infill is None:
            message = "suffix: the model has no tokens to fill in the middle; leave suffix out"
            raise CortexError(Code.NOT_SUPPORTED, message, param="suffix")
        before = self.encode(prefix, special=False) if isinstance(prefix, str) else prefix
        prompt = self.infill.prompt(before, self._tokenizer.encode_inside(suffix))
        return self._tokenizer.begin() + prompt

    def fewest_tokens(self, characters: int) -> int:
        """A number of tokens that so much text has at least, known without reading it."""
        return self._tokenizer.fewest(characters)

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of a prompt that came as token ids."""
        detokenizer = Detokenizer(self._tokenizer.tokenizer, self._tokenizer.hidden)
        return detokenizer.push(token_ids) + detokenizer.finish()

    def write(self, token_ids: Sequence[int]) -> str:
        """The text of token ids, special tokens as they are written."""
        return self._tokenizer.decode(token_ids)

    def spell(self, token_id: int) -> bytes:
        """The bytes that a token stands for."""
        return self._tokenizer.spell(token_id)

    def detokenizer(self, after: Sequence[int] = ()) -> Detokenizer:
        """For one answer; `after` is the prompt whose text it continues, nothing for a conversation."""
        tags = {} if after else self._tags
        return Detokenizer(self._tokenizer.tokenizer, self._tokenizer.hidden, after, tags)

    def answer_parser(self, rendered: str | None, request: Generate) -> AnswerParser:
        """For one answer to `request`; `rendered`: the prompt that its messages became, where it has any."""
        stop, include_stop = request.sampling.stop, request.sampling.include_stop
        if rendered is None:
            return AnswerParser(stop=stop, include_stop=include_stop)
        tools = None
        if request.tools or self.tool_format.frames_text:
            tools = self.tool_format.parser(
                [tool for tool in request.tools if not request.must_call or tool.name in request.must_call],
                None if request.parallel_tool_calls else 1,
                only=bool(request.must_call),
                first=request.structured is not None,
                tokens=self._tokens,
            )
        reasoning = ReasoningSplitter(self.think_tags.state(rendered), self._tags_in_text)
        return AnswerParser(reasoning, tools, stop, include_stop)


def _template_file(checkpoint: ModelCard) -> str:
    """Where the templates of a checkpoint stand."""
    if checkpoint.tokenizer_file.name != TOKENIZER:
        return str(checkpoint.tokenizer_file)
    names = ("chat_template.jinja", "chat_template.json", "tokenizer_config.json")
    paths = (Path(checkpoint.folder, name) for name in names)
    return str(next((path for path in paths if path.exists()), checkpoint.folder))
