"""Thoughts in blocks: a block's signature, or the data of a redacted one, carries what it does not show.

Clients send both back as they are. Those of other providers are opaque, and a thought that stands nowhere
else is lost.
"""

from __future__ import annotations

import base64
import binascii

_MARK = "cortex."


def signature(hidden: str = "") -> str:
    """The signature of a thought, of which `hidden` is not shown."""
    return _MARK + base64.urlsafe_b64encode(hidden.encode()).decode().rstrip("=")


def hidden(signature: str) -> str:
    """What a signature carries; nothing where it is none of ours."""
    if not signature.startswith(_MARK):
        return ""
    encoded = signature.removeprefix(_MARK)
    try:
        return base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4)).decode()
    except (binascii.Error, ValueError):
        return ""
