"""Models that see answer as those of transformers do, however their prompts are computed."""

from __future__ import annotations

import gc
import json

import msgspec
import pytest
import torch

from ipc.errors import CortexError
from ipc.worker_messages import ImageData, PlacedImage
from tests.workers import seeing
from tests.workers.engines import LIMITS, prompt_of
from tests.workers.guessing import Knows
from tests.workers.live_bytes import most_held
from tests.workers.seeing import (
    TOWER,
    agrees_on_prompt,
    oracle,
    picture,
    prompt,
    serve,
    show,
    tower_is_planned,
    tower_sees,
)
from tests.workers.thread_ranks import Ranks
from tests.workers.towers import TOWERS
from workers.checkpoints.reading import read_card
from workers.scheduling.drafts import DRAFTERS
from workers.scheduling.scheduler import Scheduler
from workers.step.engine import OutOfDeviceMemory
from workers.step.gallery import Gallery
from workers.step.positions import axes
from workers.vision import sight
from workers.vision.qwen3_vl import Qwen3VLTower
from workers.vision.sight import Sight

SHAPES = [(1, 1), (1, 7), (7, 1), (2, 3), (3, 2), (4, 4), (5, 2), (2, 9), (6, 6), (8, 1), (3, 11), (10, 10)]
TOKENS = 16


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("seeing")


@pytest.fixture(scope="module")
def model(folder):
    torch.set_num_threads(1)
    return seeing.write(folder)


@pytest.fixture(scope="module")
def engine(folder, model):
    with seeing.loaded(folder) as engine:
        yield engine


def expected(model, parts, count=TOKENS):
    return seeing.greedy(model, *prompt(*parts), count)


ONE = (5, picture(3, 2), 7)
TWO = (3, picture(2, 5, 1), 4, picture(6, 3, 2), 40)
ADJACENT = (picture(4, 2, 3), picture(1, 3, 4), 2)
LONG = (60, picture(7, 9, 5), 70, picture(2, 2, 6), 5)
PROMPTS = {"one": ONE, "two": TWO, "at the start, one beside the other": ADJACENT, "over pages": LONG}


@pytest.mark.parametrize("shape", SHAPES)
def test_an_image_of_any_shape_stands_where_transformers_has_it(model, shape):
    ids, images = prompt(4, picture(*shape), 6, picture(2, 2), 3)
    given = oracle(model, ids, images)
    places, _ = model.model.get_rope_index(
        given["input_ids"], given["mm_token_type_ids"], image_grid_thw=given["image_grid_thw"]
    )
    placed = [image for image, _ in images]
    assert [list(axis) for axis in axes(placed, 0, len(ids))] == places[:, 0].tolist()
    for start in range(0, len(ids), 3):
        part = axes(placed, start, min(start + 5, len(ids)))
        assert [list(axis) for axis in part] == places[:, 0, start : start + 5].tolist()


