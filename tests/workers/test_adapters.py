"""A request with an adapter gets what a model with the adapter merged into it would answer."""

from __future__ import annotations

import json
import shutil
from array import array

import pytest
import torch
from msgspec.structs import replace
from safetensors.torch import load_file, save_file

from ipc.errors import CortexError
from ipc.worker_messages import (
    AdapterReport,
    DropAdapter,
    LoadAdapter,
    Logprobs,
    SamplingParams,
    Submit,
)
from tests.workers import seeing
from tests.workers.adapters import adapt, read, with_adapter, write_adapter
from tests.workers.engines import Answer, Session, make_runner, prompt_of, request, some_requests
from tests.workers.guessing import Knows
from tests.workers.harness import Workers
from tests.workers.oracle import greedy
from workers.checkpoints.adapter import CONFIG, WEIGHTS, read_adapter
from workers.checkpoints.reading import read_card
from workers.checkpoints.shares import WHOLE, Split
from workers.checkpoints.stored_tensors import WeightFile
from workers.execution.memory import held, trim
from workers.execution.model_runner import ModelRunner
from workers.scheduling.drafts import DRAFTERS

PROMPT = [(7 * i + 3) % 131 for i in range(80)]


@pytest.fixture(scope="module", params=["qwen3_tied", "phi3"])
def adapted(request, tiny, tmp_path_factory):
    """A checkpoint, two unlike adapters of it, and what each number of an adapter should answer as."""
    folder, oracle = tiny(request.param)
    where = tmp_path_factory.mktemp("adapters")
    fused = request.param == "phi3"
    attention = ("qkv_proj", "o_proj") if fused else ("q_proj", "v_proj")
    mlp = (
        ("gate_up_proj", "down_proj") if fused else ("k_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    )
    first = write_adapter(where / "first", oracle, attention, seed=1)
    second = write_adapter(where / "second", oracle, attention + mlp, rank=3, seed=2, use_rslora=True)
    return folder, [where / "first", where / "second"], [oracle, first, second]


@pytest.fixture(scope="module")
def runner(adapted):
    folder, adapters, _ = adapted
    runner = make_runner(folder, adapters)
    runner.load(lambda fraction, message: None)
    read(runner, 1, 2)
    yield runner
    runner.close()


def test_unlike_adapters_in_one_batch_answer_as_merged_models_do(adapted, runner):
    requests = [with_adapter(each, i % 3) for i, each in enumerate(some_requests(12, 131, seed=3))]
    session = Session(runner)
    answers = session.answer(requests)
    session.end()
    for submit, answer in zip(requests, answers, strict=True):
        assert answer.token_ids == greedy(adapted[2][submit.adapter], prompt_of(submit), answer.token_ids)


def test_what_an_exact_one_adds_has_the_same_bits_in_any_company(adapted):
    runner = make_runner(adapted[0], adapted[1], exact=True)
    runner.load(lambda fraction, message: None)
    read(runner, 1, 2)
    requests = [request(n, PROMPT[: 9 * n], 4, logprobs=3) for n in range(1, 8)]
    submits = [with_adapter(each, 1 + each.request_id % 3 // 2) for each in requests]

    def answers(submits: list[Submit], **limits: int) -> list[Answer]:
        session = Session(runner, **limits)
        found = session.answer(submits)
        session.end()
        return found

    alone = [answer for submit in submits for answer in answers([submit])]
    for max_step_tokens in (1, 17, 256):
        found = answers(submits, max_step_tokens=max_step_tokens)
        for mine, other in zip(found, alone, strict=True):
            mine.cached_tokens = other.cached_tokens
        assert found == alone
    runner.close()


@pytest.mark.parametrize(
    ("name", "modules"),
    [
        ("lfm2", ("q_proj", "out_proj", "in_proj", "w1", "w2", "w3")),  # of attention and of convolutions
        ("granitemoehybrid_dense", ("q_proj", "in_proj", "out_proj")),
        ("nemotron_h", ("q_proj", "in_proj", "out_proj", "up_proj", "down_proj")),
        ("starcoder2", ("q_proj", "o_proj", "c_fc", "c_proj")),
        ("afmoe", ("q_proj", "gate_proj", "up_proj", "down_proj")),  # gates of attention, and shared experts
        (
            "gemma3n",
            ("q_proj", "up_proj", "linear_left", "linear_right", "modality_router", "prediction_coefs"),
        ),
        ("gemma3n", ("o_proj", "correction_coefs", "per_layer_input_gate", "per_layer_projection")),
        ("laguna", ("o_proj", "g_proj", "gate_proj")),  # whose gates of attention are one a head
    ],
)
def test_adapters_have_the_names_of_their_family(tiny, tmp_path, name, modules):
    folder, oracle = tiny(name)
    merged = write_adapter(tmp_path, oracle, modules)
    runner = make_runner(folder, [tmp_path])
    runner.load(lambda fraction, message: None)
    read(runner, 1)
    session = Session(runner)
    asked = [
        with_adapter(request(number, PROMPT[number : 20 + number], 8), number % 2) for number in range(3)
    ]
    for submit, answer in zip(asked, session.answer(asked), strict=True):
        model = merged if submit.adapter else oracle
        assert answer.token_ids == greedy(model, prompt_of(submit), answer.token_ids)
    session.end()
    runner.close()


def test_adapters_of_a_model_that_sees_are_beside_its_language_model(tmp_path):
    oracle = seeing.write(tmp_path / "model")
    merged = write_adapter(tmp_path / "adapter", oracle)
    path, card = tmp_path / "adapter" / WEIGHTS, read_card(tmp_path / "model")
    tensors = load_file(path)
    assert all(".model.language_model.layers." in name for name in tensors)
    with seeing.loaded(tmp_path / "model", adapters=[tmp_path / "adapter"]) as runner:
        read(runner, 1)
        asked, session = with_adapter(request(1, PROMPT[:20], 8), 1), Session(runner)
        [answer] = session.answer([asked])
        assert answer.token_ids == greedy(merged, prompt_of(asked), answer.token_ids)
        assert answer.token_ids != greedy(oracle, prompt_of(asked), answer.token_ids)
        session.end()

    known = read_adapter("pirate", tmp_path / "adapter", card).tensors
    before = {name.replace("model.language_model", "language_model.model"): tensors[name] for name in tensors}
    save_file(before, path)
    assert read_adapter("pirate", tmp_path / "adapter", card).tensors.keys() == known.keys()

    for own in (
        "visual.blocks.0.attn.qkv",
        "vision_tower.encoder.layers.0.self_attn.q_proj.linear",
        "vision_embedder.patch_dense",
        "embed_audio.embedding_projection",
    ):
        save_file(tensors | {f"base_model.model.model.{own}.lora_A.weight": torch.zeros(4, 32)}, path)
        said = refused(tmp_path / "adapter", card)
        assert f"model.{own}.lora_A.weight' is beside what sees or hears" in said


def test_adapters_answer_the_same_where_tokens_are_guessed(runner, monkeypatch):
    requests = [
        with_adapter(
            request(number, PROMPT[number:], 40, temperature=0.7 * (number > 2), seed=number), number % 3
        )
        for number in range(5)
    ]
    session = Session(runner)
    expected = [answer.token_ids for answer in session.answer(requests)]
    session.end()
    told = {tuple(prompt_of(each)): answer for each, answer in zip(requests, expected, strict=True)}
    monkeypatch.setitem(DRAFTERS, "ngram", lambda: Knows(told))
    session = Session(runner, speculation="ngram")
    assert [answer.token_ids for answer in session.answer(requests)] == expected
    assert session.scheduler.statistics()["accepted"] > 40
    session.end()


def test_adapters_make_a_difference_and_share_no_cached_pages(adapted, runner):
    session = Session(runner)
    outputs = []
    for number, adapter in enumerate([0, 1, 2, 0, 1, 2]):
        prompt = array("I", PROMPT).tobytes()
        request = Submit(number, prompt, 10, SamplingParams(temperature=0.0), adapter=adapter)
        [answer] = session.answer([request])
        assert answer.token_ids == greedy(adapted[2][adapter], PROMPT, answer.token_ids)
        assert bool(answer.cached_tokens) == (number >= 3)
        outputs.append(answer.token_ids)
    session.end()
    assert outputs[:3] == outputs[3:]
    assert len({tuple(each) for each in outputs}) == 3


def test_bytes_of_an_adapter_are_what_its_ranks_hold(adapted, runner):
    folder, adapters, _ = adapted
    card = read_card(folder)
    parts = [
        part
        for block in runner.model.blocks
        for linear in block.linears
        for parts in linear.beside._parts.values()
        for part in parts
    ]
    matrices = {id(matrix): matrix.nbytes for part in parts for matrix in (part.a, part.b)}
    held = sum(matrices.values())
    cards = [read_adapter(each.name, each, card) for each in adapters]
    assert held == sum(each.bytes_on_rank(card, WHOLE, "float32") for each in cards) == runner.adapters.nbytes


def test_what_a_load_measures_is_without_adapters(adapted):
    folder, adapters, _ = adapted
    weights = []
    for beside in ([], adapters):
        runner = make_runner(folder, beside)
        weights.append(runner.load(lambda fraction, message: None).memory.weights)
        assert runner.adapters.nbytes == 0
        assert not any(linear.beside and linear.beside._parts for linear in runner.adapters._linears)
        runner.close()
    assert weights[0] == weights[1]


def test_an_adapter_comes_while_others_are_served_and_leaves_without_a_trace(adapted):
    """Requests with none get the same bits, before, while and after."""
    folder, adapters, oracles = adapted
    plain, runner = make_runner(folder), make_runner(folder, adapters)
    for each in (plain, runner):
        each.load(lambda fraction, message: None)
    asked = [request(number, PROMPT[: 20 + number], 6, logprobs=5) for number in range(3)]

    def answers(engine: ModelRunner) -> list[list[Logprobs]]:
        session = Session(engine)
        told = [answer.logprobs for answer in session.answer(asked)]
        session.end()
        return told

    expected = answers(plain)
    assert answers(runner) == expected
    for number in (2, 1):
        [nbytes] = read(runner, number)
        assert answers(runner) == expected
        session = Session(runner)
        [answer] = session.answer([with_adapter(request(9, PROMPT, 6), number)])
        session.end()
        assert answer.token_ids == greedy(oracles[number], PROMPT, answer.token_ids)
        assert nbytes == runner.adapters.nbytes > 0
        assert not adapt(runner, DropAdapter(number)).message
        assert runner.adapters.nbytes == 0
        assert not any(linear.beside and linear.beside._parts for linear in runner.adapters._linears)
        assert answers(runner) == expected
    plain.close()
    runner.close()


def test_a_sequence_whose_adapter_is_not_in_memory_gets_no_answer_of_the_base(adapted):
    folder, adapters, _ = adapted
    runner = make_runner(folder, adapters)
    runner.load(lambda fraction, message: None)
    with pytest.raises(RuntimeError, match="adapter 2"):
        Session(runner).answer([with_adapter(request(1, PROMPT, 4), 2)])
    runner.close()


def test_an_adapter_that_cannot_be_read_says_why_and_leaves_nothing(adapted, tmp_path):
    folder, adapters, oracles = adapted
    broken = tmp_path / "broken"
    shutil.copytree(adapters[0], broken)
    runner = make_runner(folder, [broken, adapters[1]])
    runner.load(lambda fraction, message: None)
    (broken / WEIGHTS).write_bytes(b"")
    report = adapt(runner, LoadAdapter(1))
    assert report.code == "model_load_failed"
    assert str(broken / WEIGHTS) in report.message
    assert (report.nbytes, runner.adapters.nbytes) == (0, 0)
    read(runner, 2)
    session = Session(runner)
    [answer] = session.answer([with_adapter(request(1, PROMPT, 6), 2)])
    session.end()
    assert answer.token_ids == greedy(oracles[2], PROMPT, answer.token_ids)
    runner.close()


def test_what_an_adapter_holds_is_given_back_with_it(tiny, tmp_path):
    folder, oracle = tiny("qwen3_tied")
    write_adapter(tmp_path, oracle, rank=4096)
    runner = make_runner(folder, [tmp_path])
    runner.load(lambda fraction, message: None)
    read(runner, 1)  # once before, so that threads have what they keep
    adapt(runner, DropAdapter(1))
    trim("cpu")
    before = held("cpu")
    [nbytes] = read(runner, 1)
    trim("cpu")  # or what its readers used counts as well
    took = held("cpu") - before
    adapt(runner, DropAdapter(1))
    left = held("cpu") - before
    assert nbytes > 20 << 20
    assert took < 1.2 * nbytes  # less, where this process has memory left of other tests
    assert left < 0.2 * nbytes
    runner.close()


@pytest.mark.parametrize(
    ("adapted", "counts"),
    [("qwen3_tied", (1, 1)), ("afmoe", (1, 1)), ("llama_one_key_head_sharded", (1, 3))],
    indirect=["adapted"],
)
def test_two_ranks_answer_as_one(adapted, counts):
    folder, adapters, oracles = adapted
    card = read_card(folder)
    cards = [read_adapter(each.name, each, card) for each in adapters]
    model = {"engine": "transformer", "dtype": "float32", "simulated": None}
    limits = {"kv_pages": 64, "max_step_tokens": 32}
    split = Split(counts)
    shared = {"world_size": 2, "parts": list(counts), "card": card, "adapters": cards}
    with Workers(**shared, **limits, **model) as workers:
        workers.ready()
        workers.submit(0, PROMPT[:30], 50)
        reports = [workers.adapt(LoadAdapter(number)) for number in (1, 2)]  # while the base is asked
        assert [[each.nbytes for each in ranks] for ranks in reports] == [
            [each.bytes_on_rank(card, share, "float32") for share in split.shares()] for each in cards
        ]
        for adapter in (1, 2):
            workers.submit(adapter, PROMPT[: 30 + adapter], 10, adapter=adapter)
        for adapter, answer in enumerate(workers.collect()):
            prompt = PROMPT[: 30 + adapter]
            assert answer.token_ids == greedy(oracles[adapter], prompt, answer.token_ids)
        assert workers.adapt(DropAdapter(1)) == [AdapterReport(1)] * 2
        workers.submit(3, PROMPT[:32], 10, adapter=2)
        assert workers.collect(3)[0].token_ids == workers.answers[2].token_ids


# --- what is refused ------------------------------------------------------------------------------------


def refused(folder, card) -> str:
    with pytest.raises(CortexError) as caught:
        read_adapter("broken", folder, card)
    assert caught.value.code == "model_load_failed"
    return caught.value.message


@pytest.fixture
def one(tiny, tmp_path):
    folder, oracle = tiny("qwen3_tied")
    write_adapter(tmp_path, oracle)
    return tmp_path, read_card(folder)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"bias": "all"}, "bias"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights: 'pissa'"),
        ({"init_lora_weights": "olora"}, "path_initial_model_for_weight_conversion"),
        ({"init_lora_weights": "pissa_niter_4"}, "pissa_niter_4"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"rank_pattern": {"q_proj": 8}}, "rank_pattern"),
        ({"peft_type": "IA3"}, "IA3"),
        ({"use_bdlora": {"nblocks": 2}}, "use_bdlora"),
        ({"r": 0}, "r"),
        ({"lora_alpha": "much"}, "lora_alpha"),
    ],
)
def test_what_would_change_numbers_is_refused_by_name(one, change, named):
    folder, card = one
    about = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(about | change))
    message = refused(folder, card)
    assert named in message
    assert str(folder / CONFIG) in message


