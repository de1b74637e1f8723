"""The order in which those who wait are served: tested as an order, with a clock of the test's own."""

import random

import pytest

from neuron.admission.fair_line import Claim, FairLine
from neuron.admission.turns import QUANTUM

AGEING = 60.0


class Line(FairLine):
    """One whose items are (account, number), and which is served at once."""

    def __init__(self):
        self.time = 0.0
        super().__init__(AGEING, lambda: self.time)
        self.start_clock()
        self.costs = {}

    def add(self, account, count=1, *, session="", cost=QUANTUM, priority=0):
        for _ in range(count):
            item = (account, len(self.costs))
            self.costs[item] = cost
            self.push(item, Claim(priority, account, session, cost))

    def turn(self):
        item = self.next()
        self.serve(item, self.costs[item])
        return item

    def turns(self, count=None):
        return [self.turn() for _ in range(len(self) if count is None else count)]


def accounts(items):
    return "".join(account for account, _ in items)


def test_a_flood_of_one_account_holds_up_no_other():
    line = Line()
    line.add("a", 200)
    line.turns(20)
    line.add("b")
    line.add("c")
    assert {"b", "c"} <= set(accounts(line.turns(4)))
    assert accounts(line.turns()) == "a" * 178


def test_small_requests_are_no_more_turns_in_a_row():
    line = Line()
    line.add("a", 50, cost=8)
    line.turns(5)
    line.add("b", cost=8)
    line.add("a", session="talk", cost=8)
    served = line.turns(6)
    assert {("b", 50), ("a", 51)} <= set(served)


def test_within_a_session_who_came_first_is_first():
    line = Line()
    line.add("a", 5)
    line.add("b", 5)
    served = line.turns()
    for account in "ab":
        numbers = [number for who, number in served if who == account]
        assert numbers == sorted(numbers)


def test_accounts_take_turns_by_what_their_requests_cost():
    line = Line()
    line.add("a", 40, cost=10 * QUANTUM)
    line.add("b", 400, cost=QUANTUM)
    served = accounts(line.turns(220))
    assert 18 <= served.count("a") <= 22
    assert served.count("b") >= 198


def test_an_account_with_long_requests_that_waits_with_one_at_a_time_has_no_more_than_its_share():
    line = Line()
    line.add("b", 400)
    tokens = {"a": 0, "b": 0}
    for _ in range(300):
        if not any(account == "a" for account, _ in line._waiting):
            line.add("a", cost=20 * QUANTUM)
        item = line.turn()
        tokens[item[0]] += line.costs[item]
    assert tokens["a"] <= tokens["b"] + 21 * QUANTUM


def test_sessions_of_one_account_take_turns():
    line = Line()
    line.add("a", 50, session="fan-out")
    line.turns(5)
    line.add("a", 1, session="talk")
    line.add("b", 1)
    talk = ("a", 50)
    served = line.turns(6)
    assert talk in served
    assert ("b", 51) in served


def test_more_sessions_are_no_larger_share():
    line = Line()
    for session in range(20):
        line.add("a", 10, session=str(session))
    line.add("b", 200)
    served = accounts(line.turns(100))
    assert abs(served.count("a") - served.count("b")) <= 2


def test_a_smaller_priority_is_served_first_however_late_it_comes():
    line = Line()
    line.add("a", 3, priority=5)
    line.add("b", 3, priority=0)
    line.add("c", 3, priority=-1)
    assert accounts(line.turns()) == "cccbbbaaa"


def test_a_class_that_is_never_empty_does_not_starve_another():
    line = Line()
    line.add("leftover", 3, priority=100)
    served_at = []
    for _ in range(600):
        while len(line) < 12:
            line.add("paid", priority=0)
        line.time += 1.0
        if line.turn()[0] == "leftover":
            served_at.append(line.time)
    assert served_at == pytest.approx([AGEING, 2 * AGEING, 3 * AGEING], abs=2.0)


def test_who_is_overdue_goes_first_and_only_once():
    line = Line()
    line.add("a", 2, priority=9)
    line.add("b", 2, priority=5)
    line.add("c", 4, priority=0)
    line.time += AGEING + 1
    assert accounts(line.turns()) == "abc" + "cccba"


def test_time_in_which_nobody_can_be_served_makes_nobody_overdue():
    line = Line()
    line.stop_clock()
    line.add("a", 1, priority=9)
    line.add("b", 1, priority=0)
    line.time += 10 * AGEING
    line.start_clock()
    assert accounts(line.turns()) == "ba"


