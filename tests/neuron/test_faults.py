"""What may go wrong with workers: all clients get typed errors, the next one is served, nothing stays."""

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import msgspec
import pytest

from ipc.errors import Code, CortexError
from ipc.messages.replies import Delta, Finished
from ipc.messages.requests import Load
from tests.neuron.harness import PATIENCE, Neuron, chat, is_running, simulated, wait_until

ENDLESS = 30_000  # tokens; more than any test waits for


def begin(client, model, tokens=ENDLESS, **fields):
    """A stream that has had its first token."""
    stream = client.stream(chat(model, tokens, **fields), PATIENCE)
    for reply in stream:
        if isinstance(reply, Delta):
            return stream
    raise AssertionError(f"the stream ended before its first token: {reply}")


def assert_next_is_served(client, model):
    assert isinstance(client.ask(chat(model, 5), PATIENCE), Finished)


def assert_served_after_a_pause(client, model):
    with suppress(CortexError):  # it may come too soon
        client.ask(chat(model, 5), PATIENCE)
    time.sleep(0.05)  # the longest pause
    assert_next_is_served(client, model)


@pytest.mark.parametrize(("ranks", "victim"), [(1, 0), (2, 0), (2, 1)])
def test_a_killed_rank_is_replaced_and_what_runs_goes_on(tmp_path, ranks, victim):
    model = simulated("sim", step_seconds=0.005, settings={"ranks": ranks})
    with Neuron(tmp_path, [model]) as neuron, neuron.client() as one, neuron.client() as two:
        streams = [begin(client, "sim", 300, return_token_ids=True) for client in (one, two)]
        before = neuron.workers("sim")
        os.kill(before[victim], signal.SIGKILL)
        told = [list(stream) for stream in streams]
        whole = one.ask(chat("sim", 300, stream=False), PATIENCE)
        for replies in told:
            assert isinstance(replies[-1], Finished)
            # what either finds cached of the other depends on when each goes on
            assert msgspec.structs.replace(replies[-1].usage, cached_tokens=0) == whole.usage
            text = "".join(reply.text for reply in replies if isinstance(reply, Delta))
            assert text
            assert whole.choices[0].text.endswith(text)  # `begin` took what came first
        state = neuron.model("sim")
        assert (state.status, state.restarts, state.epoch) == ("ready", 1, 2)
        assert sorted(neuron.children()) == sorted(neuron.workers("sim"))
        assert not set(before) & set(neuron.children())


def test_an_answer_of_a_killed_worker_is_to_the_bit_what_it_would_have_been(tmp_path):
    with Neuron(tmp_path, [{"id": "demo", "exact": True}], standby=True) as neuron, neuron.client() as client:
        exactly = {"temperature": 0.8, "seed": 5, "ignore_eos": True, "logprobs": 1}
        replies = []
        for reply in client.stream(chat("demo", 200, sampling=exactly), PATIENCE):
            replies.append(reply)
            if len(replies) == 50:
                os.kill(neuron.workers("demo")[0], signal.SIGKILL)
        assert neuron.model("demo").restarts == 1
        deltas = [reply for reply in replies if isinstance(reply, Delta)]
        whole = client.ask(chat("demo", 200, sampling=exactly, stream=False), PATIENCE).choices[0]
        assert "".join(delta.text for delta in deltas) == whole.text
        assert [each for delta in deltas for each in delta.logprobs] == whole.logprobs


@pytest.mark.parametrize("victim", [0, 1])
def test_a_stopped_rank_is_found_by_the_deadline(tmp_path, victim):
    model = simulated("sim", step_seconds=0.005, settings={"ranks": 2})
    with Neuron(tmp_path, [model], step_deadline_seconds=1) as neuron, neuron.client() as client:
        stream = begin(client, "sim", 300)
        os.kill(neuron.workers("sim")[victim], signal.SIGSTOP)
        assert isinstance(list(stream)[-1], Finished)
        assert neuron.model("sim").restarts == 1


@pytest.mark.parametrize(
    ("failure", "code"),
    [
        ({"die_at_step": 5}, Code.WORKER_DIED),
        ({"hang_at_step": 5}, Code.STEP_DEADLINE),
        ({"error_at_step": 5}, Code.WORKER_DIED),
    ],
)
def test_a_worker_that_fails_at_a_step_is_replaced(tmp_path, failure, code):
    """Who can go on elsewhere at once is told, all others wait for the next one."""
    model = simulated("sim", failure=failure | {"epochs": 1})
    with Neuron(tmp_path, [model], step_deadline_seconds=0.5) as neuron, neuron.client() as client:
        failed = list(client.stream(chat("sim", 50, replicated=True), PATIENCE))[-1]
        assert (failed.code, failed.tokens_sent) == (code, 4)
        assert_next_is_served(client, "sim")


