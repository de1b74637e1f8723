"""What a chat template is told of how much to think, in the variables that it reads.

Templates have no common way: `enable_thinking` in one is `thinking` in the next, a mode, an effort or a
number of tokens in others. Which of them one reads is seen in its source, and so are the words that it knows.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Self

import msgspec
from jinja2 import nodes
from jinja2.meta import find_undeclared_variables

from ipc.messages.sampling import Thinking

SWITCHES = ("enable_thinking", "thinking")
MODES = ("thinking_mode", "thinking_option")
EFFORTS = ("reasoning_effort", "thinking_effort", "reasoning_strength")
BUDGETS = ("thinking_budget",)

LEVELS = ("minimal", "low", "medium", "high", "xhigh", "max")
OFF = ("none", "off", "disabled", "no_think", "nothink")
ON = ("on", "enabled")
HIGHEST = ("xhigh", "max")


NOTHING_SAID = Thinking()


def is_off(thinking: Thinking) -> bool:
    """Whether no thought is wanted: it is said so, or by an effort of "none", or by a budget of nothing."""
    if thinking.enabled is not None:
        return not thinking.enabled
    return thinking.effort in OFF or thinking.budget == 0


class ThinkingVariables(msgspec.Struct, frozen=True):
    """The variables of one template that say whether to think, and how much.

    Words stand in pairs: those that the variable is compared with, and those of which it must be one.
    """

    switches: list[str] = []
    modes: dict[str, tuple[frozenset[str], frozenset[str]]] = {}
    efforts: dict[str, tuple[frozenset[str], frozenset[str]]] = {}
    budgets: list[str] = []

    @classmethod
    def of(cls, template: nodes.Template) -> Self:
        """Those of a template, as Jinja parsed it."""
        words = {name: _words(template, name) for name in (*MODES, *EFFORTS)}
        read = find_undeclared_variables(template)  # which changes the template
        return cls(
            [name for name in SWITCHES if name in read],
            {name: words[name] for name in MODES if name in read},
            {name: words[name] for name in EFFORTS if name in read},
            [name for name in BUDGETS if name in read],
        )

    @property
    def names(self) -> frozenset[str]:
        """All of them."""
        return frozenset((*self.switches, *self.modes, *self.efforts, *self.budgets))

    def values(self, thinking: Thinking) -> dict[str, Any]:
        """What they are for a request; nothing for one that says nothing."""
        if thinking == NOTHING_SAID:
            return {}
        off = is_off(thinking)
        said = off or thinking.enabled or thinking.effort is not None
        values: dict[str, Any] = dict.fromkeys(self.switches, not off) if said else {}
        for name, (named, _) in self.modes.items():
            if said and (word := next((each for each in (OFF if off else ON) if each in named), None)):
                values[name] = word
        for name, words in self.efforts.items():
            if (word := self._effort(thinking, off, *words)) is not None:
                values[name] = word
        for name in self.budgets:
            if off or thinking.budget is not None:
                values[name] = 0 if off else thinking.budget
        return values

    def _effort(
        self, thinking: Thinking, off: bool, named: frozenset[str], only: frozenset[str]
    ) -> str | None:
        """The template's word for an effort.

        Args:
            named: words that the template compares with.
            only: those of which it must be one; empty where any may come.
        """
        if off:
            return next((word for word in OFF if word in named), None)
        effort = thinking.effort
        if effort is None:
            # One that is off unless it is told otherwise has to be told.
            if not thinking.enabled or self.switches or named.isdisjoint(OFF):
                return None
            effort = "medium"
        if effort in named or effort not in LEVELS:
            return effort
        if known := [level for level in LEVELS if level in only]:
            wanted = LEVELS.index(effort)
            return min(reversed(known), key=lambda level: abs(LEVELS.index(level) - wanted))
        if effort in HIGHEST:
            return next((level for level in HIGHEST if level in named), "high")
        return "low" if effort == "minimal" else effort


def _words(template: nodes.Template, name: str) -> tuple[frozenset[str], frozenset[str]]:
    """The words that a variable is compared with, and those that stand in a list of what it may be."""
    named: set[str] = set()
    listed: set[str] = set()
    for compare in template.find_all(nodes.Compare):
        for operator, left, right in _pairs(compare):
            if isinstance(left, nodes.Name) and left.name == name:
                named.update(_constants(right))
                if operator in ("in", "notin"):
                    listed.update(_constants(right))
            elif isinstance(right, nodes.Name) and right.name == name:
                named.update(_constants(left))
    return frozenset(named), frozenset(listed)


def _pairs(compare: nodes.Compare) -> Iterator[tuple[str, nodes.Node, nodes.Node]]:
    left: nodes.Node = compare.expr
    for operand in compare.ops:
        yield operand.op, left, operand.expr
        left = operand.expr


def _constants(node: nodes.Node) -> Iterator[str]:
    for constant in (node, *node.find_all(nodes.Const)):
        if isinstance(constant, nodes.Const) and isinstance(constant.value, str):
            yield constant.value
