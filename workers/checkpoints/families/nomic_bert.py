"""Nomic's BERT (https://arxiv.org/abs/2402.01613): BERT with rotary positions, a gated MLP, and no biases.

Of the second (https://arxiv.org/abs/2502.07972) every other layer has experts in place of the MLP; neither
has gates, and all but experts have biases.

Its files write `config.json` in the words of GPT-2, and in those of BERT since transformers has the model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta
from msgspec.structs import replace

from workers.checkpoints import config
from workers.checkpoints.config import ConfigFile
from workers.checkpoints.experts import Experts
from workers.checkpoints.families.llama import expert_tensors
from workers.checkpoints.family import Family, TensorSpec, linear, norm
from workers.checkpoints.files import refuse
from workers.checkpoints.model_config import Encoder, ModelConfig
from workers.checkpoints.rope import Size
from workers.checkpoints.safetensors import Tensor
from workers.checkpoints.stacked import MOST_EXPERTS, TRANSPOSED

WORDS, TYPES, NORM = "embeddings.word_embeddings", "embeddings.token_type_embeddings", "emb_ln"
PREFIXES = ("nomic_bert.", "bert.")  # of a model that has a head besides
THETA = 1000.0
OLD_NAMES = {
    "n_embd": "hidden_size",
    "n_inner": "intermediate_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_positions": "max_position_embeddings",
    "layer_norm_epsilon": "layer_norm_eps",
    "rotary_emb_base": "rope_theta",
}
GATES = {"swiglu": "silu", "geglu": "gelu"}
PLAIN = "gelu"  # without gates
ROUTER = "router.layer"
STACKED = {"w1": "up_proj.weight", "w2": f"down_proj.{TRANSPOSED}"}  # all experts, one below the other
# What the keys in GPT-2's words must say: other models of this code are others.
ONLY: dict[str, tuple[Any, ...]] = {
    "rotary_emb_fraction": (1.0,),
    "rotary_emb_interleaved": (False,),
    "rotary_emb_scale_base": (None,),
    "prenorm": (False,),
    "parallel_block": (False,),
    "parallel_block_tied_norm": (False,),
    "use_rms_norm": (False, None),
    "causal": (False,),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "num_shared_experts": (0, None),
    "moe_normalize_expert_weights": (False, None),
    "expert_choice_router": (False, None),
    "ffn_div": (1, None),
}
# Above the positions that it was trained with the rope would turn otherwise, as the text grows longer.
STRETCHED = ("max_trained_positions", "rotary_scaling_factor")
UNREAD = ("activation_function", "moe_impl", "reorder_and_upcast_attn", "use_flash_attn")


class NomicBertFile(ConfigFile, kw_only=True):
    """The keys of its `config.json`, in BERT's words."""

    layer_norm_eps: Annotated[float, Meta(ge=0)] = 1e-12
    type_vocab_size: Annotated[int, Meta(ge=0)] = 2
    gates: bool = True  # these are of its own code's words
    qkv_proj_bias: bool = False
    mlp_fc1_bias: bool = False
    mlp_fc2_bias: bool = False
    num_experts: Annotated[int, Meta(ge=0, le=MOST_EXPERTS)] | None = None
    moe_top_k: Size | None = None
    moe_every_n_layers: Annotated[int, Meta(ge=0)] | None = None
    expert_bias: bool = True
    router_aux_loss_coef: Any = None  # of training


def read(path: Path, given: Mapping[str, Any]) -> ModelConfig:
    """Contexts beyond those of its training, in which its own code stretches the rope, are not served."""
    file = config.read(path, _in_words_of_bert(path, given), NomicBertFile)
    config.refuse_other_heads(path, file)
    theta = file.rope_theta or THETA
    file = replace(
        file,
        rms_norm_eps=file.layer_norm_eps,
        tie_word_embeddings=True,
        rope_theta=theta,
        rope_parameters={"rope_theta": theta} | (file.rope_parameters or {}),
    )
    if file.gates and file.mlp_fc1_bias:
        refuse(path, "mlp_fc1_bias True is not supported beside gates")
    return config.model_config(
        path,
        file,
        [None] * file.num_hidden_layers,
        qkv_bias=file.qkv_proj_bias,
        output_bias=file.qkv_proj_bias,
        mlp_bias=file.mlp_fc1_bias,
        gates=file.gates,
        bidirectional=True,
        encoder=Encoder(token_types=file.type_vocab_size, norm_bias=True, down_bias=file.mlp_fc2_bias),
        experts=_experts(path, file),
    )


