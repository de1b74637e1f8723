"""What README.md and docs/ tell a reader to type or to copy works as it stands."""

import os
import re
import shlex
import subprocess
import sys

import httpx
import msgspec
import pytest
import typer
import yaml

import gateway.config
import neuron.config
from gateway import catalogue
from gateway.commands.cli import app as cortex_command
from ipc.model_settings import LIVE
from ipc.settings import load_settings
from neuron.cli import app as neuron_command
from tests.end_to_end.harness import PATIENCE
from tests.end_to_end.pages import BLOCKS, PAGES, ROOT
from workers.checkpoints.registry import ARCHITECTURES

EXAMPLES = [
    example
    for _, _, body in BLOCKS
    for example in re.findall(r"^curl http://[^/\s]+(/\S+) .*?-d '(.*?)'\n", body, re.S | re.M)
]
COMMANDS = {
    "cortex": typer.main.get_command(cortex_command),
    "neuron": typer.main.get_command(neuron_command),
}
# As they stand in a block, with the prompt of a host or a folder before them, or in the text.
LINES = sorted(
    {
        line.strip()
        for pattern, texts in (
            (r"(?:^|\$ +|/bin/)((?:cortex|neuron) [a-z].*?)(?:$|  )", [body for _, _, body in BLOCKS]),
            (r"`(?:sudo )?((?:cortex|neuron) [a-z][^`]*)`", PAGES.values()),
        )
        for text in texts
        for line in re.findall(pattern, text, re.M)
    }
)


@pytest.mark.parametrize(("path", "body"), EXAMPLES, ids=[path for path, _ in EXAMPLES])
def test_an_example_is_answered(cortex, path, body):
    headers = {"Content-Type": "application/json"}
    answer = httpx.post(f"{cortex.base}{path}", content=body, headers=headers, timeout=PATIENCE)
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(
    ("page", "program"), [(page, body) for page, language, body in BLOCKS if language == "python"]
)
def test_a_program_runs(cortex, page, program):
    """Against the fixture's ports; nothing else of it is changed."""
    program = program.replace("http://127.0.0.1:31313", cortex.base)
    environment = os.environ | {"NEURON": cortex.fleet().neurons[0].endpoint}
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=PATIENCE, env=environment
    )
    assert ended.returncode == 0, ended.stderr
    assert re.search(r"[a-z]{3,} [a-z]{2,}", ended.stdout), "it prints an answer"


@pytest.mark.parametrize("line", LINES)
def test_a_command_has_the_options_that_it_is_shown_with(line):
    name, subcommand, *arguments = shlex.split(line, comments=True)
    command = COMMANDS[name].commands[subcommand]
    if arguments:  # else it is only named
        command.make_context(subcommand, arguments)


@pytest.mark.parametrize(
    ("page", "language", "body"), [block for block in BLOCKS if block[1] in ("yaml", "toml")]
)
def test_a_configuration_can_be_read(tmp_path, page, language, body):
    kinds = {"neuron": neuron.config.NeuronConfig, "cortex": gateway.config.GatewayFile}
    path = tmp_path / f"config.{language}"
    path.write_text(body)
    if body.startswith("# models.yaml"):
        catalogue.load(path, ["beast"], {})
        return
    if language == "yaml" and isinstance(yaml.safe_load(body), list):
        msgspec.convert(yaml.safe_load(body), list[neuron.config.ModelSettings])
        return
    named = re.match(r"# (neuron|cortex)\.", body)
    for kind in [kinds[named[1]]] if named else kinds.values():
        try:
            load_settings(path, kind)
            return
        except Exception as error:
            reason = error
    raise AssertionError(f"{page}: {reason}")


