"""Gemma 3n as llama.cpp has it: what makes and corrects predictions has names of its own."""

from __future__ import annotations

from statistics import NormalDist

from workers.checkpoints.files import refuse
from workers.checkpoints.gguf.families import gemma, gemma4
from workers.checkpoints.gguf.keys import Json, Keys, of_layers, pattern

LAYER = (
    gemma.NORMS
    | gemma4.INPUT_NAMES
    | {
        "altup_router": "altup.modality_router",
        "altup_router_norm": "altup.router_norm",
        "altup_predict_coef": "altup.prediction_coefs",
        "altup_correct_coef": "altup.correction_coefs",
        "laurel_l": "laurel.linear_left",
        "laurel_r": "laurel.linear_right",
        "laurel_post_norm": "laurel.post_laurel_norm",
    }
)
WHOLE = gemma4.TABLE | {"altup_correct_scale.weight": "altup.correct_output_scale"}
STACKED = {
    "altup_proj.weight": "model.altup_projections.{}.weight",
    "altup_unembd_proj.weight": "model.altup_unembed_projections.{}.weight",
}
KEEPING = 20  # layers that have keys of their own, where no file says it
DIGITS = 6  # of a share of gates that was written as so many deviations, in float32


def config(keys: Keys) -> Json:
    """The width of what is added beside attention stands in the shape of a tensor alone."""
    types = pattern(keys, every=5)
    count = len(types)
    given = {
        "intermediate_size": of_layers(keys, "feed_forward_length", count),
        "layer_types": types,
        "sliding_window": keys.size("attention.sliding_window"),
        "num_kv_shared_layers": keys.number("attention.shared_kv_layers", max(0, count - KEEPING)),
        "hidden_size_per_layer_input": keys.size("embedding_length_per_layer_input"),
        "altup_num_inputs": keys.size("altup.num_inputs"),
        "altup_active_idx": keys.number("altup.active_idx", 0),
        "final_logit_softcapping": keys.get("final_logit_softcapping", 30.0) or None,
        "hidden_activation": "gelu_pytorch_tanh",
        "rope_local_base_freq": keys.number("rope.freq_base_swa", 10_000.0),
    }
    for key, name in (
        ("vocab_size_per_layer_input", "per_layer_token_embd.weight"),
        ("laurel_rank", "blk.0.laurel_l.weight"),
    ):
        if (tensor := keys.file.tensors.get(name)) is None:
            refuse(keys.path, f"has no tensor {name!r}")
        given[key] = tensor.shape[0]
    if (deviations := keys.get("activation_sparsity_scale")) is not None:
        if not isinstance(deviations, list) or not all(type(each) is float for each in deviations):
            refuse(keys.path, f"activation_sparsity_scale {deviations!r} is no list of numbers")
        given["activation_sparsity_pattern"] = [round(NormalDist().cdf(each), DIGITS) for each in deviations]
    return given
