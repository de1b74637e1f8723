"""The `neuron` command.

What needs the packages of the extra `neuron` is imported where it is used: without them, the command says so.
So is what draws tables: most commands draw none.
"""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from ipc.errors import CortexError
from ipc.farewell import leave_modules_alone
from ipc.lifeline import die_with_parent
from ipc.saying import saying
from ipc.settings import ConfigError
from ipc.sizes import gib
from ipc.version import version
from neuron.config import NeuronConfig, load

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from neuron.inspection import Choice, Context

DEFAULT_PATHS = ("neuron.yaml", "neuron.toml", "/etc/neuron/neuron.yaml", "/etc/neuron/neuron.toml")

PLAIN_WIDTH = 200  # of tables for files and pipes, where nothing has to fit a screen

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", help=f"YAML or TOML; else $NEURON_CONFIG, {', '.join(DEFAULT_PATHS)}."),
]


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"neuron {version()}")
        raise typer.Exit


@app.callback()
def neuron(
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Serve models from the devices of this host."""


@app.command()
def serve(
    config: ConfigOption = None,
    die_with: Annotated[int | None, typer.Option("--die-with-parent", hidden=True)] = None,
) -> None:
    """Run the daemon until SIGTERM or Ctrl-C."""
    if die_with is not None:
        die_with_parent(die_with)
    path = _find(config)
    settings = _load(path)
    gc.disable()  # until it runs: nothing of what is imported is garbage, and to look for some takes long
    from neuron.daemon import run

    try:
        code = run(settings, path)
    except ConfigError as error:
        _fail(error)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # a thread that a driver holds must not keep the process


@app.command()
def discover() -> None:
    """Show the devices of this host."""
    from rich.table import Table

    from neuron.memory.devices import Inventory

    inventory = Inventory(NeuronConfig())
    table = Table("device", "name", "memory", "free", "bandwidth", "capability", "driver", "cores")
    for device in inventory.devices:
        _add_row(
            table,
            device.id,
            device.name,
            gib(device.memory_total, 1),
            gib(device.memory_free, 1),
            f"{device.memory_rate / 1e9:,.0f} GB/s" if device.memory_rate else "",
            device.compute_capability or "",
            device.driver or "",
            str(device.cores or ""),
        )
    _console().print(table)
    if inventory.cuda_unavailable:
        print(f"CUDA cannot be used: {inventory.cuda_unavailable}")


@app.command()
def check(
    path: Annotated[
        str | None,
        typer.Argument(help="A checkpoint's folder or file, or a model's name: say what it is, and takes."),
    ] = None,
    config: ConfigOption = None,
) -> None:
    """Read the configuration, inspect its models, and say what would fit where. Exit code 1 on problems.

    Pinned models are placed together, in their order; every other one is placed beside those alone. With a
    PATH the checkpoint there is looked at, and no other; only a --config then limits the devices. A model's
    name is looked for where the neuron of this configuration, or without one of this user, would.
    """
    if path is not None:
        _check_path(path, config)
    from rich.table import Table

    from neuron.checking import place_all

    try:
        found = place_all(_read(config))
    except ConfigError as error:
        _fail(error)
    table = Table("model", "architecture", "dtype", "context", "devices", "memory", "KV tokens")
    for settings, description, fit in found.placed:
        _add_row(
            table,
            settings.id + (" (pinned)" if settings.pin else ""),
            description.architecture,
            description.dtype,
            str(fit.context_length),
            ", ".join(fit.devices),
            " + ".join(gib(size, 1) for size in fit.reservations.values()),
            str(fit.kv_tokens),
        )
    _console().print(table)
    for line in (*found.notes, *found.problems):
        print(line)
    raise typer.Exit(1 if found.problems else 0)


@app.command()
def pull(
    model: Annotated[
        str, typer.Argument(help="ORGANISATION/NAME, or ORGANISATION/NAME:Q4_K_M of several GGUF models.")
    ],
    revision: Annotated[
        str | None, typer.Option(help="A branch, a tag or a commit, to be served. Default: main.")
    ] = None,
    config: ConfigOption = None,
) -> None:
    """Fetch the files that a model needs from the Hugging Face hub, or the one in HF_ENDPOINT.

    They go where the neuron of this configuration, or without one of this user, looks for models; a neuron
    that runs offers the model within seconds. What was cut off goes on where it was.
    """
    from neuron.catalogue.catalogue import default_cache
    from neuron.inspection import size_of
    from neuron.pulling import hub

    hub.silence_library(bars=sys.stderr.isatty())
    here = _usual(config)
    own = _load(here).hf_cache if here is not None else None
    cache = Path(own).expanduser() if own else default_cache()
    try:
        chosen = hub.look(model, cache, revision)
        of = f"{chosen.repository} at {chosen.commit[:12]}"
        print(f"{len(chosen.files)} files, {size_of(chosen.size)}, of {of}")
        folder = hub.fetch(chosen, cache, _tell_checking)
    except CortexError as error:
        _fail(error.message)
    print(f"{model} is in {folder}")


def _tell_checking(name: str, size: int) -> None:
    if not size:
        print(f"comparing {name} with its checksum")


def _check_path(given: str, config: Path | None) -> NoReturn:
    from neuron.text.outline import Outline

    path = Path(given)
    is_name = not os.path.lexists(path) and _may_be_name(given)
    file = _usual(config) if is_name else config
    settings = NeuronConfig() if file is None else _load(file)
    gc.disable()  # nothing of what is read is garbage, and to look for some takes long
    try:
        path = _named(path, settings) if is_name else path
    except CortexError as error:
        _fail(error.message)
    outline = Outline(path)  # read from here on, beside all else
    from rich.table import Table

    from neuron.inspection import inspect, size_of
    from neuron.memory.devices import Inventory

    try:
        inventory = Inventory(settings)
        found = inspect(path, inventory.devices, outline)
    except ConfigError as error:
        _fail(error)
    except CortexError as error:
        _fail(error.message)
    finally:
        gc.enable()
    facts = Table.grid("", "", padding=(0, 3))
    for about, fact in found.facts.items():
        _add_row(facts, about, fact)
    ranks = list(found.choices[0].rank_bytes)
    table = Table("weights", *("1 rank" if count == 1 else f"{count} ranks, at most" for count in ranks))
    free = {
        device.id: f"context on {device.id}\n{gib(device.memory_free, 1)} free"
        for device in inventory.devices
    }
    for place in found.choices[0].contexts:
        table.add_column(free.get(place, f"context on {place}"))
    for choice in found.choices:
        sizes = (choice.rank_bytes.get(count) for count in ranks)
        _add_row(
            table,
            choice.quantization or "as stored",
            *("-" if size is None else size_of(size) for size in sizes),
            *(_context(choice, place) for place in choice.contexts),
        )
    _console().print(facts, table)
    for line in (*found.notes, *found.problems):
        print(line)
    raise typer.Exit(1 if found.problems else 0)


def _may_be_name(given: str) -> bool:
    """Whether what was given, where nothing is, may be a model's name: no such one looks like a path."""
    parts = given.split("/")
    is_file = given.endswith((".gguf", ".safetensors", ".json"))
    return not (given.startswith(".") or {"", ".."} & {*parts} or len(parts) > 2 or is_file)


def _named(path: Path, settings: NeuronConfig) -> Path:
    """Where a model of that name is, or would be in a folder that is there; raises as `Catalogue.find`."""
    from neuron.catalogue.catalogue import Catalogue

    try:
        return Catalogue(settings).find(str(path))
    except CortexError:
        if len(path.parts) > 1 and os.path.isdir(path.parent):
            return path
        raise


def _context(choice: Choice, place: str) -> str:
    """How many tokens fit, and how many with keys and values in 8 bits, where that is more."""
    context, more = choice.contexts[place], choice.kept_in_8_bits.get(place)
    fits = _tokens(context) if context.tokens else "does not fit"
    return fits if more is None else f"{fits}; {_tokens(more)} in 8 bits"


def _tokens(context: Context) -> str:
    """How many, and by which parts GPUs share the model, where they do so unevenly."""
    if context.split is None:
        return f"{context.tokens:,}"
    return f"{context.tokens:,} ({':'.join(map(str, context.split.counts))})"


def main() -> None:
    """Entry point of the `neuron` command."""
    leave_modules_alone()
    try:
        with saying("neuron"):
            app()
    except ModuleNotFoundError as error:
        sys.exit(
            f"neuron: {error.name} is not installed; a GPU host needs the extra: pip install '.[neuron]'"
        )


def _read(path: Path | None) -> NeuronConfig:
    """The configuration that was named, or at the first default place that has one."""
    return _load(_find(path))


def _usual(path: Path | None) -> str | Path | None:
    """Where the configuration is: as said, or else where it usually is; None: nowhere."""
    named = path or os.environ.get("NEURON_CONFIG")
    return named or next((place for place in DEFAULT_PATHS if Path(place).is_file()), None)


def _find(path: Path | None) -> str | Path:
    if (found := _usual(path)) is None:
        _fail(f"no configuration: give --config, or write one of {', '.join(DEFAULT_PATHS)}")
    return found


def _load(path: str | Path) -> NeuronConfig:
    try:
        return load(path)
    except ConfigError as error:
        _fail(error)


def _fail(reason: object) -> NoReturn:
    print(f"neuron: {reason}", file=sys.stderr)
    raise typer.Exit(1)


def _console() -> Console:
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console.width = PLAIN_WIDTH
    return console


def _add_row(table: Table, *cells: str) -> None:
    """Names and paths as they are, though they hold what rich takes for markup."""
    from rich.text import Text

    table.add_row(*map(Text, cells))
