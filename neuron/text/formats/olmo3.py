"""Tool calls as OLMo 3 writes them: calls of Python functions, one a line, between two tags."""

from __future__ import annotations

from neuron.text.formats.call_parser import Steps
from neuron.text.formats.pythonic import Pythonic, PythonicParser

CALLS, END_CALLS = "<function_calls>", "</function_calls>"


class Olmo3Parser(PythonicParser):
    """Reads calls, each on a line or with a comma between two, or a list of them."""

    openings = (CALLS,)
    starts = ()
    ends = (END_CALLS,)

    def calls_behind(self, opening: str) -> Steps[None]:
        yield from self.space()
        if (yield from self.peek()) == "[":
            yield from super().calls_behind(opening)
            return
        while True:
            yield from self.function()
            yield from self.space()
            while (yield from self.accept(",", ";")):
                yield from self.space()
            if not (yield from self.peek()) or (yield from self._goes_on(self.ends)) is not None:
                return


class Olmo3(Pythonic):
    """What OLMo 3 writes."""

    name = "olmo3"
    parser = Olmo3Parser
    markers = (CALLS, END_CALLS)
    before, between, after = CALLS, "\n", END_CALLS

    def is_of(self, template: str) -> bool:
        return CALLS in template


OLMO3 = Olmo3()
