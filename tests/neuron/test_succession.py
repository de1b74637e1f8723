"""Which gateway's catalogue counts, where several have one."""

import itertools
import logging

import pytest
from msgspec.structs import replace

from ipc.messages.catalogue import FleetCatalogue
from ipc.messages.requests import Eviction
from neuron.catalogue.succession import Succession


def said(version, origin="a:/models.yaml", modified=1.0):
    return FleetCatalogue(version=version, origin=origin, modified=modified)


def told(caplog):
    """What it has logged itself."""
    return [record.getMessage() for record in caplog.records if record.name == "neuron.catalogue.succession"]


def test_a_gateway_replaces_what_it_said_and_saying_it_again_changes_nothing():
    succession = Succession("catalogue")
    assert succession.take(said("1"))
    assert not succession.take(said("1"))
    assert succession.take(said("2", modified=0.5))  # an older file put back
    assert succession.current.version == "2"


@pytest.mark.parametrize("order", [*itertools.permutations(range(3))])
def test_of_several_gateways_the_newest_file_counts_whoever_speaks_last(order):
    catalogues = [
        said(str(i), origin=f"{i}:/m.yaml", modified=modified) for i, modified in enumerate((2, 5, 3))
    ]
    succession = Succession("catalogue")
    for i in (*order, *order):
        succession.take(catalogues[i])
    assert succession.current.version == "1"


def test_who_is_passed_over_is_told_of_in_one_line(caplog):
    caplog.set_level(logging.INFO)
    succession = Succession("catalogue")
    succession.take(said("1", modified=2))
    for _ in range(3):
        assert not succession.take(said("2", origin="b:/models.yaml"))
    [line] = told(caplog)
    assert "passed_over=b:/models.yaml counts=a:/models.yaml" in line


def test_a_file_of_the_future_does_not_count_for_ever(caplog):
    now = 1000.0
    succession = Succession("catalogue", lambda: now)
    future = said("9", origin="future:/m.yaml", modified=now + 3600)
    assert succession.take(future)  # there is no other
    assert succession.take(said("1", origin="b:/m.yaml", modified=now - 50))
    assert not succession.take(future)
    assert succession.current.origin == "b:/m.yaml"
    assert "dated in the future" in told(caplog)[-1]
    now += 4000  # by now it was written in the past, and after the other
    assert succession.take(future)


def test_clocks_that_differ_a_little_change_nothing():
    succession = Succession("catalogue", lambda: 1000.0)
    succession.take(said("1", modified=990))
    assert succession.take(said("2", origin="b:/m.yaml", modified=1010))


def test_gateways_with_the_same_content_agree(caplog):
    succession = Succession("catalogue")
    succession.take(said("1"))
    assert not succession.take(said("1", origin="b:/models.yaml", modified=2))
    assert not succession.take(said("1"))
    assert not told(caplog)


def test_of_two_ways_to_make_room_the_newer_file_counts_and_one_line_says_so(caplog):
    ours = Eviction(strategy="lru", origin="a:/cortex.yaml", modified=9.0)
    other = Eviction(strategy="cost", origin="b:/cortex.yaml", modified=5.0)
    succession = Succession("eviction")
    assert succession.take(ours)
    for _ in range(3):
        assert not succession.take(other)
    assert succession.take(replace(other, modified=10.0))
    assert not succession.take(replace(ours, strategy="cost"))  # they agree by now
    first, second = told(caplog)
    assert first.startswith("eviction is passed over")
    assert first.endswith("counts=a:/cortex.yaml said=lru 0 s 50 loads")
    assert second.endswith("old=a:/cortex.yaml new=b:/cortex.yaml said=cost 0 s 50 loads")
