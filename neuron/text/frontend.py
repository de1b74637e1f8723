"""All that stands between messages and token ids, for one model."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from tokenizers import Encoding

from ipc.errors import Code, CortexError
from ipc.messages.conversation import Message, Tool
from ipc.messages.sampling import Thinking
from neuron.text.answers import AnswerFacts, AnswerText
from neuron.text.detokenizer import Detokenizer
from neuron.text.formats.registry import BY_NAME, tool_format
from neuron.text.formats.tool_format import ToolFormat
from neuron.text.infill import infill
from neuron.text.reasoning import BY_NAME as THOUGHTS
from neuron.text.reasoning import KNOWN, THINK, ThinkTags, Thought, think_tags
from neuron.text.template import ChatTemplate, TriedTemplate, attempt
from neuron.text.thinking import NOTHING_SAID, is_off
from neuron.text.tokenizer import TextTokenizer
from workers.checkpoints.card import ModelCard
from workers.checkpoints.files import refuse
from workers.checkpoints.gguf.header import SUFFIX
from workers.checkpoints.text import TOKENIZER
from workers.checkpoints.vision import Vision

PACKAGE = Path(__file__).parents[1]
LITTLE = 128 << 10  # bytes of a `tokenizer.json` that is read in a few milliseconds
TOOL_TEMPLATE = "tool_use"  # the name that transformers gives to a template for requests with tools


class TextFiles(msgspec.Struct, frozen=True):
    """What a model's text path is made of. It may travel to another process."""

    tokenizer: str  # the file
    changed: tuple[int, int]  # its size, and when it was written, in ns since 1970
    vocabulary_size: int
    templates: dict[str, str]  # by name; the first one is the default
    template_file: str  # where they stand
    special_tokens: dict[str, str]
    calls_as: str  # the name of the format in which it writes tool calls
    ours: bool  # they come with this package
    thinks_as: str | None = None  # the name of what it writes around its thoughts; None: as its templates say
    vision: Vision | None = None  # of a model that sees

    @classmethod
    def of(cls, card: ModelCard, calls_as: str | None = None, thinks_as: str | None = None) -> TextFiles:
        """Those of a checkpoint.

        Args:
            calls_as: the name of the format of its calls; None: what its templates speak of.
            thinks_as: that of its thoughts, or "none"; None: the same.

        Raises:
            CortexError: MODEL_LOAD_FAILED when its tokenizer is not there.
        """
        try:
            stat = card.tokenizer_file.stat()
        except OSError as error:
            refuse(card.tokenizer_file, f"cannot be read: {error.strerror}")
        return cls(
            str(card.tokenizer_file),
            (stat.st_size, stat.st_mtime_ns),
            card.config.vocab_size,
            card.chat_templates,
            _template_file(card),
            card.special_tokens,
            calls_as or tool_format(card.chat_templates.values()).name,
            ours=Path(card.folder).is_relative_to(PACKAGE),
            thinks_as=thinks_as,
            vision=card.vision,
        )

    @property
    def is_little(self) -> bool:
        """Whether the tokenizer is read in no time. What a GGUF file has of one is not known by its size."""
        return self.changed[0] <= LITTLE and not self.tokenizer.endswith(SUFFIX)

    def try_templates(self) -> dict[str, TriedTemplate]:
        """What is found out about each template: seconds, where a template is up to no good.

        Raises:
            CortexError: MODEL_LOAD_FAILED, one is wrong, or the default one fails whatever is said. Others
                may be for conversations that are unlike those that are tried.
        """
        found = {
            name: attempt(source, self.special_tokens, self.template_file)
            for name, source in self.templates.items()
        }
        if (default := next(iter(found.values()), None)) is not None and default.fails:
            raise CortexError(
                Code.MODEL_LOAD_FAILED,
                f"the chat template in {self.template_file} refuses every conversation: {default.fails}",
            )
        return found

    def absent(self, added: Mapping[str, int], tried: Mapping[str, TriedTemplate]) -> list[str]:
        """Those tokens of the tokenizer that the model does not have.

        Args:
            added: ids of texts that are tokens of their own.
            tried: its templates.

        Raises:
            CortexError: MODEL_LOAD_FAILED, the default template writes one of them whatever is said.
        """
        found = [content for content, number in added.items() if number >= self.vocabulary_size]
        _, prompt = next((each.texts for each in tried.values()), ("", ""))
        if (written := next((content for content in found if content in prompt), None)) is not None:
            which = f"{written!r}, the token {added[written]}"
            has = f"the model has only {self.vocabulary_size}"
            refuse(Path(self.template_file), f"has a chat template that writes {which}, and {has}")
        return found


