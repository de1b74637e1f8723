"""Images, which come with the request: nothing is fetched."""

from __future__ import annotations

import base64

from gateway.dialects.fields import bad_request
from ipc.messages import MAX_IMAGE, ImagePart


def from_base64(encoded: str, media_type: str, param: str) -> ImagePart:
    """The image in a text. CortexError, which names the field `param`, where it is none or too large."""
    try:
        data = base64.b64decode(encoded, validate=True)
    except ValueError as error:
        raise bad_request(param, f"it is not base64: {error}") from error
    if not 0 < len(data) <= MAX_IMAGE:
        raise bad_request(param, f"the image has {len(data)} bytes; 1 to {MAX_IMAGE} are taken")
    return ImagePart(data=data, media_type=media_type)
