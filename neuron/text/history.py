"""A conversation in the shape that a chat template can walk.

What clients keep of a conversation is not always what templates were written for: a call whose arguments were
cut is no JSON, a system turn stands in the middle, a result answers no call. A template that insists refuses
the whole conversation then, at every turn that follows. So what it does not take is changed to what it does:
always in the same way, and from the front to the back, so that the next turn finds its prefix cached.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from neuron.text.formats.hermes import HERMES
from neuron.text.formats.tool_format import ToolFormat

Turn = dict[str, Any]  # as templates read it
SYSTEM = ("system", "developer")

ID_LENGTH = 9  # letters and digits: what Mistral's templates insist on
MAX_DEPTH = 200  # of JSON that is completed


class Takes(NamedTuple):
    """What a template takes as it is. See `neuron.text.probing`."""

    system: bool = True  # a system turn at the beginning
    several_systems: bool = True  # turns of it there
    system_later: bool = True  # one further on
    several_users: bool = True  # turns of a user that follow each other
    several_assistants: bool = True
    assistant_first: bool = True  # its turn before any of a user
    no_user: bool = True  # a conversation without one
    calls: bool = True  # and shows them to the model
    call_objects: bool = True  # arguments of a call that are an object; else JSON text
    call_texts: bool = True  # and such as are any text
    several_calls: bool = True  # in one turn
    long_ids: bool = True  # of calls
    orphans: bool = True  # results of no call
    unanswered: bool = True  # calls without a result
    user_after_result: bool = True  # before the assistant said something

    def at_least(self) -> Takes:
        """What is left when this, too, was refused: the plainest conversation."""
        plain = Takes(*[False] * len(self))
        return plain._replace(system=self.system, calls=self.calls, call_objects=self.call_objects)


def walkable(turns: list[Turn], takes: Takes, tool_format: ToolFormat = HERMES) -> list[Turn]:
    """The conversation as a template that `takes` so much can walk it; the very same where it can already.

    Args:
        tool_format: how the model writes calls, for a template that takes none or leaves them out.
    """
    turns = [dict(turn) for turn in turns]
    if _is_plain(turns, takes):
        return turns
    turns = list(_systems(turns, takes))
    turns = list(_results(turns, takes))
    for turn in turns:
        if turn.get("tool_calls"):
            _calls(turn, takes, tool_format)
    if not takes.long_ids:
        _shorten_ids(turns)
    if not takes.several_calls:
        turns = list(_one_by_one(turns))
    if not takes.user_after_result:
        turns = list(_answered_users(turns))
    turns = list(_merged(turns, takes))
    _open_by_user(turns, takes)
    return turns


def _is_plain(turns: list[Turn], takes: Takes) -> bool:
    """Whether user and assistant take turns, perhaps behind a system turn, and nothing else is there: every
    template that takes the system turn walks that."""
    first = 1 if takes.system and turns and turns[0]["role"] in SYSTEM else 0
    due, after = "user", "assistant"
    for turn in turns[first:]:
        if turn["role"] != due or turn.get("tool_calls"):
            return False
        due, after = after, due
    return len(turns) > first


# --- roles ------------------------------------------------------------------------------------------------


def _systems(turns: list[Turn], takes: Takes) -> Iterator[Turn]:
    """A system turn that the template does not take becomes one of the user, in its place; behind the results
    where it stands between these and their call."""
    begun, last, waiting = False, None, []
    for turn in turns:
        if turn["role"] not in SYSTEM:
            if turn["role"] != "tool":
                yield from waiting
                waiting = []
            begun, last = True, None
            yield turn
        elif begun and not takes.system_later:
            waiting.append(turn | {"role": "user"})
        elif not takes.system:
            yield turn | {"role": "user"}
        elif last is not None and not takes.several_systems:
            _append(last, turn)
        else:
            last = turn
            yield turn
    yield from waiting


def _merged(turns: list[Turn], takes: Takes) -> Iterator[Turn]:
    """Turns of the same role that follow each other as one."""
    several = {"user": takes.several_users, "assistant": takes.several_assistants}
    last: Turn | None = None
    for turn in turns:
        # Calls in one turn of the assistant have their results behind it.
        if last is not None and last["role"] == turn["role"] and not several.get(turn["role"], True):
            _append(last, turn)
            continue
        if last is not None:
            yield last
        last = turn
    if last is not None:
        yield last


def _open_by_user(turns: list[Turn], takes: Takes) -> None:
    """Put a user's turn without words behind the system's, where there has to be one."""
    first = next((i for i, each in enumerate(turns) if each["role"] not in SYSTEM), len(turns))
    opened = takes.assistant_first or (first < len(turns) and turns[first]["role"] == "user")
    if not opened or not (takes.no_user or any(turn["role"] == "user" for turn in turns)):
        turns.insert(first, {"role": "user", "content": ""})


def _answered_users(turns: list[Turn]) -> Iterator[Turn]:
    """A turn without words of the assistant between results and the user."""
    last = ""
    for turn in turns:
        if turn["role"] == "user" and last == "tool":
            yield {"role": "assistant", "content": ""}
        last = turn["role"]
        yield turn


def _append(turn: Turn, more: Turn) -> None:
    """Add `more` to a turn of the same role."""
    first, second = turn["content"], more["content"]
    if isinstance(first, str) and isinstance(second, str):
        turn["content"] = f"{first}\n\n{second}" if first and second else first or second
    else:
        turn["content"] = _parts(first) + _parts(second)
    if more.get("tool_calls"):
        turn["tool_calls"] = [*turn.get("tool_calls", ()), *more["tool_calls"]]
    if more.get("reasoning_content"):
        thoughts = (turn.get("reasoning_content"), more["reasoning_content"])
        turn["reasoning_content"] = "\n".join(filter(None, thoughts))


def _parts(content: str | list[Any]) -> list[Any]:
    if isinstance(content, str):
        return [{"type": "text", "text": content}] if content else []
    return content


# --- calls and results ------------------------------------------------------------------------------------


def _results(turns: list[Turn], takes: Takes) -> Iterator[Turn]:
    """Results that the template does not take as such become a user's words; calls without one get one that
    says nothing, where they have to."""
    open_ids: Counter[str] = Counter()  # in the order of the calls
    for turn in turns:
        if turn["role"] == "tool":
            answered = turn.get("tool_call_id", next(iter(open_ids), None))
            answers = answered in open_ids
            if answers:
                open_ids[answered] -= 1
                if not open_ids[answered]:
                    del open_ids[answered]
                turn["tool_call_id"] = answered
            told = takes.orphans or (takes.calls and answers)
            yield turn if told else {"role": "user", "content": _told(turn["content"])}
            continue
        if takes.calls and not takes.unanswered:
            yield from map(_no_result, open_ids.elements())
        open_ids = Counter(call["id"] for call in turn.get("tool_calls", ()))
        yield turn
    if takes.calls and not takes.unanswered:
        yield from map(_no_result, open_ids.elements())


def _no_result(call_id: str) -> Turn:
    return {"role": "tool", "content": "", "tool_call_id": call_id}


def _told(content: str | list[Any]) -> str | list[Any]:
    before, after = "<tool_response>\n", "\n</tool_response>"
    if isinstance(content, str):
        return before + content + after
    return [{"type": "text", "text": before}, *content, {"type": "text", "text": after}]


def _calls(turn: Turn, takes: Takes, tool_format: ToolFormat) -> None:
    """Write the calls of a turn in the way that the template reads, or else as the model wrote them."""
    if not takes.calls:
        functions = [call["function"] for call in turn["tool_calls"]]
        calls = [(each["name"], _as_object(each["arguments"])) for each in functions]
        _append(turn, {"content": tool_format.as_text(calls)})
        del turn["tool_calls"]
        return
    turn["tool_calls"] = [
        call | {"function": call["function"] | {"arguments": _arguments(call, takes)}}
        for call in turn["tool_calls"]
    ]


def _arguments(call: Turn, takes: Takes) -> dict[str, Any] | str:
    arguments = call["function"]["arguments"]
    if isinstance(arguments, dict):
        return arguments if takes.call_objects else _as_text(arguments)
    if takes.call_texts or not takes.call_objects:
        return arguments
    return mended(arguments)


def _as_object(arguments: dict[str, Any] | str) -> dict[str, Any]:
    return mended(arguments) if isinstance(arguments, str) else arguments


def _as_text(arguments: dict[str, Any] | str) -> str:
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)


def _one_by_one(turns: list[Turn]) -> Iterator[Turn]:
    """Each call in a turn of its own, with its result behind it."""
    left: dict[int, Turn] = {}  # calls by their place in the turn
    places: dict[str, deque[int]] = {}  # of those with an id

    def called(calls: Iterable[Turn]) -> Iterator[Turn]:
        return ({"role": "assistant", "content": "", "tool_calls": [call]} for call in calls)

    for turn in turns:
        if turn["role"] == "tool":
            if ahead := places.get(turn.get("tool_call_id", "")):
                yield from called([left.pop(ahead.popleft())])
            yield turn
            continue
        yield from called(left.values())
        first, *others = turn.get("tool_calls") or [None]
        left, places = dict(enumerate(others)), {}
        for place, call in left.items():
            places.setdefault(call["id"], deque()).append(place)
        if others:
            turn["tool_calls"] = [first]
        yield turn
    yield from called(left.values())


def _shorten_ids(turns: list[Turn]) -> None:
    for turn in turns:
        if turn.get("tool_calls"):
            turn["tool_calls"] = [call | {"id": _short(call["id"])} for call in turn["tool_calls"]]
        if "tool_call_id" in turn:
            turn["tool_call_id"] = _short(turn["tool_call_id"])


def _short(call_id: str) -> str:
    if len(call_id) == ID_LENGTH and call_id.isascii() and call_id.isalnum():
        return call_id
    return hashlib.sha256(call_id.encode(errors="surrogatepass")).hexdigest()[:ID_LENGTH]


# --- arguments that are no object -------------------------------------------------------------------------

_TOKEN = re.compile(
    r'\s*(?:(?P<mark>[{}\[\],:])|(?P<whole>"(?:[^"\\]|\\.)*")|(?P<cut>"(?:[^"\\]|\\[^u]|\\u[0-9a-fA-F]{4})*)'
    r"|(?P<plain>[^\s{}\[\],:\"]+))",
    re.DOTALL,
)


def mended(text: str) -> dict[str, Any]:
    """The object that `text` was to be: what was cut is completed, and what is no object is the one value of
    an object that says so."""
    for attempt in (text, _completed(text)):
        try:
            value = json.loads(attempt, strict=False)  # with line breaks in its strings
        except (RecursionError, ValueError):
            continue
        if isinstance(value, dict):
            return value
    return {"arguments": text}


def _completed(text: str) -> str:
    """The beginning of some JSON up to its last whole value, with the brackets that close it. Of a text that
    was cut, what there is of it counts."""
    closing = ""  # the brackets that are missing
    best = (0, "")
    key = False  # the next text is one
    at = 0
    while len(closing) < MAX_DEPTH and (found := _TOKEN.match(text, at)):
        at = found.end()
        mark, cut = found["mark"], found["cut"] is not None
        if mark in ("{", "["):
            closing = ("}" if mark == "{" else "]") + closing
            key = mark == "{"
        elif mark in ("}", "]"):
            if not closing.startswith(mark):
                break
            closing, key = closing[1:], False
        elif mark is not None:
            key = mark == "," and closing.startswith("}")
            continue
        elif key and not cut:
            continue
        elif key or (found["plain"] and (at == len(text) or not _is_json(found["plain"]))):
            break  # of half a key, a number or a word nobody knows how it goes on
        best = (at, '"' + closing if cut else closing)
        if cut:
            break
    return text[: best[0]] + best[1]


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True
