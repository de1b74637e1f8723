"""What stands between a request and the rest of a neuron, without files: front ends, descriptions."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models

from neuron.description import ModelDescription
from neuron.memory.room import Lender
from neuron.text.detokenizer import Detokenizer
from neuron.text.formats.hermes import HERMES
from neuron.text.frontend import TextFiles, TextFrontEnd
from neuron.text.template import ChatTemplate
from neuron.text.tokenizer import TextTokenizer
from tests.doubles import stands_for
from workers.checkpoints.generation import GenerationDefaults

TEXT = TextFiles("one", (0, 0), 100, {}, "", {}, "", ours=False)
DESCRIPTION = ModelDescription(
    id="m",
    engine="transformer",
    architecture="none",
    card=None,
    dtype="bfloat16",
    context_length=1000,
    rank_bytes=(0,),
    filling=(),
    overhead=None,
    defaults=GenerationDefaults(),
    eos_ids=[],
    completion=True,
    embedding=False,
    vector_size=0,
    embedder=None,
    reranker=None,
    whole=False,
    chat=True,
    tools=True,
    reasoning=False,
    created=0,
    notes=[],
    text=TEXT,
)


def described(**changes: Any) -> ModelDescription:
    """A model that is like others, but for `changes`."""
    return replace(DESCRIPTION, **changes)


class FrontEnd(TextFrontEnd):
    """One of a vocabulary that has no file: who derives from it says what its tokens are."""

    def __init_subclass__(cls) -> None:
        stands_for(TextFrontEnd)(cls)

    def __init__(self, vocabulary_size: int, templates: Mapping[str, ChatTemplate] = {}) -> None:
        super().__init__(_no_words(vocabulary_size), dict(templates), HERMES)


@stands_for(Detokenizer)
class Pieces:
    """Of tokens that are some text each."""

    def __init__(self, pieces: Sequence[str]) -> None:
        self._pieces = pieces

    def push(self, token_ids: Sequence[int]) -> str:
        return "".join(self._pieces[token] for token in token_ids)

    def finish(self) -> str:
        return ""


@functools.cache
def _no_words(size: int) -> TextTokenizer:
    """A real tokenizer, whose vocabulary says nothing."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.json"
        Tokenizer(models.WordLevel({"": 0}, unk_token="")).save(str(path))
        return TextTokenizer(path, size, ())


@stands_for(Lender)
class NoStandby:
    """No process waits."""

    def booked(self, device: str) -> int:
        return 0

    async def make_way(self, amounts: Mapping[str, int], *, reuse: bool) -> None: ...

    async def measure(self, device: str) -> int | None: ...

    def settle(self) -> None: ...

    def tend(self) -> None: ...
