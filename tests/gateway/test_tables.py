"""Tables of commands, on wide screens and narrow ones."""

from __future__ import annotations

import io

from rich.console import Console

from gateway.commands import tables


def shown(width: int) -> list[str]:
    made = tables.table("model", "neuron", "status", "files")
    tables.row(made, "Qwen/Qwen3-8B", "beast", "ready", "/a/very/long/path/that/may/be/broken/anywhere")
    tables.row(made, "[red]模型[/red]", "attic", "", "none")
    out = io.StringIO()
    Console(file=out, width=width).print(made)
    return [line.rstrip() for line in out.getvalue().splitlines()]


def test_what_fits_is_a_table() -> None:
    head, *rows = shown(100)
    assert head.split() == ["model", "neuron", "status", "files"]
    assert [row.split()[0] for row in rows] == ["Qwen/Qwen3-8B", "[red]模型[/red]"]


def test_a_long_word_alone_makes_no_list_of_it() -> None:
    assert shown(50)[0].split() == ["model", "neuron", "status", "files"]


def test_on_a_narrow_screen_each_cell_has_a_line() -> None:
    assert shown(30) == [
        "model   Qwen/Qwen3-8B",
        "neuron  beast",
        "status  ready",
        "files   /a/very/long/path/that",
        "        /may/be/broken/anywher",
        "        e",
        "",
        "model   [red]模型[/red]",
        "neuron  attic",
        "files   none",
    ]


def test_a_table_without_rows_is_its_head_or_nothing() -> None:
    out = io.StringIO()
    Console(file=out, width=8).print(tables.table("model", "neuron"))
    assert "\n" not in out.getvalue().strip()
