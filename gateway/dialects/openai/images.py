"""Images, which come with the request: nothing is fetched."""

from __future__ import annotations

import base64
import re

from gateway.dialects.fields import bad_request, unsupported
from ipc.messages import MAX_IMAGE, ImagePart

_DATA_URL = re.compile(r"data:(image/[\w.+-]{1,64});base64,", re.ASCII)


def image(url: str, param: str) -> ImagePart:
    """The image in a `data:` URL.

    Raises:
        CortexError: it is none, or too large; `param` names the field.
    """
    start = _DATA_URL.match(url)
    if start is None:
        raise unsupported(param, "nothing is fetched; send the image itself, as data:image/...;base64,...")
    try:
        data = base64.b64decode(url[start.end() :], validate=True)
    except ValueError as error:
        raise bad_request(param, f"it is not base64: {error}") from error
    if not 0 < len(data) <= MAX_IMAGE:
        raise bad_request(param, f"the image has {len(data)} bytes; 1 to {MAX_IMAGE} are taken")
    return ImagePart(data=data, media_type=start[1])
