"""Gemma 4 sees as that of transformers does, however its prompts are computed."""

from __future__ import annotations

import json

import msgspec
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn.functional import pad
from transformers import (
    Gemma4Config,
    Gemma4ForConditionalGeneration,
    Gemma4UnifiedConfig,
    Gemma4UnifiedForConditionalGeneration,
)
from transformers.models.gemma4.image_processing_pil_gemma4 import Gemma4ImageProcessorPil

from ipc.errors import Code, CortexError
from ipc.worker_messages import PlacedImage
from neuron.config import ModelSettings
from neuron.description import described
from neuron.inspection import inspect
from tests.neuron.pictures import encoded, noise
from tests.workers import seeing
from tests.workers.oracle import fill
from tests.workers.seeing import (
    END,
    FILM,
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

PATCH, POOL = 4, 3
SIDE = PATCH * POOL
MOST = 70  # tokens of an image
SOUND = 124
TOKENS = 8
STEP = MOST + 16  # tokens: the least that a step may have where those of an image see each other
TYPES = ["sliding_attention", "full_attention"]
TEXT = SIZES | {
    "sliding_window": 24,
    "global_head_dim": 32,
    "num_hidden_layers": 4,
    "layer_types": 2 * TYPES,
    "pad_token_id": 5,
}
EYE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "patch_size": PATCH,
    "position_embedding_size": 256,
}
# the large ones, whose tokens of an image see each other, and the small ones, whose layers have inputs
LARGE = TEXT | {"use_bidirectional_attention": "vision", "hidden_size_per_layer_input": 0}
SMALL = TEXT | {
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": 131,
    "num_kv_shared_layers": 2,
}
# and the one that has no tower
UNIFIED = {key: value for key, value in LARGE.items() if key != "hidden_size_per_layer_input"}
PUBLISHED = "embed_vision.multimodal_embedder.embedding_projection"
PLAIN_EYE = {"mm_embed_dim": 32, "output_proj_dims": 32, "mm_posemb_size": 70, "patch_size": PATCH}
MODEL = Gemma4Config, Gemma4ForConditionalGeneration
KINDS = {
    "large": (*MODEL, LARGE, EYE | {"standardize": True}),
    "small": (*MODEL, SMALL, EYE | {"use_clipped_linears": True}),
    "unified": (Gemma4UnifiedConfig, Gemma4UnifiedForConditionalGeneration, UNIFIED, PLAIN_EYE),
}


def write(folder, kind):
    """Make such a checkpoint in `folder`; returns the oracle, in float32."""
    torch.set_num_threads(1)
    torch.manual_seed(1)
    config, made_of, text, eye = KINDS[kind]
    config = config(
        text_config=text,
        vision_config=eye,
        boi_token_id=START,
        eoi_token_id=END,
        image_token_id=IMAGE,
        video_token_id=FILM,
        audio_token_id=SOUND,
    )
    model = made_of(config).eval()
    fill(model, std=0.2)
    for name, buffer in model.named_buffers():
        if name.endswith(("_min", "_max")):  # so near that they cut something
            buffer.fill_(0.8 + torch.rand(()).item()).mul_(-1 if name.endswith("min") else 1)
        if "std_" in name:
            buffer.normal_(1.0 if name.endswith("scale") else 0.0, 0.3)
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(seeing.tokenizer().to_str())
    template = seeing.TEMPLATE.replace("<start><image><end>", "<image>")
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    settings = {"patch_size": PATCH, "pooling_kernel_size": POOL, "max_soft_tokens": MOST}
    settings |= {"do_normalize": False, "resample": 3}
    (folder / "processor_config.json").write_text(json.dumps({"image_processor": settings}))
    return model


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


# whose language models are unlike; that of the unified one is as that of the large ones
UNLIKE = pytest.mark.parametrize("kind", ["large", "small"], indirect=True, scope="module")
LARGE_ONE = pytest.mark.parametrize("kind", ["large"], indirect=True, scope="module")


@pytest.fixture(scope="module")
def folder(kind, tmp_path_factory):
    return tmp_path_factory.mktemp(kind)


@pytest.fixture(scope="module")
def model(folder, kind):
    return write(folder, kind)


@pytest.fixture(scope="module")
def engine(folder, model):
    with seeing.loaded(folder) as engine:
        yield engine


@pytest.fixture
def together(folder, model):
    return read_card(folder).vision.together


