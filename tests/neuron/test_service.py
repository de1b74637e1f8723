"""Every verb, asked of a real neuron over ZeroMQ."""

import asyncio
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from unittest.mock import ANY, create_autospec

import pytest

from ipc.errors import Code, CortexError
from ipc.messages.conversation import Message
from ipc.messages.framing import PROTOCOL_MAJOR, PROTOCOL_MINOR
from ipc.messages.replies import Cancelled, Delta, Done, Finished, LogLines, Progress, Started, State
from ipc.messages.requests import (
    Cancel,
    CountTokens,
    Detokenize,
    Discover,
    Drain,
    Embed,
    Eviction,
    Generate,
    Health,
    Hello,
    ListModels,
    Load,
    Logs,
    Quote,
    Resume,
    Tokenize,
    Unload,
    Watch,
)
from ipc.messages.sampling import Sampling
from ipc.server import Peer
from neuron.config import NeuronConfig
from neuron.models.managed import ManagedModel
from neuron.models.manager import ModelManager
from neuron.preparation.preparation import Preparation
from neuron.recent_log import RecentLog
from neuron.service import Service
from tests.neuron.harness import PATIENCE, Neuron, chat, simulated, wait_until


@pytest.fixture(scope="module")
def neuron(tmp_path_factory):
    models = [
        simulated("sim"),
        simulated("steady", step_seconds=0.01),
        simulated("slow", load_seconds=1.0),
        simulated("endless", load_seconds=3600.0),
        simulated("narrow", step_seconds=0.01, settings={"max_sequences": 1}),
        simulated("broken", failure={"fail_load": "shard 2 is missing"}),
        {"id": "nowhere", "path": "/nonexistent/checkpoint"},
    ]
    with Neuron(tmp_path_factory.mktemp("neuron"), models, queue={"limit": 2, "account_limit": 2}) as neuron:
        yield neuron


@pytest.fixture
def client(neuron):
    with neuron.client() as client:
        yield client


def ask(client, request):
    return client.ask(request, PATIENCE)


def refused(client, request):
    with pytest.raises(CortexError) as error:
        ask(client, request)
    return error.value


def count(model):
    return CountTokens(id=0, model=model, messages=[Message(role="user", content="Hello, who are you?")])


def begin(client, request):
    """A stream that has had its first token; leaving it cancels the request."""
    stream = client.stream(request, PATIENCE)
    while not isinstance(next(stream), Delta):
        pass
    return stream


def text_of(replies):
    return "".join(reply.text for reply in replies if isinstance(reply, Delta))


def test_a_streamed_chat_loads_its_model_and_ends_with_finished(client):
    replies = list(client.stream(chat("sim", 20), PATIENCE))
    kinds = [type(reply) for reply in replies if type(reply) is not Progress]
    assert kinds[0] is Started
    assert kinds[-1] is Finished
    assert set(kinds[1:-1]) == {Delta}
    finished = replies[-1]
    assert finished.choices[0].reason == "length"
    assert finished.usage.completion_tokens == 20
    assert finished.usage.prompt_tokens > 0
    assert text_of(replies).startswith("This answer comes from the simulated engine")
    assert sum(reply.tokens for reply in replies if isinstance(reply, Delta)) == 20


def test_an_unstreamed_chat_is_answered_by_finished_alone(client):
    ask(client, Load(id=0, model="sim"))
    [finished] = client.stream(chat("sim", 20, stream=False), PATIENCE)
    assert finished.choices[0].text.startswith("This answer")


def test_prompts_may_be_text_or_token_ids_and_give_ids_back(client):
    request = {"messages": None, "return_token_ids": True, "stream": False}
    ask(client, Load(id=0, model="sim"))
    started, finished = client.stream(chat("sim", 4, prompt="Hello", **request), PATIENCE)
    assert len(finished.choices[0].token_ids) == 4
    again = ask(client, chat("sim", 4, prompt=started.prompt_token_ids[0], **request))
    assert again.choices[0].token_ids == finished.choices[0].token_ids
    assert again.usage.prompt_tokens == finished.usage.prompt_tokens


