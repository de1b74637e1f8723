"""Tokens that a head of the model guesses: they are what it says, and change no answer."""

from __future__ import annotations

import re
from array import array
from collections.abc import Mapping
from functools import cache

import msgspec
import pytest
import torch
from safetensors.torch import load_file, save_file

from ipc.errors import CortexError
from ipc.model_settings import ModelSettings
from ipc.worker_messages import SamplingParams, Submit
from neuron.description import describe
from neuron.memory.fit import Fit
from neuron.tenancy.launcher import parked_identity
from tests.workers import seeing
from tests.workers.cards import refusal
from tests.workers.engines import Session, make_runner, prompt_of, request
from tests.workers.equalities import WORDS, assert_equal
from tests.workers.guessing import SIZES, answers_of, of_all_kinds, replace_id
from tests.workers.oracle import fill
from tests.workers.predicting import Head, following
from tests.workers.recorded import record_steps
from tests.workers.thread_ranks import Ranks
from tests.workers.tiny_models import deepseek_v3, glm4_moe, qwen3_5, qwen3_5_moe, qwen3_next
from workers.checkpoints.shares import Split
from workers.step.plan import MOST_AHEAD

MODELS = {
    "qwen3_5": lambda: qwen3_5(attention_bias=True),
    "qwen3_5_moe": lambda: qwen3_5_moe(tie_word_embeddings=True),
    "qwen3_next": lambda: qwen3_next(mlp_only_layers=[2]),
    "glm4_moe": lambda: glm4_moe(use_qk_norm=True, attention_bias=True),
    "deepseek_v3": lambda: deepseek_v3(),
}
NO_IMAGES: dict[tuple[int, ...], seeing.Images] = {}
# Of which one has a head that is right more often than not; on the CPU, and once as on a GPU.
KNOWN = {"cpu": "qwen3_5", "recorded": "qwen3_next", "latent": "deepseek_v3"}


def asked() -> list[Submit]:
    """Requests that are guessed for, and such as are not beside them; two have the same prompt."""
    submits = [msgspec.structs.replace(each, max_tokens=40) for each in of_all_kinds()]
    twin = msgspec.structs.replace(
        submits[2], request_id=50, params=SamplingParams(temperature=1.0, seed=9, logprobs=1)
    )
    words = msgspec.structs.replace(
        request(51, [*range(30, 55)], 20, temperature=1.0, seed=4, stop_ids=[5]), constraint=WORDS
    )
    return [*submits, twin, words]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """`written(name)` is a model's folder, and the head in it; of a known one that is mostly right."""

    @cache
    def write(name: str, known: bool = False):
        torch.manual_seed(5)
        model = MODELS[name]().eval()
        fill(model)
        head = Head.knowing(model, 0.1) if known else Head(model)
        head.store(folder := tmp_path_factory.mktemp(name))
        return folder, head

    return write


def loaded(folder, **changes):
    runner = make_runner(folder, **SIZES | changes)
    runner.load(lambda fraction, message: None)
    return runner


def without(folder, submits, **limits):
    """What is answered without guesses, by a model that was loaded without the head."""
    runner = loaded(folder)
    answers, _ = answers_of(runner, submits, **limits)
    runner.close()
    return answers


class Heard:
    """What the head of a rank guessed, and behind which texts."""

    def __init__(self, runner, monkeypatch) -> None:
        self.found: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
        self._draft = runner.head_drafts.draft
        monkeypatch.setattr(runner.head_drafts, "draft", self.draft)

    def draft(self, step):
        drafts = self._draft(step)
        those = iter(drafts.tolist())
        for segment in step.segments:
            if segment.drafts:
                text = tuple(segment.slot.token_ids)
                self.found.append((text, tuple(next(those) for _ in range(segment.drafts))))
        return drafts

    def assert_said_by(self, head: Head, images: Mapping[tuple[int, ...], seeing.Images] = NO_IMAGES) -> None:
        """They are what the head has to say, of texts that begin with these prompts."""
        assert len(self.found) > 20
        assert max(len(drafts) for _, drafts in self.found) == MOST_AHEAD
        for text, drafts in sorted({*self.found}, key=lambda pair: -len(pair[0])):
            shown = next((each for prompt, each in images.items() if prompt == text[: len(prompt)]), [])
            assert tuple(head.drafts([*text], len(drafts), shown)) == drafts


