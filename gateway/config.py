"""The gateway's configuration: where it is looked for, what may stand in it, and what it means."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from functools import partial
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta, Struct, field
from msgspec.structs import asdict, replace

from gateway.aliases import AliasError, Aliases
from gateway.fetching.hosts import canonical
from gateway.fetching.settings import ImageSettings
from gateway.store.database import default_path
from gateway.store.key_store import KEYS
from ipc.errors import CortexError
from ipc.keys import load_public, load_secret
from ipc.messages.conversation import MAX_IMAGE
from ipc.messages.requests import Strategy
from ipc.settings import SECONDS, ConfigError, Duration, Size, Timeout, load_settings, written
from ipc.sockets import MAX_MESSAGE

PLACES = ("cortex.yaml", "cortex.toml", "/etc/cortex/cortex.yaml", "/etc/cortex/cortex.toml")

MAX_BODY = MAX_MESSAGE - (1 << 20)  # a request is no longer in msgpack than in JSON; some room for the rest

LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s[%(process)d] %(message)s"

MIN_STORE = 1 << 20  # bytes

MIN_HEADER = 1024  # bytes; clients' own headers need some

_ORIGIN = re.compile(r"\*|loopback|null|[A-Za-z][A-Za-z0-9+.-]*://[^/\s]+")
_LISTEN = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^:/\[\]\s]+):(\d{1,5})")
_ENDPOINT = re.compile(r"ipc://.+|(?:tcp|http)://(?:\[[0-9A-Fa-f:.%]+\]|[^:/\[\]\s]+):(\d{1,5})/?")


class Listeners(Struct, frozen=True, kw_only=True):
    """The gateway's own settings."""

    listen: str = "127.0.0.1:31313"
    metrics_listen: str | None = "127.0.0.1:31314"  # null: no metrics
    workers: Annotated[int, Meta(ge=1)] = 1  # gunicorn processes
    body_limit: Size = 32 << 20  # bytes of one request's body
    body_seconds: Timeout = 120  # until it has to be there
    body_memory: Size = 256 << 20  # bytes of all bodies that one process holds
    header_limit: Size = 16 << 10  # bytes of the request line and of each field; all have four times that
    header_seconds: Timeout = 30  # until a header has to be there
    # Longer than clients keep a connection that idles (reqwest and Go 90, nginx and .NET 60), so that none is
    # closed while they use it again.
    keepalive_seconds: Annotated[float, Meta(ge=1, le=86_400, extra=SECONDS)] = 100
    # That a request which is not streamed waits for its model to load, and for its turn: less than proxies
    # wait for an answer.
    load_wait_seconds: Duration = 90
    # Since a neuron was lost, within which a request waits for its return that no other takes.
    lost_wait_seconds: Duration = 15
    cors_origins: tuple[str, ...] = ("loopback",)  # pages that may ask: scheme://host:port, loopback, or *
    hosts: tuple[str, ...] = ()  # further names that it is reached by through loopback
    key_file: str | None = None  # our CURVE secret key, for neurons that have a public_key
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    log_format: Literal["text", "json"] = "text"


class StoreSettings(Struct, frozen=True, kw_only=True):
    """What is kept of responses and conversations."""

    enabled: bool = True
    # Of the file; null: see `gateway.store.database.default_path`.
    path: Annotated[str, Meta(min_length=1)] | None = None
    max_age_days: Annotated[float, Meta(gt=0)] = 30
    max_size: Size = 1 << 30  # bytes of the file


class AccessSettings(Struct, frozen=True, kw_only=True):
    """Who may ask."""

    anonymous: bool | None = None  # requests without a key are served; null: on loopback alone
    # Of the file of keys; null: see `keys_path`.
    path: Annotated[str, Meta(min_length=1)] | None = None


class EvictionPolicy(Struct, frozen=True, kw_only=True):
    """How neurons make room; each is told at `hello`."""

    strategy: Strategy = "cost"
    defrag_after_cycles: Annotated[int, Meta(ge=1)] = 50
    min_residency_seconds: Duration = 0.0


class NeuronSettings(Struct, frozen=True, kw_only=True):
    """One host of the fleet."""

    name: Annotated[str, Meta(min_length=1)]
    endpoint: str  # tcp://host:port
    public_key: str | None = None  # a file, or the 40 characters themselves


