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
"""

from __future__ import annotations

from typing import Any

import triton
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
