"""Chat templates: Jinja programs that come with a model, run in a sandbox as transformers runs them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from copy import deepcopy
from functools import partial
from typing import Any

import jinja2
import msgspec

from ipc.errors import Code, CortexError
from ipc.messages.conversation import Message, TextPart, Tool
from ipc.messages.sampling import Thinking
from neuron.text.budget import QUICK, OverBudget
from neuron.text.content import turns as spread
from neuron.text.formats.hermes import HERMES
from neuron.text.formats.tool_format import ToolFormat
from neuron.text.history import Takes, Turn, walkable
from neuron.text.probing import ASSISTANT, ONE, TOOL, USER, around, forms, takes
from neuron.text.sandbox import load, parse, render, translate
from neuron.text.thinking import ThinkingVariables

log = logging.getLogger("neuron.template")

ROLES = ("system", "user", "assistant", "tool")
RESERVED = ("messages", "tools", "add_generation_prompt")
MAX_SOURCE = 1 << 20  # characters of a template
SECONDS = 20.0  # for one prompt
PROBE_SECONDS = 2.0  # for a conversation of a few words
QUICK_PROGRAM = 256 << 10  # characters; up to here a program is read within some hundredths of a second


class TriedTemplate(msgspec.Struct, frozen=True):
    """What was found out about a template: enough to render it without looking at its text again."""

    program: str  # that Jinja made of it, in Python
    thinking: ThinkingVariables
    forms: dict[str, tuple[bool, bool]]  # by role, whether content is read as text, and as parts
    takes: Takes
    knows_developer: bool
    texts: tuple[str, str]  # it, and a prompt: the tags that a model writes are put together in some
    fails: str = ""  # why it refuses every conversation; "": it takes some


class ChatTemplate:
    """A template that was tried. Rendering is safe from several threads.

    Args:
        tried: what `attempt` found out about it.
        special_tokens: bos_token, eos_token and so on, which templates may name.
        file: where it stands, for whoever has to mend it.
        tool_format: how its model writes calls.
        sees: whether its model takes images.
    """

    def __init__(
        self,
        tried: TriedTemplate,
        special_tokens: dict[str, str],
        file: str = "the model's folder",
        tool_format: ToolFormat = HERMES,
        sees: bool = False,
    ) -> None:
        self.tried = tried
        self._sees = sees
        self._tool_format = tool_format
        self._special_tokens = special_tokens
        self._file = file
        self._thinking_names = tried.thinking.names
        # A very long one is left to those who have the time.
        self.is_quick = len(tried.program) <= QUICK_PROGRAM
        self._template = load(tried.program) if self.is_quick else None

    @classmethod
    def of(
        cls,
        source: str,
        special_tokens: dict[str, str],
        file: str = "the model's folder",
        tool_format: ToolFormat = HERMES,
    ) -> ChatTemplate:
        """The template that `source` is.

        Raises:
            CortexError: as `attempt` does.
        """
        return cls(attempt(source, special_tokens, file), special_tokens, file, tool_format)

    @property
    def texts(self) -> tuple[str, str]:
        """See `TriedTemplate`."""
        return self.tried.texts

    def thinking_values(self, thinking: Thinking) -> dict[str, Any]:
        """Its variables for how much to think."""
        return self.tried.thinking.values(thinking)

    def sets_thinking(self, args: dict[str, Any]) -> bool:
        """Whether some of a request's own variables say how much to think."""
        return not self._thinking_names.isdisjoint(args)

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Tool],
        args: dict[str, Any],
        seconds: float | None = None,
    ) -> str:
        """The prompt for the next turn of the assistant.

        Args:
            args: further variables for the template; they may replace special tokens and nothing else.
            seconds: that it may take, and little of all else, for others wait; None: as much as any may.

        Raises:
            CortexError: TEMPLATE_FAILED with the template's own words; BAD_REQUEST for a variable that is
                not the client's to set.
            OverBudget: it took more than that, where `seconds` are given.
        """
        for name in RESERVED:
            if name in args:
                raise CortexError(
                    Code.BAD_REQUEST, f"template_args cannot set {name!r}", param=f"template_args.{name}"
                )
        turns = [
            message_for_template(message, self._role(message)) for message in spread(messages, self._sees)
        ]
        definitions = [tool.definition for tool in tools]
        try:
            return self._render_any(turns, definitions, args, seconds)
        except OverBudget as error:
            if seconds is not None:
                raise
            log.warning("a chat template took too much file=%s reason=%s", self._file, error)
            raise _failed(f"the chat template was stopped: {error}") from error
        except CortexError:
            raise
        except Exception as error:  # a template is a program, and can fail in any way that programs do
            raise _failed(f"the chat template refuses these messages: {error}") from error

    def _render_any(
        self, turns: list[Turn], tools: list[dict[str, Any]], args: dict[str, Any], seconds: float | None
    ) -> str:
        """The conversation as the template takes it, or where it refuses that, at its plainest."""
        takes = self.tried.takes
        try:
            return self._render(self._shaped(turns, takes), tools, args, seconds)
        except OverBudget:
            raise
        except Exception as refusal:
            try:
                return self._render(self._shaped(turns, takes.at_least()), tools, args, seconds)
            except OverBudget:
                raise
            except Exception:
                raise refusal from None

    def _render(
        self,
        conversation: list[dict[str, Any]],
        tools: list[dict[str, Any]],
        args: dict[str, Any],
        seconds: float | None,
    ) -> str:
        if self._template is None:
            self._template = load(self.tried.program)
        variables = _variables(self._special_tokens, args, conversation, tools)
        if seconds is None:
            return render(self._template, variables, SECONDS)
        return render(self._template, variables, seconds, QUICK)

    # --- what it reads ------------------------------------------------------------------------------------

    def _role(self, message: Message) -> str:
        known = message.role != "developer" or self.tried.knows_developer
        return message.role if known else "system"

    def _shaped(self, turns: list[Turn], takes: Takes) -> list[Turn]:
        """The conversation as this template reads it; what it reads in the form of the client's has that."""
        shaped = walkable(turns, takes, self._tool_format)
        for turn in shaped:
            role, content = turn["role"], turn["content"]
            reads_text, reads_parts = self.tried.forms["system" if role == "developer" else role]
            if isinstance(content, str):
                if reads_parts and not reads_text:
                    turn["content"] = [{"type": "text", "text": content}]
            elif not reads_parts:
                turn["content"] = "\n".join(_words(part, role) for part in content)
        return shaped


