"""Tiny models that see, images for them, and what transformers makes of both."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedModel

from ipc.messages.conversation import ImagePart, Message, TextPart
from ipc.messages.requests import Generate
from ipc.worker_messages import ImageData, PlacedImage, Submit
from neuron.preparation.facts import ModelFacts
from neuron.preparation.prepared import PreparedPrompt, prepare
from neuron.text.frontend import TextFrontEnd
from tests.workers.engines import LIMITS, Answer, make_runner, request
from tests.workers.oracle import fill
from tests.workers.tiny_models import HYBRID, HYBRID_EXPERTS, SIZES
from workers.checkpoints.caches import num_states
from workers.checkpoints.reading import read_card
from workers.checkpoints.shares import Split
from workers.execution.model_runner import ModelRunner
from workers.scheduling.scheduler import Scheduler
from workers.vision.sight import tower
from workers.vision.tower import seen
from workers.weights.loader import WeightFiles, bytes_filled

Images = list[tuple[PlacedImage, Tensor]]
Parts = tuple[int | list[int] | Tensor, ...]

IMAGE, START, END, FILM = 120, 121, 122, 123  # tokens
PATCH, MERGE = 4, 2
SIDE = PATCH * MERGE
TEXT = {key: value for key, value in SIZES.items() if not key.endswith("_token_id")} | {
    "num_hidden_layers": 4,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 10_000.0,
        "mrope_section": [4, 2, 2],
        "mrope_interleaved": True,
    },
}
TEMPLATE = """{% for m in messages %}{{ m.role[0] }}:{% if m.content is string %}{{ m.content }}{% else %}
{%- for p in m.content %}{% if p.type == 'image' %}<start><image><end>{% else %}{{ p.text }}{% endif %}
{%- endfor %}{% endif %};{% endfor %}a:"""
TOWER = {
    "depth": 3,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_heads": 2,
    "patch_size": PATCH,
    "spatial_merge_size": MERGE,
    "out_hidden_size": SIZES["hidden_size"],
    "num_position_embeddings": 36,
    "deepstack_visual_indexes": [0, 2],
}


MOE_TEXT = TEXT | {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
HYBRID_TEXT = (
    {key: value for key, value in TEXT.items() if key != "rope_parameters"}
    | HYBRID
    | {
        "rope_parameters": TEXT["rope_parameters"]
        | {"mrope_section": [2, 1, 1], "partial_rotary_factor": 0.5}
    }
)
PLAIN_TOWER = {key: value for key, value in TOWER.items() if key != "deepstack_visual_indexes"}
MOE_HYBRID = {
    key: value for key, value in (HYBRID_TEXT | HYBRID_EXPERTS).items() if key != "intermediate_size"
}
KINDS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {  # with the names that transformers has
    "qwen3_vl": ("Qwen3VL", TEXT, TOWER),
    "qwen3_vl_moe": ("Qwen3VLMoe", MOE_TEXT, TOWER),
    "qwen3_5": ("Qwen3_5", HYBRID_TEXT, PLAIN_TOWER),
    "qwen3_5_moe": ("Qwen3_5Moe", MOE_HYBRID, PLAIN_TOWER),
}


def write(folder: Path, kind: str = "qwen3_vl") -> PreTrainedModel:
    """Make such a checkpoint in `folder`; returns the oracle, in float32."""
    name, text, tower = KINDS[kind]
    config = getattr(transformers, f"{name}Config")(
        text_config=text,
        vision_config=tower,
        image_token_id=IMAGE,
        video_token_id=FILM,
        vision_start_token_id=START,
        vision_end_token_id=END,
    )
    torch.manual_seed(1)
    model = getattr(transformers, f"{name}ForConditionalGeneration")(config).eval()
    fill(model, std=0.2)
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(tokenizer().to_str())
    edges = {"shortest_edge": 4 * SIDE**2, "longest_edge": 64 * SIDE**2}
    half = [0.5] * 3
    size = {"patch_size": PATCH, "merge_size": MERGE, "size": edges, "image_mean": half, "image_std": half}
    (folder / "preprocessor_config.json").write_text(json.dumps(size))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    return model


def tokenizer() -> Tokenizer:
    """One token for each of the first 120 characters, and those around images."""
    marks = {"<image>": IMAGE, "<start>": START, "<end>": END, "<film>": FILM}
    made = Tokenizer(models.WordLevel({chr(code): code for code in range(IMAGE)} | marks, unk_token="?"))
    made.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    made.add_special_tokens(list(marks))
    return made


def picture(rows: int, columns: int, seed: int = 0) -> Tensor:  # [rows * SIDE, columns * SIDE, 3] uint8
    """An image of so many tokens."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (rows * SIDE, columns * SIDE, 3), dtype=torch.uint8, generator=generator)


