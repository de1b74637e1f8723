"""Keys that a catalogue had in the system before this one (`models.toml`), as what they mean here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ipc.settings import ConfigError

_NAMES = {
    "quant": "quantization",
    "min_devices": "ranks",
    "residency_priority": "priority",
    "vram_mb": "min_memory",
    "min_device_vram_mb": "min_device_memory",
}
_LIMITS = {"context": "context_length", "output": "max_output"}
_UNREAD = {
    "harness": "there is one engine",
    "capabilities": "what a model can do is read from its files",
    "limit.input": "a prompt may have what the context leaves",
}
_QUANTS = {
    "q8": "q8",
    "q8_0": "q8",
    "q6": "q6",
    "q6k": "q6",
    "q6_k": "q6",
    "q4": "q4",
    "q4k": "q4",
    "q4_k": "q4",
}


def translated(entry: Any, key: str, path: str | Path, notes: list[str]) -> Any:
    """`entry` with our own keys; what is no entry is left for others to complain of.

    Args:
        key: where it stands in the file.
        notes: is told of each such key.

    Raises:
        ConfigError: one has a value that means nothing here, or stands beside our own.
    """
    if not isinstance(entry, dict):
        return entry
    limit = entry.get("limit")
    if limit is not None and not isinstance(limit, dict):
        raise ConfigError(path, f"{key}.limit", f"Expected keys and values; the value is {limit!r}")
    flat = {name: value for name, value in entry.items() if name != "limit"}
    flat |= {f"limit.{name}": value for name, value in (limit or {}).items()}
    ours: dict[str, Any] = {}
    for name, value in flat.items():
        if (why := _UNREAD.get(name)) is not None:
            notes.append(f"{key}.{name} changes nothing: {why}")
            continue
        new = _NAMES.get(name) or _LIMITS.get(name.removeprefix("limit.") if "." in str(name) else "")
        if new is None:
            ours[name] = value
            continue
        if new in flat:
            raise ConfigError(path, f"{key}.{name}", f"means {new}, which is there, too; give one of them")
        ours[new] = _value(name, value, f"{key}.{name}", path)
        notes.append(f"{key}.{name} is read as {new}: {ours[new]!r}")
    return ours


def _value(name: str, value: Any, key: str, path: str | Path) -> Any:
    if name.endswith("_mb"):
        if type(value) is not int or value < 0:
            raise ConfigError(path, key, f"Expected a number of MiB; the value is {value!r}")
        return value << 20
    if name == "quant":
        if str(value).lower() not in _QUANTS:
            text = f"Expected one of {', '.join(_QUANTS)}, not {value!r}"
            raise ConfigError(path, key, f"{text}; a GGUF file is a source: hf:ORG/NAME:Q4_K_M")
        return _QUANTS[str(value).lower()]
    return value
