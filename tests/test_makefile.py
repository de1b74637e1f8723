"""What `make` says and does before it takes gigabytes from the network."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OF_MAKE = ("MAKEFLAGS", "ARGS", "PYTHON", "TORCH")  # from the `make` that runs these tests
OTHERWISE = {name: value for name, value in os.environ.items() if name not in OF_MAKE}

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")


@pytest.fixture
def make(tmp_path):
    """Runs `make` with a Python whose virtual environments only note what they are told."""
    told = tmp_path / "told"
    told.touch()
    python = tmp_path / "python"
    python.write_text(
        "#!/bin/sh\n"
        'case "$*" in "-m venv"*) mkdir -p "$3/bin"; touch "$3/bin/pip"; cp "$0" "$3/bin/python";; esac\n'
        f'case "$*" in "-m pip"*) echo "$@" >> {told};; esac\n'
    )
    python.chmod(0o755)
    for name in (
        "Makefile",
        "pyproject.toml",
        "setup.cfg",
        "constraints.txt",
        "workers/kernels/blocks.c",
        "workers/weights/quantise.c",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)

    def run(*arguments):
        ended = subprocess.run(
            ["make", f"PYTHON={python}", *arguments, ".venv/installed-run"],
            cwd=tmp_path,
            env=OTHERWISE,
            capture_output=True,
            text=True,
            timeout=150,
        )
        return ended, told.read_text().splitlines()

    return run


def test_it_says_how_much_it_takes_before_it_begins_and_hides_nothing(make):
    ended, [install] = make()
    assert "4.9 GB" in ended.stdout
    assert ("make TORCH=cpu" in ended.stdout) != os.path.exists("/dev/nvidiactl")
    assert install.endswith("-e .[neuron]")
    assert "--quiet" not in install


def test_the_smaller_build_comes_from_its_own_index(make):
    ended, [torch, install] = make("TORCH=cpu")
    assert "1.3 GB" in ended.stdout
    assert "--no-deps --index-url https://download.pytorch.org/whl/cpu torch" in torch
    assert "--index-url" not in install


def test_another_build_is_refused_before_anything_is_installed(make):
    ended, told = make("TORCH=rocm")
    assert ended.returncode != 0
    assert "TORCH=rocm" in ended.stderr
    assert told == []


def test_clients_need_npm_and_that_is_said_before_anything_is_installed(tmp_path):
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "tests" / "clients").mkdir(parents=True)
    (tmp_path / "tests" / "clients" / "package-lock.json").touch()
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "sh").symlink_to(shutil.which("sh"))
    ended = subprocess.run(
        [shutil.which("make"), "tests/clients/node_modules/.package-lock.json"],
        cwd=tmp_path,
        env={"PATH": str(tmp_path / "bin"), "MAKEFLAGS": ""},
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert ended.returncode != 0
    assert "needs Node 20 or newer, with npm" in ended.stderr


@pytest.mark.parametrize(
    ("results", "passes"),
    [([0], True), ([1, 0], True), ([1, 1], False), ([1, 5], False), ([2], False), ([3], False)],
)
def test_what_fails_beside_others_runs_once_more_alone_and_what_stops_the_run_does_not(
    tmp_path, results, passes
):
    (tmp_path / "results").write_text("".join(f"{result}\n" for result in results))
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    lines = ["#!/bin/sh", 'echo "$@" >> told', "exit $(sed -n $(wc -l < told)p results)"]
    python.write_text("".join(f"{line}\n" for line in lines))
    python.chmod(0o755)
    (python.parent / "pip").touch()
    shutil.copy(ROOT / "Makefile", tmp_path)
    command = ["make", "--silent", "--assume-old=.venv/installed-test", "test", "ARGS=-k 'rings or doors'"]
    ended = subprocess.run(command, cwd=tmp_path, env=OTHERWISE, capture_output=True, text=True, timeout=150)
    assert (ended.returncode == 0) == passes
    first, *again = (tmp_path / "told").read_text().splitlines()
    assert "-k rings or doors" in first
    assert "--last-failed" not in first
    assert len(again) == len(results) - 1
    assert all(line.startswith(first) and "-n 0" in line and "--last-failed" in line for line in again)
    assert ended.stdout == ("What failed runs again, alone.\n" if again else "")
