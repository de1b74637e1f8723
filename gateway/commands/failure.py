"""How a command ends that cannot do what it was asked for."""

from __future__ import annotations

from typing import NoReturn

import typer


def fail(command: str, message: object) -> NoReturn:
    """Say why, and end with status 1."""
    typer.echo(f"cortex {command}: {message}", err=True)
    raise typer.Exit(1)
