"""Triton's interpreter, beside a numpy that no longer takes an array of one element for a number."""

from __future__ import annotations

from types import FunctionType, ModuleType


def take_arrays_for_numbers() -> None:
    """Have tensors of one element be numbers where a kernel counts with them; Triton 3.6 asks numpy to."""
    from triton.runtime import interpreter

    patch = interpreter._patch_lang_tensor

    def patched(tensor: type, *rest: object) -> None:
        patch(tensor, *rest)
        tensor.__index__ = lambda self: int(self.handle.data.item())

    interpreter._patch_lang_tensor = patched


def patch_once() -> None:
    """Replace Triton's language by what interprets it once, and not for each function that a kernel calls:
    that is half of the time. The process is good for nothing else from then on.
    """
    from triton.runtime import interpreter

    patch, done = interpreter._patch_lang, set()
    scope = type("Kept", (), {"restore": lambda self: None})()

    def patched(function: FunctionType) -> object:
        names = frozenset(
            value.__name__ for value in function.__globals__.values() if isinstance(value, ModuleType)
        )
        if names not in done:
            done.add(names)
            patch(function)
        return scope

    interpreter._patch_lang = patched