@pytest.mark.parametrize("seed", range(20))
def test_nobody_waits_longer_than_ageing_and_one_turn_of_each_who_waited_as_long(seed):
    """Whatever comes, an account has a turn after `AGEING` and a turn of each other account and class."""
    draw = random.Random(seed)
    line, waits_since = Line(), {}
    names, classes = "abcdefg", (0, 1, 100)
    for _ in range(1500):
        for _ in range(draw.choice((0, 1, 1, 2))):
            if len(line) < 60:
                account = draw.choice("aaaa" + names)
                priority = draw.choice((0, 0, 0, *classes))
                line.add(account, priority=priority, session=draw.choice("xyz"), cost=draw.choice((10, 9000)))
                waits_since.setdefault((account, priority), line.time)
        if not line:
            continue
        line.time += draw.choice((0.5, 1.0, 5.0))
        entry = line._waiting[line.next()]
        key = (entry.claim.account, entry.claim.priority)
        assert line.time - waits_since[key] <= AGEING + 5.0 * len(names) * len(classes)
        line.turn()
        waits = any((each.claim.account, each.claim.priority) == key for each in line._waiting.values())
        waits_since[key] = line.time
        if not waits:
            del waits_since[key]


@pytest.mark.parametrize("seed", range(20))
def test_the_order_that_is_told_is_that_in_which_they_are_served(seed):
    draw = random.Random(seed)
    line = Line()
    for _ in range(80):
        line.add(
            draw.choice("abcd"),
            session=draw.choice("xyz"),
            cost=draw.choice((1, 100, 256, 3000, 50_000)),
            priority=draw.choice((0, 0, 7)),
        )
        if len(line) > 40:
            line.turn()
    if seed % 2:
        line.time += AGEING
    told = line.order()
    assert len(told) == len(line)
    assert told == line.turns()


def test_what_a_request_did_not_cost_is_given_back():
    line = Line()
    line.add("a", 10, cost=8 * QUANTUM)
    line.add("b", 10, cost=8 * QUANTUM)
    first = line.turn()
    assert first[0] == "a"
    line.refund(first, 8 * QUANTUM)  # all of it was cached
    assert accounts(line.turns(2)) == "ab"


def test_what_is_given_back_to_one_who_was_alone_is_no_claim_against_others():
    line = Line()
    line.add("a", 40, cost=1000 * QUANTUM)
    for item in line.turns(20):
        line.refund(item, 1000 * QUANTUM)  # all of it was cached
    line.add("b", 2)
    line.add("a", session="talk")
    served = line.turns(4)
    assert "b" in accounts(served)
    assert ("a", 42) in served


@pytest.mark.parametrize("seed", range(10))
def test_nobody_ever_has_a_claim_to_more_than_a_new_one_has(seed):
    draw = random.Random(seed)
    line, under_way = Line(), []
    for _ in range(400):
        while len(line) < 3:
            line.add(draw.choice("abcdef"), session=draw.choice("xy"), cost=draw.choice((300, 20_000)))
        under_way.append(line.turn())
        if len(under_way) > 5:
            line.leave(under_way.pop(draw.randrange(6)), draw.choice((0, 10, 5000)))
        for turns in line._classes.values():
            assert max(share.credit for share in turns._ring) <= QUANTUM


def test_what_a_request_cost_beyond_the_guess_is_charged():
    line = Line()
    line.add("a", 10, cost=1)
    line.add("b", 10, cost=1)
    first = line.turn()
    line.leave(first, tokens=20 * QUANTUM)
    assert accounts(line.turns(10)) == "b" * 10


def test_one_that_is_put_back_is_before_its_session_and_paid_nothing():
    line = Line()
    line.add("a", 3, cost=5 * QUANTUM)
    line.add("b", 3, cost=5 * QUANTUM)
    first = line.turn()
    line.put_back(first, Claim(account="a", cost=5 * QUANTUM))
    assert line.turn() == first


def test_who_leaves_is_not_served_and_costs_nothing():
    line = Line()
    line.add("a", 3)
    line.leave(("a", 0))
    line.leave(("a", 0))
    line.leave("never came")
    assert line.turns() == [("a", 1), ("a", 2)]


def test_nothing_is_remembered_of_an_empty_line():
    line = Line()
    for number in range(100):
        line.add(f"account {number}", cost=100 * QUANTUM, priority=number)
    line.turns()
    assert not line._classes
    assert not line._served
