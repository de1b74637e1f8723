"""Models with layers that keep a state: what their files may say, and what of them is not read."""

from __future__ import annotations

import copy
import json
from array import array
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen3_5TextConfig, Qwen3NextConfig

from benchmarks.driver import write_hollow
from benchmarks.loading import memory
from ipc.errors import CortexError
from ipc.worker_messages import PAGE_SIZE, SamplingParams
from tests.workers.engines import Answer, Session, logits_of, make_runner, request
from tests.workers.oracle import fill, greedy
from tests.workers.thread_ranks import Ranks
from tests.workers.tiny_models import SIZES, falcon_h1, granite_hybrid, nemotron_h, qwen3_5, qwen3_next
from workers.checkpoints.caches import num_states
from workers.checkpoints.reading import read_card
from workers.checkpoints.shares import Split
from workers.models.hybrid import Hybrid
from workers.parallel import RankGroup
from workers.scheduling import cache_manager
from workers.step.pages import pages_for
from workers.step.plan import HOLE, NewSequence, Scheduled, StateMove, StepPlan
from workers.weights.loader import Shard, WeightFiles


@pytest.fixture
def changed(tiny, tmp_path):
    """A checkpoint whose config.json says something else."""
    folder = tiny("qwen3_5").folder
    config = json.loads((folder / "config.json").read_text())

    def write(**changes):
        for name in ("model.safetensors", "tokenizer.json"):
            (tmp_path / name).unlink(missing_ok=True)
            (tmp_path / name).symlink_to(folder / name)
        (tmp_path / "config.json").write_text(json.dumps(config | changes))
        return tmp_path

    return write


LINEAR, FULL = "linear_attention", "full_attention"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"layer_types": [LINEAR, FULL]}, "layer_types has 2 entries, and there are 4 layers"),
        ({"layer_types": [LINEAR] * 3 + ["sliding_attention"]}, "layer 3 is sliding_attention"),
        ({"layer_types": [LINEAR] * 4}, "no layer is full_attention"),
        ({"full_attention_interval": 2}, "full_attention_interval 2 disagree: layer 1 is linear_attention"),
        ({"linear_num_key_heads": 3}, "linear_num_key_heads 3 does not divide linear_num_value_heads 4"),
        ({"linear_conv_kernel_dim": 1}, "linear_conv_kernel_dim 1"),
        ({"linear_conv_kernel_dim": 5}, "conv1d.weight"),
        ({"attn_output_gate": False}, "attn_output_gate"),
        ({"output_gate_type": "sigmoid"}, "output_gate_type sigmoid"),
        ({"hidden_act": "gelu"}, "hidden_act gelu"),
        ({"num_experts": 4}, "num_experts"),
        ({"rope_parameters": {"partial_rotary_factor": 0}}, "partial_rotary_factor 0"),
    ],
)
def test_a_config_that_contradicts_itself_or_its_files_is_refused_by_name(changed, changes, words):
    with pytest.raises(CortexError, match=words):
        read_card(changed(**changes))


def test_layers_follow_the_interval_where_they_are_not_listed(changed):
    card = read_card(changed(layer_types=None, full_attention_interval=4))
    assert [layer.kind for layer in card.layers] == ["state", "state", "state", "full"]
    assert read_card(changed(layer_types=None)).layers == card.layers


def test_ranks_share_whole_key_heads(changed):
    with pytest.raises(CortexError, match=r"2 key heads in layers with a state\. What works: 1, 2"):
        read_card(changed()).check_split(Split.evenly(4))


def test_a_head_for_several_tokens_is_named_and_not_read(changed):
    folder = changed()
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    more = {"mtp.fc.weight": tensors["model.norm.weight"], "mtp.norm.weight": tensors["model.norm.weight"]}
    save_file(tensors | {name: tensor.clone() for name, tensor in more.items()}, folder / "model.safetensors")
    [note] = read_card(folder).notes
    assert note.startswith("2 tensors are a head that predicts several tokens")


SMALL = {"max_sequences": 4, "max_step_tokens": 48, "context_length": 512}


def runner_of(folder, **changes):
    runner = make_runner(folder, **SMALL | changes)
    runner.load(lambda fraction, message: None)
    return runner


def test_turns_of_a_conversation_go_on_from_states_and_say_the_same(tiny):
    folder, oracle = tiny("qwen3_5")
    session = Session(runner_of(folder), **SMALL)
    prompt = [(5 * i + 2) % 131 for i in range(100)]
    for turn in range(3):
        [answer] = session.answer([request(turn, prompt, 64)])
        assert answer.token_ids == greedy(oracle, prompt, answer.token_ids)
        assert answer.cached_tokens == (0, 160, 224)[turn]
        prompt = [*prompt, *answer.token_ids, *range(10, 30)]


