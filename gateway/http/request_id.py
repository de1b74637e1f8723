"""What a request is called: in its answer, in each line about it, and at the neuron."""

from __future__ import annotations

import os
import re

HEADERS = ("x-request-id", "request-id")  # of an answer: as OpenAI's clients read it, and Anthropic's

_is_one = re.compile(r"[\x21-\x7e]{1,128}").fullmatch


def request_id(given: str | None) -> str:
    """The client's own, `given` in its header `x-request-id`, where that can be one, else a new one."""
    return given if given is not None and _is_one(given) else os.urandom(12).hex()
