"""Reading configuration files: YAML or TOML into typed structs, with errors that name file, key and value.

What parses a file is imported where one is read: every process needs the types of settings.
"""

from __future__ import annotations

from difflib import get_close_matches
from inspect import isclass
from math import isnan
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import msgspec

from ipc.periods import parse_period
from ipc.sizes import parse_size

T = TypeVar("T", bound=msgspec.Struct)

# A number of bytes, which files may also write as `12GiB` or `500MB`.
Size = Annotated[int, msgspec.Meta(ge=0, extra={"unit": "bytes"})]

# Seconds, which files may also write as `90s`, `15m` or `1h30m`.
SECONDS = {"unit": "seconds"}
Duration = Annotated[float, msgspec.Meta(ge=0, extra=SECONDS)]

# The same, and never 0.
Timeout = Annotated[float, msgspec.Meta(gt=0, extra=SECONDS)]

# The same, or below 0 for ever.
Period = Annotated[float, msgspec.Meta(extra=SECONDS)]

LARGEST = (1 << 63) - 1  # integer, of any sign: what is larger fits no message, and no C long


class ConfigError(Exception):
    """A configuration that cannot be used.

    Args:
        path: the file.
        key: the dotted key in it, as in `models[0].ranks`; empty where the file itself is the matter.
        message: what is wrong with it.
    """

    def __init__(self, path: str | Path, key: str, message: str) -> None:
        super().__init__(": ".join(part for part in (str(path), key, message) if part))
        self.path = str(path)
        self.key = key
        self.message = message


def load_settings(path: str | Path, kind: type[T]) -> T:
    """Read the file at `path` as a `kind`. An empty file, and a key without a value, mean the defaults.

    Raises:
        ConfigError: the file cannot be read or parsed, a key is unknown or given twice, a required one is
            missing, or a value has the wrong type or is out of range.
    """
    return convert_settings(read_mapping(path), kind, path)


def written(path: str | Path) -> float:
    """The Unix time at which the file at `path` was written. ConfigError where it cannot be read.

    Ask before it is read: what is written meanwhile then counts as old, not what was there as new.
    """
    try:
        return Path(path).stat().st_mtime
    except OSError as error:
        raise _unreadable(path, error) from error


def read_mapping(path: str | Path) -> dict[Any, Any]:
    """The keys and values of the file at `path`, as they stand there. ConfigError where there are none."""
    data = _parse(Path(path))
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ConfigError(path, "", f"holds a {type(data).__name__} where keys and values are expected")
    return data


def convert_settings(data: Any, kind: type[T], path: str | Path, key: str = "") -> T:
    """`data` as a `kind`.

    Args:
        path: where it comes from, for the error.
        key: where it stands there.

    Raises:
        ConfigError: as of `load_settings`.
    """
    if not isinstance(data, dict):
        raise ConfigError(path, key, f"Expected keys and values; the value is {data!r}")
    return _convert(data, kind, key, path)


def _parse(path: Path) -> Any:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise _unreadable(path, error) from error
    except UnicodeDecodeError as error:
        raise ConfigError(path, "", f"is not UTF-8 text: {error}") from error
    try:
        if path.suffix == ".toml":
            import tomllib

            return tomllib.loads(text)
        if path.suffix in (".yaml", ".yml"):
            from ipc.yaml_text import parse

            return parse(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(path, "", f"cannot be parsed: {error}") from error
    raise ConfigError(path, "", f"has the suffix {path.suffix!r}; a configuration is .yaml, .yml or .toml")


def _unreadable(path: str | Path, error: OSError) -> ConfigError:
    return ConfigError(path, "", f"cannot be read: {error.strerror}")


def _convert(value: Any, kind: Any, key: str, path: str | Path) -> Any:
    """`value` as a `kind`, where structs and lists are walked here so that the key of an error is known."""
    for option in _options(kind):
        if isinstance(value, dict) and isclass(option) and issubclass(option, msgspec.Struct):
            return _convert_struct(value, option, key, path)
        if isinstance(value, list) and get_origin(option) is list:
            (item,) = get_args(option)
            return [_convert(each, item, f"{key}[{i}]", path) for i, each in enumerate(value)]
    try:
        if isinstance(value, str) and Size in _options(kind):
            return _sayable(parse_size(value))
        if isinstance(value, str) and _is_time(kind):
            value = parse_period(value)
        if isinstance(value, str) and (words := _words(kind)) and value not in words:
            raise ValueError(f"Expected one of {', '.join(words)}")
        return _sayable(msgspec.convert(value, kind))
    except ValueError as error:  # msgspec's own is one, too
        raise ConfigError(path, key, f"{str(error).split(' - at ')[0]}; the value is {value!r}") from error


def _is_time(kind: Any) -> bool:
    metas = (meta for option in _options(kind) for meta in getattr(option, "__metadata__", ()))
    return any(meta.extra == SECONDS for meta in metas)


def _words(kind: Any) -> list[str]:
    """What a text may say where only some words are taken."""
    return [word for option in _options(kind) if get_origin(option) is Literal for word in get_args(option)]


def _sayable(value: Any) -> Any:
    """`value`, of which messages tell others. ValueError where none could."""
    if isinstance(value, float) and isnan(value):
        raise ValueError("Expected a number")
    if isinstance(value, int) and abs(value) > LARGEST:
        raise ValueError(f"Expected a number of {LARGEST} at most")
    msgspec.msgpack.encode(value)  # text may have halves of characters
    return value


def _options(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)


def _convert_struct(value: dict[Any, Any], struct: type[msgspec.Struct], key: str, path: str | Path) -> Any:
    fields = {field.encode_name: field for field in msgspec.structs.fields(struct)}
    given = {}
    for name, each in value.items():
        dotted = f"{key}.{name}" if key else str(name)
        if name not in fields:
            nearest = get_close_matches(str(name), fields, 1)
            meant = f"; {nearest[0]} is its nearest" if nearest else ""
            text = f"unknown key, with the value {each!r}{meant}; there are {', '.join(fields)}"
            raise ConfigError(path, dotted, text)
        field = fields[name]
        if each is None and NoneType not in _options(field.type):
            continue
        given[field.name] = _convert(each, field.type, dotted, path)
    for name, field in fields.items():
        if field.required and field.name not in given:
            raise ConfigError(path, key, f"the key {name!r} is missing")
    return struct(**given)
