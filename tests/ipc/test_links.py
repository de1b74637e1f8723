"""Links that are cut, stall and heal: every request ends exactly once, and nobody dies of it."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SECONDS = 5


def test_every_request_ends_exactly_once_however_the_links_break():
    """`python -m tests.ipc.links 600 7` is the long form."""
    command = [sys.executable, "-m", "tests.ipc.links", str(SECONDS), "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=SECONDS + 90)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    seen = json.loads(done.stdout)
    ends = seen["ends"]
    assert min(seen["links"].get("cut", 0), seen["lost"], ends.get("Finished", 0), ends.get("Failed", 0)) > 0
