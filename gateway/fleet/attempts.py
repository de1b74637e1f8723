"""The neurons that a request was tried with: why each did not serve it, and whether another may, or that one
again once it is back."""

from __future__ import annotations

from collections.abc import Callable

from gateway.fleet import availability
from gateway.fleet.neuron import Neuron
from gateway.fleet.view import Fleet
from ipc.errors import Code, CortexError

# Failures after which another neuron may do better, as long as the answer has not begun. The first ones pass.
_PASSING = frozenset(
    (Code.NEURON_LOST, Code.DRAINING, Code.SHUTTING_DOWN, Code.QUEUE_FULL, Code.INSUFFICIENT_MEMORY)
)
_LASTING = frozenset((Code.MODEL_NOT_FOUND, Code.MODEL_TOO_LARGE))
_ELSEWHERE = _PASSING | _LASTING | {Code.MODEL_LOAD_FAILED}

# The same, once: another time it would be the request itself that kills workers.
_DEATHS = frozenset((Code.WORKER_DIED, Code.STEP_DEADLINE))

# Failures after which a stream goes on where another neuron has the model, and how often it may.
_RESUMED = _DEATHS | {Code.NEURON_LOST, Code.SHUTTING_DOWN, Code.INSUFFICIENT_MEMORY}
RESUMES = 2
RETURNS = 2  # how often a request waits for a neuron that had it: another time it might be what ends neurons


class Attempts:
    """Of one request.

    Args:
        model: that it is for.
        may_use: whether its sender may use a model.

    Attributes:
        refusals: of neurons that did not take it, or did not end it.
        resumes: how often another neuron went on with what one had begun.
        returns: how often it waited for neurons that were lost.
    """

    def __init__(self, fleet: Fleet, model: str, may_use: Callable[[str], bool]) -> None:
        self.refusals: dict[Neuron, CortexError] = {}
        self.resumes = 0
        self.returns = 0
        self._fleet, self._model, self._may_use = fleet, model, may_use
        self._too_short: set[Neuron] = set()  # whose context it is too long for, though they were not asked
        # Of all these, those that may be asked again once they answer: they had ended, were out of reach, or
        # gave it up for a copy elsewhere.
        self._gone: set[Neuron] = set()

    @property
    def avoided(self) -> set[Neuron]:
        """Neurons that are not to be asked."""
        return self.refusals.keys() | self._too_short

    def refuse(self, neuron: Neuron, error: CortexError) -> None:
        """It goes elsewhere, for this is what became of it there."""
        self.refusals[neuron] = error

    def resume(self, error: CortexError) -> None:
        """It goes on elsewhere with what was begun where it failed with `error`."""
        self.resumes += error.code in _RESUMED

    # --- another one ------------------------------------------------------------------------------------

    def may_go_elsewhere(self, neuron: Neuron, error: CortexError) -> bool:
        """Whether another neuron might serve it, of which this one has made nothing yet."""
        if error.code in _DEATHS:
            return not any(other.code in _DEATHS for other in self.refusals.values())
        if error.code == Code.CONTEXT_LENGTH_EXCEEDED:
            return self._is_longer_elsewhere(neuron)
        return error.code in _ELSEWHERE

    def may_resume(self, error: CortexError) -> bool:
        """Whether another neuron might go on with what one has begun; this one may have refused to."""
        if error.code in _RESUMED:
            return self.resumes < RESUMES
        return self.resumes > 0 and error.code in _ELSEWHERE

    def _is_longer_elsewhere(self, neuron: Neuron) -> bool:
        """Whether the model is loaded on a host that had memory for a longer context; all others would refuse
        the request as this one did."""
        model = self._model
        copies = self._fleet.directory.of(model)
        here = neuron.models.get(model)
        longest = here.context_length if here is not None else 0
        longer = [other for other in copies.ready if other.models[model].context_length > longest]
        self._too_short |= {other for other in copies.known if other not in longer}
        self._gone -= self._too_short
        return any(other not in self.avoided for other in longer)

    # --- the same one again -----------------------------------------------------------------------------

    def note_whether_it_comes_back(
        self, neuron: Neuron, instance: str, error: CortexError, has_copies: bool
    ) -> None:
        """Whether that neuron may be asked again, where no other takes the request.

        Args:
            instance: of the neuron, that had it.
            has_copies: the neuron was told that others could go on with it.
        """
        gave_up = error.code in _DEATHS and has_copies
        before = {other for other, refusal in self.refusals.items() if refusal.code in _DEATHS}
        if error.code in _DEATHS and before:
            self._gone -= before  # it may be the request itself that kills workers
        elif gave_up or neuron.has_left(error, instance):
            self._gone.add(neuron)

    @property
    def awaited(self) -> list[str]:
        """Names of those that it can wait for; none where it has waited often enough."""
        return sorted(neuron.name for neuron in self._gone) if self.returns < RETURNS else []

    async def wait_for_one(self) -> bool:
        """Wait for one of those that were lost to answer again; whether one does, which then may be asked."""
        self.returns += 1
        await self._fleet.back(self._gone)
        back = {neuron for neuron in self._gone if neuron.healthy}
        for neuron in back:
            del self.refusals[neuron]
        self._gone -= back
        return bool(back)

    # --- none -------------------------------------------------------------------------------------------

    def refusal(self) -> CortexError:
        """What to say of a request that all refused: the last refusal that may pass, and who else refused.

        One that has not the model says least, where another has it and failed.
        """
        refusals, model = list(self.refusals.values()), self._model
        if all(error.code in _LASTING for error in refusals):
            others = [
                neuron for neuron in self._fleet.directory.of(model).known if neuron not in self.refusals
            ]
            try:  # somebody may have it, or be large enough, who is away or was not heard yet
                availability.able(others, model)
            except CortexError as away:
                return away
            absent = availability.absent(self._fleet.neurons, model, self._may_use)
            if absent.code != Code.MODEL_NOT_FOUND:
                return absent
            if any(error.code == Code.MODEL_TOO_LARGE for error in refusals):
                return availability.too_large(
                    model, {each.name: error for each, error in self.refusals.items()}
                )
        if len(refusals) == 1:
            return refusals[0]
        having = [error for error in refusals if error.code != Code.MODEL_NOT_FOUND] or refusals
        told = next((error for error in reversed(having) if error.code in _PASSING), having[-1])
        codes = ", ".join(f"{neuron.name} ({error.code})" for neuron, error in self.refusals.items())
        waits = [error.retry_after for error in refusals if error.retry_after is not None]
        return CortexError(
            told.code,
            f"{told.message}; refused by {codes}",
            param=told.param,
            retry_after=min(waits, default=None),
            details=told.details,
        )
