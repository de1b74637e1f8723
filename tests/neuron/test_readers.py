"""Large tokenizers are read in text processes, and the event loop of a neuron goes on meanwhile."""

import asyncio
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from tokenizers import Tokenizer

from ipc.errors import Code, CortexError
from ipc.messages.conversation import Message, Tool
from ipc.messages.replies import TokenCount
from ipc.messages.requests import CountTokens, Generate
from ipc.messages.sampling import Sampling
from neuron.preparation.facts import ModelFacts
from neuron.preparation.jobs import Job
from neuron.preparation.pool import OURS
from neuron.preparation.preparation import Preparation
from neuron.preparation.prepared import prepare
from neuron.preparation.readers import Readers
from neuron.text.answers import AnswerFacts, AnswerText
from neuron.text.frontend import LITTLE, ModelText, TextFiles, TextFrontEnd
from tests.neuron.folders import write_checkpoint
from tests.neuron.harness import Neuron, chat, simulated, wait_until
from tests.neuron.played_processes import Started
from workers.checkpoints.reading import read_card

PATIENCE = 60.0
MESSAGES = [Message(role="user", content="Hello, dog")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model whose tokenizer is a large file: of space, which JSON may have."""
    folder = write_checkpoint(tmp_path_factory.mktemp("large"), vocab_size=512)
    tokenizer = folder / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text() + " " * LITTLE)
    return folder


@pytest.fixture(scope="module")
def front(folder):
    return TextFrontEnd.load(read_card(folder))


@pytest.fixture(scope="module")
def answers(front):
    """What reads the same model's answers, as it comes from another process."""
    facts = msgspec.msgpack.decode(msgspec.msgpack.encode(front.answers), type=AnswerFacts)
    return AnswerText(facts, front.encoded)


def count(model):
    return CountTokens(id=0, model=model, messages=MESSAGES)


def said(text, answers, tokens, after=()):
    """All that comes of the tokens of an answer."""
    request = Generate(id=1, model="m", messages=MESSAGES, tools=[Tool.function(name="f")])
    detokenizer, parser = text.detokenizer(after), text.answer_parser("possible", request, request.tools)
    heard = [parser.push(detokenizer.push([token])) for token in tokens]
    heard += [parser.push(detokenizer.finish()), parser.finish()]
    parts = [(kind, replace(part, call_id="") if kind == "tool" else part) for kind, part in chain(*heard)]
    return parts, list(map(text.spell, tokens))


@given(tokens=st.lists(st.integers(0, 511), max_size=30), after=st.lists(st.integers(0, 511), max_size=5))
def test_answers_are_read_as_by_whoever_has_the_tokenizer(front, answers, tokens, after):
    assert said(answers, answers, tokens, after) == said(front, answers, tokens, after)


def test_tags_are_told_from_text_without_the_tokenizer(front, answers):
    written = '<think>a</think>b<tool_call>{"name": "f", "arguments": {}}</tool_call>'
    tokens = front.encode(written, special=False)
    assert said(answers, answers, tokens) == said(front, answers, tokens)
    assert (answers.thinks, answers.tool_format, answers.vocabulary_size) == (
        front.thinks,
        front.tool_format,
        512,
    )


def test_health_and_other_models_go_on_while_a_tokenizer_is_read(tmp_path, folder):
    models = [simulated("sim"), {"id": "large", "path": str(folder)}]
    with ThreadPoolExecutor(1) as threads, Neuron(tmp_path, models) as neuron, neuron.client() as client:
        client.ask(chat("sim"), PATIENCE)
        before = set(neuron.children())
        with neuron.client() as other:
            asked = threads.submit(other.ask, count("large"), PATIENCE)
            [tries] = wait_until(lambda: set(neuron.children()) - before, "its template to be tried")
            before.add(tries)
            [reads] = wait_until(lambda: set(neuron.children()) - before, "its tokenizer to be read")
            # one that is stopped before it is a program of its own stops whoever starts it
            wait_until(
                lambda: b"preparation.child" in Path(f"/proc/{reads}/cmdline").read_bytes(), "it to begin"
            )
            os.kill(reads, signal.SIGSTOP)
            for _ in range(5):
                neuron.health()
                client.ask(chat("sim"), PATIENCE)
            os.kill(reads, signal.SIGCONT)
            assert isinstance(asked.result(PATIENCE), TokenCount)
        again = client.ask(count("large"), PATIENCE)
        assert again.tokens == asked.result().tokens
        assert set(neuron.children()) - before == {reads}, "whoever read it prepares what is small"


def test_no_large_tokenizer_is_read_in_the_neuron(monkeypatch, folder, front):
    def refuse(model):
        raise AssertionError("it is read here")

    async def scenario():
        preparation = Preparation("INFO")
        text = await preparation.read_text(TextFiles.of(read_card(folder)))
        request = Generate(id=1, model="m", messages=MESSAGES, sampling=Sampling(seed=1))
        prepared = await preparation.prepare(request, text, ModelFacts(), 512)
        small = preparation._small
        assert 0 < small.memory < preparation.memory
        assert preparation.spare_memory == preparation.memory
        await preparation.end_idle(preparation.memory - small.memory)
        assert preparation.memory == small.memory, "who has read a tokenizer makes way last"
        preparation.forget_text(text)
        assert preparation.memory == 0
        await preparation.close()
        return text, request, prepared

    with monkeypatch.context() as patched:
        patched.setattr(TextFrontEnd, "read", refuse)
        text, request, prepared = asyncio.run(asyncio.wait_for(scenario(), PATIENCE))
    assert not text.is_quick
    assert prepared.prompts == prepare(request, front, ModelFacts(), 512).prompts


def test_a_tokenizer_that_is_none_is_refused_by_its_file(tmp_path):
    folder = write_checkpoint(tmp_path, vocab_size=512)
    (folder / "tokenizer.json").write_text("{}" + " " * LITTLE)

    async def scenario():
        preparation = Preparation("INFO")
        with pytest.raises(CortexError, match=r"tokenizer\.json: is no tokenizer") as raised:
            await preparation.read_text(TextFiles.of(read_card(folder)))
        assert raised.value.code == Code.MODEL_LOAD_FAILED
        assert not preparation._small._pools, "the process that read it ends"
        await preparation.close()

    asyncio.run(asyncio.wait_for(scenario(), PATIENCE))


def test_a_tokenizer_that_takes_more_than_there_is_is_refused_by_its_file_in_words_about_it(folder):
    async def scenario():
        preparation = Preparation("INFO")
        text = ModelText(TextFiles.of(read_card(folder)), {})
        job = Job(verb="read", text=msgspec.msgpack.encode(text))

        async def too_much(*_):
            raise job.too_much("4096 MiB")

        preparation._small.run = too_much
        words = r"^the tokenizer in \S+/tokenizer\.json cannot be read: it takes more than 4096 MiB, "
        with pytest.raises(CortexError, match=words) as raised:
            await preparation.read_text(text.files)
        assert raised.value.code == Code.MODEL_LOAD_FAILED
        await preparation.close()

    asyncio.run(asyncio.wait_for(scenario(), PATIENCE))


@given(tokens=st.lists(st.integers(0, 511), max_size=30))
def test_what_is_written_is_what_the_library_writes(folder, answers, tokens):
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert answers._vocabulary.decode(tokens) == tokenizer.decode(tokens, skip_special_tokens=False)


def test_nobody_waits_behind_a_template_that_takes_long(tmp_path, folder):
    """What asks the model's one reader for more than a moment is done where one account holds up itself."""
    slow = "{% if m.content == 'slow' %}{% for i in range(30000) %}{% endfor %}{% endif %}"
    template = "{% for m in messages %}" + slow + "{{ m.content }}{% endfor %}"
    copy = write_checkpoint(tmp_path, vocab_size=512)
    (copy / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    (copy / "chat_template.jinja").write_text(template)

    def asks(account, content):
        message = Message(role="user", content=content)
        return CountTokens(id=1, model="m", messages=[message], account=account)

    async def scenario():
        preparation, opened = Preparation("INFO"), asyncio.Event()
        text = await preparation.read_text(TextFiles.of(read_card(copy)))
        counts = preparation._counts.run

        async def when_opened(*args):
            await opened.wait()
            return await counts(*args)

        preparation._counts.run = when_opened
        waits = asyncio.create_task(preparation.answer(asks("a", "slow"), text, ModelFacts(), 512))
        await preparation.answer(asks("b", "quick"), text, ModelFacts(), 512)
        assert not waits.done()
        opened.set()
        assert await waits
        await preparation.close()

    asyncio.run(asyncio.wait_for(scenario(), PATIENCE))


# --- one process for each model; the processes are played ---------------------------------------------------


def job(model):
    return Job(verb="generate", text=model)


def keeping(readers, *texts):
    for text in texts:
        readers.keep(text)
    return readers


class Work:
    """A job that goes on until it is told to end."""

    def __init__(self):
        self.begun, self.ends = asyncio.Event(), asyncio.Event()

    async def run(self):
        self.begun.set()
        return await self.ends.wait()


def test_what_one_model_takes_holds_up_no_other():
    async def scenario():
        made, read = Started(), asyncio.Event()
        readers = keeping(Readers(made), b"slow", b"other")
        reading = asyncio.create_task(readers.run(OURS, job(b"slow"), read.wait))
        await asyncio.sleep(0)
        behind = asyncio.create_task(readers.run("a", job(b"slow"), lambda: b"after it"))
        assert await readers.run("a", job(b"other"), lambda: b"served") == b"served"
        assert not behind.done()
        read.set()
        assert await reading
        assert await behind == b"after it"
        assert len(made) == 2
        await readers.close()
        assert all(process.ended for process in made)

    asyncio.run(asyncio.wait_for(scenario(), PATIENCE))


def test_what_they_hold_together_is_bounded_whenever_one_is_free():
    async def scenario():
        made, done = Started(), asyncio.Event()
        readers = keeping(Readers(made, memory=250), *(b"%d" % n for n in range(4)))
        busy = [asyncio.create_task(readers.run("a", job(b"%d" % n), done.wait)) for n in range(4)]
        await asyncio.sleep(0.01)
        assert readers.memory == 400
        done.set()
        await asyncio.gather(*busy)
        assert readers.memory == 200
        made[-2].is_there, made[-2].memory = False, 0  # it went by itself
        await readers.run("a", job(b"3"), lambda: b"")
        assert [process.ended for process in made[:2]] == [True, True]
        assert len(readers._pools) == 1, "of who is gone nothing is left"
        await readers.close()

    asyncio.run(asyncio.wait_for(scenario(), PATIENCE))


def test_models_that_were_not_asked_for_make_way_unless_they_work():
    async def scenario():
        made, done = Started(), asyncio.Event()
        readers = keeping(Readers(made, memory=250), b"busy", b"idle", b"new")
        for model in (b"busy", b"idle"):
            await readers.run("a", job(model), lambda: b"")
        busy = asyncio.create_task(readers.run("a", job(b"busy"), done.wait))
        await readers.run("a", job(b"idle"), lambda: b"")
        await readers.run("a", job(b"new"), lambda: b"")
        await asyncio.sleep(0)
        assert [process.ended for process in made] == [False, True, False]
        assert readers.memory == 200
        done.set()
        await busy
        assert await readers.run("a", job(b"idle"), lambda: b"again") == b"again"
        await readers.close()
        assert all(process.ended for process in made)

    asyncio.run(asyncio.wait_for(scenario(), PATIENCE))


def test_a_reader_ends_with_the_last_model_of_its_text_once_its_work_is_done():
    async def scenario():
        made, work = Started(), Work()
        readers = keeping(Readers(made), b"text", b"text")  # of two models
        await readers.run("a", job(b"text"), lambda: b"")
        readers.forget(b"text")
        assert readers.memory == 100
        working = asyncio.create_task(readers.run("a", job(b"text"), work.run))
        await work.begun.wait()
        readers.forget(b"text")
        assert readers.memory == 100, "it has work"
        work.ends.set()
        await working
        assert readers.memory == 0
        await readers.run("late", job(b"text"), lambda: b"")  # it had been asked before the model went
        assert readers.memory == 0
        await readers.close()
        assert [process.ended for process in made] == [True, True]

    asyncio.run(asyncio.wait_for(scenario(), PATIENCE))


def test_idle_readers_make_way_those_of_models_not_asked_for_first():
    async def scenario():
        made, work = Started(), Work()
        readers = keeping(Readers(made), b"busy", b"old", b"new")
        for model in (b"busy", b"old", b"new"):
            await readers.run("a", job(model), lambda: b"")
        working = asyncio.create_task(readers.run("a", job(b"busy"), work.run))
        await work.begun.wait()
        assert readers.spare_memory == 200
        assert await readers.end_idle(1) == 100
        assert [process.ended for process in made] == [False, True, False]
        assert await readers.end_idle(1000) == 100, "who works stays"
        assert [process.ended for process in made] == [False, True, True]
        work.ends.set()
        await working
        await readers.close()

    asyncio.run(asyncio.wait_for(scenario(), PATIENCE))