class GatewayFile(Struct, frozen=True, kw_only=True):
    """Everything a gateway can be told. Without a word it serves the neuron of its own host."""

    gateway: Listeners = Listeners()
    access: AccessSettings = AccessSettings()
    images: ImageSettings = ImageSettings()
    eviction: EvictionPolicy = EvictionPolicy()
    store: StoreSettings = StoreSettings()
    aliases: dict[str, str] = {}  # models, by the further names that they have here; see `Aliases`
    models_config: Annotated[str, Meta(min_length=1)] | None = (
        None  # the fleet's catalogue, a file; null: none
    )
    neurons: list[NeuronSettings] = field(
        default_factory=lambda: [NeuronSettings(name="local", endpoint="tcp://127.0.0.1:13131")]
    )


class GatewayConfig(GatewayFile, frozen=True, kw_only=True):
    """What the file says, and which it was as that was read: it may have been written again since."""

    path: str = ""  # absolute; "": there was none
    modified: float = 0.0  # Unix time at which it was written

    @property
    def anonymous(self) -> bool:
        """Whether requests without a key are served."""
        return self.local if self.access.anonymous is None else self.access.anonymous

    @property
    def local(self) -> bool:
        """Whether nobody but this host reaches the API."""
        return is_loopback(split_address(self.gateway.listen)[0])


# What gunicorn's master has read, where it runs with our settings: its children inherit it.
in_force: GatewayConfig | None = None


def find() -> Path | None:
    """The file that this process is to use: `$CORTEX_CONFIG`, else the first of `PLACES` that is there."""
    if named := os.environ.get("CORTEX_CONFIG"):
        return Path(named)
    return next((path for place in PLACES if (path := Path(place)).is_file()), None)


def load(path: str | Path | None = None) -> GatewayConfig:
    """Read and check the file at `path`, or the one that `find` finds, or the defaults where there is none.

    Raises:
        ConfigError: naming file, key and value.
    """
    path = path or find()
    if path is None:
        return GatewayConfig()
    modified, place = written(path), Path(path).absolute()  # whatever folder we were started in
    said = asdict(load_settings(path, GatewayFile))
    config = _checked(GatewayConfig(**said, path=str(place), modified=modified), path)
    if config.models_config is None:
        return config
    return replace(config, models_config=str(place.parent / Path(config.models_config).expanduser()))


def split_address(address: str) -> tuple[str, int]:
    """Host and port of `host:port` or `[v6]:port`; ValueError when it is neither."""
    match = _LISTEN.fullmatch(address)
    if match is None or int(match[2]) > 65535:
        raise ValueError(f"Expected host:port, not {address!r}")
    return match[1].strip("[]"), int(match[2])


