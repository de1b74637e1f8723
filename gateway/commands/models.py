"""`cortex models check`: what a catalogue means on every host of the fleet, before it counts."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from msgspec import Struct
from rich.console import Console
from rich.text import Text

from gateway import catalogue, config
from gateway.catalogue import Catalogue, Entry
from gateway.commands import remote, tables
from gateway.commands.failure import fail
from gateway.commands.options import LOCAL, ConfigOption, EndpointOption, JsonOption, RawOption
from ipc.client import NeuronClient
from ipc.errors import CortexError
from ipc.keys import load_public, load_secret
from ipc.messages.catalogue import Appraisal
from ipc.messages.requests import CheckCatalogue, Hello
from ipc.settings import ConfigError
from ipc.sizes import gib

app = typer.Typer(no_args_is_help=True, help="The fleet's models.")

HELLO_SECONDS = 5.0
CHECK_SECONDS = 60.0  # for a neuron, which may have to read many headers from a cold disk
UNSERVED = 2  # exit code, beside 1 of what cannot be used
SERVED = ("fits", "own", "pulled")
_WORDS = {
    "fits": "fits",
    "own": "its own file counts",
    "too_large": "does not fit",
    "missing": "files are not there",
    "pulled": "files come when it is asked for",
    "broken": "cannot be served",
    "refused": "not served here",
}


class Checked(Struct):
    """One model on all hosts.

    Attributes:
        set: its keys that are not the default, and of these
        inherited: those that it has from `defaults`.
        hosts: by neuron, of those that answered.
        unserved: every host that might serve it has answered, and none can.
    """

    model: str
    aliases: list[str]
    set: list[str]
    inherited: list[str]
    hosts: dict[str, Appraisal]
    unserved: bool


class Report(Struct):
    """All that is found out.

    Attributes:
        silent: neurons that could not be asked, and why.
        notes: what stands in the file and changes nothing, or means something else here.
    """

    path: str
    version: str
    models: list[Checked]
    silent: dict[str, str]
    notes: list[str]


@app.command("list")
def list_command(
    endpoint: EndpointOption = LOCAL,
    as_json: RawOption = False,
) -> None:
    """Show what can be asked for, and where it is."""
    try:
        body = remote.fetch(endpoint, "/v1/models")
        listed = msgspec.json.decode(body)["data"]
    except (remote.Unreachable, msgspec.DecodeError, KeyError, TypeError) as error:
        fail("models list", error)
    if as_json:
        typer.echo(body)
        return
    table = tables.table("model", "means", "status", "on", "context", "can")
    for each in listed:
        where = ", ".join(
            place["neuron"] + ("" if place["status"] == each["status"] else f" ({place['status']})")
            for place in each["locations"]
        )
        context = str(each.get("context_length", ""))
        cells = (each["id"], each.get("alias_of", ""), each["status"], where, context)
        tables.row(table, *cells, ", ".join(each["capabilities"]))
    tables.console().print(table)


@app.command("check")
def check_command(
    file: Annotated[
        Path | None, typer.Argument(help="Default: `models_config` of the gateway's configuration.")
    ] = None,
    config_file: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Explain every model of a catalogue: where it can be served, from which files, if it fits, and why not.

    Nothing is changed. Exit code 1: the file cannot be used; 2: no host that might serve some model can.
    """
    try:
        settings = config.load(config_file)
        path = file or (settings.models_config and Path(settings.models_config))
        if path is None:
            fail(
                "models check",
                "there is no catalogue: name a file, or set models_config in the gateway's configuration",
            )
        read = catalogue.load(path, [each.name for each in settings.neurons], settings.aliases)
        answers = asyncio.run(ask_all(settings, read, str(path)))
    except (ConfigError, CortexError) as error:
        fail("models check", error)
    report = made_of(read, str(path), answers)
    if as_json:
        typer.echo(msgspec.json.encode(report))
    else:
        show(report, tables.console())
    if any(each.unserved for each in report.models):
        raise typer.Exit(UNSERVED)


