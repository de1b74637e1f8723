"""A pool is as large as the budget allows after all else was measured, and what was measured holds."""

from __future__ import annotations

import random

import msgspec
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    Gemma3nTextConfig,
    GraniteMoeHybridConfig,
    LagunaConfig,
    LlamaConfig,
    Qwen3_5TextConfig,
    Qwen3Config,
)

from benchmarks.driver import write_hollow
from ipc.errors import Code, CortexError
from ipc.worker_messages import KERNEL_BYTES, PAGE_SIZE, SMALLEST_CONTEXT, CacheGroup, MemoryUse
from neuron.catalogue.catalogue import DEMO_FOLDER
from neuron.memory import cpu_step, gpu_step
from neuron.memory import largest_step as largest
from neuron.memory.cpu_step import CpuStep
from neuron.memory.step_bytes import Overhead, kernels_of
from neuron.processes.worker import Worker
from tests.workers.engines import make_runner, make_spec
from tests.workers.harness import Workers
from tests.workers.live_bytes import Live
from workers.attention import blockwise, states
from workers.checkpoints.experts import Experts
from workers.checkpoints.layers import Layer
from workers.checkpoints.reading import read_card
from workers.checkpoints.shares import WHOLE, Split
from workers.execution import memory
from workers.execution.memory import check_pages, largest_step, pool_pages, taken
from workers.kernels import dense, gated_delta, products, state_space
from workers.layers.linear import has_kernels
from workers.models import experts
from workers.models.experts import MixtureOfExperts
from workers.parallel import RankGroup
from workers.sampling import logprobs, sampler
from workers.step.pages import pages_for
from workers.weights.blocks import Empty

MIB = 1 << 20
PIECES = 8 * MIB  # of free memory, too small for anything, that may gather until a rank trims it
FULL = CacheGroup(kind="full", layers=[0])
LIMITS = {"context_length": 2048, "max_sequences": 16, "max_step_tokens": 512}
PAGE = read_card(DEMO_FOLDER).kv_bytes_per_token(WHOLE) * PAGE_SIZE  # bytes of one of the demo's, bfloat16


def workers(world_size: int = 1, **changes) -> Workers:
    values = {"engine": "transformer", "card": read_card(DEMO_FOLDER), "dtype": "bfloat16", "kv_pages": 10**6}
    return Workers(world_size=world_size, **values | LIMITS | changes)


def resident(pid: int) -> int:
    """Bytes of its own that a process has touched."""
    with open(f"/proc/{pid}/status") as status:
        [line] = [line for line in status if line.startswith("RssAnon")]
    return int(line.split()[1]) << 10


def serve_everything_at_once(group: Workers, requests: int = 16) -> None:
    """Long prompts and answers, with dear settings; 16 of them fill more than 300 pages."""
    rng = random.Random(1)
    for number in range(requests):
        prompt = [rng.randrange(5, 1700) for _ in range(rng.randrange(1, 1500))]
        group.submit(number, prompt, 20, temperature=1.0, top_p=0.9, repetition_penalty=1.1, logprobs=20)
    group.collect()


@pytest.fixture(scope="module")
def runtime() -> int:
    """Bytes of a process without a model: with this build of torch, on this machine."""
    return Worker.measure("cpu")


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_rank_takes_its_budget_and_no_more(world_size, runtime):
    budget = runtime + 150 * MIB
    with workers(world_size, memory_budget=budget) as group:
        ready = group.ready()
        assert len({report.kv_pages for report in ready}) == 1
        assert 0 <= budget - max(report.memory.total for report in ready) < PAGE
        for report in ready:
            assert report.memory.kv_pool == report.kv_pages * PAGE // world_size
            assert min(report.memory.weights, report.memory.activations, report.memory.runtime) > 0
        serve_everything_at_once(group, requests=8)
        for report, process in zip(ready, group.processes, strict=True):
            assert resident(process.pid) < 1.03 * report.memory.total


@pytest.fixture(scope="module")
def used() -> tuple[MemoryUse, int]:
    """What a rank measured, and what it holds when all of its pages are in use."""
    with workers(kv_pages=300) as group:
        [report] = group.ready()
        serve_everything_at_once(group)
        return report.memory, resident(group.processes[0].pid)


