"""Images, as they stand in requests: in a text, or behind an address."""

from __future__ import annotations

import base64

from gateway.dialects.fields import bad_request
from gateway.fetching.linked import LinkedImage
from ipc.messages.conversation import MAX_IMAGE, ImagePart


def from_base64(encoded: str, media_type: str, param: str) -> ImagePart:
    """The image in a text. CortexError, which names the field `param`, where it is none or too large."""
    try:
        data = base64.b64decode(encoded, validate=True)
    except ValueError as error:
        raise bad_request(param, f"it is not base64: {error}") from error
    if not 0 < len(data) <= MAX_IMAGE:
        raise bad_request(param, f"the image has {len(data)} bytes; 1 to {MAX_IMAGE} are taken")
    return ImagePart(data=data, media_type=media_type)


def behind(url: str, param: str, instead: str) -> LinkedImage:
    """The image at an address, which `Images` fetches, or refuses naming the field `param`.

    Args:
        instead: how the client can send the image itself.
    """
    return LinkedImage(data=b"", url=url, param=param, instead=instead)
