"""Classes of tests that stand for one of ours: they cannot fall behind it unseen.

A double that lacks what its original has since fails somewhere inside the product, where the failure may be
caught, logged, and waited upon for ever. So a double derives from its original, and overrides what a test
plays; or where it has nothing of it, it says what it stands for. Either is checked as soon as it is imported.
"""

from __future__ import annotations

import dis
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T", bound=type)

_IN_ORDER = inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD


def stands_for(*originals: type) -> Callable[[T], T]:
    """A decorator of a class that is given where `originals` (classes, or protocols) are expected.

    Raises:
        TypeError: it lacks what one of them offers, or takes other arguments: what, by its name.
    """

    def check(double: T) -> T:
        faults = [fault for original in originals for fault in _faults(double, original)]
        if faults:
            raise TypeError(f"{double.__qualname__}: " + "; ".join(faults))
        return double

    return check


def _faults(double: type, original: type) -> list[str]:
    theirs = f"{original.__module__}.{original.__qualname__}"
    faults = []
    if original not in double.__mro__:  # else it has them
        missing = sorted(offered(original) - _names(double))
        faults += [f"{name} is missing, which {theirs} has" for name in missing]
    for name in sorted(offered(original)):
        ours, its = (inspect.getattr_static(each, name, None) for each in (double, original))
        if ours is not its and inspect.isfunction(ours) and inspect.isfunction(its):
            if not _takes(ours, its):
                faults.append(
                    f"{name}{inspect.signature(ours)} does not take what {theirs}.{name} does: "
                    f"{inspect.signature(its)}"
                )
            if inspect.iscoroutinefunction(ours) != inspect.iscoroutinefunction(its):
                faults.append(f"of {name} and {theirs}.{name} one is a coroutine")
    return faults


def offered(original: type) -> set[str]:
    """The public names of what it has: methods, properties, fields, and what its `__init__` gives it."""
    return {name for name in _names(original, ("__init__",)) if not name.startswith("_")}


def _names(cls: type, setting: tuple[str, ...] = ()) -> set[str]:
    """Names in a class, and those that its methods set; only those `setting`, where these are named."""
    names: set[str] = set()
    for each in cls.__mro__:
        if each is object or each.__module__ == "typing":
            continue
        names |= {*vars(each), *vars(each).get("__annotations__", ())}
        for name, value in vars(each).items():
            if inspect.isfunction(value) and (name in setting or not setting):
                names |= {step.argval for step in dis.get_instructions(value) if step.opname == "STORE_ATTR"}
    return names


def _takes(ours: Callable[..., Any], its: Callable[..., Any]) -> bool:
    """Whether `ours` can be called as `its` can: in order or by name, with all or only with what must be."""
    given = list(inspect.signature(its).parameters.values())[1:]
    given = [each for each in given if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)]
    for some in (given, [each for each in given if each.default is each.empty]):
        for in_order in (_IN_ORDER, _IN_ORDER[:1]):
            first = [each.name for each in some if each.kind in in_order]
            named = {each.name: each for each in some if each.kind not in in_order}
            try:
                inspect.signature(ours).bind(None, *first, **named)
            except TypeError:
                return False
    return True
