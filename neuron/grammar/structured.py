"""From what an answer must look like to the grammar that a worker holds it to.

    constrain(structured, encode, thought) -> Constraint

`encode` turns a text into token ids and adds none (`partial(front_end.encode, special=False)`).
`thought` says where the prompt leaves the model: "none" (no thought comes: plain prompts, models that do not
think, a thought that the prompt has closed), "open" (the prompt has opened one) or "possible" (the model may
begin with one). It takes 0.1 seconds for a grammar that is new, and some at most: not for an event loop.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import llguidance
from llguidance import regex_to_lark

from ipc.errors import Code, CortexError
from ipc.messages.sampling import Structured
from ipc.worker_messages import GRAMMAR_LIMITS, Constraint
from neuron.grammar import json_schema
from neuron.text.formats.lark import JSON_OPTIONS, quoted
from neuron.text.reasoning import THINK, ThinkTags, Thought

NAMES = {
    "json": "the JSON schema",
    "json_object": "json_object",
    "regex": "the regular expression",
    "choice": "the choice",
    "grammar": "the grammar",
}
MAX_SIZE = 128 << 10  # characters of a grammar: it travels in rings
TOO_LARGE = f"it is larger than {MAX_SIZE >> 10} KB"
MAX_CHOICES = 10_000
MAX_COUNTED = GRAMMAR_LIMITS["max_lexer_states"] // 2  # characters that a regular expression asks for
CHECK_SECONDS = 10.0  # on the clock; the checker itself stops after some seconds of work
CHECKER = Path(__file__).with_name("check.py")
LLGUIDANCE = str(Path(llguidance.__file__).parent)

OPTIONS = '%llguidance {"no_forcing": true}'  # a text may be spelled with whatever tokens the model likes
CLASSES = "dws"  # \d, \w and \s stand for ASCII characters, as in the patterns of a JSON schema

# In Lark: what is no syntax (strings, regular expressions, comments), and what is about more than text.
LARK = re.compile(
    r'"(?:\\.|[^"\\\n])*"|(?P<pattern>/(?:\\.|[^/\\\n])+/)|//[^\n]*|#[^\n]*'
    r"|(?P<token><[^>\n]*>)|(?P<option>\b(?:temperature|max_tokens|stop)\s*=)|(?P<json>%json\s*)"
)


def constrain(
    structured: Structured,
    encode: Callable[[str], list[int]],
    thought: Thought = "none",
    tags: ThinkTags = THINK,
) -> Constraint:
    """The grammar that `structured` stands for; it was tried.

    Raises:
        CortexError: BAD_REQUEST naming `structured_outputs.<field>`, with the reason, and for a JSON schema
            with the JSON pointer to what is wrong (also in `details["pointer"]`).
    """
    return hold(form(structured), encode, thought, tags)


def form(structured: Structured) -> str:
    """The same as text."""
    field, value = _asked(structured)
    schema: dict[str, Any] | None = None
    pointers: list[str] = []
    if field in ("json", "json_object"):
        schema, pointers = _checked(field, value if field == "json" else {"type": "object"})
        grammar = f"start: %json {quoted(schema | JSON_OPTIONS)}"
    elif field == "regex":
        _check_length(field, value)
        grammar = f"start: ANSWER\nANSWER: /{regex_to_lark(value, CLASSES)}/"
    elif field == "choice":
        if not 0 < len(value) <= MAX_CHOICES:
            raise _refused(field, f"{len(value)} choices are not between 1 and {MAX_CHOICES}")
        grammar = "start: ANSWER\nANSWER: " + " | ".join(map(quoted, value))
    else:
        grammar = _of_lark(value)
    grammar = f"{grammar}\n{OPTIONS}"
    if (found := fault(grammar, schema, pointers)) is not None:
        raise _refused(field, *found)
    return grammar


def hold(
    grammar: str,
    encode: Callable[[str], list[int]],
    thought: Thought,
    tags: ThinkTags = THINK,
    budget: int | None = None,
) -> Constraint:
    """What a worker needs to hold an answer to `grammar`, which was tried.

    Args:
        budget: tokens of the thought.
    """
    return Constraint(
        grammar,
        in_thought=thought == "open",
        think=encode(tags.opening) if thought == "possible" else [],
        end_think=encode(tags.closing) if thought != "none" else [],
        budget=budget,
    )


def fault(
    grammar: str, schema: dict[str, Any] | None = None, pointers: Sequence[str] = ()
) -> tuple[str, str | None] | None:
    """Why `grammar` cannot be followed, and the pointer to what is to blame in the schema; None: it can."""
    if len(grammar) > MAX_SIZE:
        return TOO_LARGE, None
    try:
        found = _try(grammar, json.dumps({"schema": schema, "pointers": list(pointers)}))
    except subprocess.TimeoutExpired:
        return "it takes too long to compile", None
    return (found["reason"], found["pointer"]) if found["reason"] else None


def _asked(structured: Structured) -> tuple[str, Any]:
    """The field that is set, and its value."""
    given = {name: value for name in structured.__struct_fields__ if (value := getattr(structured, name))}
    for name in ("json", "regex", "choice", "grammar"):
        if getattr(structured, name) is not None:
            given[name] = getattr(structured, name)
    if len(given) != 1:
        raise CortexError(
            Code.BAD_REQUEST,
            f"structured_outputs has {' and '.join(given) or 'nothing'}, where exactly one of "
            f"{', '.join(structured.__struct_fields__)} belongs",
            param="structured_outputs",
        )
    return next(iter(given.items()))


def _checked(field: str, schema: Any) -> tuple[dict[str, Any], list[str]]:
    """The schema as llguidance is to read it, and pointers to all schemas in it."""
    if schema is False:
        raise _refused(field, "the schema false allows no answer")
    try:
        text = json.dumps({} if schema is True else schema, allow_nan=False)
        if len(text) > MAX_SIZE:
            raise _refused(field, TOO_LARGE)
        return json_schema.check(json.loads(text))
    except json_schema.Unfit as unfit:
        raise _refused(field, unfit.reason, unfit.pointer) from unfit
    except (RecursionError, TypeError, ValueError) as error:
        raise _refused(field, f"it is no JSON that can be read: {error}") from error


def _check_length(field: str, pattern: str) -> None:
    """See that an answer can come to its end: each character that is counted is a state of the lexer."""
    needed = json_schema.shortest(pattern)
    if needed > MAX_COUNTED:
        reason = f"it asks for {needed} characters at least, and more than {MAX_COUNTED} cannot be counted"
        raise _refused(field, reason)


def _of_lark(grammar: str) -> str:
    """A grammar that is about text alone, in which schemas are as strict as those that come by themselves."""
    pieces, start, position = [], 0, 0
    while found := LARK.search(grammar, position):
        position = found.end()
        if found["pattern"]:
            _check_length("grammar", found["pattern"][1:-1])
        if found["token"]:
            raise _refused("grammar", f"it names the token {found['token']}, and answers are text")
        if found["option"]:
            raise _refused("grammar", f"{found['option'].rstrip(' =')} is not supported inside of a grammar")
        if found["json"]:
            pieces.append(grammar[start:position])
            try:
                schema, start = json.JSONDecoder().raw_decode(grammar, position)
            except (RecursionError, ValueError) as error:
                raise _refused("grammar", f"the JSON after %json cannot be read: {error}") from error
            pieces.append(quoted(_checked("grammar", schema)[0] | JSON_OPTIONS))
            position = start
    return "".join([*pieces, grammar[start:]])


@lru_cache(128)
def _try(grammar: str, parts: str) -> dict[str, str | None]:
    """What `neuron/grammar/check.py` says."""
    question = json.dumps({"grammar": grammar, "limits": GRAMMAR_LIMITS} | json.loads(parts))
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(CHECKER), LLGUIDANCE],
        input=question.encode(),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        timeout=CHECK_SECONDS,
    )
    if done.returncode:
        return {"reason": "it takes too much time or memory to compile", "pointer": None}
    return json.loads(done.stdout)


def _refused(field: str, reason: str, pointer: str | None = None) -> CortexError:
    where = "" if pointer is None else f" at {pointer or 'its root'}"
    return CortexError(
        Code.BAD_REQUEST,
        f"{NAMES[field]} cannot be honoured{where}: {reason}",
        param=f"structured_outputs.{field}",
        details={} if pointer is None else {"pointer": pointer},
    )
