"""Ranks on unlike cards share a model by what their cards can do."""

from dataclasses import replace

import pytest

from ipc.errors import Code, CortexError
from neuron.config import ModelSettings
from neuron.description import ModelDescription, described, splits_of
from neuron.memory.fit import find_fit
from neuron.memory.need import Need
from tests.workers import gguf_files
from tests.workers.tiny_models import qwen3, qwen3_moe
from workers.checkpoints.card import ModelCard
from workers.checkpoints.reading import read_card
from workers.checkpoints.shares import Split, uneven

GIB = 1 << 30
RATES = {"cuda:0": 1008 * 10**9, "cuda:1": 1792 * 10**9, "cuda:2": 360 * 10**9}  # 4090, 5090, 3060


@pytest.fixture(scope="module")
def card(tmp_path_factory) -> ModelCard:
    """Of a model with eight key heads, most of which are products."""
    folder = tmp_path_factory.mktemp("eight")
    sizes = {
        "hidden_size": 256,
        "intermediate_size": 8192,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
    }
    qwen3(**sizes, max_position_embeddings=2048).save_pretrained(folder)
    (folder / "tokenizer.json").write_text("{}")
    return read_card(folder)


def need_of(card: ModelCard, ranks: int = 2, **settings) -> Need:
    settings = ModelSettings(id="m", ranks=ranks, max_sequences=1, **settings)
    return replace(described(settings, card).need(settings, {"cpu": 0, "cuda": 0}), rates=RATES)


def test_all_ways_are_there_once():
    assert [split.counts for split in uneven(2)] == [
        (1, 2), (2, 1), (1, 3), (3, 1), (1, 4), (2, 3), (3, 2), (4, 1), (1, 5), (5, 1),
        *((count, 7 - count) for count in range(1, 7)), (1, 7), (3, 5), (5, 3), (7, 1),
    ]  # fmt: skip
    assert all(
        len({split.counts for split in uneven(ranks)}) == len([*uneven(ranks)]) for ranks in range(2, 9)
    )
    assert not [*uneven(1), *uneven(8)]


@pytest.mark.parametrize(
    ("devices", "counts"),
    [
        (("cuda:0", "cuda:1"), (3, 5)),
        (("cuda:1", "cuda:0"), (5, 3)),
        (("cuda:0", "cuda:2"), (6, 2)),
        (("cuda:1", "cuda:2"), (7, 1)),
        (("cuda:0", "cuda:1", "cuda:2"), (2, 5, 1)),
    ],
)
def test_the_fastest_way_comes_first(card, devices, counts):
    ways = [way.split for way in need_of(card, len(devices)).ways(devices)]
    parts = sum(counts)
    assert [count / ways[0].parts for count in ways[0].counts] == [count / parts for count in counts]
    assert ways[-1].even or ways[-1].counts == (2, 3, 3)  # of eight heads three ranks cannot have as many


def test_cards_as_fast_as_each_other_have_as_much_and_so_have_those_of_which_nobody_knows(card):
    for rates in ({}, {"cuda:0": 10**12}, dict.fromkeys(RATES, 10**12)):
        assert [
            way.split.counts for way in replace(need_of(card), rates=rates).ways(("cuda:0", "cuda:1"))
        ] == [(1, 1)]


def test_ranks_on_one_device_share_evenly(card):
    assert [way.split.counts for way in need_of(card).ways(("cpu", "cpu"))] == [(1, 1)]


def test_a_fit_on_unlike_cards_is_what_each_of_them_holds(card):
    fit = find_fit(need_of(card), {"cuda:0": 24 * GIB, "cuda:1": 32 * GIB}, [], "lru")
    assert fit.split == Split((3, 5))
    one, other = fit.rank_page_bytes
    assert 5 * one == 3 * other
    assert fit.reservations == dict(zip(fit.devices, fit.rank_budgets, strict=True))
    weights = card.bytes_per_rank(fit.split)
    assert weights[0] < weights[1] < 5 / 3 * weights[0]
    grown = fit.resized(fit.kv_pages + 10, fit.rank_budgets)
    assert [new - old for new, old in zip(grown.rank_budgets, fit.rank_budgets, strict=True)] == [
        10 * one,
        10 * other,
    ]
    assert sum(grown.reservations.values()) == sum(fit.reservations.values()) + 10 * (one + other)


def test_what_does_not_fit_in_the_fastest_way_is_shared_in_another(card):
    fastest = need_of(card).shared(Split((3, 5)))
    smallest = [size + 10 * GIB for size in fastest.fixed(("cuda:0", "cuda:1"))]
    room = {"cuda:0": 64 * GIB, "cuda:1": smallest[1] - 10 * GIB - 1}
    fit = find_fit(need_of(card), room, [], "lru")
    assert fit.split.even
    assert find_fit(need_of(card), room | {"cuda:1": smallest[1]}, [], "lru").split == Split((3, 5))


