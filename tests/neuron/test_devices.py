import os
import sys
from types import ModuleType, SimpleNamespace

import pytest

from ipc.settings import ConfigError
from neuron.cli import discover
from neuron.config import Cpu, NeuronConfig
from neuron.memory import devices
from neuron.memory.devices import CpuProbe, Inventory, has_nvidia, visible

GIB = 1 << 30


class NVMLError(Exception):
    def __init__(self, value):
        super().__init__(f"code {value}")
        self.value = value


class Nvml(ModuleType):
    """A stand-in for pynvml: cards with these free bytes, or the error with which it does not start."""

    NVMLError = NVMLError
    NVML_ERROR_DRIVER_NOT_LOADED = 9
    NVML_ERROR_LIBRARY_NOT_FOUND = 12
    NVML_ERROR_GPU_IS_LOST = 15
    NVML_ERROR_LIB_RM_VERSION_MISMATCH = 18
    NVML_TEMPERATURE_GPU = 0
    NVML_CLOCK_MEM = 2

    def __init__(self, free=(), broken=None):
        super().__init__("pynvml")
        self.free = list(free)
        self.broken = broken
        self.lost = set()
        self.sensorless = False
        self.bus, self.clock = {}, {}  # bits and MHz of the memory, by card; of others it says nothing
        self.cuda, self.capability = 13_000, (8, 6)

    def nvmlInit(self):
        if self.broken is not None:
            raise NVMLError(self.broken)

    def nvmlDeviceGetCount(self):
        return len(self.free)

    def nvmlDeviceGetHandleByIndex(self, index):
        return index

    def nvmlDeviceGetUUID(self, handle):
        return f"GPU-{handle}{handle}aa"

    def nvmlSystemGetDriverVersion(self):
        return "580.1"

    def nvmlSystemGetCudaDriverVersion(self):
        return self.cuda

    def nvmlDeviceGetName(self, handle):
        return f"card {handle}"

    def nvmlDeviceGetCudaComputeCapability(self, handle):
        return self.capability

    def nvmlDeviceGetMemoryInfo(self, handle):
        if handle in self.lost:
            raise NVMLError(self.NVML_ERROR_GPU_IS_LOST)
        return SimpleNamespace(total=24 * GIB, free=self.free[handle])

    def nvmlDeviceGetUtilizationRates(self, handle):
        return SimpleNamespace(gpu=25)

    def nvmlDeviceGetTemperature(self, handle, sensor):
        if self.sensorless:
            raise NVMLError(3)
        return 61

    def nvmlDeviceGetMemoryBusWidth(self, handle):
        if handle not in self.bus:
            raise NVMLError(3)
        return self.bus[handle]

    def nvmlDeviceGetMaxClockInfo(self, handle, kind):
        if kind != self.NVML_CLOCK_MEM or handle not in self.clock:
            raise NVMLError(3)
        return self.clock[handle]


@pytest.fixture
def host(monkeypatch, tmp_path):
    """Make this host one with such an NVML, and torch for a CUDA; CUDA_VISIBLE_DEVICES as given."""

    def host(nvml, visible_devices=None, *, on_bus=False, built_for="'12.8'"):
        (tmp_path / "version.py").write_text(
            f"debug = False\ncuda: Optional[str] = {built_for}\nhip = None\n"
        )
        spec = SimpleNamespace(origin=str(tmp_path / "__init__.py"))
        monkeypatch.setattr(devices, "find_spec", lambda name: spec)
        monkeypatch.setitem(sys.modules, "pynvml", nvml)
        monkeypatch.setattr(devices, "has_nvidia", lambda: on_bus)
        if visible_devices is None:
            monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        else:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible_devices)

    return host


def test_gpus_are_described_as_nvml_sees_them(host):
    host(Nvml([20 * GIB, 10 * GIB]))
    first, second, cpu = Inventory(NeuronConfig()).devices
    assert (first.id, second.id, cpu.id) == ("cuda:0", "cuda:1", "cpu")
    assert (second.name, second.compute_capability, second.driver) == ("card 1", "8.6", "580.1")
    assert (second.memory_total, second.memory_free) == (24 * GIB, 10 * GIB)
    assert (second.utilization, second.temperature) == (0.25, 61.0)


