"""Images of requests: what transformers makes of them is what the model gets, and a bad one is a 400."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zlib
from contextlib import suppress
from unittest.mock import create_autospec

import msgspec
import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, ImageOps
from transformers.image_utils import load_image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from ipc.errors import Code, CortexError
from ipc.messages.conversation import ImagePart, Message, TextPart, ToolResultPart
from ipc.messages.requests import CountTokens, Embed, Generate
from ipc.messages.sampling import Sampling
from ipc.worker_messages import Details, SequenceReport
from neuron.images import opening, sizing
from neuron.preparation.facts import ModelFacts
from neuron.preparation.placing import MAX_BYTES
from neuron.preparation.prepared import prepare
from neuron.preparation.prepared_inputs import prepare_inputs
from neuron.preparation.prompt import is_quick
from neuron.preparation.tokens import count_tokens
from neuron.requests.generation import Generation
from neuron.requests.request import RequestOwner
from neuron.text.frontend import TextFrontEnd
from tests.neuron.doubles import described
from tests.neuron.pictures import encoded, noise
from tests.workers import seeing
from workers.checkpoints.reading import read_card

SHAPES = [
    (8, 8),
    (7, 9),
    (100, 3),
    (3, 100),
    (31, 33),
    (64, 64),
    (65, 63),
    (16, 40),
    (200, 100),
    (1, 150),
    (5, 5),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("seeing")
    torch.set_num_threads(1)
    seeing.write(folder)
    return folder


@pytest.fixture(scope="module")
def text(folder):
    return TextFrontEnd.load(read_card(folder))


def as_transformers(folder, image):
    """Patches, and how many there are a row and a column."""
    processor = Qwen2VLImageProcessorPil.from_pretrained(folder)
    made = processor(Image.fromarray(image) if isinstance(image, np.ndarray) else image, return_tensors="pt")
    return made["pixel_values"], made["image_grid_thw"][0, 1:].tolist()


@pytest.mark.parametrize("shape", SHAPES)
def test_pixels_are_those_of_transformers(folder, text, shape):
    image = noise(*shape)
    found = sizing.sized(encoded(image), text.vision, "image")
    pixels, _ = sizing.pixels(found, text.vision)
    made = torch.frombuffer(bytearray(pixels), dtype=torch.uint8)
    made = made.view(found.rows * seeing.SIDE, found.columns * seeing.SIDE, 3)
    patches, grid = as_transformers(folder, image)
    assert [found.rows * seeing.MERGE, found.columns * seeing.MERGE] == grid
    torch.testing.assert_close(seeing.patches(made), patches, atol=1e-6, rtol=0)


def asked(*content, role="user"):
    parts = [TextPart(text=part) if isinstance(part, str) else part for part in content]
    return Generate(id=1, model="m", messages=[Message(role=role, content=parts)])


def shown(image, **options):
    return ImagePart(data=image if isinstance(image, bytes) else encoded(image, **options))


def prepared(text, request, context_length=4096):
    [prompt] = prepare(request, text, ModelFacts(), context_length).prompts
    return prompt


def test_a_prompt_has_a_token_for_each_part_of_its_images(text):
    one, two = noise(32, 16), noise(16, 24, seed=1)
    request = asked("a", shown(one), "b", shown(two), "c")
    prompt = prepared(text, request)
    ids = prompt.token_ids()
    places = [image.placed for image in prompt.images]
    assert [(each.rows, each.columns) for each in places] == [(4, 2), (2, 3)]
    for place in places:
        assert ids[place.start - 1] == seeing.START
        assert ids[place.start : place.end] == [seeing.IMAGE] * (place.end - place.start)
        assert ids[place.end] == seeing.END
    assert "".join(map(chr, (each for each in ids if each < seeing.IMAGE))) == "u:abc;a:"
    assert [image.pixels for image in prompt.images] == [one.tobytes(), two.tobytes()]
    count = count_tokens(text, CountTokens(id=1, model="m", messages=request.messages), 4096)
    assert count.tokens == len(ids)


def test_images_in_results_of_tools_stand_before_those_of_the_user(text):
    one, two = noise(16, 16), noise(16, 16, seed=1)
    result = ToolResultPart(tool_call_id="x", content=[TextPart(text="r"), shown(one)])
    prompt = prepared(text, asked(shown(two), "q", result))
    assert [image.pixels for image in prompt.images] == [one.tobytes(), two.tobytes()]


def test_the_same_image_has_the_same_digest_and_another_has_another(text):
    image = noise(16, 32)
    tall = image.reshape(32, 16, 3)
    digests = [
        prepared(text, asked(shown(each))).images[0].placed.digest
        for each in (image, image.copy(), noise(16, 32, seed=1), tall)
    ]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


def upright(text, data):
    found = sizing.sized(data, text.vision, "image")
    return np.frombuffer(sizing.pixels(found, text.vision)[0], np.uint8).reshape(
        found.rows * 8, found.columns * 8, 3
    )


@pytest.mark.parametrize("turned", range(1, 9))
def test_an_image_is_turned_as_its_camera_was_held(text, turned):
    image = Image.fromarray(noise(16, 40))
    exif = Image.Exif()
    exif[0x0112] = turned
    expected = Image.open(io.BytesIO(encoded(image, exif=exif)))
    expected = np.asarray(ImageOps.exif_transpose(expected))
    assert (upright(text, encoded(image, exif=exif)) == expected).all()


def icc():
    """A colour profile that the reference leaves alone."""
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def saved(mode, kind, **options):
    """An image of 24 x 32 in any mode, as a file."""
    image = Image.fromarray(noise(24, 32, seed=5))
    if mode in ("LA", "RGBA"):
        image.putalpha(255)
    if mode == "turned":
        exif = Image.Exif()
        exif[0x0112] = 6
        options["exif"] = exif
        mode = "RGB"
    return encoded(image.convert(mode), kind, **options)


FILES = {
    "black and white": ("1", "PNG", {}),
    "grey": ("L", "PNG", {}),
    "grey, opaque": ("LA", "PNG", {}),
    "palette": ("P", "PNG", {}),
    "palette of a GIF": ("P", "GIF", {}),
    "opaque": ("RGBA", "PNG", {}),
    "CMYK": ("CMYK", "TIFF", {}),
    "CMYK of a JPEG": ("CMYK", "JPEG", {}),
    "grey JPEG": ("L", "JPEG", {}),
    "YCbCr": ("YCbCr", "TIFF", {}),
    "a profile": ("RGB", "PNG", {"icc_profile": icc()}),
    "a profile of a JPEG": ("RGB", "JPEG", {"icc_profile": icc()}),
    "turned": ("turned", "JPEG", {}),
    "BMP": ("RGB", "BMP", {}),
    "WebP": ("RGB", "WEBP", {"lossless": True}),
    "a film": (
        "RGB",
        "WEBP",
        {"lossless": True, "save_all": True, "append_images": [Image.new("RGB", (32, 24))]},
    ),
    "a film of a PNG": ("RGB", "PNG", {"save_all": True, "append_images": [Image.new("RGB", (32, 24))]}),
    "pages": ("RGB", "TIFF", {"save_all": True, "append_images": [Image.new("RGB", (32, 24))]}),
}


@pytest.mark.parametrize("file", FILES.values(), ids=FILES)
def test_of_a_file_of_any_kind_the_model_gets_what_transformers_makes_of_it(folder, text, file):
    mode, kind, options = file
    data = saved(mode, kind, **options)
    reference, grid = as_transformers(folder, load_image(Image.open(io.BytesIO(data))))
    made = torch.from_numpy(upright(text, data).copy())
    assert [side // seeing.PATCH for side in made.shape[:2]] == grid
    torch.testing.assert_close(seeing.patches(made), reference, atol=1e-6, rtol=0)


def test_what_is_transparent_is_white(text):
    image = noise(16, 16, channels=4)
    image[:8, :, 3] = 0
    image[8:, :, 3] = 255
    seen = upright(text, encoded(image))
    assert (seen[:8] == 255).all()
    assert (seen[8:] == image[8:, :, :3]).all()


def test_of_a_film_the_first_picture_is_seen(text):
    first = np.zeros((16, 16, 3), np.uint8)
    film = encoded(
        Image.fromarray(first), "GIF", save_all=True, append_images=[Image.fromarray(noise(16, 16))]
    )
    assert not upright(text, film).any()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "CMYK", "I;16", "RGBA", "YCbCr"])
def test_images_of_any_mode_have_colours(text, mode):
    grey = Image.fromarray(np.tile(np.arange(0, 256, 16, dtype=np.uint8), (16, 1)))
    if mode == "I;16":
        image = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    else:
        image = grey.convert(mode)
    kind = "TIFF" if mode in ("CMYK", "YCbCr") else "PNG"
    seen = upright(text, encoded(image, kind)).astype(int)
    assert np.abs(seen[..., 0] - np.asarray(grey)).max() <= (255 if mode == "1" else 6)
    assert (seen[..., 0] == seen[..., 1]).all() or mode in ("CMYK", "YCbCr")


def bomb(rows, columns):
    """A PNG of that size, of which there is next to nothing."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", columns, rows, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def swollen(kind):
    """A small PNG beside whose pixels stands what would be 64 MB."""
    good = encoded(noise(16, 16))
    packed = zlib.compress(bytes(64 << 20), 1)
    data = kind + b"name\0\0" + packed
    chunk = struct.pack(">I", len(data) - 4) + data + struct.pack(">I", zlib.crc32(data))
    return good[:33] + chunk + good[33:]


