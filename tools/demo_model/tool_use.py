"""Conversations in which the model calls a tool and then uses what the tool answered.

Most names and values are made up on the spot. A model of three million weights cannot remember what it sees
once, so the only way to a low loss is to copy from the schema and from the user's sentence: that is what it
should learn.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from tools.demo_model import tool_wordings, words

Message = dict[str, object]
Tool = dict[str, object]
Value = str | int


@dataclass(frozen=True, slots=True)
class Skill:
    """A tool and how users ask for it."""

    tool: Tool
    about: str  # the word that tells this tool from others
    ask: Callable[[Random], tuple[str, dict[str, Value]]]  # a sentence, and the arguments that it gives

    @property
    def name(self) -> str:
        return self.tool["function"]["name"]  # type: ignore[index]


_KINDS = ("city", "item", "person", "day", "count", "code", "text")


def _value(rng: Random, kind: str) -> Value:
    """Something that a user would name for a parameter of this kind."""
    if kind == "city":
        return words.proper_name(rng)
    if kind == "person":
        return words.proper_name(rng, words.PEOPLE)
    if kind == "item":
        return (
            words.word(rng, words.PLURALS)
            if rng.random() < 0.8
            else f"{words.word(rng, words.COMMON)} {words.word(rng, words.PLURALS)}"
        )
    if kind == "day":
        return rng.choice(tool_wordings.DAYS)
    if kind == "count":
        return rng.randint(0, rng.choice((9, 99, 999, 99999)))
    if kind == "code":
        return words.code(rng)
    if kind == "language":
        return rng.choice(words.LANGUAGES)
    if kind == "symbol":
        return words.made_up(rng)[: rng.randint(2, 5)].upper()
    if kind == "command":
        return rng.choice(tool_wordings.COMMANDS).format(n=words.word(rng))
    if kind == "path":
        folder, ending = (
            rng.choice(("", "/", "/etc/", "docs/", "src/")),
            rng.choice((".txt", ".md", ".py", "")),
        )
        return folder + words.word(rng) + ending
    return " ".join(words.word(rng, words.NOUNS + words.COMMON, 0.3) for _ in range(rng.randint(1, 4)))


def _identifier(rng: Random, parts: list[str]) -> str:
    """The parts as one name: snake_case mostly, camelCase or kebab-case sometimes."""
    style = rng.random()
    if style < 0.72:
        return "_".join(parts)
    if style < 0.88:
        return parts[0] + "".join(part.capitalize() for part in parts[1:])
    return "-".join(parts) if style < 0.94 else "".join(parts)


def _parameter_name(rng: Random, kind: str) -> str:
    if rng.random() < 0.45:
        return rng.choice(tool_wordings.PARAMETERS[kind])
    parts = [words.word(rng, invented=0.7)]
    if rng.random() < 0.2:
        parts.append(words.word(rng, invented=0.5))
    return _identifier(rng, parts)


def make_tool(rng: Random, name: str, description: str, parameters: dict[str, Value]) -> Tool:
    """An OpenAI tool for these example arguments; the details that clients differ in are varied."""
    properties: dict[str, object] = {}
    for parameter, value in parameters.items():
        kind = rng.choice(("integer", "integer", "number")) if isinstance(value, int) else "string"
        schema: dict[str, object] = {"type": kind}
        if rng.random() < 0.2:
            schema["description"] = rng.choice(
                (
                    f"The {parameter}",
                    f"the {parameter} to use",
                    f"{parameter}",
                    f"The {parameter}, e.g. {words.made_up(rng)}",
                )
            )
        properties[parameter] = schema
    function: dict[str, object] = {"name": name}
    if description:
        function["description"] = description
    function["parameters"] = {"type": "object", "properties": properties}
    if rng.random() < 0.8:
        function["parameters"]["required"] = list(parameters)  # type: ignore[index]
    if rng.random() < 0.1:
        function["parameters"]["additionalProperties"] = False  # type: ignore[index]
    if rng.random() < 0.05:
        function["strict"] = True
    if rng.random() < 0.15:  # some renderers sort keys
        function = json.loads(json.dumps(function, sort_keys=True))
    return {"type": "function", "function": function}


def _look_up(rng: Random) -> Skill:
    """One string names the thing: "What is the weather in Paris?"."""
    noun = words.word(rng, invented=0.45)
    kind = rng.choice(("city", "city", "item", "person", "code"))
    parameter = _parameter_name(rng, kind)
    extra = rng.choice(("day", "count"))  # a second parameter, said last
    other = rng.choice(tool_wordings.PARAMETERS[extra]) if rng.random() < 0.6 else _parameter_name(rng, extra)
    pair = rng.random() < 0.25 and other != parameter
    names = [parameter, other] if pair else [parameter]
    if rng.random() < 0.3:
        names.reverse()
    description = rng.choice(tool_wordings.LOOK_UP_DESCRIPTIONS).format(n=noun, p=parameter, k=kind)
    style = rng.random()
    if style < 0.75:
        name = _identifier(rng, [rng.choice(tool_wordings.LOOK_UP_VERBS), noun])
    elif style < 0.85:
        name = noun
    else:  # only the description tells what it does
        name = _identifier(rng, [words.made_up(rng) for _ in range(rng.randint(1, 2))])
        description = description or f"Get the {noun}."

    def ask(rng: Random) -> tuple[str, dict[str, Value]]:
        values = {parameter: _value(rng, kind)}
        preposition = rng.choice(tool_wordings.PREPOSITIONS)
        sentence = rng.choice(tool_wordings.LOOK_UP).format(n=noun, p=preposition, v=values[parameter])
        if pair:
            second = values[other] = _value(rng, extra)
            when = f" on {second}" if extra == "day" else f" for {second} {words.word(rng, words.PLURALS)}"
            sentence = sentence.rstrip(".?") + when.replace("on to", "to") + "?"
        return sentence, {name: values[name] for name in names}

    return Skill(make_tool(rng, name, description, ask(rng)[1]), noun, ask)


def _action(rng: Random) -> Skill:
    """Something is done: "Play the song Yesterday", "Set the timer to 5"."""
    verb = words.word(rng, tool_wordings.ACTION_VERBS, 0.35)
    noun = words.word(rng, invented=0.4)
    kind = rng.choice(_KINDS)
    parameter = _parameter_name(rng, kind)
    name = _identifier(rng, [verb, noun] if rng.random() < 0.75 else [verb])
    description = rng.choice(
        ("", f"{verb.capitalize()} a {noun}.", f"{verb.capitalize()} the {noun} with this {parameter}.")
    )

    def ask(rng: Random) -> tuple[str, dict[str, Value]]:
        value = _value(rng, kind)
        sentence = rng.choice(tool_wordings.ACTIONS).format(a=verb, n=noun, v=value)
        return sentence[0].upper() + sentence[1:], {parameter: value}

    return Skill(make_tool(rng, name, description, ask(rng)[1]), noun, ask)


def _by_name(rng: Random) -> Skill:
    """The user names the parameters, in any order: "Run blorp with size 4 and colour red"."""
    kinds = {_parameter_name(rng, kind): kind for kind in rng.choices(_KINDS, k=rng.choice((1, 2, 2)))}
    parts = [words.word(rng, invented=0.7) for _ in range(rng.randint(1, 3))]
    name = _identifier(rng, parts)
    description = rng.choice(
        ("", "", f"{parts[-1].capitalize()} something.", f"A tool for {words.word(rng)}.")
    )

    def ask(rng: Random) -> tuple[str, dict[str, Value]]:
        arguments = {parameter: _value(rng, kind) for parameter, kind in kinds.items()}
        said = list(arguments.items())
        rng.shuffle(said)
        glue = rng.choice((" ", " ", " = ", ": ", "=", " is "))
        text = rng.choice((" and ", ", ")).join(f"{parameter}{glue}{value}" for parameter, value in said)
        if len(said) == 1 and rng.random() < 0.5:
            text = str(said[0][1])
        spoken = name if rng.random() < 0.7 else " ".join(parts)
        return rng.choice(tool_wordings.NAMED).format(f=spoken, args=text), arguments

    return Skill(make_tool(rng, name, description, ask(rng)[1]), parts[-1], ask)


def _real(rng: Random) -> Skill:
    """A tool of the kind that every tutorial shows, in the wordings that people use for it."""
    about, (names, description, kinds, sentences) = rng.choice(tuple(tool_wordings.REAL.items()))
    called = {parameter: parameter for parameter in kinds}
    if rng.random() < 0.3:  # other names for the same things
        renamed = {parameter: _parameter_name(rng, kind) for parameter, kind in kinds.items()}
        if len(set(renamed.values())) == len(called):
            called = renamed

    def ask(rng: Random) -> tuple[str, dict[str, Value]]:
        values = {parameter: _value(rng, kind) for parameter, kind in kinds.items()}
        sentence = rng.choice(sentences).format(**values)
        return sentence, {called[parameter]: value for parameter, value in values.items()}

    tool = make_tool(rng, rng.choice(names), description if rng.random() < 0.8 else "", ask(rng)[1])
    return Skill(tool, about, ask)


_SHAPES = ((_look_up, 5), (_action, 3), (_by_name, 3), (_real, 4))


def make_skill(rng: Random) -> Skill:
    """Any tool."""
    return rng.choices([shape for shape, _ in _SHAPES], weights=[weight for _, weight in _SHAPES])[0](rng)


def make_skills(rng: Random) -> list[Skill]:
    """One to three tools, each about something else."""
    skills = [make_skill(rng)]
    for _ in range(rng.choices((0, 1, 2), weights=(5, 4, 3))[0]):
        new = make_skill(rng)
        if not any(
            skill.name == new.name
            or skill.about in str(new.tool).lower()
            or new.about in str(skill.tool).lower()
            for skill in skills
        ):
            skills.append(new)
    return skills


def adds(tools: list[Tool]) -> bool:
    """Whether one of the tools adds two numbers, so that a sum is a matter for it."""
    names, *_ = tool_wordings.REAL["two numbers"]
    return any(tool["function"]["name"] in names for tool in tools)  # type: ignore[index]


def call(name: str, arguments: dict[str, Value]) -> Message:
    """The assistant's turn that calls a tool."""
    return {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": {"name": name, "arguments": arguments}}],
    }