def _experts(path: Path, file: NomicBertFile) -> Experts | None:
    """Those of every so many'th layer, from the second on."""
    every = file.moe_every_n_layers
    if not file.num_experts and not every:
        return None
    if file.gates or (every or 0) < 2 or not 0 < (file.moe_top_k or 0) <= (file.num_experts or 0):
        said = f"moe_every_n_layers {every}, moe_top_k {file.moe_top_k} of num_experts {file.num_experts}"
        refuse(path, f"{said}, gates {file.gates}: is not supported")
    experts = Experts(
        count=file.num_experts,
        chosen=file.moe_top_k,
        intermediate_size=file.intermediate_size,
        layers=tuple(range(1, file.num_hidden_layers, every)),
        router=ROUTER,
        summed_bias=file.expert_bias,
    )
    return experts if experts.layers else None


def _in_words_of_bert(path: Path, given: Mapping[str, Any]) -> dict[str, Any]:
    given = dict(given)
    if "n_embd" not in given:
        return given
    for key, known in ONLY.items():
        if key in given and (value := given.pop(key)) not in known:
            refuse(path, f"{key} {value} is not supported; {known[0]} is")
    name = given.get("activation_function")
    if not isinstance(name, str) or name not in (*GATES, PLAIN):
        refuse(path, f"activation_function {name} is not supported; there are {', '.join((*GATES, PLAIN))}")
    trained = given.get("max_trained_positions") or given.get("n_positions")
    for old, new in OLD_NAMES.items():
        if old in given:
            given[new] = given.pop(old)
    if isinstance(trained, int) and isinstance(given.get("max_position_embeddings"), int):
        given["max_position_embeddings"] = min(trained, given["max_position_embeddings"])
    given["hidden_act"], given["gates"] = GATES.get(name, name), name in GATES
    for key in (*STRETCHED, *UNREAD):
        given.pop(key, None)
    return given


def tensors(model: ModelConfig) -> Iterator[TensorSpec]:
    """Every tensor that is loaded, by its name without the prefix of models with a head."""
    hidden, inner = model.hidden_size, model.intermediate_size
    yield TensorSpec(f"{WORDS}.weight", (model.vocab_size, hidden), "vocabulary")
    if model.encoder.token_types:
        yield TensorSpec(f"{TYPES}.weight", (model.encoder.token_types, hidden), "none")
    yield from norm(NORM, hidden)
    for layer in range(model.num_layers):
        prefix = f"encoder.layers.{layer}."
        yield from linear(f"{prefix}attn.Wqkv", 3 * hidden, hidden, "qkv_rows", model.qkv_bias)
        yield from linear(f"{prefix}attn.out_proj", hidden, hidden, "columns", model.output_bias)
        yield from norm(f"{prefix}norm1", hidden)
        if model.experts is not None and layer in model.experts.layers:
            yield from expert_tensors(f"{prefix}mlp.", hidden, model.experts, gates=False)
            if model.experts.summed_bias:
                yield TensorSpec(f"{prefix}mlp.experts.bias", (hidden,), "none")
        else:
            for name in ("fc11", "fc12") if model.gates else ("fc1",):
                yield from linear(f"{prefix}mlp.{name}", inner, hidden, "rows", model.mlp_bias)
            yield from linear(f"{prefix}mlp.fc2", hidden, inner, "columns", model.encoder.down_bias)
        yield from norm(f"{prefix}norm2", hidden)


def parts(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Experts apart, as many as a layer's router knows."""
    found: dict[str, Tensor] = {}
    for name, tensor in stored.items():
        layer, _, own = name.rpartition(".experts.mlp.")
        router = stored.get(f"{layer}.{ROUTER}.weight")
        count = 0 if router is None or own not in STACKED else router.shape[0]
        if not 0 < count <= MOST_EXPERTS or tensor.shape[0] % count:
            found[name] = tensor
            continue
        size, shape = tensor.size // count, (tensor.shape[0] // count, *tensor.shape[1:])
        for number in range(count):
            each = Tensor(tensor.file, tensor.dtype, shape, tensor.offset + number * size, size)
            found[f"{layer}.experts.{number}.{STACKED[own]}"] = each
    return found


def usual_name(name: str) -> str:
    """The name of a tensor as a model that stands alone has it."""
    for prefix in PREFIXES:
        name = name.removeprefix(prefix)
    return name


NOMIC_BERT = Family(
    "nomic_bert",
    ("NomicBertModel", "NomicBertForMaskedLM", "NomicBertForPreTraining"),
    read,
    tensors,
    usual_name=usual_name,
    rearrange=parts,
)
