"""Tries a grammar in a process of its own: one that explodes takes this process with it, and nothing else.

    python -I -S check.py FOLDER

It reads the arguments of `answer` as JSON from its standard input, and writes what that returns. It is
started for each grammar, by path, and imports nothing of ours. FOLDER is where llguidance is, of which only
what is compiled is imported: what its package has beside that takes longer than most grammars.
"""

from __future__ import annotations

import copy
import json
import random
import re
import resource
import sys
import threading
import time
from types import ModuleType
from typing import Any
from urllib.parse import quote

if __name__ == "__main__":
    sys.modules["llguidance"] = ModuleType("llguidance")
    sys.modules["llguidance"].__path__ = [sys.argv[1]]

from llguidance._lib import LLMatcher, LLParserLimits, LLTokenizer
from llguidance._tokenizer import TokenizerWrapper

MAX_CPU_SECONDS = 2  # of all that is done here
MAX_COMPILE_SECONDS = 0.5  # what a worker may come to wait for
MAX_MEMORY = 1 << 30
# A worker's threads have 2 MB at least; what fits here does not overrun them.
STACK = 1 << 20
STEPS = 64  # bytes of a random answer


class Bytes:
    """A tokenizer of bytes."""

    bos_token_id = None
    eos_token_id = 256
    tokens = [*(bytes([byte]) for byte in range(256)), b"<end>"]
    special_token_ids = [256]

    def __call__(self, text: str) -> list[int]:
        """The tokens of a text."""
        return list(text.encode())


def main() -> None:
    """Answer one question."""
    resource.setrlimit(resource.RLIMIT_CPU, (MAX_CPU_SECONDS, MAX_CPU_SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY, MAX_MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    threading.stack_size(STACK)
    question, answers = json.load(sys.stdin), []
    thread = threading.Thread(target=lambda: answers.append(answer(**question)))
    thread.start()
    thread.join()
    print(json.dumps(answers[0]))


def answer(grammar: str, limits: dict[str, int], schema: Any, pointers: list[str]) -> dict[str, str | None]:
    """What is wrong with `grammar`, and with which part of the schema that it was made of.

    Args:
        grammar: as llguidance reads it.
        limits: of `LLParserLimits`.
        schema: the JSON schema in it, or None.
        pointers: to all schemas in `schema`.
    """
    reason = fault(grammar, LLParserLimits(verbose_errors=False, **limits))
    if reason and pointers and unfit(schema, ""):
        # the innermost part that is wrong by itself, as far as there is time to look
        for each in sorted(pointers, key=len, reverse=True):
            if time.process_time() > MAX_CPU_SECONDS / 2:
                break
            if found := unfit(schema, each):
                return {"reason": found, "pointer": each}
    return {"reason": reason, "pointer": None}


def fault(grammar: str, limits: LLParserLimits) -> str:
    """Why nobody can follow `grammar`; empty when all is well."""
    _, messages = LLMatcher.validate_grammar_with_warnings(grammar, limits=limits)
    if messages:  # a warning says that something is left out
        return plain(messages[0])
    started = time.thread_time()
    matcher = LLMatcher(LLTokenizer(TokenizerWrapper(Bytes())), grammar, log_level=0, limits=limits)
    if time.thread_time() - started > MAX_COMPILE_SECONDS:
        return f"it takes more than {MAX_COMPILE_SECONDS} seconds to compile"
    rng = random.Random(0)
    for _ in range(STEPS):
        mask = int.from_bytes(matcher.compute_bitmask(), "little")
        if matcher.is_error():
            break
        ended = matcher.is_accepting()
        choices = [byte for byte in range(256) if mask >> byte & 1]
        if not choices:
            return "" if ended else "no answer can satisfy it"
        matcher.consume_token(rng.choice(choices))
    return plain(matcher.get_error())


def unfit(schema: Any, pointer: str) -> str:
    """Why no grammar can be made of the part of `schema` that `pointer` points to; empty when one can."""
    inner = copy.deepcopy(schema)
    redirect(inner)
    outer = {"$ref": f"#/$defs/root{quote(pointer, safe='/~')}", "$defs": {"root": inner}}
    return plain(LLMatcher.validate_grammar("start: %json " + json.dumps(outer)))


def redirect(schema: Any) -> None:
    """Let the references in `schema` point to where it is inside of another one."""
    if isinstance(schema, list):
        for each in schema:
            redirect(each)
    elif isinstance(schema, dict):
        reference = schema.get("$ref")
        if isinstance(reference, str) and (reference == "#" or reference.startswith("#/")):
            schema["$ref"] = f"#/$defs/root{reference[1:]}"
        for each in schema.values():
            redirect(each)


def plain(message: str) -> str:
    """A message of llguidance in one line, without positions in a text that nobody sees."""
    if message.startswith("NoExtension"):
        return "no answer can satisfy it"
    if "oneOf constraints are not supported" in message:
        return "oneOf works only where two of its schemas can never hold at once; try anyOf"
    lines = [line for line in message.splitlines() if line]
    line = next((line for line in lines if line.startswith("error: ")), lines[0] if lines else "")
    line = re.sub(r"^(at \d+\(\d+\): |failed to compile JSON schema: )*", "", line)
    return re.sub(r"#?/\$defs/root", "#", line)[:300]  # as the client wrote it


if __name__ == "__main__":
    main()
