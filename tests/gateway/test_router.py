"""Which neuron gets a request."""

from __future__ import annotations

import statistics

from benchmarks import two_hosts
from gateway.fleet.directory import Directory
from gateway.fleet.router import best, few, second
from ipc.errors import Code, CortexError
from ipc.messages.replies import Quoted
from ipc.messages.state import ModelState
from tests.gateway.hosts import Host, host

REFUSAL = CortexError(Code.MODEL_LOAD_FAILED, "its checkpoint is torn")


def quote(verdict: str, seconds: float | None = None, **fields) -> Quoted:
    return Quoted(id=1, verdict=verdict, seconds=seconds, **fields)


def chosen(hosts: list[Host], **quotes: Quoted | CortexError) -> str:
    return best(hosts, "m", quotes)[0].name


# --- not loaded: quotes ---------------------------------------------------------------------------------


def test_free_memory_comes_before_eviction_and_eviction_before_waiting() -> None:
    hosts = [host(name, "unloaded") for name in "abc"]
    waits, evicts, fits = quote("waits", 1.0), quote("evicts", 2.0, evicts=["x"]), quote("fits", 30.0)
    assert chosen(hosts, a=waits, b=evicts, c=fits) == "c"
    assert chosen(hosts[:2], a=waits, b=evicts) == "b"


def test_what_has_to_be_pulled_comes_before_waiting_and_after_eviction_and_least_is_pulled() -> None:
    hosts = [host(name, "unloaded") for name in "abc"]
    pulls, evicts = quote("waits", bytes_to_pull=9), quote("evicts", 90.0, evicts=["x"])
    assert chosen(hosts, a=pulls, b=evicts, c=quote("waits", 1.0)) == "b"
    assert chosen([hosts[0], hosts[2]], a=pulls, c=quote("waits", 1.0)) == "a"
    for left, right in ((8, 9), (9, 8)):
        quotes = {"a": quote("waits", bytes_to_pull=left), "b": quote("waits", bytes_to_pull=right)}
        assert chosen(hosts[:2], **quotes) == "ab"[left > right]
    unknown, known = quote("waits", bytes_to_pull=0), quote("waits", 1.0, bytes_to_pull=8)
    told = [{"a": unknown, "b": unknown}, {"a": known, "b": unknown}, {"a": unknown, "b": known}]
    assert len({chosen(hosts[:2], **quotes) for quotes in told}) == 1  # whoever asked a moment sooner
    coming = [host("a", "loading", left=900.0), host("b", "unloaded")]
    assert chosen(coming, a=quote("loading", 900.0, bytes_to_pull=5), b=pulls) == "a"
    assert chosen(coming, a=quote("loading", 900.0, bytes_to_pull=5), b=quote("fits", 9.0)) == "b"
    assert second(hosts[:1], "m", {"a": quote("waits", 1.0, bytes_to_pull=9)}, waits=60.0, each=1.0) == {}


def test_what_is_parked_in_memory_comes_before_what_is_on_disk() -> None:
    hosts = [host(name, "unloaded") for name in "ab"]
    parked = quote("fits", None, parked=True)
    assert chosen(hosts, a=parked, b=quote("fits", 3.0)) == chosen(hosts[:1], a=parked) == "a"
    assert chosen(hosts, a=quote("evicts", 1.0, evicts=["x"], parked=True), b=quote("fits", 3.0)) == "b"
    assert chosen(hosts, b=quote("evicts", 9.0, parked=True), a=quote("evicts", 1.0)) == "b"


def test_a_neuron_that_can_evict_gets_what_an_empty_one_is_too_small_for() -> None:
    hosts = [host("small", "unloaded", gpu=12 << 30), host("large", "unloaded", gpu=1 << 30)]
    refused = quote("refused", code=Code.INSUFFICIENT_MEMORY, message="18 GiB")
    assert chosen(hosts, small=refused, large=quote("evicts", 9.0, evicts=["idle"])) == "large"
    assert chosen(hosts[::-1], small=refused) == "large"  # a neuron that says nothing may have room