def test_requests_that_had_not_begun_are_queued_again(tmp_path):
    model = simulated("sim", step_seconds=0.005, settings={"max_sequences": 1})
    with Neuron(tmp_path, [model]) as neuron, neuron.client() as running, ThreadPoolExecutor() as threads:

        def ask():
            with neuron.client() as client:
                return client.ask(chat("sim", 5), PATIENCE)

        stream = begin(running, "sim", 300)
        others = [threads.submit(ask) for _ in range(3)]
        wait_until(lambda: neuron.model("sim").running + neuron.model("sim").waiting == 4, "all to be there")
        os.kill(neuron.workers("sim")[0], signal.SIGKILL)
        assert isinstance(list(stream)[-1], Finished)
        for other in others:
            assert isinstance(other.result(PATIENCE), Finished)


def test_a_request_that_kills_every_worker_is_given_up(tmp_path):
    model = simulated("sim", failure={"die_at_step": 1})
    with Neuron(tmp_path, [model]) as neuron, neuron.client() as client:
        with pytest.raises(CortexError) as failed:
            client.ask(chat("sim"), PATIENCE)
        assert failed.value.code == Code.WORKER_DIED
        assert neuron.model("sim").restarts == 2


def test_a_model_that_never_stays_up_is_given_up_and_may_be_asked_for_again(tmp_path):
    model = simulated("sim", failure={"die_at_step": 1, "epochs": 5})
    with Neuron(tmp_path, [model]) as neuron, neuron.client() as client:
        for _ in range(4):
            with pytest.raises(CortexError):
                client.ask(chat("sim"), PATIENCE)
            if neuron.model("sim").status == "failed":
                break
        state = neuron.wait_for("sim", status="failed")
        assert "given up" in state.error
        assert_served_after_a_pause(client, "sim")


def test_a_load_that_fails_leaves_no_process_and_no_booking(tmp_path):
    model = simulated("sim", memory="1GiB", failure={"fail_load": "a bad shard", "epochs": 1})
    with Neuron(tmp_path, [model]) as neuron, neuron.client() as client:
        with pytest.raises(CortexError, match="a bad shard") as failed:
            client.ask(Load(id=0, model="sim"), PATIENCE)
        assert failed.value.code == Code.MODEL_LOAD_FAILED
        health = neuron.health()
        assert health.models[0].error.endswith("a bad shard")
        assert health.devices[0].memory_reserved == 0
        assert neuron.children() == []
        assert_served_after_a_pause(client, "sim")


def test_a_load_has_a_deadline(tmp_path):
    model = simulated("sim", load_seconds=60)
    with Neuron(tmp_path, [model], load_deadline_seconds=0.5) as neuron, neuron.client() as client:
        with pytest.raises(CortexError, match=r"not ready within 0\.5 seconds"):
            client.ask(Load(id=0, model="sim"), PATIENCE)
        assert neuron.children() == []


def test_a_pinned_model_that_fails_to_load_is_tried_again(tmp_path):
    model = simulated("sim", failure={"fail_load": "not yet", "epochs": 3}, settings={"pin": True})
    with Neuron(tmp_path, [model]) as neuron:
        state = neuron.wait_for("sim", status="ready")
        assert state.epoch == 4
        assert neuron.log.count("model failed") == 3


def test_the_other_models_do_not_notice(tmp_path):
    models = [
        simulated("doomed", failure={"die_at_step": 3}),
        simulated("broken", failure={"error_at_step": 3}),  # as by a kernel that cannot be built
        simulated("well", step_seconds=0.005),
    ]
    with (
        Neuron(tmp_path, models) as neuron,
        neuron.client() as client,
        neuron.client() as other,
        ThreadPoolExecutor() as pool,
    ):
        stream = begin(other, "well")
        for model in ("doomed", "broken"):
            asked = pool.submit(client.ask, chat(model, 50), PATIENCE)
            while not asked.done():  # a neuron gives up whoever takes nothing for ten seconds
                assert isinstance(next(stream), Delta)
            with pytest.raises(CortexError) as caught:
                asked.result()
            assert caught.value.code == Code.WORKER_DIED
        assert isinstance(next(stream), Delta)
        assert neuron.model("well").epoch == 1
        stream.close()


def test_workers_die_with_the_supervisor(tmp_path):
    model = simulated("sim", step_seconds=0.005, settings={"ranks": 2})
    with Neuron(tmp_path, [model]) as neuron, neuron.client() as client:
        stream = begin(client, "sim")
        pids = neuron.workers("sim")
        neuron.process.kill()
        neuron.process.wait()
        wait_until(lambda: not any(map(is_running, pids)), "the workers to die")
        failed = list(stream)[-1]
        assert failed.code == Code.NEURON_LOST


def test_kill_and_restart_cycles_leave_descriptors_and_memory_flat(tmp_path):
    with Neuron(tmp_path, [simulated("sim")]) as neuron:

        def serve():
            with neuron.client() as client:  # which hears nothing while nobody asks, and so would be lost
                assert_next_is_served(client, "sim")

        def cycle(number):
            serve()
            os.kill(neuron.workers("sim")[0], signal.SIGKILL)
            neuron.wait_for("sim", restarts=number, status="ready")

        for number in range(1, 7):
            cycle(number)
        descriptors, memory = neuron.descriptors(), neuron.memory()
        for number in range(7, 22):
            cycle(number)
        serve()
        wait_until(lambda: neuron.descriptors() <= descriptors, "the connections to be gone")
        assert neuron.memory() <= memory * 1.05
        assert len(neuron.children()) == 1