def test_what_was_measured_is_near_what_a_rank_holds_when_all_of_its_pages_are_in_use(used):
    memory, held = used
    # of the kernels that are booked a CPU makes next to none where it has no instructions for bfloat16, or
    # multiplies by some of ours
    ours = dense.takes_many(torch.empty(16, 64, dtype=torch.bfloat16))
    unmade = KERNEL_BYTES if ours or not has_kernels(torch.bfloat16, torch.device("cpu")) else 0
    assert 0.85 * memory.total < held + unmade < 1.03 * memory.total + PIECES


WIDE = {"head_dim": 128, "num_attention_heads": 16, "num_key_value_heads": 8, "hidden_size": 512}
SHAPES = {  # of a layer or two, by what of it takes most
    "attention": Qwen3Config(**WIDE, vocab_size=4096, intermediate_size=512, num_hidden_layers=1),
    "attention of more heads in some layers": LagunaConfig(
        **WIDE,
        num_attention_heads_per_layer=[16, 64],
        mlp_layer_types=["dense", "dense"],
        vocab_size=4096,
        intermediate_size=512,
        num_hidden_layers=2,
    ),
    "an MLP": LlamaConfig(**WIDE, vocab_size=4096, intermediate_size=12_288, num_hidden_layers=1),
    "states": Qwen3_5TextConfig(
        **WIDE | {"num_hidden_layers": 2, "layer_types": ["linear_attention", "full_attention"]},
        **{
            "linear_num_key_heads": 16,
            "linear_num_value_heads": 48,
            "vocab_size": 4096,
            "intermediate_size": 512,
        },
    ),
    "Mamba-2": GraniteMoeHybridConfig(
        **{key: value for key, value in WIDE.items() if key != "head_dim"},
        num_hidden_layers=2,
        layer_types=["linear_attention", "full_attention"],
        num_local_experts=0,
        shared_intermediate_size=512,
        mamba_n_heads=48,
        mamba_d_state=128,
        mamba_expand=6,
        vocab_size=4096,
    ),
    "predictions": Gemma3nTextConfig(
        **WIDE,
        vocab_size=4096,
        vocab_size_per_layer_input=4096,
        intermediate_size=8192,
        num_hidden_layers=2,
        layer_types=["sliding_attention", "full_attention"],
        activation_sparsity_pattern=[0.95, 0.0],
        num_kv_shared_layers=0,
    ),
    "a vocabulary": Qwen3Config(**WIDE, vocab_size=131_072, intermediate_size=512, num_hidden_layers=1),
}


@pytest.mark.parametrize(
    ("most", "settings"),
    [
        *((most, {}) for most in SHAPES),
        ("attention", {"exact": True}),
        ("states", {"exact": True}),
        ("Mamba-2", {"exact": True}),
        ("attention", {"kv_cache_dtype": "int8"}),
    ],
)
def test_what_is_planned_is_near_what_is_measured(most, settings, runtime, tmp_path):
    card = read_card(write_hollow(tmp_path, SHAPES[most]))
    tokens, sequences = 1024, LIMITS["max_sequences"]
    with workers(card=card, max_step_tokens=tokens, kv_pages=300, **settings) as group:
        [report] = group.ready()
    overhead = Overhead(card.config, itemsize=2, share=WHOLE, kernels=kernels_of("bfloat16", **settings))
    planned = runtime + overhead.of_step("cpu", tokens, sequences)
    # products are planned as torch has them where it has instructions for their type
    near = 0.03 if has_kernels(torch.bfloat16, torch.device("cpu")) else 0.2
    assert planned == pytest.approx(report.memory.runtime + report.memory.activations, rel=near)


