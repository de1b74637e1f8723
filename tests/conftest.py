"""What holds for all tests: none asserts a time, the property tests included, and none waits for ever."""

import gc
import importlib
import os
import shutil
import signal
from collections.abc import Generator
from contextlib import suppress
from functools import cache, partial
from pathlib import Path

# Several processes run tests; with a thread a core in every product they would wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import httpx._transports.default
import pytest
from hypothesis import settings
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling

from ipc import held_folder

gc.disable()  # until all is imported and collected: a million objects, none of which is garbage

settings.register_profile("no_clock", deadline=None)
settings.load_profile("no_clock")

# Each client, also that of one `httpx.get`, would read all certificates of this host, which takes 20 ms.
_transports = httpx._transports.default
_transports.create_ssl_context = cache(_transports.create_ssl_context)

# A shell that runs us in its background has Ctrl-C ignored, also by what we start, which is to take it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# For one test, its set-up or its end: far more than any needs beside a busy machine, so that only one meets
# it that waits for what does not come. It fails then, with where it stands, and the others go on.
BOUND_SECONDS = 300.0
AGAIN_SECONDS = 5.0  # after which it is told again: whoever caught it may wait on


def _too_long(*_: object) -> None:
    signal.setitimer(signal.ITIMER_REAL, AGAIN_SECONDS)
    pytest.fail(f"this takes more than {BOUND_SECONDS:g} s: it waits for something that does not come")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup() -> Generator[None, object, object]:
    """Bound it in time."""
    signal.signal(signal.SIGALRM, _too_long)
    signal.setitimer(signal.ITIMER_REAL, BOUND_SECONDS)
    try:
        return (yield)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)


pytest_runtest_call = pytest_runtest_teardown = pytest_runtest_setup


def pytest_configure(config: pytest.Config) -> None:
    """Make a folder for what one process finds out for all: those that run tests, and what they start."""
    if "CORTEX_TESTS" not in os.environ:
        folder = held_folder.make("tests")
        config.add_cleanup(partial(shutil.rmtree, folder))
        os.environ["CORTEX_TESTS"] = str(folder)


def pytest_sessionstart(session: pytest.Session) -> None:
    """Where several processes run all tests, begin with the files that are this one's to compile.

    Each imports all of them, in the same order: all would compile each, which takes longer than the imports.
    """
    count = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if count == 1 or [*map(Path, session.config.args)] != [Path("tests")]:
        return
    number = int(os.environ["PYTEST_XDIST_WORKER"].removeprefix("gw"))
    root = Path(__file__).parents[1]
    for path in sorted(root.glob("tests/**/test_*.py"))[number::count]:
        with suppress(Exception, pytest.skip.Exception):  # what fails is told where it is collected
            importlib.import_module(".".join(path.relative_to(root).with_suffix("").parts))


# Of the files that take longest. They begin first, so that no process ends with one while the other idles.
LONGEST = (
    "workers/test_model.py",
    "workers/test_interpreted.py",
    "neuron/test_tool_formats.py",
    "workers/test_mtp.py",
    "end_to_end/test_faults.py",
    "end_to_end/test_wire.py",
    "neuron/test_standby.py",
    "test_packaging.py",
    "neuron/test_faults.py",
    "end_to_end/test_scripted.py",
    "workers/test_exact.py",
    "workers/test_speculation.py",
    "workers/test_vision.py",
    "workers/test_equalities.py",
    "neuron/test_manager.py",
    "workers/test_memory.py",
    "workers/test_planes.py",
    "end_to_end/test_resume.py",
    "workers/test_parallel.py",
    "neuron/test_parked_models.py",
    "neuron/test_pulling.py",
    "chaos/test_chaos.py",
    "workers/test_grammar.py",
    "neuron/test_sharing.py",
    "test_gpu_benchmark.py",
    "workers/test_adapters.py",
)


# Of files that only talk to the system that all of them share (`end_to_end/conftest.py`). One process runs
# all of these, so that it is started once, and not by each process that gets one of them.
TOGETHER = (
    "end_to_end/test_wire.py",
    "end_to_end/test_anthropic.py",
    "end_to_end/test_bad_input.py",
    "end_to_end/test_cancel.py",
    "end_to_end/test_demo.py",
    "end_to_end/test_docs.py",
    "end_to_end/test_memory.py",
    "end_to_end/test_openai_sdk.py",
    "end_to_end/test_responses.py",
    "end_to_end/test_thinking.py",
)


class Scheduling(LoadFileScheduling):
    """Gives a process a file, or those that belong together."""

    def _split_scope(self, nodeid: str) -> str:
        file = super()._split_scope(nodeid)
        return TOGETHER[0] if file.removeprefix("tests/") in TOGETHER else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadFileScheduling | None:
    """Ours for `--dist loadfile`."""
    return Scheduling(config, log) if config.getvalue("dist") == "loadfile" else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first."""
    places = {Path(__file__).parent / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


def pytest_collection_finish() -> None:
    """Let collections pass by what stays to the end; tests that measure memory make many."""
    gc.freeze()
    gc.enable()
