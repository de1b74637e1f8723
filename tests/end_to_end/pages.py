"""README.md and docs/, and the blocks of code in them."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = {
    str(path.relative_to(ROOT)): path.read_text() for path in (ROOT / "README.md", *ROOT.glob("docs/*.md"))
}
BLOCKS = [
    (page, language, body)
    for page, text in PAGES.items()
    for language, body in re.findall(r"^```(\w*)\n(.*?)^```$", text, re.S | re.M)
]