def picture(rows, columns, seed=0):
    """An image of so many tokens."""
    generator = torch.Generator().manual_seed(seed)
    size = rows * SIDE, columns * SIDE, 3
    return torch.randint(0, 256, size, dtype=torch.uint8, generator=generator)


def prompt(*parts, together=0):
    """As `seeing.prompt`, with images as Gemma's processor lays them out."""
    ids, images = [], []
    for part in parts:
        if not isinstance(part, torch.Tensor):
            ids += seeing.prompt(part)[0]
            continue
        rows, columns = (size // SIDE for size in part.shape[:2])
        about = {"together": together > 0, "in_line": True}
        images.append((PlacedImage(seeing.digest(part), len(ids) + 1, rows, columns, **about), part))
        ids += [START, *[IMAGE] * (rows * columns), END]
    return ids, images


def patches(image):
    """What transformers is given of an image: patches, filled up, and the place of each."""
    rows, columns = (size // PATCH for size in image.shape[:2])
    cells = (image.float() / 255).unflatten(0, (rows, PATCH)).unflatten(2, (columns, PATCH)).transpose(1, 2)
    values = torch.zeros(MOST * POOL**2, PATCH**2 * 3)
    values[: rows * columns] = cells.reshape(rows * columns, -1)
    places = torch.full((MOST * POOL**2, 2), -1)
    grid = torch.meshgrid(torch.arange(columns), torch.arange(rows), indexing="xy")
    places[: rows * columns] = torch.stack(grid, dim=-1).view(-1, 2)
    return values, places


def merged(image):
    """The same, where a patch is a token."""
    rows, columns = (size // SIDE for size in image.shape[:2])
    cells = (image.float() / 255).unflatten(0, (rows, SIDE)).unflatten(2, (columns, SIDE)).transpose(1, 2)
    grid = torch.meshgrid(torch.arange(columns), torch.arange(rows), indexing="xy")
    values, places = cells.reshape(rows * columns, -1), torch.stack(grid, dim=-1).view(-1, 2)
    unused = MOST - len(values)
    return pad(values, (0, 0, 0, unused)), pad(places, (0, 0, 0, unused), value=-1)


def shown(model, images):
    made = patches if hasattr(model.model, "vision_tower") else merged
    values, places = zip(*map(made, images), strict=True)
    return {"pixel_values": torch.stack(values), "image_position_ids": torch.stack(places)}


@torch.no_grad()
def logits_of(model, ids, images):
    """As while it generates: who calls the unified model itself gets masks of Gemma 3's kind."""
    given = {"input_ids": torch.tensor([ids])}
    kinds = (given["input_ids"] == IMAGE).long()
    like, positions = model.get_input_embeddings()(given["input_ids"]), torch.arange(len(ids))[None]
    made = model.create_masks_for_generate(model.config, like, None, None, positions, mm_token_type_ids=kinds)
    given |= {"mm_token_type_ids": kinds, "attention_mask": made}
    given |= shown(model, [image for _, image in images]) if images else {}
    return model(**given, use_cache=False).logits[0]


def same(answer, model, parts, count=TOKENS):
    ids, images = prompt(*parts)
    assert len(answer.token_ids) == count
    agrees(answer, logits_of(model, ids + answer.token_ids[:-1], images)[len(ids) - 1 :])


LARGEST = picture(6, 6)  # more tokens than a window has
ONE = (5, LARGEST, 7)
TWO = (3, picture(2, 4, 1), 4, picture(1, 7, 2), 40)
FIRST = (picture(3, 2, 3), picture(1, 1, 4), [1])
LONG = (40, picture(5, 8, 15), 30, picture(8, 3, 6), 5)
PROMPTS = {"one": ONE, "two": TWO, "at the start, one behind the other": FIRST, "over pages": LONG}


def answers(engine, asked, together, count=TOKENS, **settings):
    def laid_out(*parts):
        return prompt(*parts, together=together)

    settings = {"together": together, "logprobs": 0} | settings
    return serve(engine, [(parts, count) for parts in asked], laid_out=laid_out, **settings)[0]


@pytest.mark.parametrize("shape", [(6, 6), (1, 9), (7, 2)])
def test_the_tower_sees_what_that_of_transformers_sees(folder, model, shape):
    image = picture(*shape, 7)
    with torch.no_grad():
        [seen] = model.model.get_image_features(**shown(model, [image])).pooler_output
    torch.testing.assert_close(tower_sees(folder, image), seen, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("parts", PROMPTS.values(), ids=PROMPTS)
def test_log_probabilities_are_those_of_transformers(engine, model, together, parts):
    ids, images = prompt(*parts)
    [answer] = answers(engine, [parts], together, 1, prompt_logprobs=0, max_step_tokens=200)
    agrees_on_prompt(answer, ids, logits_of(model, ids, images))


@UNLIKE
@pytest.mark.parametrize("parts", PROMPTS.values(), ids=PROMPTS)
def test_answers_are_the_same_wherever_a_prompt_is_cut(engine, model, together, parts):
    for size in (STEP, STEP + 5) if together else (11, 60):
        [answer] = answers(engine, [parts], together, max_step_tokens=size)
        same(answer, model, parts)


@UNLIKE
def test_answers_are_the_same_beside_others(engine, model, together):
    asked = [ONE, (30,), TWO, FIRST]
    found = answers(engine, asked, together, later=2, max_step_tokens=STEP)
    for parts, answer in zip(asked, found, strict=True):
        same(answer, model, parts)


@UNLIKE
def test_a_second_turn_reuses_what_of_an_image_is_cached_and_no_other_one(engine, model, together):
    """The first page that is not cached begins inside of the image."""
    first, changed = (20, picture(6, 6, 9), 13), (20, picture(6, 6, 10), 13)
    again = (20, picture(6, 6, 9), [1, 2, 3], picture(2, 2, 11), 5)
    found = answers(engine, [first, changed, again], together, 4, later=30, max_step_tokens=STEP)
    assert [answer.cached_tokens for answer in found] == [0, 0, 32]
    for answer, parts in zip(found, (first, changed, again), strict=True):
        same(answer, model, parts, 4)


@UNLIKE
def test_answers_are_the_same_on_two_ranks(folder, model, together, monkeypatch):
    ranks = Ranks(folder, 2, monkeypatch)
    try:
        found = answers(ranks, [ONE, TWO], together, max_step_tokens=STEP)
    finally:
        ranks.close()
    for answer, parts in zip(found, (ONE, TWO), strict=True):
        same(answer, model, parts)


@LARGE_ONE
def test_with_exact_an_image_is_the_same_in_company_and_in_pieces_to_the_last_bit(folder, model, together):
    asked, wanted = [TWO, ONE, (30,)], {"logprobs": 2, "prompt_logprobs": 0}
    with seeing.loaded(folder, dtype="bfloat16", exact=True, max_step_tokens=128) as engine:
        whole = [answers(engine, [each], together, 4, max_step_tokens=128, **wanted)[0] for each in asked]
        assert answers(engine, asked, together, 4, later=2, max_step_tokens=128, **wanted) == whole
        assert answers(engine, asked, together, 4, max_step_tokens=STEP, **wanted) == whole


@UNLIKE
def test_text_alone_is_computed_as_without_eyes(engine, folder, model, together, tmp_path):
    """The same files without the tower give the same bits, and say that they are blind."""
    without_tower(folder, tmp_path)
    assert any("its files have no tower" in note for note in read_card(tmp_path).notes)
    with seeing.loaded(tmp_path) as blind:
        told = [answers(each, [(90,)], 0, prompt_logprobs=3)[0] for each in (engine, blind)]
    assert (told[0].token_ids, told[0].prompt_logprobs) == (told[1].token_ids, told[1].prompt_logprobs)


@UNLIKE
@pytest.mark.parametrize(
    "shape", [(12, 12), (48, 48), (7, 9), (60, 200), (3, 100), (1, 300), (900, 2), (100, 101)]
)
def test_pixels_and_tokens_are_those_of_transformers(folder, model, together, shape):
    image = noise(*shape)
    made = asked_of(folder, "a", encoded(image), "b")
    [seen] = made.images
    given = Gemma4ImageProcessorPil(patch_size=PATCH, max_soft_tokens=MOST)(
        Image.fromarray(image), return_tensors="pt"
    )
    placed = seen.placed
    ours = torch.frombuffer(bytearray(seen.pixels), dtype=torch.uint8)
    ours = ours.view(placed.rows * SIDE, placed.columns * SIDE, 3)
    values, places = patches(ours)
    torch.testing.assert_close(values, given["pixel_values"][0], atol=1e-5, rtol=0)
    assert torch.equal(places, given["image_position_ids"][0])
    start, around = [ord("u"), ord(":"), ord("a")], [ord("b"), ord(";"), ord("a"), ord(":")]
    ids, [(as_placed, _)] = prompt(start, ours, around, together=together)
    assert made.token_ids() == ids
    assert msgspec.structs.replace(placed, digest=b"", cost=0) == msgspec.structs.replace(
        as_placed, digest=b""
    )


@pytest.mark.parametrize("words", ["<image>", "<film>"])
def test_marks_of_media_in_a_text_are_refused(folder, model, words):
    with pytest.raises(CortexError, match=r"messages\[0\]") as refused:
        asked_of(folder, f"look {words}", encoded(noise(8, 8)))
    assert refused.value.code == Code.BAD_REQUEST


def test_a_step_has_room_for_an_image_beside_answers_where_its_tokens_see_each_other(folder, model, together):
    settings = ModelSettings(id="m", path=str(folder), max_step_tokens=8, max_sequences=4)
    room = described(settings, read_card(folder)).step_tokens(settings, "cpu")
    assert room == (STEP if together else 8)


def test_what_hears_is_left_out_and_told(folder, model, tmp_path):
    changed(folder, tmp_path)
    ears = {"model.audio_tower.a": torch.zeros(1), "model.embed_audio.b": torch.zeros(1)}
    (tmp_path / "model.safetensors").unlink()
    save_file(load_file(folder / "model.safetensors") | ears, tmp_path / "model.safetensors")
    card = read_card(tmp_path)
    assert card.vision is not None
    assert any(note.startswith("2 tensors are of what hears") for note in card.notes)
    assert not any("not used" in note for note in card.notes)
    assert "up to 70 tokens" in inspect(tmp_path, []).facts["sees"]


@pytest.mark.parametrize("size", [1, 2])
def test_planned_bytes_have_the_tower_on_the_first_rank(folder, model, size):
    tower_is_planned(folder, size)


@pytest.mark.parametrize("key", ["boi_token_id", "eoi_token_id", "image_token_id"])
def test_without_the_tokens_of_an_image_the_language_model_is_served_alone(folder, model, tmp_path, key):
    unknown = 126  # to the tokenizer; the model has it
    blind = changed(folder, tmp_path, **{key: unknown})
    assert any(f"tokenizer.json has no token {unknown}, its {key}" in note for note in read_card(blind).notes)


REFUSED = [
    ({"model_type": "siglip_vision_model"}, "model_type siglip_vision_model"),
    ({"patch_size": 5}, "patch_size is 5, and for its images 4"),
    ({"logit_softcap": 30.0}, r"vision_config\.logit_softcap 30"),
    ({"rms_norm_eps": "small"}, "vision_config: Expected `float`"),
]
TOWERS = [
    ({"num_key_value_heads": 1}, "num_key_value_heads 1"),
    ({"head_dim": 8}, "head_dim 8"),
    ({"hidden_activation": "relu"}, "hidden_activation relu"),
    ({"attention_bias": True}, "attention_bias"),
    ({"position_embedding_size": 200}, "position_embedding_size 200"),
    ({"num_hidden_layers": 3}, r"visual\.encoder\.layers\.2"),
    ({"rope_parameters": {"rope_theta": 100.0, "factor": 2.0}}, r"unknown field `factor`.*rope_parameters"),
    ({"rope_parameters": {"rope_theta": "hundred"}}, r"vision_config: .*rope_parameters\.rope_theta"),
]
EYES = [
    ({"mm_posemb_size": 69}, "mm_posemb_size 69"),
    ({"output_proj_dims": 16}, "output_proj_dims 16"),
]


def test_what_cannot_see_is_refused_by_what_is_wrong(folder, model, kind, tmp_path):
    for number, (changes, reason) in enumerate(REFUSED + (EYES if kind == "unified" else TOWERS)):
        (tmp_path / str(number)).mkdir()
        with pytest.raises(CortexError, match=reason):
            read_card(with_tower(folder, tmp_path / str(number), **changes))


def test_published_files_of_the_unified_model_have_other_names_for_the_same(tmp_path):
    write(tmp_path, "unified")
    weights = load_file(tmp_path / "model.safetensors")
    assert sum("vision_embedder" in name for name in weights) == 9  # as they are written
    projector = "embed_vision.embedding_projection"
    weights = {name.replace(projector, PUBLISHED): weight for name, weight in weights.items()}
    weights = {name.replace("vision_embedder", "embed_vision"): weight for name, weight in weights.items()}
    before = tower_sees(tmp_path, picture(1, 2))
    save_file(weights, tmp_path / "model.safetensors")
    assert torch.equal(tower_sees(tmp_path, picture(1, 2)), before)
