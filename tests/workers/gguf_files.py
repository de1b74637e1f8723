"""GGUF files for tests, written with the package `gguf` as llama.cpp's converters write them."""

from __future__ import annotations

import json
import re
import struct
from collections import defaultdict
from pathlib import Path
from typing import Any

import gguf
import numpy
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, PretrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from tests.workers import gguf_config
from workers.checkpoints.families import nemotron_h, qwen3_next

# By `model_type`: the architecture, and whether rows of queries and keys are stored as pairs.
ARCHITECTURES = {
    "llama": ("llama", True),
    "mistral": ("llama", True),
    "ministral3": ("mistral3", True),
    "mistral4": ("mistral4", False),
    "qwen2": ("qwen2", False),
    "qwen3": ("qwen3", False),
    "qwen3_moe": ("qwen3moe", False),
    "gemma": ("gemma", False),
    "gemma2": ("gemma2", False),
    "gemma3_text": ("gemma3", False),
    "gemma3n_text": ("gemma3n", False),
    "gemma4_text": ("gemma4", False),
    "muse_glimmer_text": ("muse-glimmer", True),
    "phi3": ("phi3", False),
    "granite": ("granite", True),
    "granitemoe": ("granitemoe", True),
    "granitemoeshared": ("granitemoe", True),
    "granite_swa": ("granite_swa", True),
    "granitemoe_swa": ("granite_swa", True),
    "smollm3": ("smollm3", True),
    "mellum": ("mellum", False),
    "olmo2": ("olmo2", False),
    "olmo3": ("olmo2", False),
    "glm4": ("glm4", False),
    "glm4_moe": ("glm4moe", False),
    "gpt_oss": ("gpt-oss", False),
    "mixtral": ("llama", True),
    "qwen2_moe": ("qwen2moe", False),
    "deepseek_v2": ("deepseek2", False),
    "deepseek_v3": ("deepseek2", False),
    "glm4_moe_lite": ("deepseek2", False),
    "youtu": ("deepseek2", False),
    "solar_open": ("glm4moe", False),
    "llama4_text": ("llama4", False),
    "cohere": ("command-r", False),
    "cohere2": ("cohere2", False),
    "cohere2_moe": ("cohere2moe", False),
    "seed_oss": ("seed_oss", False),
    "eurobert": ("eurobert", False),
    "exaone4": ("exaone4", False),
    "ernie4_5": ("ernie4_5", False),
    "ernie4_5_moe": ("ernie4_5-moe", False),
    "olmoe": ("olmoe", False),
    "minimax_m2": ("minimax-m2", False),
    "arcee": ("arcee", True),
    "jais2": ("jais2", False),
    "starcoder2": ("starcoder2", False),
    "hunyuan_v1_dense": ("hunyuan-dense", False),
    "hunyuan_v1_moe": ("hunyuan-moe", False),
    "afmoe": ("afmoe", False),
    "dots1": ("dots1", False),
    "laguna": ("laguna", False),
    "lfm2": ("lfm2", False),
    "lfm2_moe": ("lfm2moe", False),
    "granitemoehybrid": ("granitehybrid", True),
    "nemotron_h": ("nemotron_h", False),
    "falcon_h1": ("falcon-h1", False),
    "qwen3_next": ("qwen3next", False),
    "qwen3_5_text": ("qwen35", False),
    "qwen3_5_moe_text": ("qwen35moe", False),
}
NAMED_AS = {
    "mellum": "qwen3moe",
    "laguna": "dots1",
    "cohere2moe": "dots1",
    "granite_swa": "mimo2",
    "muse-glimmer": "gemma3",
}  # which the package does not know, and its tensors
TOKENS = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", "a", "b", "ab"]
TYPES = [2, 3, 3, *[6] * 256, 1, 1, 1, 1]
SCORES = [0.0] * 259 + [-1.0, -2.0, -3.0, -4.0]


U32, F32, BOOL, STRING, ARRAY = 4, 6, 7, 8, 9  # types of metadata


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def entry(key: str, value: Any) -> bytes:
    """One of the metadata; numbers have 32 bits."""
    match value:
        case str():
            return text(key) + struct.pack("<I", STRING) + text(value)
        case [str(), *_]:
            items = b"".join(map(text, value))
            return text(key) + struct.pack("<IIQ", ARRAY, STRING, len(value)) + items
        case list():
            kind, form = (F32, "f") if value and isinstance(value[0], float) else (U32, "I")
            items = struct.pack(f"<{len(value)}{form}", *value)
            return text(key) + struct.pack("<IIQ", ARRAY, kind, len(value)) + items
        case bool():
            return text(key) + struct.pack("<I?", BOOL, value)
        case float():
            return text(key) + struct.pack("<If", F32, value)
        case _:
            return text(key) + struct.pack("<II", U32, value)


