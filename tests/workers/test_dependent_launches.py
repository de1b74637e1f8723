"""Launches depend on one another only where a card has recorded such ones, and done them right."""

from __future__ import annotations

import logging

import pytest
import torch

from tests.workers.engines import GPU
from workers.execution.dependent_launches import try_dependent_launches
from workers.kernels import launch

CPU = torch.device("cpu")


class Recorder:
    """Runs at once what it records, as a device does later."""

    def __init__(self, device: torch.device) -> None:
        self.released = False

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


def counted(device: torch.device) -> torch.Tensor:
    return torch.tensor([64])


def test_a_card_that_does_them_right_has_them(caplog):
    with caplog.at_level(logging.WARNING):
        try_dependent_launches(CPU, counted, Recorder)
    assert launch.dependent
    assert not caplog.records


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


def test_a_card_that_refuses_them_has_none(caplog):
    def chain(device):
        if launch.dependent:
            raise RuntimeError("CUDA error: not supported")
        return counted(device)

    try_dependent_launches(CPU, chain, Recorder)
    assert not launch.dependent
    assert "not supported" in caplog.text


def test_a_launch_that_begins_too_early_by_itself_is_seen():
    try_dependent_launches(CPU, lambda device: torch.tensor([63 if launch.dependent else 64]), Recorder)
    assert not launch.dependent


def test_where_no_kernel_can_be_built_that_is_another_ones_to_say(caplog):
    def chain(device):
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