def test_a_stop_string_ends_the_answer(client):
    finished = ask(client, chat("sim", 500, stream=False, sampling={"stop": ["engine"]}))
    assert finished.choices[0].text == "This answer comes from the simulated "
    assert (finished.choices[0].reason, finished.choices[0].stop_sequence) == ("stop", "engine")


@pytest.mark.parametrize("stream", [True, False])
def test_cancel_ends_a_running_request_and_its_worker_s_share(neuron, client, stream):
    ask(client, Load(id=0, model="steady"))
    before = neuron.model("steady").cancelled
    if stream:
        call = client.stream(chat("steady", 30_000), PATIENCE)
        next(call)
        call.close()
    else:

        def cancelled():  # or it gave up before the request was the model's
            with pytest.raises(CortexError):
                client.ask(chat("steady", 30_000, stream=False), 0.2)
            return neuron.model("steady").cancelled > before

        wait_until(cancelled, "a request to be cancelled")
    state = neuron.wait_for("steady", running=0)
    assert state.cancelled > before
    wait_until(lambda: neuron.model("steady").pages_free == state.pages_total, "its pages to be free")


def test_an_id_may_be_used_again_as_soon_as_its_request_is_cancelled():
    peer, models = create_autospec(Peer, instance=True), create_autospec(ModelManager, instance=True)
    models.known.return_value = None
    models.obtain = lambda *asked: asyncio.Event().wait()

    async def scenario():
        service = Service(NeuronConfig(), "0", models, Preparation("INFO"), RecentLog(sys.stderr))
        asked = Generate(id=5, model="sim", prompt="Hello")
        service.handle(peer, asked)
        await asyncio.sleep(0)  # its preparation has begun
        service.handle(peer, Cancel(id=5))
        service.handle(peer, asked)
        for _ in range(5):
            await asyncio.sleep(0)
        # and the second one is under way
        assert [type(reply) for (reply,), _ in peer.send.call_args_list] == [Cancelled]
        service.on_gone(peer)

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "asked",
    [Load(id=5, model="sim"), Drain(id=5), count("sim"), chat("sim")],
    ids=lambda each: type(each).__name__,
)
def test_what_is_cancelled_before_it_has_begun_is_answered_once(asked):
    peer, models = create_autospec(Peer, instance=True), create_autospec(ModelManager, instance=True)
    models.known.return_value = None

    async def scenario():
        service = Service(NeuronConfig(), "0", models, Preparation("INFO"), RecentLog(sys.stderr))
        service.handle(peer, asked)
        service.handle(peer, Cancel(id=asked.id))  # which came in one message
        for _ in range(5):
            await asyncio.sleep(0)
        assert [call.args for call in peer.send.call_args_list] == [(Cancelled(id=asked.id),)]

    asyncio.run(scenario())


def test_an_unload_is_of_what_still_runs_though_its_files_may_be_pulled_again():
    peer, models = create_autospec(Peer, instance=True), create_autospec(ModelManager, instance=True)
    running = models.retired.return_value = create_autospec(ManagedModel, instance=True)

    async def scenario():
        service = Service(NeuronConfig(), "0", models, Preparation("INFO"), RecentLog(sys.stderr))
        service.handle(peer, Unload(id=5, model="sim", force=True))
        for _ in range(5):
            await asyncio.sleep(0)
        assert [call.args for call in peer.send.call_args_list] == [(Done(id=5),)]
        running.unload.assert_awaited_once_with(True)
        models.absent.assert_not_called()

    asyncio.run(scenario())


def test_a_client_that_vanishes_cancels_its_requests(neuron):
    client = neuron.client()
    stream = begin(client, chat("steady", 30_000))
    neuron.wait_for("steady", running=1)
    client.close()
    neuron.wait_for("steady", running=0)
    stream.close()


