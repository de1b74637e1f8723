"""The units of `systemd/`, held to systemd's own judgement, and to ours where systemd is not installed."""

import configparser
import os
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "systemd"
UNITS = ["neuron.service", "cortex.service"]

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed"
)


class Directives(dict):
    """systemd lets a key stand several times; here its values are joined, as systemd joins lists."""

    def __setitem__(self, key, value):
        if isinstance(value, list) and isinstance(self.get(key), list):
            value = self[key] + value
        super().__setitem__(key, value)


def directives(unit: str) -> dict[str, str]:
    parser = configparser.ConfigParser(dict_type=Directives, strict=False, interpolation=None)
    parser.optionxform = str
    parser.read(FOLDER / unit)
    return dict(parser["Service"])


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["systemd-analyze", "--no-pager", *arguments],
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )


@needs_systemd
@pytest.mark.parametrize("unit", UNITS)
def test_systemd_finds_nothing_wrong(unit, tmp_path):
    installed = (FOLDER / unit).read_text().replace("/opt/cortex/bin", sysconfig.get_path("scripts"))
    (tmp_path / unit).write_text(installed)  # verify wants the programs to be there
    result = analyze("verify", str(tmp_path / unit))
    assert (result.returncode, result.stderr) == (0, "")


@needs_systemd
@pytest.mark.parametrize("unit", UNITS)
def test_exposure_is_under_four(unit):
    result = analyze("security", "--offline=true", "--threshold=39", str(FOLDER / unit))
    score = float(re.search(r"Overall exposure level for \S+: ([\d.]+)", result.stdout)[1])
    assert score < 4.0
    assert result.returncode == 0


@pytest.mark.parametrize("unit", UNITS)
def test_a_service_has_no_privileges_and_says_when_it_is_ready(unit):
    found = directives(unit)
    assert found["Type"] == "notify"
    assert found["User"] not in ("", "root")
    assert found["CapabilityBoundingSet"] == ""
    for switch in ("NoNewPrivileges", "PrivateTmp", "ProtectKernelModules", "RestrictNamespaces"):
        assert found[switch] == "yes", switch
    assert found["ProtectSystem"] == "strict"
    assert "@system-service" in found["SystemCallFilter"]


@pytest.mark.parametrize("unit", UNITS)
def test_the_first_process_ends_the_others(unit):
    assert directives(unit)["KillMode"] == "mixed"


def test_the_neuron_keeps_what_gpus_need():
    found = directives("neuron.service")
    assert "MemoryDenyWriteExecute" not in found  # torch and Triton run code that they wrote
    assert "PrivateDevices" not in found
    assert "char-nvidia* rw" in found["DeviceAllow"]
    assert found["OOMPolicy"] == "continue"


@pytest.mark.parametrize("unit", UNITS)
def test_the_users_that_services_run_as_are_made(unit):
    users = (FOLDER / "sysusers.d/cortex.conf").read_text()
    assert re.search(rf"^u {directives(unit)['User']} ", users, re.MULTILINE)


@pytest.mark.skipif(
    os.geteuid() != 0 or not (shutil.which("systemd-sysusers") and shutil.which("systemd-tmpfiles")),
    reason="needs root and systemd",
)
def test_systemd_makes_the_users_and_folders(tmp_path):
    (tmp_path / "etc").mkdir()
    for command in (["systemd-sysusers"], ["systemd-tmpfiles", "--create"]):
        entries = FOLDER / f"{command[0].removeprefix('systemd-')}.d/cortex.conf"
        result = subprocess.run(
            [*command, f"--root={tmp_path}", str(entries)],
            capture_output=True,
            text=True,
            timeout=150,
            check=False,
        )
        assert result.returncode == 0, result.stderr
    assert "neuron:" in (tmp_path / "etc/passwd").read_text()
    keys = (tmp_path / "etc/neuron/keys").stat()
    assert keys.st_mode & 0o777 == 0o700
    assert keys.st_uid != 0
