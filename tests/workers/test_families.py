"""What a family says of its tensors is what its model asks for, and what is accepted can be loaded."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ipc.errors import CortexError
from tests.neuron.folders import CONFIG, write_checkpoint
from tests.workers import encoders
from tests.workers.cards import assert_asks_for_what_is_declared, refusal
from tests.workers.checkpoints import VARIANTS
from workers.checkpoints.reading import read_card
from workers.checkpoints.registry import ARCHITECTURES, FAMILIES
from workers.checkpoints.shares import ALONE, Split
from workers.models.decoder import Decoder
from workers.models.registry import MODELS
from workers.parallel import RankGroup
from workers.weights.loader import WeightFiles


def test_each_family_has_its_mathematics():
    assert MODELS.keys() == FAMILIES.keys()


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("name", [name for name in VARIANTS if "mxfp4" not in name])
def test_a_model_asks_for_what_its_family_declares(tiny, name, size):
    card = read_card(tiny(name).folder)
    if not card.config.splits_into(Split.evenly(size)):
        pytest.skip("does not divide")
    assert_asks_for_what_is_declared(card, name, Split.evenly(size))


@pytest.mark.parametrize(
    "name", ["bert", "roberta", "modernbert_biased", "nomic_bert", "gte", "eurobert_biased"]
)
def test_an_encoder_does_so_too(tmp_path, name):
    encoders.write(name, tmp_path)
    for size in (1, 2):
        assert_asks_for_what_is_declared(read_card(tmp_path), name, Split.evenly(size))


@pytest.mark.parametrize("name", ["qwen3_moe", "deepseek_v3", "gpt_oss"])
def test_planned_bytes_have_routers_in_float32(tiny, name):
    name = next(each for each in VARIANTS if each.startswith(name) and "mxfp4" not in each)
    card = read_card(tiny(name).folder)
    model = MODELS[card.family](card.config, RankGroup(), torch.bfloat16)
    assert model.nbytes == card.bytes_per_rank(ALONE, "bfloat16")[0]


def loads(card) -> None:
    """See that a worker gets all of it into the model."""
    model = MODELS[card.family](card.config, RankGroup(), torch.float32)
    WeightFiles(card).load(model.parts(), lambda fraction: None)


DECODERS = [name for name, family in ARCHITECTURES.items() if MODELS[family.name] is Decoder]
CHANGES = {
    "architectures": st.sampled_from([[name] for name in [*DECODERS, "ElectraModel", "GemmaForCausalLM"]]),
    "hidden_act": st.sampled_from(["silu", "swish", "gelu", "gelu_pytorch_tanh", "relu", "gelu_new"]),
    "tie_word_embeddings": st.booleans(),
    "attention_bias": st.booleans(),
    "mlp_bias": st.booleans(),
    "use_sliding_window": st.booleans(),
    "sliding_window": st.sampled_from([None, 16, 4096]),
    "max_window_layers": st.integers(0, 3),
    "layer_types": st.sampled_from([None, ["full_attention"] * 2, ["sliding_attention", "full_attention"]]),
    "head_dim": st.sampled_from([8, 15, 16]),
    "num_key_value_heads": st.sampled_from([1, 2, 3, 4]),
    "partial_rotary_factor": st.sampled_from([None, 1.0, 0.5]),
    "logits_scaling": st.sampled_from([None, 1.0, 8.0]),
    "quantization_config": st.sampled_from([None, {"quant_method": "fp8"}]),
    "rope_parameters": st.sampled_from(
        [
            None,
            {"rope_type": "default", "rope_theta": 1e6},
            {"rope_type": "linear", "factor": 2.0},
            {"rope_type": "dynamic", "factor": 2.0},
            {"rope_type": "longrope", "factor": 2.0},
            {"rope_type": "yarn", "factor": 4.0},
            {"rope_type": "llama3", "factor": 8.0},
            {"rope_type": "default", "partial_rotary_factor": 0.25},
        ]
    ),
}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    changes=st.fixed_dictionaries({}, optional=CHANGES), weights=st.sampled_from(["BF16", "F16", "F32", "I8"])
)
def test_what_is_accepted_loads_and_what_is_refused_has_a_reason(tmp_path_factory, changes, weights):
    folder = tmp_path_factory.getbasetemp() / "any"
    write_checkpoint(folder, weights=weights, **CONFIG | changes)
    reason = refusal(folder)
    if reason is None:
        loads(read_card(folder))
    else:
        assert any(word in reason for word in [*changes, "layer", "is I8", "sliding_window", "text_config"])


def test_a_config_that_lies_about_its_tensors_is_refused_by_the_tensor(tmp_path):
    write_checkpoint(tmp_path)
    for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "head_dim"):
        (tmp_path / "config.json").write_text(json.dumps(CONFIG | {key: CONFIG[key] * 2}))
        with pytest.raises(CortexError, match=r"model\.layers|embed_tokens"):
            read_card(tmp_path)
