"""What a plan says of the largest step on a GPU is what the step itself takes, counted on fake tensors."""

from __future__ import annotations

import msgspec
import pytest
import torch
from transformers import (
    DeepseekV3Config,
    FalconH1Config,
    Gemma3nTextConfig,
    GraniteMoeHybridConfig,
    LagunaConfig,
    Lfm2Config,
    NemotronHConfig,
    PretrainedConfig,
    Qwen2MoeConfig,
    Qwen3_5TextConfig,
    Qwen3Config,
    Qwen3MoeConfig,
)

from benchmarks.driver import write_hollow
from ipc.worker_messages import GRAPH_BYTES
from neuron.memory import gpu_step
from neuron.memory.allocator import MIB, Allocator
from neuron.memory.gpu_step import GpuStep
from neuron.memory.step_bytes import Overhead
from workers.checkpoints.card import ModelCard
from workers.checkpoints.reading import read_card

pytest.importorskip("triton")  # whose kernels a step on a GPU has

from tests.workers.counted import most_of_a_look, most_of_a_step
from tests.workers.towers import TOWERS
from workers.cache.state import StateCache
from workers.checkpoints.caches import SPARE_STATES, state_bytes
from workers.checkpoints.shares import WHOLE, Split
from workers.checkpoints.vision import SEGMENT_BYTES
from workers.kernels.fused import INTERPRETED

pytestmark = pytest.mark.skipif(
    INTERPRETED, reason="kernels are to do nothing, and are not to be interpreted"
)
THERE = (
    32 * MIB
)  # of segments that the model has, and that are free when a step begins; a plan begins with none

