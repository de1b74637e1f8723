"""Whatever dies, stands still, is cut off or full: requests end once and truly, and nothing stays behind."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.chaos.faults import FAULTS

SEED = 4
EVERY = 1.5  # seconds
WHOLE = 60.0  # seconds, on a busy machine; by hand it is 10


def test_a_fleet_outlives_a_fault_of_each_kind(tmp_path: Path) -> None:
    # A little longer than the faults need: the number of turns is a quotient of floats.
    options = {
        "seconds": EVERY * len(FAULTS) + 0.1,
        "every": EVERY,
        "clients": 8,
        "seed": SEED,
        "whole": WHOLE,
    }
    words = [f"--{name}={value}" for name, value in options.items()]
    result = subprocess.run(
        [sys.executable, "-m", "tests.chaos", "--keep", str(tmp_path / "fleet"), *words],
        cwd=Path(__file__).parents[2],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert result.stdout, result.stderr
    told = json.loads(result.stdout)
    assert told["wrong"] == [], told
    assert sum(told["faults"].values()) == len(FAULTS)
    assert sum(count for end, count in told["ends"].items() if end.endswith(": whole")) > 0, told
    assert result.returncode == 0, result.stderr