@pytest.mark.parametrize("kind", [b"zTXt", b"iCCP"])
def test_what_stands_beside_the_pixels_is_not_unpacked_at_any_size(text, kind):
    data = swollen(kind)
    tracemalloc.start()
    try:
        with suppress(CortexError):  # one may be read all the same
            prepared(text, asked(shown(data)))
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 16 << 20


BAD = {
    "nothing": (b"", "none of PNG"),
    "a text": (b"<svg></svg>" * 50, "none of PNG"),
    "a bomb": (bomb(30_000, 30_000), "more than 100,000,000 pixels"),
    "a smaller one": (bomb(10_000, 10_001), "10001 x 10000 pixels, more than 100,000,000"),
    "half of one": (encoded(noise(64, 64))[:300], "cannot be read"),
    "no pixels": (bomb(64, 64), "cannot be read"),
    "a line": (encoded(noise(1, 201)), "200 times"),
}


@pytest.mark.parametrize(("data", "reason"), BAD.values(), ids=BAD)
def test_a_bad_image_is_named(text, data, reason):
    with pytest.raises(CortexError, match=reason) as caught:
        prepared(text, asked("look:", shown(data)))
    assert (caught.value.code, caught.value.param) == (Code.BAD_REQUEST, "messages[0].content[1]")