@pytest.mark.parametrize(
    ("bits", "clock", "rate"),
    [
        pytest.param(192, 7501, 360e9, id="RTX 3060, GDDR6"),
        pytest.param(384, 10_501, 1008e9, id="RTX 4090, GDDR6X"),
        pytest.param(512, 14_001, 1792e9, id="RTX 5090, GDDR7"),
        pytest.param(5120, 1215, 1555e9, id="A100 of 40 GB, HBM2"),
        pytest.param(5120, 2619, 3352e9, id="H100 SXM, HBM3"),
    ],
)
def test_memory_is_as_fast_as_its_maker_says(host, bits, clock, rate):
    nvml = Nvml([GIB])
    nvml.bus[0], nvml.clock[0] = bits, clock
    host(nvml)
    inventory = Inventory(NeuronConfig())
    gpu, cpu = inventory.devices
    assert gpu.memory_rate == pytest.approx(rate, rel=1e-3)
    assert inventory.refresh()[0].memory_rate == gpu.memory_rate
    assert cpu.memory_rate is None


def test_discover_shows_how_fast_memory_is_where_that_is_known(host, capsys):
    nvml = Nvml([GIB, GIB])
    nvml.bus[1], nvml.clock[1] = 512, 14_001
    host(nvml)
    discover()
    rows = {line.split()[1]: line for line in capsys.readouterr().out.splitlines() if "GiB" in line}
    assert "1,792 GB/s" in rows["cuda:1"]
    assert "GB/s" not in rows["cuda:0"] + rows["cpu"]


def test_memory_whose_rate_nobody_knows_has_none(host, monkeypatch):
    nvml = Nvml([GIB] * 4)
    nvml.bus, nvml.clock = {1: 384, 3: 0}, {2: 10_501, 3: 10_501}
    host(nvml)
    *gpus, _ = Inventory(NeuronConfig()).devices
    assert [device.memory_rate for device in gpus] == [None] * 4
    nvml.bus[2] = 384
    assert Inventory(NeuronConfig()).devices[2].memory_rate == 1_008_096_000_000
    monkeypatch.delattr(Nvml, "nvmlDeviceGetMemoryBusWidth")
    assert Inventory(NeuronConfig()).devices[2].memory_rate is None


def test_refresh_brings_new_figures_of_the_same_devices(host):
    nvml = Nvml([20 * GIB])
    host(nvml)
    inventory = Inventory(NeuronConfig())
    nvml.free[0] = GIB
    nvml.sensorless = True
    device, cpu = inventory.refresh()
    assert (device.id, device.memory_free, device.temperature) == ("cuda:0", GIB, None)
    assert inventory.devices == [device, cpu]


def test_a_gpu_that_falls_off_its_bus_has_no_free_memory(host):
    nvml = Nvml([20 * GIB])
    host(nvml)
    inventory = Inventory(NeuronConfig())
    nvml.lost.add(0)
    assert inventory.refresh()[0].memory_free == 0


def test_a_gpu_that_cannot_be_read_is_left_out_and_told(host):
    nvml = Nvml([20 * GIB, 10 * GIB])
    nvml.lost.add(0)
    host(nvml)
    inventory = Inventory(NeuronConfig())
    assert [device.id for device in inventory.devices] == ["cuda:1", "cpu"]
    assert inventory.cuda_unavailable.startswith("cuda:0 cannot be read")
    nvml.capability = (6, 1)
    told = Inventory(NeuronConfig()).cuda_unavailable
    assert told.startswith("cuda:0 cannot be read")
    assert "; cuda:1 (card 1) has compute capability 6.1" in told


@pytest.mark.parametrize(
    ("broken", "on_bus", "words"),
    [
        (Nvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH, True, "reboot"),
        (Nvml.NVML_ERROR_DRIVER_NOT_LOADED, True, "driver is not loaded"),
        (Nvml.NVML_ERROR_LIBRARY_NOT_FOUND, True, "driver is not loaded"),
        (Nvml.NVML_ERROR_DRIVER_NOT_LOADED, False, None),
        (Nvml.NVML_ERROR_LIBRARY_NOT_FOUND, False, None),
        (999, False, "code 999"),
    ],
)
def test_no_driver_is_no_gpu_and_a_broken_one_is_told(host, broken, on_bus, words):
    host(Nvml(broken=broken), on_bus=on_bus)
    inventory = Inventory(NeuronConfig())
    assert [device.id for device in inventory.devices] == ["cpu"]
    if words is None:
        assert inventory.cuda_unavailable is None
    else:
        assert words in inventory.cuda_unavailable


