"""Tokens go to the experts that they chose, on every rank, however many are taken at once."""

from __future__ import annotations

import pytest
import torch
from msgspec.structs import replace

from tests.workers import tiny_models
from tests.workers.engines import Session, make_runner, some_requests
from tests.workers.oracle import fill
from tests.workers.thread_ranks import Ranks
from workers.checkpoints.experts import Experts
from workers.checkpoints.reading import read_card
from workers.checkpoints.shares import Split
from workers.kernels import grouped
from workers.models import experts
from workers.models.experts import MixtureOfExperts, Router
from workers.models.registry import MODELS
from workers.parallel import RankGroup
from workers.weights.blocks import Empty

CHOICE = Experts(count=8, chosen=2, intermediate_size=16, layers=(0,), normalised=True)


def router(group: RankGroup) -> Router:
    made = Router("gate", CHOICE, 24, group, Empty(torch.float32))
    made.weight.copy_(torch.randn(8, 24, generator=torch.Generator().manual_seed(1)))
    return made


def test_a_rank_on_an_unlike_card_goes_to_the_experts_that_the_first_rank_chose(monkeypatch):
    group, x = RankGroup(1, 2), torch.randn(5, 24, generator=torch.Generator().manual_seed(2))
    group.alike = False
    _, own = router(RankGroup()).choose(x)
    chosen = (own + 1) % 8
    monkeypatch.setattr(group, "_run", lambda collective, tensor: tensor.copy_(chosen))
    weights, numbers = router(group).choose(x)
    assert torch.equal(numbers, chosen)
    scores = (x @ router(group).weight.t()).softmax(dim=-1).gather(1, chosen)
    torch.testing.assert_close(weights, scores / scores.sum(dim=-1, keepdim=True))


def test_ranks_that_are_alike_choose_without_a_collective(monkeypatch):
    group = RankGroup(1, 2)
    monkeypatch.setattr(group, "_run", lambda *_: pytest.fail("there was one"))
    router(group).choose(torch.ones(3, 24))


def test_how_many_pairs_are_taken_at_once_changes_nothing(tiny, monkeypatch):
    runner = make_runner(tiny("qwen3_moe").folder)
    runner.load(lambda fraction, message: None)
    mixture = runner.model.blocks[0].mlp
    assert isinstance(mixture, MixtureOfExperts)
    x = torch.randn(40, 48, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        expected = mixture(x)
        for pairs in (1, 7, 30):
            monkeypatch.setattr(experts, "PAIRS", pairs)
            torch.testing.assert_close(mixture(x), expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["qwen2_moe", "gpt_oss_whole"])
@pytest.mark.parametrize("rank", [0, 1])
def test_pairs_that_a_gpu_counts_come_to_what_a_cpu_makes_of_them(tiny, monkeypatch, name, rank):
    config = read_card(tiny(name).folder).config
    mixture = MixtureOfExperts("mlp", config, RankGroup(rank, 2), Empty(torch.float32))
    generator = torch.Generator().manual_seed(4)
    for linear in mixture.linears:
        for piece in linear.pieces():
            piece.into.normal_(generator=generator)
    monkeypatch.setattr(grouped, "product", grouped.reference)
    monkeypatch.setattr(experts, "PAIRS_OF_A_GPU", 20)
    for tokens in (1, 30):
        x = torch.randn(tokens, 48, generator=generator)
        mixture.in_pairs = False
        expected = mixture.part(x)
        mixture.in_pairs = True
        torch.testing.assert_close(mixture.part(x), expected)


def test_experts_stay_whole_where_their_columns_cannot_be_parted_and_there_are_enough():
    def whole(inner: int, block: int, count: int, ranks: int) -> bool:
        return Experts(count=count, chosen=1, intermediate_size=inner, layers=(0,), block=block).whole_in(
            ranks
        )

    assert not whole(768, 1, 128, 2)
    assert not whole(768, 128, 128, 2)
    assert whole(768, 256, 128, 2)  # Qwen3 30B-A3B in Q4_K
    assert not whole(768, 256, 128, 3)
    assert not whole(768, 256, 1, 2)
    assert not whole(100, 256, 8, 1)


@pytest.mark.parametrize("ranks", [1, 2, 3, 7])
def test_each_whole_expert_is_on_one_rank_and_ranks_differ_by_one_at_most(ranks):
    experts = Experts(count=7, chosen=1, intermediate_size=9, layers=(0,))
    shares = [*map(experts.of, Split.evenly(ranks).shares())]
    assert [number for share in shares for number in share] == [*range(7)]
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_experts_without_any_token_give_nothing(tiny):
    card = read_card(tiny("glm4_moe_whole").folder)
    mixture = MixtureOfExperts("mlp", card.config, RankGroup(1, 2), Empty(torch.float32))
    assert mixture.mine == range(3, 7)
    numbers = torch.tensor([[0, 1, 2], [2, 1, 0]])  # all the other rank's
    y = mixture._routed(torch.ones(2, 48), torch.ones(2, 3), numbers)
    assert torch.equal(y, torch.zeros(2, 48))


def test_experts_that_are_quantised_at_load_stay_whole_where_parts_would_be_too_small_for_the_format(
    tmp_path, monkeypatch
):
    """Two ranks keep what one keeps, to the byte, and answer as it does."""
    sizes = {"hidden_size": 256, "head_dim": 128, "moe_intermediate_size": 256, "num_hidden_layers": 2}
    model = tiny_models.qwen3_moe(**sizes, num_experts=5)
    fill(model, std=0.1)
    model.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    card = read_card(tmp_path)
    is_expert = lambda name: ".experts." in name  # noqa: E731
    alone, shared = (
        {k: v for k, v in card.formats(Split.evenly(n), "q4").items() if is_expert(k)} for n in (1, 2)
    )
    assert alone == shared
    assert set(alone.values()) == {"Q4_K", "Q6_K"}

    config, formats = card.kept_in("q4").config, card.formats(Split.evenly(2), "q4")
    models = [MODELS[card.family](config, RankGroup(rank, 2), torch.float32, formats) for rank in (0, 1)]
    held = [model.nbytes for model in models]
    planned = card.bytes_per_rank(Split.evenly(2), "float32", "q4")
    assert held == pytest.approx(planned, rel=0.01)  # rows that pad the vocabulary are planned for both
    assert planned[0] < planned[1]  # two experts, and three
    ranks = Ranks(tmp_path, 2, monkeypatch, quantization="q4")
    requests = some_requests(4, 131, seed=5, longest=8)
    theirs = [each.token_ids for each in Session(ranks).answer(requests)]
    ranks.close()
    monkeypatch.undo()
    runner = make_runner(tmp_path, quantization="q4")
    runner.load(lambda fraction, message: None)
    ours = [each.token_ids for each in Session(runner).answer(requests)]
    runner.close()
    assert theirs == ours


@pytest.mark.parametrize(
    ("inner", "quantization", "block"),
    [(768, "q4", 256), (768, "fp8", 128), (704, "q6", 32), (100, "q8", 1), (768, None, 1)],
)
def test_the_block_of_experts_is_that_of_the_format_that_whole_ones_get(tiny, inner, quantization, block):
    card = read_card(tiny("qwen3_moe").folder)
    sized = replace(card.config.experts, intermediate_size=inner)
    card = replace(card, config=replace(card.config, experts=sized))
    assert card.kept_in(quantization).config.experts.block == block
    assert card.kept_in(quantization).kept_in(quantization) == card.kept_in(quantization)
