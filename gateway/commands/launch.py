"""`cortex launch`: a coding agent that talks to this gateway, started, or told how to be."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn
from urllib.parse import quote

import msgspec

from gateway.commands import remote
from gateway.commands.clients import KEY_VARIABLE, NO_KEY, ChosenModel, Client, Setup

SHOWN = 10  # models that are named where one is missing


class LaunchError(Exception):
    """Why a client cannot be launched, in one sentence."""


class Listed(msgspec.Struct):
    """A model, as far as it matters here, as `GET /v1/models` has it."""

    id: str
    context_length: int = 0
    capabilities: list[str] = []
    loaded: bool = False
    alias_of: str | None = None


class ModelList(msgspec.Struct):
    data: list[Listed]


def models_at(url: str) -> list[Listed]:
    """The models of the gateway at `url`.

    Raises:
        LaunchError: no gateway answers there.
    """
    try:
        body = remote.fetch(url, "/v1/models", "--url")
        return msgspec.json.decode(body, type=ModelList).data
    except remote.Unreachable as error:
        raise LaunchError(str(error)) from error
    except msgspec.DecodeError as error:
        raise LaunchError(f"what answers at {url} is no cortex gateway: {error}") from error


def choose(client: Client, url: str, models: Sequence[Listed], wanted: str | None) -> ChosenModel:
    """The model of that name, or where none was named the one that suits `client` best.

    Raises:
        LaunchError: there is none.
    """
    if not models:
        raise LaunchError(
            f"the gateway at {url} has no models: `neuron pull NAME` gets one on one of its hosts, and "
            "`cortex status` names these"
        )
    if wanted is None:
        own = [model for model in models if model.alias_of is None]
        found = min(own, key=lambda model: _order(client, _chosen(url, model), model))
        return _chosen(url, found)
    found = next((model for model in models if model.id == wanted), None) or _asked_for(url, wanted)
    if found is None:
        names = [model.id for model in models]
        some = ", ".join(names[:SHOWN]) + (", …" if len(names) > SHOWN else "")
        raise LaunchError(f"--model {wanted}: the gateway at {url} has no such model; it has {some}")
    return _chosen(url, found)


def _asked_for(url: str, name: str) -> Listed | None:
    """The model behind a name that is not in the list, as of a pattern."""
    try:
        return msgspec.json.decode(remote.fetch(url, f"/v1/models/{quote(name)}", "--url"), type=Listed)
    except (remote.Unreachable, msgspec.DecodeError):
        return None


def _chosen(url: str, model: Listed) -> ChosenModel:
    key = os.environ.get(KEY_VARIABLE, NO_KEY)
    return ChosenModel(url.rstrip("/"), model.id, model.context_length, frozenset(model.capabilities), key)


def _order(client: Client, chosen: ChosenModel, model: Listed) -> tuple[Any, ...]:
    """The least is best: what suffices, then what is loaded, then what has the longest context."""
    return len(client.shortcomings(chosen)), not model.loaded, -model.context_length, model.id


def command(client: Client, setup: Setup, arguments: Sequence[str]) -> list[str]:
    return [client.program, *setup.arguments, *arguments]


def instructions(client: Client, setup: Setup, arguments: Sequence[str]) -> str:
    """What to type, and what to keep for good. A key is never shown, but said where it is."""
    key = os.environ.get(KEY_VARIABLE)
    lines = [f"unset {name}" for name in setup.unset]
    lines += [
        f'export {name}="${KEY_VARIABLE}"' if value == key else f"export {name}={shlex.quote(value)}"
        for name, value in setup.variables.items()
    ]
    lines.append(shlex.join(command(client, setup, arguments)))
    if setup.file:
        snippet = setup.snippet.replace(key, f"the value of {KEY_VARIABLE}") if key else setup.snippet
        lines += ["", f"# or for good, in {setup.file}:", snippet]
    return "\n".join(lines)


def execute(
    client: Client, setup: Setup, arguments: Sequence[str], environment: Mapping[str, str]
) -> NoReturn:
    """Become the client.

    Raises:
        LaunchError: it is not installed.
    """
    program = shutil.which(client.program, path=environment.get("PATH"))
    if program is None:
        raise LaunchError(f"{client.program} is not on PATH; install it: {client.install}")
    told = {name: value for name, value in environment.items() if name not in setup.unset} | setup.variables
    try:
        os.execve(program, command(client, setup, arguments), told)
    except OSError as error:
        raise LaunchError(f"{program} cannot be run: {error.strerror}") from error