def move(tensors, name):
    for part in "AB":
        old = f"base_model.model.model.layers.0.self_attn.q_proj.lora_{part}.weight"
        tensors[old.replace("layers.0.self_attn.q_proj", name)] = tensors.pop(old)


def broken(name, tensors):
    key = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    match name:
        case "half":
            del tensors[key]
        case "embedding":
            tensors["base_model.model.model.embed_tokens.lora_embedding_A"] = torch.zeros(4, 131)
        case "rank":
            tensors[key] = torch.zeros(5, 48)
        case "type":
            tensors[key] = tensors[key].to(torch.int8)
        case "layer":
            move(tensors, "layers.9.self_attn.q_proj")
        case "router":
            move(tensors, "layers.0.mlp.gate")
        case "experts":
            move(tensors, "layers.0.mlp.experts.1.up_proj")
        case "nothing":
            tensors.clear()


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("half", "lora_A"),
        ("embedding", "embed_tokens"),
        ("rank", "rank"),
        ("type", "I8"),
        ("layer", "another base"),
        ("router", "layers.0.mlp.gate.lora_A.weight' is beside a router"),
        ("experts", "up_proj.lora_A.weight' is beside one of many experts"),
        ("nothing", "no tensors"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(one, name, named):
    folder, card = one
    tensors = load_file(folder / WEIGHTS)
    broken(name, tensors)
    save_file(tensors, folder / WEIGHTS)
    assert named in refused(folder, card)


def test_an_adapter_for_another_base_is_refused(tiny, tmp_path):
    write_adapter(tmp_path, tiny("phi3").oracle, ("o_proj",))
    assert "another base" in refused(tmp_path, read_card(tiny("qwen3_tied").folder))


@pytest.mark.parametrize(
    ("said", "model", "folder", "doubted"),
    [
        ("Qwen/Qwen3-4B", "chat", "/models/qwen3-4b", False),
        ("Qwen/Qwen3-4B", "chat", "/cache/models--Qwen--Qwen3-4B/snapshots/1cfa9a72", False),
        ("/home/else/Qwen3-4B/", "Qwen/Qwen3-4B", "/models/one", False),
        ("Qwen/Qwen3-4B", "Qwen/Qwen3-4B-Instruct-2507", "/models/Qwen3-4B-Instruct-2507", True),
        ("unsloth/Qwen3-4B-bnb-4bit", "Qwen/Qwen3-4B", "/models/one", False),
        ("unsloth/Qwen3-4B-unsloth-bnb-4bit", "chat", "/models/Qwen3-4B", False),
        ("unsloth/Qwen3-8B-bnb-4bit", "Qwen/Qwen3-4B", "/models/Qwen3-4B", True),
        ("unsloth/Qwen3-4B-unsloth-bnb-4bit:main", "Qwen/Qwen3-4B", "/models/one", False),
        ("Qwen/Qwen3-4B", "Qwen3-4B-Q8_0", "/models", False),
        ("Qwen/Qwen3-4B", "chat", "/models/Qwen3-4B.Q4_K_M-00001-of-00002.gguf", False),
        ("Qwen/Qwen3-4B", "unsloth/Qwen3-4B-GGUF:UD-Q4_K_XL", "/models", False),
        ("Qwen/Qwen3-4B-GPTQ-Int4", "Qwen/Qwen3-4B-FP8", "/models", False),
        ("Qwen/Qwen3-4B", "chat", "/models/Qwen3-8B-Q8_0.gguf", True),
        ("Qwen/Qwen3-4B-Base", "Qwen/Qwen3-4B", "/models", True),
        ("Qwen/Qwen3-4B", "chat", "/models/Qwen3-4B-bnb-4bit", False),
        ("Qwen/Qwen3-4B", "Qwen/Qwen3-4B-GGUF:Q8_0", "/models/one", False),
        ("C:\\models\\Qwen3-4B", "Qwen/Qwen3-4B", "/models/one", False),
        ("C:\\models\\Qwen3-8B\\", "Qwen/Qwen3-4B", "/models/one", True),
        ("Qwen/Qwen3-4B", "chat", "/models/Qwen3-4B/another", True),
        ("/cache/models--Qwen--Qwen3-4B/snapshots/1cfa9a72", "Qwen/Qwen3-4B", "/models/one", False),
        ("", "chat", "/models/one", False),
        (None, "chat", "/models/one", False),
    ],
)
def test_an_adapter_whose_base_has_another_name_is_doubted_and_served(one, said, model, folder, doubted):
    where, card = one
    about = json.loads((where / CONFIG).read_text())
    (where / CONFIG).write_text(json.dumps(about | {"base_model_name_or_path": said}))
    if folder.endswith(".gguf"):
        folder, _, file = folder.rpartition("/")
        card = replace(card, files=[WeightFile(file, 1, 1)])
    reason = read_adapter("pirate", where, card).doubt(model, replace(card, folder=folder))
    assert (reason is not None) is doubted
    assert not doubted or f"pirate says that it was made for {said}" in reason


def test_a_file_that_is_missing_or_cut_is_named(one):
    folder, card = one
    whole = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(whole[:-1])
    assert WEIGHTS in refused(folder, card)
    (folder / WEIGHTS).unlink()
    assert refused(folder, card) == f"{folder / WEIGHTS}: is missing"
    (folder / "adapter_model.bin").touch()
    assert "is missing, and adapter_model.bin is a pickle, which can run code" in refused(folder, card)
    (folder / WEIGHTS).symlink_to("nowhere")
    assert "is a link to a file that is not there" in refused(folder, card)