def thought(name: str, arguments: dict[str, Value]) -> str:
    """What the model thinks before such a call."""
    given = " and ".join(f"{parameter} {value}" for parameter, value in arguments.items())
    return f"I need {name} with {given}."


def _scalar(rng: Random) -> str | int | float | bool:
    kind = rng.random()
    if kind < 0.4:
        return rng.randint(0, rng.choice((9, 99, 9999)))
    if kind < 0.5:
        return round(rng.random() * rng.choice((10, 100, 1000)), rng.choice((1, 2)))
    if kind < 0.57:
        return rng.random() < 0.5
    if kind < 0.7:
        return rng.choice(tool_wordings.UNITS)
    return " ".join(words.word(rng, words.NOUNS + words.COMMON, 0.5) for _ in range(rng.randint(1, 3)))


def _spoken(value: str | int | float | bool) -> str:
    return json.dumps(value) if isinstance(value, bool) else str(value)


def answer(rng: Random, arguments: dict[str, Value]) -> tuple[str, str]:
    """A tool's answer and what the model makes of it: (content of the tool message, assistant's text)."""
    opening = f"Here is the answer for {next(iter(arguments.values()))}: "
    kind = rng.random()
    if kind < 0.55:
        keys = [words.word(rng, tool_wordings.RESULT_KEYS, 0.35) for _ in range(rng.choice((1, 2, 2, 3)))]
        if rng.random() < 0.15:
            keys[0] = f"{keys[0]}_{words.word(rng)}"
        result = {key: _scalar(rng) for key in keys}
        content = json.dumps(result) if rng.random() < 0.75 else json.dumps(result, separators=(",", ":"))
        return content, opening + ", ".join(f"{key} {_spoken(value)}" for key, value in result.items()) + "."
    if kind < 0.62:
        error = " ".join(words.word(rng, words.NOUNS + words.COMMON, 0.3) for _ in range(rng.randint(1, 4)))
        return json.dumps({"error": error}), f"The tool reports an error: {error}."
    if kind < 0.8:
        content = rng.choice(
            (
                f"{rng.randint(0, 999)} {rng.choice(tool_wordings.UNITS)}",
                str(rng.randint(0, 9999)),
                words.word(rng),
                words.code(rng),
            )
        )
        return content, f"{opening}{content}."
    words_ = [words.word(rng, words.NOUNS + words.COMMON, 0.35) for _ in range(rng.randint(2, 8))]
    if rng.random() < 0.4:
        words_.insert(rng.randint(0, len(words_)), str(next(iter(arguments.values()))))
    if rng.random() < 0.4:
        words_.insert(rng.randint(0, len(words_)), str(rng.randint(0, 999)))
    if rng.random() < 0.3:
        words_.insert(
            rng.randint(0, len(words_)),
            f"{rng.randint(-20, 40)}{rng.choice(('°C', '°F', '%', ' °C', ' km/h', '.5'))}",
        )
    content = "".join(word + rng.choice((" ", " ", " ", " ", ", ")) for word in words_).rstrip(" ,")
    content = content[0].upper() + content[1:]
    return content + rng.choice(("", ".")), f"{opening}{content}."
