"""Keys of a file that change what its model computes, and that nobody read: refused, as those of a
`config.json` are, in place of an answer that is nearly right.

What a key means to llama.cpp stands in its `src/llama-model.cpp` and `src/models/`, and which there are in
`gguf-py/gguf/constants.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from workers.checkpoints import config
from workers.checkpoints.files import refuse
from workers.checkpoints.gguf.keys import WINDOW, Keys

NOTHING, NO_SCALE = (0,), (0, 1)
SOFTMAX, SIGMOID, SOFTMAX_OF_CHOSEN = 1, 2, 3  # of `expert_gating_func`; 0: as the family has it
OF_EXPERTS = "expert"  # what the names of their keys begin with
OF_OTHERS = ("vision.", "audio.", "mm.")  # the same of what stands beside the model in some files

# Sizes, which shapes of tensors say too; what a rope of another type is made of; and what `pooling` reads.
_HARMLESS = """
    pooling_type classifier.output_labels classifier.pooling_type vocab_size
    expert_feed_forward_length expert_shared_feed_forward_length tensor_data_layout
    decoder_start_token_id rope.scaling.finetuned rope.scaling.original_context_length
    rope.scaling.yarn_beta_fast rope.scaling.yarn_beta_slow rope.scaling.yarn_attn_factor
    rope.scaling.yarn_ext_factor
"""
HARMLESS = frozenset(_HARMLESS.split())
# All others that there are, and the values that change nothing.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "attention.causal": (True,),
    WINDOW: NOTHING,  # or all of the context
    "attention.sliding_window_pattern": NOTHING,  # or whatever it is where there is no window
    "attention.max_alibi_bias": NOTHING,
    "attention.clamp_kqv": NOTHING,
    "attention.scale": NOTHING,
    "attention.output_scale": NO_SCALE,
    "attention.temperature_scale": NOTHING,
    "attention.temperature_length": NOTHING,
    "attn_logit_softcapping": NOTHING,
    "final_logit_softcapping": NOTHING,
    "router_logit_softcapping": NOTHING,
    "embedding_scale": NO_SCALE,
    "residual_scale": NO_SCALE,
    "logit_scale": NO_SCALE,
    "expert_weights_scale": NO_SCALE,
    "expert_weights_norm": (True,),
    "expert_gating_func": (0, SOFTMAX),
    "expert_group_count": NO_SCALE,
    "expert_group_used_count": NO_SCALE,
    "expert_group_scale": NO_SCALE,
    "experts_per_group": NO_SCALE,
    "expert_count": NOTHING,
    "moe_every_n_layers": NO_SCALE,
    "interleave_moe_layer_step": NO_SCALE,
    "nextn_predict_layers": NOTHING,
    "rope.scaling.type": ("none", "linear"),
    "rope.scaling.factor": NO_SCALE,
    "rope.scale_linear": NO_SCALE,
    "rope.scaling.attn_factor": NO_SCALE,
    "rope.scaling.alpha": NO_SCALE,
    "rope.scaling.yarn_log_multiplier": NOTHING,
}
_NO_SUCH_PART = """
    activation_sparsity_scale altup.active_idx altup.num_inputs attention.decay_lora_rank
    attention.gate_lora_rank attention.group_norm_epsilon attention.group_norm_groups
    attention.iclr_lora_rank attention.indexer.head_count attention.indexer.key_length
    attention.indexer.top_k attention.key_length_mla attention.key_length_swa attention.kv_lora_rank
    attention.q_lora_rank attention.relative_buckets_count attention.shared_kv_layers
    attention.value_length_mla attention.value_length_swa attention.value_residual_mix_lora_rank
    convnext.block_count convnext.embedding_length decoder_block_count
    dense_2_feat_in dense_2_feat_out dense_3_feat_in dense_3_feat_out embedding_length_out
    embedding_length_per_layer_input expert_chunk_feed_forward_length expert_shared_count expert_used_count
    features_length full_attention_interval kda.head_dim leading_dense_block_count moe_latent_size
    n_deepstack_layers posnet.block_count posnet.embedding_length rescale_every_n_layers
    rope.dimension_count_swa rope.dimension_sections rope.freq_base_swa shortconv.l_cache ssm.conv_kernel
    ssm.dt_b_c_rms ssm.group_count ssm.inner_size ssm.state_size ssm.time_step_rank swiglu_clamp_exp
    swiglu_clamp_shexp swin_norm time_decay_extra_dim time_mix_extra_dim token_shift_count
    use_parallel_residual wkv.head_size
"""
NEUTRAL |= dict.fromkeys(_NO_SUCH_PART.split(), NOTHING)


def check(keys: Keys, own: Mapping[str, tuple[Any, ...]]) -> None:
    """See that no key is left aside that changes numbers.

    Args:
        keys: after all were read that somebody wanted.
        own: values that change nothing in this model, of keys where these are others than in `NEUTRAL`.

    Raises:
        CortexError: MODEL_LOAD_FAILED naming the key.
    """
    neutral = NEUTRAL | own
    has_experts, window = (keys.beside(name) for name in ("expert_count", WINDOW))
    if isinstance(window, int) and window >= keys.size("context_length"):
        neutral[WINDOW], window = (window,), 0
    for name in keys.names():
        if name in keys.asked or name in HARMLESS or name.startswith(OF_OTHERS):
            continue
        if name.startswith(OF_EXPERTS) and not has_experts:
            continue
        if name == "attention.sliding_window_pattern" and not window:
            continue
        value = keys.beside(name)
        if name in neutral:
            each = value if isinstance(value, list) else [value]
            is_neutral = all(_is_one_of(one, neutral[name]) for one in each)
        else:
            is_neutral = not config.sounds_as_if_it_mattered(name) or config.is_neutral(value)
        if not is_neutral:
            refuse(keys.path, f"{keys.file.architecture}.{name} {value} is not supported")


def _is_one_of(value: Any, neutral: tuple[Any, ...]) -> bool:
    """Whether it is one of them, as float32 has it."""
    if isinstance(value, float):
        return any(
            isinstance(each, int | float) and math.isclose(value, each, rel_tol=1e-6) for each in neutral
        )
    return value in neutral