def test_a_card_that_is_too_old_is_left_out_with_what_it_lacks(host):
    nvml = Nvml([GIB])
    nvml.capability = (6, 1)
    host(nvml)
    inventory = Inventory(NeuronConfig())
    assert [device.id for device in inventory.devices] == ["cpu"]
    assert "cuda:0 (card 0) has compute capability 6.1" in inventory.cuda_unavailable
    with pytest.raises(ConfigError, match=r"not here, but cpu; .*7\.5 and later"):
        Inventory(NeuronConfig(devices=["cuda:0"]))


@pytest.mark.parametrize(
    ("built_for", "reason"),
    [
        ("'12.8'", None),
        ("'13.0'", "torch here is built for 13: install a newer driver, or torch for CUDA 12"),
        ("None", "torch here is built for the CPU alone: install it for CUDA 12"),
    ],
)
def test_a_driver_that_torch_does_not_fit_is_told_with_what_to_do(host, built_for, reason):
    nvml = Nvml([GIB])
    nvml.cuda = 12_040
    host(nvml, built_for=built_for)
    inventory = Inventory(NeuronConfig())
    assert [device.id for device in inventory.devices] == (["cpu"] if reason else ["cuda:0", "cpu"])
    assert inventory.cuda_unavailable is None if reason is None else reason in inventory.cuda_unavailable


@pytest.mark.parametrize(
    ("capability", "built_for", "used"),
    [
        ((12, 0), "'12.6'", False),
        ((12, 0), "'12.8'", True),
        ((9, 0), "'12.6'", True),
        ((12, 0), "'13.0'", True),
    ],
)
def test_a_card_that_is_too_young_for_torch_is_left_out_with_what_to_do(host, capability, built_for, used):
    nvml = Nvml([GIB])
    nvml.capability = capability
    host(nvml, built_for=built_for)
    inventory = Inventory(NeuronConfig())
    assert [device.id for device in inventory.devices] == (["cuda:0", "cpu"] if used else ["cpu"])
    if not used:
        assert "torch here is built for CUDA 12.6: install it for CUDA 12.8" in inventory.cuda_unavailable


def test_what_torch_is_built_for_matters_to_no_host_without_a_gpu(host):
    host(Nvml(), built_for="None")
    assert Inventory(NeuronConfig()).cuda_unavailable is None


@pytest.mark.parametrize("on_bus", [True, False])
def test_a_missing_python_package_is_told_where_there_is_a_gpu(host, on_bus):
    host(None, on_bus=on_bus)
    inventory = Inventory(NeuronConfig())
    assert [device.id for device in inventory.devices] == ["cpu"]
    assert (inventory.cuda_unavailable is not None) == on_bus


@pytest.mark.parametrize(
    ("setting", "chosen"),
    [
        (None, ["a0", "b1", "b2"]),
        ("2,0", ["b2", "a0"]),
        ("", []),
        ("-1", []),
        ("1,7,0", ["b1"]),
        ("1,1", ["b1"]),
        (" 0 , 1 ", ["a0", "b1"]),
        ("GPU-a", ["a0"]),
        ("GPU-b2,GPU-b1", ["b2", "b1"]),
        ("GPU-b", []),
    ],
)
def test_gpus_are_numbered_as_cuda_numbers_them(setting, chosen):
    assert visible(["a0", "b1", "b2"], setting, lambda handle: f"GPU-{handle}") == chosen


def test_a_hidden_gpu_is_told(host):
    host(Nvml([GIB]), "")
    assert Inventory(NeuronConfig()).cuda_unavailable == "CUDA_VISIBLE_DEVICES hides every GPU"


def test_only_configured_devices_are_used(host):
    host(Nvml([GIB, GIB]))
    inventory = Inventory(NeuronConfig(devices=["cuda:1"]))
    assert [device.id for device in inventory.devices] == ["cuda:1"]
    assert [device.id for device in inventory.refresh()] == ["cuda:1"]


def test_a_configured_device_that_is_not_here_stops_the_start_and_says_why(host):
    host(Nvml(broken=Nvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH))
    with pytest.raises(ConfigError, match=r"devices: 'cuda:0' is not here, but cpu; .* reboot"):
        Inventory(NeuronConfig(devices=["cuda:0"]))


def test_a_display_controller_of_nvidia_is_seen_on_the_bus(tmp_path):
    assert not has_nvidia(tmp_path / "gone")
    for name, vendor, kind in (("0", "0x10de", "0x040300"), ("1", "0x8086", "0x030000")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "vendor").write_text(f"{vendor}\n")
        (tmp_path / name / "class").write_text(f"{kind}\n")
    assert not has_nvidia(tmp_path)
    (tmp_path / "1" / "vendor").write_text("0x10de\n")
    assert has_nvidia(tmp_path)


