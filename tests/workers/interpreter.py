"""Triton's interpreter, beside a numpy that no longer takes an array of one element for a number."""

from __future__ import annotations

from dataclasses import replace
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
    """Leave out what takes most of the time, and is no part of a kernel: replacing Triton's language by what
    interprets it anew for each function that is called, and looking at every sum of integers for an overflow.
    The process is good for nothing else from then on.
    """
    from triton.runtime import interpreter

    patch, done = interpreter._patch_lang, set()
    scope = type("Kept", (), {"restore": lambda self: None})()

    def patched(function: FunctionType) -> object:
        languages = interpreter.tl, interpreter.tl.core
        names = frozenset(
            value.__name__
            for value in function.__globals__.values()
            if isinstance(value, ModuleType) and value in languages
        )
        if not names <= done:
            done.update(names)
            patch(function)
        return scope

    interpreter._patch_lang = patched
    builder = interpreter.interpreter_builder
    builder.options = replace(builder.options, sanitize_overflow=False)
