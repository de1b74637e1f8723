"""What keeps an event loop's turns short in a process that has threads and large requests."""

from __future__ import annotations

import gc
import sys

SWITCH_SECONDS = 0.0005  # after which a thread that reads something large lets the event loop go on
GARBAGE = 10_000, 50, 1000  # new objects between two looks at the youngest, and how many of these go further


def stay_responsive() -> None:
    """Call it once all is imported that stays.

    Python's own 5 ms until a thread makes way, several times in one turn of the loop, are more than all else
    that happens there. By its own rules it also looks for garbage many times while a large request comes into
    being, 0.6 s in all, and walks through all modules now and then, 0.03 s each time.
    """
    sys.setswitchinterval(SWITCH_SECONDS)
    gc.set_threshold(*GARBAGE)
    gc.freeze()  # the modules stay: no look walks through them
    gc.enable()
