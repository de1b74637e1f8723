"""Sizes are read as people write them, and written as they read them."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipc.sizes import gib, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0B", 0),
        ("1kB", 1000),
        ("1KB", 1000),
        ("12GiB", 12 << 30),
        ("500 MB", 500_000_000),
        ("2tib", 2 << 40),
    ],
)
def test_sizes_are_read_in_powers_of_1000_and_of_1024(text, size):
    assert parse_size(text) == size


@given(st.text(max_size=12))
def test_a_text_is_a_size_or_a_value_error(text):
    with suppress(ValueError):
        assert parse_size(text) >= 0


def test_sizes_are_said_in_gib():
    assert (gib(12 << 30), gib(3 << 29, digits=1), gib(0)) == ("12.00 GiB", "1.5 GiB", "0.00 GiB")
