"""Tiny random checkpoints, written by transformers, which is then the oracle for what they answer."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from transformers import PreTrainedModel

from tests.workers import stacked
from tests.workers.oracle import fill, one_by_one
from tests.workers.tiny_models import (
    GROUPS,
    LINEAR,
    LLAMA3,
    NO_HEAD_DIM,
    ROUTED,
    SIZES,
    TYPES,
    TYPES3,
    YARN,
    afmoe,
    apertus,
    cohere2,
    cohere2_moe,
    cwm,
    deepseek_v2,
    deepseek_v3,
    ernie4_5_moe,
    exaone_moe,
    falcon_h1,
    flex_olmo,
    gemma,
    gemma2,
    gemma3,
    gemma3n,
    gemma4,
    glm4_moe,
    gpt_oss,
    granite,
    granite_hybrid,
    granite_moe,
    granite_swa,
    hunyuan,
    hunyuan_moe,
    hyperclovax,
    kolibri1,
    laguna,
    latent_sizes,
    lfm2,
    lfm2_moe,
    lfm3,
    llama,
    llama4,
    mellum,
    minimax_m2,
    ministral3,
    mistral,
    mistral4,
    muse_glimmer,
    nemotron_h,
    of,
    olmo2,
    olmo3,
    olmo_hybrid,
    olmoe,
    phi3,
    phimoe,
    qwen2,
    qwen2_moe,
    qwen3,
    qwen3_5,
    qwen3_5_moe,
    qwen3_moe,
    qwen3_next,
    smollm3,
    starcoder2,
    vaultgemma,
    youtu,
)

# Together they cover what a config may say; `sharded` and `flat` are also written to disk in another way.
VARIANTS: dict[str, Callable[[], PreTrainedModel]] = {
    "qwen3_tied": lambda: qwen3(tie_word_embeddings=True),
    "qwen3_untied_biased": lambda: qwen3(attention_bias=True),
    "qwen3_yarn": lambda: qwen3(rope_parameters=YARN, tie_word_embeddings=True),
    "llama_untied_linear": lambda: llama(head_dim=12, rope_parameters=LINEAR),
    "llama_tied_llama3": lambda: llama(rope_parameters=LLAMA3, tie_word_embeddings=True),
    "llama_yarn_biased": lambda: llama(
        rope_parameters=YARN | {"beta_fast": 16.0, "attention_factor": 1.3},
        attention_bias=True,
        mlp_bias=True,
    ),
    "llama_gelu_dynamic": lambda: llama(hidden_act="gelu", rope_parameters=LINEAR | {"rope_type": "dynamic"}),
    "mistral_window": lambda: mistral(sliding_window=40),
    "qwen3_window_above": lambda: qwen3(
        use_sliding_window=True, sliding_window=20, max_window_layers=1, num_hidden_layers=3
    ),
    "mistral_gelu_tanh": lambda: mistral(hidden_act="gelu_pytorch_tanh"),
    "ministral_by_types": lambda: transformers.MinistralForCausalLM(
        transformers.MinistralConfig(
            **SIZES | {"sliding_window": 24, "layer_types": ["sliding_attention", "full_attention"]}
        )
    ),
    "ministral3": lambda: ministral3(),
    "ministral3_window": lambda: ministral3(sliding_window=24, tie_word_embeddings=True),
    "llama4": lambda: llama4(),
    "llama4_some_experts": lambda: llama4(
        interleave_moe_layer_step=2,
        num_experts_per_tok=2,
        no_rope_layers=[1, 0, 1, 1],
        use_qk_norm=False,
        attention_bias=True,
        rope_parameters=LLAMA3,
        tie_word_embeddings=True,
    ),
    "llama4_by_types": lambda: llama4(
        attn_temperature_tuning=False,
        layer_types=["chunked_attention", "full_attention"] * 2,
        moe_layers=[],
        rope_parameters=YARN,
    ),
    "phimoe": lambda: phimoe(router_jitter_noise=0.3, attention_bias=True),
    "phimoe_window_head_bias": lambda: phimoe(
        sliding_window=24, lm_head_bias=True, router_jitter_noise=0.1, hidden_act="gelu"
    ),
    "qwen2_tied": lambda: qwen2(tie_word_embeddings=True),
    "qwen2_window_above": lambda: qwen2(use_sliding_window=True, sliding_window=20, max_window_layers=1),
    "qwen3_moe": lambda: qwen3_moe(norm_topk_prob=True),
    "qwen3_moe_some": lambda: qwen3_moe(
        num_hidden_layers=4, decoder_sparse_step=2, mlp_only_layers=[3], tie_word_embeddings=True
    ),
    "gemma2": lambda: gemma2(),
    "gemma2_without_caps": lambda: gemma2(
        attn_logit_softcapping=None, final_logit_softcapping=None, attention_bias=True
    ),
    "gemma3": lambda: gemma3(),
    "gemma3_linear_capped": lambda: gemma3(
        rope_parameters={
            "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 100_000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1_000.0},
        },
        final_logit_softcapping=20.0,
        tie_word_embeddings=False,
    ),
    "gemma3n": lambda: gemma3n(),
    "gemma3n_shared_sparse": lambda: gemma3n(
        num_hidden_layers=6,
        layer_types=[*TYPES, *TYPES, *TYPES],
        num_kv_shared_layers=2,
        activation_sparsity_pattern=[0.9, 0.5, 0.9, 0.25, 0.0, 0.9],
        intermediate_size=[64, 96, 64, 32, 64, 96],
    ),
    "gemma3n_otherwise": lambda: gemma3n(
        num_key_value_heads=1,
        vocab_size_per_layer_input=96,
        altup_num_inputs=3,
        altup_active_idx=1,
        altup_correct_scale=False,
        attention_bias=True,
        final_logit_softcapping=5.0,
        tie_word_embeddings=False,
        rope_parameters={"full_attention": LINEAR, "sliding_attention": {"rope_type": "default"}},
    ),
    "gemma4": lambda: gemma4(),
    "gemma4_inputs_shared": lambda: gemma4(
        num_hidden_layers=6,
        layer_types=[*TYPES, *TYPES, *TYPES],
        num_kv_shared_layers=3,
        use_double_wide_mlp=True,
        hidden_size_per_layer_input=8,
        vocab_size_per_layer_input=131,
        attention_bias=True,
    ),
    "gemma4_experts_k_eq_v": lambda: gemma4(
        enable_moe_block=True,
        num_experts=6,
        top_k_experts=3,
        moe_intermediate_size=24,
        attention_k_eq_v=True,
        num_global_key_value_heads=1,
        final_logit_softcapping=20.0,
    ),
    "gemma4_unified": lambda: transformers.Gemma4UnifiedForCausalLM(
        transformers.Gemma4UnifiedTextConfig(
            **SIZES | {"global_head_dim": 24, "layer_types": TYPES, "sliding_window": 24},
            attention_k_eq_v=True,
            tie_word_embeddings=False,
            rope_parameters={
                "full_attention": {"rope_type": "proportional", "rope_theta": 5_000.0, "factor": 2.0},
                "sliding_attention": LINEAR,
            },
        )
    ),
    "phi3": lambda: phi3(sliding_window=24),
    "phi3_partial_tied": lambda: phi3(
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.67},
        tie_word_embeddings=True,
    ),
    "granite_tied": lambda: granite(tie_word_embeddings=True),
    "granite_biased": lambda: granite(attention_bias=True, mlp_bias=True),
    "granitemoe": lambda: granite_moe("GraniteMoe", attention_bias=True),
    "granitemoe_shared": lambda: granite_moe("GraniteMoeShared", shared_intermediate_size=40),
    "granitemoe_of_4_plain": lambda: granite_moe(
        "GraniteMoeHybrid",
        num_local_experts=0,
        shared_intermediate_size=40,
        layer_types=["full_attention"] * 2,
        position_embedding_type="rope",
        mamba_n_heads=4,
        tie_word_embeddings=True,
    ),
    "granitemoe_of_4_unrotated": lambda: granite_moe(
        "GraniteMoeHybrid",
        shared_intermediate_size=40,
        layer_types=["full_attention"] * 2,
        mamba_n_heads=4,
    ),
    "granitemoehybrid": lambda: granite_hybrid(),
    "granitemoehybrid_dense": lambda: granite_hybrid(
        num_local_experts=0,
        position_embedding_type="rope",
        mamba_n_heads=8,
        mamba_n_groups=2,
        mamba_d_conv=3,
        mamba_conv_bias=False,
        mamba_proj_bias=True,
        time_step_limit=(0.3, 1.5),
        tie_word_embeddings=True,
    ),
    "nemotron_h": lambda: nemotron_h(),
    "nemotron_h_biased": lambda: nemotron_h(
        layers_block_type=["linear_attention"] * 2 + ["full_attention", "mlp"],
        mamba_num_heads=4,
        n_groups=1,
        use_bias=True,
        mlp_bias=True,
        use_conv_bias=False,
    ),
    "nemotron_h_moe": lambda: nemotron_h(
        layers_block_type=["linear_attention", "moe", "full_attention", "moe", "linear_attention"],
        n_group=2,
        topk_group=1,
        routed_scaling_factor=1.3,
    ),
    "falcon_h1": lambda: falcon_h1(),
    "falcon_h1_normed": lambda: falcon_h1(
        mamba_rms_norm=True,
        mamba_d_ssm=None,
        mamba_n_heads=4,
        mamba_n_groups=1,
        mamba_proj_bias=True,
        projectors_bias=True,
        ssm_in_multiplier=1.0,
        mamba_conv_bias=False,
        mlp_multipliers=[1.0, 1.0],
        mlp_bias=True,
        tie_word_embeddings=True,
    ),
    "falcon_h1_normed_behind": lambda: falcon_h1(mamba_rms_norm=True, mamba_norm_before_gate=False),
    "smollm3": lambda: smollm3(),
    "smollm3_windows": lambda: smollm3(
        use_sliding_window=True, sliding_window=20, no_rope_layers=[1, 0, 1, 0], rope_parameters=YARN
    ),
    "hyperclovax": lambda: hyperclovax(),
    "hyperclovax_without_norms": lambda: hyperclovax(
        use_post_norm=False, attention_multiplier=0.2, attention_bias=True, mlp_bias=True
    ),
    "cwm": lambda: cwm(),
    "cwm_by_types": lambda: cwm(
        layer_types=[TYPES[0], *TYPES], rope_parameters=YARN, mlp_bias=True, tie_word_embeddings=True
    ),
    "gemma": lambda: gemma(),
    "gemma_untied_biased": lambda: gemma(
        tie_word_embeddings=False, attention_bias=True, rope_parameters=LINEAR, hidden_act="gelu"
    ),
    "mellum": lambda: mellum(),
    "mellum_by_types": lambda: mellum(
        layer_types=[TYPES[0], *TYPES],
        mlp_layer_types=["dense", "sparse", "sparse"],
        norm_topk_prob=False,
        rope_parameters={
            "full_attention": YARN,
            "sliding_attention": {"rope_theta": 1_000.0, "rope_type": "default"},
        },
    ),
    "olmo2": lambda: olmo2(),
    "olmo2_biased": lambda: olmo2(
        attention_bias=True, num_key_value_heads=1, num_hidden_layers=3, rope_parameters=LINEAR
    ),
    "olmo3": lambda: olmo3(num_hidden_layers=4),
    "olmo3_by_types": lambda: olmo3(
        layer_types=TYPES,
        rope_parameters={
            "full_attention": YARN,
            "sliding_attention": {"rope_theta": 1_000.0, "rope_type": "default"},
        },
    ),
    "kolibri1": lambda: kolibri1(),
    "kolibri1_normalised": lambda: kolibri1(
        norm_topk_prob=True,
        layer_types=TYPES3,
        num_hidden_layers=3,
        tie_word_embeddings=True,
        rope_parameters=YARN,
    ),
    "muse_glimmer": lambda: muse_glimmer(),
    "muse_glimmer_biased": lambda: muse_glimmer(
        attention_bias=True,
        tie_word_embeddings=True,
        hidden_activation="gelu_pytorch_tanh",
        layer_types=TYPES3,
        num_hidden_layers=3,
        layer_rope_theta=[10_000.0, 10_000.0, 0],
        rope_parameters=YARN,
        qk_scale_factor=2.0,
        output_multiplier=0.7,
        final_logit_softcapping=8.0,
        post_norm_eps=0.5,
        rms_norm_eps=0.1,
    ),
    "olmo_hybrid": lambda: olmo_hybrid(rope_parameters={"rope_type": "default", "rope_theta": None}),
    "olmo_hybrid_turning": lambda: olmo_hybrid(
        layer_types=["full_attention", *["linear_attention"] * 2],
        num_hidden_layers=3,
        attention_bias=True,
        tie_word_embeddings=True,
        rope_parameters=YARN,
        rms_norm_eps=1e-2,
        linear_num_key_heads=4,
        linear_conv_kernel_dim=3,
        linear_allow_neg_eigval=False,
    ),
    "glm": lambda: transformers.GlmForCausalLM(transformers.GlmConfig(**SIZES)),
    "glm_tied_unbiased": lambda: transformers.GlmForCausalLM(
        transformers.GlmConfig(
            **SIZES | {"attention_bias": False, "tie_word_embeddings": True, "partial_rotary_factor": 1.0}
        )
    ),
    "glm4": lambda: transformers.Glm4ForCausalLM(transformers.Glm4Config(**SIZES)),
    "glm4_moe": lambda: glm4_moe(**GROUPS, num_hidden_layers=3),
    "glm4_moe_normed_biased": lambda: glm4_moe(
        use_qk_norm=True, attention_bias=True, norm_topk_prob=False, first_k_dense_replace=0
    ),
    "glm4_moe_whole": lambda: one_by_one(
        glm4_moe(n_routed_experts=7, moe_intermediate_size=33, n_shared_experts=4)
    ),
    "glm4_moe_lite": lambda: transformers.Glm4MoeLiteForCausalLM(
        transformers.Glm4MoeLiteConfig(
            **latent_sizes(rope_parameters=YARN | {"mscale": 0.7, "mscale_all_dim": 0.7})
        )
    ),
    "deepseek_v3": lambda: deepseek_v3(
        rope_parameters=YARN | {"mscale": 1.0, "mscale_all_dim": 0.7}, attention_bias=True
    ),
    "deepseek_v3_plain_queries": lambda: deepseek_v3(
        q_lora_rank=None, rope_interleave=False, norm_topk_prob=False, tie_word_embeddings=True
    ),
    "deepseek_v2": lambda: deepseek_v2(q_lora_rank=None),
    "deepseek_v2_in_groups": lambda: deepseek_v2(
        **GROUPS, topk_method="group_limited_greedy", first_k_dense_replace=1
    ),
    "mixtral_window": lambda: transformers.MixtralForCausalLM(
        transformers.MixtralConfig(**SIZES, num_local_experts=4, sliding_window=24)
    ),
    "mixtral": lambda: transformers.MixtralForCausalLM(
        transformers.MixtralConfig(**SIZES, num_local_experts=4)
    ),
    "qwen2_moe": lambda: qwen2_moe(norm_topk_prob=False, qkv_bias=False),
    "qwen2_moe_windows": lambda: qwen2_moe(
        norm_topk_prob=True,
        num_hidden_layers=4,
        use_sliding_window=True,
        sliding_window=20,
        max_window_layers=3,
        mlp_only_layers=[1],
    ),
    "qwen3_next": lambda: qwen3_next(mlp_only_layers=[2], linear_conv_kernel_dim=3),
    "qwen3_5": lambda: qwen3_5(attention_bias=True),
    "qwen3_5_tied": lambda: qwen3_5(
        tie_word_embeddings=True,
        layer_types=["full_attention", "linear_attention", "linear_attention"],
        num_hidden_layers=3,
        linear_num_value_heads=2,
    ),
    "qwen3_5_moe": lambda: qwen3_5_moe(),
    "gpt_oss": lambda: gpt_oss(),
    "gpt_oss_by_types": lambda: gpt_oss(
        layer_types=TYPES[::-1],
        attention_bias=False,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
    ),
    "gpt_oss_whole": lambda: one_by_one(gpt_oss(intermediate_size=33)),
    "gpt_oss_mxfp4": lambda: gpt_oss(hidden_size=160, intermediate_size=192),
    "seed_oss": lambda: transformers.SeedOssForCausalLM(transformers.SeedOssConfig(**SIZES)),
    "seed_oss_biased": lambda: transformers.SeedOssForCausalLM(
        transformers.SeedOssConfig(**SIZES, attention_bias=False, attention_out_bias=True, mlp_bias=True)
    ),
    "exaone4_llama3": lambda: transformers.Exaone4ForCausalLM(
        transformers.Exaone4Config(
            **SIZES | {"num_hidden_layers": 4, "sliding_window": 24}, rope_parameters=LLAMA3
        )
    ),
    "exaone4_without_windows": lambda: transformers.Exaone4ForCausalLM(
        transformers.Exaone4Config(
            **SIZES, sliding_window=None, layer_types=TYPES[1:] * 2, tie_word_embeddings=True
        )
    ),
    "ernie4_5": lambda: transformers.Ernie4_5ForCausalLM(transformers.Ernie4_5Config(**SIZES)),
    "ernie4_5_biased": lambda: transformers.Ernie4_5ForCausalLM(
        transformers.Ernie4_5Config(**SIZES, use_bias=True, tie_word_embeddings=False)
    ),
    "ernie4_5_moe": lambda: ernie4_5_moe(num_hidden_layers=3),
    "ernie4_5_moe_some": lambda: ernie4_5_moe(
        num_hidden_layers=4, moe_layer_interval=2, moe_num_shared_experts=0, tie_word_embeddings=False
    ),
    "olmoe": lambda: olmoe(),
    "olmoe_normalised": lambda: olmoe(norm_topk_prob=True, attention_bias=True, num_key_value_heads=1),
    "minimax_m2": lambda: minimax_m2(rotary_dim=8),
    "cohere": lambda: transformers.CohereForCausalLM(
        transformers.CohereConfig(**NO_HEAD_DIM, logit_scale=0.6)
    ),
    "cohere2": lambda: cohere2(),
    "cohere2_by_types": lambda: cohere2(
        layer_types=TYPES, num_hidden_layers=2, attention_bias=True, tie_word_embeddings=False
    ),
    "arcee": lambda: transformers.ArceeForCausalLM(transformers.ArceeConfig(**SIZES)),
    "arcee_biased": lambda: transformers.ArceeForCausalLM(
        transformers.ArceeConfig(**SIZES, mlp_bias=True, attention_bias=True, rope_parameters=YARN)
    ),
    "apertus": lambda: apertus(),
    "starcoder2": lambda: starcoder2(),
    "starcoder2_unbiased": lambda: starcoder2(
        sliding_window=24, use_bias=False, hidden_act="gelu", tie_word_embeddings=False, num_key_value_heads=1
    ),
    "hunyuan_v1_dense": lambda: hunyuan(
        rope_parameters={"rope_type": "dynamic", "rope_theta": 10_000.0, "alpha": 50.0, "factor": 1.0}
    ),
    "hunyuan_v1_dense_plain": lambda: hunyuan(attention_bias=True, tie_word_embeddings=True),
    "lfm2": lambda: lfm2(),
    "lfm2_moe": lambda: lfm2_moe(num_dense_layers=1, conv_L_cache=4, routed_scaling_factor=1.3),
    "youtu": lambda: youtu(),
    "youtu_untied_plain_queries": lambda: youtu(
        q_lora_rank=None, rope_interleave=False, attention_bias=True, tie_word_embeddings=False
    ),
    "vaultgemma": lambda: vaultgemma(),
    "vaultgemma_without_caps": lambda: vaultgemma(
        attn_logit_softcapping=None, final_logit_softcapping=None, attention_bias=True, layer_types=TYPES3
    ),
    "dots1": lambda: of("Dots1", **ROUTED, first_k_dense_replace=1, norm_topk_prob=True, attention_bias=True),
    "dots1_in_groups_with_windows": lambda: of(
        "Dots1", **ROUTED | GROUPS, num_hidden_layers=3, max_window_layers=1, sliding_window=24
    ),
    "solar_open": lambda: of("SolarOpen", **ROUTED),
    "solar_open_in_groups": lambda: of("SolarOpen", **ROUTED | GROUPS, attention_bias=True),
    "exaone_moe": lambda: exaone_moe(sliding_window=24),
    "exaone_moe_in_groups": lambda: exaone_moe(
        n_group=2,
        topk_group=1,
        num_shared_experts=2,
        mlp_layer_types=["sparse", "dense", "sparse", "sparse"],
        sliding_window=24,
        layer_types=["full_attention", *TYPES3],
        norm_topk_prob=False,
    ),
    "granite_swa": lambda: granite_swa("GraniteSWA"),
    "granite_swa_by_thetas": lambda: granite_swa(
        "GraniteSWA",
        layer_types=TYPES3,
        layer_rope_theta=[300.0, 10_000.0, 0],
        attention_bias=True,
        mlp_bias=True,
        tie_word_embeddings=False,
    ),
    "granitemoe_swa": lambda: granite_swa(
        "GraniteMoeSWA", num_local_experts=6, num_experts_per_tok=3, intermediate_size=32
    ),
    "granitemoe_swa_unrotated_shared": lambda: granite_swa(
        "GraniteMoeSWA",
        num_local_experts=6,
        intermediate_size=32,
        shared_intermediate_size=40,
        layer_rope_theta=[0, 500.0, 500.0],
    ),
    "mimo": lambda: qwen2(architectures=["MiMoForCausalLM"]),
    "mistral4": lambda: mistral4(),
    "mistral4_some_experts": lambda: mistral4(
        first_k_dense_replace=1,
        q_lora_rank=None,
        norm_topk_prob=False,
        attention_bias=True,
        rope_interleave=False,
    ),
    "cohere2_moe": lambda: cohere2_moe(
        expert_selection_fn="sigmoid", first_k_dense_replace=1, prefix_dense_intermediate_size=64
    ),
    "cohere2_moe_plain_norms_summed": lambda: cohere2_moe(
        rms_norm_eps=1e-5,
        shared_expert_combination_strategy="sum",
        num_shared_experts=2,
        attention_bias=True,
        tie_word_embeddings=False,
        layer_types=["full_attention", *TYPES3],
        mlp_layer_types=["dense", "sparse", "sparse", "dense"],
        prefix_dense_sliding_window_pattern=2,
    ),
    "cohere2_moe_without_shared": lambda: cohere2_moe(
        num_shared_experts=0, expert_selection_fn="sigmoid", norm_topk_prob=False, num_hidden_layers=5
    ),
    "iquestcoder": lambda: llama(architectures=["IQuestCoderForCausalLM"]),
    "jais2": lambda: of("Jais2"),
    "jais2_unbiased_tied": lambda: of(
        "Jais2", attention_bias=False, mlp_bias=False, tie_word_embeddings=True, hidden_act="gelu"
    ),
    "laguna": lambda: laguna(
        rope_parameters={
            "full_attention": YARN | {"partial_rotary_factor": 0.5},
            "sliding_attention": {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 1.0},
        }
    ),
    "laguna_gates_apart": lambda: laguna(
        gating="per-element",
        attention_bias=True,
        layer_types=None,
        num_attention_heads_per_layer=None,
        mlp_layer_types=["sparse", "dense", "sparse"],
        tie_word_embeddings=True,
    ),
    "afmoe": lambda: afmoe(),
    "afmoe_scaled_biased": lambda: afmoe(
        mup_enabled=True,
        num_dense_layers=2,
        global_attn_every_n_layers=2,
        attention_bias=True,
        num_shared_experts=2,
    ),
    "helium": lambda: of("Helium", head_dim=12),
    "helium_biased_tied": lambda: of(
        "Helium", head_dim=12, attention_bias=True, mlp_bias=True, tie_word_embeddings=True
    ),
    "hunyuan_v1_moe": lambda: hunyuan_moe(),
    "hunyuan_v1_moe_biased": lambda: hunyuan_moe(
        attention_bias=True, moe_topk=[2, 2], rope_parameters=LINEAR | {"rope_type": "dynamic", "alpha": 2.0}
    ),
    "flex_olmo": lambda: flex_olmo(),
    "flex_olmo_normalised": lambda: flex_olmo(norm_topk_prob=True, attention_bias=True),
    "lfm3": lambda: lfm3(),
    "lfm3_bare": lambda: lfm3(
        use_sandwich_norm=False,
        use_attention_gate=False,
        layer_types=["full_attention", "sliding_attention"] * 2,
        tie_word_embeddings=False,
        conv_L_cache=3,
    ),
    "llama_every_head_its_own_keys": lambda: llama(num_key_value_heads=4, vocab_size=96),
    "llama_one_key_head_sharded": lambda: llama(num_key_value_heads=1, num_hidden_layers=3),
    "llama_flat_llama3": lambda: llama(rope_parameters=LLAMA3, num_attention_heads=8, num_key_value_heads=4),
}


def write(name: str, folder: Path) -> PreTrainedModel:
    """Make the variant `name` and save it in `folder`; returns the oracle, in float32.

    The weights are large, and so are the gaps between the best token and the second.
    """
    torch.manual_seed(sum(name.encode()))
    model = VARIANTS[name]()
    fill(model)
    blocks = stacked.mxfp4_experts(model) if "mxfp4" in name else {}
    model.save_pretrained(folder, max_shard_size="40KB" if "sharded" in name else "5GB")
    if "flat" in name:
        flatten(folder / "config.json")
    if blocks:
        stacked.store(folder, blocks)
    if "olmo_hybrid" in name:
        stacked.store_convolutions_apart(folder, model.config)
    (folder / "tokenizer.json").write_text("{}")  # nobody reads a text here
    return model


def flatten(path: Path) -> None:
    """Write the rotary settings as transformers did before version 5."""
    config = json.loads(path.read_text())
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    config["rope_scaling"] = rope
    path.write_text(json.dumps(config))