@pytest.mark.parametrize("shape", SHAPES)
def test_the_tower_sees_what_that_of_transformers_sees(folder, model, shape):
    image = picture(*shape)
    with torch.no_grad():
        seen = model.model.get_image_features(
            seeing.patches(image), torch.tensor([[1, shape[0] * seeing.MERGE, shape[1] * seeing.MERGE]])
        )
        found = tower_sees(folder, image)
    features = torch.cat([seen.pooler_output[0], *(each[0] for each in seen.deepstack_features)], dim=1)
    torch.testing.assert_close(found, features, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("parts", PROMPTS.values(), ids=PROMPTS)
def test_log_probabilities_are_those_of_transformers(engine, model, parts):
    ids, images = prompt(*parts)
    with torch.no_grad():
        logits = model(**oracle(model, ids, images)).logits[0]
    [answer], _ = serve(engine, [(parts, 1)], prompt_logprobs=0)
    agrees_on_prompt(answer, ids, logits)


@pytest.mark.parametrize("parts", PROMPTS.values(), ids=PROMPTS)
def test_answers_are_the_same_wherever_a_prompt_is_cut(engine, model, parts):
    want = expected(model, parts)
    for size in (1, 2, 3, 5, 8, 13) if parts is ONE else (7, 31, 32, 33, 130):
        [answer], _ = serve(engine, [(parts, TOKENS)], max_step_tokens=size)
        assert answer.token_ids == want, size


def test_answers_are_the_same_beside_others(engine, model):
    asked = [ONE, (30,), TWO, LONG, (9,), ADJACENT]
    answers, _ = serve(engine, [(parts, TOKENS) for parts in asked], later=2, max_step_tokens=24)
    for parts, answer in zip(asked, answers, strict=True):
        assert answer.token_ids == expected(model, parts)


def test_answers_are_the_same_after_a_preemption(engine, model):
    asked = [(30 + 7 * n, picture(4, 8, 8 + n), 20) for n in range(3)]
    answers, scheduler = serve(engine, [(parts, 60) for parts in asked], kv_pages=12)
    assert scheduler.statistics()["preemptions"]
    for parts, answer in zip(asked, answers, strict=True):
        assert answer.token_ids == expected(model, parts, 60)


def test_answers_are_the_same_where_tokens_are_guessed(engine, model, monkeypatch):
    asked = [ONE, TWO, LONG]
    told = {tuple(prompt(*parts)[0]): expected(model, parts, 40) for parts in asked}
    monkeypatch.setitem(DRAFTERS, "ngram", lambda: Knows(told))
    answers, scheduler = serve(engine, [(parts, 40) for parts in asked], speculation="ngram")
    assert [answer.token_ids for answer in answers] == list(told.values())
    assert scheduler.statistics()["accepted"] > 40


def test_a_second_turn_reuses_an_image_and_no_other_one(engine, model):
    first = (20, picture(8, 5, 9), 30)
    changed = (20, picture(8, 5, 10), 30)
    again = (*first, [1, 2, 3], picture(2, 2, 11), 5)
    answers, _ = serve(engine, [(first, 4), (changed, 4), (again, TOKENS)], later=30)
    assert [answer.cached_tokens for answer in answers] == [0, 0, 64]
    assert answers[1].token_ids == expected(model, changed, 4)
    assert answers[2].token_ids == expected(model, again)


@pytest.mark.parametrize("size", [2, 4])
def test_answers_are_the_same_on_several_ranks(folder, model, monkeypatch, size):
    """Of two ranks, where the second image is seen piece by piece."""
    ranks = Ranks(folder, size, monkeypatch)
    try:
        assert [rank.sight.tower is None for rank in ranks.ranks] == [False] + [True] * (size - 1)
        asked = [ONE, LONG] if size == 2 else [TWO]
        paced = (9, 1) if size == 2 else None
        answers, _ = serve(ranks, [(parts, TOKENS) for parts in asked], max_step_tokens=20, paced=paced)
    finally:
        ranks.close()
    assert [answer.token_ids for answer in answers] == [expected(model, parts) for parts in asked]


@pytest.mark.parametrize(("kind", "blind"), [("qwen3_vl", "Qwen3"), ("qwen3_5", "Qwen3_5")])
def test_text_alone_is_computed_as_without_eyes(tmp_path, kind, blind):
    """The same weights as a model without them give the same bits."""
    from safetensors.torch import load_file, save_file

    folder, without = tmp_path / "seeing", tmp_path / "blind"
    without.mkdir()
    seeing.write(folder, kind)
    weights = load_file(folder / "model.safetensors")
    prefix = "model.language_model."
    text = {
        name.replace(prefix, "model."): weight.contiguous()
        for name, weight in weights.items()
        if name.startswith((prefix, "lm_head"))
    }
    save_file(text, without / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())["text_config"]
    for key in ("mrope_section", "mrope_interleaved"):
        config["rope_parameters"].pop(key)
    (without / "config.json").write_text(json.dumps(config | {"architectures": [f"{blind}ForCausalLM"]}))
    (without / "tokenizer.json").write_text("{}")
    told = []
    for each in (folder, without):
        with seeing.loaded(each) as engine:
            told += serve(engine, [((90,), 8)], prompt_logprobs=3)[0]
    assert told[0].prompt_logprobs == told[1].prompt_logprobs
    assert told[0].token_ids == told[1].token_ids


def test_an_image_is_looked_at_once(engine, monkeypatch):
    looks = []
    look = Qwen3VLTower.look
    monkeypatch.setattr(
        Qwen3VLTower, "look", lambda tower, image: (looks.append(image), look(tower, image))[1]
    )
    image = picture(5, 5, 12)
    serve(engine, [((5, image, 60), 2), ((6, image, 3), 2)], max_step_tokens=7)
    assert len(looks) == 1


STREAM = [((9,), 90)]  # which an image is not to hold up


def test_a_look_is_one_piece_a_step_where_an_answer_would_wait(engine, model, monkeypatch):
    asked, looked = [*STREAM, (TWO, 5), (ONE, 5)], []
    look_on, images = Sight.look_on, [placed.digest for placed, _ in prompt(*TWO, *ONE)[1]]

    def noted(sight, order):
        if order is not None:
            looked.append(order.image.digest)
        return look_on(sight, order)

    monkeypatch.setattr(Sight, "look_on", noted)
    engine.sight._seen.clear()
    found, scheduler = serve(engine, asked, later=1, paced=(9, 1))
    assert list(dict.fromkeys(looked)) == images, "one after the other, in their order"
    assert all(looked.count(image) > 3 * TOWER["depth"] for image in images)
    for answer, (parts, count) in zip(found, asked, strict=True):
        assert answer.token_ids == expected(model, parts, count)
    assert scheduler._glance is None or scheduler._glance.is_over


def test_an_image_that_is_half_seen_is_seen_to_its_end_when_nobody_waits(engine, model):
    engine.sight._seen.clear()
    found, _ = serve(engine, [((9,), 6), (TWO, 5)], later=1, paced=(9, 1))
    assert found[1].token_ids == expected(model, TWO, 5)


def looking(engine):
    """A scheduler with an answer, and a prompt whose image is half seen."""
    engine.sight._seen.clear()
    scheduler = Scheduler(**LIMITS, caches=engine.groups)
    for number, parts in enumerate([(9,), ONE]):
        ids, images = prompt(*parts)
        scheduler.submit(seeing.submit(number, ids, images, 60), show(engine, images))
        for _ in range(3):
            step(engine, scheduler)
    assert engine.sight._begun is not None
    return scheduler


def step(engine, scheduler):
    scheduler.observe(engine.execute(scheduler.plan(9, 1)))


def test_what_is_half_seen_goes_with_the_request_that_shows_it(engine):
    scheduler = looking(engine)
    scheduler.abort(1)
    step(engine, scheduler)
    gc.collect()
    assert engine.sight._begun is None
    assert not engine.sight.gallery._there
    engine.empty()


def test_the_pixels_of_what_is_half_seen_go_with_the_last_request_of_all(engine):
    scheduler = looking(engine)
    for number in (0, 1):
        scheduler.abort(number)
    assert scheduler.plan(9, 1) is None
    gc.collect()
    assert not engine.sight.gallery._there
    engine.empty()


def test_who_is_preempted_while_it_looks_looks_again(engine, model):
    scheduler = looking(engine)
    scheduler._preempt(scheduler.prefilling[0])
    told = {0: [], 1: []}
    while scheduler.statistics()["running"] or scheduler.statistics()["waiting"]:
        step(engine, scheduler)
        for report in scheduler.take_reports():
            told[report.request_id] += report.token_ids
    assert told[1] == expected(model, ONE, 60)
    engine.empty()


def test_without_memory_for_a_look_who_looks_waits_and_is_refused_the_second_time(engine, monkeypatch):
    scheduler = looking(engine)
    look_on = Sight.look_on

    def without_room(sight, order):
        if order is not None and order.work:
            raise torch.OutOfMemoryError("out of memory")
        return look_on(sight, order)

    monkeypatch.setattr(Sight, "look_on", without_room)
    scheduler.take_reports()
    for failed in ([], [1]):
        with pytest.raises(OutOfDeviceMemory):
            step(engine, scheduler)
        assert engine.sight._begun is None, "what it kept is not in the way of the next step"
        scheduler.step_failed("too little")
        reports = scheduler.take_reports()
        assert [report.request_id for report in reports if report.finish] == failed
    assert scheduler.statistics()["running"] == 1
    step(engine, scheduler)
    engine.empty()


def test_what_was_seen_is_forgotten_for_what_is_new(engine, monkeypatch):
    kept = engine.sight
    monkeypatch.setattr(kept, "_seen", type(kept._seen)())
    one = 25 * 3 * 48 * 4
    monkeypatch.setattr(kept, "_left", 2 * one)
    serve(engine, [((3, picture(5, 5, seed), 3), 1) for seed in range(5)])
    assert len(kept._seen) == 2
    assert kept._left == 0


def test_what_is_too_much_to_remember_is_let_go_before_the_next_look(engine, monkeypatch):
    kept, counts, look = engine.sight, [], Qwen3VLTower.look
    monkeypatch.setattr(kept, "_seen", type(kept._seen)())
    monkeypatch.setattr(kept, "_left", 1)
    monkeypatch.setattr(
        Qwen3VLTower, "look", lambda tower, image: (counts.append(len(kept._seen)), look(tower, image))[1]
    )
    serve(engine, [((3, picture(5, 5, seed), 3), 1) for seed in range(2)], later=2, max_step_tokens=16)
    assert counts == [0, 0]
    assert len(kept._seen) == 1


def test_pixels_stay_for_one_who_shows_them_when_another_who_does_has_gone():
    placed = PlacedImage(b"digest", 0, 1, 1)
    gallery = Gallery()
    kept = []
    for _ in range(2):
        gallery.receive(ImageData(placed.digest, 0, b"pixels"))
        kept.append(gallery.take([placed]))
    assert kept[0][0] is kept[1][0]  # and not twice in memory
    kept.pop()
    gc.collect()
    assert gallery[placed.digest] == b"pixels"
    kept.pop()
    with pytest.raises(KeyError):
        gallery.take([placed])


def test_pixels_go_with_the_last_who_shows_them(engine):
    serve(engine, [(ONE, 2), (TWO, 2)])
    gc.collect()
    gallery = engine.sight.gallery
    assert not gallery._coming
    assert not gallery._there


def test_a_prompt_with_an_image_keeps_its_tokens(engine):
    ids, images = prompt(*ONE)
    assert prompt_of(seeing.submit(1, ids, images, 1)) == ids


@pytest.mark.parametrize("kind", [kind for kind in seeing.KINDS if kind != "qwen3_vl"])
def test_other_families_see_as_well(tmp_path, kind, monkeypatch):
    """On one rank and on two."""
    model = seeing.write(tmp_path, kind)
    with seeing.loaded(tmp_path) as engine:
        ids, images = prompt(*TWO)
        with torch.no_grad():
            logits = model(**oracle(model, ids, images)).logits[0]
        [whole], _ = serve(engine, [(TWO, 1)], prompt_logprobs=0)
        asked = [(TWO, TOKENS), (ONE, TOKENS)]
        [chunked, beside], _ = serve(engine, asked, max_step_tokens=13)
    ranks = Ranks(tmp_path, 2, monkeypatch)
    try:
        shared, _ = serve(ranks, asked, max_step_tokens=20)
    finally:
        ranks.close()
    agrees_on_prompt(whole, ids, logits)
    assert chunked.token_ids == expected(model, TWO)
    assert beside.token_ids == expected(model, ONE)
    assert [answer.token_ids for answer in shared] == [chunked.token_ids, beside.token_ids]


AGAIN = (*TWO, [1, 2, 3], picture(2, 2, 11), 5)  # the next turn
BFLOAT16 = 0.3  # of a log-probability: 0.08 and 0.17 are measured, where float32 has less than 0.0001


@pytest.fixture(scope="module", params=[("qwen3_vl", False), ("qwen3_vl", True), ("qwen3_5", True)], ids=str)
def narrow(request, tmp_path_factory):
    """An engine in bfloat16, whether it is exact, and what transformers has in float32."""
    kind, exact = request.param
    folder = tmp_path_factory.mktemp("narrow")
    model = seeing.write(folder, kind)
    with seeing.loaded(folder, dtype="bfloat16", exact=exact, max_step_tokens=128) as engine:
        yield engine, exact, model


def test_in_bfloat16_an_image_is_the_same_in_company_in_pieces_and_cached(narrow):
    """To the last bit where that is asked for, and to what is measured where it is not."""
    engine, exact, model = narrow
    asked = [TWO, ONE, (30,)]
    wanted = {"logprobs": 2, "prompt_logprobs": 0}

    def alone(parts, **options):
        return serve(engine, [(parts, 5)], max_step_tokens=128, **options)[0][0]

    whole = [alone(parts, **wanted) for parts in asked]
    company, _ = serve(engine, [(parts, 5) for parts in asked], later=2, max_step_tokens=128, **wanted)
    pieces, _ = serve(engine, [(parts, 5) for parts in asked], max_step_tokens=13, **wanted)
    for answers in (company, pieces):
        for answer, one in zip(answers, whole, strict=True):
            close(answer, one, exact)
    [_, cached], _ = serve(engine, [(TWO, 2), (AGAIN, 5)], later=9, max_step_tokens=128, logprobs=2)
    assert cached.cached_tokens >= 32  # more than what stands before the first image
    close(cached, alone(AGAIN, logprobs=2), exact)
    ids, images = prompt(*TWO)
    with torch.no_grad():
        logits = model(**oracle(model, ids, images)).logits[0]
    agrees_on_prompt(whole[0], ids, logits, BFLOAT16)


def test_so_is_what_is_guessed_of_the_answer_to_one(narrow, monkeypatch):
    engine, exact, _ = narrow
    asked = [(parts, 40) for parts in (TWO, ONE)]
    plain, _ = serve(engine, asked, max_step_tokens=128, logprobs=2)
    told = {
        tuple(prompt(*parts)[0]): answer.token_ids for (parts, _), answer in zip(asked, plain, strict=True)
    }
    monkeypatch.setitem(DRAFTERS, "ngram", lambda: Knows(told))
    found, scheduler = serve(engine, asked, max_step_tokens=128, logprobs=2, speculation="ngram")
    for answer, one in zip(found, plain, strict=True):
        close(answer, one, exact)
    assert scheduler.statistics()["accepted"] > 10


def test_so_is_one_that_is_seen_piece_by_piece_beside_others(narrow):
    engine, exact, _ = narrow
    asked = [((30,), 70), (TWO, 5), (ONE, 5), ((9,), 5)]
    plain = [serve(engine, [each], max_step_tokens=128, logprobs=2)[0][0] for each in asked]
    engine.sight._seen.clear()
    found, _ = serve(engine, asked, later=2, paced=(9, 1), max_step_tokens=128, logprobs=2)
    for answer, one in zip(found, plain, strict=True):
        close(answer, one, exact)


def close(answer, other, exact):
    """See that two answers are the same, as far as they are computed alike."""
    if exact:
        assert (answer.token_ids, answer.logprobs) == (other.token_ids, other.logprobs)
        assert answer.prompt_logprobs == other.prompt_logprobs
        return
    for one, two in zip(answer.prompt_logprobs, other.prompt_logprobs, strict=True):
        assert abs(one.logprob - two.logprob) < BFLOAT16
    for one, two, *tokens in zip(
        answer.logprobs, other.logprobs, answer.token_ids, other.token_ids, strict=True
    ):
        assert abs(one.logprob - two.logprob) < BFLOAT16
        if tokens[0] != tokens[1]:  # as near to each other as that; what follows is another text
            break


def changed(folder, tmp_path, **changes):
    config = json.loads((folder / "config.json").read_text())
    for key, value in changes.items():
        part = config if key in config else config["vision_config"]
        if key in config["text_config"]:
            part = config["text_config"]
        part[key] = value
    for file in folder.iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"in_channels": 1}, "in_channels 1"),
        ({"num_heads": 3}, "num_heads 3"),
        ({"num_position_embeddings": 35}, "num_position_embeddings 35 is no square"),
        ({"out_hidden_size": 32}, "out_hidden_size 32"),
        ({"image_token_id": 1000}, "image_token_id 1000"),
        ({"deepstack_visual_indexes": [0, 3]}, "deepstack_visual_indexes"),
        ({"depth": 4}, "visual.blocks.3"),
        ({"patch_size": 8}, "patch_size is 8, and for its images 4"),
        ({"rope_parameters": {"rope_type": "default", "mrope_section": [4, 2, 1]}}, "mrope_section"),
        ({"rope_parameters": {"rope_type": "default", "mrope_section": "all"}}, "mrope_section"),
    ],
)
def test_a_tower_that_cannot_be_is_refused_by_what_is_wrong(folder, model, tmp_path, changes, reason):
    with pytest.raises(CortexError, match=reason):
        read_card(changed(folder, tmp_path, **changes))


