"""What a scheme of quantised weights is to a checkpoint: the tensors that make up one weight, and its format.

A scheme promises the numbers that a weight is dequantised to: exactly, but where a scale is itself a product
or a quotient, which is rounded once to float32. What activations are rounded to by other engines
(`activation_scheme`, `input_activations`) is not imitated.
"""

from __future__ import annotations

import hashlib
import math
import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

from workers.checkpoints.blocks import FORMATS, PLAIN
from workers.checkpoints.files import open_file, refuse
from workers.checkpoints.safetensors import Tensor

MOST_REPEATS = 3  # in a regular expression
MOST_CHOICES = 3  # in one, too: groups with alternatives, and what may be left out
MOST_ALTERNATIVES = 32
RANKS = 8  # among which columns without groups should still divide into blocks

Shape = tuple[int, ...]


class Parts(NamedTuple):
    """What one weight is made of.

    Args:
        format: of `blocks.FORMATS`: what the conversion makes of it, and what is kept.
        conversion: of `workers.weights.conversions`.
        sources: in the order in which the conversion wants them, of one or two dimensions.
        order: where the columns of a group are not neighbours, what says the group of each.
    """

    format: str
    conversion: str
    sources: tuple[Tensor, ...]
    order: Order | None = None


class Order(NamedTuple):
    """The groups of columns, which may be those of several weights."""

    name: str
    groups: Tensor  # [columns] I32


class Stored:
    """The tensors of a checkpoint, by name, which are asked for as a scheme has them.

    Attributes:
        used: names of those that were there.
    """

    def __init__(self, folder: Path, tensors: Mapping[str, Tensor]) -> None:
        self._folder, self._tensors = folder, tensors
        self.used: set[str] = set()

    def find(self, name: str) -> Tensor | None:
        """The tensor of that name, if there is one."""
        if (tensor := self._tensors.get(name)) is not None:
            self.used.add(name)
        return tensor

    def is_plain(self, module: str) -> bool:
        """Whether a module has a weight that is not quantised."""
        tensor = self._tensors.get(f"{module}.weight")
        return tensor is not None and tensor.dtype in PLAIN

    def need(self, name: str, dtypes: Iterable[str], *shapes: Shape) -> Tensor:
        """The tensor of that name.

        Raises:
            CortexError: MODEL_LOAD_FAILED naming it: it is not there, or of another type or shape.
        """
        tensor = self.find(name)
        if tensor is None:
            refuse(self._folder, f"the tensor {name!r} is in none of its files: a quantised weight needs it")
        if tensor.dtype not in dtypes:
            refuse(tensor.file, f"{name!r} is {tensor.dtype}, and its scheme has {' or '.join(dtypes)}")
        if tensor.shape not in shapes:
            wanted = " or ".join(str(list(shape)) for shape in dict.fromkeys(shapes))
            refuse(tensor.file, f"{name!r} is {list(tensor.shape)}, and its scheme has {wanted}")
        return tensor

    def number(self, name: str, dtypes: Iterable[str] = ("F32", "BF16", "F16")) -> Tensor:
        """A tensor of one element, as a vector."""
        return reshaped(self.need(name, dtypes, (), (1,), (1, 1)), 1)


Find = Callable[[Stored, str, tuple[int, int]], Parts | None]


@dataclass(frozen=True, slots=True)
class Scheme:
    """How the weights of one checkpoint are quantised.

    Args:
        title: for whoever serves the model.
        find: the parts of the weight of a module, from its name and its shape; None where it is plain.
        skipped: names or patterns of modules that are not quantised, as `config.json` lists them.
        beside: endings of tensors that come with it, and have no bearing on weights.
    """

    title: str
    find: Find
    skipped: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()

    def parts(self, stored: Stored, name: str, shape: Shape) -> Parts | None:
        """What the tensor `name` of the model is made of; None: it is stored as itself.

        Raises:
            CortexError: MODEL_LOAD_FAILED naming the tensor that is missing or wrong.
        """
        module = name.removesuffix(".weight")
        if module == name or len(shape) != 2 or stored.is_plain(module) or matches(module, self.skipped):
            return None
        return self.find(stored, module, (shape[0], shape[1]))

    @property
    def note(self) -> str:
        """For whoever serves the model."""
        return (
            f"config.json: weights are {self.title}, and stay so in memory; "
            "what the scheme does to activations is not imitated"
        )


