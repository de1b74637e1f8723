import pytest

from neuron.requests.progress import LoadProgress


def after(*told: tuple[float, float | None]) -> LoadProgress:
    progress = LoadProgress()
    for now, fraction in told:
        progress = progress.then("reading weights", fraction, now)
    return progress


def test_the_time_left_follows_from_the_rate_so_far():
    progress = after((100.0, None), (101.0, 0.0), (103.0, 0.4))
    assert (progress.message, progress.fraction) == ("reading weights", 0.4)
    assert progress.seconds_left == pytest.approx(3.0)
    assert after((0.0, 0.0), (4.0, 1.0)).seconds_left == 0.0


@pytest.mark.parametrize(
    "told", [[], [(1.0, None)], [(1.0, 0.5)], [(1.0, 0.0), (1.1, 0.1)], [(1.0, 0.0), (9.0, 0.0)]]
)
def test_without_a_rate_nothing_is_promised(told):
    assert after(*told).seconds_left is None


def test_the_next_load_begins_anew():
    assert after((1.0, 0.0), (9.0, 0.9), (10.0, 0.1)).seconds_left is None
    assert after((1.0, 0.0), (9.0, 0.9), (10.0, 0.1), (11.0, 0.5)).seconds_left == pytest.approx(1.0)
    assert after((1.0, 0.0), (9.0, 0.9), (10.0, None), (11.0, 0.5)).seconds_left is None
