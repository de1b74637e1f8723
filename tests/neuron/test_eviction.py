"""Who leaves for whom, as a function of numbers."""

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuron.memory.eviction import (
    HALF_LIFE,
    MISSED_VISITS,
    VISIT_HALF_LIFE,
    VISIT_SECONDS,
    VISIT_USES,
    Holder,
    RecentUse,
    cheapest,
    explain,
    must_wait,
    order,
    stays,
)

GIB = 1 << 30
HERE = ["cuda:0"]


def holder(name, size=GIB, *, device="cuda:0", priority=100, last_used=0.0, **facts):
    return Holder(name, {device: size}, priority, last_used, **facts)


def first(holders, strategy, priority=100):
    return [each.model for each in order(holders, priority, HERE, strategy)]


def test_a_request_counts_half_after_its_half_life_and_a_visit_for_much_longer():
    use = RecentUse()
    use.add(0.0)
    assert use.at(HALF_LIFE) == pytest.approx(0.5, abs=VISIT_USES)
    use.add(HALF_LIFE)
    assert use.at(HALF_LIFE) == pytest.approx(1.5, abs=VISIT_USES)
    assert use.at(VISIT_HALF_LIFE) == pytest.approx(VISIT_USES / 2)  # both were one visit


def test_between_models_that_nobody_used_for_long_those_stay_that_are_wanted_often():
    once, often = RecentUse(), RecentUse()
    for number in range(4):
        often.add(number * VISIT_SECONDS)
    once.add(3.5 * VISIT_SECONDS)
    assert once.at(4 * VISIT_SECONDS) > often.at(4 * VISIT_SECONDS)
    assert often.at(VISIT_HALF_LIFE) > 3 * once.at(VISIT_HALF_LIFE)


def test_by_cost_a_quote_counts_who_comes_now_and_then_and_no_more_than_one_load():
    facts = {"reload_seconds": 10.0, "recent_use": 0.2, "recent_requests": 0.1}
    assert holder("seldom", **facts).loss("cost") == pytest.approx(10.0 * (0.1 + 10.0 * MISSED_VISITS * 0.1))
    assert holder("seldom", **facts).loss("lru") == pytest.approx(1.0)
    facts |= {"recent_use": 9.0, "recent_requests": 9.0}
    assert holder("often", **facts).loss("cost") == holder("often", **facts).loss("lru") == 10.0


def test_cost_is_seconds_of_reload_times_use_times_priority_for_each_byte():
    facts = {"reload_seconds": 10.0, "recent_use": 1.0}
    plain = holder("plain", **facts)
    dear = [
        holder("slow to load", **facts | {"reload_seconds": 20.0}),
        holder("used twice as much", **facts | {"recent_use": 2.0}),
        holder("a class above", priority=200, **facts),
        holder("frees half", GIB // 2, **facts),
    ]
    for each in dear:
        assert each.cost(HERE) == pytest.approx(2 * plain.cost(HERE))
        assert first([each, plain], "cost", priority=200) == ["plain", each.model]


def test_each_strategy_goes_by_its_own_number():
    holders = [
        holder("old", last_used=1.0, priority=50, reload_seconds=9.0, recent_use=1.0),
        holder("low", last_used=2.0, priority=10, reload_seconds=90.0, recent_use=1.0),
        holder("cheap", last_used=3.0, priority=90, reload_seconds=0.1, recent_use=1.0),
    ]
    assert first(holders, "lru")[0] == "old"
    assert first(holders, "priority")[0] == "low"
    assert first(holders, "cost")[0] == "cheap"


def test_what_nobody_used_for_long_leaves_before_what_was_used_a_moment_ago():
    now, holders = 4 * HALF_LIFE, []
    for name, used in (("yesterday", 0.0), ("just now", now)):
        use = RecentUse()
        use.add(used)
        holders.append(holder(name, last_used=used, reload_seconds=5.0, recent_use=use.at(now)))
    assert first(holders, "cost") == ["yesterday", "just now"]


def test_who_does_not_hold_what_is_wanted_is_not_asked():
    assert first([holder("elsewhere", device="cuda:1"), holder("here")], "cost") == ["here"]


facts = st.fixed_dictionaries(
    {
        "priority": st.integers(-1, 3),
        "last_used": st.floats(0, 10),
        "pinned": st.booleans(),
        "busy": st.booleans(),
        "leaving": st.booleans(),
        "settled": st.booleans(),
        "reload_seconds": st.floats(0, 100),
        "recent_use": st.floats(0, 100),
    }
)


@given(
    everybody=st.lists(facts, max_size=6),
    priority=st.integers(-1, 3),
    strategy=st.sampled_from(["cost", "lru", "priority"]),
)
def test_no_strategy_ever_takes_a_pinned_model_or_one_of_a_higher_class(everybody, priority, strategy):
    holders = [holder(str(number), **each) for number, each in enumerate(everybody)]
    chosen = order(holders, priority, HERE, strategy)
    assert not any(each.pinned for each in chosen)
    assert all(each.priority <= priority or each.leaving for each in chosen)
    assert chosen == order(reversed(holders), priority, HERE, strategy)  # whatever order they come in
    # who leaves already costs nothing; who can leave now is asked before who cannot
    waits = [must_wait(each, priority) for each in chosen if not each.leaving]
    assert waits == sorted(waits)
    assert [each.leaving for each in chosen] == sorted((each.leaving for each in chosen), reverse=True)
    for each in holders:
        assert (each in chosen) == (stays(each, priority) is None)


@given(
    everybody=st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9), st.booleans()), max_size=7),
    wanted=st.integers(1, 30),
)
def test_of_all_sets_that_do_the_one_leaves_whose_return_costs_least(everybody, wanted):
    holders = [
        holder(str(number), size, reload_seconds=float(seconds), recent_use=1.0, busy=busy)
        for number, (size, seconds, busy) in enumerate(everybody)
    ]

    def does(chosen):
        return sum(each.freed(HERE) for each in chosen) >= wanted

    able = [each for each in holders if not each.busy]
    sets = [list(chosen) for count in range(1, len(able) + 1) for chosen in combinations(able, count)]
    costs = [sum(each.worth for each in chosen) for chosen in sets if does(chosen)]
    if not costs:
        return
    found = cheapest(able, holders, 100, does)
    assert does(found)
    assert sum(each.worth for each in found) == min(costs)


def test_a_decision_is_explained_with_the_numbers_it_went_by_and_why_others_stay():
    victim = holder("a", 2 * GIB, reload_seconds=12.0, recent_use=0.5)
    others = [holder("b", pinned=True), holder("c", priority=200), holder("d", device="cuda:1")]
    assert explain([victim], others, 100, HERE, "cost", 7.0) == (
        "strategy=cost leave=a (12.00 s to load x 0.50 uses x priority 100 / 2.00 GiB); "
        "stay=b (is pinned), c (has priority 200, above its 100)"
    )
    assert explain([victim], [], 100, HERE, "lru", 7.0) == "strategy=lru leave=a (used 7.0 s ago); stay=none"