def test_a_slower_way_is_taken_where_it_would_not_fit_else_whoever_left(card):
    alike = replace(need_of(card), rates=dict.fromkeys(RATES, 10**12))
    needed = alike.fixed(("cuda:0", "cuda:1"))[0]
    small = {"cuda:0": needed - 1, "cuda:1": 64 * GIB}
    for total in (None, small):
        fit = find_fit(alike, small, [], "lru", total=total)
        assert fit.split.counts[0] < fit.split.counts[1]
        assert fit.rank_budgets[0] <= small["cuda:0"]
    with pytest.raises(CortexError) as refused:
        find_fit(replace(alike, others=()), small, [], "lru", total=small)
    assert refused.value.code == Code.MODEL_TOO_LARGE
    with pytest.raises(CortexError, match=r"needs at least .* with shares of 1:1") as refused:  # for a while
        find_fit(alike, small, [], "lru", total=dict.fromkeys(small, 64 * GIB))
    assert refused.value.code == Code.INSUFFICIENT_MEMORY
    assert find_fit(alike, dict.fromkeys(small, 64 * GIB), [], "lru").split.even


def test_what_is_too_large_in_all_ways_is_planned_once_for_each_share_beside_the_widest(card, monkeypatch):
    planned, of_share = [], ModelDescription._of_share
    monkeypatch.setattr(
        ModelDescription, "_of_share", lambda *given: (planned.append(given[-2:]), of_share(*given))[1]
    )
    small = dict.fromkeys((*RATES, "cuda:3"), 1)
    need = replace(need_of(card, 4), rates={**RATES, "cuda:3": 1792 * 10**9})
    with pytest.raises(CortexError) as refused:
        find_fit(need, small, [], "lru", total=small)
    assert refused.value.code == Code.MODEL_TOO_LARGE
    ways = (need.split, *need.others)
    shares = {(count, max(split.counts), split.parts) for split in ways for count in split.counts}
    assert sorted((share.count, widest.count, share.parts) for share, widest in planned) == sorted(shares)


def test_what_a_load_lacked_counts_for_each_way(card):
    ways = [*replace(need_of(card), spare=GIB).ways(("cuda:0", "cuda:1"))]
    assert len(ways) > 1
    plain = need_of(card).ways(("cuda:0", "cuda:1"))
    for way, without in zip(ways, plain, strict=True):
        gpus = ("cuda:0", "cuda:1")
        assert [size - GIB for size in way.fixed(gpus)] == without.fixed(gpus)


@pytest.mark.parametrize(
    ("quantization", "inner", "parts"),
    [(None, 1024, {2, 4, 8}), ("q4", 2048, {2, 4, 8}), ("q4", 1024, {2, 4}), ("int8", 512, {2, 4})],
)
def test_no_way_keeps_weights_otherwise_than_the_usual_one(tmp_path, quantization, inner, parts):
    sizes = {"hidden_size": 256, "intermediate_size": inner, "num_attention_heads": 8, "head_dim": 256}
    qwen3(**sizes, num_key_value_heads=8, vocab_size=512).save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    card = read_card(tmp_path)
    usual, *others = splits_of(card, 2, quantization)
    assert usual.even
    assert {split.parts for split in (usual, *others)} == parts
    for split in others:
        assert card.formats(split, quantization) == card.formats(usual, quantization)


def test_ranks_that_cannot_share_blocks_are_refused_for_these_and_not_for_heads(tmp_path):
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 4}
    qwen3(**sizes).save_pretrained(tmp_path / "checkpoint")
    card = read_card(gguf_files.write(tmp_path / "model.gguf", tmp_path / "checkpoint", "Q8_0"))
    assert need_of(card, 2).split.even
    with pytest.raises(CortexError, match=r"3 ranks with 1:1:2 .* each part would have 16 .* Fewer ranks"):
        need_of(card, 3)
    with pytest.raises(CortexError, match=r"into 5 ranks: it has 4 attention heads.* What works: 1, 2$"):
        need_of(card, 5)


def test_no_way_has_whole_experts_where_the_usual_one_has_parts_of_each(tmp_path):
    sizes = {"moe_intermediate_size": 256, "num_attention_heads": 8, "num_key_value_heads": 8}
    qwen3_moe(**sizes, hidden_size=256, head_dim=128).save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    card = read_card(tmp_path)
    assert {split.parts for split in splits_of(card, 2, None)} == {2, 4, 8}
    assert {split.parts for split in splits_of(card, 2, "int8")} == {2}
