"""What formats have in common that write calls without any tag, too."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

from neuron.text.formats.call_parser import CallParser, NoCall, Steps, Unfinished


class BareParser(CallParser):
    """Reads calls behind a tag (`openings`), or bare (`starts`).

    A bare call looks as an answer may look: it is a call where it begins the answer and names a tool that was
    offered.

    Attributes:
        ends: tags behind the calls, of which one is taken where it comes.
        is_bare: there is no tag before what is read.
    """

    ends: ClassVar[tuple[str, ...]] = ()
    is_bare = False

    @abstractmethod
    def calls_behind(self, opening: str) -> Steps[None]:
        """Read the calls, up to the tag behind them, of which `opening` was read."""

    def call(self, opening: str) -> Steps[None]:
        self.is_bare = opening in self.starts
        try:
            yield from self.calls_behind(opening)
        except Unfinished:
            if self.is_bare and not self.in_call and not self.may_be_known:
                raise NoCall from None
            raise
        yield from self.space()
        yield from self.accept(*self.ends)

    def named(self, name: str) -> None:
        super().named(name)
        if self.is_bare and not self.is_known:
            raise NoCall
