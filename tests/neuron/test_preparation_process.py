"""Text processes: what they make of a request is what this process makes of it, and they end alone."""

import asyncio
import mmap
import os
import resource
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipc.errors import Code, CortexError
from ipc.messages.conversation import Message, TextPart, Tool
from ipc.messages.replies import Finished
from ipc.messages.requests import CountTokens, Detokenize, Embed, Generate, Tokenize
from ipc.messages.sampling import Sampling, Structured
from neuron.preparation import child
from neuron.preparation.facts import ModelFacts
from neuron.preparation.jobs import Fronts, Job, Outcome, perform
from neuron.preparation.pool import ProcessPool
from neuron.preparation.preparation import Preparation
from neuron.preparation.prepared import Prepared
from neuron.preparation.process import ProcessDied, TextProcess, memory_of
from neuron.text.frontend import TextFiles, TextFrontEnd
from tests.doubles import stands_for
from tests.neuron.folders import write_checkpoint
from tests.neuron.harness import Neuron, chat, is_running, simulated, wait_until
from workers.checkpoints.reading import read_card

PATIENCE = 150.0
MEMORY = 1 << 30
LOOP = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
GROW = (
    "{% set n = namespace(l=[]) %}{% for i in range(99) %}{% set n.l = n.l + [['x'] * 1000000] %}{% endfor %}"
)
JSON = "{% for i in range(99999) %}{{ (([[1] * 99] * 999) | tojson | length) }}{% endfor %}"
HOSTILE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n"
    f"{{% if m.content == 'loop' %}}{LOOP}{{% endif %}}{{% if m.content == 'grow' %}}{GROW}{{% endif %}}"
    f"{{% if m.content == 'json' %}}{JSON}{{% endif %}}"
    "{% endfor %}assistant: "
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = write_checkpoint(tmp_path_factory.mktemp("checkpoint"), vocab_size=512)
    (folder / "chat_template.jinja").write_text(HOSTILE)
    return folder


@pytest.fixture(scope="module")
def text(folder):
    return TextFrontEnd.load(read_card(folder))


@pytest.fixture(scope="module")
def loop():
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def process(loop):
    process = loop.run(start())
    yield process
    loop.run(process.end())


async def start():
    return TextProcess(MEMORY, "INFO")


def job(text, request, **changes):
    verb = request.__struct_config__.tag
    return Job(**{"verb": verb, "text": text.encoded, "context_length": 64} | changes)


letters = st.text("ab \n\u00e9{%", max_size=20)
messages = st.lists(
    st.builds(
        Message,
        role=st.sampled_from(("user", "assistant", "system", "developer")),
        content=letters | st.lists(st.builds(TextPart, text=letters), max_size=2),
    ),
    max_size=4,
)
sampling = st.builds(
    Sampling,
    n=st.integers(0, 3),
    seed=st.just(1),
    max_tokens=st.integers(0, 40),
    bad_words=st.lists(letters, max_size=1),
    stop=st.lists(letters, max_size=1),
    logit_bias=st.dictionaries(st.integers(0, 200), st.just(1.0), max_size=1),
)
tools = st.lists(st.sampled_from((Tool.function(name="f"), Tool(definition={"function": 1}))), max_size=2)
prompts = st.none() | letters | st.lists(st.integers(0, 200), max_size=3) | st.lists(letters, max_size=2)
requests = st.one_of(
    st.builds(Generate, id=st.just(1), model=st.just("m"), messages=messages, sampling=sampling, tools=tools),
    st.builds(
        Generate,
        id=st.just(1),
        model=st.just("m"),
        prompt=prompts,
        suffix=st.none() | letters,
        echo=st.booleans(),
        sampling=sampling,
    ),
    st.builds(CountTokens, id=st.just(1), model=st.just("m"), messages=messages, tools=tools),
    st.builds(Tokenize, id=st.just(1), model=st.just("m"), prompt=letters, return_bytes=st.booleans()),
    st.builds(
        Detokenize, id=st.just(1), model=st.just("m"), token_ids=st.lists(st.integers(-1, 200), max_size=3)
    ),
    st.builds(Embed, id=st.just(1), model=st.just("m"), input=st.lists(letters, max_size=2)),
)