def keys_in(part, struct):
    """What a part of docs/configuration.md says of keys and their defaults, as a file would have it."""
    told = {}
    text = PAGES["docs/configuration.md"].partition(f"{part}\n")[2]
    for key, default in re.findall(r"^\| `([a-z._]+)` \| (.*?) \|", text.partition("\n#")[0], re.M):
        *path, name = key.split(".")
        place = told
        for each in path:
            place = place.setdefault(each, {})
        place[name] = yaml.safe_load(default.strip("`"))
    names = {field.encode_name: field.type for field in msgspec.structs.fields(struct)}
    assert told.keys() | {"neurons", "models"} == names.keys() | {"neurons", "models"}, part
    for name, inner in told.items():
        if isinstance(inner, dict) and isinstance(names[name], type) and inner:
            assert sorted(inner) == sorted(names[name].__struct_fields__), name
    return told


@pytest.mark.parametrize(
    ("part", "kind"),
    [("## The gateway", gateway.config.GatewayFile), ("## A neuron", neuron.config.NeuronConfig)],
)
def test_the_page_has_every_key_with_its_default(tmp_path, part, kind):
    path = tmp_path / "config.yaml"
    told = keys_in(part, kind)
    if "name" in told:
        told["name"] = kind().name  # the host's
    path.write_text(yaml.safe_dump(told))
    assert load_settings(path, kind) == kind()


def times(struct, place=""):
    """Every key of a file that is a time by its name, and its text as the page spells one."""
    for field in msgspec.structs.fields(struct):
        if isinstance(field.type, type) and issubclass(field.type, msgspec.Struct):
            yield from times(field.type, f"{place}{field.encode_name}.")
        elif re.search(r"(^|_)seconds$", field.encode_name):
            yield f"{place}{field.encode_name}"


@pytest.mark.parametrize(
    ("kind", "key"),
    [(kind, key) for kind in (gateway.config.GatewayFile, neuron.config.NeuronConfig) for key in times(kind)],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_every_time_may_be_a_text(tmp_path, kind, key):
    path, settings = tmp_path / "config.yaml", None
    for part in reversed(key.split(".")):
        settings = {part: "1m30s" if settings is None else settings}
    path.write_text(yaml.safe_dump(settings))
    read = load_settings(path, kind)
    for part in key.split("."):
        read = getattr(read, part)
    assert read == 90


def test_the_page_has_every_key_of_a_model_with_its_default():
    told = keys_in("### Models", neuron.config.ModelSettings) | {"id": "m"}
    settings = msgspec.convert([told], list[neuron.config.ModelSettings])
    assert settings == [neuron.config.ModelSettings(id="m")]


def test_the_page_names_the_keys_that_count_without_a_load():
    [told] = re.findall(r"Of a model that is loaded, (.*?) count at once", PAGES["docs/operations.md"], re.S)
    assert set(re.findall(r"`(\w+)`", told)) == LIVE


def test_the_page_has_every_architecture_that_is_served_and_no_other():
    """By its name, or as `ForMaskedLM` and the like of an encoder whose `…Model` has its name there."""
    told = PAGES["docs/configuration.md"].partition("### What is served\n")[2].partition("\n#")[0]
    words = set(re.findall(r"`(\w+)`", told))
    heads = "|".join(head for head in ("ForMaskedLM", "ForSequenceClassification") if head in words)
    missing = {re.sub(f"({heads})$", "Model", name) for name in ARCHITECTURES.keys() - words} - words
    assert not missing
    named = {word for word in words if re.search(r"\w(Model|For(CausalLM|ConditionalGeneration))$", word)}
    assert named <= ARCHITECTURES.keys()


def test_every_target_of_make_is_there():
    targets = {name for text in PAGES.values() for name in re.findall(r"^make (\w+)", text, re.M)}
    assert {"run", "test"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.M), target


def test_the_pages_have_examples():
    assert len(EXAMPLES) >= 4
    assert sum(language == "python" for _, language, _ in BLOCKS) >= 2
    assert {"cortex keygen --out /etc/neuron/keys --name neuron", "cortex up --model simulated"} <= set(LINES)
