"""BERT and its kind: every token sees all of its text, positions are learned, norms stand behind each sum.

BERT (https://arxiv.org/abs/1810.04805), and RoBERTa and XLM-R (https://arxiv.org/abs/1911.02116), whose first
positions stand for padding and are left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta
from msgspec.structs import replace

from workers.checkpoints import config
from workers.checkpoints.config import ConfigFile
from workers.checkpoints.family import Classifier, Family, TensorSpec, linear, norm
from workers.checkpoints.files import refuse
from workers.checkpoints.model_config import Encoder, ModelConfig
from workers.checkpoints.vectors.stages import Stage

WORDS, POSITIONS, TYPES = (f"embeddings.{name}_embeddings" for name in ("word", "position", "token_type"))
NORM = "embeddings.LayerNorm"
SMOOTH = {"gelu_new": "gelu_pytorch_tanh", "gelu_fast": "gelu_pytorch_tanh"}  # other names of one activation
PREFIXES = ("bert.", "roberta.")  # of a model that has a head besides
OLD_NAMES = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}


class BertFile(ConfigFile, kw_only=True):
    """The keys of `config.json` of BERT's kind."""

    hidden_act: str = "gelu"
    layer_norm_eps: Annotated[float, Meta(ge=0)] = 1e-12
    type_vocab_size: Annotated[int, Meta(ge=0)] = 2
    position_embedding_type: str = "absolute"
    pad_token_id: Annotated[int, Meta(ge=0)] | None = None
    is_decoder: bool = False
    sentence_transformers: Any = None  # read by whoever makes scores
    sbert_ce_default_activation_function: Any = None
    pooler_num_attention_heads: Any = None  # nobody's: of a pooler that was never built
    pooler_num_fc_layers: Any = None


def read_bert(path: Path, given: Mapping[str, Any]) -> ModelConfig:
    """Positions count from the first row of their table."""
    return _read(path, given, skipped=0)


def read_roberta(path: Path, given: Mapping[str, Any]) -> ModelConfig:
    """Positions count from behind that of padding."""
    padding = given.get("pad_token_id", 1)
    if type(padding) is not int:
        refuse(path, f"pad_token_id {padding} is not supported: positions are counted from it")
    return _read(path, given, skipped=padding + 1)


def _read(path: Path, given: Mapping[str, Any], skipped: int) -> ModelConfig:
    file = config.read(path, given, BertFile)
    if file.position_embedding_type != "absolute":
        refuse(path, f"position_embedding_type {file.position_embedding_type} is not supported")
    if file.is_decoder:
        refuse(path, "is_decoder: a BERT that sees no later token is not supported")
    config.refuse_other_heads(path, file)
    rows = file.max_position_embeddings
    if rows <= skipped:
        refuse(path, f"max_position_embeddings {rows} leaves no position")
    file = replace(
        file,
        hidden_act=SMOOTH.get(file.hidden_act, file.hidden_act),
        max_position_embeddings=rows - skipped,
        rms_norm_eps=file.layer_norm_eps,
        tie_word_embeddings=True,
    )
    return config.model_config(
        path,
        file,
        [None] * file.num_hidden_layers,
        qkv_bias=True,
        output_bias=True,
        mlp_bias=True,
        bidirectional=True,
        encoder=Encoder(positions=rows, first_position=skipped, token_types=file.type_vocab_size),
    )


def tensors(model: ModelConfig) -> Iterator[TensorSpec]:
    """Every tensor that is loaded, by its name without the prefix of models with a head."""
    hidden, inner = model.hidden_size, model.intermediate_size
    yield TensorSpec(f"{WORDS}.weight", (model.vocab_size, hidden), "vocabulary")
    yield TensorSpec(f"{POSITIONS}.weight", (model.encoder.positions, hidden), "none")
    if model.encoder.token_types:
        yield TensorSpec(f"{TYPES}.weight", (model.encoder.token_types, hidden), "none")
    yield from norm(NORM, hidden)
    for layer in range(model.num_layers):
        prefix = f"encoder.layer.{layer}."
        for name in ("query", "key", "value"):
            yield from linear(f"{prefix}attention.self.{name}", hidden, hidden, "rows")
        yield from linear(f"{prefix}attention.output.dense", hidden, hidden, "columns")
        yield from norm(f"{prefix}attention.output.LayerNorm", hidden)
        yield from linear(f"{prefix}intermediate.dense", inner, hidden, "rows")
        yield from linear(f"{prefix}output.dense", hidden, inner, "columns")
        yield from norm(f"{prefix}output.LayerNorm", hidden)


def bert_classifier(model: ModelConfig, given: Mapping[str, Any]) -> Classifier:
    """Of the first token, through the pooler that was trained with the model."""
    hidden = model.hidden_size
    return "cls", (Stage("pooler.dense", hidden, hidden, True, "tanh"), Stage("classifier", hidden, 1, True))


def roberta_classifier(model: ModelConfig, given: Mapping[str, Any]) -> Classifier:
    """Of the first token, by two layers of its own."""
    hidden = model.hidden_size
    return "cls", (
        Stage("classifier.dense", hidden, hidden, True, "tanh"),
        Stage("classifier.out_proj", hidden, 1, True),
    )


def usual_name(name: str) -> str:
    """The name of a tensor as a BertModel that stands alone has it, and as it is written since 2019."""
    for prefix in PREFIXES:
        name = name.removeprefix(prefix)
    for old, new in OLD_NAMES.items():
        if name.endswith(old):
            return name.removesuffix(old) + new
    return name


BERT = Family(
    "bert",
    ("BertModel", "BertForMaskedLM", "BertForSequenceClassification"),
    read_bert,
    tensors,
    usual_name=usual_name,
    classifier=bert_classifier,
)
ROBERTA = Family(
    "roberta",
    (
        *("RobertaModel", "RobertaForMaskedLM", "XLMRobertaModel", "XLMRobertaForMaskedLM"),
        *("CamembertModel", "CamembertForMaskedLM", "RobertaForSequenceClassification"),
        *("XLMRobertaForSequenceClassification", "CamembertForSequenceClassification"),
    ),
    read_roberta,
    tensors,
    usual_name=usual_name,
    classifier=roberta_classifier,
)
