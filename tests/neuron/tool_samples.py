"""How every format writes calls, and the templates of models that write them."""

from __future__ import annotations

from pathlib import Path

from tests.neuron.tool_texts import SAMPLES as TAGGED
from tests.neuron.tool_texts_parameters import SAMPLES as PARAMETERS
from tests.neuron.tool_texts_untagged import SAMPLES as UNTAGGED

SAMPLES = (*TAGGED, *PARAMETERS, *UNTAGGED)
FOLDERS = (parent / "shared" / "data" / "templates" for parent in Path(__file__).parents)
TEMPLATES = next((folder for folder in FOLDERS if folder.is_dir()), Path("none"))