@pytest.mark.parametrize("name", ["qwen3_5", "qwen3_next", "granitemoehybrid", "falcon_h1"])
def test_others_go_on_from_each_state_that_is_kept_of_a_prompt_and_say_the_same(tiny, name, monkeypatch):
    monkeypatch.setattr(cache_manager, "CHECKPOINT_TOKENS", PAGE_SIZE)
    folder, oracle = tiny(name)
    limits = SMALL | {"states": 40}
    session = Session(runner_of(folder, **limits), **limits)
    prompt = [(5 * i + 2) % 131 for i in range(200)]
    session.answer([request(0, prompt, 1)])
    for kept in range(PAGE_SIZE, len(prompt) - cache_manager.REWRITTEN, PAGE_SIZE):
        other = [*prompt[:kept], *range(20, 29)]
        [answer] = session.answer([request(kept, other, 8)])
        assert answer.cached_tokens == kept
        assert answer.token_ids == greedy(oracle, other, answer.token_ids)


def test_what_is_preempted_and_what_shares_its_beginning_says_the_same(tiny):
    """Pages for less than two of them, so that one waits, and states for two."""
    folder, oracle = tiny("qwen3_next")
    common = [(5 * i + 2) % 131 for i in range(90)]
    prompts = [[*common, *[number] * (7 * number)] for number in range(1, 4)]
    limits = SMALL | {"kv_pages": 8}
    session = Session(runner_of(folder, **limits), **limits)
    answers = session.answer([request(i, prompt, 64) for i, prompt in enumerate(prompts)], seed=3)
    for prompt, answer in zip(prompts, answers, strict=True):
        assert answer.token_ids == greedy(oracle, prompt, answer.token_ids)
    counts = session.scheduler.statistics()
    assert counts["preemptions"]
    assert counts["cached_tokens"]


def test_a_rank_holds_states_for_its_heads_alone_and_says_what_they_take(tiny, monkeypatch):
    folder = tiny("qwen3_5").folder
    card, sizes = read_card(folder), {}
    for size in (1, 2):
        ranks = Ranks(folder, size, monkeypatch, **SMALL)
        [group] = [
            each for each in card.cache_groups(Split.evenly(size).part, "float32") if each.kind == "state"
        ]
        states = num_states([group], SMALL["max_sequences"])
        sizes[size] = group.bytes_per_sequence
        for rank in ranks.ranks:
            assert rank.state_cache.nbytes == (states + 1) * group.bytes_per_sequence
        ranks.close()
    assert sizes[1] == 2 * sizes[2] == 3 * card.config.delta.state_size * 4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_in_16_bits_it_is_as_close_to_float32_as_transformers_is(tiny, dtype):
    folder, oracle = tiny("qwen3_5")
    rounded, runner = copy.deepcopy(oracle).to(dtype), runner_of(folder, dtype=str(dtype).split(".")[1])
    ours, theirs = torch.zeros(2)
    for k in range(6):
        prompt = [(5 * i + 1 + k * i * i) % 131 for i in range(48)]
        with torch.inference_mode():
            exact = oracle(torch.tensor([prompt])).logits[0, -1]
            theirs += (rounded(torch.tensor([prompt])).logits[0, -1] - exact).square().sum()
        ours += (logits_of(runner, prompt) - exact).square().sum()
        runner.empty()
    assert 0 < ours.sqrt() <= 1.5 * theirs.sqrt()