class ModelText(msgspec.Struct, frozen=True):
    """A model's text path as it travels: what it is made of, and what was found out about its templates."""

    files: TextFiles
    tried: dict[str, TriedTemplate]


class TextFrontEnd(AnswerText):
    """A model's tokenizer and chat templates. `render` and `encode` are safe from several threads."""

    is_quick_apart = False  # where they are quick at all, they are prepared where this is

    def __init__(
        self,
        tokenizer: TextTokenizer,
        templates: dict[str, ChatTemplate],
        tool_format: ToolFormat,
        thinks_as: str | None = None,
    ) -> None:
        self.encoded = b""  # see `AnswerText`
        self.vision: Vision | None = None  # of a model that sees
        self._tokenizer = tokenizer
        self._templates = templates
        texts = [text for template in templates.values() for text in template.texts]
        tags, thinks = thoughts(texts, thinks_as, tokenizer.added)
        tokens = tokenizer.tokens_of((*tags.pieces, *tool_format.markers))
        self._take(tokenizer.vocabulary, tool_format, tags, thinks, tokens)
        # Whether small requests take little time: that of its tokenizer is in proportion to the text.
        self.is_quick = tokenizer.is_linear and all(each.is_quick for each in templates.values())
        self.infill = infill(tokenizer.id_of)  # None: the model cannot fill in

    @classmethod
    def load(
        cls, checkpoint: ModelCard, calls_as: str | None = None, thinks_as: str | None = None
    ) -> TextFrontEnd:
        """The same of a checkpoint whose templates are nobody's to be afraid of. See `TextFiles.of`."""
        files = TextFiles.of(checkpoint, calls_as, thinks_as)
        return cls.read(ModelText(files, files.try_templates()))

    @classmethod
    def read(cls, model: ModelText) -> TextFrontEnd:
        """Read the tokenizer: up to a second, for a thread.

        Raises:
            CortexError: MODEL_LOAD_FAILED.
        """
        files = model.files
        calls = BY_NAME[files.calls_as]
        known = {piece for tags in KNOWN for piece in tags.pieces}
        tokenizer = TextTokenizer(
            Path(files.tokenizer), files.vocabulary_size, shown=(*known, *calls.markers)
        )
        files.absent(tokenizer.added, model.tried)
        templates = {
            name: ChatTemplate(
                each, files.special_tokens, files.template_file, calls, sees=files.vision is not None
            )
            for name, each in model.tried.items()
        }
        front = cls(tokenizer, templates, calls, files.thinks_as)
        front.vision = files.vision
        front.encoded = msgspec.msgpack.encode(model)
        return front

    @property
    def answers(self) -> AnswerFacts:
        """What reading its answers takes."""
        return AnswerFacts(
            self._vocabulary.packed,
            self.tool_format.name,
            self.think_tags,
            self.thinks,
            self._tags,
            self.is_quick,
        )

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
        if thinking == NOTHING_SAID:
            return template.render(messages, tools, args, seconds)
        values = template.thinking_values(thinking)
        prompt = template.render(messages, tools, values | args, seconds)
        # Nobody can be told not to think by a template that does not listen: but the thought can be over.
        deaf = not values or self.think_tags.state(prompt) == "open"
        if self.thinks and deaf and is_off(thinking) and not template.sets_thinking(args):
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
        detokenizer = Detokenizer(self._vocabulary)
        return detokenizer.push(token_ids) + detokenizer.finish()

    def write(self, token_ids: Sequence[int]) -> str:
        """The text of token ids, special tokens as they are written."""
        return self._tokenizer.decode(token_ids)


def thoughts(texts: Sequence[str], thinks_as: str | None, added: Collection[str]) -> tuple[ThinkTags, bool]:
    """What a model writes around its thoughts, and whether it is known to have any.

    Args:
        texts: of its templates (`TriedTemplate.texts`).
        thinks_as: see `TextFiles`.
        added: texts that are tokens of their own.
    """
    # Vocabularies have tags of thoughts for models, too, that were never taught to think.
    thinks = think_tags(texts) is not None if thinks_as is None else thinks_as in THOUGHTS
    return THOUGHTS.get(thinks_as) or think_tags(texts, added) or THINK, thinks


def _template_file(checkpoint: ModelCard) -> str:
    """Where the templates of a checkpoint stand."""
    if checkpoint.tokenizer_file.name != TOKENIZER:
        return str(checkpoint.tokenizer_file)
    names = ("chat_template.jinja", "chat_template.json", "tokenizer_config.json")
    paths = (Path(checkpoint.folder, name) for name in names)
    return str(next((path for path in paths if path.exists()), checkpoint.folder))
