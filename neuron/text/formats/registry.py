"""Which format a model writes its tool calls in: by its name, or by the model's chat template."""

from __future__ import annotations

from collections.abc import Iterable

from neuron.text.formats.apertus import APERTUS
from neuron.text.formats.apriel import APRIEL
from neuron.text.formats.command_a import COMMAND_A
from neuron.text.formats.command_r import COMMAND_R
from neuron.text.formats.deepseek import DEEPSEEK_V3, DEEPSEEK_V31
from neuron.text.formats.falcon_h1 import FALCON_H1
from neuron.text.formats.functionary import FUNCTIONARY
from neuron.text.formats.gemma4 import GEMMA4
from neuron.text.formats.gigachat import GIGACHAT
from neuron.text.formats.glm import GLM
from neuron.text.formats.granite import GRANITE
from neuron.text.formats.harmony import HARMONY
from neuron.text.formats.hermes import HERMES
from neuron.text.formats.hunyuan import HUNYUAN
from neuron.text.formats.hy3 import HY3
from neuron.text.formats.invoke import DEEPSEEK_V4, DEEPSEEK_V32, MINIMAX_M2
from neuron.text.formats.kimi import KIMI
from neuron.text.formats.llama_json import LLAMA3_JSON
from neuron.text.formats.minicpm5 import MINICPM5
from neuron.text.formats.minimax_m1 import MINIMAX_M1
from neuron.text.formats.minimax_m3 import MINIMAX_M3
from neuron.text.formats.mistral import MISTRAL, MISTRAL_ARGS
from neuron.text.formats.muse import MUSE
from neuron.text.formats.nemotron import NEMOTRON
from neuron.text.formats.olmo3 import OLMO3
from neuron.text.formats.phi4 import PHI4
from neuron.text.formats.pythonic import LFM2, PYTHONIC
from neuron.text.formats.qwen3_coder import QWEN3_CODER
from neuron.text.formats.seed_oss import SEED_OSS
from neuron.text.formats.solar_open import SOLAR_OPEN
from neuron.text.formats.tool_format import ToolFormat

# From the one with the most special signs to the one with the least.
FORMATS: tuple[ToolFormat, ...] = (
    DEEPSEEK_V32,
    DEEPSEEK_V4,
    DEEPSEEK_V3,
    DEEPSEEK_V31,
    KIMI,
    SOLAR_OPEN,
    MINIMAX_M3,
    MINIMAX_M2,
    MISTRAL_ARGS,
    MISTRAL,
    PHI4,
    GRANITE,
    NEMOTRON,
    OLMO3,
    APERTUS,
    APRIEL,
    HUNYUAN,
    MINIMAX_M1,
    SEED_OSS,
    HY3,
    MINICPM5,
    COMMAND_A,
    COMMAND_R,
    GEMMA4,
    HARMONY,
    MUSE,
    FUNCTIONARY,
    GIGACHAT,
    PYTHONIC,
    LFM2,
    LLAMA3_JSON,
    GLM,
    QWEN3_CODER,
    FALCON_H1,
    HERMES,
)
BY_NAME = {each.name: each for each in FORMATS}


def tool_format(templates: Iterable[str]) -> ToolFormat:
    """The first format that one of a model's templates speaks of; Hermes, the most usual, where none does."""
    templates = [*templates]
    found = (known for known in FORMATS if any(map(known.is_of, templates)))
    return next(found, HERMES)
