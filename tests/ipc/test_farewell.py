"""A process that ends does not look for garbage first."""

import subprocess
import sys


def test_all_that_is_there_is_out_of_sight_of_the_collector_at_the_end():
    code = (
        "import atexit, gc, os; from ipc.farewell import leave_modules_alone; "
        "atexit.register(lambda: os._exit(not gc.get_freeze_count())); "  # the last one to be called
        "leave_modules_alone()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=150)
