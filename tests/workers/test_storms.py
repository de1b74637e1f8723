"""All promises of the scheduler together, through very many random steps."""

from __future__ import annotations

from array import array
from itertools import groupby

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipc.worker_messages import PAGE_SIZE, PlacedImage
from tests.workers.simulation import STORM_STEPS, Shape, Storm, group, replay
from workers.scheduling import fair_queue
from workers.scheduling.scheduler import Scheduler


@pytest.fixture(autouse=True, scope="module")
def impatience():
    """So that waiting too long is an everyday matter."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fair_queue, "PASSING", 5)
        yield


@pytest.mark.parametrize("kv_pages", [5, 12, 40])
@pytest.mark.parametrize("max_step_tokens", [7, 64, 512])
@pytest.mark.parametrize("max_sequences", [1, 4, 32])
def test_a_long_storm_leaks_nothing_and_answers_everybody(max_sequences, max_step_tokens, kv_pages):
    shape = Shape(max_sequences, max_step_tokens, context_length=300, kv_pages=kv_pages)
    Storm(shape, seed=max_sequences * max_step_tokens * kv_pages).rage(STORM_STEPS).calm()


CACHES = {
    "window": (group("window", 40),),
    "full and window": (group("full"), group("window", 70)),
    "two of each": (group("full"), group("full"), group("window", 33), group("window", 100)),
    "full and chunk": (group("full"), group("chunk", 64)),
    "latent": (group("latent"),),
    "state": (group("state"),),
    "hybrid": (group("full"), group("window", 50), group("state")),
}


@pytest.mark.parametrize("in_flight", [0, 1])
@pytest.mark.parametrize("kv_pages", [24, 60])
@pytest.mark.parametrize("caches", CACHES.values(), ids=CACHES)
def test_all_kinds_of_cache_keep_every_promise(caches, kv_pages, in_flight):
    host_states = 3 if kv_pages == 60 else 0
    shape = Shape(5, 64, 300, kv_pages, caches, states=12, host_states=host_states)
    Storm(shape, kv_pages, in_flight).rage(STORM_STEPS // 3).calm()


@pytest.mark.parametrize("in_flight", [1, 2])
@pytest.mark.parametrize("kv_pages", [5, 12, 40])
def test_a_storm_with_steps_in_flight_gives_the_answers_of_one_without(kv_pages, in_flight):
    shape = Shape(6, 64, context_length=300, kv_pages=kv_pages)
    Storm(shape, kv_pages, in_flight).rage(STORM_STEPS).calm()


class Tides(Storm):
    """Its pool shrinks and grows, between a page over what one whole sequence takes and all."""

    resizes = 0

    def _step(self, chunk, fails):
        run, dice = self.run, self.random
        if dice.random() < 0.05:
            while run.results:  # as a worker does
                run.observe()
            pages = dice.randint(self.shape.kv_pages // 2, self.shape.kv_pages)
            run.scheduler.resize(pages)
            run.take()
            run.engine.pages[pages:] = [[None] * PAGE_SIZE for _ in run.engine.pages[pages:]]
            run.engine.check_pages()
            self.resizes += 1
        return super()._step(chunk, fails)


@pytest.mark.parametrize("in_flight", [0, 1])
@pytest.mark.parametrize("caches", CACHES.values(), ids=CACHES)
def test_a_pool_that_shrinks_and_grows_costs_no_answer(caches, in_flight):
    shape = Shape(5, 64, 300, 80, caches, states=12, host_states=3)
    storm = Tides(shape, 80, in_flight)
    storm.rage(STORM_STEPS // 3)
    assert storm.resizes > STORM_STEPS // 100
    assert storm.run.scheduler.statistics()["preemptions"]
    storm.calm()


class Sights(Storm):
    """Prompts show images, which are looked at in pieces; tokens from `FIRST` on say which they are."""

    FIRST = 1000
    looks = 0

    def _work(self, chunk):
        return None if chunk is None else self.random.choice((1, 3, 10))

    def _step(self, chunk, fails):
        plan = super()._step(chunk, fails)
        self.looks += plan is not None and plan.look is not None
        return plan

    def _request(self, request_id):
        request, dice = super()._request(request_id), self.random
        prompt = array("I", request.prompt)
        for _ in range(dice.choice((0, 1, 1, 3)) if prompt else 0):
            place = dice.choice([n for n, token in enumerate(prompt) if token < self.FIRST])
            shown = array("I", [self.FIRST + dice.randrange(500)] * dice.choice((1, 9, 40)))
            prompt[place:place] = array("I", [8]) + shown
        images, ends = [], 0
        for token, run in groupby(prompt):
            start, ends = ends, ends + len(list(run))
            if token >= self.FIRST:
                images.append(PlacedImage(b"%d" % token, start, 1, ends - start))
        if dice.random() < 0.3:
            self.texts = [*self.texts[-5:], prompt.tolist()]
        return msgspec.structs.replace(request, prompt=prompt.tobytes(), images=images)


@pytest.mark.parametrize(("caches", "in_flight"), [("hybrid", 0), ("two of each", 1)])
def test_images_are_looked_at_before_they_are_shown_where_an_answer_would_wait(caches, in_flight):
    shape = Shape(5, 64, 300, 40, CACHES[caches], states=12, host_states=3)
    storm = Sights(shape, 1, in_flight).rage(STORM_STEPS).calm()
    assert storm.looks > STORM_STEPS // 50


kinds = st.one_of(
    st.sampled_from(["full", "latent", "state"]).map(group),
    st.integers(1, 200).map(lambda window: group("window", window)),
    st.integers(1, 6).map(lambda pages: group("chunk", PAGE_SIZE * pages)),
)


@settings(max_examples=100, deadline=None)
@given(
    shape=st.builds(
        Shape,
        max_sequences=st.integers(1, 12),
        max_step_tokens=st.integers(1, 100),
        context_length=st.integers(2, 300),
        kv_pages=st.integers(4, 40),
        caches=st.lists(kinds, max_size=4).map(tuple),
        states=st.integers(8, 20),
    ),
    seed=st.integers(0, 2**32),
    in_flight=st.integers(0, 2),
)
def test_any_shape_leaks_nothing_and_answers_everybody(shape, seed, in_flight):
    Storm(shape, seed, in_flight).rage(60).calm()


@pytest.mark.parametrize("seed", range(5))
def test_a_recorded_event_log_replays_to_the_same_plans(seed):
    shape = Shape(max_sequences=8, max_step_tokens=64, context_length=300, kv_pages=20)
    storm = Storm(shape, seed).rage(300).calm()
    plans, reports = replay(Scheduler(**vars(shape)), storm.run.recorded.events)
    encode = msgspec.msgpack.encode
    assert encode(plans) == encode(storm.run.plans)
    assert encode(reports) == encode(storm.run.reports)