def test_what_does_not_fit_the_worker_waits_and_what_does_not_fit_the_queue_is_refused(neuron, client):
    ask(client, Load(id=0, model="narrow"))
    calls = [neuron.client() for _ in range(4)]
    streams = [calls[0].stream(chat("narrow", 30_000), PATIENCE)]
    assert type(next(streams[0])) is Started
    neuron.wait_for("narrow", running=1)
    streams += [each.stream(chat("narrow", 30_000), PATIENCE) for each in calls[1:3]]
    assert [next(stream).stage for stream in streams[1:]] == ["queued", "queued"]
    error = refused(calls[3], chat("narrow"))
    assert error.code == Code.QUEUE_FULL
    assert error.retry_after >= 1
    assert neuron.model("narrow").waiting == 2
    assert ask(calls[3], count("narrow")).tokens > 0  # counting is behind no queue
    assert neuron.model("narrow").waiting == 2
    streams[0].close()
    assert type(next(reply for reply in streams[1] if type(reply) is not Progress)) is Started
    assert type(next(streams[1])) is Delta
    for each in calls:
        each.close()
    neuron.wait_for("narrow", running=0, waiting=0)


def test_a_text_that_is_far_too_long_is_refused_unread(client):
    error = refused(client, chat("sim", messages=None, prompt="word " * 4_000_000))
    assert error.code == Code.CONTEXT_LENGTH_EXCEEDED
    assert "has at least " in error.message  # it was not counted


def test_a_prompt_over_the_context_is_refused_with_both_counts(client):
    error = refused(client, chat("sim", messages=None, prompt=[5] * 40_000))
    assert error.code == Code.CONTEXT_LENGTH_EXCEEDED
    assert error.details == {"prompt_tokens": 40_000, "context_length": 32_768, "max_tokens": 8}


@pytest.mark.parametrize(
    ("request_", "code", "words"),
    [
        (chat("sim", -1), Code.BAD_REQUEST, "max_tokens"),
        (chat("sim", messages=[]), Code.BAD_REQUEST, "empty"),
        (chat("sim", sampling={"temperature": 3.0}), Code.BAD_REQUEST, "temperature"),
        (chat("no/such-model"), Code.MODEL_NOT_FOUND, "no/such-model"),
        (chat("nowhere"), Code.MODEL_NOT_FOUND, "/nonexistent/checkpoint"),
        (chat("broken"), Code.MODEL_LOAD_FAILED, "shard 2 is missing"),
        (Load(id=0, model="broken"), Code.MODEL_LOAD_FAILED, "shard 2 is missing"),
        (Load(id=0, model="no/such-model"), Code.MODEL_NOT_FOUND, "neuron pull"),
        (Embed(id=0, model="sim", input=[]), Code.BAD_REQUEST, "input"),
        (Embed(id=0, model="sim", input=["x", ""]), Code.BAD_REQUEST, "input[1]"),
        (Embed(id=0, model="sim", input=["x"], dimensions=0), Code.BAD_REQUEST, "dimensions"),
        (Embed(id=0, model="sim", input=["x"]), Code.NOT_SUPPORTED, "simulated"),
        (chat("sim", sampling={"stop": ["x", "y" * 1001]}), Code.BAD_REQUEST, "stop[1] has 1001 characters"),
        (
            chat("sim", sampling={"logit_bias": {1 << 40: 1.0}}),
            Code.BAD_REQUEST,
            f"logit_bias: token id {1 << 40} is",
        ),
        (chat("sim", keep_alive=float("nan")), Code.BAD_REQUEST, "float"),
        (Load(id=0, model="sim", keep_alive=float("inf")), Code.BAD_REQUEST, "float"),
        (CountTokens(id=0, model="sim"), Code.BAD_REQUEST, "messages"),
        (Tokenize(id=0, model="sim"), Code.BAD_REQUEST, "messages"),
        (Detokenize(id=0, model="sim", token_ids=[1 << 30]), Code.BAD_REQUEST, "token_ids"),
    ],
)
def test_each_thing_that_cannot_be_done_gets_one_clear_error(client, request_, code, words):
    error = refused(client, request_)
    assert error.code == code
    assert words in error.message
    assert isinstance(ask(client, chat("sim", 2)), Finished)


