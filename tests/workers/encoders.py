"""Tiny random encoders, written by transformers, and what vectors it makes with them."""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

from ipc.worker_messages import Submit
from tests.workers.engines import make_spec
from tests.workers.oracle import fill
from workers.checkpoints.reading import read_card
from workers.execution.encoder_runner import EncoderRunner
from workers.scheduling.whole import WholeScheduler

SIZES = {
    "vocab_size": 131,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 160,
}
MODERN = SIZES | {
    "num_hidden_layers": 4,
    "local_attention": 20,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": None,
    "cls_token_id": None,
    "sep_token_id": None,
}
ST = "sentence_transformers.models."


def bert(**changes: Any) -> PreTrainedModel:
    return transformers.BertModel(transformers.BertConfig(**SIZES | changes), add_pooling_layer=False)


def roberta(**changes: Any) -> PreTrainedModel:
    values = SIZES | {"pad_token_id": 1, "type_vocab_size": 1} | changes
    return transformers.RobertaModel(transformers.RobertaConfig(**values), add_pooling_layer=False)


def modernbert(**changes: Any) -> PreTrainedModel:
    return transformers.ModernBertModel(transformers.ModernBertConfig(**MODERN | changes))


def nomic_bert(**changes: Any) -> PreTrainedModel:
    return transformers.NomicBertModel(transformers.NomicBertConfig(**SIZES | changes))


def gte(**changes: Any) -> PreTrainedModel:
    return transformers.GteModel(transformers.GteConfig(**SIZES | changes))


def eurobert(**changes: Any) -> PreTrainedModel:
    tokens = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "mask_token_id"), 0)
    return transformers.EuroBertModel(
        transformers.EuroBertConfig(**SIZES | tokens | {"num_key_value_heads": 2} | changes)
    )


def gemma(**changes: Any) -> PreTrainedModel:
    """EmbeddingGemma: one key head, windows by turns."""
    types = ["sliding_attention", "full_attention", "sliding_attention"]
    values = {
        **SIZES,
        **{"num_key_value_heads": 1, "head_dim": 16, "query_pre_attn_scalar": 20, "sliding_window": 24},
        **{"num_hidden_layers": 3, "layer_types": types, "use_bidirectional_attention": True},
        **{"eos_token_id": None, "bos_token_id": None, "pad_token_id": None},
    }
    return transformers.Gemma3TextModel(transformers.Gemma3TextConfig(**values | changes))


def modernbert_classifier(**changes: Any) -> PreTrainedModel:
    return transformers.ModernBertForSequenceClassification(
        transformers.ModernBertConfig(**MODERN | {"num_labels": 1} | changes)
    )


def bert_classifier(**changes: Any) -> PreTrainedModel:
    return transformers.BertForSequenceClassification(
        transformers.BertConfig(**SIZES | {"num_labels": 1} | changes)
    )


def xlm_roberta_classifier(**changes: Any) -> PreTrainedModel:
    values = SIZES | {"pad_token_id": 1, "type_vocab_size": 1, "num_labels": 1} | changes
    return transformers.XLMRobertaForSequenceClassification(transformers.XLMRobertaConfig(**values))


ENCODERS: dict[str, Callable[[], PreTrainedModel]] = {
    "bert": bert,
    "bert_gelu_new": lambda: bert(hidden_act="gelu_new", type_vocab_size=1),
    "bert_of_32": lambda: bert(hidden_size=64, intermediate_size=128),
    "roberta": roberta,
    "modernbert": modernbert,
    "modernbert_biased": lambda: modernbert(norm_bias=True, attention_bias=True, mlp_bias=True),
    "modernbert_near": lambda: modernbert(
        layer_types=["sliding_attention"] * 4, hidden_activation="gelu_pytorch_tanh", local_attention=600
    ),
    "nomic_bert": nomic_bert,
    "nomic_bert_of_32": lambda: nomic_bert(hidden_size=64, intermediate_size=128),
    "gte": gte,
    "gte_without_types": lambda: gte(type_vocab_size=0, rope_parameters={"rope_theta": 500.0}),
    "eurobert": eurobert,
    "eurobert_biased": lambda: eurobert(
        attention_bias=True, mlp_bias=True, rope_parameters={"rope_type": "default", "rope_theta": 500.0}
    ),
    "gemma": gemma,
}


def gte_classifier(**changes: Any) -> PreTrainedModel:
    return transformers.GteForSequenceClassification(
        transformers.GteConfig(**SIZES | {"num_labels": 1} | changes)
    )