@pytest.mark.parametrize("step", ["do_resize", "do_rescale", "do_normalize"])
def test_images_that_are_made_ready_otherwise_are_refused(folder, model, tmp_path, step):
    other = changed(folder, tmp_path)
    (other / "processor_config.json").write_text(json.dumps({"image_processor": {step: False}}))
    with pytest.raises(CortexError, match=f"processor_config.json: {step} false"):
        read_card(other)


@pytest.mark.parametrize("quantization", [None, "q8"])
@pytest.mark.parametrize("size", [1, 2])
def test_planned_bytes_have_the_tower_on_the_first_rank(folder, model, size, quantization):
    tower_is_planned(folder, size, quantization)


@pytest.mark.parametrize("name", TOWERS)
def test_a_plan_is_what_a_look_at_an_image_takes(name):
    wide, *size = TOWERS[name]
    narrow = {"hidden_size": 288, "intermediate_size": 1076, "num_heads": 4, "depth": min(wide.depth, 1)}
    vision = msgspec.structs.replace(wide, **narrow)
    tower = sight.tower(vision, torch.bfloat16, torch.device("cpu"))
    planned = sum(vision.look_bytes(2, 16_384, "cpu"))
    assert 0.88 * planned < most_held(tower, size) <= planned


@pytest.mark.parametrize("name", TOWERS)
def test_the_work_of_a_look_is_what_is_done_in_it(name):
    wide = TOWERS[name].vision
    vision = msgspec.structs.replace(wide, hidden_size=64, num_heads=4, table_side=8)
    rows, columns = 2, 2 if vision.siglip is not None else 3
    tower = sight.tower(vision, torch.float32, torch.device("cpu"))
    image = torch.zeros(rows * vision.side, columns * vision.side, 3, dtype=torch.uint8)
    assert sum(tower.look(image)) == vision.look_work(rows * columns)
    costly = msgspec.structs.replace(vision, token_work=vision.look_work(6) // 10)
    assert costly.look_cost(6) == 10


def test_positions_of_text_are_its_tokens():
    assert [list(axis) for axis in axes([], 5, 9)] == [[5, 6, 7, 8]] * 3
    image = PlacedImage(b"", 2, 2, 3)
    assert [list(axis) for axis in axes([image], 9, 11)] == [[6, 7]] * 3


def test_experts_stored_as_in_the_published_files_are_read_as_well(tmp_path):
    """There the rows of what all experts have in one tensor are inputs."""
    from safetensors.torch import load_file, save_file

    model = seeing.write(tmp_path, "qwen3_vl_moe")
    weights = load_file(tmp_path / "model.safetensors")
    for name in [name for name in weights if ".experts." in name]:
        weights[name] = weights[name].transpose(1, 2).contiguous()
    save_file(weights, tmp_path / "model.safetensors")
    with seeing.loaded(tmp_path) as engine:
        [answer], _ = serve(engine, [(ONE, TOKENS)])
    assert answer.token_ids == expected(model, ONE)
