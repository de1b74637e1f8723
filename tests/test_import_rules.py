"""Who may import whom (the rooms of the house), and that torch stays where it belongs."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAY_IMPORT = {"ipc": set(), "workers": {"ipc"}, "neuron": {"ipc"}, "gateway": {"ipc"}}
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
    return {name.partition(".")[0] for name in names}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_room_imports_only_what_it_may(path):
    room = path.relative_to(ROOT).parts[0]
    rooms = imported_by(path) & (MAY_IMPORT.keys() | {"tests", "benchmarks"})
    assert rooms - {room} <= MAY_IMPORT[room]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_only_workers_import_torch(path):
    if path.relative_to(ROOT).parts[0] != "workers":
        assert not imported_by(path) & {"torch", "transformers", "triton"}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_is_pickled(path):
    assert not imported_by(path) & {"pickle", "cloudpickle", "dill", "marshal", "shelve", "multiprocessing"}


@pytest.mark.parametrize(
    "module",
    [
        "neuron.daemon",
        "neuron.cli",
        "gateway.application",
        "gateway.cli",
        "workers.rank",
        "workers.simulated",
    ],
)
def test_what_must_start_fast_or_without_torch_does_not_import_it(module):
    code = f"import {module}, sys; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)