class Orders:
    """The orders of a checkpoint's columns, each once: projections of one input have the same, most often."""

    def __init__(self) -> None:
        self._known: dict[bytes, Order] = {}

    def find(self, stored: Stored, name: str, columns: int, group: int, *, is_said: bool) -> Order | None:
        """What the tensor of that name says; None: groups are neighbours, or there is no such tensor.

        Args:
            is_said: the config says that they are none: then it is there.

        Raises:
            CortexError: MODEL_LOAD_FAILED naming it: it is missing, or groups are not of that size.
        """
        if stored.find(name) is None and not (is_said and group < columns):
            return None
        tensor = stored.need(name, ["I32"], (columns,))
        with open_file(tensor.file) as file:
            file.seek(tensor.offset)
            data = file.read(tensor.size)
        numbers, groups = array("i", data), range(columns // group)
        if numbers == array("i", [number for number in groups for _ in range(group)]) or -1 in numbers:
            return None  # all are -1 where a writer left them out
        if Counter(numbers) != dict.fromkeys(groups, group):
            refuse(tensor.file, f"{name!r} does not put inputs into {len(groups)} groups of {group}")
        return self._known.setdefault(hashlib.sha256(data).digest(), Order(name, tensor))


def reshaped(tensor: Tensor, *shape: int) -> Tensor:
    """The same bytes in another shape."""
    assert math.prod(shape) == math.prod(tensor.shape)
    return Tensor(tensor.file, tensor.dtype, shape, tensor.offset, tensor.size)


def matches(module: str, patterns: Iterable[str]) -> bool:
    """Whether one of `patterns` means `module`: its name or a part of it, at dots; one with `*`; or, behind
    `re:`, a regular expression."""
    for pattern in patterns:
        if pattern.startswith("re:"):
            if re.match(pattern.removeprefix("re:"), module):
                return True
        elif fnmatchcase(module, pattern) or f".{pattern}." in f".{module}.":
            return True
    return False


def group_format(kind: str, group: int, columns: int) -> str | None:
    """The format of a kind whose blocks divide groups of so many columns; None where there is none.

    Args:
        group: columns that have one scale; all of them where a row has one.
    """
    sizes = [form.elements for name, form in FORMATS.items() if re.fullmatch(rf"{kind}_\d+", name)]
    largest = sorted((size for size in sizes if group % size == 0), reverse=True)
    if group == columns:  # any will do: the one that leaves most ranks to choose from
        largest.sort(key=lambda size: columns % (size * RANKS) != 0)
    return f"{kind}_{largest[0]}" if largest else None


def strings(path: Path, key: str, value: Any, within: str = "quantization_config") -> tuple[str, ...]:
    """A list of names and patterns that stands `within` the file at `path`; None is an empty one."""
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        refuse(path, f"{within}.{key} is no list of names")
    for pattern in value:
        if pattern.startswith("re:") and not _is_quick(pattern.removeprefix("re:")):
            refuse(path, f"{within}.{key}: {pattern} is no regular expression, or may take for ever")
    return tuple(value)


def _is_quick(pattern: str) -> bool:
    """Whether a regular expression is one, and whoever wrote it cannot make us wait for it."""
    try:
        re.compile(pattern)
    except re.error:
        return False
    plain = re.sub(r"\(\?[:!=]|\(\?<[!=]", "(", pattern.replace("\\?", ""))
    groups = sum("|" in part for part in re.split(r"[()]", plain))  # each of which multiplies the ways to try
    return (
        len(re.findall(r"[*+{]", plain)) <= MOST_REPEATS
        and plain.count("?") + groups <= MOST_CHOICES
        and plain.count("|") < MOST_ALTERNATIVES
        and not re.search(r"\)[*+{]", plain)
    )


def only(path: Path, given: Mapping[str, Any], key: str, *allowed: Any) -> Any:
    """The value of a key, which has to be one of `allowed`; the first one where it is left out."""
    value = given.get(key)
    if value is None:
        return allowed[0]
    for each in allowed:
        if type(each) is type(value) and each == value:
            return each
    known = ", ".join(str(each) for each in allowed if each is not None)
    refuse(path, f"quantization_config.{key} {value!r} is not supported; there are {known}")