def test_a_load_tells_how_it_goes_and_outlives_who_asked(neuron, client):
    with neuron.client() as impatient:
        replies = impatient.stream(Load(id=0, model="slow"), PATIENCE)
        assert next(replies).stage == "loading"
    with neuron.client() as other:
        waiting = other.stream(chat("slow", 2), PATIENCE)
        assert isinstance(next(waiting), Progress)
        assert isinstance(list(waiting)[-1], Finished)
    assert isinstance(ask(client, Load(id=0, model="slow")), Done)
    state = neuron.model("slow")
    assert (state.status, state.epoch) == ("ready", 1)
    assert state.progress is None


def test_unload_ends_the_processes_and_the_next_request_loads_again(neuron, client):
    ask(client, Load(id=0, model="sim"))
    epoch = neuron.model("sim").epoch
    [pid] = neuron.workers("sim")
    assert isinstance(ask(client, Unload(id=0, model="sim")), Done)
    assert pid not in neuron.children()
    assert neuron.model("sim").status == "unloaded"
    assert isinstance(ask(client, Unload(id=0, model="sim")), Done)
    assert isinstance(ask(client, chat("sim", 2)), Finished)
    assert neuron.model("sim").epoch == epoch + 1


def test_unload_waits_for_running_requests(neuron, client):
    with neuron.client() as other:
        stream = begin(other, chat("steady", 30))
        assert isinstance(ask(client, Unload(id=0, model="steady")), Done)
        assert isinstance(list(stream)[-1], Finished)


def test_a_forced_unload_ends_them(neuron, client):
    with neuron.client() as other:
        stream = begin(other, chat("steady", 30_000))
        assert isinstance(ask(client, Unload(id=0, model="steady", force=True)), Done)
        failed = list(stream)[-1]
    assert (failed.code, failed.tokens_sent > 0) == (Code.SHUTTING_DOWN, True)


def test_counting_tokens_needs_no_load_and_agrees_with_generate(neuron, client):
    ask(client, Unload(id=0, model="sim"))
    counted = ask(client, count("sim"))
    assert neuron.model("sim").status == "unloaded"
    assert counted.tokens == ask(client, chat("sim", 1)).usage.prompt_tokens


def test_tokens_are_counted_while_the_model_loads(neuron, client):
    loading = client.stream(Load(id=0, model="endless"), PATIENCE)
    assert next(loading).stage == "loading"
    with neuron.client() as other:
        assert ask(other, count("endless")).tokens == ask(other, count("sim")).tokens
        assert neuron.model("endless").status == "loading"
        ask(other, Unload(id=0, model="endless", force=True))


def test_tokens_are_told_without_loading_the_model(client, neuron):
    ask(client, Unload(id=0, model="slow"))
    messages = [Message(role="user", content="Hello there")]
    tokens = ask(client, Tokenize(id=0, model="slow", messages=messages))
    assert len(tokens.token_ids) == ask(client, CountTokens(id=0, model="slow", messages=messages)).tokens
    assert tokens.context_length > 0
    text = ask(client, Detokenize(id=0, model="slow", token_ids=tokens.token_ids)).text
    assert "Hello there" in text
    assert neuron.model("slow").status == "unloaded"


