"""The keys with which a neuron listens: its own, and those of the clients that it lets in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ipc.errors import CortexError
from ipc.keys import load_public, load_secret
from ipc.server import check_keys
from ipc.settings import ConfigError
from neuron.config import NeuronConfig


def read_keys(config: NeuronConfig, source: str | Path) -> tuple[str | None, list[str]]:
    """The secret key, if there is one, and the public ones.

    Args:
        source: where `config` comes from, for the error.

    Raises:
        ConfigError: a key cannot be read, or the listener would be open to other hosts without keys.
    """
    secret = None if config.key_file is None else _read(load_secret, config.key_file, "key_file", source)
    named = [(f"allowed_keys[{i}]", key) for i, key in enumerate(config.allowed_keys)]
    allowed = [_read(load_public, key, name, source) for name, key in named]
    try:
        check_keys(config.listen, secret, allowed, config.insecure)
    except CortexError as error:
        key = "allowed_keys" if secret is not None else "key_file" if allowed else "listen"
        raise ConfigError(source, key, error.message) from error
    return secret, allowed


def _read(load: Callable[[str], str], given: str, name: str, source: str | Path) -> str:
    try:
        return load(given)
    except CortexError as error:
        raise ConfigError(source, name, error.message) from error
