"""`cortex load`, `unload`, `pin`, `evict`, `drain`, …: what whoever runs the fleet may change about it."""

from __future__ import annotations

import json
import time
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from gateway.commands import remote, tables
from gateway.commands.failure import fail
from gateway.commands.options import LOCAL, EndpointOption, JsonOption

UNLOAD_SECONDS = 660.0  # a little more than the gateway waits for what runs to end

NeuronOption = Annotated[str | None, typer.Option("--neuron", help="On that neuron alone.")]
ModelArgument = Annotated[str, typer.Argument(help="Its id, or an alias.")]
NeuronArgument = Annotated[str, typer.Argument(help="Its name in `cortex status`.")]
DrainedOption = Annotated[str | None, typer.Option("--model", help="Only that model, there.")]


def add_to(app: typer.Typer) -> None:
    """Make these commands of `app`."""
    for command in (load, unload, pin, unpin, evict, drain, resume, logs):
        app.command()(command)


def load(
    model: ModelArgument,
    neuron: NeuronOption = None,
    keep_alive: Annotated[
        str | None,
        typer.Option(
            help="How long it stays though nobody uses it: 5m, or -1 for ever. Default: as configured."
        ),
    ] = None,
    endpoint: EndpointOption = LOCAL,
    as_json: JsonOption = False,
) -> None:
    """Load a model, where it suits best, and show how far it is."""
    body = _body(model, neuron) | ({} if keep_alive is None else {"keep_alive": keep_alive})
    began = time.monotonic()
    where = _watch("load", endpoint, "/admin/models/load", body, f"loading {model}", as_json)
    if not as_json:
        typer.echo(f"{model} is loaded on {where} after {time.monotonic() - began:.1f} s")


def unload(
    model: ModelArgument,
    neuron: NeuronOption = None,
    force: Annotated[bool, typer.Option("--force", help="End what runs, instead of waiting for it.")] = False,
    endpoint: EndpointOption = LOCAL,
    as_json: JsonOption = False,
) -> None:
    """Unload a model, wherever it is."""
    body = _body(model, neuron) | {"force": force}
    _tell(
        "unload", _post("unload", endpoint, "/admin/models/unload", body, UNLOAD_SECONDS), as_json, "unloaded"
    )


def pin(
    model: ModelArgument,
    neuron: NeuronOption = None,
    endpoint: EndpointOption = LOCAL,
    as_json: JsonOption = False,
) -> None:
    """Keep a model loaded, until its neuron starts again."""
    body = _body(model, neuron) | {"pinned": True}
    _tell("pin", _post("pin", endpoint, "/admin/models/pin", body), as_json, "pinned")


def unpin(
    model: ModelArgument,
    neuron: NeuronOption = None,
    endpoint: EndpointOption = LOCAL,
    as_json: JsonOption = False,
) -> None:
    """Let a model leave when others need its memory."""
    body = _body(model, neuron) | {"pinned": False}
    _tell("unpin", _post("unpin", endpoint, "/admin/models/pin", body), as_json, "pinned no longer")


def evict(
    model: Annotated[str, typer.Argument(help="For which there shall be room.")],
    neuron: NeuronOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say who would leave.")] = False,
    endpoint: EndpointOption = LOCAL,
    as_json: JsonOption = False,
) -> None:
    """Make room for a model: unload those that would leave for it, where that is done soonest."""
    quotes = _post("evict", endpoint, "/admin/models/quote", _body(model, neuron))["quotes"]
    best = min((quote for quote in quotes if "error" not in quote), key=_order, default=None)
    is_refused = best is None or best["verdict"] == "refused"
    if dry_run:
        if as_json:
            typer.echo(json.dumps(quotes))
        else:
            _show_quotes(quotes)
        if not is_refused:
            return
    if is_refused:
        reasons = "; ".join(f"{quote['neuron']}: {_reason(quote)}" for quote in quotes)
        fail("evict", f"no neuron can make room for {model} ({reasons})")
    done = []
    for leaving in best["evicts"]:
        body = {"model": leaving, "neuron": best["neuron"]}
        _post("evict", endpoint, "/admin/models/unload", body, UNLOAD_SECONDS)
        done.append(leaving)
    if as_json:
        typer.echo(json.dumps({"neuron": best["neuron"], "evicted": done}))
    else:
        typer.echo(f"{best['neuron']} has room for {model}" + (f" without {', '.join(done)}" if done else ""))


def _drained(neuron: str, model: str | None) -> tuple[dict[str, str], str]:
    """What the gateway is asked, and what it is called."""
    if model is None:
        return {"neuron": neuron}, neuron
    return {"neuron": neuron, "model": model}, f"{model} on {neuron}"


def drain(
    neuron: NeuronArgument,
    model: DrainedOption = None,
    endpoint: EndpointOption = LOCAL,
    as_json: JsonOption = False,
) -> None:
    """Have a neuron take no new work, and wait until what runs there has ended."""
    body, what = _drained(neuron, model)
    _watch("drain", endpoint, "/admin/neurons/drain", body, f"draining {what}", as_json)
    if not as_json:
        option = f" --model {model}" if model else ""
        typer.echo(f"{what} is drained; `cortex resume {neuron}{option}` takes it back")


