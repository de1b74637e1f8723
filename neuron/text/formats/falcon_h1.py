"""Tool calls as Falcon-H1 writes them: all of them in one JSON list, between the tags of Hermes."""

from __future__ import annotations

import re

from neuron.text.formats.hermes import CALL, END_CALL, HermesParser
from neuron.text.formats.json_list import JsonListFormat

_SHOWN = re.compile(CALL + r"(\s|\\n)*\[")  # as its prompt shows it


class FalconH1(JsonListFormat):
    """What Falcon-H1 writes."""

    name = "falcon_h1"
    parser = HermesParser
    markers = (CALL, END_CALL)
    before, between, after = f"{CALL}\n[\n", ",\n", f"\n]\n{END_CALL}"

    def is_of(self, template: str) -> bool:
        return bool(_SHOWN.search(template))


FALCON_H1 = FalconH1()