# --- what the head says -------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=MODELS)
def any_head(request, written):
    """A model with a head of random weights, which is never right; requests; answers without such a head."""
    folder, head = written(request.param)
    submits = [msgspec.structs.replace(each, max_tokens=24) for each in of_all_kinds()[::2]]
    runner = loaded(folder, speculation="mtp")
    yield runner, head, submits, without(folder, submits)
    runner.close()


def test_drafts_are_those_of_the_same_layer_in_transformers(any_head, monkeypatch):
    runner, head, submits, expected = any_head
    heard = Heard(runner, monkeypatch)
    found, counts = answers_of(runner, submits, speculation="mtp", max_step_tokens=30, kv_pages=5)
    assert_equal(found, expected)
    assert counts["drafted"] > 40
    assert counts["preemptions"]
    session = Session(runner, **SIZES, max_sequences=16, speculation="mtp")
    assert_equal(session.answer(submits), expected)
    found = session.answer([replace_id(each) for each in submits])
    session.end()
    assert_equal(found, expected)
    assert sum(answer.cached_tokens > 0 for answer in found) > 1
    heard.assert_said_by(head)


def test_a_head_sees_the_images_that_its_model_sees(tmp_path, monkeypatch):
    model = seeing.write(tmp_path, "qwen3_5")
    head = Head(model)
    head.store(tmp_path)
    pictures = [seeing.picture(*shape, seed) for seed, shape in enumerate([(3, 2), (2, 5), (6, 3), (4, 2)])]
    parts = [(5, pictures[0], 7), (40,), (3, pictures[1], 4, pictures[2], 40), (pictures[3], 2)]
    prompts = [seeing.prompt(*each) for each in parts]
    # a token that stands for an image would be one without any
    limits = {"max_step_tokens": 70, "bad_words": [[seeing.IMAGE]]}
    with seeing.loaded(tmp_path, speculation="mtp") as engine:
        heard = Heard(engine, monkeypatch)
        found, _ = seeing.serve(engine, [(each, 20) for each in parts], **limits, speculation="mtp")
        plain, _ = seeing.serve(engine, [(each, 20) for each in parts], **limits)
    assert [answer.token_ids for answer in found] == [answer.token_ids for answer in plain]
    heard.assert_said_by(head, {tuple(ids): images for ids, images in prompts})


# --- what becomes of it -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def known(written):
    """A head that is mostly right, and answers without it; as on a GPU that is: with a step in flight, and
    recorded steps."""
    made = {}

    def make(kind: str):
        if kind in made:
            return made[kind]
        folder, _ = written(KNOWN[kind], known=True)
        with pytest.MonkeyPatch.context() as patch:
            if kind == "recorded":
                record_steps(patch)
            runner = make_runner(folder, **SIZES, speculation="mtp", host_states=24)
            runner.in_flight = int(kind == "recorded")
            runner.load(lambda fraction, message: None)
        answers, _ = answers_of(runner, asked())
        assert {answer.finish for answer in answers} <= {"length", "stop"}
        made[kind] = runner, answers
        return made[kind]

    yield make
    for runner, _ in made.values():
        runner.close()


FEW_PAGES, FEW_STATES = {"max_step_tokens": 30, "kv_pages": 6}, {"states": 4, "host_states": 24}


@pytest.mark.parametrize(
    ("kind", "limits"),
    [
        ("cpu", FEW_STATES),
        ("recorded", {"seed": 1}),
        ("recorded", FEW_PAGES),
        ("latent", FEW_PAGES),
    ],
)
def test_answers_are_those_without_guesses(known, kind, limits):
    runner, expected = known(kind)
    found, counts = answers_of(runner, asked(), speculation="mtp", **limits)
    assert_equal(found, expected)
    assert 60 < counts["accepted"] < counts["drafted"]
    assert (counts["preemptions"] > 0) == ("kv_pages" in limits)


