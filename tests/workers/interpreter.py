"""Triton's interpreter, beside a numpy that no longer takes an array of one element for a number."""

from __future__ import annotations


def take_arrays_for_numbers() -> None:
    """Have tensors of one element be numbers where a kernel counts with them; Triton 3.6 asks numpy to."""
    from triton.runtime import interpreter

    patch = interpreter._patch_lang_tensor

    def patched(tensor: type, *rest: object) -> None:
        patch(tensor, *rest)
        tensor.__index__ = lambda self: int(self.handle.data.item())

    interpreter._patch_lang_tensor = patched