def attempt(source: str, special_tokens: dict[str, str], file: str) -> TriedTemplate:
    """Compile a template and try it with small conversations.

    Args:
        source: the template's text.

    Raises:
        CortexError: MODEL_LOAD_FAILED when the text is no template, or never comes to an end.
    """

    def unfit(reason: str) -> CortexError:
        return CortexError(Code.MODEL_LOAD_FAILED, f"the chat template in {file} is {reason}")

    try:
        if len(source) > MAX_SOURCE:
            raise OverBudget(f"it is longer than {MAX_SOURCE:,} characters")
        program = translate(source)
        template = load(program)
        thinking = ThinkingVariables.of(parse(source))
    except Exception as error:  # Python's compiler has errors of its own for what Jinja makes of it
        line = f" in line {error.lineno}" if isinstance(error, jinja2.TemplateSyntaxError) else ""
        raise unfit(f"wrong{line}: {error}") from error

    takes_some = False
    refusals: list[Exception] = []

    def rendered(tools: list[dict[str, Any]], conversation: list[Turn]) -> str:
        """A small conversation, rendered; nothing where the template refuses it."""
        nonlocal takes_some
        variables = _variables(special_tokens, {}, deepcopy(conversation), tools)
        try:
            text = render(template, variables, PROBE_SECONDS)
        except OverBudget as error:
            raise unfit(f"never done: {error}") from error
        except Exception as error:
            refusals.append(error)
            return ""
        takes_some = True
        return text

    # There are templates for requests with tools, and for no others.
    tries = partial(rendered, [] if rendered([], around("user", ONE)) else [TOOL])
    tried = TriedTemplate(
        program,
        thinking,
        forms={role: forms(role, tries) for role in ROLES},
        takes=takes(tries, partial(rendered, [TOOL])),
        knows_developer="developer" in source and ONE in tries(around("developer", ONE)),
        texts=(source, tries([USER, ASSISTANT, USER])),
    )
    if takes_some:
        return tried
    return msgspec.structs.replace(tried, fails=str(refusals[0]) or type(refusals[0]).__name__)


def _variables(
    special_tokens: dict[str, str],
    args: dict[str, Any],
    conversation: list[Turn],
    tools: list[dict[str, Any]],
) -> dict[str, Any]:
    return {
        **special_tokens,
        **args,
        "messages": conversation,
        "tools": tools or None,
        "add_generation_prompt": True,
    }


def _failed(message: str) -> CortexError:
    return CortexError(Code.TEMPLATE_FAILED, message, param="messages")


def message_for_template(message: Message, role: str) -> dict[str, Any]:
    """A message in the shape that templates are written for. Arguments of tool calls are an object there:
    templates walk through it. One that is no JSON object stays text for now: see `history`."""
    content: Any = message.content
    if not isinstance(content, str):
        content = [
            {"type": "text", "text": part.text} if isinstance(part, TextPart) else {"type": "image"}
            for part in content
        ]
    turn: dict[str, Any] = {"role": role, "content": content}
    if message.reasoning is not None:
        turn["reasoning_content"] = message.reasoning
    if message.tool_calls:
        turn["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": _arguments(call.arguments)},
            }
            for call in message.tool_calls
        ]
    if message.tool_call_id is not None:
        turn["tool_call_id"] = message.tool_call_id
    if message.name is not None:
        turn["name"] = message.name
    return turn


def _words(part: dict[str, Any], role: str) -> str:
    """The text of a part, for a template that reads nothing else of that role."""
    if part["type"] != "text":
        raise CortexError(
            Code.NOT_SUPPORTED, f"the chat template shows no images in turns of role {role}", param="messages"
        )
    return part["text"]


def _arguments(text: str) -> dict[str, Any] | str:
    try:
        value = msgspec.json.decode(text or "{}")
    except (msgspec.DecodeError, RecursionError):
        return text
    return value if isinstance(value, dict) else text
