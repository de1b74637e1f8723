"""Aliases: further names of models, as the operator chose them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from gateway.refusals import shown
from ipc.errors import Code, CortexError
from ipc.model_settings import MAX_MODEL_ID

LATEST = ":latest"  # as Ollama's clients end a name that has no tag of its own
STAR = "*"


class AliasError(ValueError):
    """An alias that cannot be used.

    Args:
        name: the alias.
        message: what is wrong with it.
    """

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.name = name
        self.message = message


class Aliases:
    """What each alias means.

    A name with stars is a pattern: each star stands for any text, and of several patterns the first one that
    fits counts. A target may be another alias by its exact name, but is never looked up among patterns, so
    that `qwen*: qwen3-8b` is no circle.

    Args:
        targets: models, by alias.

    Raises:
        AliasError: a name or a target is none, or aliases lead back to themselves.
    """

    def __init__(self, targets: Mapping[str, str]) -> None:
        self._exact = {name: target for name, target in targets.items() if STAR not in name}
        self._patterns = [(name.split(STAR), target) for name, target in targets.items() if STAR in name]
        for name, target in targets.items():
            self._check(name, target)

    def _check(self, name: str, target: str) -> None:
        if not 0 < len(name) <= MAX_MODEL_ID:
            raise AliasError(name, f"a name has 1 to {MAX_MODEL_ID} characters")
        if not 0 < len(target) <= MAX_MODEL_ID:
            raise AliasError(name, f"leads to {target!r}; a model's id has 1 to {MAX_MODEL_ID} characters")
        if STAR in target:
            raise AliasError(name, f"leads to {target!r}; only names of aliases have stars")
        way = [name]
        while (target := self._exact.get(way[-1], target)) not in way:
            way.append(target)
            if target not in self._exact:
                return
        raise AliasError(name, f"leads back to itself: {' -> '.join((*way, target))}")

    def resolve(self, asked: str, exists: Callable[[str], bool]) -> str:
        """The model that is meant by `asked`, which is the same where no alias fits.

        An alias wins over a model of the same name, and a model over patterns.
        """
        if len(asked) > MAX_MODEL_ID or not (self._exact or self._patterns or asked.endswith(LATEST)):
            return asked
        found = self._find(asked, exists)
        if found is None and asked.endswith(LATEST) and asked != LATEST:
            bare = asked.removesuffix(LATEST)
            return self._find(bare, exists) or bare
        return found or asked

    def _find(self, asked: str, exists: Callable[[str], bool]) -> str | None:
        if asked in self._exact:
            return self._end(asked)
        if exists(asked):
            return asked
        return next((self._end(target) for parts, target in self._patterns if _fits(parts, asked)), None)

    def _end(self, name: str) -> str:
        while name in self._exact:
            name = self._exact[name]
        return name

    def listed(self, exists: Callable[[str], bool]) -> dict[str, str]:
        """Ids by which models could be asked for, with the models.

        A pattern gives the id that has the model's own name in place of the star: clients that list only what
        contains `claude` find the target of `claude-*` so.
        """
        names = list(self._exact)
        for (first, *_, last), target in self._patterns:
            names.append(first + self._end(target).rpartition("/")[2] + last)
        found = {name: self.resolve(name, exists) for name in names}
        return {name: model for name, model in found.items() if name != model and exists(model)}

    def targets(self) -> dict[str, str]:
        """The model that each alias and each pattern leads to."""
        patterns = {STAR.join(parts): target for parts, target in self._patterns}
        return {name: self._end(target) for name, target in (self._exact | patterns).items()}


_ABOUT_MODEL = frozenset(
    (
        Code.MODEL_NOT_FOUND,
        Code.MODEL_TOO_LARGE,
        Code.MODEL_LOAD_FAILED,
        Code.MODEL_LOADING,
        Code.INSUFFICIENT_MEMORY,
        Code.DRAINING,
        Code.NEURON_LOST,
    )
)


def naming_both(error: CortexError, asked: str, model: str) -> CortexError:
    """The same error: where the model is the matter, who asked for it by an alias is told what that means."""
    if asked != model and error.code in _ABOUT_MODEL:
        error.message = f"{shown(asked)} is an alias of {shown(model)}: {error.message}"
    return error


def _fits(parts: list[str], text: str) -> bool:
    """Whether `text` is `parts` with any texts between them; a single way to the right, whatever there is."""
    first, *between, last = parts
    if len(first) + len(last) > len(text) or not text.startswith(first) or not text.endswith(last):
        return False
    at, end = len(first), len(text) - len(last)
    for part in between:
        at = text.find(part, at, end)
        if at < 0:
            return False
        at += len(part)
    return True
