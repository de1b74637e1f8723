"""Files that stand in a message: the text of those that are text."""

from __future__ import annotations

import base64

from gateway.dialects.fields import bad_request, required, unsupported
from ipc.messages.conversation import TextPart

NO_FILES = "no files are kept here; send it in the message itself"  # of a file that only its id is there of


def text_of(file_data: str | None, filename: str | None, param: str) -> TextPart:
    """What a file says, below its name.

    Args:
        file_data: the file in base64, alone or as a `data:` URL.
        param: the part that it stands in.

    Raises:
        CortexError: it stands elsewhere, is no base64, or no text; `param` names the field.
    """
    param += ".file_data"
    given = required(file_data, param)
    head, _, encoded = given.rpartition(",")
    if head and not head.endswith(";base64"):
        raise bad_request(param, "it is no data: URL in base64")
    try:
        text = base64.b64decode(encoded, validate=True).decode()
    except UnicodeDecodeError:
        text = "\0"
    except ValueError as error:
        raise bad_request(param, f"it is not base64: {error}") from error
    if "\0" in text or text.startswith("%PDF-"):
        raise unsupported(param, "that is no text in UTF-8: of other files send the text")
    return TextPart(text=f"{filename}:\n{text}" if filename else text)
