import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ipc.errors import Code, CortexError
from ipc.messages.state import Device
from neuron.memory.ledger import Ledger

GIB = 1 << 30
TOTAL = {"cuda:0": 100, "cuda:1": 60, "cpu": 200}
FOREIGN = {"cuda:0": 10, "cuda:1": 0, "cpu": 50}


def device(name, total, free):
    return Device(
        id=name, kind="cpu" if name == "cpu" else "cuda", name=name, memory_total=total, memory_free=free
    )


def devices():
    return [device(name, total, total - FOREIGN[name]) for name, total in TOTAL.items()]


@pytest.fixture
def ledger():
    return Ledger(devices())


class LedgerMachine(RuleBasedStateMachine):
    """Random bookings against the plain truth: what each model holds on each device."""

    def __init__(self):
        super().__init__()
        self.ledger = Ledger(devices())
        self.truth = {}
        self.corrected = False

    @rule(
        model=st.sampled_from("abcd"),
        amounts=st.dictionaries(st.sampled_from(list(TOTAL)), st.integers(0, 120), min_size=1),
    )
    def reserve(self, model, amounts):
        if model in self.truth:
            with pytest.raises(ValueError, match="already"):
                self.ledger.reserve(model, amounts)
            return
        fits = all(amount <= self.ledger.free(name) for name, amount in amounts.items())
        assert self.ledger.would_fit(amounts) == fits
        if fits:
            self.ledger.reserve(model, amounts)
            self.truth[model] = dict(amounts)
            return
        with pytest.raises(CortexError) as raised:
            self.ledger.reserve(model, amounts)
        assert raised.value.code == Code.INSUFFICIENT_MEMORY

    @precondition(lambda self: self.truth)
    @rule(data=st.data(), measured=st.integers(0, 300))
    def correct(self, data, measured):
        model = data.draw(st.sampled_from(sorted(self.truth)))
        name = data.draw(st.sampled_from(sorted(self.truth[model])))
        self.ledger.correct(model, name, measured)
        self.truth[model][name] = measured
        self.corrected = True

    @rule(model=st.sampled_from("abcd"))
    def release(self, model):
        self.ledger.release(model)
        self.truth.pop(model, None)

    @invariant()
    def free_is_what_nobody_holds(self):
        for name, total in TOTAL.items():
            held = sum(amounts.get(name, 0) for amounts in self.truth.values())
            assert self.ledger.reserved(name) == held
            assert self.ledger.free(name) == max(0, total - FOREIGN[name] - held)

    @invariant()
    def promises_never_exceed_the_device(self):
        if not self.corrected:
            for name, total in TOTAL.items():
                assert self.ledger.reserved(name) + FOREIGN[name] <= total

    def teardown(self):
        for model in "abcd":
            self.ledger.release(model)
        assert {name: self.ledger.free(name) for name in TOTAL} == {
            name: total - FOREIGN[name] for name, total in TOTAL.items()
        }


TestLedger = LedgerMachine.TestCase


def test_a_booking_of_several_devices_is_all_or_nothing(ledger):
    with pytest.raises(CortexError):
        ledger.reserve("big", {"cuda:0": 50, "cuda:1": 61})
    assert ledger.reserved("cuda:0") == 0
    ledger.reserve("big", {"cuda:0": 50, "cuda:1": 60})
    assert ledger.held_by("big") == {"cuda:0": 50, "cuda:1": 60}


def test_a_refusal_says_what_is_needed_free_and_held_by_whom():
    ledger = Ledger([device("cuda:0", 24 * GIB, 23 * GIB)])
    ledger.reserve("small", {"cuda:0": 20 * GIB})
    with pytest.raises(CortexError) as raised:
        ledger.reserve("big", {"cuda:0": 16 * GIB})
    assert raised.value.message == (
        "big does not fit: 16.00 GiB are needed on cuda:0 and 3.00 GiB are free "
        "(held: small 20.00 GiB, other programs 1.00 GiB)"
    )
    assert raised.value.details["cuda:0"] == {
        "needed": 16 * GIB,
        "free": 3 * GIB,
        "held": {"small": 20 * GIB, "other programs": GIB},
    }


def test_a_device_that_is_not_there_has_no_room(ledger):
    assert not ledger.would_fit({"cuda:7": 0})
    with pytest.raises(CortexError, match="cuda:7 is not a device of this neuron"):
        ledger.reserve("a", {"cuda:7": 1})


def test_a_negative_booking_is_a_bug(ledger):
    with pytest.raises(ValueError, match="negative"):
        ledger.reserve("a", {"cpu": -1})


def test_other_programs_are_learned_from_fresh_figures(ledger):
    ledger.reserve("a", {"cuda:0": 30})
    ledger.correct("a", "cuda:0", 40)
    ledger.observe([device("cuda:0", 100, 25)])  # 40 are ours, so 35 are others'
    assert ledger.free("cuda:0") == 25
    ledger.observe([device("cuda:0", 100, 60)])
    assert ledger.free("cuda:0") == 60


def test_what_asks_nobody_is_booked_as_it_was_measured_also_while_a_load_goes_on(ledger):
    ledger.reserve("a", {"cpu": 50})  # it loads
    ledger.account("texts", "cpu", 30)
    assert ledger.held_by("texts") == {"cpu": 30}
    assert ledger.free("cpu") == 200 - 50 - 50 - 30
    ledger.account("texts", "cpu", 100)
    assert ledger.reserved("cpu") == 150, "what was measured last"
    ledger.account("texts", "cpu", 200)
    assert ledger.free("cpu") == 0
    with pytest.raises(CortexError, match=r"held: a 0\.00 GiB, texts"):
        ledger.reserve("b", {"cpu": 1})
    ledger.correct("a", "cpu", 50)
    ledger.account("texts", "cpu", 30)
    ledger.observe([device("cpu", 200, 200 - 50 - 30 - 5)])
    assert ledger.free("cpu") == 115, "5 are other programs'"
    ledger.account("texts", "cuda:7", 30)
    assert ledger.held_by("texts") == {"cpu": 30}, "of a device that is not there nothing is held"


def test_a_load_in_progress_is_not_taken_for_another_program(ledger):
    ledger.reserve("a", {"cuda:0": 50})
    ledger.observe([device("cuda:0", 100, 20)])  # half loaded: 80 are taken
    assert ledger.free("cuda:0") == 40
    ledger.release("a")
    ledger.observe([device("cuda:0", 100, 95)])
    assert ledger.free("cuda:0") == 95
