"""How a kernel begins that is launched while the one before it still runs.

On cards of capability 9.0 and later a kernel's programs can be on their multiprocessors before those of the
one before it have ended (programmatic dependent launch): what a launch takes is then hidden, and one kernel
follows another without a gap. Such a launch waits for nothing but what the kernel itself waits for. So every
kernel of ours calls `wait_for_previous` first, in all of its programs, before it reads or writes anything;
then, by induction along a stream or a graph,

* a kernel touches memory only when all that come before it are complete, and what they wrote is seen;
* it is complete only after them, so that whatever waits for it (a kernel of torch's or NCCL's, a copy, an
  event, a node of a graph) waits for them, too.

It lets the next one begin only after its own wait: never are there more than two of them at once.

What it may do before that is `ask_for` memory, of which it knows the addresses by its arguments alone: so
weights are on their way to the cache while the kernel before it ends, when memory has little else to do.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from triton.language import constexpr
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


def launched_ahead(_semantic: Any = None) -> constexpr:
    """Whether the kernel that is compiled will be launched so; one that is interpreted is not."""
    return constexpr(_semantic is not None and _semantic.builder.options.launch_pdl)


launched_ahead.__triton_builtin__ = True  # Triton says for what it compiles


@triton.jit
def wait_for_previous():
    """Wait for all that the device was given before, then let the next kernel begin its own wait."""
    if launched_ahead():
        gdc_wait()
        gdc_launch_dependents()


@triton.jit
def ask_for(at):  # [n] pointers
    """Ask for the lines of a cache in which these are, one of each thread.

    They go to the cache that all multiprocessors share, and that sees what anyone writes: nothing is read,
    and nothing is changed, so that it makes no difference whether something before it writes there.
    """
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.b32 $0, 0;", "=r,l", [at.to(tl.int64)], tl.int32, is_pure=False, pack=1
    )
