"""Gateways agree on where a model is loaded."""

from neuron.claims import MOST, SECONDS, Claims


class Clock:
    def __init__(self):
        self.seconds = 0.0

    def __call__(self):
        return self.seconds


def test_who_asks_first_decides_for_all_that_would_do_as_well():
    claims = Claims(Clock())
    assert claims.settle("m", ["a", "b"], []) == "a"
    assert claims.settle("m", ["b", "a"], []) == "a"
    assert claims.settle("m", ["b"], ["c", "a"]) == "a"


def test_what_no_longer_will_do_is_decided_anew():
    claims = Claims(Clock())
    assert claims.settle("m", ["a", "b"], []) == "a"
    assert claims.settle("m", ["b"], ["c"]) == "b"  # a refused it
    assert claims.settle("m", ["c"], ["b"]) == "b"


def test_other_models_are_loaded_elsewhere_where_that_is_as_good():
    claims = Claims(Clock())
    assert [claims.settle(model, ["a", "b"], ["c"]) for model in "xyz"] == ["a", "b", "a"]


def test_a_claim_holds_for_a_moment_and_only_so_many_do():
    clock = Clock()
    claims = Claims(clock)
    assert claims.settle("m", ["a", "b"], []) == "a"
    clock.seconds = SECONDS
    assert claims.settle("m", ["b", "a"], []) == "b"
    for number in range(MOST):
        claims.settle(str(number), ["a"], [])
    assert len(claims._claimed) == MOST
    assert claims.settle("m", ["a"], ["b"]) == "a"