def test_hello_discover_models_and_health_describe_the_neuron(neuron, client):
    hello = ask(client, Hello(id=0, client="test", eviction=Eviction(strategy="priority")))
    assert hello.eviction.strategy == "priority"
    older = Eviction(strategy="lru", origin="b:/cortex.yaml", modified=-1.0)
    assert ask(client, Hello(id=0, eviction=older)).eviction.strategy == "priority"
    newer = Eviction(strategy="clairvoyant", origin="b:/cortex.yaml", modified=1e9)
    assert ask(client, Hello(id=0, eviction=newer)).eviction.strategy == "priority"
    assert "knows no such strategy strategy=clairvoyant origin=b:/cortex.yaml" in neuron.log
    assert (hello.neuron, hello.protocol) == ("tested", (PROTOCOL_MAJOR, PROTOCOL_MINOR))
    ask(client, Load(id=0, model="sim"))
    discovery = ask(client, Discover(id=0))
    assert discovery.devices[-1].id == "cpu"
    assert discovery.devices[-1].cores >= 1
    models = {state.id: state for state in ask(client, ListModels(id=0)).models}
    assert {"sim", "steady", "slow", "narrow", "broken", "nowhere", "demo"} <= set(models)
    assert models["nowhere"].status == "failed"
    assert "/nonexistent/checkpoint" in models["nowhere"].error
    sim = models["sim"]
    assert (sim.status, sim.engine, sim.context_length) == ("ready", "simulated", 32_768)
    health = ask(client, Health(id=0))
    assert health.uptime > 0
    [rank] = health.ranks["sim"]
    assert (rank.rank, rank.device, rank.state) == (0, "cpu", "ready")


def test_who_follows_the_log_sees_at_once_that_it_does(client):
    lines = client.stream(Logs(id=0, request="of nobody", follow=True), PATIENCE)
    assert next(lines) == LogLines(id=ANY, lines=[])
    lines.close()


def test_health_does_not_wait_behind_inference(neuron, client):
    with neuron.client() as other:
        stream = begin(other, chat("steady", 30_000))
        assert neuron.model("steady").running == 1
        [rank] = ask(client, Health(id=0)).ranks["steady"]
        assert rank.pid in neuron.children()
        stream.close()


def test_watch_tells_the_state_now_and_each_change(neuron, client):
    ask(client, Load(id=0, model="sim"))
    watch = client.stream(Watch(id=0), PATIENCE)
    first = next(watch)
    assert isinstance(first, State)
    assert {state.id for state in first.models} >= {"sim", "steady"}
    with neuron.client() as other:
        before = neuron.model("sim").finished
        ask(other, chat("sim", 2))
        ask(other, Unload(id=0, model="sim"))
    states = (reply for reply in watch if isinstance(reply, State))
    sim = (state for reply in states for state in reply.models if state.id == "sim")
    unloaded = next(state for state in sim if state.status == "unloaded")
    assert unloaded.finished == before + 1
    watch.close()


def test_watch_is_whole_once_and_then_tells_what_changed(neuron, client):
    ask(client, Load(id=0, model="sim"))
    with neuron.client() as other, neuron.client() as late:
        watch = (reply for reply in client.stream(Watch(id=0), PATIENCE) if isinstance(reply, State))
        assert next(watch).whole
        ask(other, chat("sim", 2))
        news = next(watch)
        assert ([state.id for state in news.models], news.whole, news.gone) == (["sim"], False, [])
        first = next(late.stream(Watch(id=0), PATIENCE))
        assert first.whole
        assert {state.id for state in first.models} >= {"sim", "steady"}
        watch.close()