@pytest.mark.parametrize("kind", KNOWN)
def test_a_guess_that_ends_an_answer_is_its_end_and_the_next_turn_goes_on_behind_it(known, kind):
    """What was guessed behind it is in no state that the next turn begins with."""
    runner, expected = known(kind)
    submits, turns = [], []
    for submit, answer in list(zip(asked(), expected, strict=True))[:5]:
        stop = answer.token_ids[30]
        params = msgspec.structs.replace(submit.params, stop_ids=[stop], min_tokens=20, prompt_logprobs=None)
        submits.append(msgspec.structs.replace(submit, params=params))
    session = Session(runner, **SIZES, max_sequences=16, speculation="mtp")
    plain = Session(runner, **SIZES, max_sequences=16)
    found = session.answer(submits)
    assert sum(answer.finish == "stop" for answer in found) > 1
    for submit, answer in zip(submits, found, strict=True):
        text = array("I", [*prompt_of(submit), *answer.token_ids, 9]).tobytes()
        turns.append(msgspec.structs.replace(replace_id(submit), prompt=text, max_tokens=9))
    continued = session.answer(turns)
    session.end()
    assert_equal(found, plain.answer(submits))
    plain.end()
    anew = Session(runner, **SIZES, max_sequences=16)
    assert_equal(continued, anew.answer(turns))
    anew.end()
    assert sum(answer.cached_tokens > 0 for answer in continued) > 2


def test_a_text_that_the_head_knows_takes_a_third_of_the_steps(written, tmp_path):
    folder, _ = written("deepseek_v3", known=True)
    weights = load_file(folder / "model.safetensors")
    for name in weights:
        if re.match(r"model\.layers\.[012]\.", name):  # what follows depends on the last token alone
            weights[name] = torch.zeros_like(weights[name])
    save_file(weights, tmp_path / "model.safetensors")
    for file in ("config.json", "tokenizer.json"):
        (tmp_path / file).symlink_to(folder / file)
    runner = loaded(tmp_path, speculation="mtp")
    steps = []
    for speculation in (None, "mtp"):
        session = Session(runner, **SIZES, speculation=speculation)
        [answer] = session.answer([request(1, [5, 9], 60)])
        steps.append(session.scheduler.step)
        session.end()
        text = [9, *answer.token_ids]
        assert all(text[n + 1] == following(text[n], 131) for n in range(60))
    assert 3 * steps[1] < steps[0]
    runner.close()


@pytest.mark.parametrize("name", ["qwen3_next", "deepseek_v3"])
def test_ranks_guess_together_what_one_does_and_keep_the_same_tokens(written, monkeypatch, name):
    folder, head = written(name, known=True)
    submits = [msgspec.structs.replace(each, max_tokens=33) for each in asked()[:4]]
    expected = without(folder, submits)
    ranks = Ranks(folder, 2, monkeypatch, **SIZES, speculation="mtp")
    heard = [Heard(rank, monkeypatch) for rank in ranks.ranks]
    found, counts = answers_of(ranks, submits, speculation="mtp", seed=5)
    assert_equal(found, expected)
    assert counts["accepted"] > 30
    heard[0].assert_said_by(head)
    assert heard[1].found == heard[0].found
    ranks.close()


def test_an_exact_model_gives_the_same_bits(written):
    folder, _ = written("qwen3_5", known=True)
    submits = [request(n, [*range(6, 30 + n)], 30, temperature=n % 2, seed=n, logprobs=3) for n in range(3)]
    answers = []
    for speculation in (None, "mtp"):
        runner = loaded(folder, dtype="bfloat16", exact=True, speculation=speculation)
        found, counts = answers_of(runner, submits, speculation=speculation)
        answers.append(msgspec.json.encode(found))
        runner.close()
    assert answers[0] == answers[1]
    assert counts["accepted"] > 5


