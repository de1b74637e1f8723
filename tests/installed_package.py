"""A package's life on a host: `python installed_package.py PACKAGE SITE_PACKAGES`, as root, in a layer.

A .deb is installed, set up with what is in SITE_PACKAGES in place of PyPI's, started as its units say,
reloaded, ended, upgraded and removed; an .rpm, which holds the same, is not set up and started once more.
What was seen is the last line, as JSON.
"""

from __future__ import annotations

import configparser
import fcntl
import json
import os
import pwd
import shlex
import signal
import socket
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

PATIENCE = 60.0  # seconds
PLACE = Path("/opt/cortex")
OWNED = ("neuron/neuron.yaml", "cortex/cortex.yaml", "cortex/models.yaml", "neuron/keys", "cortex/keys")
SIOCSIFFLAGS, IFF_UP = 0x8914, 1


def main(package: str, site: str) -> None:
    told = rpm(package) if package.endswith(".rpm") else deb(package, site)
    print(json.dumps(told))


def rpm(package: str) -> dict[str, Any]:
    """What was seen of an .rpm."""
    told: dict[str, Any] = {}
    ours = ("rpm", "--nosignature", "--nodeps")
    run(*ours, "--install", package)
    assert not PLACE.exists(), "an install fetches nothing"
    told["owners"] = {f"/etc/{name}": owner(Path("/etc", name)) for name in OWNED}
    told["users"] = [name for name in ("neuron", "cortex") if pwd.getpwnam(name).pw_shell.endswith("nologin")]
    config = Path("/etc/neuron/neuron.yaml")
    config.write_text("# changed\n")
    (PLACE / "bin").mkdir(parents=True)
    run(*ours, "--upgrade", "--replacepkgs", package)
    told["kept by the upgrade"] = config.read_text() == "# changed\n" and (PLACE / "bin").exists()
    run("rpm", "--erase", "cortex-serve")
    told["left by a removal"] = left()
    told["kept by the removal"] = config.with_suffix(".yaml.rpmsave").read_text() == "# changed\n"
    return told


def deb(package: str, site: str) -> dict[str, Any]:
    """What was seen of a .deb."""
    told: dict[str, Any] = {}
    Path("/root").chmod(0o755)  # Python may live there, and services run as others
    loopback_up()
    run("dpkg", "--force-depends", "--install", package)
    assert not PLACE.exists(), "an install fetches nothing"
    told["owners"] = {f"/etc/{name}": owner(Path("/etc", name)) for name in OWNED}
    run("cortex-setup", "neuron")
    borrow(site)
    told["version"] = run(str(PLACE / "bin/cortex"), "--version").strip()
    publics = {name: keys(name) for name in ("neuron", "cortex")}
    config = Path("/etc/neuron/neuron.yaml")
    ours = {
        "key_file": "/etc/neuron/keys/cortex.secret",
        "allowed_keys": [publics["cortex"]],
        "standby": False,
    }
    config.write_text(json.dumps(ours))
    neuron = {"name": "local", "endpoint": "tcp://127.0.0.1:13131", "public_key": publics["neuron"]}
    gateway = {"key_file": "/etc/cortex/keys/cortex.secret"}
    Path("/etc/cortex/cortex.yaml").write_text(json.dumps({"gateway": gateway, "neurons": [neuron]}))
    units = [Unit("neuron"), Unit("cortex")]
    told["ready"] = [unit.name for unit in units if unit.start()]
    told["models"] = models()
    told["reloaded"] = [unit.name for unit in units if unit.reload()]
    told["exit codes"] = [unit.end() for unit in reversed(units)]
    run("dpkg", "--force-depends", "--install", package)
    told["kept by the upgrade"] = "key_file" in config.read_text() and (PLACE / "bin/cortex").exists()
    run("dpkg", "--remove", "cortex-serve")
    told["left by a removal"] = left()
    run("dpkg", "--purge", "cortex-serve")
    told["left by a purge"] = left()
    return told


class Unit:
    """A service, run as systemd would: as its user, from its folder, with a socket to say READY=1."""

    def __init__(self, name: str) -> None:
        self.name = name
        parser = configparser.ConfigParser(strict=False, interpolation=None)
        parser.optionxform = str
        parser.read(f"/usr/lib/systemd/system/{name}.service")
        self._keys = parser["Service"]
        self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._address = f"/run/{name}.notify"
        self._notify.bind(self._address)
        os.chmod(self._address, 0o777)
        self._notify.settimeout(PATIENCE)

    def start(self) -> bool:
        user = self._keys["User"]
        for kind, base in (("State", "/var/lib"), ("Cache", "/var/cache")):
            if folder := self._keys.get(f"{kind}Directory"):
                run("install", "-d", "-o", user, "-g", user, f"{base}/{folder}")
        environment = {
            "PATH": "/usr/bin:/bin",
            "NOTIFY_SOCKET": self._address,
            "STATE_DIRECTORY": f"/var/lib/{self._keys['StateDirectory']}",
            "OMP_NUM_THREADS": "1",
        }
        command = ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups", "--no-new-privs"]
        command += ["--bounding-set=-all", "--inh-caps=-all", *shlex.split(self._keys["ExecStart"])]
        self._process = subprocess.Popen(
            command,
            env=environment,
            cwd=self._keys["WorkingDirectory"],
            umask=int(self._keys["UMask"], 8),
            stdout=sys.stderr,
        )
        return self._says("READY=1")

    def _says(self, what: str) -> bool:
        while what not in self._notify.recv(4096).decode().split():
            pass
        return True

    def reload(self) -> bool:
        """Do what `systemctl reload` does; whether it still serves then."""
        words = self._keys["ExecReload"].replace("$MAINPID", str(self._process.pid))
        run(*shlex.split(words))
        time.sleep(0.5)
        return self._process.poll() is None and bool(models())

    def end(self) -> int:
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(PATIENCE)


def models() -> list[str]:
    """What the gateway serves, once it does."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen("http://127.0.0.1:31313/v1/models", timeout=PATIENCE) as answer:
                if data := json.load(answer)["data"]:
                    return [model["id"] for model in data]
        except (urllib.error.URLError, ConnectionError):
            pass
        time.sleep(0.1)
    return []


def keys(service: str) -> str:
    """Make the keys of a service, as root; the public one."""
    run(str(PLACE / "bin/cortex"), "keygen", "--out", f"/etc/{service}/keys")
    return Path(f"/etc/{service}/keys/cortex.key").read_text().splitlines()[-1]


def borrow(site: str) -> None:
    """Let the virtual environment see other packages."""
    [packages] = PLACE.glob("lib/python*/site-packages")
    (packages / "borrowed.pth").write_text(site + "\n")


def owner(path: Path) -> str:
    return f"{path.stat().st_mode & 0o777:o} {path.owner()}:{path.group()}"


def left() -> list[str]:
    return [
        path
        for path in ("/etc/cortex", "/etc/neuron", "/opt/cortex", "/usr/share/cortex")
        if os.path.exists(path)
    ]


def loopback_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ours:
        fcntl.ioctl(ours, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", IFF_UP))


def run(*words: str) -> str:
    ended = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE * 2, check=False)
    if ended.returncode:
        sys.exit(f"{shlex.join(words)}: exit code {ended.returncode}\n{ended.stdout}{ended.stderr}")
    return ended.stdout


if __name__ == "__main__":
    main(*sys.argv[1:])