def test_the_first_of_unlike_ranks_takes_what_is_planned_for_all_their_logits(runtime, tmp_path):
    """They come padded to what the rank has that has most, and gloo has them twice."""
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 8, "head_dim": 8}
    config = Qwen3Config(**sizes, num_key_value_heads=8, num_hidden_layers=1, vocab_size=151_936)
    card, tokens = read_card(write_hollow(tmp_path, config)), 1024
    first, widest = Split((1, 7)).shares()
    changes = {"dtype": "float32", "parts": (first.count, widest.count), "max_step_tokens": tokens}
    with workers(2, card=card, kv_pages=300, **changes, max_sequences=4) as group:
        report = group.ready()[0]
    overhead = Overhead(card.config, 4, first, kernels=kernels_of("float32"), ranks=2, widest=widest)
    assert overhead.of_step("cpu", tokens, 4) == pytest.approx(
        report.memory.runtime + report.memory.activations - runtime, rel=0.03
    )


@pytest.mark.parametrize("shared", [0, 64, 4096])
def test_experts_are_planned_with_what_stands_beside_them(shared):
    """In float32, which needs no copies, and tensor by tensor: what an allocator keeps is not seen. All
    tokens choose the same experts, whose pairs are not taken together then."""
    tokens, sizes = 1024, {"count": 8, "chosen": 4, "intermediate_size": 64, "layers": (0,)}
    layers = (Layer("full", kv_heads=1, head_dim=64),)
    config = msgspec.structs.replace(
        read_card(DEMO_FOLDER).config, hidden_size=512, num_layers=1, layers=layers, intermediate_size=64
    )
    config = msgspec.structs.replace(config, experts=Experts(**sizes, shared_size=shared))
    mixture = MixtureOfExperts("mlp", config, RankGroup(), Empty(torch.float32))
    mixture.router.weight.zero_()
    x = torch.randn(tokens, 512)
    with torch.inference_mode(), Live([x]) as live:
        mixture(x)
    step = CpuStep(config, 4, WHOLE, tokens, 16, 2048, kernels_of("float32"))
    assert step._mlp() - 3 * x.nbytes == pytest.approx(live.most, rel=0.03)


def test_a_plan_cuts_a_step_where_ranks_do():
    """Numbers that a neuron, which has no torch, has a copy of."""
    mine = largest.LONG_CONTEXT, largest.TOLD_ROWS, largest.CHUNK, largest.FEWEST
    assert mine == (memory.LONG_CONTEXT, memory.TOLD_TOKENS, logprobs.CHUNK, logprobs.FEWEST)
    assert (cpu_step.CHUNK, cpu_step.SPACE_CHUNK) == (gated_delta.CHUNK, state_space.CHUNK)
    assert gpu_step.SPACE_CHUNK == state_space.LARGE_CHUNK
    assert states.BLOCK["cpu"] == cpu_step.CONVOLVED
    assert cpu_step.KEYS_AT_ONCE == blockwise.BLOCK_PAGES * PAGE_SIZE
    assert (cpu_step.FEW_QUERIES, cpu_step.FEW_BYTES) == (blockwise.FEW_ROWS, blockwise.FEW_BYTES)
    assert blockwise.BLOCK_SCORES["cpu"] == cpu_step.BLOCK_SCORES
    assert (cpu_step.PAIRS, gpu_step.PAIRS) == (experts.PAIRS, experts.PAIRS_OF_A_GPU)
    assert cpu_step.COMPARED_ROWS == logprobs.AT_ONCE
    drawn = {"cpu": cpu_step.SORTED_LOGITS, "cuda": gpu_step.DRAWN}
    assert drawn == sampler.BLOCK_LOGITS
    made_plain = gpu_step.SCRATCH_BYTES, gpu_step.TOGETHER, gpu_step.SOME
    assert made_plain == (products.SCRATCH_BYTES, products.TOGETHER, products.SOME)


def test_a_plan_cuts_a_step_where_kernels_of_triton_do():
    chunks = pytest.importorskip("workers.kernels.gated_delta_chunks_triton", exc_type=ImportError)
    from workers.kernels import attention_triton

    assert (gpu_step.CHUNK, gpu_step.CHUNKS) == (chunks.CHUNK, chunks.CHUNKS)
    assert (gpu_step.SPLIT, gpu_step.MOST_SPLITS) == (attention_triton.SPLIT, attention_triton.MOST_SPLITS)


