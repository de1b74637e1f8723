"""A client that leaves takes its request with it, in the worker and not only in the gateway."""

import httpx
import pytest

from tests.end_to_end.harness import LONG, wait_until


def test_a_client_that_leaves_its_stream_cancels_it(cortex):
    before = cortex.quiet()
    cortex.stream().leave()
    after = cortex.quiet()
    assert (after.cancelled - before.cancelled, after.finished - before.finished) == (1, 0)
    assert after.pages_free == before.pages_free


def test_a_client_that_leaves_before_its_answer_cancels_it(cortex):
    before = cortex.quiet()
    body = {"model": "simulated", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": LONG}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{cortex.base}/v1/chat/completions", json=body, timeout=0.3)
    after = cortex.quiet()
    assert (after.cancelled - before.cancelled, after.finished - before.finished) == (1, 0)


def test_a_cancelled_request_takes_no_further_step(cortex):
    cortex.quiet()
    cortex.stream().leave()
    steps = cortex.quiet().steps
    assert cortex.chat(model="simulated", max_tokens=5).status_code == 200
    wait_until(lambda: cortex.quiet().steps > steps, "the next request's steps to be told")
    assert cortex.quiet().steps - steps <= 8  # those of the request of five tokens


def test_metrics_count_the_clients_that_left(cortex):
    def left() -> float:
        lines = httpx.get(cortex.metrics).text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith("cortex_cancelled_total"))

    before = left()
    cortex.stream().leave()
    wait_until(lambda: left() == before + 1, "the cancelled request in the metrics")
