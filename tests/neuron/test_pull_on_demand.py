"""A model whose files are not here is offered, and brought by the first who asks for it, once."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
from msgspec import structs

from ipc.client import NeuronClient
from ipc.errors import Code, CortexError
from ipc.messages.catalogue import FleetCatalogue
from ipc.messages.conversation import Message
from ipc.messages.replies import Progress
from ipc.messages.requests import CheckCatalogue, CountTokens, Load, Quote, SetCatalogue, Unload
from ipc.model_settings import ModelSettings
from neuron.config import NeuronConfig
from neuron.pulling import download
from neuron.pulling.child import Found, HubTask
from neuron.pulling.download import Download
from neuron.pulling.pull import Pull, Shared
from tests.neuron.harness import PATIENCE, Neuron, chat, children_of, is_running, wait_until
from tests.neuron.hub import Hub, Repository, serving

DEMO = {path.name: path.read_bytes() for path in Path("neuron/demo").iterdir() if path.is_file()}
QUANTS = {f"m-{label}.gguf": label.encode() * 40_000 for label in ("Q4_K_M", "Q8_0")}
TO_COME = sum(len(data) for name, data in DEMO.items() if name != "README.md")
HELLO = [Message(role="user", content="Hello!")]


def pulled(model_id: str, source: str | None = None, **keys: object) -> dict[str, object]:
    return {"id": model_id, "pull": True} | ({"source": source} if source else {}) | keys


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    names = ("whole", "held", "stopped", "lost", "crowded", "damaged")
    repositories = {f"org/{name}": Repository(dict(DEMO)) for name in names}
    repositories["org/quants"] = Repository(dict(QUANTS))
    with serving(repositories) as each:
        yield each


@pytest.fixture(scope="module")
def environment(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_ENDPOINT", hub.endpoint)
        patch.setenv("HF_HOME", str(tmp_path_factory.mktemp("home")))
        patch.setenv("HF_HUB_DISABLE_XET", "1")
        patch.delenv("HF_HUB_OFFLINE", raising=False)
        yield


@pytest.fixture(scope="module")
def neuron(environment: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Neuron]:
    models = [
        *(pulled(f"org/{name}") for name in ("whole", "held", "stopped", "damaged")),
        pulled("crowded", "hf:org/crowded"),
        pulled("coder", "hf:org/quants:q8_0"),
        pulled("nowhere", "hf:org/nowhere"),
    ]
    queue = {"limit": 3, "account_limit": 2}
    with Neuron(tmp_path_factory.mktemp("n"), models, queue=queue) as each:
        yield each


@contextmanager
def held(hub: Hub, repository: str) -> Iterator[threading.Event]:
    """The weights of that one come no further than half, until the event is set."""
    found = hub.repositories[repository]
    found.held = threading.Event()
    try:
        yield found.held
    finally:
        found.held.set()


def given(hub: Hub, name: str) -> int:
    """How often the hub was asked for a file of that name."""
    return [each for each, _ in hub.given].count(name)


def test_a_model_that_is_away_is_offered_and_a_quote_says_how_much_is_to_come(neuron: Neuron) -> None:
    state = neuron.wait_for("org/whole", status="unloaded")
    assert (state.bytes_to_pull, state.chat) == (0, False)  # nobody has asked a hub yet
    with neuron.client() as client:

        def quote() -> int | None:
            told = client.ask(Quote(id=0, model="org/whole"), PATIENCE)
            assert told.verdict == "waits", told.message
            return told.bytes_to_pull

        assert wait_until(quote, "the hub to say how much there is") == TO_COME
        with pytest.raises(CortexError, match="so does a request for an answer") as refused:
            client.ask(CountTokens(id=0, model="org/whole", messages=HELLO), PATIENCE)
        assert refused.value.code == Code.MODEL_NOT_FOUND
    assert neuron.model("org/whole").bytes_to_pull == TO_COME


def test_a_request_brings_the_model_and_is_told_how_far_it_is(neuron: Neuron, hub: Hub) -> None:
    said = []
    with neuron.client() as client, held(hub, "org/whole") as go_on:
        for reply in client.stream(chat("org/whole"), PATIENCE):
            assert isinstance(reply, Progress)
            said.append(reply.message)
            if reply.fraction and reply.message.startswith("pulling org/whole, "):
                assert 0 < reply.fraction < 1
                assert neuron.model("org/whole").status == "loading"
                go_on.set()
            if reply.message == "org/whole is here":
                break
    assert any(message.startswith("pulling org/whole, ") for message in said)
    state = neuron.wait_for("org/whole", bytes_to_pull=None)
    assert (state.architecture, state.chat) == ("Qwen3ForCausalLM", True)
    wait_until(lambda: downloads(neuron) == [], "the download to be reaped")


def downloads(neuron: Neuron) -> list[int]:
    """Its processes that ask a hub, or did and are not reaped."""
    return [pid for pid in neuron.children() if {"neuron.pulling.child", ZOMBIE} & command(pid)]


ZOMBIE = "a zombie"


def command(pid: int) -> set[str]:
    try:
        line = Path(f"/proc/{pid}/cmdline").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return set()
    return set(line.split("\0")) if line else {ZOMBIE}


def test_all_who_ask_have_one_pull_that_outlives_them(neuron: Neuron, hub: Hub) -> None:
    before = given(hub, "tokenizer.json")

    async def ask_and_leave() -> None:
        client = NeuronClient(neuron.endpoint)
        client.start()
        calls = [client.open(chat("org/held", trace=str(number))) for number in range(2)]
        for call in calls:
            while not any(isinstance(reply, Progress) for reply in await call.take(PATIENCE)):
                pass
            call.cancel()
        client.close()

    with held(hub, "org/held") as go_on:
        asyncio.run(ask_and_leave())
        neuron.wait_for("org/held", status="loading", waiting=0)
        go_on.set()
        state = neuron.wait_for("org/held", bytes_to_pull=None)
    assert state.status == "unloaded"  # nobody waits for it any more
    assert given(hub, "tokenizer.json") == before + 1


def test_no_more_wait_for_a_pull_than_for_a_load(neuron: Neuron, hub: Hub) -> None:
    def ask(account: str) -> str:
        with neuron.client() as client:
            try:
                client.ask(chat("crowded", stream=False, account=account), PATIENCE)
            except CortexError as error:
                return error.code if error.retry_after else "turned away without a time"
            return "finished"

    with ThreadPoolExecutor(3) as pool, held(hub, "org/crowded") as go_on:
        asked = [pool.submit(ask, account) for account in ("a", "a", "b")]
        neuron.wait_for("crowded", waiting=3)
        assert ask("c") == Code.QUEUE_FULL
        with neuron.client() as client:
            client.ask(Unload(id=0, model="crowded"), PATIENCE)
        go_on.set()
        assert {each.result() for each in asked} == {Code.MODEL_LOAD_FAILED}


def test_a_pull_is_ended_by_an_unload_and_what_came_stays_for_the_next(neuron: Neuron, hub: Hub) -> None:
    blobs = Path(neuron.cache) / "models--org--stopped" / "blobs"

    def only_weights() -> list[Path]:
        found = {path for path in blobs.glob("*") if path.name != "tmp"} if blobs.is_dir() else set()
        left = [path for path in found if path.suffix == ".incomplete"]
        return left if len(left) == 1 and len(found) == len(DEMO) - 1 else []

    with neuron.client() as client, ThreadPoolExecutor(1) as pool, held(hub, "org/stopped"):
        loading = pool.submit(ask_load, neuron, "org/stopped")
        (left,) = wait_until(only_weights, "nothing but the weights to be missing")
        (child,) = downloads(neuron)
        client.ask(Unload(id=0, model="org/stopped"), PATIENCE)
        with pytest.raises(CortexError, match="somebody unloaded it"):
            loading.result()
        assert not is_running(child)
        assert left.exists()
    assert neuron.wait_for("org/stopped", status="failed").error
    with neuron.client() as client:
        client.ask(Unload(id=0, model="org/stopped"), PATIENCE)  # it may be tried again
        assert client.ask(Quote(id=0, model="org/stopped"), PATIENCE).bytes_to_pull is not None
    assert left.exists()


def ask_load(neuron: Neuron, model: str) -> None:
    with neuron.client() as client:
        client.ask(Load(id=0, model=model), PATIENCE)


def test_a_pull_that_failed_says_why_and_is_not_tried_again_at_once(neuron: Neuron, hub: Hub) -> None:
    hub.repositories["org/damaged"].damaged.add("model.safetensors")
    with neuron.client() as client:
        with pytest.raises(
            CortexError, match=r"came damaged.* in \d+ s, or there by `neuron pull org/damaged`"
        ) as first:
            client.ask(Load(id=0, model="org/damaged"), PATIENCE)
        asked = len(hub.given)
        with pytest.raises(CortexError, match="came damaged") as second:
            client.ask(chat("org/damaged"), PATIENCE)
        assert client.ask(Quote(id=0, model="org/damaged"), PATIENCE).verdict == "refused"
        assert len(hub.given) == asked
        with pytest.raises(CortexError, match="has no such repository"):
            client.ask(Load(id=0, model="nowhere"), PATIENCE)
    assert first.value.code == second.value.code == Code.MODEL_LOAD_FAILED
    assert 0 < second.value.retry_after <= first.value.retry_after <= 60
    assert neuron.model("org/damaged").status == "failed"


def test_one_of_several_quantisations_is_found_though_it_is_alone(neuron: Neuron) -> None:
    with neuron.client() as client, pytest.raises(CortexError) as refused:
        client.ask(Load(id=0, model="coder"), PATIENCE)  # what came is no GGUF file, and that is said of it
    assert refused.value.code == Code.MODEL_LOAD_FAILED
    assert "m-Q8_0.gguf" in refused.value.message
    names = [path.name for path in Path(neuron.cache).glob("models--org--quants/snapshots/*/*")]
    assert names == ["m-Q8_0.gguf"]


def test_a_gateways_catalogue_may_have_a_model_pulled(neuron: Neuron) -> None:
    said = FleetCatalogue(
        version="1",
        origin="gateway:/models.yaml",
        modified=1.0,
        models=[ModelSettings(id="new", source="hf:org/new", pull=True)],
    )
    with neuron.client() as client:
        (appraisal,) = client.ask(CheckCatalogue(id=0, catalogue=said), PATIENCE).models
        assert appraisal.verdict == "pulled"
        client.ask(SetCatalogue(id=0, catalogue=said), PATIENCE)
        assert neuron.model("new").bytes_to_pull == 0
        nothing = structs.replace(said, version="2", models=[])
        client.ask(SetCatalogue(id=0, catalogue=nothing), PATIENCE)
    assert "new" not in {state.id for state in neuron.health().models}


def test_a_neuron_that_stops_ends_its_pulls(environment: None, hub: Hub, tmp_path: Path) -> None:
    with (
        held(hub, "org/lost"),
        Neuron(tmp_path, [pulled("org/lost")]) as neuron,
        ThreadPoolExecutor(1) as pool,
    ):
        loading = pool.submit(ask_load, neuron, "org/lost")
        (child,) = wait_until(neuron.children, "a pull to begin")
        neuron.process.terminate()
        with pytest.raises(CortexError) as refused:
            loading.result()
        assert neuron.process.wait(PATIENCE) == 0
        assert not is_running(child)
    assert refused.value.code in (Code.SHUTTING_DOWN, Code.NEURON_LOST)


def test_a_pull_that_is_ended_before_it_began_leaves_nobody_waiting() -> None:
    async def arrived(model_id: str) -> None:
        raise AssertionError(model_id)

    async def scenario() -> None:
        shared = Shared(NeuronConfig(), lambda: "", lambda settings: 0, lambda: 0, arrived, lambda: None)
        pull = Pull(ModelSettings(id="org/m", pull=True), shared)
        waiting = asyncio.create_task(pull.wait("", lambda progress: None))
        await asyncio.sleep(0)
        await pull.stop("somebody unloaded it")
        with pytest.raises(CortexError, match="somebody unloaded it"):
            await asyncio.wait_for(waiting, PATIENCE)
        assert pull.state().waiting == 0

    asyncio.run(scenario())


def test_what_is_too_large_for_this_host_is_called_that_and_no_retry_is_asked_for() -> None:
    async def arrived(model_id: str) -> None: ...

    async def download() -> None:
        raise CortexError(Code.MODEL_TOO_LARGE, "org/m has 9 MiB of weights")

    async def scenario() -> None:
        shared = Shared(NeuronConfig(), lambda: "", lambda settings: 0, lambda: 0, arrived, lambda: None)
        pull = Pull(ModelSettings(id="org/m", pull=True), shared)
        pull._download = download
        for _ in range(2):
            with pytest.raises(CortexError, match=r"^org/m has 9 MiB of weights$") as refused:
                await pull.wait("", lambda progress: None)
            assert (refused.value.code, refused.value.retry_after) == (Code.MODEL_TOO_LARGE, None)
        assert (await pull.quote(1)).code == Code.MODEL_TOO_LARGE

    asyncio.run(scenario())


def test_who_asks_while_an_earlier_question_is_being_ended_has_a_pull_of_its_own() -> None:
    async def arrived(model_id: str) -> None: ...

    async def scenario() -> None:
        shared = Shared(NeuronConfig(), lambda: "", lambda settings: 0, lambda: 0, arrived, lambda: None)
        pull = Pull(ModelSettings(id="org/m", pull=True), shared)
        ended, begun, done = asyncio.Event(), asyncio.Event(), asyncio.Event()

        async def reluctant() -> None:  # a quote, whose process takes its time to end
            try:
                await asyncio.Event().wait()
            finally:
                await ended.wait()

        async def download() -> None:
            begun.set()
            await done.wait()

        pull._looking, pull._download = asyncio.create_task(reluctant()), download
        await asyncio.sleep(0)
        stopping = asyncio.create_task(pull.stop("somebody unloaded it"))
        await asyncio.sleep(0)
        waiting = asyncio.create_task(pull.wait("", lambda progress: None))
        await asyncio.wait_for(begun.wait(), PATIENCE)
        ended.set()
        await asyncio.wait_for(stopping, PATIENCE)
        done.set()
        await asyncio.wait_for(waiting, PATIENCE)

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("bounds", "words", "code"),
    [
        ({"most_weights": 1000}, "the devices that it may use", Code.MODEL_TOO_LARGE),
        ({"promised": 1 << 60}, "MiB are to come", Code.MODEL_LOAD_FAILED),
    ],
)
def test_what_this_host_has_no_room_for_is_not_begun(
    environment: None, hub: Hub, tmp_path: Path, bounds: dict[str, int], words: str, code: str
) -> None:
    with pytest.raises(CortexError, match=words) as refused:
        asyncio.run(fetch(tmp_path, **bounds))
    assert refused.value.code == code
    assert not [*tmp_path.glob("*/snapshots")]


def test_what_has_no_room_beside_what_others_have_found_meanwhile_is_not_begun(tmp_path: Path) -> None:
    async def scenario() -> None:
        config, nothing = NeuronConfig(), lambda *_: 0
        shared = Shared(config, lambda: str(tmp_path), nothing, lambda: 1 << 60, nothing, nothing)
        pull = Pull(ModelSettings(id="org/m", pull=True), shared)
        pull._here = asyncio.get_running_loop().create_future()
        pull._learn(Found(10 << 20, 5 << 20))
        with pytest.raises(CortexError, match=r"5 MiB are to come, and .* too few"):
            await pull._check_promises()
        pull._learn(Found(10 << 20, 0))
        await pull._check_promises()
        assert pull.state().bytes_to_pull == 1, "0 is what nobody knows"

    asyncio.run(scenario())


def test_a_process_that_a_disk_holds_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "END_SECONDS", 0.01)

    async def scenario() -> None:
        process = Download.__new__(Download)
        process._child = SimpleNamespace(gone=asyncio.Event(), kill=lambda: None)
        await asyncio.wait_for(process.end(), PATIENCE)

    asyncio.run(scenario())


async def fetch(cache: Path, source: str = "org/whole", **bounds: int) -> None:
    process = Download(HubTask(source=source, cache=str(cache), fetch=True, **bounds), "INFO")
    try:
        async for _ in process.news():
            pass
    finally:
        await process.end()


@pytest.mark.parametrize(
    ("bound", "words"),
    [("SILENT_SECONDS", "the hub did not answer within"), ("STALLED_SECONDS", "nothing has come for")],
)
def test_what_comes_no_further_is_given_up(
    environment: None,
    hub: Hub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    bound: str,
    words: str,
) -> None:
    monkeypatch.setattr(download, bound, 0.001)
    before = children_of(os.getpid())
    with held(hub, "org/lost"), pytest.raises(CortexError, match=words):
        asyncio.run(fetch(tmp_path, "org/lost"))
    assert children_of(os.getpid()) == before