# --- the CPU --------------------------------------------------------------------------------------------


@pytest.fixture
def kernel(tmp_path, monkeypatch):
    """A made-up kernel: 8 cores, 16 GiB of which 10 are free, and cgroup files as given."""

    def kernel(membership, files):
        proc, cgroups = tmp_path / "proc", tmp_path / "cgroup"
        (proc / "self").mkdir(parents=True)
        (proc / "self" / "cgroup").write_text(membership)
        (proc / "cpuinfo").write_text("processor\t: 0\nmodel name\t: Clever CPU: 3\n")
        (proc / "meminfo").write_text(f"MemTotal: {16 << 20} kB\nMemAvailable: {10 << 20} kB\n")
        for name, text in files.items():
            (cgroups / name).parent.mkdir(parents=True, exist_ok=True)
            (cgroups / name).write_text(text)
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
        return CpuProbe(proc, cgroups)

    return kernel


def test_without_limits_the_cpu_is_all_that_the_kernel_has(kernel):
    probe = kernel("0::/\n", {})
    assert probe.name() == "Clever CPU: 3"
    assert probe.cores() == 8
    assert probe.memory() == (16 * GIB, 10 * GIB)


@pytest.mark.parametrize(
    ("membership", "files"),
    [
        ("0::/a/b\n", {"a/cpu.max": "350000 100000", "a/b/cpu.max": "max 100000"}),
        ("0::/\n", {"cpu.max": "300000 100000\n"}),
        (
            "4:cpu,cpuacct:/a\n0::/\n",
            {
                "cpu/a/cpu.cfs_quota_us": "150000",
                "cpu/a/cpu.cfs_period_us": "50000",
                "cpu/cpu.cfs_quota_us": "-1",
            },
        ),
        ("4:cpu:/host/path\n", {"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"}),
    ],
)
def test_a_quota_anywhere_above_limits_the_cores(kernel, membership, files):
    assert kernel(membership, files).cores() == 3


def test_a_quota_below_one_core_is_still_one(kernel):
    assert kernel("0::/\n", {"cpu.max": "20000 100000"}).cores() == 1


@pytest.mark.parametrize(
    ("membership", "files"),
    [
        ("0::/a\n", {"a/memory.max": "max", "memory.max": f"{4 * GIB}", "memory.current": f"{3 * GIB}"}),
        (
            "5:memory:/a\n",
            {"memory/a/memory.limit_in_bytes": f"{4 * GIB}", "memory/a/memory.usage_in_bytes": f"{3 * GIB}"},
        ),
    ],
)
def test_a_memory_limit_anywhere_above_counts(kernel, membership, files):
    assert kernel(membership, files).memory() == (4 * GIB, GIB)


def test_the_page_cache_of_the_group_counts_as_free(kernel):
    stat = f"anon {GIB}\ninactive_file {GIB}\nactive_file {GIB}\nshmem 5\n"
    files = {"memory.max": f"{4 * GIB}", "memory.current": f"{3 * GIB}", "memory.stat": stat}
    assert kernel("0::/\n", files).memory() == (4 * GIB, 3 * GIB)


def test_a_limit_above_what_there_is_changes_nothing(kernel):
    files = {"memory/memory.limit_in_bytes": "9223372036854771712", "memory/memory.usage_in_bytes": "5"}
    assert kernel("5:memory:/\n", files).memory() == (16 * GIB, 10 * GIB)


def test_the_configuration_limits_the_cpu(kernel, host):
    host(Nvml())
    probe = kernel("0::/\n", {})
    cpu = Inventory(NeuronConfig(cpu=Cpu(cores=2, memory=3 * GIB)), probe).devices[-1]
    assert (cpu.cores, cpu.memory_total, cpu.memory_free) == (2, 3 * GIB, 3 * GIB)
    more = Inventory(NeuronConfig(cpu=Cpu(cores=99, memory=99 * GIB)), probe).devices[-1]
    assert (more.cores, more.memory_total, more.memory_free) == (8, 16 * GIB, 10 * GIB)


def test_this_host_has_a_cpu():
    (cpu,) = Inventory(NeuronConfig(devices=["cpu"])).devices
    assert cpu.cores >= 1
    assert 0 < cpu.memory_free <= cpu.memory_total