def file(path: Path, metadata: dict[str, Any], tensors: list[tuple], **more: int) -> Path:
    """A file with whatever metadata and tensors: name, dimensions as ggml has them, type, offset."""
    entries = b"".join(entry(key, value) for key, value in metadata.items())
    described = b"".join(
        text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)
        for name, shape, kind, offset in tensors
    )
    counts = more.get("described", len(tensors)), more.get("entries", len(metadata))
    header = b"GGUF" + struct.pack("<IQQ", more.get("version", 3), *counts) + entries + described
    path.write_bytes(header + bytes(-len(header) % 32 + 4096))
    return path


class Writer:
    """A `GGUFWriter` that has its keys below the architecture's name, and a tokenizer."""

    def __init__(self, path: Path, architecture: str, **settings: Any) -> None:
        self._path, self._architecture = path, architecture
        self.writer = gguf.GGUFWriter(path, architecture, **settings)

    def keys(self, **values: Any) -> None:
        """Add what is not None; `a__b` is `ARCHITECTURE.a.b`, and `_a__b` `a.b`."""
        for name, value in values.items():
            if value is None:
                continue
            key = name.replace("__", ".")
            key = key[1:] if key[0] == "_" else f"{self._architecture}.{key}"
            match value:
                case bool():
                    self.writer.add_bool(key, value)
                case int():
                    self.writer.add_uint32(key, value)
                case float():
                    self.writer.add_float32(key, value)
                case str():
                    self.writer.add_string(key, value)
                case _:
                    self.writer.add_array(key, value)

    def tokenizer(self) -> None:
        """A small one of sentencepiece's."""
        self.keys(_tokenizer__ggml__model="llama", _tokenizer__ggml__pre="default")
        self.keys(_tokenizer__ggml__tokens=TOKENS, _tokenizer__ggml__scores=SCORES)
        self.keys(_tokenizer__ggml__token_type=TYPES, _tokenizer__ggml__eos_token_id=2)

    def tensor(self, name: str, tensor: torch.Tensor, kind: str | None = None) -> None:
        """Add a tensor as it is, or in a block format that `gguf` can make."""
        array = tensor.detach().contiguous().numpy()
        if kind is None:
            self.writer.add_tensor(name, array)
            return
        type_ = gguf.GGMLQuantizationType[kind]
        data = gguf.quants.quantize(array.astype(numpy.float32), type_)
        self.writer.add_tensor(name, data, raw_dtype=type_)

    def close(self) -> Path:
        """Write all of it; returns the (first) file."""
        self.writer.write_header_to_file()
        self.writer.write_kv_data_to_file()
        self.writer.write_tensors_to_file()
        self.writer.close()
        first = sorted(self._path.parent.glob(f"{self._path.stem}-00001-of-*.gguf"))
        return first[0] if first else self._path


