from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipc.errors import Code, CortexError
from ipc.worker_messages import PAGE_SIZE, SMALLEST_CONTEXT, CacheGroup
from neuron.memory.cache_plan import CachePlan
from neuron.memory.eviction import Holder, PoolShare
from neuron.memory.fit import find_fit
from neuron.memory.need import Need, RankNeed
from workers.checkpoints.shares import Split

GIB = 1 << 30


def full(bytes_per_token):
    """Layers that keep every token."""
    return CachePlan((CacheGroup(kind="full", layers=[0], bytes_per_token=bytes_per_token),))


def need(**changes):
    """That of a model whose ranks are alike but for their weights."""
    weights = changes.pop("rank_bytes", (4 * GIB,))
    kinds = {"caches": full(100_000)}
    kinds |= {name: changes.pop(name) for name in ("caches", "cpu_overhead", "beside") if name in changes}
    ranks = tuple(RankNeed(weights=size, **kinds) for size in weights)
    values = {"model": "new", "context_length": 8192, "max_sequences": 4, "split": Split.evenly(len(ranks))}
    return Need(ranks=ranks, **values | changes)


def holder(model, size, *, device="cuda:0", priority=100, last_used=0.0, **facts):
    return Holder(model, {device: size}, priority, last_used, **facts)


def test_the_pool_is_what_all_sequences_need_and_no_more():
    fit = find_fit(need(), {"cuda:0": 100 * GIB}, [], "lru")
    assert fit.kv_pages * PAGE_SIZE == 4 * 8192
    assert fit.context_length == 8192
    assert fit.reservations == {"cuda:0": 4 * GIB + 4 * 8192 * 100_000}


def test_what_ranks_may_hold_is_what_is_reserved_for_them():
    fit = find_fit(need(rank_bytes=(GIB, GIB), cpu_overhead=1000), {"cpu": 16 * GIB}, [], "lru")
    assert sum(fit.rank_budgets) == fit.reservations["cpu"]
    assert fit.most_pages == 4 * 8192 // PAGE_SIZE >= fit.kv_pages


def test_without_a_choice_the_freest_gpu_is_taken():
    fit = find_fit(need(), {"cuda:0": 8 * GIB, "cuda:1": 20 * GIB, "cpu": 200 * GIB}, [], "lru")
    assert fit.devices == ("cuda:1",)


def test_without_a_gpu_every_rank_is_on_the_cpu():
    fit = find_fit(need(rank_bytes=(GIB, GIB)), {"cpu": 16 * GIB}, [], "lru")
    assert fit.devices == ("cpu", "cpu")
    assert fit.reservations["cpu"] <= 16 * GIB


def test_the_cpu_pool_is_two_gib_unless_one_context_is_larger():
    small = find_fit(need(context_length=4096, max_sequences=32), {"cpu": 64 * GIB}, [], "lru")
    assert 2 * GIB - small.kv_pages * 32 * 100_000 < 32 * 100_000
    large = find_fit(need(context_length=32768), {"cpu": 64 * GIB}, [], "lru")
    assert 32768 < large.kv_pages * 32 < 1.06 * 32768
    assert large.context_length == 32768


def test_the_context_is_cut_to_the_pool_where_a_whole_one_cannot_be_had():
    fit = find_fit(need(context_length=131072), {"cuda:0": 8 * GIB}, [], "lru")
    assert SMALLEST_CONTEXT <= fit.context_length < 131072
    assert fit.context_length == fit.kv_pages * 32


def test_a_chosen_pool_is_taken_as_it_is_and_cuts_the_context():
    fit = find_fit(need(kv_memory=400_000_000), {"cpu": 64 * GIB}, [], "lru")
    assert fit.kv_pages == fit.most_pages == 400_000_000 // 3_200_000
    assert fit.rank_budgets == (64 * GIB,)
    assert fit.context_length == fit.kv_pages * 32


def test_a_chosen_pool_that_holds_too_little_is_named_and_not_the_memory():
    with pytest.raises(
        CortexError, match="kv_memory 100000000, and keys and values of 2048 tokens take 2048"
    ) as why:
        find_fit(need(kv_memory=100_000_000), {"cpu": 64 * GIB}, [], "lru")
    assert why.value.code == Code.MODEL_TOO_LARGE