def test_a_step_whose_head_finds_no_memory_is_done_again_and_draws_the_same(known, monkeypatch):
    runner, expected = known("recorded")
    run, failed = runner.mtp.block.mlp, []  # whose step has drawn its tokens

    def without_memory(x):
        if len(x) == 60 and not failed:
            failed.append(len(x))
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return run(x)

    monkeypatch.setattr(runner.mtp.block, "mlp", without_memory)
    found, counts = answers_of(runner, asked(), speculation="mtp", max_step_tokens=60)
    assert_equal(found, expected)
    assert (failed, counts["out_of_memory"]) == ([60], 1)


def test_a_damaged_head_spoils_no_answer(known, monkeypatch):
    runner, expected = known("cpu")
    monkeypatch.setattr(runner.mtp.norm, "weight", torch.full_like(runner.mtp.norm.weight, torch.nan))
    found, counts = answers_of(runner, asked(), speculation="mtp")
    assert_equal(found, expected)
    assert counts["drafted"] > 20 * counts["accepted"]


# --- what is planned, and refused ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["qwen3_5_moe", "deepseek_v3"])
def test_the_head_is_read_booked_and_parked_where_it_is_asked_for(written, name):
    folder, _ = written(name)
    plain, guessing = (
        describe(ModelSettings(id="some", speculation=each), folder) for each in ("ngram", "mtp")
    )
    names = guessing.card.tensors.keys() - plain.card.tensors.keys()
    config = guessing.card.config
    assert all(name.startswith(f"model.layers.{config.num_layers}.") for name in names)
    assert guessing.notes == []
    [note] = plain.notes
    assert "`speculation: mtp`" in note
    settings = ModelSettings(id="some", max_sequences=2, max_step_tokens=32)
    per_token = [
        sum(each.bytes_per_token for each in model.cache_groups(settings)) for model in (plain, guessing)
    ]
    kept = 2 * config.num_kv_heads * config.head_dim
    if config.latent is not None:
        kept = config.latent.rank + config.latent.rope_dim
    assert per_token[1] - per_token[0] == kept * 4
    overheads = [model.need(settings).ranks[0].cpu_overhead for model in (plain, guessing)]
    assert overheads[0] < overheads[1]
    fit = Fit(("cpu",), {}, (), 1, 1, 1)
    identities = [parked_identity(settings, model, fit) for model in (plain, guessing)]
    assert identities[0] != identities[1]
    for world_size in (1, 2):
        more = [sum(each.card.bytes_per_rank(Split.evenly(world_size))) for each in (plain, guessing)]
        assert more[1] - more[0] >= sum(guessing.card.tensors[name].nbytes for name in names)
    runner = make_runner(folder, speculation="mtp", **SIZES)
    weights = runner.load(lambda fraction, message: None).memory.weights
    assert weights - runner.model.head.copied == guessing.rank_bytes[0]
    runner.close()


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        # as where a head was left out when a model was made smaller
        ("qwen3_5", {"mtp_num_hidden_layers": 1}, "its files have none"),
        ("deepseek_v3", {"num_nextn_predict_layers": 1}, "its files have none"),
        ("qwen3_5", "mtp.layers.1.input_layernorm.weight", r"mtp\.layers\.1"),
        ("deepseek_v3", "model.layers.4.enorm.weight", r"model\.layers\.4"),
        ("qwen3_moe", {}, "none is understood"),
    ],
)
def test_a_model_without_such_a_head_is_refused_by_what_would_do(
    tmp_path, tiny, written, name, changes, words
):
    if isinstance(changes, str):
        source, _ = written(name)
        weights = load_file(source / "model.safetensors") | {changes: torch.zeros(48)}
        save_file(weights, tmp_path / "model.safetensors")
        for file in ("config.json", "tokenizer.json"):
            (tmp_path / file).symlink_to(source / file)
        folder = tmp_path
    else:
        folder = seeing.changed(tiny(name).folder, tmp_path, **changes)
    assert refusal(folder) is None
    with pytest.raises(CortexError, match=f"speculation mtp needs a head.*{words}.*or take ngram"):
        describe(ModelSettings(id="some", speculation="mtp"), folder)
    assert describe(ModelSettings(id="some", speculation="ngram"), folder)
