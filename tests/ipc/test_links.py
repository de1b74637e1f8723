"""Links that are cut, stall and heal: every request ends exactly once, and nobody dies of it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SECONDS = float(os.environ.get("CORTEX_STRESS_SECONDS", "5"))


@pytest.mark.parametrize("seed", [int(os.environ.get("CORTEX_STRESS_SEED", "1"))])
def test_every_request_ends_exactly_once_however_the_links_break(seed):
    """`CORTEX_STRESS_SECONDS=600 CORTEX_STRESS_SEED=7 pytest tests/ipc/test_links.py` is the long form."""
    command = [sys.executable, "-m", "tests.ipc.links", str(SECONDS), str(seed)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=SECONDS + 90)
    assert done.returncode == 0, done.stderr[-2000:]
    seen = json.loads(done.stdout)
    assert (seen["faults"], seen["late"], seen["left"]) == ([], 0, 0)
    assert (
        min(seen["links"].get("cut", 0), seen["lost"], seen["ends"]["Finished"], seen["ends"]["Failed"]) > 0
    )
