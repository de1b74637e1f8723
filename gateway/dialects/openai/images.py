"""Images in `data:` URLs, and behind others."""

from __future__ import annotations

import re

from gateway.dialects.fields import unsupported
from gateway.dialects.images import behind, from_base64
from ipc.messages.conversation import ImagePart

_INSTEAD = "as data:image/...;base64,..."
_LINK = re.compile(r"https?:", re.IGNORECASE)
_DATA_URL = re.compile(
    r"data:(image/[\w.+-]{1,64})(?:;[\w.+=-]{1,64}){0,8};base64,", re.ASCII | re.IGNORECASE
)


def image(url: str, param: str) -> ImagePart:
    """The image in a `data:` URL, or at an address.

    Raises:
        CortexError: it is none, or too large; `param` names the field.
    """
    start = _DATA_URL.match(url)
    if start is None:
        if _LINK.match(url):
            return behind(url, param, _INSTEAD)
        raise unsupported(param, f"that is no image in base64, nor an http(s) URL; send one {_INSTEAD}")
    return from_base64(url[start.end() :], start[1], param)
