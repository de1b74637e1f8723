"""Who may import whom: the rooms of the house, their departments, and torch where it belongs."""

import ast
import graphlib
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
MAY_IMPORT = {
    "ipc": set(),
    "workers": {"ipc", "workers.checkpoints"},
    "workers.checkpoints": {"ipc"},
    "neuron": {"ipc", "workers.checkpoints"},
    "gateway": {"ipc"},
}
OURS = MAY_IMPORT.keys() | {"tests", "benchmarks", "tools"}
HEAVY = {"torch", "transformers", "triton"}
PICKLES = {"pickle", "cloudpickle", "dill", "marshal", "shelve", "multiprocessing"}


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {name_of(path): path for room in MAY_IMPORT for path in (ROOT / room).rglob("*.py")}


class Contents(NamedTuple):
    imports: list[ast.Import | ast.ImportFrom]
    defined: set[str]  # names at its top, and all that are assigned to anywhere


@cache
def contents(path: Path) -> Contents:
    """What is looked for in a file. Its tree does not stay: those of all files are millions of objects."""
    imports, defined = [], set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import | ast.ImportFrom):
            imports.append(node)
            defined.update((alias.asname or alias.name).partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            defined.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            defined.add(node.id)
    return Contents(imports, defined)


@cache
def imports(module: str) -> frozenset[str]:
    """What a module imports anywhere in it, for type checkers included: modules where they are ours."""
    names = set()
    for node in contents(SOURCES[module]).imports:
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        else:
            assert node.level == 0, f"{module}:{node.lineno} imports relative to itself"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                names.add(whole if whole in SOURCES else node.module)
    return frozenset(names - {module})


def room_of(module: str) -> str:
    parts = module.split(".")
    return ".".join(parts[:2] if parts[:2] == ["workers", "checkpoints"] else parts[:1])


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Names that lead back to themselves; none where there is no circle."""
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return []


def test_a_room_imports_only_what_it_may():
    wrong = [
        f"{module} imports {name}"
        for module in SOURCES
        for name in imports(module)
        if room_of(name) in OURS
        and room_of(name) != room_of(module)
        and room_of(name) not in MAY_IMPORT[room_of(module)]
    ]
    assert not wrong


def test_only_workers_beside_their_checkpoints_import_torch():
    users = {module for module in SOURCES if {room_of(name) for name in imports(module)} & HEAVY}
    assert {room_of(module) for module in users} == {"workers"}


def test_what_is_imported_from_a_module_of_ours_is_there():
    missing = []
    for path in (path for room in OURS for path in (ROOT / room.replace(".", "/")).rglob("*.py")):
        for node in contents(path).imports:
            if isinstance(node, ast.ImportFrom) and node.module in SOURCES:
                missing += [
                    f"{path.relative_to(ROOT)} imports {alias.name} from {node.module}"
                    for alias in node.names
                    if f"{node.module}.{alias.name}" not in SOURCES
                    and alias.name not in contents(SOURCES[node.module]).defined
                ]
    assert not sorted(set(missing))


def test_nothing_is_pickled():
    assert not [module for module in SOURCES if {room_of(name) for name in imports(module)} & PICKLES]


def department_of(module: str) -> str:
    """The folder inside a room that holds it; a file that stands in the room itself is one of its own."""
    parts = module.split(".")
    return ".".join(parts[:2])


def test_no_module_imports_itself_by_way_of_others():
    assert not circle({module: set(imports(module)) & SOURCES.keys() for module in SOURCES})


def test_no_department_imports_itself_by_way_of_others():
    graph: dict[str, set[str]] = {}
    for module in SOURCES:
        names = {department_of(name) for name in imports(module) & SOURCES.keys()}
        graph.setdefault(department_of(module), set()).update(names - {department_of(module)})
    assert not circle(graph)


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
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=150)


@pytest.mark.parametrize(
    ("module", "unneeded"),
    [
        ("workers.__main__", {"asyncio", "yaml", "tomllib"}),  # a simulated one, and each before its orders
        ("neuron.pulling.child", {"asyncio", "yaml", "tomllib"}),
    ],
)
def test_what_is_started_often_imports_what_takes_long_only_where_it_is_used(module, unneeded):
    code = f"import {module}, sys; sys.exit(', '.join({unneeded} & sys.modules.keys()) or 0)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=150)


def test_what_gunicorns_master_imports_leaves_the_metrics_to_their_directory():
    """It is looked for at the import of prometheus-client; gunicorn has its worker class before."""
    modules = "gateway.gunicorn_conf, gateway.http.connections"
    code = f"import {modules}, sys; sys.exit('prometheus_client' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=150)
