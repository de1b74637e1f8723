"""Configuration in YAML: what it says, and where."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml


def parse(text: str) -> Any:
    """What `text` says. ValueError or RecursionError where it is not YAML, or gives a key twice."""
    try:
        return yaml.load(text, Loader=_UniqueKeys)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ValueError(f"line {line}: {error.problem}") from error
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


def line_of(path: str | Path, key: str) -> int | None:
    """The line on which `key`, or the nearest thing around it, stands in a YAML file; None where unknown."""
    try:
        node = yaml.compose(Path(path).read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        return None
    if Path(path).suffix == ".toml" or node is None or not key:
        return None
    line = node.start_mark.line
    for part in re.findall(r"[^.\[\]]+", key):
        if isinstance(node, yaml.SequenceNode) and part.isdecimal() and int(part) < len(node.value):
            node = node.value[int(part)]
            line = node.start_mark.line
        elif isinstance(node, yaml.MappingNode):
            found = [pair for pair in node.value if pair[0].value == part]
            if not found:
                break
            line, node = found[0][0].start_mark.line, found[0][1]
        else:
            break
    return line + 1


class _UniqueKeys(yaml.SafeLoader):
    """YAML in which giving a key twice is an error: one of the two values would be lost without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key.value!r} is given twice", key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)
