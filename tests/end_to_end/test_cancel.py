"""A client that leaves takes its request with it, in the worker and not only in the gateway."""

import http.client
import json

import httpx
import pytest

from tests.end_to_end.harness import LONG, Services, wait_until

MODEL = {"id": "simulated", "pin": True, "simulated": {"step_seconds": 0.005}}


@pytest.fixture(scope="module")
def cortex(tmp_path_factory):
    """A system whose model takes its time: a LONG answer lasts minutes, so nothing here ends by itself."""
    with Services(tmp_path_factory.mktemp("slow"), {"models": [MODEL]}, {}) as system:
        wait_until(system.ready, "the gateway to find its neuron")
        yield system


def test_a_client_that_leaves_its_stream_cancels_it(cortex):
    before = cortex.quiet()
    cortex.stream().leave()
    wait_until(lambda: cortex.quiet().cancelled > before.cancelled, "the cancellation to be told")
    after = cortex.quiet()
    assert (after.cancelled - before.cancelled, after.finished - before.finished) == (1, 0)
    wait_until(lambda: cortex.quiet().pages_free == before.pages_free, "its pages to be free")


def test_a_client_that_leaves_before_its_answer_cancels_it(cortex):
    before = cortex.quiet()
    body = {"model": "simulated", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": LONG}
    connection = http.client.HTTPConnection(cortex.base.removeprefix("http://"))
    headers = {"content-type": "application/json"}
    connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
    wait_until(lambda: cortex.model().running, "it to run")
    connection.close()
    wait_until(lambda: cortex.quiet().cancelled > before.cancelled, "the cancellation to be told")
    after = cortex.quiet()
    assert (after.cancelled - before.cancelled, after.finished - before.finished) == (1, 0)


def test_a_cancelled_request_takes_no_further_step(cortex):
    before = cortex.quiet()
    cortex.stream().leave()
    wait_until(lambda: cortex.quiet().cancelled > before.cancelled, "the cancellation to be told")
    # The next request's steps are told together with any that the cancelled one still took after `steps`.
    steps = cortex.quiet().steps
    assert cortex.chat(model="simulated", max_tokens=5).status_code == 200
    wait_until(lambda: cortex.quiet().steps > steps, "the next request's steps to be told")
    assert cortex.quiet().steps - steps <= 8  # those of the request of five tokens, and what was on its way


def test_metrics_count_the_clients_that_left(cortex):
    def left() -> float:
        lines = httpx.get(cortex.metrics).text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith("cortex_cancelled_total"))

    before = left()
    cortex.stream().leave()
    wait_until(lambda: left() == before + 1, "the cancelled request in the metrics")