@settings(max_examples=150, deadline=None)
@given(request=requests)
def test_a_process_answers_as_this_one_does(loop, process, text, request):
    body, asked = msgspec.msgpack.encode(request), job(text, request, unread=request.id)
    outcome, result = loop.run(process.ask(asked, body))
    error, expected = perform(asked, body, Fronts())
    assert outcome.error == error
    assert bytes(result) == expected


def test_a_request_comes_back_without_its_text(loop, process, text):
    tool = Tool.function(name="f", parameters={"type": "object", "properties": {"a": {"type": "string"}}})
    request = said("Hello", account="x", tools=[tool], stream=True, structured=Structured(choice=["a"]))
    body = msgspec.msgpack.encode(request)
    outcome, result = loop.run(process.ask(job(text, request, unread=request.id), body))
    assert outcome.error is None
    prepared = msgspec.msgpack.decode(result, type=Prepared)
    assert (prepared.request.id, prepared.request.account, prepared.request.stream) == (1, "x", True)
    assert prepared.request.messages is None
    assert not prepared.request.tools
    assert prepared.request.structured is not None
    [offered] = prepared.tools
    assert (offered.name, offered.parameters) == ("f", tool.parameters)


@pytest.mark.parametrize("body", [b"", b"\xc1", msgspec.msgpack.encode({"verb": "generate", "id": 1})])
def test_what_is_no_request_is_refused(loop, process, text, body):
    asked = Job(verb="generate", text=text.encoded, context_length=64, unread=1)
    outcome, _ = loop.run(process.ask(asked, body))
    assert outcome.error.code == Code.BAD_REQUEST


def test_a_request_that_says_another_id_further_on_is_refused(loop, process, text):
    """Its replies would be to a request of another number."""
    body = msgspec.msgpack.encode(said("Hello"))
    outcome, _ = loop.run(process.ask(job(text, said("Hello"), unread=2), body))
    assert (outcome.error.code, outcome.error.param) == (Code.BAD_REQUEST, "id")


def said(content, **changes):
    return Generate(id=1, model="m", messages=[Message(role="user", content=content)], **changes)


@contextmanager
def seeming_to_hold(size):
    """This process counts as one of so many bytes: they are the same few, mapped many times."""
    few = 16 << 20
    with ExitStack() as maps, open(os.memfd_create("few"), "r+b") as file:
        file.truncate(few)
        for _ in range(0, size, few):
            flags = mmap.MAP_SHARED | mmap.MAP_POPULATE
            maps.enter_context(mmap.mmap(file.fileno(), few, flags, mmap.PROT_READ))
        yield


def test_what_the_neuron_holds_is_no_reason_for_a_process_to_leave(loop, text):
    async def scenario():
        with seeming_to_hold(child.KEPT):
            assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10 > child.KEPT
            process = TextProcess(MEMORY, "INFO")
        request = said("Hello")
        for _ in range(2):
            outcome, _ = await process.ask(job(text, request), msgspec.msgpack.encode(request))
            assert outcome == Outcome()
        await process.end()

    loop.run(asyncio.wait_for(scenario(), PATIENCE))