async def ask_all(
    settings: config.GatewayConfig, read: Catalogue, origin: str
) -> dict[str, list[Appraisal] | str]:
    """What each neuron says of the catalogue, by its name, or why it says nothing.

    Raises:
        CortexError: a key of the configuration cannot be used.
    """
    key_file = settings.gateway.key_file
    secret = load_secret(key_file) if key_file is not None else None
    answers = await asyncio.gather(*(_ask(each, secret, read, origin) for each in settings.neurons))
    return {each.name: answer for each, answer in zip(settings.neurons, answers, strict=True)}


async def _ask(
    entry: config.NeuronSettings, secret: str | None, read: Catalogue, origin: str
) -> list[Appraisal] | str:
    public = load_public(entry.public_key) if entry.public_key is not None else None
    own = secret if public is not None else None
    client = NeuronClient(entry.endpoint, secret=own, server_public=public)
    client.start()
    try:
        await client.ask(Hello(id=0, client="cortex models check"), HELLO_SECONDS)
        request = CheckCatalogue(id=0, catalogue=read.of(entry.name, origin))
        return (await client.ask(request, CHECK_SECONDS)).models
    except CortexError as error:
        return error.message
    finally:
        client.close()


def made_of(read: Catalogue, path: str, answers: dict[str, list[Appraisal] | str]) -> Report:
    """The report, of what was read and what neurons said."""
    silent = {name: answer for name, answer in answers.items() if isinstance(answer, str)}
    said = {
        name: {each.model: each for each in answer}
        for name, answer in answers.items()
        if not isinstance(answer, str)
    }
    models = [_checked(entry, read, said, silent) for entry in read.models]
    return Report(path=path, version=read.version, models=models, silent=silent, notes=read.notes)


def _checked(
    entry: Entry, read: Catalogue, said: dict[str, dict[str, Appraisal]], silent: dict[str, str]
) -> Checked:
    hosts = {name: of[entry.id] for name, of in said.items() if entry.id in of}
    may = set(entry.pinned_on) or {*said, *silent}
    served = any(each.verdict in SERVED for each in hosts.values())
    default = Entry(id=entry.id)
    names = Entry.__struct_fields__
    return Checked(
        model=entry.id,
        aliases=[name for name, target in read.aliases.items() if target == entry.id],
        set=[name for name in names if getattr(entry, name) != getattr(default, name)],
        inherited=read.inherited.get(entry.id, []),
        hosts=hosts,
        unserved=not served and not may & silent.keys(),
    )


def show(report: Report, console: Console) -> None:
    """Print it for people."""
    table = tables.table("model", "neuron", "", "memory", "context", "devices", "files, or why not")
    for model in report.models:
        for name, host in model.hosts.items():
            cells = (
                model.model,
                name,
                _WORDS.get(host.verdict, host.verdict),
                *_figures(host),
                _reason(host),
            )
            tables.row(table, *cells)
    if table.row_count:
        console.print(table)
        console.print()
    for model in report.models:
        if facts := _facts(model):
            console.print(Text(f"{model.model}: {'; '.join(facts)}"))
    for note in report.notes:
        console.print(Text(note))
    for name, why in report.silent.items():
        console.print(Text(f"{name} was not asked: {why}"))
    for model in report.models:
        if model.unserved:
            console.print(Text(f"{model.model} can be served nowhere"))
    count = len(report.models)
    console.print(Text(f"{report.path} can be used: {count} model{'' if count == 1 else 's'}"))


def _figures(host: Appraisal) -> tuple[str, str, str]:
    if host.verdict != "fits":
        return "", "", ""
    cut = f" of {host.context_wanted}" if host.context_wanted > host.context_length else ""
    return gib(host.bytes, 1), f"{host.context_length}{cut}", " ".join(host.devices)


def _reason(host: Appraisal) -> str:
    return "; ".join(text for text in (host.path, host.message) if text)


def _facts(model: Checked) -> list[str]:
    facts = [f"also called {', '.join(model.aliases)}"] if model.aliases else []
    own = [name for name in model.set if name not in ("id", "aliases", *model.inherited)]
    facts += [f"sets {', '.join(own)}"] if own else []
    return [*facts, f"inherits {', '.join(model.inherited)}"] if model.inherited else facts
