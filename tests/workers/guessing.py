"""Guesses that a test knows to be right, or wrong."""

from __future__ import annotations

from array import array


class Knows:
    """Guesses from what was answered without guesses, and is wrong now and then."""

    def __init__(self, answers: dict[tuple[int, ...], list[int]]) -> None:
        self.answers = dict(sorted(answers.items(), key=lambda pair: -len(pair[0])))  # by prompt

    def draft(self, token_ids: array[int], most: int) -> list[int]:
        text = token_ids.tolist()
        whole = next(each for each in self.answers if tuple(text[: len(each)]) == each)
        found = self.answers[whole][len(text) - len(whole) :][:most]
        if len(text) % 3 == 0:
            found[len(text) % 5 :] = [3] * len(found[len(text) % 5 :])
        return found
