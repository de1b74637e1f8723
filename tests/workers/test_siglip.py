"""Gemma 3 sees as that of transformers does, however its prompts are computed."""

from __future__ import annotations

import json
from unittest.mock import Mock

import msgspec
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import Gemma3Config, Gemma3ForConditionalGeneration
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

from ipc.errors import Code, CortexError
from ipc.worker_messages import PlacedImage
from neuron.config import ModelSettings
from neuron.description import described
from neuron.images import sizing
from tests.neuron.pictures import encoded, noise
from tests.workers import seeing
from tests.workers.oracle import fill
from tests.workers.seeing import (
    END,
    IMAGE,
    START,
    agrees,
    agrees_on_prompt,
    asked_of,
    changed,
    serve,
    tower_is_planned,
    tower_sees,
    with_tower,
    without_tower,
)
from tests.workers.thread_ranks import Ranks
from tests.workers.tiny_models import SIZES
from workers.checkpoints.reading import read_card

SIDE = 6  # tokens: more of them than a page has, and than a window
PIXELS = SIDE * seeing.SIDE
SEEN = SIDE**2
LINES, MORE_LINES = 10, 11  # tokens of two and of three lines' ends
TOKENS = 10
STEP = SEEN + 16  # tokens: the least that a step may have
TEXT = SIZES | {"query_pre_attn_scalar": 20, "sliding_window": 24, "sliding_window_pattern": 2}
EYE = {
    "model_type": "siglip_vision_model",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "patch_size": seeing.PATCH,
    "image_size": PIXELS,
    "vision_use_head": False,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("siglip")


@pytest.fixture(scope="module")
def model(folder):
    torch.set_num_threads(1)
    torch.manual_seed(1)
    config = Gemma3Config(
        text_config=TEXT,
        vision_config=EYE,
        mm_tokens_per_image=SEEN,
        boi_token_index=START,
        eoi_token_index=END,
        image_token_index=IMAGE,
    )
    model = Gemma3ForConditionalGeneration(config).eval()
    fill(model, std=0.2)
    model.save_pretrained(folder)
    words = json.loads(seeing.tokenizer().to_str())
    for number, token in ((1, LINES), (2, MORE_LINES)):
        del words["model"]["vocab"][chr(token)]
        words["model"]["vocab"]["\n" + number * "\n"] = token
    (folder / "tokenizer.json").write_text(json.dumps(words))
    template = seeing.TEMPLATE.replace("<start><image><end>", "<start>")
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    settings = {"size": {"height": PIXELS, "width": PIXELS}, "resample": 2, "do_pan_and_scan": None}
    half = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings | half))
    return model


@pytest.fixture(scope="module")
def engine(folder, model):
    with seeing.loaded(folder) as engine:
        yield engine


def picture(seed=0):
    return seeing.picture(SIDE, SIDE, seed)


def prompt(*parts):
    """As `seeing.prompt`, with images as Gemma's processor lays them out."""
    ids, images = [], []
    for part in parts:
        if not isinstance(part, torch.Tensor):
            ids += seeing.prompt(part)[0]
            continue
        images.append(
            (PlacedImage(seeing.digest(part), len(ids) + 2, SIDE, SIDE, together=True, in_line=True), part)
        )
        ids += [LINES, START, *[IMAGE] * SEEN, END, LINES]
    return ids, images


def normal(image):  # [3, PIXELS, PIXELS]
    return ((image.float() / 255 - 0.5) / 0.5).permute(2, 0, 1)


def oracle(ids, images):
    """What transformers is given for such a prompt."""
    given = {"input_ids": torch.tensor([ids])}
    given["token_type_ids"] = (given["input_ids"] == IMAGE).long()
    if images:
        given["pixel_values"] = torch.stack([normal(image) for _, image in images])
    return given


@torch.no_grad()
def logits_of(model, ids, images):
    return model(**oracle(ids, images), use_cache=False).logits[0]


def same(answer, model, parts, count=TOKENS):
    ids, images = prompt(*parts)
    assert len(answer.token_ids) == count
    agrees(answer, logits_of(model, ids + answer.token_ids[:-1], images)[len(ids) - 1 :])


ONE = (5, picture(), 7)
TWO = (3, picture(1), 4, picture(2), 40)
FIRST = (picture(3), picture(4), [1])
LONG = (40, picture(5), 30, picture(6), 5)
PROMPTS = {"one": ONE, "two": TWO, "at the start, one behind the other": FIRST, "over pages": LONG}


