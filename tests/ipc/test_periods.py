from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipc.periods import parse_period


@pytest.mark.parametrize(
    ("given_", "seconds"),
    [
        (0, 0.0),
        (90, 90.0),
        (1.5, 1.5),
        ("0", 0.0),
        ("3600", 3600.0),
        ("5m", 300.0),
        ("1h30m", 5400.0),
        (" 1.5h ", 5400.0),
        ("250ms", 0.25),
        ("24h0m0s", 86400.0),
        ("2d", 172800.0),
        (-1, -1.0),
        ("-1", -1.0),
        ("-5m", -1.0),
        (float("-inf"), -1.0),
    ],
)
def test_numbers_and_texts_as_clients_of_ollama_write_them(given_, seconds):
    assert parse_period(given_) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "m", "5x", "1e3", "--1", "5m-3s", "٥m", float("nan"), float("inf")])
def test_what_is_no_time_says_what_is(text):
    with pytest.raises(ValueError, match="Expected"):
        parse_period(text)


@given(st.text(max_size=20))
def test_a_text_is_a_period_or_a_value_error(text):
    with suppress(ValueError):
        assert parse_period(text) >= -1
