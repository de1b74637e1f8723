"""Which family reads a checkpoint, by the name of its architecture."""

from __future__ import annotations

from collections.abc import Iterable

from workers.checkpoints.families.afmoe import AFMOE
from workers.checkpoints.families.apertus import APERTUS
from workers.checkpoints.families.arcee import ARCEE
from workers.checkpoints.families.bert import BERT, ROBERTA
from workers.checkpoints.families.cohere import COHERE, COHERE2, COHERE2_MOE
from workers.checkpoints.families.cwm import CWM
from workers.checkpoints.families.deepseek import DEEPSEEK_V2, DEEPSEEK_V3, GLM4_MOE_LITE, YOUTU
from workers.checkpoints.families.ernie4_5 import ERNIE4_5, ERNIE4_5_MOE
from workers.checkpoints.families.eurobert import EUROBERT
from workers.checkpoints.families.exaone4 import EXAONE4, EXAONE_MOE
from workers.checkpoints.families.falcon_h1 import FALCON_H1
from workers.checkpoints.families.gemma import GEMMA, GEMMA2, GEMMA3, VAULTGEMMA
from workers.checkpoints.families.gemma3n import GEMMA3N
from workers.checkpoints.families.gemma4 import GEMMA4, GEMMA4_UNIFIED
from workers.checkpoints.families.glm import GLM, GLM4
from workers.checkpoints.families.glm_moe import DOTS1, GLM4_MOE, SOLAR_OPEN
from workers.checkpoints.families.gpt_oss import GPT_OSS
from workers.checkpoints.families.granite import GRANITE, GRANITE_SWA
from workers.checkpoints.families.granitemoe import GRANITE_MOE
from workers.checkpoints.families.granitemoehybrid import GRANITE_HYBRID
from workers.checkpoints.families.gte import GTE
from workers.checkpoints.families.helium import HELIUM
from workers.checkpoints.families.hunyuan import HUNYUAN, HUNYUAN_MOE
from workers.checkpoints.families.hyperclovax import HYPERCLOVAX
from workers.checkpoints.families.jais2 import JAIS2
from workers.checkpoints.families.kolibri1 import KOLIBRI1
from workers.checkpoints.families.laguna import LAGUNA
from workers.checkpoints.families.lfm2 import LFM2, LFM2_MOE, LFM3
from workers.checkpoints.families.llama import LLAMA
from workers.checkpoints.families.llama4 import LLAMA4
from workers.checkpoints.families.mellum import MELLUM
from workers.checkpoints.families.minimax_m2 import MINIMAX_M2
from workers.checkpoints.families.mistral import MINISTRAL3, MISTRAL, MISTRAL4
from workers.checkpoints.families.mixtral import MIXTRAL
from workers.checkpoints.families.modernbert import MODERNBERT
from workers.checkpoints.families.muse_glimmer import MUSE_GLIMMER
from workers.checkpoints.families.nemotron_h import NEMOTRON_H
from workers.checkpoints.families.nomic_bert import NOMIC_BERT
from workers.checkpoints.families.olmo import OLMO2, OLMO3
from workers.checkpoints.families.olmo_hybrid import OLMO_HYBRID
from workers.checkpoints.families.olmoe import FLEX_OLMO, OLMOE
from workers.checkpoints.families.phi3 import PHI3
from workers.checkpoints.families.phimoe import PHIMOE
from workers.checkpoints.families.qwen2 import QWEN2
from workers.checkpoints.families.qwen2_moe import QWEN2_MOE
from workers.checkpoints.families.qwen3 import QWEN3
from workers.checkpoints.families.qwen3_5 import QWEN3_5, QWEN3_5_MOE
from workers.checkpoints.families.qwen3_moe import QWEN3_MOE
from workers.checkpoints.families.qwen3_next import QWEN3_NEXT
from workers.checkpoints.families.seed_oss import SEED_OSS
from workers.checkpoints.families.smollm3 import SMOLLM3
from workers.checkpoints.families.starcoder2 import STARCODER2
from workers.checkpoints.family import Family

KNOWN = (
    *(LLAMA, LLAMA4, MISTRAL, MISTRAL4, MINISTRAL3, QWEN2, QWEN3, QWEN3_MOE),
    *(GEMMA2, GEMMA3, GEMMA3N, GEMMA4, GEMMA4_UNIFIED),
    *(GRANITE, GRANITE_MOE, PHI3, PHIMOE, SMOLLM3, OLMO2, OLMO3, GLM, GLM4),
    *(SEED_OSS, EXAONE4, EXAONE_MOE, ERNIE4_5, ERNIE4_5_MOE, OLMOE, MINIMAX_M2),
    *(COHERE, COHERE2, COHERE2_MOE, ARCEE, APERTUS, STARCODER2, HUNYUAN, GEMMA, CWM, HYPERCLOVAX, MELLUM),
    *(AFMOE, DOTS1, FLEX_OLMO, GRANITE_SWA, HELIUM, HUNYUAN_MOE, JAIS2, KOLIBRI1, LAGUNA),
    *(MUSE_GLIMMER, SOLAR_OPEN, VAULTGEMMA, YOUTU),
    *(LFM2, LFM2_MOE, LFM3, GRANITE_HYBRID, NEMOTRON_H, FALCON_H1),
    *(BERT, ROBERTA, MODERNBERT, NOMIC_BERT, GTE, EUROBERT),
    *(QWEN3_NEXT, QWEN3_5, QWEN3_5_MOE, OLMO_HYBRID),
    *(MIXTRAL, QWEN2_MOE, GPT_OSS, GLM4_MOE, GLM4_MOE_LITE, DEEPSEEK_V2, DEEPSEEK_V3),
)
FAMILIES = {family.name: family for family in KNOWN}
ARCHITECTURES = {
    name: family for family in FAMILIES.values() for name in (*family.architectures, *family.within)
}


def find(architectures: Iterable[str]) -> tuple[str, Family] | None:
    """The first of these names that is known, and its family."""
    return next(((name, ARCHITECTURES[name]) for name in architectures if name in ARCHITECTURES), None)
