"""A model on several ranks answers as it does on one, and as transformers does."""

from __future__ import annotations

import pytest

from tests.workers import ranks
from tests.workers.harness import Workers
from tests.workers.oracle import greedy
from workers.checkpoints.reading import read_card
from workers.parallel import RankGroup

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


def test_a_worker_group_serves_a_model_through_its_rings(tiny):
    folder, oracle = tiny("qwen3_tied")
    model = {"engine": "transformer", "card": read_card(folder), "dtype": "float32", "simulated": None}
    with Workers(world_size=2, kv_pages=64, max_step_tokens=32, **model) as workers:
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