def test_a_process_that_has_held_much_leaves_after_its_job(monkeypatch, text):
    header, body = (msgspec.msgpack.encode(each) for each in (job(text, said("Hello")), said("Hello")))
    for kept, leaves in ((2 * child.most_held(), False), (child.most_held() // 2, True)):
        monkeypatch.setattr(child, "KEPT", kept)
        outcome, _ = child._do(header, body, Fronts(), MEMORY)
        assert outcome == Outcome(leaves=leaves)


@pytest.mark.parametrize(
    ("verb", "words"),
    [
        ("generate", "^the request takes more than 3 MiB to prepare; send less in one request$"),
        ("read", "^it takes more than 3 MiB, all there is for it; use a file that is the model's own$"),
        ("try", "^it takes more than 3 MiB"),
    ],
)
def test_a_lack_of_memory_names_what_needed_it_and_the_process_leaves(monkeypatch, verb, words):
    def perform(*_):
        raise MemoryError

    monkeypatch.setattr(child, "perform", perform)
    outcome, _ = child._do(msgspec.msgpack.encode(Job(verb=verb)), b"", Fronts(), 3 << 20)
    assert outcome.leaves
    with pytest.raises(CortexError, match=words) as raised:
        raise outcome.error.error()
    assert raised.value.code == Code.NOT_SUPPORTED


def test_a_process_that_is_killed_in_mid_work_says_how_and_leaves_nothing(loop, text):
    async def scenario():
        process = TextProcess(MEMORY, "INFO")
        request = said("loop")
        asked = asyncio.create_task(process.ask(job(text, request), msgspec.msgpack.encode(request)))
        await asyncio.sleep(0.1)
        os.kill(process.pid, signal.SIGKILL)
        with pytest.raises(ProcessDied, match="SIGKILL"):
            await asked
        assert not is_running(process.pid)

    loop.run(asyncio.wait_for(scenario(), PATIENCE))


def test_a_process_that_ends_by_itself_has_the_time_to_say_why(loop, capfd, monkeypatch):
    monkeypatch.setattr("neuron.preparation.process.FAREWELL_SECONDS", PATIENCE)

    async def scenario():
        process = TextProcess(MEMORY, "INFO")
        with pytest.raises(ProcessDied, match="ended with exit code 1"):
            await process.ask(msgspec.Raw(b"\xc1"), b"")

    loop.run(asyncio.wait_for(scenario(), PATIENCE))
    assert "DecodeError" in capfd.readouterr().err


def test_a_process_that_does_not_come_back_is_ended(loop, text):
    async def scenario():
        pids = []

        def start():
            process = TextProcess(MEMORY, "INFO")
            pids.append(process.pid)
            return process

        pool, request = ProcessPool(start, 2, seconds=1.0), said("loop")
        with pytest.raises(CortexError, match="more than 1 seconds"):
            await pool.run("a", job(text, request), msgspec.msgpack.encode(request))
        assert not is_running(pids[0])
        await pool.close()

    loop.run(asyncio.wait_for(scenario(), PATIENCE))


def test_a_text_on_which_a_tokenizer_takes_ages_is_its_own_account_s(loop, tmp_path):
    """For each place in a run of digits this rule of a published model looks at all the rest of it."""
    folder = write_checkpoint(tmp_path, vocab_size=512)
    file = folder / "tokenizer.json"
    parts = msgspec.json.decode(file.read_bytes())
    digits = {"type": "Split", "pattern": {"Regex": r"\d{1,3}(?=(?:\d{3})*\b)"}, "behavior": "Isolated"}
    parts["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [digits | {"invert": False}, parts["pre_tokenizer"]],
    }
    file.write_bytes(msgspec.json.encode(parts))
    text = TextFrontEnd.load(read_card(folder))

    async def scenario():
        pool = ProcessPool(lambda: TextProcess(MEMORY, "INFO"), 2, seconds=PATIENCE)

        def count(account, prompt):
            request = CountTokens(id=1, model="m", prompt=prompt)
            asked = job(text, request, context_length=1 << 20)
            return asyncio.create_task(pool.run(account, asked, msgspec.msgpack.encode(request)))

        dear = [count("a", "1" * 4_000_000) for _ in range(3)]
        for prompt in ("hello", "word 123 " * 1000):
            assert await count("b", prompt)
        assert not any(task.done() for task in dear)
        await pool.close()
        assert all(
            isinstance(each, BaseException) for each in await asyncio.gather(*dear, return_exceptions=True)
        )

    loop.run(asyncio.wait_for(scenario(), PATIENCE))


def test_a_model_s_templates_are_tried_whatever_its_clients_ask(loop, monkeypatch, folder, text):
    done = asyncio.Event()

    @stands_for(TextProcess)
    class Played:
        """Does not come back from a request."""

        is_there, pid, memory, on_gone = True, 0, 0, None

        async def ask(self, job, body):
            if job.verb != "try":
                await done.wait()
            return Outcome(), msgspec.msgpack.encode({})

        async def end(self):
            return 0

    async def scenario():
        preparation = Preparation("INFO")
        asked = Tokenize(id=1, model="m", prompt="a")
        answers = (preparation.answer(asked, text, ModelFacts(), 64) for _ in range(20))
        clients = asyncio.gather(*answers)
        await asyncio.sleep(0)
        await preparation.read_text(TextFiles.of(read_card(folder)))
        done.set()
        await clients
        await preparation.close()

    monkeypatch.setattr("neuron.preparation.preparation.TextProcess", lambda memory, level: Played())
    loop.run(asyncio.wait_for(scenario(), PATIENCE))


def test_what_tries_a_grammar_for_a_process_counts_with_it():
    before = memory_of(os.getpid())
    code = "import sys; held = bytearray(64 << 20); print(flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-Ic", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as trying:
        trying.stdout.readline()
        during = memory_of(os.getpid())
        trying.stdin.close()
    assert during - before >= 64 << 20
    assert memory_of(trying.pid) == 0


def test_a_process_without_memory_says_so(loop, text):
    async def scenario():
        process = TextProcess(256 << 20, "INFO")
        request = said("grow")
        outcome, _ = await process.ask(job(text, request), msgspec.msgpack.encode(request))
        assert (outcome.error.code, outcome.error.param) == (Code.TEMPLATE_FAILED, "messages")
        assert "memory" in outcome.error.message
        large = Generate(id=1, model="m", prompt=["a" * 100] * 800_000)
        asked = job(text, large, context_length=1 << 20, unread=large.id)
        try:
            outcome, _ = await process.ask(asked, msgspec.msgpack.encode(large))
        except ProcessDied:
            return  # Rust knows no other end
        assert outcome.error.code == Code.NOT_SUPPORTED
        assert outcome.leaves
        await process.end()

    loop.run(asyncio.wait_for(scenario(), PATIENCE))


@pytest.mark.parametrize("kinds", [("loop", "json")])
def test_hostile_templates_delay_nobody_else(tmp_path, folder, kinds):
    models = [simulated("sim"), {"id": "hostile", "path": str(folder)}]
    with ThreadPoolExecutor(len(kinds)) as threads, Neuron(tmp_path, models) as neuron:
        with neuron.client() as client:
            client.ask(chat("sim"), PATIENCE)
            asked = [threads.submit(ask, neuron, said(kind, account=kind)) for kind in kinds]
            wait_until(lambda: len(neuron.children()) == 1 + len(kinds), "them to be under way")
            for _ in range(10):
                neuron.health()
                client.ask(chat("sim"), PATIENCE)
            assert not any(each.done() for each in asked)
        os.kill(neuron.process.pid, signal.SIGTERM)
        assert [each.result() for each in asked] == [Code.SHUTTING_DOWN] * len(kinds)


def ask(neuron, request):
    """The code of the error that is the answer to a request of the hostile model."""
    with neuron.client() as client, pytest.raises(CortexError) as raised:
        client.ask(msgspec.structs.replace(request, model="hostile"), PATIENCE)
    return raised.value.code


def test_a_checkpoint_whose_template_never_ends_is_refused_and_others_are_served(tmp_path):
    hostile = write_checkpoint(tmp_path / "hostile", vocab_size=512)
    (hostile / "chat_template.jinja").write_text("{% for m in messages %}" + LOOP + "{% endfor %}")
    with Neuron(tmp_path, [simulated("sim"), {"id": "hostile", "path": str(hostile)}]) as neuron:
        assert ask(neuron, said("Hello")) == Code.MODEL_LOAD_FAILED
        with neuron.client() as client:
            assert isinstance(client.ask(chat("sim"), PATIENCE), Finished)


def test_a_request_whose_text_processes_are_killed_fails_alone(tmp_path, folder):
    with (
        ThreadPoolExecutor(1) as threads,
        Neuron(tmp_path, [{"id": "hostile", "path": str(folder)}]) as neuron,
    ):
        count = CountTokens(id=0, model="hostile", messages=[Message(role="user", content="loop")])
        asked = threads.submit(ask, neuron, count)
        [tries, counts] = wait_until(lambda: len(found := neuron.children()) == 2 and found, "both processes")
        os.kill(tries, signal.SIGKILL)  # it has nothing to do: nobody is told
        os.kill(counts, signal.SIGKILL)
        [again] = wait_until(lambda: set(neuron.children()) - {tries, counts}, "another try")
        os.kill(again, signal.SIGKILL)
        assert asked.result() == Code.INTERNAL
        assert "killed by SIGKILL" in neuron.log
        with neuron.client() as client:
            large = CountTokens(id=0, model="hostile", messages=[Message(role="user", content="a" * 100_000)])
            with pytest.raises(CortexError) as raised:
                client.ask(large, PATIENCE)
            assert raised.value.code == Code.CONTEXT_LENGTH_EXCEEDED
        assert not {tries, counts} & set(neuron.children())
