"""Which version of cortex this is."""

from __future__ import annotations

from importlib import metadata


def version() -> str:
    """As the package that is installed says; "unknown" in a checkout that is not."""
    try:
        return metadata.version("cortex-serve")
    except metadata.PackageNotFoundError:
        return "unknown"