def is_loopback(host: str) -> bool:
    """Whether nobody but this host reaches it there."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def keys_path(settings: AccessSettings) -> Path:
    """The file of keys: without a word in the service's own folder under systemd, else in the user's."""
    return Path(settings.path).expanduser() if settings.path is not None else default_path(KEYS)


def _checked(config: GatewayConfig, path: str | Path) -> GatewayConfig:
    """`config` with endpoints in their one form, after what types alone cannot say."""
    ours = config.gateway
    ports = {}
    for key, address in (("listen", ours.listen), ("metrics_listen", ours.metrics_listen)):
        try:
            ports[key] = split_address(address)[1] if address is not None else None
        except ValueError as error:
            raise ConfigError(path, f"gateway.{key}", str(error)) from error
    if ports["metrics_listen"] == 0:
        raise ConfigError(path, "gateway.metrics_listen", "the port must be a fixed one, not 0")
    if ports["metrics_listen"] == ports["listen"]:
        raise ConfigError(
            path, "gateway.metrics_listen", f"{ours.metrics_listen!r} has the port of gateway.listen"
        )
    if not 1 <= ours.body_limit <= MAX_BODY:
        text = (
            f"Expected 1 to {MAX_BODY} bytes, as a message to a neuron takes no more, not {ours.body_limit}"
        )
        raise ConfigError(path, "gateway.body_limit", text)
    if ours.body_memory < ours.body_limit:
        text = f"Expected at least gateway.body_limit, {ours.body_limit} bytes, not {ours.body_memory}"
        raise ConfigError(path, "gateway.body_memory", text)
    if ours.header_limit < MIN_HEADER:
        text = f"Expected at least {MIN_HEADER} bytes, not {ours.header_limit}"
        raise ConfigError(path, "gateway.header_limit", text)
    _check_images(config, path)
    if config.store.max_size < MIN_STORE:
        text = f"Expected at least {MIN_STORE} bytes, not {config.store.max_size}"
        raise ConfigError(path, "store.max_size", text)
    if config.store.path is not None and (why := _unusable_file(Path(config.store.path).expanduser())):
        raise ConfigError(path, "store.path", f"{config.store.path!r}: {why}")
    if config.access.path is not None and (why := _unusable_file(Path(config.access.path).expanduser())):
        raise ConfigError(path, "access.path", f"{config.access.path!r}: {why}")
    for i, origin in enumerate(ours.cors_origins):
        if not _ORIGIN.fullmatch(origin):
            text = f"Expected scheme://host:port, loopback or *, not {origin!r}"
            raise ConfigError(path, f"gateway.cors_origins[{i}]", text)
    for i, host in enumerate(ours.hosts):
        _check_host(host, host, "", f"gateway.hosts[{i}]", path)
    if ours.key_file is not None:
        _usable(partial(load_secret, ours.key_file), path, "gateway.key_file")
    try:
        Aliases(config.aliases)
    except AliasError as error:
        raise ConfigError(path, f"aliases.{error.name}", error.message) from error
    return replace(config, neurons=_checked_neurons(config, path))


def _checked_neurons(config: GatewayConfig, path: str | Path) -> list[NeuronSettings]:
    """Those of `config`, with endpoints in their one form."""
    if not config.neurons:
        raise ConfigError(path, "neurons", "the list is empty; a gateway needs a neuron to serve")
    names: dict[str, int] = {}
    neurons = []
    for i, neuron in enumerate(config.neurons):
        key = f"neurons[{i}]"
        if neuron.name in names:
            raise ConfigError(
                path, f"{key}.name", f"{neuron.name!r} is the name of neurons[{names[neuron.name]}] already"
            )
        names[neuron.name] = i
        match = _ENDPOINT.fullmatch(neuron.endpoint)
        if match is None or (match[1] and not 0 < int(match[1]) < 65536):
            raise ConfigError(path, f"{key}.endpoint", f"Expected tcp://host:port, not {neuron.endpoint!r}")
        if neuron.public_key is not None:
            if config.gateway.key_file is None:
                raise ConfigError(
                    path, f"{key}.public_key", "needs gateway.key_file, our own key (make it: cortex keygen)"
                )
            _usable(partial(load_public, neuron.public_key), path, f"{key}.public_key")
        endpoint = re.sub(r"^http:", "tcp:", neuron.endpoint).rstrip("/")
        for j, other in enumerate(neurons):
            if other.endpoint == endpoint:
                text = f"{neuron.endpoint!r} is the endpoint of neurons[{j}] already"
                raise ConfigError(path, f"{key}.endpoint", text)
        neurons.append(replace(neuron, endpoint=endpoint))
    return neurons


def _check_images(config: GatewayConfig, path: str | Path) -> None:
    images = config.images
    most = min(MAX_IMAGE, MAX_BODY - config.gateway.body_limit)  # which come in one message with the body
    if images.fetch and not 1 <= images.limit <= most:
        text = f"Expected 1 to {most} bytes, beside the gateway.body_limit that there is, not {images.limit}"
        raise ConfigError(path, "images.limit", text)
    for i, network in enumerate(images.networks):
        try:
            ip_network(network)
        except ValueError as error:
            raise ConfigError(path, f"images.networks[{i}]", str(error)) from error
    for i, host in enumerate(images.hosts):
        _check_host(host.removeprefix("*."), host, ", or *.example.com", f"images.hosts[{i}]", path)


def _check_host(name: str, given: str, more: str, key: str, path: str | Path) -> None:
    try:
        canonical(name)
    except ValueError as error:
        text = f"Expected the name of a host, without a port{more}, not {given!r}"
        raise ConfigError(path, key, text) from error


def _unusable_file(path: Path) -> str:
    """Why we can neither write nor make that file; "" where we can."""
    exists, is_dir = os.path.exists, os.path.isdir  # which say no, where pathlib raises, of a closed folder
    if is_dir(path):
        return "it is a folder"
    place = path if exists(path) else next(each for each in path.absolute().parents if exists(each))
    if place != path and not is_dir(place):
        return f"{place} is no folder"
    return "" if os.access(place, os.W_OK) else f"{place} cannot be written"


def _usable(read_key: Callable[[], str], path: str | Path, key: str) -> None:
    try:
        read_key()
    except CortexError as error:
        raise ConfigError(path, key, error.message) from error
