"""Which version of cortex this is."""

from __future__ import annotations


def version() -> str:
    """As the package that is installed says; "unknown" in a checkout that is not."""
    from importlib import metadata  # which takes longer than most commands want to wait

    try:
        return metadata.version("cortex-serve")
    except metadata.PackageNotFoundError:
        return "unknown"
