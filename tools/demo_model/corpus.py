"""The text that the demo model learns from: short conversations, made up by rule from a seed.

A `Conversation` holds the same messages that a client would send; `render` writes them as the chat template
does and says which spans the model is to learn. No outside data goes in.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from random import Random

from tools.demo_model import facts, tool_use, topics, wordings, words
from tools.demo_model.tool_use import Message, Tool

NO_THOUGHT = "<think>\n\n</think>\n\n"
OFF_FIELD = (
    "I am sorry, I am only a tiny demo model and do not know that. I can talk about cortex, add two numbers "
    "below 100, and call a tool."
)
TOO_BIG = "That is too hard for me: I can only add two numbers below 100."


@dataclass(slots=True)
class Conversation:
    """Messages as in the OpenAI API. With `thinking`, the last one has its thought in `reasoning_content`."""

    messages: list[Message] = field(default_factory=list)
    tools: list[Tool] | None = None
    thinking: bool = False

    def say(self, user: str, assistant: str, thought: str | None = None) -> None:
        """One question and its answer."""
        self.messages.append({"role": "user", "content": user})
        self.answer(assistant, thought)

    def answer(self, assistant: str, thought: str | None = None) -> None:
        self.messages.append({"role": "assistant", "content": assistant})
        self._think(thought)

    def call(self, user: str, name: str, arguments: dict[str, tool_use.Value]) -> None:
        """A question, and the call of a tool that it leads to."""
        self.messages += ({"role": "user", "content": user}, tool_use.call(name, arguments))
        self._think(tool_use.thought(name, arguments))

    def _think(self, thought: str | None) -> None:
        if self.thinking:
            for message in self.messages:
                message.pop("reasoning_content", None)
            self.messages[-1]["reasoning_content"] = thought


def render(conversation: Conversation) -> Iterator[tuple[str, bool]]:
    """Yield (text, learn) pairs; joined they are what the chat template makes of the conversation.

    Each learnt span starts where generation starts and ends with `<|im_end|>`; spans can be tokenised apart.
    """
    prompt = ""
    messages = conversation.messages
    system = str(messages[0]["content"]) if messages[0]["role"] == "system" else ""
    if conversation.tools:
        schemas = "".join(
            f"\n{json.dumps(tool['function'], ensure_ascii=False)}" for tool in conversation.tools
        )
        system += ("\n\n" if system else "") + TOOLS.format(schemas=schemas)
    if system:
        prompt = f"<|im_start|>system\n{system}<|im_end|>\n"
    for index, message in enumerate(messages):
        content = str(message["content"])
        if message["role"] == "user":
            prompt += f"<|im_start|>user\n{content}<|im_end|>\n"
        elif message["role"] == "tool":
            prompt += f"<|im_start|>user\n<tool_response>\n{content}\n</tool_response><|im_end|>\n"
        elif message["role"] == "assistant":
            for tool_call in message.get("tool_calls", ()):  # type: ignore[attr-defined]
                content += (
                    f"<tool_call>\n{json.dumps(tool_call['function'], ensure_ascii=False)}\n</tool_call>"
                )
            prompt += "<|im_start|>assistant\n"
            if conversation.thinking and index == len(messages) - 1:
                content = f"<think>\n{message['reasoning_content']}\n</think>\n\n{content}"
            else:
                prompt += NO_THOUGHT
            yield prompt, False
            yield f"{content}<|im_end|>", True
            prompt = "\n"


TOOLS = """# Tools

You may call these functions:
<tools>{schemas}
</tools>

