"""Who may import whom (the rooms of the house), and that torch stays where it belongs."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAY_IMPORT = {"ipc": set(), "workers": {"ipc"}, "neuron": {"ipc", "workers.checkpoints"}, "gateway": {"ipc"}}
TORCH_FREE = "workers/checkpoints"
SOURCES = [path for room in MAY_IMPORT for path in sorted((ROOT / room).rglob("*.py"))]


def imported_by(path: Path) -> set[str]:
    """The top-level packages that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relative to itself"
            names.add(node.module)
    return names


def rooms_of(names: set[str]) -> set[str]:
    """Of modules, as far as a rule tells them apart."""
    parts = (name.split(".") for name in names)
    return {".".join(part[: 2 if part[:2] == ["workers", "checkpoints"] else 1]) for part in parts}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_room_imports_only_what_it_may(path):
    room = path.relative_to(ROOT).parts[0]
    ours = MAY_IMPORT.keys() | {"tests", "benchmarks", "tools", "workers.checkpoints"}
    own = {room, "workers.checkpoints"} if room == "workers" else {room}
    if str(path.relative_to(ROOT)).startswith(TORCH_FREE):
        own = {"workers.checkpoints"}
    assert (rooms_of(imported_by(path)) & ours) - own <= MAY_IMPORT[room]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_only_workers_import_torch(path):
    name = str(path.relative_to(ROOT))
    if not name.startswith("workers") or name.startswith(TORCH_FREE):
        assert not rooms_of(imported_by(path)) & {"torch", "transformers", "triton"}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_is_pickled(path):
    assert not rooms_of(imported_by(path)) & {
        "pickle",
        "cloudpickle",
        "dill",
        "marshal",
        "shelve",
        "multiprocessing",
    }


@pytest.mark.parametrize(
    "module",
    [
        "neuron.daemon",
        "neuron.cli",
        "gateway.http.application",
        "gateway.commands.cli",
        "workers.process.rank",
        "workers.process.simulated",
    ],
)
def test_what_must_start_fast_or_without_torch_does_not_import_it(module):
    code = f"import {module}, sys; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)
