"""The models of the whole fleet, as one list: each as its best place has it, and once more by each alias."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from gateway.aliases import naming_both
from gateway.catalogue import Cost
from gateway.fleet import availability
from gateway.fleet.neuron import Neuron
from gateway.fleet.view import Fleet
from ipc.errors import CortexError
from ipc.messages.state import ModelState, ModelStatus

# Of a model that is in several places the best status is shown.
_BEST_FIRST: tuple[ModelStatus, ...] = (
    "ready",
    "restarting",
    "loading",
    "waiting",
    "draining",
    "unloaded",
    "unloading",
    "failed",
)


# fields of `ModelState`
CAPABILITIES = ("completion", "chat", "tools", "reasoning", "vision", "embedding", "rerank")


@dataclass(frozen=True, slots=True)
class ListedModel:
    """A model under one of its names.

    Attributes:
        id: the name.
        model: the model's own name, of which `id` may be an alias.
        places: the neurons that have it, with what they say of it.
        cost: as the catalogue has it; None: nobody has said.
    """

    id: str
    model: str
    places: list[tuple[Neuron, ModelState]]
    cost: Cost | None = None

    @property
    def states(self) -> list[ModelState]:
        return [state for _, state in self.places]

    @property
    def base(self) -> str | None:
        """The model that it is an adapter of; None for a model."""
        return next((state.id for state in self.states if state.id != self.model), None)

    @property
    def display_name(self) -> str:
        """For people: without the name of whoever published it, and with the model where it is an alias."""
        name = self.model.rpartition("/")[2] or self.model
        return name if self.id == self.model else f"{self.id} ({name})"

    @property
    def created(self) -> int:
        """Unix time of its checkpoint, the newest one."""
        return max((state.created for state in self.states), default=0)

    @property
    def status(self) -> ModelStatus:
        return min((state.status for state in self.states), key=_BEST_FIRST.index, default="unloaded")

    @property
    def context_length(self) -> int:
        """Tokens of prompt and answer, the smallest of all places; 0: not known yet."""
        return min((state.context_length for state in self.states if state.context_length), default=0)

    @property
    def max_output(self) -> int:
        """Tokens of one answer, the fewest of all places; 0: what the context leaves."""
        return min((state.max_output for state in self.states if state.max_output), default=0)

    @property
    def context_wanted(self) -> int:
        """What it would be with enough memory."""
        return max((state.context_wanted for state in self.states), default=0)

    @property
    def capabilities(self) -> list[str]:
        """What it can do in some place; "chat" needs a chat template, and "tools" one that takes them."""
        return [name for name in CAPABILITIES if any(getattr(state, name) for state in self.states)]


def every(fleet: Fleet) -> list[ListedModel]:
    """All that can be asked for, in the order of their ids."""
    healthy = [neuron for neuron in fleet.neurons if neuron.healthy]
    models = {name: name for each in healthy for name, state in each.models.items() if not state.retired}
    names = models | fleet.aliases.listed(models.__contains__)
    return [_listed(fleet, name, model) for name, model in sorted(names.items())]


def one(fleet: Fleet, asked: str, may_use: Callable[[str], bool]) -> ListedModel:
    """What a client that asks for `asked` would get.

    Args:
        may_use: whether it may know of a model.

    Raises:
        CortexError: no neuron has it, or those that have it are away.
    """
    model = fleet.resolve(asked)
    try:
        if not availability.able(fleet.directory.of(model).known, model):
            raise availability.absent(fleet.neurons, model, may_use)
    except CortexError as error:
        raise naming_both(error, asked, model) from None
    return _listed(fleet, asked, model)


def _listed(fleet: Fleet, name: str, model: str) -> ListedModel:
    entry = fleet.entry(model)
    places = [place for place in fleet.states(model) if not place[1].retired]
    return ListedModel(name, model, places, entry.cost if entry is not None else None)
