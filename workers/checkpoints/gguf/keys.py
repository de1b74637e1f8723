"""The metadata of one architecture, with what is missing or is not understood refused by its key."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from workers.checkpoints.files import refuse
from workers.checkpoints.gguf.header import Gguf

Json = dict[str, Any]
MOST_LAYERS = 10_000  # no family has more
WINDOW = "attention.sliding_window"
MODERN_BERT = "modern-bert"
JOINS = "nextn.eh_proj.weight"  # of each head that predicts several tokens


class Keys:
    """The metadata of one architecture, by their names without it; `asked` are those that somebody read."""

    def __init__(self, file: Gguf) -> None:
        self.file, self.path, self._prefix = file, file.path, f"{file.architecture}."
        self.asked: set[str] = set()

    def get(self, name: str, default: Any = None) -> Any:
        self.asked.add(name)
        return self.file.get(self._prefix + name, default)

    def beside(self, name: str) -> Any:
        """The same of what nobody reads, who would follow it."""
        return self.file.get(self._prefix + name)

    def names(self) -> Iterator[str]:
        """All that the file has."""
        for key in self.file.metadata:
            if key.startswith(self._prefix):
                yield key.removeprefix(self._prefix)

    def number(self, name: str, default: int | float | None = None) -> Any:
        """A number; of a list with one for each layer the one that is in all of them.

        Raises:
            CortexError: MODEL_LOAD_FAILED, it is missing and has no default, or is something else.
        """
        value = self.get(name, default)
        if isinstance(value, list) and len(set(value)) == 1:
            value = value[0]
        if value is None:
            refuse(self.path, f"has no {self._prefix}{name}")
        if isinstance(value, bool) or not isinstance(value, int | float):
            what = "differs from layer to layer, which is" if isinstance(value, list) else f"{value!r} is"
            refuse(self.path, f"{self._prefix}{name} {what} not supported")
        return value

    def size(self, name: str, default: int | None = None) -> int:
        """A number of one or more; raises as `number` does."""
        value = self.number(name, default)
        if not isinstance(value, int) or value < 1:
            refuse(self.path, f"{self._prefix}{name} {value} is not supported")
        return value

    def head_dim(self) -> int:
        """The size of a head."""
        if self.get("attention.key_length") is not None:
            return self.size("attention.key_length")
        return self.size("embedding_length") // self.size("attention.head_count")

    def layers(self) -> int:
        """Those of the model itself: the last of `block_count` may be heads that predict several tokens.

        Raises:
            CortexError: as `number`, or what should be such a head is none.
        """
        count, heads = self.number("block_count"), self.number("nextn_predict_layers", 0)
        if not heads:
            return count
        if not isinstance(heads, int) or not 0 < heads < count:
            refuse(
                self.path,
                f"{self._prefix}nextn_predict_layers {heads} is not supported: it has {count} layers",
            )
        first = f"blk.{count - heads}."
        if not self.has(first + JOINS) and any(name.startswith(first) for name in self.file.tensors):
            why = f"block {count - heads} has no {JOINS}, and so is none"
            refuse(self.path, f"{self._prefix}nextn_predict_layers {heads} is not supported: {why}")
        return count - heads

    def of_layers(self, name: str) -> Any:
        """A number, or a list with one for each layer, which stands there for heads as well."""
        value = self.get(name)
        if isinstance(value, list) and len(value) == self.get("block_count"):
            return value[: self.layers()]
        return value

    def has(self, tensor: str) -> bool:
        return tensor in self.file.tensors


def pattern(keys: Keys, every: int, *, first: bool = False) -> list[str]:
    """The type of each layer, of which every so many'th sees all tokens where no list says it: the last of
    so many, or the first."""
    given = keys.get("attention.sliding_window_pattern", every)
    count = min(keys.layers(), MOST_LAYERS)
    if not isinstance(given, list):
        given = keys.number("attention.sliding_window_pattern", every)
        given = [bool((number + (not first)) % given) if given else True for number in range(count)]
    if not keys.get(WINDOW):
        given = [False] * count
    return ["sliding_attention" if window else "full_attention" for window in given[:count]]


def of_layers(keys: Keys, name: str, count: int) -> list[int]:
    """A size of each layer, whether the file lists them or has one for all."""
    value = keys.of_layers(name)
    listed = value if isinstance(value, list) else [value] * count
    if len(listed) != count or not all(type(each) is int and each > 0 for each in listed):
        refuse(keys.path, f"{name} {value!r} is no size, nor a list of {count}")
    return listed


def floats(file: Gguf, name: str) -> list[float]:
    """A small tensor of float32."""
    if name not in file.tensors:
        refuse(file.path, f"has no tensor {name!r}")
    return file.floats(name)