def test_of_a_chosen_pool_that_is_larger_than_all_sequences_fill_no_more_is_asked_for_than_is_booked():
    """Else who waits for it holds no place in the line for the rest, and whoever comes later takes that."""
    filled = 4 * 8192 * 100_000
    booked = 4 * GIB + filled
    fit = find_fit(need(kv_memory=40 * GIB), {"cuda:0": booked}, [], "lru")
    assert fit.reservations == {"cuda:0": booked}
    assert (fit.kv_pages, fit.context_length) == (4 * 256, 8192)
    with pytest.raises(CortexError, match=r"needs at least 7\.05 GiB"):
        find_fit(need(kv_memory=40 * GIB), {"cuda:0": booked - 1}, [], "lru")


def test_ranks_keep_the_order_of_the_devices():
    free = {"cuda:0": 20 * GIB, "cuda:1": 5 * GIB, "cuda:2": 30 * GIB}
    assert find_fit(need(rank_bytes=(GIB, GIB)), free, [], "lru").devices == ("cuda:0", "cuda:2")


def test_nobody_leaves_when_there_is_room():
    assert find_fit(need(), {"cuda:0": 40 * GIB}, [holder("old", 20 * GIB)], "lru").victims == ()


def test_the_least_recently_used_leaves_first():
    holders = [holder("young", 10 * GIB, last_used=2.0), holder("old", 10 * GIB, last_used=1.0)]
    assert find_fit(need(), {"cuda:0": GIB}, holders, "lru").victims == ("old",)


