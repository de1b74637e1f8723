"""Tokens go to the experts that they chose, on every rank, however many are taken at once."""

from __future__ import annotations

import pytest
import torch

from tests.workers.engines import make_runner
from workers.checkpoints.card import read_card
from workers.checkpoints.experts import Experts
from workers.kernels import grouped
from workers.models import experts
from workers.models.experts import MixtureOfExperts, Router
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
        return Experts(count=count, chosen=1, intermediate_size=inner, layers=(0,), block=block).whole_on(
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
    shares = [experts.share(rank, ranks) for rank in range(ranks)]
    assert [number for share in shares for number in share] == [*range(7)]
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_experts_without_any_token_give_nothing(tiny):
    card = read_card(tiny("glm4_moe_whole").folder)
    mixture = MixtureOfExperts("mlp", card.config, RankGroup(1, 2), Empty(torch.float32))
    assert mixture.mine == range(3, 7)
    numbers = torch.tensor([[0, 1, 2], [2, 1, 0]])  # all the other rank's
    y = mixture._routed(torch.ones(2, 48), torch.ones(2, 3), numbers)
    assert torch.equal(y, torch.zeros(2, 48))
