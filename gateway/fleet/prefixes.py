"""Which hosts hold which beginnings of prompts, as they say, and for a moment as they will say."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterable, Mapping
from typing import Generic, TypeVar

MOST = 20_000  # of one model on one host: neurons remember fewer
EXPECTED_SECONDS = 5.0  # that a host has to say of a prompt it was just given that it holds it

H = TypeVar("H", bound=Hashable)


class Prefixes(Generic[H]):
    """Tokens by name of a beginning and by host. It is as large as what neurons remember (`Mark`)."""

    def __init__(self) -> None:
        self._held: dict[bytes, dict[H, int]] = {}
        self._of: dict[tuple[H, str], set[bytes]] = {}  # by host and model
        self._expected: OrderedDict[tuple[bytes, H], tuple[str, float]] = OrderedDict()  # model, until when

    def __len__(self) -> int:
        return len(self._held)

    def held(self, digest: bytes) -> Mapping[H, int] | None:
        """Who holds that beginning, and how many tokens it has; None: nobody does."""
        return self._held.get(digest)

    def learn(self, host: H, model: str, news: Mapping[bytes, int]) -> bool:
        """What a host says of a model; 0 tokens: it no longer holds it.

        Returns:
            False when it says that it holds more than any neuron would, which is not believed.
        """
        if len(news) > 2 * MOST:  # it would take long to find out
            self.forget(host, [model])
            return False
        for digest, tokens in news.items():
            self._expected.pop((digest, host), None)
            if tokens:
                self._add(host, model, digest, tokens)
            else:
                self._drop(host, model, digest)
        if len(self._of.get((host, model), ())) <= MOST:
            return True
        self.forget(host, [model])
        return False

    def expect(self, host: H, model: str, held: Iterable[tuple[bytes, int]], now: float) -> None:
        """A host was given a prompt with these beginnings, and of about so many tokens each."""
        while self._expected:
            (digest, other), (of, until) = next(iter(self._expected.items()))
            if until > now:
                break
            del self._expected[digest, other]
            self._drop(other, of, digest)
        for digest, tokens in held:
            if host not in self._held.get(digest, ()) or (digest, host) in self._expected:
                self._add(host, model, digest, tokens)
                self._expected.pop((digest, host), None)
                self._expected[digest, host] = model, now + EXPECTED_SECONDS

    def forget(self, host: H, models: Iterable[str]) -> None:
        """Nothing of these models is there any more."""
        for model in models:
            for digest in list(self._of.get((host, model), ())):
                self._expected.pop((digest, host), None)
                self._drop(host, model, digest)

    def _add(self, host: H, model: str, digest: bytes, tokens: int) -> None:
        self._held.setdefault(digest, {})[host] = tokens
        self._of.setdefault((host, model), set()).add(digest)

    def _drop(self, host: H, model: str, digest: bytes) -> None:
        of = self._of.get((host, model))
        if of is None or digest not in of:
            return
        of.discard(digest)
        if not of:
            del self._of[host, model]
        hosts = self._held[digest]
        del hosts[host]
        if not hosts:
            del self._held[digest]