COMMON = {"head_dim": 128, "dtype": "bfloat16", "max_position_embeddings": 40_960}
SMALL = COMMON | {"vocab_size": 151_936, "num_attention_heads": 16, "num_key_value_heads": 8}
SHAPES: dict[str, PretrainedConfig] = {  # with as few layers as there are kinds of them
    "Qwen3-0.6B": Qwen3Config(**SMALL, hidden_size=1024, intermediate_size=3072, num_hidden_layers=1),
    "Qwen3-0.6B with a token that somebody added": Qwen3Config(
        **SMALL | {"vocab_size": 151_937}, hidden_size=1024, intermediate_size=3072, num_hidden_layers=1
    ),
    "Qwen3-8B": Qwen3Config(
        **SMALL | {"num_attention_heads": 32},
        hidden_size=4096,
        intermediate_size=12_288,
        num_hidden_layers=1,
    ),
    "Qwen3-30B-A3B, a quarter of its experts": Qwen3MoeConfig(
        **SMALL | {"num_attention_heads": 32, "num_key_value_heads": 4},
        hidden_size=2048,
        intermediate_size=6144,
        moe_intermediate_size=768,
        num_experts=32,
        num_experts_per_tok=8,
        num_hidden_layers=1,
    ),
    "Qwen3.5-27B": Qwen3_5TextConfig(
        **COMMON | {"vocab_size": 248_320, "num_attention_heads": 24, "num_key_value_heads": 4},
        hidden_size=5120,
        intermediate_size=17_408,
        layer_types=["linear_attention", "full_attention"],
        linear_num_key_heads=16,
        linear_num_value_heads=48,
        linear_key_head_dim=128,
        linear_value_head_dim=128,
        num_hidden_layers=2,
    ),
    "granite-4.0-h-1b": GraniteMoeHybridConfig(
        vocab_size=100_352,
        dtype="bfloat16",
        hidden_size=1536,
        num_attention_heads=12,
        num_key_value_heads=4,
        num_local_experts=0,
        shared_intermediate_size=4096,
        layer_types=["linear_attention", "full_attention"],
        mamba_n_heads=48,
        mamba_d_state=128,
        num_hidden_layers=2,
    ),
    "NVIDIA-Nemotron-3-Nano-30B-A3B, a quarter of its experts": NemotronHConfig(
        dtype="bfloat16",
        hidden_size=2688,
        num_attention_heads=32,
        num_key_value_heads=2,
        head_dim=128,
        mamba_num_heads=64,
        layers_block_type=["linear_attention", "moe", "full_attention"],
        n_routed_experts=32,
        num_experts_per_tok=6,
        moe_intermediate_size=1856,
        moe_shared_expert_intermediate_size=3712,
    ),
    "NVIDIA-Nemotron-Nano-9B-v2": NemotronHConfig(
        dtype="bfloat16",
        hidden_size=4480,
        num_attention_heads=40,
        num_key_value_heads=8,
        head_dim=128,
        intermediate_size=15_680,
        mamba_head_dim=80,
        layers_block_type=["linear_attention", "mlp", "full_attention"],
    ),
    "Falcon-H1-1.5B": FalconH1Config(
        vocab_size=65_537,
        dtype="bfloat16",
        hidden_size=2048,
        intermediate_size=4096,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=128,
        mamba_d_ssm=3072,
        mamba_n_heads=48,
        mlp_multipliers=[0.9, 0.4],
        num_hidden_layers=1,
    ),
    "Laguna-XS-2.1, a quarter of its experts": LagunaConfig(
        dtype="bfloat16",
        num_attention_heads_per_layer=[48, 64],
        layer_types=["full_attention", "sliding_attention"],
        num_experts=64,
        num_hidden_layers=2,
    ),
    "DeepSeek V3, an eighth of its experts": DeepseekV3Config(
        dtype="bfloat16",
        n_routed_experts=32,
        first_k_dense_replace=1,
        num_hidden_layers=2,
    ),
    "Qwen2 MoE, experts beside one that all tokens see": Qwen2MoeConfig(
        vocab_size=1000,
        dtype="bfloat16",
        hidden_size=2048,
        num_attention_heads=16,
        num_key_value_heads=2,
        moe_intermediate_size=768,
        shared_expert_intermediate_size=768,
        num_experts=16,
        num_experts_per_tok=8,
        num_hidden_layers=1,
    ),
    "gemma-3n-E2B": Gemma3nTextConfig(
        dtype="bfloat16",
        intermediate_size=8192,
        layer_types=2 * ["sliding_attention", "full_attention"],
        num_hidden_layers=4,
        num_kv_shared_layers=2,
        activation_sparsity_pattern=[0.95, 0.95, 0.0, 0.0],
    ),
    "LFM2-1.2B": Lfm2Config(
        vocab_size=65_536,
        dtype="bfloat16",
        hidden_size=2048,
        intermediate_size=12_288,
        layer_types=["conv", "full_attention"],
        num_hidden_layers=2,
    ),
}
LARGE = {"max_step_tokens": 16_384, "max_sequences": 128, "context_length": 16_385}  # as in `benchmarks.gpu`
SMALL_STEP = {"max_step_tokens": 2048, "max_sequences": 16, "context_length": 1024}


@pytest.fixture(scope="module", params=SHAPES)
def card(request, tmp_path_factory) -> ModelCard:
    return read_card(write_hollow(tmp_path_factory.mktemp("hollow"), SHAPES[request.param]))


def taken(card: ModelCard, limits: dict[str, int], quantization: str | None = None) -> tuple[int, Allocator]:
    """What a plan books for a step, graphs aside; and the memory after it."""
    tokens, sequences, context = (
        limits[name] for name in ("max_step_tokens", "max_sequences", "context_length")
    )
    in_blocks = quantization is not None
    overhead = Overhead(card.config, 2, WHOLE, context_length=context, in_blocks=in_blocks)
    of_graphs = GRAPH_BYTES + 4 * sequences * card.config.vocab_size
    step = GpuStep(card.config, 2, WHOLE, tokens, sequences, context, in_blocks)
    return overhead.of_step("cuda", tokens, sequences) - of_graphs, step.run()


@pytest.mark.parametrize("limits", [LARGE, SMALL_STEP], ids=["large", "small"])
def test_a_plan_is_what_the_largest_step_takes(card, limits, monkeypatch):
    counted = most_of_a_step(card, **limits)
    booked, _ = taken(card, limits)
    assert booked >= counted.reserved
    for name in ("CUBLAS_BYTES", "SORT_BYTES"):  # which fake tensors know nothing of
        monkeypatch.setattr(gpu_step, name, 0)
    _, memory = taken(card, limits)
    assert memory.most == pytest.approx(counted.alive, rel=0.01)
    assert memory.reserved == pytest.approx(counted.reserved, rel=0.01, abs=THERE)