def test_without_room_for_a_useful_context_a_load_is_refused_with_what_takes_the_room(runtime):
    budget = runtime + 30 * MIB
    with workers(memory_budget=budget) as group:
        fatal = group.fatal()
    assert fatal.code == Code.INSUFFICIENT_MEMORY
    assert f"{budget / (1 << 30):.2f} GiB planned for rank 0" in fatal.message
    assert "A smaller max_step_tokens, max_sequences or context_length needs less" in fatal.message


def test_all_ranks_refuse_what_one_has_no_room_for(tiny):
    spec = make_spec(memory_budget=MIB)
    used = MemoryUse(weights=MIB)
    assert pool_pages(spec, 1000, used) == 0
    with pytest.raises(CortexError, match="room for 0 pages"):
        check_pages(spec, 0, 1000, used, [FULL])


def test_a_refusal_names_states_where_these_take_the_room():
    used = MemoryUse(weights=MIB, kv_pool=300 * MIB)
    with pytest.raises(CortexError, match=r"states of its sequences 0\.29 GiB"):
        check_pages(make_spec(memory_budget=300 * MIB), 0, 1000, used, [FULL])


def test_a_pool_has_no_more_pages_than_are_wanted():
    spec = make_spec(kv_pages=7, memory_budget=100 * MIB)
    assert pool_pages(spec, 1000, MemoryUse()) == 7
    check_pages(spec, 7, 1000, MemoryUse(), [FULL])


def test_a_window_asks_for_the_pages_that_are_in_sight():
    spec = make_spec(kv_pages=1000, max_step_tokens=64, memory_budget=100 * MIB)
    window = CacheGroup(kind="window", layers=[1], window=100)
    needed = pages_for(SMALLEST_CONTEXT) + pages_for(100 + 64 + PAGE_SIZE)
    check_pages(spec, needed, 1000, MemoryUse(), [FULL, window])
    with pytest.raises(CortexError, match=f"room for {needed - 1} pages .* needs {needed}"):
        check_pages(spec, needed - 1, 1000, MemoryUse(), [FULL, window])


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(0, 600), st.integers(1, 9000))
def test_the_largest_step_keeps_within_the_limits(max_sequences, more_tokens, context_length):
    spec = make_spec(
        max_sequences=max_sequences,
        max_step_tokens=max_sequences + more_tokens,
        context_length=context_length,
    )
    plan = largest_step(spec, 8)
    assert sum(entry.num_tokens for entry in plan.scheduled) == spec.max_step_tokens
    for new, entry in zip(plan.added, plan.scheduled, strict=True):
        tokens = sum(map(len, new.tables)) * PAGE_SIZE + entry.num_tokens
        assert 4 * tokens == len(new.token_ids)
        assert tokens <= context_length
        assert len(entry.new_pages[0]) == pages_for(entry.num_tokens)
    assert sum(new.params.repetition_penalty != 1 for new in plan.added) <= max_sequences


def test_what_a_computation_takes_is_what_it_had_at_one_moment_and_what_it_leaves():
    kept = []

    def compute() -> None:
        first = torch.ones(40 * MIB)  # float32
        kept.append(first[: 10 * MIB] + 1)
        del first
        torch.ones(20 * MIB)

    most, left = taken("cpu", compute)
    assert 195 * MIB < most < 215 * MIB  # the second is made when the first is gone
    assert 38 * MIB < left < 45 * MIB


def test_a_c_library_that_takes_no_threshold_so_high_has_its_highest(monkeypatch):
    kept = {}

    def mallopt(parameter: int, value: int) -> bool:
        if parameter == memory.M_MMAP_THRESHOLD and value > 32 * MIB:
            return False
        kept[parameter] = value
        return True

    monkeypatch.setattr(memory, "_mallopt", mallopt)
    memory.keep_freed(False)
    assert kept[memory.M_MMAP_THRESHOLD] == memory.USUAL_THRESHOLD
    memory.keep_freed(True)
    assert kept[memory.M_MMAP_THRESHOLD] == 32 * MIB


def test_nothing_of_the_largest_step_stays(tiny):
    runner = make_runner(tiny("qwen3_untied_biased").folder)
    loaded = runner.load(lambda fraction, message: None)
    assert loaded.kv_pages == 200
    assert not runner.slots
    assert all(not layer.any() for layer in runner.cache.layers.values())
    runner.close()
