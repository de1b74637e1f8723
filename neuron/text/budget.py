"""What the rendering of a chat template may take, counted before it is taken.

The clock alone does not help: one operation that Python does in a single go (comparing long lists, sorting,
dividing numbers of a million digits) looks at no clock, and holds up every other thread until it is done.
"""

from __future__ import annotations

import threading
import time
from math import inf
from typing import Any, NamedTuple

import jinja2
from jinja2.utils import Namespace

VIEWS = (type({}.keys()), type({}.values()), type({}.items()))
_SINGLE = frozenset((int, float, bool, type(None)))  # types of values that hold no others
_SEQUENCES = (list, tuple, set, *VIEWS)
VALUE = 8  # what a value in a list counts as, in characters
MAX_BITS = 4096  # of a number that is the result of a calculation
SHORT = 256  # characters; of texts up to here the loop around them takes note


class Bounds(NamedTuple):
    """What is bounded beside time."""

    text: int  # characters of any one text, a prompt among them, or that one operation looks at
    values: int  # in a list or an object that is read as a whole

    @property
    def work(self) -> int:
        """Characters that are read and written on the way to a prompt."""
        return 16 * self.text


MOST = Bounds(text=32 << 20, values=1 << 20)
QUICK = Bounds(text=128 << 10, values=8 << 10)  # where others wait: one operation takes some milliseconds
QUICK_SECONDS = 0.01  # the same


class OverBudget(jinja2.TemplateError):
    """A template took more than it may."""


class Budget:
    """What a rendering may still take: entered, it is that of this thread.

    Args:
        seconds: of this thread's processor time.
        given: the variables of the template.
        bounds: what is bounded beside time.
    """

    __slots__ = ("_outer", "bounds", "deadline", "given", "seconds", "work")

    def __init__(self, seconds: float, given: tuple[Any, ...] = (), bounds: Bounds = MOST) -> None:
        self.deadline, self.work = time.monotonic() + seconds, bounds.work
        self.seconds = time.thread_time() + seconds  # of this thread's, at which it ends
        self.given, self.bounds = given, bounds

    def __enter__(self) -> None:
        self._outer, here.budget = here.budget, self

    def __exit__(self, *error: object) -> None:
        here.budget = self._outer


class _Thread(threading.local):
    """What is a thread's own is dear to look at: an operation does so once."""

    budget = Budget(inf)  # while nothing is rendered
    budget.work = inf


here = _Thread()


def spend(characters: int) -> None:
    """Take note of text that is about to be read or written in one operation."""
    budget = here.budget
    if characters > budget.bounds.text:
        raise OverBudget(f"it reads or writes more than {budget.bounds.text:,} characters at once")
    budget.work -= characters
    if budget.work < 0:
        raise OverBudget(f"it reads and writes more than {budget.bounds.work:,} characters")


def tick(characters: int) -> None:
    """Called in each turn of a loop, which writes so many characters at most, but for long texts."""
    if characters:
        spend(characters)
    budget = here.budget
    if (now := time.monotonic()) <= budget.deadline:  # a look at this clock costs next to nothing
        return
    if (left := budget.seconds - time.thread_time()) <= 0:
        raise OverBudget("it takes too long")
    budget.deadline = now + left  # a template is not slow for what else the machine does


def weigh(*values: Any) -> tuple[int, int]:
    """How many characters there are in some values, and how many values; those inside of others included.

    One may hold another twice, and that one a third: there is a bound.
    """
    pending, characters, seen, most = list(values), 0, 0, here.budget.bounds.values
    while pending:
        value = pending.pop()
        seen += 1
        if isinstance(value, str):
            characters += len(value)
        elif type(value) in _SINGLE:
            continue
        elif isinstance(value, dict):
            pending += value.keys()
            pending += value.values()
        elif isinstance(value, _SEQUENCES):
            pending += value
        elif isinstance(value, Namespace):
            pending += value._Namespace__attrs.values()
        if seen + len(pending) > most:
            raise OverBudget(f"it reads a list or an object of more than {most:,} values")
    return characters + VALUE * seen, seen


def spend_on(*values: Any, times: int = 1) -> int:
    """Take note of values, each of which is read or written so many times. Returns how many there are."""
    weight, seen = weigh(*values)
    spend(weight * times)
    return seen


def size(value: Any) -> int:
    """What a text or a list counts as by itself; a number counts as itself."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, list | tuple):
        return VALUE * len(value)
    return value if isinstance(value, int) else 1


def check_key(value: Any) -> None:
    """See that a value is quickly looked up in an object: tuples in tuples can take for ever."""
    if isinstance(value, tuple):
        if any(isinstance(each, tuple) for each in value):
            raise OverBudget("it looks for a tuple of tuples in an object")
        spend_on(value)


def check_number(*numbers: int) -> None:
    """See that calculating with them is quick."""
    if any(number.bit_length() > MAX_BITS for number in numbers):
        raise OverBudget("a number in it is too large")
