"""`cortex keys`: who may ask, kept in a file that running gateways look at every second."""

from __future__ import annotations

import asyncio
import re
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.table import Table

from gateway import config
from gateway.access import api_key
from gateway.commands import tables
from gateway.commands.failure import fail
from gateway.commands.options import ConfigOption, JsonOption
from gateway.store import key_store
from gateway.store.database import Work
from gateway.store.key_store import MAX_INT, Key, KeyStore, Terms, UsageRow
from ipc.errors import CortexError
from ipc.settings import ConfigError

app = typer.Typer(no_args_is_help=True, help="Make, list and revoke API keys.")

SERVICE = Path("/etc/cortex")  # where the configuration of the service is
SERVICE_STATE = Path("/var/lib/cortex")  # what systemd gives the service
MAX_DAYS = 3660  # that usage is looked at
_AGO = re.compile(r"(\d+)([smhdw])")
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def store_path(given: Path | None) -> Path:
    """The file of keys of the gateway with that configuration.

    Raises:
        ConfigError: of it.
    """
    found = given or config.find()
    settings = config.load(found).access if found is not None else config.AccessSettings()
    served = found is not None and found.absolute().parent == SERVICE and SERVICE_STATE.is_dir()
    if settings.path is None and served:  # outside of the service, nobody tells where it keeps things
        return SERVICE_STATE / key_store.KEYS.file
    return config.keys_path(settings)


def moment(text: str, now: float) -> float:
    """The Unix time meant by `30d` or `2027-01-31`, which must be to come; ValueError when it means none."""
    if match := _AGO.fullmatch(text):
        when = now + int(match[1]) * _UNITS[match[2]]
    else:
        given = datetime.fromisoformat(text)
        when = (given if given.tzinfo else given.replace(tzinfo=UTC)).timestamp()
    if when <= now:
        raise ValueError
    datetime.fromtimestamp(when, UTC)  # there is such a time
    return when


def _read(path: Path, work: Work[..., list[Any]], *args: Any) -> list[Any]:
    """What that finds in the store at `path`, which nobody makes for it; or fail in words."""
    return _run(path, work, *args) or []


def _run(path: Path, work: Work[..., Any], *args: Any, write: bool = False) -> Any:
    """Do that with the store at `path`, or fail in words; None where there is none to read."""
    store = KeyStore(path)

    async def run() -> Any:
        if write:
            return await store.write(work, *args)
        return await store.read(work, *args) if await store.exists() else None

    try:
        return asyncio.run(run())
    except CortexError as error:
        fail("keys", error.message)
    finally:
        store.close()


def _path(given: Path | None) -> Path:
    try:
        return store_path(given)
    except (ConfigError, CortexError) as error:
        fail("keys", error)


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="Whose it is, for people.")],
    model: Annotated[
        list[str] | None, typer.Option(help="A model that it allows, as often as you like; 'Qwen/*' too.")
    ] = None,
    endpoint: Annotated[
        list[str] | None, typer.Option(help="A path that it allows, such as '/v1/chat/*', as often.")
    ] = None,
    admin: Annotated[bool, typer.Option("--admin", help="It may change the fleet.")] = False,
    requests_per_minute: Annotated[int | None, typer.Option(min=0, max=MAX_INT)] = None,
    requests_per_day: Annotated[int | None, typer.Option(min=0, max=MAX_INT)] = None,
    tokens_per_minute: Annotated[
        int | None, typer.Option(min=0, max=MAX_INT, help="Of prompts and answers.")
    ] = None,
    tokens_per_day: Annotated[int | None, typer.Option(min=0, max=MAX_INT)] = None,
    priority: Annotated[
        int,
        typer.Option(min=-MAX_INT, max=MAX_INT, help="Of its requests at least; a smaller one is sooner."),
    ] = 0,
    expires: Annotated[str | None, typer.Option(help="30d, 12h or 2027-01-31 (UTC). Default: never.")] = None,
    config_file: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a key and show it, this once."""
    if not name.isprintable() or not 0 < len(name) <= 100:
        fail("keys", "NAME: Expected 1 to 100 characters that can be printed")
    if "" in (model or ()):
        fail("keys", "--model: Expected the name of a model")
    for path in endpoint or ():
        if not path.startswith(("/", "*")):  # it would allow nothing
            fail("keys", f"--endpoint {path}: Expected a path, such as /v1/chat/*")
    try:
        until = moment(expires, time.time()) if expires is not None else None
    except (ValueError, OverflowError, OSError):  # the last two of a year that is none
        fail("keys", f"--expires {expires} is no time to come, such as 30d, 12h or 2027-01-31")
    terms = Terms(
        models=tuple(model or ()),
        endpoints=tuple(endpoint or ()),
        admin=admin,
        requests_per_minute=requests_per_minute,
        requests_per_day=requests_per_day,
        tokens_per_minute=tokens_per_minute,
        tokens_per_day=tokens_per_day,
        priority=priority,
    )
    path = _path(config_file)
    key = api_key.make()
    _run(path, key_store.add, key.id, key.digest, name, until, terms, write=True)
    if as_json:
        typer.echo(msgspec.json.encode({"id": key.id, "name": name, "key": key.text, "store": str(path)}))
        return
    typer.echo(key.text)
    typer.echo(f"{key.id}, kept as a digest in {path}: this is the only time that it is shown", err=True)


@app.command("list")
def list_keys(config_file: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Show the keys and what each allows."""
    path = _path(config_file)
    found: list[Key] = _read(path, key_store.every)
    if as_json:
        typer.echo(msgspec.json.encode([_plain(key) for key in found]))
        return
    table = tables.table("key", "name", "made", "state", "models", "endpoints", "limits", "priority")
    for key in found:
        terms = key.terms
        tables.row(
            table,
            key.id,
            key.name,
            _date(key.created),
            _state(key),
            " ".join(terms.models) or "all",
            (" ".join(terms.endpoints) or "all") + (", admin" if terms.admin else ""),
            _limits(terms),
            str(terms.priority),
        )
    _print(table, f"no keys in {path}; make one with `cortex keys create NAME`")


