"""The language model within one that sees answers text as that one does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma4Config,
    Gemma4ForConditionalGeneration,
    Llama4Config,
    Llama4ForConditionalGeneration,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    PreTrainedModel,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
)

from ipc.errors import CortexError
from tests.workers.checkpoints import mistral4 as small_mistral4
from tests.workers.engines import make_runner, request, serve
from tests.workers.oracle import fill, greedy
from tests.workers.tiny_models import NO_HEAD_DIM, SIZES, YARN, gemma3n, muse_glimmer
from workers.checkpoints.reading import read_card

PROMPT = [(7 * i + 3) % 131 for i in range(40)]
EYE = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


def gemma() -> PreTrainedModel:
    text = SIZES | {"query_pre_attn_scalar": 20, "sliding_window": 24, "tie_word_embeddings": False}
    eye = EYE | {"model_type": "siglip_vision_model", "image_size": 28, "patch_size": 14}
    config = Gemma3Config(
        text_config=text,
        vision_config=eye,
        mm_tokens_per_image=4,
        image_token_index=5,
        tie_word_embeddings=False,
    )
    return Gemma3ForConditionalGeneration(config)


def gemma4() -> PreTrainedModel:
    text = SIZES | {
        "sliding_window": 24,
        "global_head_dim": 32,
        "hidden_size_per_layer_input": 8,
        "num_kv_shared_layers": 2,
    }
    text |= {"vocab_size_per_layer_input": 131, "num_hidden_layers": 4, "pad_token_id": 0}
    text |= {"layer_types": 2 * ["sliding_attention", "full_attention"]}
    eye = EYE | {"num_key_value_heads": 2, "head_dim": 8, "position_embedding_size": 16}
    tokens = {"image_token_id": 1000, "video_token_id": 1001, "audio_token_id": 1002}
    return Gemma4ForConditionalGeneration(Gemma4Config(text_config=text, vision_config=eye, **tokens))


def mistral() -> PreTrainedModel:
    text = SIZES | {"model_type": "mistral", "sliding_window": None, "tie_word_embeddings": False}
    eye = EYE | {"model_type": "pixtral", "head_dim": 8, "image_size": 28, "patch_size": 14}
    config = Mistral3Config(
        vision_config=eye, text_config=text, image_token_index=5, tie_word_embeddings=False
    )
    return Mistral3ForConditionalGeneration(config)


def ministral() -> PreTrainedModel:
    whole = mistral().config.to_dict()
    rope = YARN | {"original_max_position_embeddings": 16, "llama_4_scaling_beta": 0.5}
    text = SIZES | {"model_type": "ministral3", "rope_parameters": rope, "tie_word_embeddings": False}
    return Mistral3ForConditionalGeneration(Mistral3Config(**whole | {"text_config": text}))


def mistral4() -> PreTrainedModel:
    whole, text = mistral().config.to_dict(), small_mistral4().config.to_dict() | {"architectures": None}
    return Mistral3ForConditionalGeneration(Mistral3Config(**whole | {"text_config": text}))


def llama4() -> PreTrainedModel:
    text = SIZES | {"num_local_experts": 4, "attention_chunk_size": 32, "intermediate_size_mlp": 64}
    eye = EYE | {"image_size": 28, "patch_size": 14, "vision_output_dim": 16, "projector_input_dim": 16}
    eye |= {"projector_output_dim": 16, "intermediate_size": 64, "pixel_shuffle_ratio": 0.5}
    return Llama4ForConditionalGeneration(Llama4Config(text_config=text, vision_config=eye))


def qwen2_5() -> PreTrainedModel:
    eye = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 48}
    return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**qwen_text(), vision_config=eye))


def qwen2() -> PreTrainedModel:
    eye = {"depth": 1, "embed_dim": 16, "num_heads": 2, "mlp_ratio": 1, "hidden_size": 48}
    return Qwen2VLForConditionalGeneration(Qwen2VLConfig(**qwen_text(), vision_config=eye))


def qwen_text() -> dict:
    turning = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 2, 2]}
    text = NO_HEAD_DIM | {"rope_parameters": turning, "tie_word_embeddings": False}
    return {"text_config": text, "image_token_id": 125, "video_token_id": 126, "tie_word_embeddings": False}


def rename_as_before_transformers_5(folder: Path) -> None:
    """Tensors of the language model below `language_model`, its head among them."""
    tensors = load_file(folder / "model.safetensors")
    renamed = {}
    for name, tensor in tensors.items():
        if name == "lm_head.weight":
            name = f"language_model.{name}"
        for new in ("model.language_model.", "language_model.model."):
            if name.startswith(new):
                name = "language_model.model." + name.removeprefix(new)
        renamed[name] = tensor
    save_file(renamed, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize("old", [False, True], ids=["new", "old"])
@pytest.mark.parametrize(
    "make", [gemma, gemma4, mistral, ministral, mistral4, llama4, muse_glimmer, qwen2, qwen2_5]
)
def test_text_is_answered_as_by_the_whole(tmp_path, make, old):
    torch.manual_seed(1)
    oracle = make()
    fill(oracle)
    oracle.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    if old:
        rename_as_before_transformers_5(tmp_path)
    card = read_card(tmp_path)
    assert any("language model alone" in note for note in card.notes)
    assert not any("vision" in name for name in card.tensors)
    runner = make_runner(tmp_path)
    runner.load(lambda fraction, message: None)
    [output] = serve(runner, [request(1, PROMPT, 30)])
    assert output == greedy(oracle, PROMPT, output)


def test_of_one_that_sees_and_hears_the_same_is_served(tmp_path):
    """Gemma 3n, as its files are: transformers makes no whole one without what it sees by."""
    torch.manual_seed(1)
    oracle = gemma3n()
    fill(oracle)
    oracle.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    tensors = load_file(tmp_path / "model.safetensors")
    tensors = {name.replace("model.", "model.language_model.", 1): each for name, each in tensors.items()}
    towers = (
        "vision_tower.timm_model.conv_stem.conv",
        "audio_tower.conformer.0.norm",
        "embed_audio.embedding",
    )
    tensors |= {f"model.{name}.weight": torch.zeros(2) for name in towers}
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    whole = {"architectures": ["Gemma3nForConditionalGeneration"], "model_type": "gemma3n"}
    whole |= {"text_config": oracle.config.to_dict(), "vision_config": {}, "audio_config": {}}
    whole |= {"vision_soft_tokens_per_image": 256, "audio_soft_tokens_per_image": 188, "image_token_id": 125}
    (tmp_path / "config.json").write_text(json.dumps(whole))
    card = read_card(tmp_path)
    assert any("3 tensors are of what sees and hears" in note for note in card.notes)
    runner = make_runner(tmp_path)
    runner.load(lambda fraction, message: None)
    [output] = serve(runner, [request(1, PROMPT, 64)])
    assert output == greedy(oracle, PROMPT, output)


@pytest.mark.parametrize("make", [qwen2, qwen2_5])
def test_a_qwen_of_before_transformers_5_says_all_in_one(tmp_path, make):
    torch.manual_seed(1)
    oracle = make()
    fill(oracle)
    oracle.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    given = json.loads((tmp_path / "config.json").read_text())
    text = given.pop("text_config")
    turning = {"type": "mrope", "mrope_section": text.pop("rope_parameters")["mrope_section"]}
    whole = text | given | {"rope_theta": 1e4, "rope_scaling": turning, "vision_start_token_id": 124}
    (tmp_path / "config.json").write_text(json.dumps(whole))
    tensors = load_file(tmp_path / "model.safetensors")
    before = {"model.language_model.": "model.", "model.visual.": "visual."}
    for new, old in before.items():
        tensors = {name.replace(new, old): tensor for name, tensor in tensors.items()}
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    runner = make_runner(tmp_path)
    runner.load(lambda fraction, message: None)
    [output] = serve(runner, [request(1, PROMPT, 30)])
    assert output == greedy(oracle, PROMPT, output)


def test_another_language_model_within_is_refused_by_its_type(tmp_path):
    oracle = mistral()
    oracle.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    given = json.loads(path.read_text())
    path.write_text(json.dumps(given | {"text_config": given["text_config"] | {"model_type": "qwen2"}}))
    with pytest.raises(
        CortexError, match=r"text_config\.model_type qwen2 is not supported; there are mistral"
    ):
        read_card(tmp_path)
    path.write_text(json.dumps(given | {"text_config": None}))
    with pytest.raises(CortexError, match="text_config is missing"):
        read_card(tmp_path)
