"""The devices of this host: GPUs as NVML sees them, and the CPU as a device of its own.

CUDA devices are numbered as torch numbers them in a worker that runs with `CUDA_DEVICE_ORDER=PCI_BUS_ID`:
NVML's order, filtered by CUDA_VISIBLE_DEVICES.
"""

from __future__ import annotations

import logging
import os
import platform
import re
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec

from ipc.messages.state import Device
from ipc.settings import ConfigError
from neuron.config import NeuronConfig

log = logging.getLogger("neuron.memory.devices")


OLDEST = (7, 5)  # compute capability that torch and Triton still build for
YOUNG, KNOWS_YOUNG = (10, 0), (12, 8)  # and from which on torch has to be built for this CUDA at least
NONE = (0, 0)  # in place of a CUDA: torch computes on the CPU alone


def cuda_of_torch() -> tuple[int, int] | None:
    """The CUDA that the torch which is installed here was built for, or `NONE`; None: there is no torch.

    Read from its file, since nothing here imports torch.
    """
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    try:
        text = Path(spec.origin).with_name("version.py").read_text()
    except OSError:
        return None
    found = re.search(r"^cuda\b.*=\s*(?:['\"](\d+)\.(\d+)|None\s*$)", text, re.MULTILINE)
    if found is None:
        return None
    return (int(found[1]), int(found[2])) if found[1] else NONE


class Inventory:
    """What was found on this host, kept fresh by `refresh`.

    Args:
        config: limits of the CPU, and the devices to use.
        cpu: where the CPU's figures come from.

    Raises:
        ConfigError: `config.devices` names one that is not here.
    """

    def __init__(self, config: NeuronConfig, cpu: CpuProbe | None = None) -> None:
        self.cuda_unavailable: str | None = None  # why a GPU that is here cannot be used
        self._config = config
        self._cpu = cpu or CpuProbe()
        self._nvml: Any = None
        self._handles: dict[str, Any] = {}  # device id -> NVML handle
        found = {device.id: device for device in (*self._find_gpus(), self._find_cpu())}
        wanted = list(found) if config.devices is None else config.devices
        if missing := [name for name in wanted if name not in found]:
            why = f"; {self.cuda_unavailable}" if self.cuda_unavailable else ""
            raise ConfigError(
                "configuration", "devices", f"{missing[0]!r} is not here, but {', '.join(found)}{why}"
            )
        self.devices: list[Device] = [found[name] for name in wanted]

    def refresh(self) -> list[Device]:
        """The same devices with new figures of free memory, utilisation and temperature."""
        self.devices = [
            self._read_gpu(device) if device.kind == "cuda" else self._find_cpu() for device in self.devices
        ]
        return self.devices

    def _find_cpu(self) -> Device:
        limits = self._config.cpu
        total, free = self._cpu.memory()
        if limits.memory is not None:
            total, free = min(total, limits.memory), min(free, limits.memory)
        return Device(
            id="cpu",
            kind="cpu",
            name=self._cpu.name(),
            memory_total=total,
            memory_free=free,
            cores=min(self._cpu.cores(), limits.cores or self._cpu.cores()),
        )

    def _find_gpus(self) -> list[Device]:
        try:
            import pynvml
        except ImportError:
            self.cuda_unavailable = (
                "the Python package nvidia-ml-py is not installed" if has_nvidia() else None
            )
            return []
        try:
            pynvml.nvmlInit()
            every = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
            handles = visible(every, os.environ.get("CUDA_VISIBLE_DEVICES"), pynvml.nvmlDeviceGetUUID)
            driver = pynvml.nvmlSystemGetDriverVersion()
            knows = pynvml.nvmlSystemGetCudaDriverVersion() // 1000
        except pynvml.NVMLError as error:
            self.cuda_unavailable = _reason(pynvml, error)
            return []
        built_for = cuda_of_torch()
        if handles and (reason := _unfit(built_for, driver, knows)):
            self.cuda_unavailable = reason
            return []
        if every and not handles:
            self.cuda_unavailable = "CUDA_VISIBLE_DEVICES hides every GPU"
        self._nvml = pynvml
        devices, left_out = [], []
        for i, handle in enumerate(handles):
            try:
                device = self._describe(f"cuda:{i}", handle, driver)
            except pynvml.NVMLError as error:
                left_out.append(f"cuda:{i} cannot be read: {error}")
                continue
            if reason := _unknown(device, built_for):
                left_out.append(reason)
            else:
                devices.append(device)
        self.cuda_unavailable = "; ".join(left_out) or self.cuda_unavailable
        return devices

    def _describe(self, name: str, handle: Any, driver: str) -> Device:
        memory = self._nvml.nvmlDeviceGetMemoryInfo(handle)
        major, minor = self._nvml.nvmlDeviceGetCudaComputeCapability(handle)
        self._handles[name] = handle
        return self._read_gpu(
            Device(
                id=name,
                kind="cuda",
                name=self._nvml.nvmlDeviceGetName(handle),
                memory_total=memory.total,
                memory_free=memory.free,
                memory_rate=self._memory_rate(handle),
                compute_capability=f"{major}.{minor}",
                driver=driver,
            )
        )

    def _memory_rate(self, handle: Any) -> int | None:
        """Bytes a second that the card's memory gives at most; None where NVML does not say.

        The width of its bus, twice a cycle of its highest clock. NVML tells HBM's clock as it is; GDDR6, 6X
        and 7 move more bits a cycle, and theirs as so much higher. So this gives what NVIDIA writes of an RTX
        3060 (192 bits at 7,501 MHz: 360 GB/s), 4090 and 5090, of an A100 (5,120 at 1,215: 1,555 GB/s) and an
        H100. A GPU in the host's memory, as a GB10, tells neither, or a width of 0.
        """
        nvml = self._nvml
        try:
            width = nvml.nvmlDeviceGetMemoryBusWidth(handle)  # bits
            clock = nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_MEM)  # MHz
        except (AttributeError, nvml.NVMLError):  # a package or a driver without them, or a card
            return None
        return width * 2 * clock * 1_000_000 // 8 or None

    def _read_gpu(self, device: Device) -> Device:
        """`device` with new figures; those that cannot be had any more are None, memory counts as taken."""
        handle, nvml = self._handles[device.id], self._nvml
        memory = self._ask(nvml.nvmlDeviceGetMemoryInfo, handle)
        rates = self._ask(nvml.nvmlDeviceGetUtilizationRates, handle)
        temperature = self._ask(nvml.nvmlDeviceGetTemperature, handle, nvml.NVML_TEMPERATURE_GPU)
        return msgspec.structs.replace(
            device,
            memory_free=memory.free if memory else 0,
            utilization=rates.gpu / 100 if rates else None,
            temperature=None if temperature is None else float(temperature),
        )

    def _ask(self, question: Callable[..., Any], *args: Any) -> Any:
        """NVML's answer, or None: passive cards have no sensor, and a card can fall off its bus."""
        try:
            return question(*args)
        except self._nvml.NVMLError as error:
            log.debug("nvml has no answer question=%s error=%s", question.__name__, error)
            return None


