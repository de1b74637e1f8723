"""The fleet's catalogue: how models are to be served, wherever they are. One file, `models.yaml` or TOML.

An entry has the keys of an entry of `models` in a neuron's own file, and those that are about the fleet. The
keys of the file before this one (`models.toml` of the seed system) are read as what they mean here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from gateway.aliases import AliasError, Aliases
from gateway.config import GatewayConfig
from gateway.seed_keys import translated
from ipc.messages.catalogue import FleetCatalogue
from ipc.model_settings import MAX_MODELS, ModelSettings, check_models
from ipc.settings import ConfigError, convert_settings, read_mapping, written

Price = Annotated[float, Meta(ge=0)]

ENTRY_KEYS = ("id", "path", "source", "adapters", "aliases", "simulated")  # that cannot be several models'


class Cost(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a million tokens cost, in dollars, for clients that show it."""

    input: Price
    output: Price
    cache_read: Price | None = None
    cache_write: Price | None = None


class Entry(ModelSettings, frozen=True, kw_only=True, omit_defaults=True):
    """A model, and where and under which names it is served."""

    aliases: list[str] = []  # further names; a star stands for any text
    pinned_on: list[str] = []  # neurons that alone serve it; empty: all
    cost: Cost | None = None  # null: nobody has said; 0: it is free

    @property
    def settings(self) -> ModelSettings:
        """What a neuron is told of it."""
        return ModelSettings(**{name: getattr(self, name) for name in ModelSettings.__struct_fields__})


class _File(Struct, frozen=True, kw_only=True):
    models: list[Entry] = []
    aliases: dict[str, str] = {}
    defaults: dict[str, Any] = {}  # what they mean is in `models` already


class Catalogue(Struct, frozen=True, kw_only=True, dict=True):
    """What the file says.

    Attributes:
        aliases: models by their further names, those of entries and those of the file.
        notes: what stands in it and changes nothing, and why.
        inherited: keys that a model has from `defaults`, by its id.
        modified: Unix time at which the file was written.
    """

    models: list[Entry] = []
    aliases: dict[str, str] = {}
    notes: list[str] = []
    inherited: dict[str, list[str]] = {}
    modified: float = 0.0

    @cached_property
    def entries(self) -> dict[str, Entry]:
        """By id."""
        return {entry.id: entry for entry in self.models}

    @cached_property
    def version(self) -> str:
        """The same for the same content."""
        content = msgspec.json.encode((self.models, self.aliases))
        return hashlib.sha256(content).hexdigest()[:16]

    def of(self, neuron: str, origin: str) -> FleetCatalogue:
        """As that neuron is told it.

        Args:
            origin: where it comes from, for the neuron to tell gateways apart.
        """
        models, elsewhere = [], {}
        for entry in self.models:
            if not entry.pinned_on or neuron in entry.pinned_on:
                models.append(entry.settings)
            else:
                elsewhere[entry.id] = entry.pinned_on
        return FleetCatalogue(
            version=self.version, origin=origin, modified=self.modified, models=models, elsewhere=elsewhere
        )


def check(config: GatewayConfig) -> None:
    """See that the catalogue of a gateway can be used, where it has one. ConfigError where not."""
    if config.models_config is not None:
        load(config.models_config, [neuron.name for neuron in config.neurons], config.aliases)


def load(path: str | Path, neurons: Collection[str], aliases: Mapping[str, str]) -> Catalogue:
    """Read and check the file at `path`.

    Args:
        neurons: the names of those that there are.
        aliases: of the gateway's own file.

    Raises:
        ConfigError: naming file, key, value and, in YAML, the line.
    """
    try:
        return _load(path, neurons, aliases)
    except ConfigError as error:
        from ipc.yaml_text import line_of

        if (line := line_of(path, error.key)) is None:
            raise
        raise ConfigError(path, error.key, f"{error.message} (line {line})") from error


def _load(path: str | Path, neurons: Collection[str], aliases: Mapping[str, str]) -> Catalogue:
    modified = written(path)
    data, notes, inherited = dict(read_mapping(path)), [], {}
    defaults = _defaults(data.get("defaults") or {}, path, notes)
    if isinstance(listed := data.get("models"), list):
        if len(listed) > MAX_MODELS:
            text = f"there are {len(listed)} entries, and a neuron takes {MAX_MODELS}"
            raise ConfigError(path, "models", text)
        entries = [translated(each, f"models[{i}]", path, notes) for i, each in enumerate(listed)]
        data["models"] = [_inheriting(each, defaults) for each in entries]
        for each in filter(lambda each: isinstance(each, dict), entries):
            inherited[str(each.get("id"))] = [name for name in defaults if name not in each]
    file = convert_settings(data, _File, path)
    check_models({f"models[{i}]": entry for i, entry in enumerate(file.models)}, None, str(path))
    _check_places(file, neurons, path)
    return Catalogue(
        models=file.models,
        aliases=_aliases(file, aliases, path),
        notes=notes,
        inherited={name: keys for name, keys in inherited.items() if keys},
        modified=modified,
    )


def _defaults(given: Any, path: str | Path, notes: list[str]) -> dict[str, Any]:
    """Keys for every entry that does not have them, checked where they stand."""
    given = translated(given, "defaults", path, notes)
    if isinstance(given, dict) and (single := [name for name in ENTRY_KEYS if name in given]):
        raise ConfigError(path, f"defaults.{single[0]}", "is one model's, and cannot be every one's")
    if isinstance(given, dict):
        convert_settings({"id": "any", **given}, Entry, path, "defaults")
        return given
    raise ConfigError(path, "defaults", f"Expected keys and values; the value is {given!r}")


def _inheriting(entry: Any, defaults: dict[str, Any]) -> Any:
    if not isinstance(entry, dict):
        return entry
    both = {name for name in entry if isinstance(entry[name], dict) and isinstance(defaults.get(name), dict)}
    return defaults | entry | {name: defaults[name] | entry[name] for name in both}


def _check_places(file: _File, neurons: Collection[str], path: str | Path) -> None:
    for i, entry in enumerate(file.models):
        for j, name in enumerate(entry.pinned_on):
            if name not in neurons:
                text = f"{name!r} is no neuron; there are {', '.join(neurons)}"
                raise ConfigError(path, f"models[{i}].pinned_on[{j}]", text)


def _aliases(file: _File, own: Mapping[str, str], path: str | Path) -> dict[str, str]:
    """Of all entries and of the file itself, each with one meaning."""
    ids = {entry.id for entry in file.models}
    found: dict[str, str] = {}
    given = [
        (f"models[{i}].aliases", name, entry.id)
        for i, entry in enumerate(file.models)
        for name in entry.aliases
    ]
    given += [(f"aliases.{name}", name, target) for name, target in file.aliases.items()]
    keys = {name: key for key, name, _ in given}
    for key, name, target in given:
        before = found.get(name, own.get(name, target))
        if before != target:
            raise ConfigError(path, key, f"{name!r} means {before!r} already, and {target!r} here")
        if name in ids and name != target:
            raise ConfigError(path, key, f"{name!r} is the id of a model")
        found[name] = target
    try:
        Aliases(dict(own) | found)
    except AliasError as error:
        key = keys.get(error.name, "aliases")
        raise ConfigError(path, key, f"{error.name!r} {error.message}") from error
    return found
