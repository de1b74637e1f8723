"""Text cut in every way, for parsers whose outcome must not depend on it."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import strategies as st


@st.composite
def cut(draw, text_strategy):
    """A text and one way to cut it into chunks, some of them empty."""
    text = draw(text_strategy)
    marks = sorted(draw(st.lists(st.integers(0, len(text)), max_size=12)))
    return text, [text[a:b] for a, b in pairwise([0, *marks, len(text)])]
