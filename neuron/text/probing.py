"""What a chat template takes: tried with small conversations, once, when it is loaded.

Templates are programs. Whether one reads parts, or keeps a system turn in the middle, cannot be told from its
text; but it can be seen in what it writes.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from neuron.text.history import ID_LENGTH, Takes, Turn

Try = Callable[[list[Turn]], str]  # a conversation rendered, or nothing where the template refuses it

# Words that no template has of its own, and how a list of parts looks that was written as it is.
ONE, TWO = "qzxaqz", "qzxbqz"
WRITTEN_OUT = re.compile(rf"""text\W+{ONE}\W""")
SHORT_ID, LONG_ID = "c12345678"[:ID_LENGTH], "call_0123456789abcdef"

TOOL = {
    "type": "function",
    "function": {
        "name": "f",
        "description": "a",
        "parameters": {"type": "object", "properties": {"a": {"type": "string", "description": "a"}}},
    },
}


def _said(role: str, content: Any = "a") -> Turn:
    return {"role": role, "content": content}


def _called(*arguments: Any, call_id: str = SHORT_ID) -> Turn:
    calls = [
        {"id": _numbered(call_id, i), "type": "function", "function": {"name": "f", "arguments": each}}
        for i, each in enumerate(arguments)
    ]
    return {"role": "assistant", "content": "", "tool_calls": calls}


def _result(content: Any = "a", number: int = 0, call_id: str = SHORT_ID) -> Turn:
    return {"role": "tool", "content": content, "tool_call_id": _numbered(call_id, number), "name": "f"}


def _numbered(call_id: str, number: int) -> str:
    return call_id[:-1] + str(number)


USER, ASSISTANT = _said("user"), _said("assistant")

# By role: the turns around one.
_BEFORE: dict[str, list[Turn]] = {
    "system": [],
    "developer": [],
    "user": [],
    "assistant": [USER],
    "tool": [USER, _called({"a": "a"})],
}
_AFTER: dict[str, list[Turn]] = {
    "system": [USER],
    "developer": [USER],
    "user": [],
    "assistant": [USER],
    "tool": [],
}


def around(role: str, content: Any) -> list[Turn]:
    """A small conversation with a turn of `role` in it."""
    turn = _result(content) if role == "tool" else _said(role, content)
    return [*_BEFORE[role], turn, *_AFTER[role]]


def forms(role: str, attempt: Try) -> tuple[bool, bool]:
    """Whether content of `role` is read as text, and as parts: one that reads parts of a role may not read
    those of another."""
    parts = attempt(around(role, [{"type": "text", "text": text} for text in (ONE, TWO)]))
    reads_parts = ONE in parts and TWO in parts and not WRITTEN_OUT.search(parts)
    return ONE in attempt(around(role, ONE)), reads_parts


def takes(attempt: Try, offered: Try) -> Takes:
    """What a template takes as it is.

    Of what is well formed (a system turn first, then turns of user and assistant, with calls that are
    answered) it is enough that the template does not refuse it: what it leaves out of that, it was made to.
    Of all else it has to write every word. Calls, too, it has to write, if only in some place: an agent that
    does not see what it has done does it again.

    Args:
        offered: the same as `attempt`, with a tool.
    """

    def tells(*turns: Turn) -> bool:
        text = attempt(list(turns))
        return ONE in text and (TWO in text or TWO not in str(turns))

    def called(*arguments: Any, call_id: str = SHORT_ID) -> str:
        results = [_result(number=i, call_id=call_id) for i in range(len(arguments))]
        return attempt([USER, _called(*arguments, call_id=call_id), *results])

    objects = bool(called({"a": "a"}))
    arguments: Any = {"a": "a"} if objects else '{"a": "a"}'
    call = _called(arguments)

    def shows(*words: str) -> bool:
        """Whether calls in one turn, with these words in their arguments, are all written."""
        each = [{"a": word} if objects else f'{{"a": "{word}"}}' for word in words]
        turns = [USER, _called(*each), *(_result(number=i) for i in range(len(words)))]
        texts = [render(turns + more) for render in (attempt, offered) for more in ([], [ASSISTANT, USER])]
        return any(all(word in text for word in words) for text in texts)

    calls = bool(called(arguments)) and shows(ONE)
    return Takes(
        system=tells(_said("system", ONE), USER),
        several_systems=tells(_said("system", ONE), _said("system", TWO), USER),
        system_later=tells(_said("system", TWO), USER, ASSISTANT, _said("system", ONE), USER)
        and tells(USER, _said("system", ONE))
        and tells(USER, ASSISTANT, _said("system", ONE), _said("system", TWO)),
        several_users=tells(_said("user", ONE), _said("user", TWO)),
        several_assistants=tells(USER, _said("assistant", ONE), _said("assistant", TWO), USER),
        assistant_first=tells(_said("assistant", ONE), USER),
        no_user=tells(_said("system", ONE)) and tells(_said("system", ONE), ASSISTANT),
        calls=calls,
        call_objects=objects or not calls,
        call_texts=ONE in called(ONE),
        several_calls=not calls or (bool(called(arguments, arguments)) and shows(ONE, TWO)),
        long_ids=not calls or bool(called(arguments, call_id=LONG_ID)),
        orphans=tells(USER, _result(ONE), ASSISTANT, USER) and tells(_result(ONE), USER),
        unanswered=tells(USER, call, _said("user", ONE)),
        user_after_result=tells(USER, call, _result(), _said("user", ONE)),
    )