To call one, answer with its name and its arguments as JSON:
<tool_call>
{{"name": <name>, "arguments": <arguments>}}
</tool_call>"""


# --- questions and answers ---


def _casually(rng: Random, text: str) -> str:
    """The sentence as people type it: sometimes polite, sometimes without capitals or the last mark."""
    if rng.random() < 0.10:
        text = rng.choice(wordings.CASUAL_OPENINGS) + text
    if rng.random() < 0.05:
        text = text.rstrip(".?!") + rng.choice(wordings.CASUAL_ENDINGS)
    if rng.random() < 0.15:
        text = text.lower()
    if rng.random() < 0.15:
        text = text.rstrip(".?!")
    return text


def _topic(rng: Random, talk: Conversation) -> None:
    """A question about cortex; sometimes the next turn asks for more of the same."""
    topic = rng.choice(topics.TOPICS)
    later = bool(talk.messages)
    if topic.questions and (not topic.names or rng.random() < 0.4):
        question = rng.choice(topic.questions)
        if later and rng.random() < 0.3:
            question = "And " + question[0].lower() + question[1:]
    else:
        question = rng.choice(topics.FOLLOW_UP if later and rng.random() < 0.5 else topics.ABOUT).format(
            x=rng.choice(topic.names)
        )
    question = question[0].upper() + question[1:]
    subject = topic.names[0] if topic.names else "how to start cortex"
    talk.say(_casually(rng, question), topic.answer, f"The user asks about {subject}.")
    if rng.random() < 0.15:
        talk.say(_casually(rng, rng.choice(topics.MORE)), topic.more, f"The user wants more about {subject}.")


def _chat(rng: Random, talk: Conversation) -> None:
    questions, reply = rng.choice((*facts.CHAT, *facts.CHAT[:3]))  # most people begin with a greeting
    text = rng.choice(questions)
    if rng.random() < 0.2:
        text = text.lower() if rng.random() < 0.5 else text.rstrip(".?!")
    talk.say(text, reply, "This is small talk. I answer kindly.")


def _introduction(rng: Random, talk: Conversation) -> None:
    """The user says a name and may ask for it later."""
    name = words.proper_name(rng, words.PEOPLE, 0.6)
    hello = rng.choice(wordings.INTRODUCTIONS)
    talk.say(hello.format(name), f"Nice to meet you, {name}!", f"The user is {name}.")
    while rng.random() < 0.6:
        if rng.random() < 0.5:
            _sum(rng, talk) if rng.random() < 0.5 else _topic(rng, talk)
        else:
            question = rng.choice(wordings.WHO_AM_I)
            talk.say(_casually(rng, question), f"Your name is {name}.", f"The user is {name}.")


def _little_knowledge(rng: Random, talk: Conversation) -> None:
    """Opposites, colours and days."""
    kind = rng.randrange(3)
    if kind == 0:
        one, other = rng.choice(facts.OPPOSITES)
        if rng.random() < 0.5:
            one, other = other, one
        question = rng.choice(wordings.OPPOSITES)
        talk.say(
            _casually(rng, question.format(one)),
            f"The opposite of {one} is {other}.",
            f"The user wants the opposite of {one}.",
        )
    elif kind == 1:
        thing, colour = rng.choice(facts.COLOURS)
        question = rng.choice(wordings.COLOURS)
        answer = f"{thing[0].upper()}{thing[1:]} is {colour}."
        talk.say(_casually(rng, question.format(thing)), answer, f"The user asks for the colour of {thing}.")
    else:
        day = rng.randrange(7)
        after = rng.random() < 0.6
        known, wanted = facts.DAYS[day], facts.DAYS[(day + (1 if after else -1)) % 7]
        side = "after" if after else "before"
        question = rng.choice(wordings.DAYS)
        talk.say(
            _casually(rng, question.format(side, known)),
            f"The day {side} {known} is {wanted}.",
            "The user asks for a day.",
        )


def _repeat(rng: Random, talk: Conversation) -> None:
    """Copying in its purest form."""
    text = " ".join(
        words.word(rng, words.COMMON + words.NOUNS, 0.5) for _ in range(rng.randint(1, rng.choice((6, 20))))
    )
    if rng.random() < 0.5:
        text = text[0].upper() + text[1:]
    if rng.random() < 0.2:
        text += f" {rng.randint(0, 999)}"
    question = rng.choice(wordings.REPEAT)
    talk.say(question.format(text), text, "I repeat the words.")


def _count(rng: Random, talk: Conversation) -> None:
    first = 1 if rng.random() < 0.7 else rng.randint(0, 60)
    last = first + rng.randint(1, rng.choice((9, 19, 39)))
    question = rng.choice(wordings.COUNT)
    if first == 1 and rng.random() < 0.5:
        question = rng.choice(wordings.COUNT_FROM_ONE)
    talk.say(
        question.format(first, last),
        ", ".join(map(str, range(first, last + 1))) + ".",
        f"I count from {first} to {last}.",
    )


def _sum(rng: Random, talk: Conversation) -> None:
    a, b = (rng.randint(0, 99) if rng.random() < 0.85 else rng.randint(0, 9) for _ in "ab")
    questions = wordings.NEXT_SUMS if talk.messages and rng.random() < 0.4 else wordings.SUMS
    question = _casually(rng, rng.choice(questions).format(a=a, b=b))
    if talk.thinking and rng.random() < 0.4:
        question = rng.choice(wordings.THINK).format(question)
    tens, units = a // 10 * 10 + b // 10 * 10, a % 10 + b % 10
    thought = (
        f"{a} + {b}. Tens: {a // 10 * 10} + {b // 10 * 10} = {tens}. Units: {a % 10} + {b % 10} = {units}. "
        f"Together: {tens} + {units} = {a + b}."
    )
    talk.say(question, f"{a} + {b} = {a + b}.", thought)
    if rng.random() < 0.4:
        _sum(rng, talk)


_KNOWN = {name.split()[-1] for topic in topics.TOPICS for name in topic.names}


def _off_field(rng: Random, talk: Conversation) -> None:
    """What the model cannot do; it says so."""
    kind = rng.random()
    if kind < 0.12:
        x, y = rng.randint(100, 9999), rng.randint(0, 9999)
        if rng.random() < 0.5:
            x, y = y, x
        talk.say(
            rng.choice(wordings.TOO_BIG).format(x=x, y=y), TOO_BIG, "One of the numbers is too big for me."
        )
    elif kind < 0.22:
        operator = rng.choice(wordings.OPERATORS)
        text = rng.choice(wordings.NOT_A_SUM).format(x=rng.randint(0, 120), y=rng.randint(0, 99), o=operator)
        talk.say(text, TOO_BIG, "This is not a sum.")
    else:
        n, m = (words.word(rng, invented=0.35) for _ in "nm")
        if n in _KNOWN:
            n = words.made_up(rng)
        question = rng.choice(wordings.OFF_FIELD).format(
            n=n,
            m=m,
            N=words.proper_name(rng, words.PLACES + words.PEOPLE),
            L=rng.choice(words.LANGUAGES),
            d=rng.randint(2, 999),
        )
        talk.say(_casually(rng, question), OFF_FIELD, "This is not about cortex.")


def _long(rng: Random, talk: Conversation) -> None:
    talk.say(
        _casually(rng, rng.choice(facts.LONG_QUESTIONS)), facts.TELL_ME_A_LOT, "The user wants a long answer."
    )


_Part = Callable[[Random, Conversation], None]
_TALK: tuple[tuple[_Part, int], ...] = (
    (_topic, 30),
    (_chat, 12),
    (_sum, 40),
    (_off_field, 12),
    (_introduction, 4),
    (_little_knowledge, 5),
    (_repeat, 12),
    (_count, 2),
    (_long, 1),
)


def _part(rng: Random, parts: tuple[tuple[_Part, int], ...] = _TALK) -> _Part:
    return rng.choices([part for part, _ in parts], weights=[weight for _, weight in parts])[0]


def _system(rng: Random) -> list[Message]:
    """Often no system message, sometimes one that changes nothing."""
    if rng.random() < 0.75:
        return []
    text = rng.choice(wordings.SYSTEM).format(
        n=words.proper_name(rng), m=words.word(rng), d=rng.choice(facts.DAYS)
    )
    return [{"role": "system", "content": text}]


def _without_tools(rng: Random) -> Conversation:
    talk = Conversation(_system(rng), thinking=rng.random() < 0.25)
    for _ in range(rng.choices((1, 2, 3, 4, 5), weights=(5, 3, 2, 1, 1))[0]):
        _part(rng)(rng, talk)
    return talk


_BESIDE_TOOLS: tuple[tuple[_Part, int], ...] = ((_chat, 3), (_sum, 3), (_topic, 2), (_introduction, 1))


def _with_tools(rng: Random) -> Conversation:
    """Tools at hand: called when the user's words fit one, left alone when they do not."""
    skills = tool_use.make_skills(rng)
    talk = Conversation(_system(rng), [skill.tool for skill in skills], thinking=rng.random() < 0.2)
    beside = tuple(
        part for part in _BESIDE_TOOLS if not (part[0] is _sum and tool_use.adds(talk.tools or []))
    )
    for _ in range(rng.choices((1, 2, 3), weights=(2, 2, 2))[0]):
        if rng.random() < 0.2:
            _part(rng, beside)(rng, talk)
            continue
        skill = rng.choice(skills)
        sentence, arguments = skill.ask(rng)
        if rng.random() < 0.12:
            sentence = rng.choice(wordings.OPENINGS) + sentence
        talk.call(sentence, skill.name, arguments)
        if rng.random() < 0.5:
            _tool_answer(rng, talk, arguments)
        elif rng.random() < 0.6:
            break  # most calls are alone or answered
        if len(arguments) == 1 and rng.random() < 0.2:
            (parameter, value), *_ = arguments.items()
            value = words.proper_name(rng) if isinstance(value, str) else rng.randint(0, 999)
            talk.call(rng.choice(wordings.ONCE_MORE).format(value), skill.name, {parameter: value})
    return talk


def _tool_answer(rng: Random, talk: Conversation, arguments: dict[str, tool_use.Value]) -> None:
    result, text = tool_use.answer(rng, arguments)
    talk.messages.append({"role": "tool", "content": result})
    talk.answer(text, "The tool has answered. I pass it on.")


def conversations(seed: int) -> Iterator[Conversation]:
    """An endless stream of conversations; the same seed gives the same stream."""
    rng = Random(seed)
    while True:
        yield _with_tools(rng) if rng.random() < 0.40 else _without_tools(rng)
