"""What a conversation says on its way of how it is to be answered from there on: `configuration_update`."""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import Struct
from msgspec.structs import replace

from gateway.dialects.fields import convert
from gateway.dialects.openai.responses.fields import CreateFields, Reasoning, Text
from gateway.dialects.openai.responses.items import Entry, kind_of


class UpdateItem(Struct):
    reasoning: Reasoning | None = None
    text: Text | None = None


def updated(fields: CreateFields, entries: Iterable[Entry]) -> CreateFields:
    """The request with what its conversation says last of effort and form.

    Raises:
        CortexError: such an item is wrong; `param` names the field.
    """
    for entry in entries:
        if kind_of(entry) != "configuration_update":
            continue
        item = convert(entry.item, UpdateItem, entry.param)
        if item.reasoning is not None and item.reasoning.effort is not None:
            reasoning = replace(fields.reasoning or Reasoning(), effort=item.reasoning.effort)
            fields = replace(fields, reasoning=reasoning)
        if item.text is not None and item.text.format is not None:
            fields = replace(fields, text=replace(fields.text or Text(), format=item.text.format))
    return fields