def test_a_bomb_is_refused_without_being_read(text, monkeypatch):
    monkeypatch.setattr(Image.Image, "load", None)
    with pytest.raises(CortexError, match="pixels"):
        prepared(text, asked(shown(bomb(1 << 15, 1 << 15))))
    assert opening.MAX_PIXELS < 1 << 30


def test_images_that_do_not_fit_are_refused_without_being_read(text, monkeypatch):
    monkeypatch.setattr(sizing, "pixels", None)
    request = asked(*[shown(noise(64, 64)) for _ in range(4)])
    with pytest.raises(CortexError) as caught:
        prepared(text, request, context_length=250)
    assert caught.value.code == Code.CONTEXT_LENGTH_EXCEEDED
    assert caught.value.details["prompt_tokens"] == 4 * 66 + 5
    assert MAX_BYTES > 1 << 20
    counted = CountTokens(id=1, model="m", messages=request.messages)
    assert count_tokens(text, counted, 250).tokens == 4 * 66 + 5
    with pytest.raises(CortexError) as caught:
        count_tokens(text, counted, 60)
    assert caught.value.details["context_length"] == 60


def test_a_text_cannot_say_that_it_is_an_image(text):
    with pytest.raises(CortexError, match="1 images, and 2 times"):
        prepared(text, asked("<image>", shown(noise(16, 16))))
    with pytest.raises(CortexError, match="0 images, and 1 times"):
        prepared(text, asked("<image>"))