def test_of_equal_verdicts_the_seconds_decide_then_who_leaves_then_free_memory() -> None:
    hosts = [host("a", "unloaded", gpu=1), host("b", "unloaded", gpu=2)]
    assert chosen(hosts, a=quote("fits", 9.0), b=quote("fits", 3.0)) == "b"
    assert chosen(hosts, a=quote("fits", 9.0), b=quote("fits")) == "a"
    one, two = quote("evicts", 5.0, evicts=["x"]), quote("evicts", 5.0, evicts=["x", "y"])
    assert chosen(hosts, a=two, b=one) == "b"
    assert chosen(hosts, a=quote("fits", 5.0), b=quote("fits", 5.0)) == "b"


def test_waits_for_a_load_that_goes_on_unless_another_would_be_sooner() -> None:
    for status in ("loading", "restarting"):
        assert chosen([host("a", "unloaded"), host("b", status)], a=quote("fits", 5.0)) == "b"
    hosts = [host("a", "unloaded"), host("b", "loading", left=60.0)]
    assert chosen(hosts, a=quote("fits", 5.0)) == "a"
    assert chosen(hosts, a=quote("fits", 90.0)) == "b"


def test_where_it_waits_for_memory_is_better_than_a_second_copy_unless_memory_is_free() -> None:
    hosts = [host("a", "waiting"), host("b", "unloaded")]
    assert chosen(hosts, b=quote("evicts", 1.0, evicts=["x"])) == "a"
    assert chosen(hosts, b=quote("fits", 60.0)) == "b"


def test_a_load_that_has_just_begun_is_waited_for_though_its_memory_is_not_booked_yet() -> None:
    hosts = [host("a", "waiting"), host("b", "unloaded")]
    for said in (quote("loading"), quote("fits", 5.0)):  # the second one is of a moment ago
        assert chosen(hosts, a=said, b=quote("fits", 5.0)) == "a"
    assert chosen(hosts, a=quote("waits", 5.0), b=quote("fits", 5.0)) == "b"


def test_a_burst_begins_one_load_and_waits_for_it() -> None:
    hosts = [host("a", "unloaded", in_flight={"m": 1}), host("b", "unloaded")]
    assert chosen(hosts, a=quote("fits", 5.0), b=quote("fits", 5.0)) == "a"


def test_two_models_at_once_go_to_two_empty_neurons() -> None:
    fits = {"a": quote("fits", 5.0), "b": quote("fits", 5.0)}
    hosts = [host("a", "unloaded"), host("b", "unloaded")]
    first = chosen(hosts, **fits)
    busy = next(each for each in hosts if each.name == first)
    busy.in_flight, busy.models["other"] = {"other": 1}, ModelState(id="other", status="unloaded")
    assert chosen(hosts, **fits) != first
    busy.models["other"] = ModelState(id="other", status="ready")  # its memory is in the quote by now
    assert chosen(hosts, **fits) == first


def test_failed_model_is_tried_again_only_where_nobody_else_can() -> None:
    hosts = [host("a", "failed", gpu=2), host("b", "unloaded", gpu=1)]
    assert chosen(hosts, a=quote("fits", 1.0), b=quote("waits", 60.0)) == "b"
    assert chosen(hosts[:1], a=quote("fits", 1.0)) == "a"


def test_of_equals_every_process_takes_the_same_one_and_not_always_the_first() -> None:
    hosts = [host(name, "unloaded") for name in "abcdefgh"]
    quotes = {each.name: quote("fits", 5.0) for each in hosts}
    chosen_twice = [best(order, "m", quotes)[0].name for order in (hosts, hosts[::-1])]
    assert len(set(chosen_twice)) == 1
    for each in hosts:
        each.models = {f"m{number}": ModelState(id=f"m{number}", status="unloaded") for number in range(9)}
    assert len({best(hosts, f"m{number}", quotes)[0].name for number in range(9)}) > 2


def test_a_load_that_nobody_has_told_yet_is_found_by_its_quote_and_no_second_one_begins() -> None:
    hosts = [host("a", "unloaded", gpu=1 << 40), host("b", "unloaded")]
    for left in (None, 6.0, 12.0):
        assert chosen(hosts, a=quote("fits", 4.0), b=quote("loading", left)) == "b"


