"""One system, whose model says what each client's session needs."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.clients.recorder import Recorder, recording
from tests.end_to_end.harness import Cortex
from tests.scripted import ScriptedModel, call

HERE = Path(__file__).parent
MODULES = HERE / "node_modules"
PATIENCE = 180.0  # seconds that a whole session may take, on a busy machine
BEFORE, AFTER = "shape: round\ncolour: red\n", "shape: round\ncolour: blue\n"
DONE = "Done: the colour is blue now."
THOUGHT = "<think>\nThe file first.\n</think>\n\n"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if "CORTEX_CLIENTS" not in os.environ:
        skip = pytest.mark.skip(reason="make test-clients installs the clients")
        for item in items:
            if item.nodeid.startswith("tests/clients/"):
                item.add_marker(skip)


def session(model: ScriptedModel, who: str, first: str, second: str) -> None:
    """A client reads the file, edits it, and is done."""
    model.answer(f"{THOUGHT}I read the file.{first}", when=f"{who} and calls == 0")
    model.answer(f"Now I edit it.\n{second}", when=f"{who} and calls == 1")


@pytest.fixture(scope="session")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that agents work in, where the script says absolute paths."""
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="session")
def system(tmp_path_factory: pytest.TempPathFactory, work: Path) -> Iterator[Cortex]:
    model, notes, change = ScriptedModel(), str(work / "notes.txt"), ("colour: red", "colour: blue")
    replaced = {"oldString": change[0], "newString": change[1]}
    patch = f"*** Begin Patch\n*** Update File: notes.txt\n@@\n-{change[0]}\n+{change[1]}\n*** End Patch\n"
    sessions = {
        "edit_file": (
            call("read_file", path="notes.txt"),
            call("edit_file", path="notes.txt", old=change[0], new=change[1]),
        ),
        "Edit": (  # Claude Code
            call("Read", file_path=notes),
            call("Edit", file_path=notes, old_string=change[0], new_string=change[1]),
        ),
        "edit": (call("read", filePath=notes), call("edit", filePath=notes, **replaced)),  # OpenCode
        "apply_patch": (call("exec_command", cmd="cat notes.txt"), call("apply_patch", input=patch)),  # Codex
        "exec_command": (  # Codex, where it does not know the model
            call("exec_command", cmd="cat notes.txt"),
            call("exec_command", cmd=f"sed -i 's/{change[0]}/{change[1]}/' notes.txt"),
        ),
    }
    both = call("Read", file_path=notes) + "\n" + call("Bash", command="ls", description="List files")
    helper = call("Agent", description="Paint", prompt="Paint it.", subagent_type="general-purpose")
    model.answer(f"Two at once.\n{both}", when="'DELEGATE' in messages | tojson and calls == 0")
    model.answer(f"A helper for it.\n{helper}", when="'DELEGATE' in messages | tojson and calls == 1")
    for tool, (first, _) in sessions.items():
        thought = " ".join(map(str, range(1500)))  # seconds
        when = f"'{tool}' in names and 'AT LENGTH' in messages | tojson and calls == 0"
        model.answer(f"<think>\n{thought}\n</think>\n\nI read the file.\n{first}", when=when)
    for tool, (first, second) in sessions.items():
        session(model, f"'{tool}' in names", first, second)
    model.answer(DONE, when="calls == 2")
    model.answer("A colour made blue")  # agents ask for titles, too
    folder = tmp_path_factory.mktemp("clients")
    path = str(model.write(folder / "scripted"))
    aliases = ("--alias", "claude-*=scripted", "--alias", "gpt-*=scripted")
    with Cortex(folder, "--model", path, *aliases) as system:
        yield system


@pytest.fixture
def recorder(system: Cortex) -> Iterator[Recorder]:
    """Between client and system; all that went through it went well, once the test is over."""
    with recording(system.base) as recorder:
        yield recorder
        recorder.check()


@pytest.fixture
def run(recorder: Recorder, work: Path, tmp_path: Path) -> Callable[..., str]:
    """Runs a program in the folder of notes, and returns what it prints."""

    def run(*command: str | Path, **variables: str) -> str:
        (work / "notes.txt").write_text(BEFORE)
        nowhere = "http://127.0.0.1:9"  # whoever calls home gets no answer
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(tmp_path),
            "TERM": "dumb",
            "CORTEX_URL": recorder.base,
            "HTTPS_PROXY": nowhere,
            "https_proxy": nowhere,
            "NO_PROXY": "127.0.0.1,localhost",
        }
        done = subprocess.run(
            command,
            cwd=work,
            env=environment | variables,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        assert (work / "notes.txt").read_text() == AFTER, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done.stdout

    return run