def test_what_is_shown_to_no_model_is_refused_where_it_stands(text):
    result = ToolResultPart(tool_call_id="x", content=[TextPart(text="r"), TextPart(text="a<film>")])
    for request, param in (
        (asked("hello", "a <film> b", shown(noise(16, 16))), "messages[0].content[1]"),
        (asked("hello", result), "messages[0].content[1].content[1]"),
        (Generate(id=1, model="m", messages=[Message(role="user", content="<film>")]), "messages[0].content"),
        (Generate(id=1, model="m", prompt="u:<film>"), "prompt"),
        (Generate(id=1, model="m", prompt=[[1], [seeing.FILM]]), "prompt[1]"),
    ):
        with pytest.raises(CortexError, match="mark for a film") as caught:
            prepare(request, text, ModelFacts(), 4096)
        assert (caught.value.code, caught.value.param) == (Code.BAD_REQUEST, param)


def test_a_text_that_has_the_mark_for_an_image_is_named(text):
    with pytest.raises(CortexError, match="<image>") as caught:
        prepared(text, asked("look:", shown(noise(16, 16)), "<image>"))
    assert caught.value.param == "messages[0].content[2]"


@pytest.mark.parametrize("given", ["u:<image>", [1, seeing.IMAGE, 2], ["a", "<image>"]])
def test_a_prompt_cannot_have_an_image_behind_which_nothing_stands(text, given):
    param = "prompt[1]" if given == ["a", "<image>"] else "prompt"
    with pytest.raises(CortexError, match="mark for an image") as caught:
        prepare(Generate(id=1, model="m", prompt=given), text, ModelFacts(), 4096)
    assert (caught.value.code, caught.value.param) == (Code.BAD_REQUEST, param)
    asked_for = Embed(id=1, model="m", input=["a", given if given[0] != "a" else given[1]])
    with pytest.raises(CortexError, match="mark for an image") as caught:
        prepare_inputs(asked_for, text, ModelFacts(embedding=True), 4096)
    assert (caught.value.code, caught.value.param) == (Code.BAD_REQUEST, "input[1]")
    assert count_tokens(text, CountTokens(id=1, model="m", prompt="u:<image>"), 4096).tokens == 3


def test_one_image_is_in_memory_at_a_time_whatever_there_are(text, monkeypatch):
    read = []

    def look(image, param):
        for other in read:
            with pytest.raises(ValueError, match="closed"):
                other.load()
        read.append(image)
        return opening.in_colours(image, param)

    monkeypatch.setattr(sizing, "in_colours", look)
    prepared(text, asked(*[shown(noise(16, 16, seed=seed)) for seed in range(3)]))
    assert len(read) == 3


def test_all_answers_to_a_prompt_share_its_images(text):
    request = msgspec.structs.replace(asked(shown(noise(16, 16))), sampling=Sampling(n=3))
    generation = Generation(iter(range(1, 9)), request, print, print)
    generation.accept(prepare(request, text, ModelFacts(), 4096), text, described())
    assert generation.image_bytes == 16 * 16 * 3


def test_looks_are_a_part_of_what_a_request_costs_unless_their_images_are_cached(text):
    request = asked("a", shown(noise(32, 16)), "b", shown(noise(16, 24, seed=1)))
    generation = Generation(iter(range(1, 9)), request, print, print)
    generation.accept(prepare(request, text, ModelFacts(), 4096), text, described())
    generation.hand_over(4096)
    [answer] = generation.parts
    images = [image.placed for image in answer.images]
    looks = [text.vision.look_cost(image.rows * image.columns) for image in images]
    assert min(looks) > 0
    assert generation.cost_of(answer, 5) == generation.prompt_tokens + sum(looks) + 5
    given_back = []
    generation.model = owner = create_autospec(RequestOwner, instance=True)
    owner.reuse.side_effect = lambda request, tokens: given_back.append(tokens)
    answer.advance(SequenceReport(1, [3], "", Details(cached_tokens=images[0].end)))
    assert given_back == [images[0].end + looks[0]]
    assert generation.tokens_computed == generation.prompt_tokens - images[0].end + 1 + looks[1]


def test_an_image_is_never_prepared_in_the_event_loop():
    assert is_quick(asked("hello"))
    assert not is_quick(asked(shown(noise(2, 2))))
    assert not is_quick(asked(ToolResultPart(tool_call_id="x", content=[shown(noise(2, 2))])))
