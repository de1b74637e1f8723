"""How a model scores a query and a document together: by a classifier, or by the answer that it would give.

Classifiers are those of sentence-transformers' CrossEncoder. A Qwen3-Reranker (https://arxiv.org/abs/2506.05176)
is a causal model that is asked whether the document meets the query, and the score is how much more likely
"yes" is than "no".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from workers.checkpoints.files import read_json, read_text, refuse
from workers.checkpoints.vectors.modules import MODULES, Module
from workers.checkpoints.vectors.stages import Pooling, Stage

CLASSIFIES = "ForSequenceClassification"  # the end of such an architecture's name
# Nothing else tells this model from a Qwen3 that writes, but for files of vLLM's and sentence-transformers'.
QWEN3 = "Qwen3ForCausalLM"
QWEN3_HEADING = re.compile(r"^# Qwen3-Reranker", re.MULTILINE)
# As its README has it.
QWEN3_BEFORE = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the "
    'Instruct provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
)
QWEN3_BEHIND = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
QWEN3_INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """What a causal model is asked, and its two answers. The texts around the pair are tokenised apart."""

    before: str
    behind: str
    instruction: str  # where the request has none
    yes: int  # token ids; behind a classifier, its rows
    no: int


class Reranker(msgspec.Struct, frozen=True, kw_only=True):
    """How a pair of texts becomes a number."""

    pooling: Pooling = "last"
    stages: tuple[Stage, ...] = ()  # the classifier; the last one has one output
    sigmoid: bool = True  # of the number
    question: Question | None = None  # of a causal model


class _Vocabulary(msgspec.Struct):
    vocab: dict[str, int] = {}


class _Tokenizer(msgspec.Struct):
    model: _Vocabulary


def read_classifier(
    path: Path,
    modules: list[Module],
    given: Mapping[str, Any],
    classifier: tuple[Pooling, tuple[Stage, ...]],
) -> Reranker:
    """A model whose classifier has one class, of which the logit is the score.

    Args:
        path: of `config.json`, which is `given`.

    Raises:
        CortexError: MODEL_LOAD_FAILED, it sorts texts into classes, which have no order.
    """
    if len(modules) > 1:
        refuse(path.parent / MODULES, f"the module {modules[1].kind} behind a classifier is not supported")
    labels = given.get("id2label")
    count = len(labels) if isinstance(labels, dict) else given.get("num_labels", 2)
    if count != 1:
        refuse(path, f"a classifier of {count} classes is not supported: one of a single class ranks")
    pooling, stages = classifier
    return Reranker(pooling=pooling, stages=stages, sigmoid=_sigmoid(path, given))


def read_causal(
    path: Path, architecture: str, modules: list[Module], given: Mapping[str, Any]
) -> Reranker | None:
    """The reranker that a causal model was made to be; None: it was made to write, or to embed."""
    folder = path.parent
    scores = any(module.kind == "LogitScore" for module in modules)
    readme = folder / "README.md"
    named = readme.exists() and QWEN3_HEADING.search(read_text(readme)) is not None
    is_qwen3 = architecture == QWEN3 and (named or given.get("is_original_qwen3_reranker") is True)
    if not is_qwen3:
        if scores:
            refuse(folder / MODULES, "LogitScore is supported in Qwen3-Reranker alone, whose words are known")
        return None
    vocabulary = read_json(folder / "tokenizer.json", _Tokenizer).model.vocab
    if not {"yes", "no"} <= vocabulary.keys():
        refuse(folder / "tokenizer.json", 'has no tokens "yes" and "no", with which a Qwen3-Reranker answers')
    question = Question(
        before=QWEN3_BEFORE,
        behind=QWEN3_BEHIND,
        instruction=QWEN3_INSTRUCTION,
        yes=vocabulary["yes"],
        no=vocabulary["no"],
    )
    return Reranker(question=question)


def _sigmoid(path: Path, given: Mapping[str, Any]) -> bool:
    """Whether scores are brought between 0 and 1, as they are where nothing is said."""
    said = given.get("sentence_transformers")
    name = said.get("activation_fn") if isinstance(said, dict) else None
    name = name or given.get("sbert_ce_default_activation_function")
    if name is None:
        return True
    kind = str(name).rpartition(".")[2]
    if kind not in ("Sigmoid", "Identity"):
        refuse(path, f"the activation {name} of scores is not supported; there are Sigmoid and Identity")
    return kind == "Sigmoid"
