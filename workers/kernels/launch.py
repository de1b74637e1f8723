"""Launches of a Triton kernel that take the host a few microseconds.

Triton looks at each argument of each launch, and at what the kernel's module holds, before it finds what it
compiled: 50 µs for a kernel with forty arguments (H200, Triton 3.6), which for a step that is no graph is
longer than the device needs. What it compiled can be called by itself; here it is found by as much of the
arguments as Triton compiles for.

Where the card has it, a kernel is launched before the one before it has ended: see `dependent_triton`.

The assembler gives threads as many registers as leave room for one more program, and then some kernels have a
few too little and keep them in memory. Which do, no rule says: it changes with card, format and the
assembler's version. So a kernel that spills is built with other limits, until none is (`without_spills`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from ipc.errors import Code, CortexError

ALIGNED = 16  # bytes, or a number's divisor, for which Triton compiles a kernel of its own
INT32 = 1 << 31
DEPENDENT = 90  # capability of cards, from which on launches may be dependent
MOST_REGISTERS = 255  # of a thread, that an instruction can name
WARPS_REGISTERS = 2048  # that a multiprocessor has for a thread of each of its warps, which take them by
REGISTER_UNIT = 8
MOST_WORDS = 500  # characters of what a compiler says

dependent = True  # whether they are where they may be; a benchmark compares
asks = True  # whether a product asks for weights before it waits, where they are


class Launcher:
    """Launches one kernel, which is a `triton.jit` function without keyword arguments or defaults, and calls
    `wait_for_previous` before it reads or writes anything.
    """

    def __init__(self, kernel: Any) -> None:
        self._kernel = kernel
        self._compiled: dict[tuple[object, ...], Any] = {}
        # as of each parameter: None, where its value makes no difference to what is compiled
        self._parameters = [
            None if each.do_not_specialize else each.is_constexpr for each in getattr(kernel, "params", ())
        ]

    def __call__(
        self,
        grid: tuple[int, int, int],
        *arguments: Any,
        num_warps: int,
        num_stages: int = 3,
        registers: int | None = None,
    ) -> None:
        """Launch it.

        Args:
            registers: of a thread, at most, unless some are spilt then. None: as the assembler sees fit.

        Raises:
            CortexError: MODEL_LOAD_FAILED, it cannot be built for this card.
        """
        options = {"num_warps": num_warps, "num_stages": num_stages}
        if not self._parameters:  # it is interpreted
            self._kernel[grid](*arguments, **options)
            return
        key = (num_warps, num_stages, registers, dependent, *map(_kind, self._parameters, arguments))
        compiled = self._compiled.get(key)
        if compiled is None:
            device = next(each.device for each in arguments if isinstance(each, Tensor))
            options["launch_pdl"] = dependent and capability_of(device) >= DEPENDENT
            build = partial(self._built, grid, arguments, options)
            compiled = self._compiled[key] = without_spills(build, registers, num_warps)
        compiled[grid](*arguments)

    def _built(
        self,
        grid: tuple[int, int, int],
        arguments: tuple[Any, ...],
        options: dict[str, Any],
        registers: int | None,
    ) -> Any:
        try:
            built = self._kernel.warmup(*arguments, grid=grid, **options, maxnreg=registers)
            built[grid]  # loads it onto the device: only then it knows what it spills
            return built
        except RuntimeError:  # of the device, which may have no memory for it
            raise
        except Exception as error:  # Triton's own, which show the source, or only where it was called
            name, reason = self._kernel.__name__, _reason(error)
            raise CortexError(Code.MODEL_LOAD_FAILED, f"{name} cannot be built here: {reason}") from error


def without_spills(build: Callable[[int | None], Any], registers: int | None, num_warps: int) -> Any:
    """A kernel as Triton compiled and loaded it, of which no register is spilt; the first one, though it
    spills some, where there is none, or where another cannot be built.

    Args:
        build: it, with so many registers a thread at most.
        registers: to begin with. None: as many as the assembler sees fit.
    """
    first = build(registers)
    if not first.n_spills:
        return first
    limits = dict.fromkeys((*_limits(first.n_regs, num_warps), first.n_regs - REGISTER_UNIT))
    with suppress(CortexError, RuntimeError):
        return next((built for built in map(build, limits) if not built.n_spills), first)
    return first


def _limits(registers: int, num_warps: int) -> Iterator[int]:
    """Of registers of a thread: as many as leave room for as many programs, then for one less, and so on."""
    units = WARPS_REGISTERS // num_warps // REGISTER_UNIT
    for programs in range(units // -(-registers // REGISTER_UNIT), 0, -1):
        yield min(units // programs * REGISTER_UNIT, MOST_REGISTERS)


@cache
def capability_of(device: torch.device) -> int:
    """Of a card, as NVIDIA counts them (86 for 8.6); 0 for what is none."""
    major, minor = torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0)
    return 10 * major + minor


def _reason(error: BaseException) -> str:
    """What a compiler says, on one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    words = " ".join((getattr(error, "error_message", None) or str(error)).split())
    return f"{type(error).__name__}: {words[:MOST_WORDS]}"


def _kind(is_constant: bool | None, argument: Any) -> object:
    """What Triton compiles a kernel for, of one argument."""
    if isinstance(argument, Tensor):
        return argument.dtype, argument.get_device(), argument.data_ptr() % ALIGNED == 0
    if is_constant:
        return argument
    if is_constant is None or isinstance(argument, float):
        return None
    return argument == 1, argument % ALIGNED == 0, argument < INT32
