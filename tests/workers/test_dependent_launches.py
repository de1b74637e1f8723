"""Launches depend on one another only where a card has recorded such ones, and done them right."""

from __future__ import annotations

import logging
from importlib.util import find_spec

import pytest
import torch

from ipc.errors import Code, CortexError
from tests.workers.engines import GPU
from workers.execution.dependent_launches import LAUNCHES, try_dependent_launches
from workers.kernels import launch

CPU = torch.device("cpu")


class Recorder:
    """Runs at once what it records, as a device does later."""

    made: list[Recorder] = []

    def __init__(self, device: torch.device) -> None:
        self.released = False
        self.made.append(self)

    def capture(self, launches):
        result = launches()
        return lambda: None, result

    def release(self) -> None:
        self.released = True


class Refusing(Recorder):
    def capture(self, launches):
        launches()
        raise RuntimeError("CUDA error: invalid resource handle\nCompile with ...")


class Losing(Recorder):
    """A launch that is recorded begins too early."""

    def capture(self, launches):
        return lambda: None, launches() - 1


@pytest.fixture(autouse=True)
def card(monkeypatch):
    monkeypatch.setattr(launch, "dependent", True)
    monkeypatch.setattr(launch, "capability_of", lambda device: 120)
    monkeypatch.setattr(Recorder, "made", [])


def counted(device: torch.device, begin: int) -> torch.Tensor:
    return torch.tensor([begin + LAUNCHES])


def test_a_card_that_does_them_right_has_them(caplog):
    with caplog.at_level(logging.WARNING):
        try_dependent_launches(CPU, counted, Recorder)
    assert launch.dependent
    assert not caplog.records
    assert [each.released for each in Recorder.made] == [True]


@pytest.mark.parametrize(
    ("recorder", "reason"),
    [
        (Refusing, "reason=CUDA error: invalid resource handle"),
        (Losing, "reason=what came of a trial is wrong"),
    ],
)
def test_a_card_that_cannot_record_them_or_begins_too_early_has_none(caplog, recorder, reason):
    try_dependent_launches(CPU, counted, recorder)
    assert not launch.dependent
    [record] = caplog.records
    assert record.getMessage().endswith(reason)
    assert [each.released for each in Recorder.made] == [True]


@pytest.mark.parametrize(
    "error",
    [RuntimeError("CUDA error: not supported"), CortexError(Code.MODEL_LOAD_FAILED, "it is not supported")],
)
def test_a_card_that_refuses_them_or_cannot_build_what_they_need_has_none(caplog, error):
    def chain(device, begin):
        if launch.dependent:
            raise error
        return counted(device, begin)

    try_dependent_launches(CPU, chain, Recorder)
    assert not launch.dependent
    assert "not supported" in caplog.text


@pytest.mark.skipif(find_spec("triton") is None, reason="torch for the CPU has no Triton")
@pytest.mark.parametrize("early", [None, 1, 2, 17, LAUNCHES])
def test_one_launch_that_begins_too_early_is_seen(monkeypatch, early):
    """It finds in its input what stood there before."""
    from workers.kernels import norm_triton

    places, launched = [torch.zeros(1, 4096, dtype=torch.bfloat16) for _ in range(2)], []

    def norm_of_sum(x, y, weight, eps, offset):
        launched.append(x)
        into = places[len(launched) % 2]
        number = (len(launched) - 1) % LAUNCHES + 1
        stale = launch.dependent and number == early
        into.copy_((into if stale else x) + y)
        return (into.clone() if number == LAUNCHES else into), x

    monkeypatch.setattr(norm_triton, "norm_of_sum", norm_of_sum)
    try_dependent_launches(CPU, None, Recorder)
    assert len(launched) == 3 * LAUNCHES
    assert launch.dependent == (early is None)


def test_where_no_kernel_can_be_built_that_is_another_ones_to_say(caplog):
    def chain(device, begin):
        raise FileNotFoundError("gcc")

    try_dependent_launches(CPU, chain, Recorder)
    assert not launch.dependent
    assert not caplog.records


def test_a_card_without_them_is_not_asked(monkeypatch):
    monkeypatch.setattr(launch, "capability_of", lambda device: 89)
    try_dependent_launches(CPU, None, None)
    assert launch.dependent


@pytest.mark.parametrize("device", [pytest.param("cuda:0", marks=GPU)])
def test_the_trial_itself_on_a_card(device, monkeypatch, caplog):
    monkeypatch.undo()
    try_dependent_launches(torch.device(device))
    assert launch.dependent
    assert not caplog.records
