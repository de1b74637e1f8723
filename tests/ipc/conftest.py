"""Children: real processes at the other end of a ring, a page or a socket."""

import gc
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def spawn():
    """spawn(code, *handles, fds=()) runs Python `code` with `handles` (structs, numbers) in a list `argv`."""
    children = []

    def start(code, *handles, fds=(), **options):
        arguments = [msgspec.json.encode(handle).decode() for handle in handles]
        head = "import sys, msgspec; argv = [msgspec.json.decode(a) for a in sys.argv[1:]]\n"
        child = subprocess.Popen(
            [sys.executable, "-c", head + code, *arguments], pass_fds=fds, cwd=ROOT, text=True, **options
        )
        children.append(child)
        return child

    yield start
    for child in children:
        child.kill()
        child.wait(10)
        for pipe in (child.stdin, child.stdout, child.stderr):
            if pipe is not None:
                pipe.close()


@pytest.fixture
def no_descriptors_left():
    """The test gives back every descriptor that it opens."""
    gc.collect()  # what an earlier test left to the collector is not this one's
    before = set(os.listdir("/proc/self/fd"))
    yield
    assert set(os.listdir("/proc/self/fd")) <= before
