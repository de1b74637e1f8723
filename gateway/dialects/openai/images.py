"""Images in `data:` URLs."""

from __future__ import annotations

import re

from gateway.dialects.fields import unsupported
from gateway.dialects.images import from_base64
from ipc.messages import ImagePart

_DATA_URL = re.compile(r"data:(image/[\w.+-]{1,64});base64,", re.ASCII)


def image(url: str, param: str) -> ImagePart:
    """The image in a `data:` URL.

    Raises:
        CortexError: it is none, or too large; `param` names the field.
    """
    start = _DATA_URL.match(url)
    if start is None:
        raise unsupported(param, "nothing is fetched; send the image itself, as data:image/...;base64,...")
    return from_base64(url[start.end() :], start[1], param)
