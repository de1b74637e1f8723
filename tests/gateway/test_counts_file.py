"""Where there is no room for counts, metrics are missing, and no answer is."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

from tests.gateway.conftest import ROOT

COUNTED = """
import logging, resource, sys
from gateway.telemetry import metrics
from gateway.telemetry.history import counted

logging.basicConfig(stream=sys.stdout, format="%(message)s")
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
early = metrics.of("m", "early")
early.prompt_tokens.inc(3)
for i in range(1000):
    late = metrics.of("m", f"late{i}")
    late.prompt_tokens.inc(1)
    late.duration.observe(0.2)
    late.in_flight.inc(1)
early.prompt_tokens.inc(4)
late.prompt_tokens.inc(1)
print(late.prompt_tokens._value)
print(counted().prompt_tokens)
"""


def counts(folder: Path, largest: int) -> list[str]:
    """What a process says that has room for files of so many bytes, what it counted, and what others read."""
    environment = os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(folder), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", COUNTED, str(largest)]
    told = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert told.returncode == 0, told.stderr or signal.Signals(-told.returncode)
    return told.stdout.splitlines()


def test_a_file_that_cannot_grow_keeps_what_stands_in_it(tmp_path: Path) -> None:
    said, mine, of_all = counts(tmp_path, 100_000)
    assert re.fullmatch("no room for more counts .* reason=File too large", said)
    assert mine == "2.0"  # of one that stands in memory
    assert 7 < int(of_all) < 1007  # what was counted early, went on, and what there was room for


def test_a_process_without_room_counts_in_memory(tmp_path: Path) -> None:
    full = tmp_path / "full"
    full.mkdir()
    for folder in (full, tmp_path / "gone"):
        said, mine, of_all = counts(folder, 0)
        assert "no room for more counts" in said
        assert (mine, of_all) == ("2.0", "0")
    assert not list(full.iterdir())  # nobody trips over what has no beginning