@app.command()
def revoke(
    key: Annotated[str, typer.Argument(help="Its id, or its name where no other has it.")],
    config_file: ConfigOption = None,
) -> None:
    """Take a key back: within a second no gateway accepts it."""
    path = _path(config_file)
    found: list[Key] = _read(path, key_store.named, key)
    if not found:
        fail("keys", f"{key}: no key in {path} has that id or name and holds; see `cortex keys list`")
    if len(found) > 1:
        fail(
            "keys",
            f"{key}: several keys have that name; name one by its id: {', '.join(each.id for each in found)}",
        )
    _run(path, key_store.revoke, found[0].id, write=True)
    typer.echo(f"{found[0].id} ({found[0].name}) is revoked")


@app.command()
def usage(
    days: Annotated[
        int, typer.Option(min=1, max=MAX_DAYS, help="Today and the days before it, of UTC.")
    ] = 30,
    config_file: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what was used, by key and model."""
    path = _path(config_file)
    since = (datetime.now(UTC) - timedelta(days=days - 1)).strftime("%Y-%m-%d")
    rows: list[UsageRow] = _read(path, key_store.usage, since)
    names = {key.id: key.name for key in _read(path, key_store.every)}
    if as_json:
        typer.echo(msgspec.json.encode([row._asdict() for row in rows]))
        return
    table = tables.table(
        "key", "name", "model", "requests", "prompt tokens", "of these cached", "answer tokens", "last"
    )
    for row in rows:
        counts = (row.requests, row.prompt_tokens, row.cached_tokens, row.completion_tokens)
        tables.row(
            table, row.key, names.get(row.key, ""), row.model, *(f"{count:,}" for count in counts), row.day
        )
    _print(table, f"nothing was used with a key since {since}")


def _plain(key: Key) -> dict[str, Any]:
    fields = key._asdict() | {"terms": msgspec.to_builtins(key.terms), "state": _state(key)}
    return {name: value for name, value in fields.items() if name not in ("number", "digest")}


def _state(key: Key) -> str:
    if key.revoked is not None:
        return f"revoked {_date(key.revoked)}"
    if key.expires is None:
        return "holds"
    return f"{'expired' if key.expires <= time.time() else 'holds until'} {_date(key.expires)}"


def _limits(terms: Terms) -> str:
    each = (
        (terms.requests_per_minute, "requests/min"),
        (terms.requests_per_day, "requests/day"),
        (terms.tokens_per_minute, "tokens/min"),
        (terms.tokens_per_day, "tokens/day"),
    )
    return ", ".join(f"{limit:,} {what}" for limit, what in each if limit is not None) or "none"


def _date(when: float) -> str:
    return datetime.fromtimestamp(when, UTC).strftime("%Y-%m-%d %H:%M")


def _print(table: Table, instead: str) -> None:
    if not table.row_count:
        typer.echo(instead)
        return
    tables.console().print(table)
