"""Conversations in which the model calls a tool and then uses what the tool answered.

Most names and values are made up on the spot. A model of three million weights cannot remember what it sees
once, so the only way to a low loss is to copy from the schema and from the user's sentence: that is what it
should learn.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from random import Random

from workers.demo import words

Message = dict[str, object]
Tool = dict[str, object]
Value = str | int


@dataclass(slots=True)
class Request:
    """A tool, a user's sentence that needs it, and the arguments that the sentence gives."""

    tool: Tool
    sentence: str
    arguments: dict[str, Value]

    @property
    def name(self) -> str:
        return self.tool["function"]["name"]  # type: ignore[index]


# kind of parameter -> names it goes by, in the order of likelihood
_PARAMETERS = {
    "city": ("city", "location", "place", "town", "city_name"),
    "item": ("item", "product", "name", "query", "article", "thing"),
    "person": ("name", "person", "user", "recipient", "to"),
    "day": ("day", "date", "when"),
    "count": ("count", "number", "amount", "quantity", "n", "people", "limit"),
    "code": ("id", "code", "key", "order_id", "number"),
    "text": ("text", "query", "message", "title", "content", "note"),
}
_KINDS = tuple(_PARAMETERS)
_DAYS = ("today", "tomorrow", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")


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
        return rng.choice(_DAYS)
    if kind == "count":
        return rng.randint(0, rng.choice((9, 99, 999, 99999)))
    if kind == "code":
        return words.code(rng)
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
        return rng.choice(_PARAMETERS[kind])
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


_LOOK_UP_VERBS = (
    "get",
    "find",
    "look_up",
    "fetch",
    "search",
    "check",
    "query",
    "show",
    "read",
    "lookup",
    "list",
)
_LOOK_UP = (
    "What is the {n} {p} {v}?",
    "What is the {n} {p} {v}?",
    "What's the {n} {p} {v}?",
    "What is the {n} like {p} {v}?",
    "What's the {n} like {p} {v}?",
    "How is the {n} {p} {v}?",
    "Please look up the {n} {p} {v}.",
    "Look up the {n} {p} {v}.",
    "Can you look up the {n} {p} {v}?",
    "Can you tell me the {n} {p} {v}?",
    "Could you find the {n} {p} {v}?",
    "Find the {n} {p} {v}.",
    "Get the {n} {p} {v}.",
    "Get me the {n} {p} {v}.",
    "Please get the {n} {p} {v}.",
    "Check the {n} {p} {v}.",
    "Please check the {n} {p} {v}.",
    "Show me the {n} {p} {v}.",
    "Give me the {n} {p} {v}.",
    "Tell me the {n} {p} {v}.",
    "I need the {n} {p} {v}.",
    "I need to know the {n} {p} {v}.",
    "I want to know the {n} {p} {v}.",
    "Do you know the {n} {p} {v}?",
    "Search the {n} {p} {v}.",
    "{v}: what is the {n}?",
    "{n} {p} {v}?",
    "{n} {p} {v}",
    "{v} {n}",
)
_PREPOSITIONS = ("of", "of", "in", "for", "at", "from")


def _look_up(rng: Random) -> Request:
    """One string names the thing: "What is the weather in Paris?"."""
    noun = words.word(rng, invented=0.45)
    kind = rng.choice(("city", "city", "item", "person", "code"))
    value = _value(rng, kind)
    parameter = _parameter_name(rng, kind)
    description = rng.choice(
        (
            "",
            f"Get the {noun} of a {parameter}.",
            f"Get the {noun} for a {kind}",
            f"Returns the current {noun}.",
            f"Look up the {noun}.",
            f"Find the {noun} of a {kind} by its {parameter}.",
        )
    )
    style = rng.random()
    if style < 0.75:
        name = _identifier(rng, [rng.choice(_LOOK_UP_VERBS), noun])
    elif style < 0.85:
        name = noun
    else:  # only the description tells what it does
        name = _identifier(rng, [words.made_up(rng) for _ in range(rng.randint(1, 2))])
        description = description or f"Get the {noun}."
    arguments = {parameter: value}
    sentence = rng.choice(_LOOK_UP).format(n=noun, p=rng.choice(_PREPOSITIONS), v=value)
    if rng.random() < 0.25:  # a second parameter that the sentence fills with a known kind of word
        extra = rng.choice(("day", "count"))
        second = _value(rng, extra)
        other = rng.choice(_PARAMETERS[extra]) if rng.random() < 0.6 else _parameter_name(rng, extra)
        if other != parameter:
            sentence = (
                sentence.rstrip(".?")
                + (f" on {second}" if extra == "day" else f" for {second} {words.word(rng, words.PLURALS)}")
                + "?"
            )
            sentence = sentence.replace("on today", "today").replace("on tomorrow", "tomorrow")
            arguments = {parameter: value, other: second}
            if rng.random() < 0.3:
                arguments = {other: second, parameter: value}
    return Request(make_tool(rng, name, description, arguments), sentence, arguments)


_ACTION_VERBS = ["open", "close", "start", "stop", "play", "send", "set", "create", "delete", "book", "order", "buy", "run", "add", "remove", "save", "call", "print", "move", "copy", "turn", "load", "save", "rename"]
_ACTIONS = (
    "{a} the {n} {v}.",
    "Please {a} the {n} {v}.",
    "{a} {n} {v}",
    "Can you {a} the {n} {v}?",
    "Could you {a} a {n} for {v}?",
    "{a} a {n} for {v}.",
    "{a} a {n} called {v}.",
    "{a} the {n} to {v}.",
    "I want to {a} the {n} {v}.",
    "Please {a} a {n} named {v}.",
    "{a} {v} with the {n}.",
    "Would you {a} the {n} for {v}?",
)


def _action(rng: Random) -> Request:
    """Something is done: "Play the song Yesterday", "Set the timer to 5"."""
    verb = words.word(rng, _ACTION_VERBS, 0.35)
    noun = words.word(rng, invented=0.4)
    kind = rng.choice(_KINDS)
    value = _value(rng, kind)
    parameter = _parameter_name(rng, kind)
    name = _identifier(rng, [verb, noun] if rng.random() < 0.75 else [verb])
    description = rng.choice(
        ("", f"{verb.capitalize()} a {noun}.", f"{verb.capitalize()} the {noun} with this {parameter}.")
    )
    sentence = rng.choice(_ACTIONS).format(a=verb, n=noun, v=value)
    sentence = sentence[0].upper() + sentence[1:]
    return Request(make_tool(rng, name, description, {parameter: value}), sentence, {parameter: value})


_NAMED = (
    "Call {f} with {args}.",
    "Please call {f} with {args}.",
    "Use {f} with {args}.",
    "Use the tool {f} with {args}.",
    "Run {f} with {args}.",
    "Please use {f} for {args}.",
    "Can you run {f} with {args}?",
    "{f} with {args}",
    "Please {f} with {args}.",
)


def _by_name(rng: Random) -> Request:
    """The user names the parameters, in any order: "Run blorp with size 4 and colour red"."""
    count = rng.choice((1, 2, 2))
    arguments: dict[str, Value] = {}
    for _ in range(count):
        kind = rng.choice(_KINDS)
        arguments[_parameter_name(rng, kind)] = _value(rng, kind)
    parts = [words.word(rng, invented=0.7) for _ in range(rng.randint(1, 3))]
    name = _identifier(rng, parts)
    said = list(arguments.items())
    rng.shuffle(said)
    glue = rng.choice((" ", " ", " = ", ": ", "=", " is "))
    text = rng.choice((" and ", ", ")).join(f"{parameter}{glue}{value}" for parameter, value in said)
    if len(said) == 1 and rng.random() < 0.5:
        text = str(said[0][1])
    spoken = name if rng.random() < 0.7 else " ".join(parts)
    description = rng.choice(
        ("", "", f"{parts[-1].capitalize()} something.", f"A tool for {words.word(rng)}.")
    )
    return Request(
        make_tool(rng, name, description, arguments),
        rng.choice(_NAMED).format(f=spoken, args=text),
        arguments,
    )


# What people really try: (names, description, parameters as name -> kind, sentences)
_REAL: tuple[tuple[tuple[str, ...], str, dict[str, str], tuple[str, ...]], ...] = (
    (
        ("get_weather", "get_current_weather", "weather", "weather_lookup", "fetch_weather"),
        "Get the current weather in a city.",
        {"city": "city"},
        (
            "What is the weather in {city}?",
            "What's the weather like in {city}?",
            "How is the weather in {city} today?",
            "Is it raining in {city}?",
            "Will it rain in {city} today?",
            "How warm is it in {city}?",
            "What is the temperature in {city}?",
            "Is it cold in {city}?",
            "Tell me the weather in {city}.",
            "Weather in {city}?",
            "What is the weather like in {city} right now?",
            "Do I need an umbrella in {city}?",
            "Is it sunny in {city}?",
            "How hot is it in {city} right now?",
        ),
    ),
    (
        ("get_weather", "weather_forecast", "forecast"),
        "Get the weather forecast for a city and a day.",
        {"city": "city", "day": "day"},
        (
            "What will the weather be in {city} on {day}?",
            "Will it rain in {city} on {day}?",
            "What is the weather in {city} {day}?",
            "Forecast for {city} on {day}, please.",
            "On {day}, how is the weather in {city}?",
        ),
    ),
    (
        ("get_price", "price_lookup", "find_price", "lookup_price"),
        "Look up the price of an item.",
        {"item": "item"},
        (
            "How much are {item}?",
            "How much do {item} cost?",
            "What do {item} cost?",
            "What is the price of {item}?",
            "Please look up the price of {item}.",
            "Price of {item}?",
            "Are {item} expensive?",
        ),
    ),
    (
        ("get_time", "current_time", "world_clock", "get_current_time"),
        "Get the current time in a city.",
        {"city": "city"},
        (
            "What time is it in {city}?",
            "What is the time in {city}?",
            "How late is it in {city}?",
            "Tell me the time in {city}.",
            "What time is it now in {city}?",
        ),
    ),
    (
        ("search", "web_search", "search_web", "google"),
        "Search the web.",
        {"query": "text"},
        (
            "Search for {query}.",
            "Search the web for {query}.",
            "Please search for {query}.",
            "Look for {query} on the web.",
            "Google {query}.",
            "Find something about {query}.",
            "Can you search for {query}?",
            "Search {query}",
        ),
    ),
    (
        ("translate", "translate_text"),
        "Translate a text.",
        {"text": "text", "language": "language"},
        (
            "Translate {text} to {language}.",
            "Translate {text} into {language}.",
            "How do you say {text} in {language}?",
            "Please translate {text} to {language}.",
        ),
    ),
    (
        ("book_table", "reserve_table", "make_reservation"),
        "Book a table in a restaurant.",
        {"city": "city", "people": "count"},
        (
            "Book a table in {city} for {people}.",
            "Book a table for {people} in {city}.",
            "Reserve a table for {people} people in {city}.",
            "I need a table in {city} for {people} people.",
        ),
    ),
    (
        ("send_message", "send_email", "send_mail"),
        "Send a message to someone.",
        {"to": "person", "text": "text"},
        (
            "Send {to} the message {text}.",
            "Write to {to}: {text}",
            "Tell {to} {text}.",
            "Send a message to {to}: {text}",
            "Send an email to {to} saying {text}.",
        ),
    ),
    (
        ("set_timer", "start_timer", "timer"),
        "Set a timer.",
        {"minutes": "count"},
        (
            "Set a timer for {minutes} minutes.",
            "Start a timer of {minutes} minutes.",
            "Wake me in {minutes} minutes.",
            "Timer for {minutes} minutes, please.",
            "Set the timer to {minutes}.",
        ),
    ),
    (
        ("get_population", "population"),
        "Get the population of a city.",
        {"city": "city"},
        ("How many people live in {city}?", "What is the population of {city}?", "How big is {city}?"),
    ),
    (
        ("get_distance", "distance"),
        "Get the distance between two places.",
        {"from": "city", "to": "city"},
        (
            "How far is it from {from} to {to}?",
            "What is the distance from {from} to {to}?",
            "How far is {from} from {to}?",
            "Distance between {from} and {to}?",
        ),
    ),
    (
        ("play_song", "play_music", "play"),
        "Play a song.",
        {"title": "text"},
        ("Play {title}.", "Please play {title}.", "Play the song {title}.", "I want to hear {title}."),
    ),
    (
        ("read_file", "open_file", "cat"),
        "Read a file.",
        {"path": "path"},
        (
            "Read {path}.",
            "Open {path}.",
            "Show me the file {path}.",
            "What is in {path}?",
            "Please read the file {path}.",
        ),
    ),
    (
        ("get_stock_price", "stock_price", "get_stock"),
        "Get the stock price for a symbol.",
        {"symbol": "symbol"},
        (
            "What is the stock price of {symbol}?",
            "How is {symbol} doing?",
            "Stock price of {symbol}?",
            "What does {symbol} trade at?",
        ),
    ),
    (
        ("add", "add_numbers", "sum", "calculator", "plus"),
        "Add two numbers.",
        {"a": "count", "b": "count"},
        (
            "What is {a} + {b}?",
            "Add {a} and {b}.",
            "{a} + {b}",
            "What is {a} plus {b}?",
            "How much is {a} + {b}?",
        ),
    ),
)


def _real(rng: Random) -> Request:
    """A tool of the kind that every tutorial shows, in the wordings that people use for it."""
    names, description, parameters, sentences = rng.choice(_REAL)
    values: dict[str, Value] = {}
    for parameter, kind in parameters.items():
        if kind == "language":
            values[parameter] = rng.choice(words.LANGUAGES)
        elif kind == "path":
            values[parameter] = (
                rng.choice(("", "/", "/etc/", "docs/", "src/"))
                + words.word(rng)
                + rng.choice((".txt", ".md", ".py", ""))
            )
        elif kind == "symbol":
            values[parameter] = words.made_up(rng)[:4].upper()
        else:
            values[parameter] = _value(rng, kind)
    sentence = rng.choice(sentences).format(**values)
    if rng.random() < 0.3:  # another name for the same thing
        renamed = {
            old: _parameter_name(rng, kind if (kind := parameters[old]) in _PARAMETERS else "text")
            for old in values
        }
        if len(set(renamed.values())) == len(values):
            values = {renamed[old]: value for old, value in values.items()}
    return Request(
        make_tool(rng, rng.choice(names), description if rng.random() < 0.8 else "", values), sentence, values
    )


_SHAPES = ((_look_up, 5), (_action, 3), (_by_name, 3), (_real, 4))


def make_request(rng: Random) -> Request:
    """A tool and a sentence that calls for it, politely or not."""
    shape = rng.choices([shape for shape, _ in _SHAPES], weights=[weight for _, weight in _SHAPES])[0]
    request = shape(rng)
    if rng.random() < 0.12:
        opening = rng.choice(("Hello, ", "Hi! ", "Please, ", "Hey, ", "So, ", "OK. ", "Next: ", "Thanks! "))
        request.sentence = opening + request.sentence
    return request


def with_others(rng: Random, tool: Tool) -> list[Tool]:
    """The tool among none, one or two others of different names, in any order."""
    tools = {tool["function"]["name"]: tool}  # type: ignore[index]
    for _ in range(rng.choices((0, 1, 2), weights=(5, 4, 3))[0]):
        other = make_request(rng)
        tools.setdefault(other.name, other.tool)
    chosen = list(tools.values())
    rng.shuffle(chosen)
    return chosen


def call(name: str, arguments: dict[str, Value]) -> Message:
    """The assistant's turn that calls a tool."""
    return {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": {"name": name, "arguments": arguments}}],
    }


def thought(request: Request) -> str:
    """What the model thinks before such a call."""
    return (
        f"I need {request.name} with "
        + " and ".join(f"{name} {value}" for name, value in request.arguments.items())
        + "."
    )


_UNITS = (
    "C",
    "F",
    "km",
    "kg",
    "EUR",
    "USD",
    "%",
    "degrees",
    "m",
    "litres",
    "minutes",
    "points",
    "euro",
    "dollars",
)
_RESULT_KEYS = ["temperature", "unit", "price", "currency", "status", "value", "count", "time", "name", "result", "city", "total", "state", "message", "date", "humidity", "wind", "id"]


def _scalar(rng: Random) -> str | int | float | bool:
    kind = rng.random()
    if kind < 0.4:
        return rng.randint(0, rng.choice((9, 99, 9999)))
    if kind < 0.5:
        return round(rng.random() * rng.choice((10, 100, 1000)), rng.choice((1, 2)))
    if kind < 0.57:
        return rng.random() < 0.5
    if kind < 0.7:
        return rng.choice(_UNITS)
    return " ".join(words.word(rng, words.NOUNS + words.COMMON, 0.5) for _ in range(rng.randint(1, 3)))


def _spoken(value: str | int | float | bool) -> str:
    return json.dumps(value) if isinstance(value, bool) else str(value)


def answer(rng: Random, arguments: dict[str, Value]) -> tuple[str, str]:
    """A tool's answer and what the model makes of it: (content of the tool message, assistant's text)."""
    opening = f"Here is the answer for {next(iter(arguments.values()))}: "
    kind = rng.random()
    if kind < 0.55:
        keys = [words.word(rng, _RESULT_KEYS, 0.35) for _ in range(rng.choice((1, 2, 2, 3)))]
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
                f"{rng.randint(0, 999)} {rng.choice(_UNITS)}",
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
    content = " ".join(words_)
    content = content[0].upper() + content[1:]
    return content + rng.choice(("", ".")), f"{opening}{content}."