def test_drain_finishes_what_runs_and_takes_nothing_new_until_resume(neuron, client):
    def drain():
        with neuron.client() as draining:
            return ask(draining, Drain(id=0))

    with neuron.client() as running, ThreadPoolExecutor() as threads:
        stream = begin(running, chat("steady", 100))
        drained = threads.submit(drain)
        wait_until(lambda: neuron.health().draining, "the drain to begin")
        refusal = refused(client, chat("steady"))
        assert refusal.code == Code.DRAINING
        assert "cortex resume" in refusal.message
        assert refused(client, Load(id=0, model="sim")).code == Code.DRAINING
        assert not drained.done()
        assert isinstance(list(stream)[-1], Finished)
        assert isinstance(drained.result(PATIENCE), Done)
    assert isinstance(ask(client, Drain(id=0)), Done)
    assert isinstance(ask(client, Resume(id=0)), Done)
    assert isinstance(ask(client, chat("steady", 2)), Finished)


def test_a_model_that_is_drained_finishes_what_runs_while_others_go_on(neuron, client):
    def drain():
        with neuron.client() as draining:
            return ask(draining, Drain(id=0, model="steady"))

    with neuron.client() as running, ThreadPoolExecutor() as threads:
        stream = begin(running, chat("steady", 100))
        drained = threads.submit(drain)
        neuron.wait_for("steady", drained=True)
        for request in (chat("steady"), Load(id=0, model="steady"), Quote(id=0, model="steady")):
            assert refused(client, request).code == Code.DRAINING
        assert isinstance(ask(client, chat("sim", 2)), Finished)
        assert not drained.done()
        assert isinstance(list(stream)[-1], Finished)
        assert isinstance(drained.result(PATIENCE), Done)
    assert neuron.model("steady").status == "ready"
    assert isinstance(ask(client, Resume(id=0, model="steady")), Done)
    assert isinstance(ask(client, chat("steady", 2)), Finished)
    assert refused(client, Drain(id=0, model="nowhere")).code == Code.MODEL_NOT_FOUND


def test_resume_ends_a_drain_that_still_waits(neuron, client):
    with neuron.client() as running, neuron.client() as draining:
        stream = begin(running, chat("steady", 30_000))
        with pytest.raises(CortexError):
            draining.ask(Drain(id=0), 0.2)
        assert neuron.health().draining
        assert isinstance(ask(client, Resume(id=0)), Done)
        assert not neuron.health().draining
        assert isinstance(next(stream), Delta)
        stream.close()


def test_sampling_reaches_the_engine_and_bad_ids_are_refused(client):
    request = Generate(id=0, model="sim", prompt=[10_000_000], sampling=Sampling(max_tokens=1))
    error = refused(client, request)
    assert (error.code, error.param) == (Code.BAD_REQUEST, "prompt")


@pytest.mark.parametrize(
    ("request_", "param"),
    [
        (chat("sim", 4, cache_salt="x" * 1_100_000), "cache_salt"),
        (chat("sim", 4, account="x" * 1_100_000), "account"),
        (Load(id=0, model="x" * 1_100_000), "model"),
        (Hello(id=0, client="x" * 300), "client"),
        (chat("sim", 4, messages=[Message(role="user")] * 10_001), "messages"),
        (chat("sim", 4, must_call=["x" * 300]), "must_call[0]"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_travels_is_bounded_and_the_model_goes_on(client, request_, param):
    error = refused(client, request_)
    assert (error.code, error.param) == (Code.BAD_REQUEST, param)
    assert isinstance(ask(client, chat("sim", 4)), Finished)


def test_a_text_longer_than_the_context_is_counted(client):
    context = 32_768
    counted = ask(client, CountTokens(id=0, model="sim", prompt="Hello! " * context))
    assert context < counted.tokens


def test_text_that_is_far_too_long_is_not_counted(client):
    error = refused(client, CountTokens(id=0, model="sim", prompt="a" * 20_000_000))
    assert error.code == Code.CONTEXT_LENGTH_EXCEEDED


def test_queue_time_is_measured(client):
    ask(client, Load(id=0, model="sim"))
    started = time.monotonic()
    timings = ask(client, chat("sim", 4, stream=False)).timings
    assert 0 <= timings.queue <= timings.first_token <= timings.total <= time.monotonic() - started