def answers(engine, asked, count=TOKENS, **settings):
    settings = {"together": SEEN, "logprobs": 0} | settings
    return serve(engine, [(parts, count) for parts in asked], laid_out=prompt, **settings)[0]


def test_the_tower_sees_what_that_of_transformers_sees(folder, model):
    image = picture(7)
    with torch.no_grad():
        seen = model.model.get_image_features(normal(image)[None])
        torch.testing.assert_close(tower_sees(folder, image), seen.pooler_output[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("parts", PROMPTS.values(), ids=PROMPTS)
def test_log_probabilities_are_those_of_transformers(engine, model, parts):
    ids, images = prompt(*parts)
    [answer] = answers(engine, [parts], 1, prompt_logprobs=0, max_step_tokens=200)
    agrees_on_prompt(answer, ids, logits_of(model, ids, images))


@pytest.mark.parametrize("parts", PROMPTS.values(), ids=PROMPTS)
def test_answers_are_the_same_wherever_a_prompt_is_cut(engine, model, parts):
    for size in (STEP, STEP + 1, 61, 90):
        [answer] = answers(engine, [parts], max_step_tokens=size)
        same(answer, model, parts)


def test_answers_are_the_same_beside_others(engine, model):
    asked = [ONE, (30,), TWO, FIRST]
    for parts, answer in zip(asked, answers(engine, asked, later=2, max_step_tokens=STEP), strict=True):
        same(answer, model, parts)


@pytest.mark.parametrize("paced", [(5, None), (5, 1)])
def test_a_prompt_that_rides_beside_answers_waits_for_room_for_a_whole_image(engine, model, paced):
    """Where streams leave 5 tokens of a step to prompts, an image has as many as it needs."""
    asked = [((30,), 60), (ONE, 5), (FIRST, 5)]
    found, _ = serve(engine, asked, laid_out=prompt, later=3, paced=paced, together=SEEN, logprobs=0)
    for answer, each in zip(found, asked, strict=True):
        same(answer, model, *each)


def test_a_second_turn_reuses_what_of_an_image_is_cached_and_no_other_one(engine, model):
    """The first page that is not cached begins inside of the image."""
    first, changed = (20, picture(9), 12), (20, picture(10), 12)
    again = (20, picture(9), [1, 2, 3], picture(11), 5)
    found = answers(engine, [first, changed, again], 4, later=30)
    assert [answer.cached_tokens for answer in found] == [0, 0, 32]
    for answer, parts in zip(found, (first, changed, again), strict=True):
        same(answer, model, parts, 4)


def test_answers_are_the_same_after_a_preemption(engine, model):
    asked = [(30 + 7 * n, picture(12 + n), 20) for n in range(3)]
    found, scheduler = serve(
        engine, [(parts, 40) for parts in asked], kv_pages=14, laid_out=prompt, together=SEEN, logprobs=0
    )
    assert scheduler.statistics()["preemptions"]
    for parts, answer in zip(asked, found, strict=True):
        same(answer, model, parts, 40)


def test_the_smallest_pool_has_room_for_what_it_takes(engine, model):
    """A pool of one page less refuses this prompt."""
    [answer] = answers(engine, [LONG], 4, kv_pages=9, max_step_tokens=STEP)
    same(answer, model, LONG, 4)


def test_answers_are_the_same_on_two_ranks(folder, model, monkeypatch):
    ranks = Ranks(folder, 2, monkeypatch)
    try:
        found = answers(ranks, [ONE, TWO], max_step_tokens=60)
    finally:
        ranks.close()
    for answer, parts in zip(found, (ONE, TWO), strict=True):
        same(answer, model, parts)


def test_with_exact_an_image_is_the_same_in_company_and_in_pieces_to_the_last_bit(folder, model):
    asked, wanted = [TWO, ONE, (30,)], {"logprobs": 2, "prompt_logprobs": 0}
    with seeing.loaded(folder, dtype="bfloat16", exact=True, max_step_tokens=128) as engine:
        whole = [answers(engine, [parts], 4, max_step_tokens=128, **wanted)[0] for parts in asked]
        assert answers(engine, asked, 4, later=2, max_step_tokens=128, **wanted) == whole
        assert answers(engine, asked, 4, max_step_tokens=STEP, **wanted) == whole


# prefixes of the language model, the tower and the projector
NAMES = {
    "before transformers 5": (
        "language_model.model.",
        "vision_tower.vision_model.",
        "multi_modal_projector.",
    ),
    "since": ("model.language_model.", "model.vision_tower.vision_model.", "model.multi_modal_projector."),
    "shorter": ("model.language_model.", "model.vision_tower.", "model.multi_modal_projector."),
}


@pytest.mark.parametrize("prefixes", NAMES.values(), ids=NAMES)
def test_files_with_other_names_are_the_same_model(folder, model, tmp_path, prefixes):
    renamed = {}
    for name, weight in load_file(folder / "model.safetensors").items():
        bare = name.removeprefix("model.").replace("vision_tower.vision_model.", "vision_tower.")
        for new, old in zip(
            prefixes, ("language_model.model.", "vision_tower.", "multi_modal_projector."), strict=True
        ):
            if bare.startswith(old):
                renamed[new + bare.removeprefix(old)] = weight
    save_file(renamed, tmp_path / "model.safetensors")
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).symlink_to(folder / name)
    card, other = read_card(tmp_path), read_card(folder)
    assert card.tensors.keys() == other.tensors.keys()
    assert not any("not used" in note for note in card.notes + other.notes)
    assert torch.equal(tower_sees(tmp_path, picture()), tower_sees(folder, picture()))


def test_text_alone_is_computed_as_without_eyes(engine, folder, model, tmp_path):
    """The same files without the tower give the same bits, and say that they are blind."""
    without_tower(folder, tmp_path)
    assert any("its files have no tower" in note for note in read_card(tmp_path).notes)
    config = json.loads((folder / "config.json").read_text())
    del config["vision_config"]
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert any("its files have no tower" in note for note in read_card(tmp_path).notes)
    with seeing.loaded(tmp_path) as blind:
        told = [answers(each, [(90,)], 8, prompt_logprobs=3)[0] for each in (engine, blind)]
    assert (told[0].token_ids, told[0].prompt_logprobs) == (told[1].token_ids, told[1].prompt_logprobs)


@pytest.mark.parametrize("step", ["do_resize", "do_rescale", "do_normalize"])
def test_images_that_are_made_ready_otherwise_are_refused(folder, model, tmp_path, step):
    other = changed(folder, tmp_path, "preprocessor_config.json", **{step: False})
    with pytest.raises(CortexError, match=step):
        read_card(other)


CROPS = {
    "do_pan_and_scan": True,
    "pan_and_scan_min_crop_size": 20,
    "pan_and_scan_max_num_crops": 4,
    "pan_and_scan_min_ratio_to_activate": 1.2,
}
LONG_IMAGES = [(50, 100), (100, 50), (40, 48), (50, 59), (21, 300), (301, 45), (19, 90), (30, 41), (64, 64)]


@pytest.fixture(scope="module")
def cropping(folder, model, tmp_path_factory):
    return changed(folder, tmp_path_factory.mktemp("cropping"), "preprocessor_config.json", **CROPS)


@pytest.mark.parametrize("shape", LONG_IMAGES)
def test_crops_are_those_of_transformers(cropping, shape):
    image = noise(*shape)
    made = asked_of(cropping, "a", encoded(image), "b")
    processor = Gemma3ImageProcessorPil.from_pretrained(cropping)
    given = processor(Image.fromarray(image), return_tensors="pt")["pixel_values"]
    assert len(made.images) == len(given)
    for seen, expected in zip(made.images, given, strict=True):
        ours = torch.frombuffer(bytearray(seen.pixels), dtype=torch.uint8).view(PIXELS, PIXELS, 3)
        torch.testing.assert_close(normal(ours), expected, atol=1e-5, rtol=0)


def test_a_prompt_says_which_are_crops(cropping):
    made = asked_of(cropping, "a", encoded(noise(40, 90)), "b", encoded(noise(30, 30)))
    written = {LINES: "\n\n", START: "<start>", IMAGE: "", END: ""}
    words = "".join(written.get(token, chr(token)) for token in made.token_ids())
    mark = "\n\n<start>\n\n"
    said = f"Here is the original image {mark} and here are some crops to help you see better {mark} {mark}"
    assert words == f"u:a{said.replace('y', '?')}b{mark};a:"  # which has no token
    assert made.token_ids().count(IMAGE) == 4 * SEEN
    with pytest.raises(CortexError, match="2 images, and 3 times"):
        asked_of(cropping, "<start>", encoded(noise(40, 90)), encoded(noise(30, 30)))


def test_an_image_is_opened_once_for_each_view_of_it(cropping, monkeypatch):
    opened = Mock(wraps=sizing.opened)
    monkeypatch.setattr(sizing, "opened", opened)
    made = asked_of(cropping, "a", encoded(noise(45, 301)))
    assert opened.call_count == len(made.images) == 5


def test_crops_without_their_sizes_are_refused(folder, model, tmp_path):
    other = changed(folder, tmp_path, "preprocessor_config.json", do_pan_and_scan=True)
    with pytest.raises(CortexError, match="pan_and_scan_min_crop_size is missing"):
        read_card(other)


@pytest.mark.parametrize("first", [{"image_mean": [0.25] * 3}, None])
def test_of_two_files_that_say_how_images_are_made_ready_the_one_that_transformers_reads_counts(
    folder, model, tmp_path, first
):
    changed(folder, tmp_path)
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": first}))
    mean = Gemma3ImageProcessorPil.from_pretrained(tmp_path).image_mean
    assert read_card(tmp_path).vision.mean == tuple(mean)


def test_a_tower_need_not_say_what_it_is(folder, model, tmp_path):
    tower = json.loads((folder / "config.json").read_text())["vision_config"]
    del tower["model_type"]
    assert read_card(changed(folder, tmp_path, vision_config=tower)).vision == read_card(folder).vision


@pytest.mark.parametrize("key", ["boi_token_index", "eoi_token_index"])
def test_without_the_tokens_around_an_image_the_language_model_is_served_alone(folder, model, tmp_path, key):
    unknown = 126  # to the tokenizer; the model has it
    blind = changed(folder, tmp_path, **{key: unknown})
    assert any(f"tokenizer.json has no token {unknown}, its {key}" in note for note in read_card(blind).notes)
    assert asked_of(blind, "look").token_ids() == asked_of(folder, "look").token_ids()


@pytest.mark.parametrize("shape", [(8, 8), (48, 48), (7, 9), (60, 200), (3, 100), (1, 300)])
def test_pixels_and_tokens_are_those_of_transformers(folder, model, shape):
    image = noise(*shape)
    made = asked_of(folder, "a", encoded(image), "b")
    [seen] = made.images
    given = Gemma3ImageProcessorPil.from_pretrained(folder)(Image.fromarray(image), return_tensors="pt")
    ours = torch.frombuffer(bytearray(seen.pixels), dtype=torch.uint8).view(PIXELS, PIXELS, 3)
    torch.testing.assert_close(normal(ours), given["pixel_values"][0], atol=1e-5, rtol=0)
    start, around = [ord("u"), ord(":"), ord("a")], [ord("b"), ord(";"), ord("a"), ord(":")]
    ids, [(placed, _)] = prompt(start, ours, around)
    assert made.token_ids() == ids
    assert msgspec.structs.replace(seen.placed, digest=b"", cost=0) == msgspec.structs.replace(
        placed, digest=b""
    )


def test_line_ends_around_an_image_are_read_with_those_of_the_text(folder, model):
    ids = asked_of(folder, "a\n", encoded(noise(8, 8)), "\n\nb").token_ids()
    assert ids[2:5] == [ord("a"), MORE_LINES, START]
    assert ids[5 + SEEN] == END


@pytest.mark.parametrize("words", ["<start>", "<image>"])
def test_marks_of_images_in_a_text_are_refused(folder, model, words):
    with pytest.raises(CortexError, match=r"messages\[0\]") as refused:
        asked_of(folder, f"look {words}", encoded(noise(8, 8)))
    assert refused.value.code == Code.BAD_REQUEST


def test_a_step_has_room_for_an_image_beside_answers_whatever_was_asked_for(folder, model):
    settings = ModelSettings(id="m", path=str(folder), max_step_tokens=8, max_sequences=4)
    assert described(settings, read_card(folder)).step_tokens(settings, "cpu") == STEP


@pytest.mark.parametrize("size", [1, 2])
def test_planned_bytes_have_the_tower_on_the_first_rank(folder, model, size):
    tower_is_planned(folder, size)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model_type": "clip_vision_model"}, "model_type clip_vision_model"),
        ({"num_channels": 1}, "num_channels 1"),
        ({"num_attention_heads": 3}, "num_attention_heads 3"),
        ({"hidden_act": "relu"}, "hidden_act relu"),
        ({"patch_size": 5}, "patch_size 5"),
        ({"image_size": 40}, "mm_tokens_per_image 36"),
        ({"image_size": 96}, "48 x 48 pixels, and not 96"),
        ({"num_hidden_layers": 3}, r"visual\.encoder\.layers\.2"),
    ],
)
def test_a_tower_that_cannot_be_is_refused_by_what_is_wrong(folder, model, tmp_path, changes, reason):
    with pytest.raises(CortexError, match=reason):
        read_card(with_tower(folder, tmp_path, **changes))
