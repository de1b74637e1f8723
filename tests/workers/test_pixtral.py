"""Mistral 3 sees as that of transformers does, however its prompts are computed."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image
from transformers import Mistral3Config, Mistral3ForConditionalGeneration
from transformers.models.pixtral.image_processing_pil_pixtral import PixtralImageProcessorPil

from ipc.errors import CortexError
from ipc.worker_messages import PlacedImage
from neuron.images import sizing
from tests.neuron.pictures import encoded, noise
from tests.workers import seeing
from tests.workers.oracle import fill
from tests.workers.seeing import (
    IMAGE,
    agrees_on_prompt,
    asked_of,
    picture,
    serve,
    tower_sees,
    with_tower,
    without_tower,
)
from tests.workers.thread_ranks import Ranks
from tests.workers.tiny_models import SIZES
from workers.checkpoints.reading import read_card

LINE_END, IMAGE_END = 121, 122
LONGEST = 60  # pixels: no multiple of a token's 8
TOKENS = 12
TEXT = SIZES | {"model_type": "mistral", "sliding_window": None, "tie_word_embeddings": False}
EYE = {
    "model_type": "pixtral",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "patch_size": seeing.PATCH,
    "image_size": LONGEST,
}
MEAN, DEVIATION = [0.48, 0.46, 0.41], [0.27, 0.26, 0.28]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("pixtral")


@pytest.fixture(scope="module")
def model(folder):
    torch.set_num_threads(1)
    torch.manual_seed(1)
    config = Mistral3Config(
        text_config=TEXT,
        vision_config=EYE,
        image_token_index=IMAGE,
        spatial_merge_size=seeing.MERGE,
        tie_word_embeddings=False,
        multimodal_projector_bias=True,
    )
    model = Mistral3ForConditionalGeneration(config).eval()
    fill(model, std=0.2)
    with torch.no_grad():
        model.lm_head.weight[IMAGE] = 0  # no answer has it, of which transformers would want the image
    model.save_pretrained(folder)
    words = seeing.tokenizer().to_str()
    for old, new in (("<image>", "[IMG]"), ("<start>", "[IMG_BREAK]"), ("<end>", "[IMG_END]")):
        words = words.replace(old, new)
    (folder / "tokenizer.json").write_text(words)
    template = seeing.TEMPLATE.replace("<start><image><end>", "[IMG]")
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    size = {"size": {"longest_edge": LONGEST}, "patch_size": {"height": seeing.PATCH, "width": seeing.PATCH}}
    colours = {"image_mean": MEAN, "image_std": DEVIATION}
    (folder / "preprocessor_config.json").write_text(json.dumps(size | colours))
    return model


@pytest.fixture(scope="module")
def engine(folder, model):
    with seeing.loaded(folder) as engine:
        yield engine


def prompt(*parts):
    """As `seeing.prompt`: behind each row of an image there is a token, and another behind the last."""
    ids, images = [], []
    for part in parts:
        if not isinstance(part, torch.Tensor):
            ids += seeing.prompt(part)[0]
            continue
        rows, columns = (size // seeing.SIDE for size in part.shape[:2])
        images.append((PlacedImage(seeing.digest(part), len(ids), rows, columns, gap=1, in_line=True), part))
        ids += ([IMAGE] * columns + [LINE_END]) * rows
        ids[-1] = IMAGE_END
    return ids, images


def oracle(ids, images):
    """What transformers is given for such a prompt."""
    given = {"input_ids": torch.tensor([ids])}
    if images:
        sizes = [image.shape[:2] for _, image in images]
        pixels = torch.zeros(len(images), 3, *(max(size[axis] for size in sizes) for axis in (0, 1)))
        for padded, (_, image) in zip(pixels, images, strict=True):
            made = (image.float() / 255 - torch.tensor(MEAN)) / torch.tensor(DEVIATION)
            padded[:, : image.shape[0], : image.shape[1]] = made.permute(2, 0, 1)
        given |= {"pixel_values": pixels, "image_sizes": torch.tensor([list(size) for size in sizes])}
    return given


@torch.no_grad()
def expected(model, parts, count=TOKENS):
    ids, images = prompt(*parts)
    found = []
    for _ in range(count):
        logits = model(**oracle(ids + found, images), use_cache=False).logits
        found.append(int(logits[0, -1].argmax()))
    return found


ONE = (5, picture(3, 2), 7)
TWO = (3, picture(2, 5, 1), 4, picture(6, 3, 2), 40)
ADJACENT = (picture(4, 2, 3), picture(1, 3, 4), 2)
LONG = (40, picture(7, 7, 5), 30, picture(2, 2, 6), 5)
PROMPTS = {"one": ONE, "two": TWO, "at the start, one beside the other": ADJACENT, "over pages": LONG}


def answers(engine, asked, count=TOKENS, **settings):
    return serve(engine, [(parts, count) for parts in asked], laid_out=prompt, **settings)[0]


@pytest.mark.parametrize("shape", [(1, 7), (7, 1), (2, 3), (4, 4), (5, 2)])
def test_the_tower_sees_what_that_of_transformers_sees(folder, model, shape):
    image = picture(*shape)
    given = oracle([1], [(None, image)])
    with torch.no_grad():
        seen = model.model.get_image_features(given["pixel_values"], given["image_sizes"])
        torch.testing.assert_close(tower_sees(folder, image), seen.pooler_output[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("parts", PROMPTS.values(), ids=PROMPTS)
def test_log_probabilities_are_those_of_transformers(engine, model, parts):
    ids, images = prompt(*parts)
    with torch.no_grad():
        logits = model(**oracle(ids, images)).logits[0]
    [answer] = answers(engine, [parts], 1, prompt_logprobs=0)
    agrees_on_prompt(answer, ids, logits)


@pytest.mark.parametrize("parts", PROMPTS.values(), ids=PROMPTS)
def test_answers_are_the_same_wherever_a_prompt_is_cut(engine, model, parts):
    want = expected(model, parts)
    for size in (1, 2, 3, 5, 8, 13) if parts is ONE else (7, 31, 33):
        [answer] = answers(engine, [parts], max_step_tokens=size)
        assert answer.token_ids == want, size


def test_answers_are_the_same_beside_others(engine, model):
    asked = [ONE, (30,), TWO, ADJACENT]
    for parts, answer in zip(asked, answers(engine, asked, later=2, max_step_tokens=24), strict=True):
        assert answer.token_ids == expected(model, parts)


def test_a_second_turn_reuses_an_image_and_no_other_one(engine, model):
    first, changed = (20, picture(7, 5, 9), 30), (20, picture(7, 5, 10), 30)
    again = (*first, [1, 2, 3], picture(2, 2, 11), 5)
    found = answers(engine, [first, changed, again], 4, later=30)
    assert [answer.cached_tokens for answer in found] == [0, 0, 64]
    assert found[1].token_ids == expected(model, changed, 4)
    assert found[2].token_ids == expected(model, again, 4)


def test_answers_are_the_same_on_two_ranks(folder, model, monkeypatch):
    ranks = Ranks(folder, 2, monkeypatch)
    try:
        found = answers(ranks, [ONE, TWO], max_step_tokens=20)
    finally:
        ranks.close()
    assert [answer.token_ids for answer in found] == [expected(model, parts) for parts in (ONE, TWO)]


def test_text_alone_is_computed_as_without_eyes(engine, folder, model, tmp_path):
    """The same files without the tower give the same bits, and say that they are blind."""
    without_tower(folder, tmp_path)
    assert any("its files have no tower" in note for note in read_card(tmp_path).notes)
    with seeing.loaded(tmp_path) as blind:
        told = [answers(each, [(90,)], 8, prompt_logprobs=3)[0] for each in (engine, blind)]
    assert (told[0].token_ids, told[0].prompt_logprobs) == (told[1].token_ids, told[1].prompt_logprobs)


@pytest.mark.parametrize(
    "shape", [(8, 8), (7, 9), (60, 60), (61, 30), (200, 100), (3, 100), (5, 61), (1, 40)]
)
def test_pixels_and_tokens_are_those_of_transformers(folder, model, shape):
    image = noise(*shape)
    made = asked_of(folder, "a", encoded(image), "b")
    [seen] = made.images
    processor = PixtralImageProcessorPil.from_pretrained(folder, patch_size=seeing.SIDE)
    given = processor(Image.fromarray(image), return_tensors="pt")
    rows, columns = (int(size) for size in given["image_sizes"][0])
    ours = torch.frombuffer(bytearray(seen.pixels), dtype=torch.uint8).view(rows, columns, 3)
    normal = (ours.float() / 255 - torch.tensor(MEAN)) / torch.tensor(DEVIATION)
    torch.testing.assert_close(normal.permute(2, 0, 1), given["pixel_values"][0], atol=1e-5, rtol=0)
    marks, _ = prompt(ours)
    placed = seen.placed
    assert made.token_ids()[placed.start : placed.end] == marks
    assert sizing.sized(encoded(image), read_card(folder).vision, "image").tokens == len(marks)
    assert [chr(each) for each in made.token_ids() if each < IMAGE] == list("u:ab;a:")


def test_with_exact_an_image_is_the_same_in_company_and_in_pieces_to_the_last_bit(folder, model):
    asked, wanted = [TWO, ONE, (30,)], {"logprobs": 2, "prompt_logprobs": 0}
    with seeing.loaded(folder, dtype="bfloat16", exact=True, max_step_tokens=128) as engine:
        whole = [answers(engine, [parts], 4, max_step_tokens=128, **wanted)[0] for parts in asked]
        assert answers(engine, asked, 4, later=2, max_step_tokens=128, **wanted) == whole
        assert answers(engine, asked, 4, max_step_tokens=13, **wanted) == whole


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"num_channels": 1}, "num_channels 1"),
        ({"num_attention_heads": 3}, "num_attention_heads 3"),
        ({"hidden_act": "relu"}, "hidden_act relu"),
        ({"num_hidden_layers": 3}, r"visual\.transformer\.layers\.2"),
        ({"rope_theta": 0}, r"vision_config\.rope_theta"),
        ({"rope_parameters": {"rope_theta": "hundred"}}, r"vision_config\.rope_parameters\.rope_theta"),
        ({"rope_parameters": {"rope_type": "yarn"}}, r"vision_config\.rope_parameters\.rope_type"),
    ],
)
def test_a_tower_that_cannot_be_is_refused_by_what_is_wrong(folder, model, tmp_path, changes, reason):
    with pytest.raises(CortexError, match=reason):
        read_card(with_tower(folder, tmp_path, **changes))
