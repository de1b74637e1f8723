"""A worker whose warming up is over at once: for tests of what becomes of processes, not of what they hold.

    python -m tests.neuron.untorched --control-fd N --supervisor-pid N

It serves simulated models only. Importing torch takes seconds of a core, and such tests start many processes.
"""

from __future__ import annotations

import sys

from workers.__main__ import main
from workers.process import life

if __name__ == "__main__":
    life.warm_up = lambda device: None
    sys.exit(main())