CLASSIFIERS: dict[str, Callable[[], PreTrainedModel]] = {
    "bert_classifier": bert_classifier,
    "gte_classifier": gte_classifier,
    "xlm_roberta_classifier": xlm_roberta_classifier,
    "modernbert_classifier": modernbert_classifier,
    "modernbert_averaged_classifier": lambda: modernbert_classifier(classifier_pooling="mean"),
    "modernbert_mean_classifier": lambda: modernbert_classifier(
        classifier_pooling="mean", classifier_bias=True, classifier_activation="tanh", norm_bias=True
    ),
}


def write(
    name: str, folder: Path, modules: Sequence[tuple[str, str, dict[str, Any] | None]] = ()
) -> PreTrainedModel:
    """Make the variant `name` and save it in `folder`; returns the oracle, in float32.

    Args:
        modules: of sentence-transformers, beside the first: class, folder and configuration.
    """
    torch.manual_seed(sum(name.encode()))
    model = (ENCODERS | CLASSIFIERS)[name]()
    fill(model, std=0.3)
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text("{}")  # nobody reads a text here
    if modules:
        write_modules(folder, modules)
    return model


def write_modules(folder: Path, modules: Sequence[tuple[str, str, dict[str, Any] | None]]) -> None:
    entries = [{"idx": 0, "name": "0", "path": "", "type": f"{ST}Transformer"}]
    for number, (kind, path, config) in enumerate(modules, start=1):
        entries.append({"idx": number, "name": str(number), "path": path, "type": ST + kind})
        if config is not None:
            (folder / path).mkdir(exist_ok=True)
            (folder / path / "config.json").write_text(json.dumps(config))
    (folder / "modules.json").write_text(json.dumps(entries))


def load(folder: Path, **changes: Any) -> EncoderRunner:
    values = {"context_length": 128, "max_step_tokens": 256, "max_sequences": 8} | changes
    runner = EncoderRunner(make_spec(**values), read_card(folder))
    runner.load(lambda fraction, message: None)
    return runner


def texts(count: int, vocab_size: int = 131, longest: int = 128) -> list[list[int]]:
    """Token ids of unlike lengths, some of them equal."""
    lengths = [(1, 2, longest, 17, 64, 63, 30, 30)[i % 8] for i in range(count)]
    return [[3 + (7 * i * i + 11 * k) % (vocab_size - 3) for i in range(n)] for k, n in enumerate(lengths)]


def scheduler(runner: EncoderRunner, inputs: list[list[int]], seconds: Sequence[int] = ()) -> WholeScheduler:
    """One that all of these wait in."""
    names = ("max_sequences", "max_step_tokens", "context_length")
    waiting = WholeScheduler(**{name: getattr(runner.spec, name) for name in names})
    for number, ids in enumerate(inputs):
        second = seconds[number] if seconds else 0
        packed = array("I", ids).tobytes()
        waiting.submit(Submit(number, packed, 1, pooling=runner.card.pooling, second=second))
    return waiting


def vectors(runner: EncoderRunner, inputs: list[list[int]], seconds: Sequence[int] = ()) -> list[Tensor]:
    """What the engine makes of each."""
    waiting = scheduler(runner, inputs, seconds)
    found: dict[int, Tensor] = {}
    while (plan := waiting.plan()) is not None:
        waiting.observe(runner.execute(plan))
        for report in waiting.take_reports():
            assert report.finish == "stop", report.details.message
            found[report.request_id] = torch.frombuffer(
                bytearray(report.details.embedding), dtype=torch.float32
            )
    return [found[number] for number in range(len(inputs))]


@torch.inference_mode()
def hidden(oracle: PreTrainedModel, ids: list[int], second: int = 0) -> Tensor:  # [tokens, hidden]
    """The last hidden states of one text, or of a pair."""
    return oracle(**_inputs(oracle, ids, second)).last_hidden_state[0]


@torch.inference_mode()
def score(oracle: PreTrainedModel, ids: list[int], second: int) -> Tensor:  # [1]
    """The logit of a pair."""
    return oracle(**_inputs(oracle, ids, second)).logits[0]


def _inputs(oracle: PreTrainedModel, ids: list[int], second: int) -> dict[str, Tensor]:
    inputs = {"input_ids": torch.tensor([ids])}
    if getattr(oracle.config, "type_vocab_size", 0) > 1:
        types = [int(0 < second <= place) for place in range(len(ids))]
        inputs["token_type_ids"] = torch.tensor([types])
    return inputs
