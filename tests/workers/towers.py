"""Towers of the families, as wide as published ones are, and with fewer layers."""

from __future__ import annotations

from typing import NamedTuple

from msgspec.structs import replace

from workers.checkpoints.vision import Gemma4, Pixtral, Siglip, Vision


class Sized(NamedTuple):
    """A tower, and the largest image that it takes."""

    vision: Vision
    rows: int  # pixels
    columns: int


HALF = (0.5,) * 3
QWEN = Vision(
    depth=2,
    hidden_size=1152,
    intermediate_size=4304,
    num_heads=16,
    patch_size=16,
    merge_size=2,
    frames=2,
    table_side=48,
    out_size=4096,
    deepstack=(0,),
    activation="gelu_tanh",
    token=1,
    min_pixels=1,
    max_pixels=512**2,
    mean=HALF,
    deviation=HALF,
)
PIXTRAL = Pixtral(
    longest=560,
    line_end=1,
    image_end=2,
    theta=10_000.0,
    projector_eps=1e-5,
    projector_activation="gelu",
    projector_bias=False,
)
GEMMA4 = replace(
    QWEN,
    merge_size=3,
    frames=1,
    table_side=0,
    out_size=5376,
    deepstack=(),
    min_pixels=48**2,
    max_pixels=280 * 48**2,
    gemma4=Gemma4(
        image_start=1,
        image_end=2,
        together=True,
        eps=1e-6,
        theta=100.0,
        positions=1120,
        clipped=False,
        standardised=True,
    ),
)
TOWERS = {
    "Qwen3-VL-8B": Sized(QWEN, 512, 512),
    "the same, and a long image": Sized(QWEN, 64, 4096),
    "Qwen3.5-9B": Sized(replace(QWEN, deepstack=()), 512, 512),
    "Mistral-Small-3.1-24B": Sized(
        replace(
            QWEN,
            hidden_size=1024,
            intermediate_size=4096,
            patch_size=14,
            frames=1,
            table_side=0,
            out_size=5120,
            deepstack=(),
            activation="silu",
            max_pixels=560**2,
            pixtral=PIXTRAL,
        ),
        560,
        560,
    ),
    "gemma-3-4b": Sized(
        replace(
            QWEN,
            patch_size=14,
            merge_size=4,
            frames=1,
            table_side=64,
            out_size=2560,
            deepstack=(),
            max_pixels=896**2,
            siglip=Siglip(mark=1, image_end=2, eps=1e-6),
        ),
        896,
        896,
    ),
    "gemma-4-31b": Sized(GEMMA4, 768, 816),
    "gemma-4-12b": Sized(
        replace(
            GEMMA4,
            depth=0,
            hidden_size=3840,
            out_size=3840,
            patch_size=48,
            merge_size=1,
            gemma4=replace(GEMMA4.gemma4, unified=True),
        ),
        768,
        816,
    ),
    "gemma-4-31b and a long image": Sized(GEMMA4, 48, 280 * 48),
    "gemma-4-31b with bounds": Sized(replace(GEMMA4, gemma4=replace(GEMMA4.gemma4, clipped=True)), 768, 816),
}