def test_by_cost_a_large_model_that_is_cheap_for_each_byte_does_not_leave_for_a_few():
    large = holder("large", 30 * GIB, reload_seconds=60.0, recent_use=1.0)
    small = [holder(name, 4 * GIB, reload_seconds=12.0, recent_use=1.0) for name in ("one", "another")]
    wanted = need(kv_memory=GIB)
    unused = holder("unused", GIB // 2)  # costs nothing, and is too small to help
    fit = find_fit(wanted, {"cuda:0": 4 * GIB}, [large, unused, *small], "cost")
    assert fit.victims == ("another",)
    for free, leave in ((4, ("another",)), (0, ("another", "one"))):
        fit = find_fit(wanted, {"cuda:0": free * GIB}, [large, *small], "cost")
        assert set(fit.victims) == set(leave)
    busy = [replace(each, busy=True) for each in small]
    assert find_fit(wanted, {"cuda:0": 4 * GIB}, [large, *busy], "cost").victims == ("large",)


def test_the_lowest_priority_leaves_first_and_nobody_above_the_new_model():
    holders = [
        holder("low", 10 * GIB, priority=10, last_used=2.0),
        holder("high", 10 * GIB, priority=200, last_used=1.0),
    ]
    assert find_fit(need(), {"cuda:0": GIB}, holders, "priority").victims == ("low",)
    with pytest.raises(CortexError, match="high"):
        find_fit(need(), {"cuda:0": GIB}, holders[1:], "priority")


def test_who_stands_on_another_device_stays():
    holders = [
        holder("elsewhere", 10 * GIB, device="cuda:1", last_used=1.0),
        holder("here", 10 * GIB, last_used=2.0),
    ]
    fit = find_fit(need(devices=("cuda:0",)), {"cuda:0": GIB, "cuda:1": GIB}, holders, "lru")
    assert fit.victims == ("here",)


def test_a_busy_model_leaves_only_where_no_idle_one_would_do():
    holders = [
        holder("busy", 20 * GIB, last_used=1.0, busy=True),
        holder("idle", 20 * GIB, device="cuda:1", last_used=2.0),
    ]
    free = {"cuda:0": GIB, "cuda:1": GIB}
    assert find_fit(need(), free, holders, "lru").victims == ("idle",)
    assert find_fit(need(), free, holders[:1], "lru").victims == ("busy",)


def test_who_leaves_already_is_not_followed_by_another():
    holders = [
        holder("leaving", 20 * GIB, last_used=9.0, busy=True, leaving=True),
        holder("idle", 20 * GIB, device="cuda:1", last_used=1.0),
    ]
    assert find_fit(need(), {"cuda:0": GIB, "cuda:1": GIB}, holders, "lru").victims == ("leaving",)


def test_a_model_goes_where_it_fits_once_an_idle_one_left_and_not_to_an_empty_card_that_is_too_small():
    holders = [holder("idle", 20 * GIB, device="cuda:1")]
    fit = find_fit(need(rank_bytes=(18 * GIB,)), {"cuda:0": 12 * GIB, "cuda:1": 4 * GIB}, holders, "lru")
    assert (fit.devices, fit.victims) == (("cuda:1",), ("idle",))


def test_a_refusal_says_of_each_holder_why_it_stays():
    holders = [
        holder("pinned", 5 * GIB, pinned=True),
        holder("above", 5 * GIB, priority=200),
        holder("idle", 5 * GIB, priority=50),
    ]
    with pytest.raises(CortexError) as refused:
        find_fit(need(rank_bytes=(30 * GIB,)), {"cuda:0": GIB}, holders, "priority")
    assert refused.value.code == Code.INSUFFICIENT_MEMORY
    assert "pinned holds 5.00 GiB on cuda:0 and is pinned" in refused.value.message
    assert "above holds 5.00 GiB on cuda:0 and has priority 200, above its 100" in refused.value.message
    assert "idle holds 5.00 GiB on cuda:0 and could leave, which is not enough" in refused.value.message
    assert refused.value.details["held"]["pinned"] == {"cuda:0": 5 * GIB}


@pytest.mark.parametrize("changes", [{"devices": ("cuda:7",)}, {"rank_bytes": (1, 1, 1)}])
def test_devices_that_are_not_there_are_named(changes):
    with pytest.raises(CortexError, match="cuda:"):
        find_fit(need(**changes), {"cuda:0": 40 * GIB, "cuda:1": 40 * GIB}, [], "lru")


WINDOW = CacheGroup(kind="window", layers=[0, 1], window=1024, bytes_per_token=50_000)
FULL = CacheGroup(kind="full", layers=[2], bytes_per_token=50_000)
STATE = CacheGroup(kind="state", layers=[3], bytes_per_sequence=10 << 20)


def test_layers_with_a_window_take_no_more_however_long_the_context_is():
    plan = CachePlan((FULL, WINDOW), chunk=512)
    assert plan.page_bytes == 50_000 * PAGE_SIZE
    assert plan.pages_for(512) == 2 * 512 // PAGE_SIZE
    assert plan.pages_for(100_000) - plan.pages_for(50_016) == (100_000 - 50_016) // PAGE_SIZE
    fit = find_fit(need(caches=plan, context_length=32768), {"cuda:0": 40 * GIB}, [], "lru")
    assert fit.kv_pages == 4 * plan.pages_for(32768)


def test_states_are_booked_for_every_sequence_and_a_few_texts_more_and_take_no_pages():
    plain = find_fit(need(caches=CachePlan((FULL,))), {"cuda:0": 40 * GIB}, [], "lru")
    hybrid = find_fit(need(caches=CachePlan((FULL, STATE))), {"cuda:0": 40 * GIB}, [], "lru")
    assert hybrid.kv_pages == plain.kv_pages
    assert hybrid.states == 4 * 2 + 4
    assert hybrid.reservations["cuda:0"] - plain.reservations["cuda:0"] == 12 * (10 << 20)
    assert hybrid.rank_budgets[0] - plain.rank_budgets[0] == 12 * (10 << 20)


def test_states_leave_most_of_a_small_device_to_keys_and_values():
    caches = CachePlan((FULL, STATE))
    wanted = need(caches=caches, max_sequences=1000, context_length=512)
    free = wanted.ranks[0].weights + (400 << 20)
    fit = find_fit(wanted, {"cuda:0": free}, [], "lru")
    assert fit.states == 10
    assert fit.reservations["cuda:0"] <= free
    assert fit.kv_pages * caches.page_bytes >= 250 << 20


def test_states_that_leave_a_gpu_get_memory_of_the_host_as_far_as_there_is_some():
    caches, size = CachePlan((FULL, STATE)), 10 << 20
    wanted = need(caches=caches, rank_bytes=(GIB, GIB), host_state_memory=GIB)
    gpus = {"cuda:0": 40 * GIB, "cuda:1": 40 * GIB}
    fit = find_fit(wanted, gpus | {"cpu": 64 * GIB}, [], "lru")
    assert fit.host_states == GIB // size
    assert fit.elsewhere == {"cpu": 2 * fit.host_states * size}
    plain = find_fit(need(caches=caches, rank_bytes=(GIB, GIB)), gpus, [], "lru")
    assert (fit.states, fit.rank_budgets) == (plain.states, plain.rank_budgets)
    assert not plain.elsewhere
    assert find_fit(wanted, gpus | {"cpu": 50 * size}, [], "lru").host_states == 12, "half of it"
    assert find_fit(wanted, gpus, [], "lru").host_states == GIB // size, "nobody counts the host's memory"


def test_on_a_cpu_they_are_states_like_the_others():
    wanted = need(caches=CachePlan((FULL, STATE)), rank_bytes=(GIB,))
    plain = find_fit(wanted, {"cpu": 16 * GIB}, [], "lru")
    fit = find_fit(replace(wanted, host_state_memory=GIB), {"cpu": 16 * GIB}, [], "lru")
    more = GIB // (10 << 20)
    for free in (GIB * 3 // 2, 2 * GIB):
        little = find_fit(replace(wanted, host_state_memory=0), {"cpu": free}, [], "lru")
        assert (
            find_fit(replace(wanted, host_state_memory=GIB), {"cpu": free}, [], "lru").kv_pages
            == little.kv_pages
        )
    assert (fit.states, fit.host_states) == (plain.states + more, 0)
    assert fit.reservations["cpu"] - plain.reservations["cpu"] == more * (10 << 20)


def test_a_refusal_says_what_states_take():
    wanted = need(caches=CachePlan((FULL, STATE)))
    with pytest.raises(CortexError, match=r"of which 2 states take 0\.02 GiB"):
        find_fit(wanted, {"cuda:0": 4 * GIB}, [], "lru")


@given(pages=st.integers(1, 3000), wanted=st.integers(1, 60_000), chunk=st.integers(1, 2048))
def test_the_longest_sequence_is_the_longest_that_fits(pages, wanted, chunk):
    plan = CachePlan((FULL, WINDOW), chunk)
    longest = plan.longest(pages, wanted)
    assert longest == 0 or plan.pages_for(longest) <= pages
    assert longest == wanted or plan.pages_for(min(wanted, longest + PAGE_SIZE)) > pages


sizes = st.integers(0, 64 * GIB)


@given(
    free=st.dictionaries(st.sampled_from(["cpu", "cuda:0", "cuda:1", "cuda:2"]), sizes, min_size=1),
    ranks=st.lists(st.integers(1, 20 * GIB), min_size=1, max_size=3),
    per_token=st.integers(0, 500_000),
    context=st.integers(1, 200_000),
    holders=st.lists(
        st.builds(
            Holder,
            model=st.uuids().map(str),
            reserved=st.dictionaries(st.sampled_from(["cpu", "cuda:0", "cuda:1"]), sizes, min_size=1),
            priority=st.integers(0, 3),
            last_used=st.floats(0, 10),
            pinned=st.booleans(),
            busy=st.booleans(),
            reload_seconds=st.floats(0, 60),
            recent_use=st.floats(0, 10),
        ),
        max_size=4,
    ),
    strategy=st.sampled_from(["lru", "priority", "cost"]),
)
def test_a_fit_never_takes_more_than_is_free_once_its_victims_left(
    free, ranks, per_token, context, holders, strategy
):
    wanted = need(rank_bytes=tuple(ranks), caches=full(per_token), context_length=context, priority=1)
    try:
        fit = find_fit(wanted, free, holders, strategy)
    except CortexError:
        return
    leaving = [h for h in holders if h.model in fit.victims]
    assert not any(h.pinned for h in leaving)
    for device, size in fit.reservations.items():
        assert size <= free[device] + sum(h.reserved.get(device, 0) for h in leaving)
    assert len(fit.devices) == len(ranks)
    assert 0 < fit.context_length <= min(context, fit.kv_pages * 32)


def test_a_pool_leaves_room_for_what_may_come_beside_it_and_does_not_book_it():
    free = {"cuda:0": 8 * GIB}
    alone = find_fit(need(context_length=131072), free, [], "lru")
    fit = find_fit(need(context_length=131072, beside=GIB), free, [], "lru")
    assert alone.reservations["cuda:0"] > 7 * GIB
    assert sum(fit.rank_budgets) == fit.reservations["cuda:0"] < 7 * GIB


def test_a_base_does_not_leave_for_its_own_adapter_and_others_do():
    free = {"cuda:0": 0}
    adapter = need(rank_bytes=(GIB,), caches=CachePlan(), context_length=1, max_sequences=1, base="base")
    base, other = holder("base", 8 * GIB), holder("other", 2 * GIB, last_used=1.0)
    assert find_fit(adapter, free, [base, other], "lru").victims == ("other",)
    with pytest.raises(CortexError) as refused:
        find_fit(adapter, free, [base], "lru")
    assert refused.value.code == Code.INSUFFICIENT_MEMORY


def pooled(model, size, spare, *, page=3_200_000, devices=("cuda:0",), **facts):
    """A holder of so many bytes on each device whose pool can give up `spare` pages."""
    share = PoolShare(dict.fromkeys(devices, page), spare)
    return Holder(model, dict.fromkeys(devices, size), 100, 0.0, pool=share, **facts)


def test_pools_of_others_shrink_before_anybody_leaves_and_by_no_more_than_it_takes():
    holders = [pooled("idle", 10 * GIB, 2000), pooled("busy", 6 * GIB, 100, busy=True)]
    fit = find_fit(need(), {"cuda:0": 2 * GIB}, holders, "lru")
    assert not fit.victims
    assert fit.context_length == 8192
    assert list(fit.shrinks) == ["idle"]
    given = fit.shrinks["idle"] * 3_200_000
    assert 0 <= 2 * GIB + given - fit.reservations["cuda:0"] < 3_200_000


def test_it_takes_half_of_what_others_can_spare_if_that_is_more_than_a_context():
    whole = need().caches.pages_for(8192)
    for spare, wanted in ((2000, 0), (1300, 0), (1100, whole)):
        fit = find_fit(need(max_sequences=64), {"cuda:0": 2 * GIB}, [pooled("a", 14 * GIB, spare)], "lru")
        room = 2 * GIB + spare * 3_200_000 - 4 * GIB
        expected = wanted or int(room * 0.95) // 2 // 3_200_000
        assert expected <= fit.kv_pages <= expected * 1.06
        assert fit.wanted_pages == int(room * 0.95) // 3_200_000


def test_the_pinned_and_those_of_a_higher_class_make_room_in_their_pools_too():
    for facts in ({"pinned": True}, {"busy": True}):
        fit = find_fit(need(), {"cuda:0": 2 * GIB}, [pooled("a", 14 * GIB, 2000, **facts)], "lru")
        assert (fit.victims, list(fit.shrinks)) == ((), ["a"])


def test_where_pools_cannot_spare_enough_somebody_leaves_and_no_pool_shrinks():
    holders = [pooled("a", 10 * GIB, 100), holder("b", 8 * GIB)]
    fit = find_fit(need(), {"cuda:0": 2 * GIB}, holders, "lru")
    assert (fit.victims, fit.shrinks) == (("a",), {})


def test_a_pool_over_several_devices_shrinks_by_the_pages_that_the_tightest_needs():
    both = ("cuda:0", "cuda:1")
    fit = find_fit(
        need(rank_bytes=(4 * GIB, 4 * GIB)),
        {"cuda:0": 5 * GIB, "cuda:1": 2 * GIB},
        [pooled("a", 14 * GIB, 2000, devices=both)],
        "lru",
    )
    short = fit.reservations["cuda:1"] - 2 * GIB
    assert fit.shrinks == {"a": -(-short // 3_200_000)}


def test_a_pool_that_was_resized_is_booked_and_budgeted_as_it_is():
    fit = find_fit(need(rank_bytes=(GIB, GIB)), {"cpu": 16 * GIB}, [], "lru")
    measured, ten = (3 * GIB, 2 * GIB), 10 * fit.caches.page_bytes
    smaller = fit.resized(fit.kv_pages - 10, measured)
    assert smaller.kv_pages == fit.kv_pages - 10
    assert smaller.reservations["cpu"] == fit.reservations["cpu"] - 2 * ten
    assert smaller.rank_budgets == (3 * GIB - ten, 2 * GIB - ten)
    again = smaller.resized(fit.kv_pages, smaller.rank_budgets)
    assert (again.reservations, again.rank_budgets) == (fit.reservations, measured)


@pytest.mark.parametrize(
    "changes",
    [{"rank_bytes": (30 * GIB,)}, {"kv_memory": 30 * GIB, "max_sequences": 40}, {"caches": full(GIB // 16)}],
)
def test_what_would_not_fit_on_an_empty_device_is_too_large_and_what_would_is_not(changes):
    holders = [holder("pinned", 20 * GIB, pinned=True)]
    free, total = {"cuda:0": 2 * GIB, "cpu": 64 * GIB}, {"cuda:0": 24 * GIB, "cpu": 64 * GIB}
    with pytest.raises(CortexError, match=r"would be 24\.00 GiB on cuda:0$") as refused:
        find_fit(need(**changes), free, holders, "lru", total=total)
    assert refused.value.code == Code.MODEL_TOO_LARGE
    assert refused.value.details["total"] == {"cuda:0": 24 * GIB}
    with pytest.raises(CortexError) as refused:
        find_fit(need(), free, holders, "lru", total=total)
    assert refused.value.code == Code.INSUFFICIENT_MEMORY
