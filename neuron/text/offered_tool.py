"""A tool as whoever reads its calls needs it, when another process has read the request."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import msgspec

from ipc.messages.conversation import Tool


class OfferedTool(msgspec.Struct, array_like=True, dict=True):
    """Stands in for a `Tool`. Its schema is read when a call needs it: some have a hundred thousand parts."""

    name: str
    schema: msgspec.Raw  # of its arguments, in msgpack

    @classmethod
    def of(cls, tool: Tool) -> OfferedTool:
        return cls(tool.name, msgspec.Raw(msgspec.msgpack.encode(tool.parameters)))

    @cached_property
    def parameters(self) -> dict[str, Any]:
        """The JSON schema of its arguments."""
        return msgspec.msgpack.decode(self.schema)
