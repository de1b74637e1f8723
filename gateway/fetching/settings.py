"""What the configuration says of fetching."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from ipc.settings import Size, Timeout


class ImageSettings(Struct, frozen=True, kw_only=True):
    """Images that clients give only the address of."""

    fetch: bool = False  # else they are refused
    hosts: tuple[str, ...] = ()  # no others are asked, where there are any; *.example.com: all below that
    networks: tuple[str, ...] = ()  # that may be reached though they are not public, as 10.2.0.0/16
    limit: Size = 20 << 20  # bytes of all those of a request
    seconds: Timeout = 20  # until all of them have to be there
    cache: Size = 64 << 20  # bytes of those fetched that one process keeps for when they are asked for again
    at_once: Annotated[int, Meta(ge=1)] = 16  # connections of one process; one request has a quarter of them
