"""Thoughts that clients keep for us: in a block's signature, a redacted block's data, or encrypted content.

It is not secret, since the same client may be shown the thought in clear: it is there so that the thought
survives clients that send nothing back but this. What other providers made of theirs is opaque.
"""

from __future__ import annotations

import base64

_MARK = "cortex1."  # so that what other providers sealed is not taken for ours


def seal(thought: str) -> str:
    """What a client is to send back."""
    return _MARK + base64.urlsafe_b64encode(thought.encode()).decode()


def unseal(sealed: str) -> str | None:
    """The text in it; None where it is not ours, or no longer what it was."""
    if not sealed.startswith(_MARK):
        return None
    try:
        return base64.b64decode(sealed[len(_MARK) :], altchars=b"-_", validate=True).decode()
    except ValueError:
        return None
