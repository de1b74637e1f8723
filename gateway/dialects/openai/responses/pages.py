"""Lists in pages, and other parameters of addresses."""

from __future__ import annotations

from typing import Any

import falcon.asgi

from gateway.dialects.fields import bad_request
from gateway.refusals import shown

DEFAULT_LIMIT, MAX_LIMIT = 20, 100
MAX_DIGITS = 18


def page(req: falcon.asgi.Request, items: list[tuple[str, Any]]) -> dict[str, Any]:
    """The part of `items` that is asked for, of which each comes with its id; the last one comes first unless
    `order` says otherwise.

    Raises:
        CortexError: a parameter is wrong.
    """
    limit = integer(req, "limit", DEFAULT_LIMIT, lowest=1, highest=MAX_LIMIT)
    order = req.get_param("order") or "desc"
    if order not in ("asc", "desc"):
        raise bad_request("order", f"Expected asc or desc, not {shown(order)}")
    if order == "desc":
        items = items[::-1]
    if (after := req.get_param("after")) is not None:
        places = [i for i, (item_id, _) in enumerate(items) if item_id == after]
        if not places:
            raise bad_request("after", f"there is no item {shown(after)}")
        items = items[places[0] + 1 :]
    some = items[:limit]
    return {
        "object": "list",
        "data": [item for _, item in some],
        "first_id": some[0][0] if some else None,
        "last_id": some[-1][0] if some else None,
        "has_more": len(items) > limit,
    }


def integer(
    req: falcon.asgi.Request, name: str, default: int, *, lowest: int, highest: int = 10**MAX_DIGITS
) -> int:
    """A parameter that is a number; CortexError where it is none, or out of range."""
    given = req.get_param(name)
    if given is None:
        return default
    if not (
        given.isascii() and given.isdigit() and len(given) <= MAX_DIGITS and lowest <= int(given) <= highest
    ):
        bound = f"from {lowest} to {highest}" if highest < 10**MAX_DIGITS else f"of at least {lowest}"
        raise bad_request(name, f"Expected a whole number {bound}, not {shown(given)}")
    return int(given)


def flag(req: falcon.asgi.Request, name: str) -> bool:
    """A parameter that is true or false; CortexError where it is neither."""
    given = req.get_param(name)
    if given not in (None, "true", "false", "True", "False", "1", "0"):
        raise bad_request(name, f"Expected true or false, not {shown(given)}")
    return given in ("true", "True", "1")