def write(
    path: Path,
    folder: Path,
    kind: str | None = None,
    more: dict[str, Any] | None = None,
    dense: dict[str, torch.Tensor] | None = None,
    **settings: Any,
) -> Path:
    """The checkpoint in `folder` as a converter writes it; returns the (first) file.

    Args:
        kind: the block format of all matrices but the router's and of convolutions.
        more: metadata besides.
        dense: matrices behind the pooling.
        settings: of the writer, for a set of several files.
    """
    config = AutoConfig.from_pretrained(folder).get_text_config()
    config.allow_global_per_layer_attribute_access = True  # as that of most layers
    architecture, pairs = ARCHITECTURES[config.model_type]
    if architecture == "nemotron_h":  # which has no positions, and says nothing of them
        config.rope_parameters = {"rope_type": "default", "rope_theta": 10_000.0}
        architecture = "nemotron_h_moe" if "moe" in config.layer_types else architecture
    if getattr(config, "use_bidirectional_attention", False):
        architecture = "gemma-embedding"
        config.sliding_window = json.loads((folder / "config.json").read_text())["sliding_window"]
    writer = Writer(path, architecture, **settings)
    gguf_config.say(writer.keys, config, architecture)
    writer.tokenizer()
    writer.keys(**{f"_{name}": value for name, value in (more or {}).items()})
    tensors = {key: each for file in folder.glob("*.safetensors") for key, each in load_file(file).items()}
    if config.tie_word_embeddings:
        tensors.pop("lm_head.weight", None)
    tensors = qwen3_next.mtp(tensors, config.num_hidden_layers)  # of names that no other family has
    if architecture == "muse-glimmer":
        tensors = with_scales(tensors, config)
    heads = sum(name.endswith(".eh_proj.weight") for name in tensors)
    if heads:
        writer.keys(block_count=config.num_hidden_layers + heads, nextn_predict_layers=heads)
    names = gguf.get_tensor_name_map(_enum(architecture), config.num_hidden_layers + heads)
    if architecture in ("deepseek2", "mistral4"):
        tensors = by_keys_and_values(tensors, config)
    if hasattr(config, "linear_num_key_heads"):
        tensors = by_states(tensors, config)
    if architecture in ("granitehybrid", "granitemoe") or config.model_type == "granitemoe_swa":
        tensors = by_spaces(tensors, config)
    if architecture.startswith("nemotron_h"):
        tensors = by_spaces({nemotron_h.usual_name(name): each for name, each in tensors.items()}, config)
    if architecture == "falcon-h1":
        tensors = by_spaces(multiplied(tensors, config), config)
    if architecture == "gemma3n":
        for name in ("altup_projections", "altup_unembed_projections"):
            parts = [tensors.pop(f"model.{name}.{n}.weight") for n in range(config.altup_num_inputs - 1)]
            tensors[f"model.{name}.weight"] = torch.stack(parts)
        tensors = {
            f"{name}.weight" if name.endswith("_scale") else name: each for name, each in tensors.items()
        }
    whole = ("gemma3n", "gemma4", "mistral4", "granitehybrid", "granitemoe", "granite_swa")
    merged = tensors if architecture in whole else _merged(tensors)
    for name, tensor in sorted(merged.items()):
        known = BY_HAND.get(re.sub(r"\.\d+\.", ".{}.", name)) or names.get_name(name, (".weight", ".bias"))
        known = known or names.get_name(name.removeprefix("model."), (".weight", ".bias"))
        known = known.format(*re.findall(r"layers\.(\d+)\.", name))
        if architecture in ("gemma", "gemma2", "gemma3", "gemma-embedding") and name.endswith("norm.weight"):
            tensor = tensor + 1
        if pairs and name.split(".")[-2] in ("q_proj", "k_proj"):
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            halves = tensor.unflatten(0, (heads, 2, len(tensor) // heads // 2))
            tensor = halves.transpose(1, 2).reshape(tensor.shape)
        tensor = tensor[0] if "gate_inp_shexp" in known else tensor
        is_plain = tensor.dim() == 1 or tensor.shape[1] == 1
        is_plain = is_plain or any(part in known for part in ("gate_inp", "conv1d", "ssm_norm"))
        writer.tensor(known, tensor, None if is_plain else kind)
    for name, matrix in (dense or {}).items():
        writer.tensor(name, matrix)
    for name, factors in _factors(config).items():
        writer.tensor(f"{name}.weight", factors)
    return writer.close()


def write_bert(path: Path, folder: Path, kind: str | None = None, **more: Any) -> Path:
    """The encoder in `folder` as its converter writes it; `kind` and `more` as of `write`."""
    config = AutoConfig.from_pretrained(folder)
    padding = config.pad_token_id + 1 if config.model_type == "xlm-roberta" else 0  # positions of it
    names = {"modernbert": "modern-bert", "xlm-roberta": "bert"}
    architecture = names.get(config.model_type, config.model_type.replace("_", "-"))
    writer = Writer(path, architecture)
    if architecture == "nomic-bert":
        writer.keys(rope__freq_base=config.rope_parameters["rope_theta"])
    writer.keys(
        context_length=config.max_position_embeddings - padding,
        embedding_length=config.hidden_size,
        block_count=config.num_hidden_layers,
        feed_forward_length=config.intermediate_size,
        attention__head_count=config.num_attention_heads,
        attention__layer_norm_epsilon=getattr(config, "layer_norm_eps", None) or config.norm_eps,
        attention__causal=False,
    )
    if architecture == "modern-bert":
        theta = {kind: each["rope_theta"] for kind, each in config.rope_parameters.items()}
        writer.keys(
            attention__sliding_window=config.local_attention,
            rope__freq_base=float(theta["full_attention"]),
            rope__freq_base_swa=float(theta["sliding_attention"]),
            rope__scaling__type="none",
            hidden_activation=config.hidden_activation,
            attention__layer_norm_rms_epsilon=config.norm_eps,  # as converters write it, beside the other
        )
    tokens = [f"[{name}]" for name in ("PAD", "UNK", "CLS", "SEP", "MASK")]
    words = [f"\u2581w{number}" for number in range(config.vocab_size - len(tokens))]
    writer.keys(_tokenizer__ggml__model="bert", _tokenizer__ggml__tokens=tokens + words)
    writer.keys(_tokenizer__ggml__token_type=[3] * len(tokens) + [1] * len(words))
    for name, number in {"padding": 0, "unknown": 1, "cls": 2, "seperator": 3, "mask": 4}.items():
        writer.keys(**{f"_tokenizer__ggml__{name}_token_id": number})
    writer.keys(**more)
    names = gguf.get_tensor_name_map(_enum(architecture), config.num_hidden_layers)
    for name, tensor in sorted(load_file(folder / "model.safetensors").items()):
        for prefix in ("roberta.", "bert.", "model."):
            name = name.removeprefix(prefix)
        if name.startswith("pooler."):  # which converters take for one that nobody uses
            continue
        name = name.replace("classifier.", "classifier.out_proj.") if name.count(".") == 1 else name
        known = names.get_name(name, (".weight", ".bias"))
        tensor = tensor[padding:] if "position_embeddings" in name else tensor
        writer.tensor(known, tensor, kind if "blk" in known and tensor.dim() == 2 else None)
    return writer.close()


BY_HAND = {  # what converters rename by hand, and heads of an architecture that the package has none of
    "model.layers.{}.layer_scalar": "blk.{}.layer_output_scale.weight",
    "model.layers.{}.router.scale": "blk.{}.ffn_gate_inp.scale",
    "model.layers.{}.router.per_expert_scale": "blk.{}.ffn_down_exps.scale",
    "model.layers.{}.experts.gate_up_proj": "blk.{}.ffn_gate_up_exps.weight",
    "model.layers.{}.experts.down_proj": "blk.{}.ffn_down_exps.weight",
    "model.layers.{}.mlp.experts.gate_up_proj": "blk.{}.ffn_gate_up_exps.weight",
    "model.layers.{}.mlp.experts.down_proj": "blk.{}.ffn_down_exps.weight",
    "model.layers.{}.self_attn.sinks": "blk.{}.attn_sinks.weight",
    "model.layers.{}.self_attn.g_proj.weight": "blk.{}.attn_gate.weight",
    "model.layers.{}.self_attn.gate_proj.weight": "blk.{}.attn_gate.weight",
    "model.layers.{}.attn_qkv.weight": "blk.{}.attn_qkv.weight",
    "model.layers.{}.attn_gate.weight": "blk.{}.attn_gate.weight",
    "model.layers.{}.linear_attn.A_log": "blk.{}.ssm_a",
    "model.layers.{}.linear_attn.dt_bias": "blk.{}.ssm_dt.bias",
    "model.layers.{}.eh_proj.weight": "blk.{}.nextn.eh_proj.weight",
    "model.layers.{}.enorm.weight": "blk.{}.nextn.enorm.weight",
    "model.layers.{}.hnorm.weight": "blk.{}.nextn.hnorm.weight",
    "model.layers.{}.embed_tokens.weight": "blk.{}.nextn.embed_tokens.weight",
    "model.layers.{}.shared_head.norm.weight": "blk.{}.nextn.shared_head_norm.weight",
    "model.layers.{}.shared_head.head.weight": "blk.{}.nextn.shared_head_head.weight",
}
_STACKED = re.compile(r"(.*\.experts)\.(gate_up|down)_proj(_bias)?")


def _enum(architecture: str) -> gguf.MODEL_ARCH:
    known = NAMED_AS.get(architecture, architecture)
    return next(enum for enum, name in gguf.MODEL_ARCH_NAMES.items() if name == known)


def _merged(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """With the experts of a layer as one tensor, and their gates apart."""
    merged, experts = {}, defaultdict(dict)
    for name, tensor in tensors.items():
        name = (
            name.replace(".experts.e_score", ".gate.e_score")
            .replace("correction_bias", "correction.bias")
            .replace("expert_bias", "expert_bias.bias")
        )
        tensor = tensor[:, 0] if name.endswith(".conv.conv.weight") else tensor
        if match := _STACKED.fullmatch(name):  # of gpt-oss and Llama 4, where rows are inputs
            whole = tensor if match[3] else tensor.transpose(-1, -2)
            kind = "bias" if match[3] else "weight"
            halves = whole.chunk(2, dim=1) if ".feed_forward." in name else (whole[:, ::2], whole[:, 1::2])
            parts = (
                dict(zip(("gate", "up"), halves, strict=True)) if match[2] == "gate_up" else {"down": whole}
            )
            merged |= {f"{match[1]}.{part}_proj.{kind}": value for part, value in parts.items()}
            continue
        name = f"{name}.weight" if name.endswith("sinks") else name
        before, split, after = name.partition(".experts.")
        if split:
            number, rest = after.split(".", 1)
            experts[f"{before}.experts.{rest}"][int(number)] = tensor
        else:
            merged[name] = tensor
    return merged | {name: torch.stack([each[n] for n in sorted(each)]) for name, each in experts.items()}


def by_keys_and_values(tensors: dict[str, torch.Tensor], config: PretrainedConfig) -> dict[str, torch.Tensor]:
    """With the matrices of a latent vector apart, as llama.cpp has had them since it keeps the vector."""
    found = {}
    for name, tensor in tensors.items():
        if "kv_b_proj" not in name:
            found[name] = tensor
            continue
        heads = tensor.unflatten(0, (config.num_attention_heads, -1))
        keys, values = heads.split((config.qk_nope_head_dim, config.v_head_dim), dim=1)
        found[name.replace("kv_b_proj", "k_b_proj")] = keys.transpose(1, 2)
        found[name.replace("kv_b_proj", "v_b_proj")] = values
    return found


def by_spaces(tensors: dict[str, torch.Tensor], config: PretrainedConfig) -> dict[str, torch.Tensor]:
    """With what keeps a state, experts and MLPs as the converter of Granite 4 changes them."""
    beside = ".mlp.shared_experts." if getattr(config, "num_local_experts", 0) else ".mlp."
    groups = getattr(config, "mamba_n_groups", None) or getattr(config, "n_groups", 1)
    found: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        layer, _, part = name.partition(".mamba.")
        match part:
            case "A_log" | "D":
                tensor = (-tensor.exp() if part == "A_log" else tensor)[:, None]
            case "norm.weight":
                tensor = tensor.view(groups, -1)
            case "conv1d.weight":
                tensor = tensor.squeeze(1)
            case "dt_bias":
                name = f"{layer}.mamba.dt_proj.bias"
        for own, usual in (("router.layer.", "gate."), ("router.", "gate."), ("experts.", "experts.")):
            name = name.replace(f".block_sparse_moe.{own}", f".mlp.{usual}")
        name = re.sub(r"(layers\.\d+)\.norm\.", r"\1.input_layernorm.", name)
        name = name.replace("e_score_correction_bias", "e_score_correction.bias")
        for own, usual in ((".block_sparse_moe.", ".mlp.experts."), (".shared_mlp.", beside)):
            if own in name and "input_linear" in name:
                before = name.partition(own)[0]
                for half, each in zip(("gate", "up"), tensor.chunk(2, dim=-2), strict=True):
                    found[f"{before}{usual}{half}_proj.weight"] = each
                break
            name = name.replace(f"{own}output_linear", f"{usual}down_proj")
        else:
            found[name] = tensor
    return found


def multiplied(tensors: dict[str, torch.Tensor], config: PretrainedConfig) -> dict[str, torch.Tensor]:
    """With what Falcon-H1 multiplies with in its weights."""
    before, (gates, down) = config.attention_in_multiplier, config.mlp_multipliers
    read = config.mamba_n_groups * config.mamba_d_state
    sizes = [config.mamba_d_ssm] * 2 + [read] * 2 + [config.mamba_n_heads]
    factors = {
        "self_attn.q_proj": before,
        "self_attn.k_proj": before * config.key_multiplier,
        "self_attn.v_proj": before,
        "self_attn.o_proj": config.attention_out_multiplier,
        "feed_forward.gate_proj": gates,
        "feed_forward.down_proj": down,
        "mamba.in_proj": config.ssm_in_multiplier
        * torch.tensor(config.ssm_multipliers).repeat_interleave(torch.tensor(sizes))[:, None],
        "mamba.out_proj": config.ssm_out_multiplier,
        "lm_head": config.lm_head_multiplier,
        "embed_tokens": config.embedding_multiplier,
    }
    found = {}
    for name, tensor in tensors.items():
        of = next((each for each in factors if name.endswith(f"{each}.weight")), None)
        found[name] = tensor if of is None else tensor * factors[of]
    return found


def with_scales(tensors: dict[str, torch.Tensor], config: PretrainedConfig) -> dict[str, torch.Tensor]:
    """Those of the language model, with norms of layers, and what queries are multiplied with, as the
    converter of Muse Glimmer changes them."""
    found = {name.replace("model.language_model.", "model."): each for name, each in tensors.items()}
    found = {
        name: each + name.endswith("layernorm.weight")
        for name, each in found.items()
        if ".vision_" not in name
    }
    for layer in range(config.num_hidden_layers):
        for letter, weight in (("q", config.qk_scale_factor), ("k", 1.0)):
            name = f"model.layers.{layer}.self_attn.{letter}_norm.weight"
            found[name] = torch.full((config.head_dim,), weight)
    return found


def by_states(tensors: dict[str, torch.Tensor], config: PretrainedConfig) -> dict[str, torch.Tensor]:
    """With what keeps a state, experts and norms as the converters of Qwen3-Next and Qwen3.5 change them."""
    keys, values = config.linear_num_key_heads, config.linear_num_value_heads
    key, value, found = config.linear_key_head_dim, config.linear_value_head_dim, {}
    tiles = values // keys if config.model_type != "qwen3_next" else 1

    def tiled(tensor: torch.Tensor, size: int) -> torch.Tensor:
        return tensor.unflatten(0, (values // tiles, tiles, size)).transpose(0, 1).reshape(tensor.shape)

    for name, tensor in tensors.items():
        layer, inside, part = name.rpartition("linear_attn.")
        if name.endswith("norm.weight") and not inside:
            tensor = tensor + 1
        if part.endswith("experts.gate_up_proj"):
            for half, each in zip(("gate", "up"), tensor.chunk(2, dim=1), strict=True):
                found[f"{part.removesuffix('gate_up_proj')}{half}_proj.weight"] = each
            continue
        if part.endswith("experts.down_proj"):
            name += ".weight"
        match part if inside else "":
            case "in_proj_qkvz.weight":
                shares = values // keys * value
                heads = tensor.unflatten(0, (keys, -1)).split((key, key, shares, shares), dim=1)
                *first, gates = (each.flatten(0, 1) for each in heads)
                found[f"{layer}attn_qkv.weight"] = torch.cat(first)
                found[f"{layer}attn_gate.weight"] = gates
                continue
            case "A_log":
                tensor = tiled(-tensor.exp(), 1)
            case "dt_bias" | "in_proj_b.weight" | "in_proj_a.weight":
                tensor = tiled(tensor, 1)
            case "in_proj_z.weight":
                tensor = tiled(tensor, value)
            case "in_proj_qkv.weight" | "conv1d.weight":
                tensor = tensor.squeeze(1) if "conv" in part else tensor
                first, last = tensor.split((2 * keys * key, values * value))
                tensor = torch.cat([first, tiled(last, value)])
            case "out_proj.weight":
                tensor = tiled(tensor.t(), value).t()
        found[name] = tensor
    return found


def _factors(config: PretrainedConfig) -> dict[str, torch.Tensor]:
    """What each pair of a rope is slowed down by, where that stands in tensors."""
    rope = config.rope_parameters
    if config.model_type == "gemma4_text":
        pairs = max(layer.head_dim for layer in config.per_layer_config) // 2
        turning = int(pairs * rope["full_attention"]["partial_rotary_factor"])
        return {"rope_freqs": torch.tensor([1.0] * turning + [1e30] * (pairs - turning))}
    if rope.get("rope_type") == "llama3":
        plain = 1.0 / rope["rope_theta"] ** (torch.arange(0, config.head_dim, 2).float() / config.head_dim)
        stretched, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
        return {"rope_freqs": plain / stretched}
    names = {"rope_factors_short": "short_factor", "rope_factors_long": "long_factor"}
    return {name: torch.tensor(rope[key]) for name, key in names.items() if rope.get(key)}
