"""Tool calls as GigaChat 3 writes them: JSON in a message of the role `function call`."""

from __future__ import annotations

from neuron.text.formats.call_parser import Steps
from neuron.text.formats.json_list import JsonListFormat, JsonListParser

END_MESSAGE, END_ROLE = "<|message_sep|>", "<|role_sep|>"
ROLE = "function call" + END_ROLE


class GigaChatParser(JsonListParser):
    """Reads messages that are calls; the tag between messages is no text."""

    openings = (END_MESSAGE, ROLE)
    ends = (END_MESSAGE,)

    def call(self, opening: str) -> Steps[None]:
        if opening == END_MESSAGE:
            yield from self.space()
            if not (yield from self.accept(ROLE)):
                self.forget()
                return
        yield from super().call(opening)


class GigaChat(JsonListFormat):
    """What GigaChat 3 writes."""

    name = "gigachat"
    parser = GigaChatParser
    markers = (END_MESSAGE, END_ROLE)
    before = f"{END_MESSAGE}\n\n{ROLE}\n"
    between = before
    frames_text = True

    def is_of(self, template: str) -> bool:
        return END_MESSAGE in template and "function call" in template


GIGACHAT = GigaChat()