def visible(handles: list[Any], setting: str | None, uuid_of: Callable[[Any], str]) -> list[Any]:
    """Those of `handles` that CUDA shows under this CUDA_VISIBLE_DEVICES, in its order.

    Entries are numbers or the beginning of a UUID; CUDA stops at the first that names nothing.
    """
    if setting is None:
        return handles
    chosen: list[Any] = []
    for entry in (part.strip() for part in setting.split(",")):
        if entry.isdecimal():
            match = handles[int(entry) : int(entry) + 1]
        else:
            match = [handle for handle in handles if entry and uuid_of(handle).startswith(entry)]
        if len(match) != 1 or match[0] in chosen:
            break
        chosen += match
    return chosen


def has_nvidia(pci: Path = Path("/sys/bus/pci/devices")) -> bool:
    """Whether an NVIDIA display controller is on the bus, whatever drivers say."""
    return any(
        (_text(device / "vendor") or "").strip() == "0x10de"
        and (_text(device / "class") or "").startswith("0x03")
        for device in (pci.iterdir() if pci.is_dir() else ())
    )


def _reason(nvml: Any, error: Exception) -> str | None:
    """Why NVML gives no devices, in words that help; None when there is no GPU to miss."""
    code = getattr(error, "value", None)
    if code == nvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH:
        return "the NVIDIA driver was updated under the running kernel module: reboot, or reload the module"
    if code in (nvml.NVML_ERROR_LIBRARY_NOT_FOUND, nvml.NVML_ERROR_DRIVER_NOT_LOADED):
        return "an NVIDIA GPU is here, and its driver is not loaded" if has_nvidia() else None
    return f"NVML says: {error}"


