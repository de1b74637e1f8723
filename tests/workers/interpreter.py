"""Triton's interpreter, beside a numpy that no longer takes an array of one element for a number."""

from __future__ import annotations

import gc
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
    interprets it anew for each function that is called, looking at every sum of integers for an overflow, and
    checking and naming the type of every tensor. The process is good for nothing else from then on.
    """
    from triton.runtime import interpreter

    gc.disable()  # what is made here is of use until it is thrown away
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
    types_once(interpreter)
    builder = interpreter.interpreter_builder
    builder.options = replace(builder.options, sanitize_overflow=False)


def types_once(interpreter: ModuleType) -> None:
    """Check each shape once, and name types only where somebody asks."""
    core, of_shapes = interpreter.tl.core, {}
    block, tensor, constexpr = core.block_type, core.tensor, core.constexpr
    make = block.__init__

    def new_type(self: object, element_ty: object, shape: object) -> None:
        sizes = tuple([size.value if isinstance(size, constexpr) else size for size in shape])
        if sizes not in of_shapes:
            make(self, element_ty, shape)
            shown = core.tuple([constexpr(size) for size in self.shape])
            of_shapes[sizes] = {
                "shape": self.shape,
                "numel": self.numel,
                "shown": (shown, constexpr(self.numel)),
            }
        self.__dict__.update(of_shapes[sizes], element_ty=element_ty)

    def of_same_shape(self: object, scalar_ty: object) -> object:
        other = object.__new__(block)
        other.__dict__.update(self.__dict__, element_ty=scalar_ty)
        return other

    def name(self: object) -> str:
        return f"<{self.shape}, {self.element_ty}>"

    scalar = core.tuple([]), constexpr(1)

    def new_tensor(self: object, handle: object, type: object) -> None:
        self.handle, self.type, self.dtype = handle, type, type.scalar
        self.shape, self.numel = type.shown if isinstance(type, block) else scalar

    block.__init__, block.with_element_ty, tensor.__init__ = new_type, of_same_shape, new_tensor
    block.name = property(name, lambda self, name: None)
    find, found = interpreter._get_np_dtype, {}

    def of_numpy(tt_dtype: object) -> object:
        name = (tt_dtype.element_ty if isinstance(tt_dtype, block) else tt_dtype).name
        if name not in found:
            found[name] = find(tt_dtype)
        return found[name]

    interpreter._get_np_dtype = of_numpy
