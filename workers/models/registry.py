"""The mathematics of each family of models, by the name that its card gives it."""

from __future__ import annotations

from workers.models.decoder import Decoder

MODELS = {"llama": Decoder, "mistral": Decoder, "qwen3": Decoder}
