from contextlib import suppress
from typing import Annotated, Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Meta, Struct

from ipc.settings import ConfigError, Duration, Period, Size, load_settings


class Shelf(Struct):
    name: str
    boards: Annotated[int, Meta(ge=1)] = 3


class Room(Struct):
    color: Literal["white", "green"] = "white"
    air: Size = 1000
    height: float = 2.5
    rest: Period | None = None
    floor: Size | None = None
    stay: Duration | None = None
    shelves: list[Shelf] = []
    names: list[str] | None = None
    best: Shelf | None = None


@pytest.fixture
def read(tmp_path):
    def read(text, suffix=".yaml", kind=Room):
        path = tmp_path / f"room{suffix}"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return load_settings(path, kind)

    return read


def refusal(read, text, suffix=".yaml"):
    with pytest.raises(ConfigError) as raised:
        read(text, suffix)
    assert raised.value.path in str(raised.value)
    assert raised.value.key in str(raised.value)
    return raised.value


def test_yaml_and_toml_say_the_same(read):
    yaml = "color: green\nair: 2kB\nshelves:\n  - {name: a}\n  - name: b\n    boards: 5\n"
    toml = "color='green'\nair='2kB'\n[[shelves]]\nname='a'\n[[shelves]]\nname='b'\nboards=5\n"
    expected = Room(color="green", air=2000, shelves=[Shelf("a"), Shelf("b", 5)])
    assert read(yaml) == read(toml, ".toml") == read(yaml, ".yml") == expected


@pytest.mark.parametrize("text", ["", "# nothing but a comment\n", "{}"])
def test_an_empty_file_means_the_defaults(read, text):
    assert read(text) == Room()


def test_a_key_without_a_value_means_its_default_unless_null_is_a_value(read):
    assert read("air:\nshelves:\nfloor:\n") == Room()


def test_times_are_numbers_of_seconds_or_texts(read):
    assert [read(f"rest: {text}").rest for text in ("5m", "1.5", "-1", "null")] == [300.0, 1.5, -1.0, None]
    assert refusal(read, "rest: soon").key == "rest"
    assert refusal(read, "rest: true").key == "rest"


def test_sizes_are_plain_integers_that_messages_can_carry(read):
    room = read("air: 1.5KiB\nfloor: 7")
    assert (room.air, room.floor) == (1536, 7)
    assert msgspec.json.encode([room.air, room.floor]) == b"[1536,7]"


@pytest.mark.parametrize(
    ("text", "key", "words"),
    [
        ("colour: red", "colour", ["unknown", "'red'", "color is its nearest", "shelves"]),
        (
            "shelves: [{name: a}, {name: b, bords: 2}]",
            "shelves[1].bords",
            ["unknown", "2", "boards is its nearest", "name, boards"],
        ),
        ("best: {name: a, x: 1}", "best.x", ["unknown", "name, boards"]),
        ("color: red", "color", ["one of white, green;", "'red'"]),
        ("shelves: [{name: a, boards: 0}]", "shelves[0].boards", [">= 1", "0"]),
        ("shelves: [{name: a, boards: '2'}]", "shelves[0].boards", ["`int`", "`str`", "'2'"]),
        ("shelves: [{boards: 2}]", "shelves[0]", ["'name'", "missing"]),
        ("shelves: {}", "shelves", ["`array`", "{}"]),
        ("best: 3", "best", ["`object | null`", "3"]),
        ("names: [a, 2]", "names[1]", ["`str`", "2"]),
        ("air: lots", "air", ["12GiB", "'lots'"]),
        ("air: -1", "air", [">= 0", "-1"]),
        ("air: true", "air", ["`bool`", "True"]),
        ("height: high", "height", ["`float`", "'high'"]),
        ("1: 2", "1", ["unknown"]),
        ("air: 9223372036854775808", "air", ["at most", "9223372036854775808"]),
        ("air: 99999999999TiB", "air", ["at most", "TiB"]),
        ("shelves: [{name: a, boards: 99999999999999999999}]", "shelves[0].boards", ["at most"]),
        ("height: .nan", "height", ["a number", "nan"]),
        ("rest: .nan", "rest", ["a number", "nan"]),
        ('color: "\\ud800"', "color", ["one of white, green;", "'\\ud800'"]),
        ('names: [a, "\\ud800"]', "names[1]", ["surrogates"]),
    ],
)
def test_an_error_names_file_key_and_value(read, text, key, words):
    error = refusal(read, text)
    assert error.key == key
    assert all(word in error.message for word in words), error.message


@pytest.mark.parametrize(
    "text", ["air: 1\nair: 2\n", "best: {name: a, name: b}", "shelves:\n- name: a\n  name: a\n"]
)
def test_a_key_given_twice_is_an_error(read, text):
    assert "given twice" in refusal(read, text).message


@pytest.mark.parametrize(
    ("text", "suffix", "word"),
    [
        ("a: [", ".yaml", "line 1"),
        ("a: 1\n\tb: 2", ".yaml", "line 2"),
        ("a = ", ".toml", "parsed"),
        ("a = 1\na = 2", ".toml", "parsed"),
        ("- a\n- b", ".yaml", "list"),
        ("just words", ".yaml", "str"),
        (b"a: \xff", ".yaml", "UTF-8"),
        ("air: 2001-99-99", ".yaml", "parsed"),
        ("a: " + "[" * 5000, ".yaml", ""),
        ("{}", ".json", ".json"),
        ("!!python/object/apply:os.getcwd []", ".yaml", "line 1"),
    ],
)
def test_a_file_that_is_no_configuration_is_refused(read, text, suffix, word):
    assert word in refusal(read, text, suffix).message


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"gone\.yaml: cannot be read: No such file"):
        load_settings(tmp_path / "gone.yaml", Room)


@given(st.binary(max_size=60), st.sampled_from([".yaml", ".toml"]))
def test_any_bytes_are_settings_or_a_config_error(tmp_path_factory, data, suffix):
    path = tmp_path_factory.getbasetemp() / f"any{suffix}"
    path.write_bytes(data)
    with suppress(ConfigError):
        assert isinstance(load_settings(path, Room), Room)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("1.5m", 90), ("2 h", 7200), ("1D", 86400), ("90", 90), ("m", None), ("-1", None)],
)
def test_a_time_may_be_written_with_its_unit(read, text, seconds):
    if seconds is None:
        assert refusal(read, f"stay: '{text}'").key == "stay"
    else:
        assert read(f"stay: '{text}'").stay == seconds