@pytest.mark.parametrize("card", ["Qwen3-0.6B"], indirect=True)
def test_so_it_is_where_weights_are_made_plain_for_each_product(card, monkeypatch):
    counted = most_of_a_step(card, quantization="q8", **SMALL_STEP)
    booked, _ = taken(card, SMALL_STEP, "q8")
    assert booked >= counted.reserved
    for name in ("CUBLAS_BYTES", "SORT_BYTES"):
        monkeypatch.setattr(gpu_step, name, 0)
    _, memory = taken(card, SMALL_STEP, "q8")
    assert memory.reserved == pytest.approx(counted.reserved, rel=0.12)


@pytest.mark.parametrize("counts", [(1, 1), (1, 7), (6, 1, 1)])
@pytest.mark.parametrize("card", ["Qwen3-0.6B"], indirect=True)
def test_the_first_of_some_ranks_takes_what_is_planned_for_all_their_logits(card, counts, monkeypatch):
    """In float32, where nothing else takes as much; they come padded to what the rank has that has most."""
    for name in ("CUBLAS_BYTES", "SORT_BYTES"):
        monkeypatch.setattr(gpu_step, name, 0)
    split, limits = Split(counts), SMALL_STEP
    counted = most_of_a_step(card, dtype="float32", world_size=split.ranks, parts=counts, **limits)
    mine, widest = split.share(0), max(split.shares(), key=lambda share: share.count)
    planned = GpuStep(card.config, 4, mine, *limits.values(), ranks=split.ranks, widest=widest).run()
    assert planned.most == pytest.approx(counted.alive, rel=0.01)


@pytest.mark.parametrize("card", ["Qwen3.5-27B"], indirect=True)
def test_a_head_that_guesses_is_booked_too(card):
    guessing = msgspec.structs.replace(card, config=card.config.with_mtp())
    counted, booked = most_of_a_step(guessing, **SMALL_STEP), taken(guessing, SMALL_STEP)[0]
    assert taken(card, SMALL_STEP)[0] < counted.reserved <= booked


@pytest.mark.parametrize("card", ["Qwen3.5-27B"], indirect=True)
def test_states_that_no_sequence_has_are_booked(card):
    groups = card.cache_groups(WHOLE)
    booked, memory = taken(card, SMALL_STEP)
    stateful = [number for number, layer in enumerate(card.config.layers) if layer.kind == "state"]
    pool = StateCache(
        stateful, card.config.state, states=5 + 1, device=torch.device("meta")
    )  # one is for padding
    assert pool.nbytes == (5 + SPARE_STATES["cuda"]) * state_bytes(groups)
    assert booked - memory.reserved == pool.nbytes - 5 * state_bytes(groups)


@pytest.mark.parametrize("name", TOWERS)
def test_a_plan_is_what_a_look_at_an_image_takes_of_a_gpu(name):
    vision, rows, columns = TOWERS[name]
    counted, planned = most_of_a_look(vision, rows, columns), vision.look_bytes(2, 16_384, "cuda")
    assert counted.reserved <= sum(planned)
    assert counted.alive == pytest.approx(sum(planned) - SEGMENT_BYTES["cuda"], rel=0.03)


def test_segments_are_cut_into_pieces_and_pieces_join_again():
    memory = Allocator()
    first, second = memory.allocate(3 * MIB), memory.allocate(4 * MIB)
    assert (memory.reserved, memory.alive) == (20 * MIB, 7 * MIB)
    memory.release(first)
    third = memory.allocate(5 * MIB)  # too large for the place of the first
    memory.release(second)
    memory.allocate(7 * MIB)  # which has room for both
    assert memory.reserved == 20 * MIB
    large = memory.allocate(33 * MIB + 1)
    assert memory.reserved == 54 * MIB
    memory.release(third, large)
    memory.allocate(20 * MIB)
    assert memory.reserved == 54 * MIB, "the rest of a large segment is used as well"
    memory.allocate(1)
    assert memory.reserved == 56 * MIB
    memory.empty()
    assert memory.reserved == 56 * MIB, "something is in use in each"
    assert memory.most == 45 * MIB + 512