def digest(image: Tensor) -> bytes:
    """The name of an image."""
    return hashlib.blake2b(image.numpy().tobytes(), digest_size=16).digest()


def patches(
    image: Tensor,
) -> Tensor:  # [patches, 3 * 2 * PATCH * PATCH], as the processor of transformers has it
    colours = (image.float() / 255 - 0.5) / 0.5
    rows, columns = (size // SIDE for size in image.shape[:2])
    parts = colours.permute(2, 0, 1).reshape(3, rows, MERGE, PATCH, columns, MERGE, PATCH)
    return (
        parts.permute(1, 4, 2, 5, 0, 3, 6)
        .unsqueeze(5)
        .expand(-1, -1, -1, -1, -1, 2, -1, -1)
        .reshape(rows * columns * MERGE**2, -1)
    )


def prompt(*parts: int | list[int] | Tensor) -> tuple[list[int], Images]:
    """Tokens and images of a prompt; a number is that of a text's tokens, which follow from it."""
    ids: list[int] = []
    images = []
    for part in parts:
        if isinstance(part, Tensor):
            rows, columns = (size // SIDE for size in part.shape[:2])
            images.append((PlacedImage(digest(part), len(ids) + 1, rows, columns), part))
            ids += [START, *[IMAGE] * (rows * columns), END]
        else:
            ids += part if isinstance(part, list) else [(7 * part + 3 * n) % 119 for n in range(part)]
    return ids, images


def oracle(model: PreTrainedModel, ids: list[int], images: Images) -> dict[str, Any]:
    """What transformers is given for such a prompt."""
    model.model.rope_deltas = None  # of the prompt before
    given = {"input_ids": torch.tensor([ids])}
    if images:
        grids = [[1, placed.rows * MERGE, placed.columns * MERGE] for placed, _ in images]
        given |= {
            "pixel_values": torch.cat([patches(image) for _, image in images]),
            "image_grid_thw": torch.tensor(grids),
            "mm_token_type_ids": torch.tensor([[int(token == IMAGE) for token in ids]]),
        }
    return given


@torch.no_grad()
def greedy(model: PreTrainedModel, ids: list[int], images: Images, count: int) -> list[int]:
    """The tokens that transformers continues with."""
    found: list[int] = []
    for _ in range(count):
        # whole each time: with what it keeps between steps it answers otherwise behind some images
        logits = model(**oracle(model, ids + found, images), use_cache=False).logits
        found.append(int(logits[0, -1].argmax()))
    return found


@contextmanager
def loaded(folder: Path, **settings: Any) -> Iterator[ModelRunner]:
    """An engine that has read a model."""
    engine = make_runner(folder, **settings)
    engine.load(lambda fraction, message: None)
    try:
        yield engine
    finally:
        engine.close()


def tower_sees(folder: Path, image: Tensor) -> Tensor:  # [tokens, width] float32
    """What the tower of a model makes of an image."""
    card = read_card(folder)
    eye = tower(card.vision, torch.float32, torch.device("cpu"))
    WeightFiles(card).load(eye.weights.parts(), lambda fraction: None)
    return seen(eye.look(image))


def tower_is_planned(folder: Path, size: int, quantization: str | None = None) -> None:
    """See that the first of so many ranks is said to have all of a tower, and no other anything of it."""
    card = read_card(folder)
    stored = {name: tensor for name, tensor in card.tensors.items() if name.startswith("visual.")}
    weights = tower(card.vision, torch.float32, torch.device("cpu")).weights
    assert sorted(piece.name for part in weights.parts() for piece in part.pieces) == sorted(stored)
    planned = card.bytes_per_rank(Split.evenly(size), "float32", quantization)
    counted = bytes_filled(weights.parts())
    assert counted == sum(tensor.nbytes for tensor in stored.values())
    assert size == 1 or planned[0] - planned[1] == counted


def changed(folder: Path, into: Path, file: str = "config.json", **changes: Any) -> Path:
    """The same model, of which a file says something else."""
    for each in folder.iterdir():
        (into / each.name).symlink_to(each)
    given = json.loads((folder / file).read_text())
    (into / file).unlink()
    (into / file).write_text(json.dumps(given | changes))
    return into


def with_tower(folder: Path, into: Path, **changes: Any) -> Path:
    """The same, of which the part `vision_config` does."""
    tower = json.loads((folder / "config.json").read_text())["vision_config"]
    return changed(folder, into, vision_config=tower | changes)


def without_tower(folder: Path, into: Path) -> Path:
    """The same model, whose files have only what reads and writes text."""
    weights = load_file(folder / "model.safetensors")
    kept = {
        name: weight for name, weight in weights.items() if "vision" not in name and "projector" not in name
    }
    save_file(kept, into / "model.safetensors")
    for name in ("config.json", "tokenizer.json"):
        (into / name).symlink_to(folder / name)
    return into


def asked_of(folder: Path, *content: str | bytes) -> PreparedPrompt:
    """What a neuron makes of a message of texts and encoded images."""
    text = TextFrontEnd.load(read_card(folder))
    parts = [TextPart(text=part) if isinstance(part, str) else ImagePart(data=part) for part in content]
    asked = Generate(id=1, model="m", messages=[Message(role="user", content=parts)])
    return prepare(asked, text, ModelFacts(), 4096).prompts[0]


def agrees(answer: Answer, logits: Tensor) -> None:  # [tokens, vocabulary]
    """See that an answer's tokens and their log-probabilities are those of what transformers computed."""
    told = logits.log_softmax(-1)
    assert answer.token_ids == told.argmax(-1).tolist()
    found = torch.tensor([each.logprob for each in answer.logprobs])
    torch.testing.assert_close(found, told.amax(-1), atol=1e-4, rtol=1e-4)


def agrees_on_prompt(answer: Answer, ids: list[int], logits: Tensor, most: float = 1e-4) -> None:
    """The same of the tokens of a prompt, whose `logits` are `[tokens, vocabulary]`."""
    following = logits[:-1].log_softmax(-1).gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
    told = torch.tensor([each.logprob for each in answer.prompt_logprobs])
    torch.testing.assert_close(told, following, atol=most, rtol=1e-4)


def submit(request_id: int, ids: list[int], images: Images, max_tokens: int, **sampling: Any) -> Submit:
    made = request(request_id, ids, max_tokens, **sampling)
    made.images = [placed for placed, _ in images]
    return made


def show(engine: ModelRunner, images: Images) -> list[object]:
    """Send pixels to an engine, in pieces."""
    if not images:
        return []
    gallery = engine.sight.gallery
    for placed, image in images:
        pixels = image.numpy().tobytes()
        for start in range(0, len(pixels), 1000):
            gallery.receive(ImageData(placed.digest, start, pixels[start : start + 1000]))
    return gallery.take([placed for placed, _ in images])


def serve(
    engine: Any,
    asked: list[tuple[Parts, int]],
    *,
    later: int = 0,
    laid_out: Callable[..., tuple[list[int], Images]] = prompt,
    paced: tuple[int, int] | None = None,
    **settings: int | str,
) -> tuple[list[Answer], Scheduler]:
    """What an engine answers to prompts, each with the number of tokens that it wants.

    Args:
        later: steps between the arrival of one and of the next.
        paced: what may ride beside answers, of prompts and of images (`Scheduler.plan`).
        laid_out: makes tokens and images of a prompt's parts.
        settings: limits of the scheduler, and sampling.
    """
    of_scheduler = {*LIMITS, "speculation", "together"}
    limits = {key: value for key, value in settings.items() if key in of_scheduler}
    sampling = {key: value for key, value in settings.items() if key not in of_scheduler}
    states = num_states(engine.groups, (LIMITS | limits)["max_sequences"])
    scheduler = Scheduler(**LIMITS | limits, caches=engine.groups, states=states)
    coming = list(enumerate(asked))
    answers = [Answer() for _ in asked]
    for step in count():
        while coming and (not later or step >= coming[0][0] * later):
            number, (parts, tokens) = coming.pop(0)
            ids, images = laid_out(*parts)
            scheduler.submit(submit(number, ids, images, tokens, **sampling), show(engine, images))
        if (plan := scheduler.plan(*paced or ())) is not None:
            scheduler.observe(engine.execute(plan))
        for report in scheduler.take_reports():
            answers[report.request_id].take(report)
        if plan is None and not coming:
            break
    engine.empty()
    return answers, scheduler
