"""What formats have in common that write calls in a section, each between tags of its own."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

from neuron.text.formats.call_parser import CallParser, Steps


class SectionParser(CallParser):
    """Reads sections of calls, and calls without the tag of a section.

    Attributes:
        openings: the tag of a section, and that of a call.
        end_section: a missing one is forgiven.
    """

    openings: ClassVar[tuple[str, str]]
    end_section: ClassVar[str]

    @abstractmethod
    def one_call(self) -> Steps[None]:
        """Read a call, of which the tag was read."""

    def call(self, opening: str) -> Steps[None]:
        section, begin_call = self.openings
        if opening == section:
            yield from self.space()
            yield from self.expect(begin_call)
        while True:
            yield from self.one_call()
            yield from self.space()
            if not (yield from self.accept(begin_call)):
                break
        yield from self.accept(self.end_section)
