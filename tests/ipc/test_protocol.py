"""docs/protocol.md: complete, and its example runs."""

import asyncio
import os
import re
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from ipc.errors import Code
from ipc.messages.answers import Choice, Timings, Usage
from ipc.messages.framing import HEADER, PROTOCOL_MAJOR, PROTOCOL_MINOR
from ipc.messages.replies import TERMINAL, AnyReply, Delta, Finished, Heartbeat, HelloReply, Started
from ipc.messages.requests import AnyRequest, Health
from ipc.messages.values import Plain
from ipc.server import Server

AS_ELSEWHERE = {"priority", "account", "trace", "keep_alive"}  # of a row without defaults: as in `generate`
PAGE = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text()


def below(kind):
    """What derives from a kind of values in messages."""
    ours = [each for each in kind.__subclasses__() if each.__module__.startswith("ipc.messages.")]
    return [*ours, *(lower for each in ours for lower in below(each))]


def mentioned(name):
    """Whether the page has `name` as code, as a heading, or in a {list of fields}."""
    return re.search(rf"[`{{ ]{name}(?:[`,:= ]|$)", PAGE, re.M) is not None


def test_every_verb_reply_field_and_code_is_on_the_page():
    structs = [*AnyRequest.__args__, *AnyReply.__args__, *below(Plain)]
    names = {struct.__struct_config__.tag for struct in structs if struct.__struct_config__.tag}
    names |= {field.name for struct in structs for field in msgspec.structs.fields(struct)}
    names |= {value for name, value in vars(Code).items() if not name.startswith("_")}
    assert sorted(name for name in names if not mentioned(name)) == []


def fields_on_the_page(verb):
    """What the table of a verb says of each field: its default as JSON, "" where there is none. Those of
    another verb are its own where the page says so."""
    [part] = re.findall(rf"^### (?:\w+, )?{verb}(?:, \w+)?\n(.*?)^##", PAGE, re.M | re.S)
    fields = {}
    for name in re.findall(r"[Tt]he fields of `(\w+)`", part):
        fields |= fields_on_the_page(name)
    table = re.search(r"(?:^\|.*\n)+", part, re.M)
    for line in table[0].splitlines()[2:] if table else ():
        _, names, _, default, *_ = (cell.strip() for cell in line.split("|"))
        default = default.strip("`").replace("nil", "null")
        fields |= dict.fromkeys(re.findall(r"`(\w+)`", names), default)
    return fields


@pytest.mark.parametrize("verb", AnyRequest.__args__, ids=lambda verb: verb.__struct_config__.tag)
def test_the_table_of_a_verb_has_its_fields_with_their_defaults(verb):
    tag = verb.__struct_config__.tag
    told = fields_on_the_page(tag)
    of_both = {"load": {"force"}, "unload": {"keep_alive"}}  # one table, whose rows say of which they are
    fields = {field.name: field for field in msgspec.structs.fields(verb) if field.name != "id"}
    assert told.keys() - of_both.get(tag, set()) == fields.keys()
    for name, field in fields.items():
        default = field.default
        if default is msgspec.NODEFAULT and field.default_factory is not msgspec.NODEFAULT:
            default = field.default_factory()
        said = "" if default is msgspec.NODEFAULT else msgspec.json.encode(default).decode()
        assert told[name] == said or (name in AS_ELSEWHERE and not told[name]), name


def test_the_example_client_knows_which_replies_are_not_the_last():
    [known] = re.findall(r"^MORE_FOLLOWS = \{(.*?)\}", PAGE, re.M)
    more = {reply.__struct_config__.tag for reply in AnyReply.__args__ if reply not in TERMINAL}
    assert set(re.findall(r'"(\w+)"', known)) == more
    last = dict(re.findall(r"^\| `(\w+)` \| (yes|no) \|", PAGE, re.M))
    tags = {reply.__struct_config__.tag for reply in AnyReply.__args__}
    assert last == {tag: "no" if tag in more else "yes" for tag in tags}


def test_the_bytes_on_the_page_are_what_they_say():
    request, replies = (bytes.fromhex(line) for line in re.findall(r"^([0-9a-f]{30,})$", PAGE, re.M))
    assert (request[:4], replies[:4]) == (HEADER, HEADER)
    assert msgspec.msgpack.decode(request[4:], type=AnyRequest) == Health(id=1)
    assert msgspec.msgpack.decode(replies[4:], type=list[AnyReply]) == [
        Delta(id=7, tokens=1, text="Hel"),
        Heartbeat(id=0),
    ]
    assert HEADER.hex(" ") in PAGE


def test_the_page_and_a_hello_say_the_version():
    assert f"Version {PROTOCOL_MAJOR}.{PROTOCOL_MINOR}." in PAGE
    ours = HelloReply(id=1, neuron="n", version="v", instance="i", protocol=(PROTOCOL_MAJOR, PROTOCOL_MINOR))
    # An older client would take its own version for one that is left out.
    assert list(msgspec.msgpack.decode(msgspec.msgpack.encode(ours))["protocol"]) == list(ours.protocol)


def test_the_example_client_runs_as_it_stands():
    (example,) = re.findall(r"```python\n(.*?)```", PAGE, re.S)

    def handler(peer, request):
        assert request.messages[0].content == "Hello!"
        peer.send(Started(id=request.id, prompt_tokens=3))
        for text in ("Good ", "day."):
            peer.send(Delta(id=request.id, tokens=1, text=text))
        usage = Usage(prompt_tokens=3, completion_tokens=2)
        peer.send(Finished(id=request.id, choices=[Choice(reason="stop")], usage=usage, timings=Timings()))

    async def main():
        server = Server("tcp://127.0.0.1:0", handler, lambda peer: None)
        server.start()
        child = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            example,
            env=os.environ | {"NEURON": server.endpoint},
            stdout=subprocess.PIPE,
        )
        output, _ = await asyncio.wait_for(child.communicate(), 20)
        server.close()
        assert child.returncode == 0
        return output.decode()

    assert asyncio.run(main()).startswith("Good day.\n stop ")