def _unfit(built_for: tuple[int, int] | None, driver: str, knows: int) -> str | None:
    """Why the torch that is here can use no GPU with this driver, and what to do.

    Args:
        built_for: the CUDA of that torch.
        driver: its version.
        knows: the first number of the newest CUDA that the driver runs.
    """
    if built_for == NONE:
        return f"torch here is built for the CPU alone: install it for CUDA {knows}"
    if built_for is not None and knows < built_for[0]:
        return (
            f"the NVIDIA driver {driver} knows CUDA up to {knows}, and torch here is built for "
            f"{built_for[0]}: install a newer driver, or torch for CUDA {knows}"
        )
    return None


def _unknown(device: Device, built_for: tuple[int, int] | None) -> str | None:
    """Why that torch has nothing that a GPU could run, and what to do."""
    capability = tuple(map(int, device.compute_capability.split(".")))
    has = f"{device.id} ({device.name}) has compute capability {device.compute_capability}"
    if capability < OLDEST:
        oldest = f"{OLDEST[0]}.{OLDEST[1]}"
        return f"{has}, and kernels are built for {oldest} and later: leave it out, or use the CPU"
    if built_for is not None and capability >= YOUNG and built_for < KNOWS_YOUNG:
        needed, built = (f"{first}.{second}" for first, second in (KNOWS_YOUNG, built_for))
        return f"{has}, and torch here is built for CUDA {built}: install it for CUDA {needed} or later"
    return None


class CpuProbe:
    """The CPU as this process may use it: affinity and cgroup limits count, not what is in the box.

    Args:
        proc: the proc file system.
        cgroups: where cgroups are mounted, version 2 or 1.
    """

    def __init__(self, proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> None:
        self._proc = proc
        self._cgroups = cgroups

    def name(self) -> str:
        """The model name of the processor."""
        for line in (_text(self._proc / "cpuinfo") or "").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
        return platform.machine()

    def cores(self) -> int:
        """Cores that this process may keep busy: its affinity, and its quota rounded down, 1 at least."""
        cores = len(os.sched_getaffinity(0))
        for folder in self._groups("cpu"):
            quota, period = [*(_text(folder / "cpu.max") or "max 1").split(), "1"][:2]
            if quota == "max":
                quota, period = (
                    _text(folder / "cpu.cfs_quota_us") or "-1",
                    _text(folder / "cpu.cfs_period_us"),
                )
            if int(quota) > 0:
                cores = min(cores, int(quota) // int(period or 100_000))
        return max(1, cores)

    def memory(self) -> tuple[int, int]:
        """Bytes in total and free, the page cache counted as free."""
        info = _table(self._proc / "meminfo")
        total, free = info["MemTotal:"] * 1024, info["MemAvailable:"] * 1024
        for folder in self._groups("memory"):
            limit = _number(folder / "memory.max") or _number(folder / "memory.limit_in_bytes")
            if limit is None or limit >= total:
                continue
            used = _number(folder / "memory.current") or _number(folder / "memory.usage_in_bytes") or 0
            stat = _table(folder / "memory.stat")
            cache = stat.get("inactive_file", 0) + stat.get("active_file", 0)
            total, free = limit, min(free, limit - max(0, used - cache))
        return total, max(0, min(free, total))

    def _groups(self, controller: str) -> list[Path]:
        """The folders of the cgroup of this process and of those above it.

        In a container the path in /proc may be the host's: folders that are not here hold no limits, and the
        mount itself is the container's own group.
        """
        folders = []
        for line in (_text(self._proc / "self" / "cgroup") or "").splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and controller not in controllers.split(","):
                continue
            root = self._cgroups / controller if controllers else self._cgroups
            group = root / path.lstrip("/")
            folders += [folder for folder in (group, *group.parents) if folder.is_relative_to(root)]
        return folders


def _text(path: Path) -> str | None:
    try:
        return path.read_text()
    except OSError:
        return None


def _number(path: Path) -> int | None:
    text = (_text(path) or "").strip()
    return int(text) if text.isdecimal() else None


def _table(path: Path) -> dict[str, int]:
    """A file of lines `key number ...`."""
    rows = (line.split() for line in (_text(path) or "").splitlines())
    return {row[0]: int(row[1]) for row in rows if len(row) > 1 and row[1].isdecimal()}