def resume(
    neuron: NeuronArgument,
    model: DrainedOption = None,
    endpoint: EndpointOption = LOCAL,
    as_json: JsonOption = False,
) -> None:
    """Have a neuron that was drained take work again."""
    _tell(
        "resume",
        _post("resume", endpoint, "/admin/neurons/resume", _drained(neuron, model)[0]),
        as_json,
        "taking work",
    )


def logs(
    neuron: Annotated[str | None, typer.Argument(help="Its name in `cortex status`. Default: all.")] = None,
    request: Annotated[
        str | None, typer.Option("--request", help="Only about that one: the x-request-id of its answer.")
    ] = None,
    lines: Annotated[int, typer.Option("--lines", min=0, help="Of the past, of each neuron.")] = 100,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on, until Ctrl-C.")] = False,
    endpoint: EndpointOption = LOCAL,
    as_json: JsonOption = False,
) -> None:
    """Show what neurons have written to their logs, and follow it."""
    wanted = {"neuron": neuron, "request": request, "lines": lines, "follow": follow}
    failed = False
    try:
        for line in remote.follow(endpoint, "/admin/logs", wanted):
            if as_json:
                typer.echo(json.dumps(line))
            elif "line" in line:
                typer.echo(f"{line['neuron']}: {line['line']}")
            if (error := line.get("error")) is not None:
                failed = True
                typer.echo(f"cortex logs: {line['neuron']}: {error['message']}", err=True)
    except remote.Unreachable as error:
        fail("logs", error)
    except KeyboardInterrupt:
        pass
    if failed:
        raise typer.Exit(1)


def _body(model: str, neuron: str | None) -> dict[str, Any]:
    return {"model": model} | ({} if neuron is None else {"neuron": neuron})


def _post(
    command: str, endpoint: str, path: str, body: dict[str, Any], within: float = remote.ANSWER_SECONDS
) -> Any:
    try:
        return remote.post(endpoint, path, body, within)
    except remote.Unreachable as error:
        fail(command, error)


def _tell(command: str, answer: dict[str, Any], as_json: bool, done: str) -> None:
    """Say what each neuron made of it; exit code 1 where one refused."""
    if as_json:
        typer.echo(json.dumps(answer["neurons"]))
    failed = False
    for each in answer["neurons"]:
        if (error := each.get("error")) is not None:
            failed = True
            typer.echo(f"cortex {command}: {each['neuron']}: {error['message']}", err=True)
        elif not as_json:
            typer.echo(f"{each['neuron']}: {done}")
    if failed:
        raise typer.Exit(1)


def _watch(command: str, endpoint: str, path: str, body: dict[str, Any], what: str, as_json: bool) -> str:
    """Show what takes long as it goes; the neuron that did it. Exit code 1 where it failed."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[news]}", markup=False),
        TimeElapsedColumn(),
    )
    where, ended = "", False
    shown = not as_json and console.is_terminal
    try:
        with Progress(*columns, console=console, disable=not shown, transient=True) as progress:
            task = progress.add_task(what, total=None, news="")
            for line in remote.follow(endpoint, path, body):
                if as_json:
                    typer.echo(json.dumps(line))
                where = line.get("neuron", where)
                if (error := line.get("error")) is not None:
                    fail(command, f"{where}: {error['message']}")
                ended = ended or "done" in line
                if "stage" in line:
                    fraction = line["fraction"]
                    progress.update(
                        task,
                        total=None if fraction is None else 1.0,
                        completed=fraction or 0.0,
                        news=_news(line),
                    )
    except remote.Unreachable as error:
        fail(command, error)
    if not ended:
        fail(command, f"the gateway ended before {where} was done; see `cortex status`")
    return where


def _news(line: dict[str, Any]) -> str:
    left = line["seconds_left"]
    place = line["position"]
    parts = [
        line["message"] or line["stage"],
        "" if place is None else f"place {place} in the queue",
        "" if left is None else f"{left:.0f} s left",
    ]
    return ", ".join(part for part in parts if part)


def _order(quote: dict[str, Any]) -> tuple[bool, int, float]:
    verdicts = ("ready", "loading", "fits", "evicts", "waits", "refused")
    return verdicts.index(quote["verdict"]), quote["seconds"] is None, quote["seconds"] or 0.0


def _reason(quote: dict[str, Any]) -> str:
    if "error" in quote:
        return quote["error"]["message"]
    return quote["message"] or quote["verdict"]


def _show_quotes(quotes: list[dict[str, Any]]) -> None:
    table = tables.table("neuron", "verdict", "would leave", "memory", "seconds", "why")
    for quote in quotes:
        if "error" in quote:
            cells = (quote["neuron"], "refused", "", "", "", _reason(quote))
        else:
            seconds = "" if quote["seconds"] is None else f"{quote['seconds']:.1f}"
            leaving = ", ".join(quote["evicts"])
            cells = (
                quote["neuron"],
                quote["verdict"],
                leaving,
                tables.size(quote["bytes"]),
                seconds,
                quote["message"],
            )
        tables.row(table, *cells)
    tables.console().print(table)
