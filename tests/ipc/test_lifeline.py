"""A child ends with its parent, in whatever way the parent ends."""

import os
import pathlib
import select
import signal
import subprocess

CHILD = """
import os, sys, time
from ipc.lifeline import die_with_parent
die_with_parent(int(sys.argv[1]))
print(os.getpid(), flush=True)
time.sleep(60)
"""

PARENT = f"""
import os, subprocess, time
subprocess.Popen([sys.executable, "-c", {CHILD!r}, str(os.getpid())])
time.sleep(60)
"""


def ended(pid, seconds):
    """Whether a process that is not our child ends within `seconds`."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([descriptor], [], [], seconds)[0])
    finally:
        os.close(descriptor)


def test_a_child_dies_when_its_parent_is_killed(spawn):
    parent = spawn(PARENT, stdout=subprocess.PIPE)
    child = int(parent.stdout.readline())
    assert not ended(child, 0.05)
    parent.send_signal(signal.SIGKILL)
    assert ended(child, 20)


STRANGER = """
import os, subprocess, time
pid = str(os.getpid())
subprocess.Popen([sys.executable, "-m", "ipc.lifeline", pid, "http.server", "--bind", "127.0.0.1", "0"])
time.sleep(60)
"""


def test_a_module_that_knows_nothing_of_it_can_be_started_on_a_lifeline(spawn):
    parent = spawn(STRANGER, stdout=subprocess.PIPE, env=os.environ | {"PYTHONUNBUFFERED": "1"})
    assert parent.stdout.readline().startswith("Serving HTTP")
    children = pathlib.Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
    parent.send_signal(signal.SIGKILL)
    assert [ended(int(child), 20) for child in children] == [True]


def test_a_child_whose_parent_is_already_gone_leaves_at_once(spawn):
    code = "from ipc.lifeline import die_with_parent\ndie_with_parent(argv[0])\nprint('still here')"
    child = spawn(code, 1, stdout=subprocess.PIPE)
    assert child.communicate(timeout=150)[0] == ""
    assert child.returncode == 1
