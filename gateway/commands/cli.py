"""The `cortex` command."""

from __future__ import annotations

import json
import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from gateway.commands import bench, fleet, launch, models, remote, status, tables, top, up
from gateway.commands import keys as keys_commands
from gateway.commands.clients import CLIENTS
from gateway.commands.failure import fail
from gateway.commands.options import LOCAL, EndpointOption, JsonOption, RawOption
from gateway.commands.up_plan import UpError, make_plan
from ipc import keys
from ipc.errors import CortexError
from ipc.farewell import leave_modules_alone
from ipc.saying import saying
from ipc.version import version

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(keys_commands.app, name="keys")
app.add_typer(models.app, name="models")
fleet.add_to(app)


class Dtype(StrEnum):
    bfloat16 = "bfloat16"
    float16 = "float16"
    float32 = "float32"


ClientName = StrEnum("ClientName", list(CLIENTS))


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"cortex {version()}")
        raise typer.Exit


@app.callback()
def cortex(
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Language models on your own GPUs, behind one address."""


@app.command()
def serve(
    config_file: Annotated[
        Path | None,
        typer.Option(
            "--config", help="YAML or TOML. Default: $CORTEX_CONFIG, ./cortex.yaml, /etc/cortex/cortex.yaml."
        ),
    ] = None,
) -> None:
    """Run the gateway: the same as `gunicorn gateway:app`."""
    if config_file is not None:
        os.environ["CORTEX_CONFIG"] = str(config_file.resolve())
    # In this process: a service manager gets gunicorn's own readiness and signals.
    gunicorn = ["-m", "gunicorn", "--config", "python:gateway.gunicorn_conf", "gateway:app"]
    os.execv(sys.executable, [sys.executable, *gunicorn])


@app.command("up")
def up_command(
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="A model id, a checkpoint folder or a GGUF file, as often as you like. 'demo' is the "
            "bundled model, 'simulated' an engine without a model at full speed."
        ),
    ] = None,
    dtype: Annotated[Dtype | None, typer.Option(help="Default: the checkpoint's.")] = None,
    ranks: Annotated[
        int, typer.Option(min=1, help="Processes (GPUs) that share each layer of each model.")
    ] = 1,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda:0 or cuda:0,1. Default: what is there.")
    ] = None,
    listen: Annotated[
        str, typer.Option(help="HOST:PORT of the API; port 0: a free one.")
    ] = "127.0.0.1:31313",
    alias: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=MODEL",
            help="A further name of a model, as often as you like; 'claude-*=demo' means all that begin so.",
        ),
    ] = None,
) -> None:
    """Start gateway, neuron and models on this host; Ctrl-C ends them."""
    try:
        plan = make_plan(model or ["demo"], dtype and dtype.value, ranks, device, listen, alias or ())
        up.run(plan, Console())
    except UpError as error:
        fail("up", error)


@app.command("status")
def status_command(
    endpoint: EndpointOption = LOCAL,
    as_json: RawOption = False,
) -> None:
    """Show neurons, devices and models."""
    try:
        body = remote.fetch(endpoint)
        read = status.read(body, endpoint)
    except remote.Unreachable as error:
        fail("status", error)
    if as_json:
        typer.echo(body)
    else:
        status.show(read, tables.console())


@app.command("top")
def top_command(
    endpoint: EndpointOption = LOCAL,
    every: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks.")] = 1.0,
) -> None:
    """Watch devices and models at work; Ctrl-C ends it."""
    try:
        top.run(endpoint, every, tables.console())
    except remote.Unreachable as error:
        fail("top", error)
    except KeyboardInterrupt:
        pass


@app.command("bench")
def bench_command(
    model: Annotated[str, typer.Argument(help="Its id, or an alias.")],
    requests: Annotated[int, typer.Option(min=1)] = 32,
    concurrency: Annotated[int, typer.Option(min=1, max=1000, help="Requests at once.")] = 8,
    words: Annotated[int, typer.Option(min=1, help="Of each prompt; no two are alike.")] = 200,
    max_tokens: Annotated[int, typer.Option(min=1, help="Of each answer.")] = 128,
    endpoint: EndpointOption = LOCAL,
    as_json: JsonOption = False,
) -> None:
    """Measure how fast a model answers, as its clients see it."""
    load = bench.Load(model, requests, concurrency, words, max_tokens)
    try:
        answers, seconds = bench.run(endpoint, load)
    except (remote.Unreachable, json.JSONDecodeError) as error:
        fail("bench", error)
    if as_json:
        typer.echo(json.dumps(bench.summary(answers, seconds)))
    elif not all(answer.error for answer in answers):
        Console().print(bench.table(answers))
        typer.echo(bench.total(answers, seconds))
    if failed := [answer.error for answer in answers if answer.error]:
        fail("bench", f"{len(failed)} requests failed, the first one so: {failed[0]}")


@app.command("launch")
def launch_command(
    client: Annotated[ClientName, typer.Argument(help="The coding agent.")],
    arguments: Annotated[
        list[str] | None, typer.Argument(help="What it is told besides, after `--`.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Default: one that suffices, loaded, with the longest context.")
    ] = None,
    url: Annotated[str, typer.Option(help="The gateway's address.", envvar="CORTEX_ENDPOINT")] = LOCAL,
    run: Annotated[bool, typer.Option("--exec", help="Run it, instead of saying how.")] = False,
    anyway: Annotated[
        bool, typer.Option("--anyway", help="Run it even with a model that does not suffice.")
    ] = False,
) -> None:
    """Say what a coding agent needs to talk to this gateway, or run it so. Its own files stay as they are."""
    agent = CLIENTS[client.value]
    try:
        chosen = launch.choose(agent, url, launch.models_at(url), model)
        wrong = agent.shortcomings(chosen)
        for reason in wrong:
            typer.echo(f"cortex launch: {chosen.id} does not suffice for {agent.program}: {reason}", err=True)
        setup = agent.setup(chosen)
        if not run:
            typer.echo(launch.instructions(agent, setup, arguments or ()))
            return
        if wrong and not anyway:
            fail("launch", "choose another with --model, or run it with --anyway")
        launch.execute(agent, setup, arguments or (), os.environ)
    except launch.LaunchError as error:
        fail("launch", error)


@app.command()
def keygen(
    out: Annotated[Path, typer.Option(help="The folder to write into; it is made where it is missing.")],
    name: Annotated[str, typer.Option(help="Files are NAME.secret and NAME.key.")] = "cortex",
) -> None:
    """Make a CURVE key pair, for a neuron or a gateway off loopback."""
    try:
        secret, public = keys.generate(out, name)
        public_key = keys.load_public(public)
    except (OSError, CortexError) as error:
        fail("keygen", error)
    typer.echo(f"secret key, to stay on this host: {secret}")
    typer.echo(f"public key, to be given away:      {public}")
    typer.echo(public_key)


def main() -> None:
    leave_modules_alone()
    with saying("cortex"):
        app()
