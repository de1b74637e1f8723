"""A model on several ranks answers as it does on one, and as transformers does."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import pytest
import torch
import torch.distributed as dist

from tests.workers import ranks
from tests.workers.engines import make_spec
from tests.workers.harness import Workers
from tests.workers.oracle import greedy
from tests.workers.thread_ranks import Meeting, ThreadGroup
from workers.checkpoints.reading import read_card
from workers.parallel import RankGroup

T = TypeVar("T")

# Four processes take their time on two cores. Among these are fewer key heads than ranks, and as many; all
# families answer on two ranks in `test_model.py`, which are threads there.
SHARED = (
    "qwen3_tied",
    "llama_yarn_biased",
    "phi3",
    "qwen3_moe",
    "gemma4_experts_k_eq_v",
    "glm4_moe_whole",
    "llama_one_key_head_sharded",
    "llama_flat_llama3",
)


@pytest.fixture(scope="module", params=[2, 4], ids="{}_ranks".format)
def group(request, tiny):
    """What a group of so many processes answered from each checkpoint; two of them, from some."""
    names = SHARED if request.param > 2 else SHARED[:2]
    results = ranks.run([ranks.Job(str(tiny(name).folder), "answer") for name in names], request.param)
    return request.param, dict(zip(names, results, strict=True))


def test_greedy_tokens_of_several_ranks_equal_those_of_transformers(tiny, group):
    world_size, results = group
    for name, result in results.items():
        assert result.all_reduce == world_size, name
        for prompt, output in zip(result.prompts, result.outputs, strict=True):
            assert output == greedy(tiny(name).oracle, prompt, output), name


@pytest.mark.parametrize(("name", "parts"), [("qwen3_tied", []), ("llama_flat_llama3", [3, 1])])
def test_a_worker_group_serves_a_model_through_its_rings(tiny, name, parts):
    folder, oracle = tiny(name)
    model = {"engine": "transformer", "card": read_card(folder), "dtype": "float32", "simulated": None}
    with Workers(world_size=2, parts=parts, kv_pages=64, max_step_tokens=32, **model) as workers:
        assert [ready.all_reduce for ready in workers.ready()] == [2, 2]
        prompts = [[(i * k) % 131 for i in range(20 + k)] for k in range(1, 5)]
        for request_id, prompt in enumerate(prompts):
            workers.submit(request_id, prompt, 10)
        for prompt, answer in zip(prompts, workers.collect(), strict=True):
            assert answer.finish == "length"
            assert answer.token_ids == greedy(oracle, prompt, answer.token_ids)


@pytest.mark.parametrize(("heads", "size"), [(8, 2), (2, 2), (2, 4), (1, 4), (8, 1)])
def test_every_rank_has_the_key_heads_of_its_query_heads(heads, size):
    queries = 8
    for rank in range(size):
        group = RankGroup(rank, size)
        needed = {query * heads // queries for query in group.share(queries)}
        assert set(group.share_kv(heads)) == needed


def in_threads(size: int, what: Callable[[int], T]) -> list[T]:
    with ThreadPoolExecutor(size) as threads:
        return [*threads.map(what, range(size))]


def test_exact_sums_are_rounded_once_and_in_the_order_of_ranks():
    parts, meeting = [256.0, 1.0, 1.0, 1.0], Meeting(4)

    def summed(rank: int) -> float:
        group = ThreadGroup(rank, 4, meeting, exact=True)
        return float(group.all_reduce(torch.tensor([parts[rank]], dtype=torch.bfloat16)))

    assert in_threads(4, summed) == [260.0] * 4  # one after the other in bfloat16: 256


@pytest.mark.parametrize(
    "names", [["RTX 5090", "RTX 5090"], ["RTX 3060", "RTX 3090"], ["RTX 3090", "RTX 3060"]]
)
def test_ranks_on_unlike_cards_know_it(monkeypatch, names):
    meeting = Meeting(2)
    monkeypatch.setattr(dist, "TCPStore", lambda *given, **how: None)
    monkeypatch.setattr(dist, "init_process_group", lambda *given, **how: None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: names[device.index])
    monkeypatch.setattr(RankGroup, "least", lambda group, value: min(meeting(group.rank, value)))
    specs = [make_spec(rank=rank, world_size=2, device=f"cuda:{rank}", store_port=1) for rank in range(2)]
    groups = in_threads(2, lambda rank: RankGroup.join(specs[rank]))
    assert [group.alike for group in groups] == [len(set(names)) == 1] * 2
