"""What several commands may be told, by the same names."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

LOCAL = "http://127.0.0.1:31313"  # where a gateway of this host listens by default

EndpointOption = Annotated[
    str, typer.Option("--endpoint", help="The gateway's address.", envvar="CORTEX_ENDPOINT")
]
JsonOption = Annotated[bool, typer.Option("--json", help="For programs.")]
RawOption = Annotated[bool, typer.Option("--json", help="As the gateway says it, for programs.")]
ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config", help="The gateway's. Default: $CORTEX_CONFIG, ./cortex.yaml, /etc/cortex/cortex.yaml."
    ),
]
