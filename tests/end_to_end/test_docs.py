"""The examples on docs/api.md and in the README run as they stand."""

import re
from pathlib import Path

import httpx
import pytest

from tests.end_to_end.harness import PATIENCE

ROOT = Path(__file__).parents[2]
EXAMPLES = [
    example
    for page in ("README.md", "docs/api.md")
    for example in re.findall(
        r"^curl http://\S+?(/v1/\S+) .*?-d '(.*?)'\n", (ROOT / page).read_text(), re.S | re.M
    )
]


@pytest.mark.parametrize(("path", "body"), EXAMPLES, ids=[path for path, _ in EXAMPLES])
def test_an_example_is_answered(cortex, path, body):
    headers = {"Content-Type": "application/json"}
    answer = httpx.post(f"{cortex.base}{path}", content=body, headers=headers, timeout=PATIENCE)
    assert answer.status_code == 200, answer.text


def test_the_pages_have_examples():
    assert len(EXAMPLES) == 4
