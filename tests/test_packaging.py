"""What an install holds: the packages and their data, and torch only where it is asked for."""

import configparser
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("gateway", "ipc", "neuron", "workers")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
    """The wheel of this tree, built from a copy so that the tree stays as it is."""
    copy, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("wheel")
    for room in ROOMS:
        shutil.copytree(ROOT / room, copy / room, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.cfg", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--wheel-dir", str(out), str(copy)], check=True, timeout=300)
    return zipfile.ZipFile(next(out.glob("*.whl")))


def metadata(wheel: zipfile.ZipFile, name: str) -> str:
    return wheel.read(next(path for path in wheel.namelist() if path.endswith(f".dist-info/{name}"))).decode()


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def names(requirements: list[str]) -> set[str]:
    return {re.match(r"[A-Za-z0-9-]+", requirement)[0] for requirement in requirements}


def test_the_rooms_and_nothing_else_are_packaged(wheel):
    packages = {path.partition("/")[0] for path in wheel.namelist()}
    assert {name for name in packages if "dist-info" not in name} == set(ROOMS)


def test_the_demo_model_travels_with_the_package(wheel):
    files = {path for path in wheel.namelist() if path.startswith("neuron/demo/")}
    for name in ("config.json", "model.safetensors", "tokenizer.json", "generation_config.json"):
        assert f"neuron/demo/{name}" in files
    assert sum(wheel.getinfo(path).file_size for path in files) <= 8_000_000


def test_the_page_travels_with_the_package(wheel):
    static = ROOT / "gateway" / "page" / "static"
    packed = {path: wheel.read(path) for path in wheel.namelist() if path.startswith("gateway/page/static/")}
    assert {path.rpartition("/")[2] for path in packed} == {"index.html", "page.css", "page.js"}
    assert all(packed[f"gateway/page/static/{file.name}"] == file.read_bytes() for file in static.iterdir())


def test_every_module_of_the_tree_is_in_the_wheel(wheel):
    tree = {str(path.relative_to(ROOT)) for room in ROOMS for path in (ROOT / room).rglob("*.py")}
    assert tree <= set(wheel.namelist())


def test_both_commands_are_installed(wheel):
    scripts = configparser.ConfigParser()
    scripts.read_string(metadata(wheel, "entry_points.txt"))
    assert dict(scripts["console_scripts"]) == {
        "cortex": "gateway.commands.cli:main",
        "neuron": "neuron.cli:main",
    }


def test_the_licence_is_the_gpl_whole(wheel):
    assert "License-Expression: GPL-3.0-only" in metadata(wheel, "METADATA")
    text = metadata(wheel, "licenses/LICENSE")
    assert "GNU GENERAL PUBLIC LICENSE" in text
    assert "END OF TERMS AND CONDITIONS" in text


def test_the_gateway_alone_needs_no_torch():
    plain = names(project()["dependencies"])
    assert not plain & {"torch", "transformers", "tokenizers", "safetensors", "numpy"}
    assert "torch" in names(project()["optional-dependencies"]["neuron"])


def test_what_is_tested_is_pinned():
    pins = dict(
        line.split("==")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if line and not line.startswith("#")
    )
    extras = project()["optional-dependencies"]
    direct = names(project()["dependencies"] + extras["neuron"] + extras["test"]) - {"cortex-serve"}
    assert direct <= pins.keys()
    assert pins["torch"] == "2.13.0"