def test_what_failed_lately_comes_last() -> None:
    hosts = [host("a", "unloaded", shaky=True), host("b", "unloaded")]
    assert chosen(hosts, a=quote("fits", 1.0), b=quote("evicts", 60.0, evicts=["x"])) == "b"
    assert chosen(hosts[:1], a=quote("fits", 1.0)) == "a"


def test_neuron_that_cannot_read_the_model_comes_last() -> None:
    assert chosen([host("a", "unloaded"), host("b", "unloaded")], a=REFUSAL) == "b"


def test_the_reason_is_in_words() -> None:
    hosts = [host("a", "unloaded")]
    assert best(hosts, "m", {"a": quote("evicts", 2.04, evicts=["x"])})[1] == "it quoted evicts (x) in 2.0 s"
    assert best(hosts, "m", {})[1] == "no quote came in time"
    assert REFUSAL.code in best(hosts, "m", {"a": REFUSAL})[1]
    assert "loading" in best([host("a", "loading")], "m", {})[1]


# --- loaded, and full -------------------------------------------------------------------------------------


def more(hosts: list[Host], waits: float, **quotes: Quoted | CortexError) -> str | None:
    return next((host.name for host in second(hosts, "m", quotes, waits, each=1.0)), None)


def test_one_more_copy_is_loaded_only_where_that_saves_much_time() -> None:
    hosts = [host("a", "unloaded")]
    assert more(hosts, 30.0, a=quote("fits", 8.0)) == "a"
    assert more(hosts, 12.0, a=quote("fits", 8.0)) is None
    assert more(hosts, 4.0, a=quote("fits", 0.1)) is None
    assert more(hosts, 30.0, a=quote("evicts", 8.0, evicts=["idle"], loss=1.0)) == "a"
    assert more(hosts, 30.0, a=quote("evicts", 8.0, evicts=["wanted"], loss=9.0)) is None


def test_nobody_with_work_leaves_for_one_more_copy() -> None:
    hosts = [host("a", "unloaded"), host("b", "unloaded"), host("c", "unloaded", shaky=True)]
    refused = quote("refused", code=Code.INSUFFICIENT_MEMORY, message="18 GiB")
    assert more(hosts, 99.0, a=quote("waits", 1.0), b=refused, c=quote("fits", 1.0)) is None
    assert more(hosts, 99.0, a=REFUSAL, b=quote("fits", 1.0, ahead=1)) is None


def test_a_copy_that_is_coming_is_filled_before_a_third_one_is_loaded() -> None:
    hosts = [host("a", "loading", left=9.0, in_flight={"m": 3}), host("b", "unloaded")]
    assert more(hosts, 30.0, b=quote("fits", 1.0)) == "a"
    hosts[0].in_flight["m"] = 20
    assert more(hosts, 30.0, b=quote("fits", 1.0)) == "b"


def test_of_two_that_would_evict_the_one_goes_whose_model_is_wanted_least() -> None:
    hosts = [host("a", "unloaded"), host("b", "unloaded")]
    often = quote("evicts", 2.0, evicts=["x"], loss=1.5)
    seldom = quote("evicts", 2.1, evicts=["y"], loss=0.1)
    assert chosen(hosts, a=often, b=seldom) == "b"


def test_of_a_thousand_hosts_a_few_are_asked_and_those_that_load_it_already_are_among_them() -> None:
    directory: Directory[Host] = Directory()
    hosts = [host(f"h{number:04}", "unloaded") for number in range(1000)]
    hosts[700].models = {"m": ModelState(id="m", status="loading")}
    for each in hosts:
        directory.update(each, ["m"])
    asked = few(directory.of("m"), "m", 16)
    assert len({each.name for each in asked}) == 16
    assert hosts[700] in asked


# --- many ------------------------------------------------------------------------------------------------


def test_mean_wait_of_a_changing_mix_is_near_that_of_a_scheduler_that_knows_all() -> None:
    """Two hosts and ten models, on paper; `python -m benchmarks.two_hosts` has real neurons as well."""
    mixes = [two_hosts.mix(2000, rate=25.0, seed=seed) for seed in (1, 2, 3)]
    waits, ideal = (
        statistics.mean(wait for arrivals in mixes for wait in schedule(arrivals, hosts=2, load=1.0))
        for schedule in (two_hosts.routed, two_hosts.all_known)
    )
    assert waits < 1.3 * ideal
