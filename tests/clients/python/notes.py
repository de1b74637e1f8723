"""What every session here is about: a file of notes, and two tools for it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

BASE_URL = os.environ["CORTEX_URL"]  # without /v1
MODEL = "scripted"
TASK = "Make the colour in notes.txt blue."
MOST_TURNS = 5


def read_file(path: str) -> str:
    """Read a text file.

    Args:
        path: of the file
    """
    return Path(path).read_text()


def edit_file(path: str, old: str, new: str) -> str:
    """Put one text in place of another one in a file.

    Args:
        path: of the file
        old: the text that is there
        new: the text that takes its place
    """
    text = Path(path).read_text()
    assert old in text
    Path(path).write_text(text.replace(old, new))
    return "edited"


FUNCTIONS = {"read_file": read_file, "edit_file": edit_file}


def schema(*names: str) -> dict[str, Any]:
    strings = {name: {"type": "string"} for name in names}
    return {"type": "object", "properties": strings, "required": list(names), "additionalProperties": False}


SCHEMAS = {"read_file": schema("path"), "edit_file": schema("path", "old", "new")}
CHAT_TOOLS = [
    {"type": "function", "function": {"name": name, "description": "A tool.", "parameters": parameters}}
    for name, parameters in SCHEMAS.items()
]