def test_in_16_bits_no_region_of_a_falcons_projection_is_off_by_what_its_multipliers_round_to(tmp_path):
    """0.35355 x 1.25 is 0.44194, and 0.44141 in bfloat16: 0.12 % less, of all that a layer keeps."""
    torch.manual_seed(13)
    oracle = falcon_h1(ssm_in_multiplier=1.25, ssm_multipliers=[0.353553, 0.25, 0.353553, 0.5, 0.353553])
    fill(oracle)
    oracle.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    ours = runner_of(tmp_path, dtype="bfloat16").model.blocks[0].mamba
    theirs, mixed = oracle.to(torch.bfloat16).model.layers[0].mamba, []
    inner, channels, heads = ours.sizes

    def recur(number: int, given: torch.Tensor, *others: object) -> torch.Tensor:
        mixed.append(given.float())
        return torch.zeros(len(given), heads, inner // heads)

    x = torch.randn(256, SIZES["hidden_size"], dtype=torch.bfloat16)
    with torch.inference_mode():
        ours(x, recur)
        expected = (theirs.in_proj(x * theirs.ssm_in_multiplier) * theirs.mup_vector)[0].float()
    begin = 0
    for end in (inner, (inner + channels) // 2, channels):  # inputs, keys, queries
        found, said = mixed[0][:, begin:end], expected[:, inner + begin : inner + end]
        begin = end
        assert (found * said).sum() / said.square().sum() == pytest.approx(1.0, abs=4e-4)


def test_experts_that_are_stored_as_one_tensor_are_those_that_are_stored_one_by_one(tiny, tmp_path):
    """With the names that the published files have."""
    folder = tiny("qwen3_5_moe").folder
    stored, found = load_file(folder / "model.safetensors"), {}
    for name in sorted(stored):
        if ".experts." not in name:
            found[name.replace("model.", "model.language_model.")] = stored[name]
    for layer in range(4):
        prefix = f"model.layers.{layer}.mlp.experts."
        each = [
            [stored[f"{prefix}{number}.{kind}_proj.weight"] for kind in ("gate", "up", "down")]
            for number in range(6)
        ]
        into = f"model.language_model.layers.{layer}.mlp.experts."
        found[into + "gate_up_proj"] = torch.stack([torch.cat((gate, up)) for gate, up, _ in each])
        found[into + "down_proj"] = torch.stack([down for _, _, down in each])
    save_file(found, tmp_path / "model.safetensors")
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).symlink_to(folder / name)
    here, there = runner_of(folder), runner_of(tmp_path)
    prompt = [(5 * i + 2) % 131 for i in range(60)]
    assert torch.equal(logits_of(here, prompt), logits_of(there, prompt))


@pytest.mark.parametrize("name", ["qwen3_5", "qwen3_next", "granitemoehybrid_dense", "nemotron_h_moe"])
def test_a_prompt_may_be_cut_at_any_token(tiny, name):
    """Into two steps, of which the first has 1 to 130 tokens; then one more token, which the state gives."""
    folder, oracle = tiny(name)
    prompt, at_once = [(5 * i + 2) % 131 for i in range(133)], 13
    pages, limits = pages_for(len(prompt)), {"max_sequences": at_once, "context_length": 512}
    runner = make_runner(folder, max_step_tokens=at_once * len(prompt), kv_pages=at_once * pages, **limits)
    runner.load(lambda fraction, message: None)
    expected = greedy(oracle, prompt, [7, 7])
    for start in range(1, 131, at_once):
        added, begin, go_on = [], [], []
        for slot, cut in enumerate(range(start, start + at_once)):
            added.append(NewSequence(slot, len(prompt), array("I", prompt).tobytes(), SamplingParams(0.0)))
            table, first = [*range(slot * pages, (slot + 1) * pages)], pages_for(cut)
            states = [HOLE] * (first - 1) + [2 * slot]
            begin.append(Scheduled(slot, cut, [table[:first], states]))
            states = [HOLE] * (pages - first - 1) + [2 * slot + 1] * (pages > first)
            go_on.append(Scheduled(slot, len(prompt) - cut, [table[first:], states]))
        runner.execute(StepPlan(1, [], added, begin))
        found = [runner.execute(StepPlan(2, [], [], go_on)).tokens]
        for slot in runner.slots.values():
            slot.token_ids[-1] = 7
        found.append(
            runner.execute(StepPlan(3, [], [], [Scheduled(slot, 1) for slot in runner.slots])).tokens
        )
        assert found == [[token] * at_once for token in expected], start
        runner.empty()


WIDE = {"linear_num_key_heads": 4, "linear_num_value_heads": 8}  # a key head for each of four ranks
FOUR = {  # and what matrices a rank has of a layer
    "qwen3_5": (lambda: qwen3_5(**WIDE), (2, 8, 12)),
    "qwen3_next": (lambda: qwen3_next(**WIDE), (2, 8, 12)),
    # two ranks have heads of one group, and each a half of what it normalises
    "granitemoehybrid": (lambda: granite_hybrid(mamba_n_heads=8, mamba_n_groups=2), (1, 20, 24)),
    "nemotron_h": (lambda: nemotron_h(mamba_num_heads=8), (1, 20, 24)),
    "falcon_h1": (
        lambda: falcon_h1(mamba_d_ssm=96, mamba_n_heads=8, mamba_rms_norm=True),
        (1, 20, 24),
    ),
    "qwen3_5 unevenly": (lambda: qwen3_5(**WIDE, num_key_value_heads=4), (2, 8, 12), (1, 2, 1)),
}


@pytest.mark.parametrize("kind", FOUR.values(), ids=FOUR)
def test_four_parts_say_what_one_rank_does_and_go_on_from_states_on_the_host(kind, tmp_path, monkeypatch):
    """Two conversations that take turns, with states for one of them on the ranks' devices."""
    make, (heads, *of_head), *parts = kind
    split = Split(*parts) if parts else Split.evenly(4)
    torch.manual_seed(13)
    oracle = make()
    fill(oracle)
    oracle.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    limits = SMALL | {"states": 2, "host_states": 8}
    ranks = Ranks(tmp_path, split.ranks, monkeypatch, parts=split.counts, **limits)
    card = read_card(tmp_path)
    for rank, share in zip(ranks.ranks, split.shares(), strict=True):
        [group] = [each for each in card.cache_groups(share, "float32") if each.kind == "state"]
        assert rank.state_cache.shape.matrices == (share.count * heads, *of_head)
        assert rank.state_cache.nbytes == (limits["states"] + 1) * group.bytes_per_sequence
    session = Session(ranks, **limits)
    for number, (prompt, answer) in enumerate(talk(session, conversations=2, turns=2)):
        assert answer.token_ids == greedy(oracle, prompt, answer.token_ids)
        assert answer.cached_tokens == (0, 0, 64, 64)[number]
    ranks.close()


def talk(session, conversations: int, turns: int, **sampling) -> Iterator[tuple[list[int], Answer]]:
    """Each turn of each conversation, and its answer."""
    prompts = [[(5 * i + k) % 131 for i in range(100)] for k in range(conversations)]
    for number in range(conversations * turns):
        prompt = prompts[number % conversations]
        [answer] = session.answer([request(number, prompt, 8, **sampling)])
        yield prompt, answer
        prompts[number % conversations] = [*prompt, *answer.token_ids, *range(10, 30)]


def test_a_state_that_was_on_the_host_gives_the_same_bits(tiny):
    runner, found = runner_of(tiny("qwen3_next").folder, states=20, host_states=16), {}
    for name, states, places in (("device", 20, 0), ("host", 2, 16), ("gone", 2, 0)):
        session = Session(runner, **SMALL | {"states": states, "host_states": places})
        found[name] = [answer for _, answer in talk(session, conversations=2, turns=3, logprobs=5)]
        session.end()
    assert found["host"] == found["device"]
    cached = {name: [answer.cached_tokens for answer in answers] for name, answers in found.items()}
    assert cached["host"] == [0, 0, 64, 64, 128, 128]
    assert not any(cached["gone"])


def test_states_come_back_to_the_bit_and_the_host_holds_no_more_than_was_planned(tiny):
    runner = runner_of(tiny("qwen3_5").folder, states=5, host_states=2)
    cache, host = runner.state_cache, runner.host_states
    assert host.nbytes == 2 * 4 * cache.arena.shape[1]
    cache.arena.view(torch.int32).random_()  # any bits, those of what is no number among them
    before = cache.arena.view(torch.int32).clone()
    for move in (StateMove(4, 1, leaves=True), StateMove(0, 0, leaves=True)):
        host.move(move)
    cache.arena.zero_()
    for move in (StateMove(2, 0, leaves=False), StateMove(4, 1, leaves=False)):
        host.move(move)
    assert torch.equal(cache.arena.view(torch.int32)[[2, 4]], before[[0, 4]])
    assert not cache.arena[[0, 1, 3]].any()


# of a 27B: what all heads have for queries, keys and values is 105 MB, and with their gates 168
WIDE_LAYERS = {
    "hidden_size": 5120,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "layer_types": [LINEAR, FULL],
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 48,
    "num_attention_heads": 24,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "vocab_size": 256,
    "dtype": "bfloat16",
}
NO_EXPERTS = {"mlp_only_layers": [0, 1]}


@pytest.mark.parametrize(
    "config", [Qwen3_5TextConfig(**WIDE_LAYERS), Qwen3NextConfig(**WIDE_LAYERS | NO_EXPERTS)]
)
def test_no_rank_holds_more_of_what_is_fused_than_its_part(tmp_path, config):
    card = read_card(write_hollow(tmp_path, config))
    model = Hybrid(card.config, RankGroup(1, 2), torch.bfloat16)
    parts = [Shard(part.pieces) for part in model.parts()]
    for part in parts:
        for piece in part.pieces:
            piece.into.fill_(1.0)
    Path("/proc/self/clear_refs").write_text("5")  # from now on the peak is that of what follows
    before = memory("VmRSS")
    WeightFiles(card).load(parts, lambda fraction: None)
    assert memory("VmHWM") - before < 50 << 20
    assert not any(piece.into.any() for part in parts for piece in part.pieces)
