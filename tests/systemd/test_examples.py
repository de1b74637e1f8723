"""The example configurations: what they say is what the program does."""

import re
from pathlib import Path

import msgspec
import pytest

import gateway.config
import neuron.config
from gateway import catalogue
from gateway.catalogue import Entry
from ipc.model_settings import ModelSettings, Simulated

FOLDER = Path(__file__).parents[2] / "systemd"
EXAMPLES = {"neuron.yaml": neuron.config, "cortex.yaml": gateway.config}


def with_every_key(name: str, folder: Path) -> Path:
    """A copy of the example in which every commented key (`#key`; prose is `# word`) counts."""
    path = folder / name
    path.write_text(re.sub(r"^#(?=[a-z-]|  )", "", (FOLDER / name).read_text(), flags=re.MULTILINE))
    return path


def keys_of(struct: type[msgspec.Struct], seen: list[str]) -> list[str]:
    """The names of all fields of `struct` and of the structs in them, as a settings file writes them."""
    for field in msgspec.structs.fields(struct):
        seen.append(field.encode_name)
        for inner in structs_in(field.type):
            if inner.__name__ != "FailurePlan":  # docs/configuration.md has it
                keys_of(inner, seen)
    return seen


def structs_in(kind) -> list[type[msgspec.Struct]]:
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return [kind]
    return [struct for inner in getattr(kind, "__args__", ()) for struct in structs_in(inner)]


def said_by(read):
    """A configuration, whichever file says so."""
    if isinstance(read, gateway.config.GatewayConfig):
        return msgspec.structs.replace(read, path="", modified=0.0)
    return read


@pytest.mark.parametrize(("name", "module"), EXAMPLES.items())
def test_the_example_as_it_stands_is_the_default(name, module):
    default = neuron.config.NeuronConfig() if module is neuron.config else gateway.config.GatewayConfig()
    assert said_by(module.load(FOLDER / name)) == default


@pytest.mark.parametrize(("name", "module"), EXAMPLES.items())
def test_the_values_it_shows_are_the_defaults(name, module, tmp_path):
    shown = said_by(module.load(with_every_key(name, tmp_path)))
    default = said_by(module.load(FOLDER / name))
    if module is neuron.config:
        real, simulated = shown.models
        assert real == ModelSettings(id=real.id)
        assert simulated.simulated == Simulated()
        shown = msgspec.structs.replace(shown, models=[])
    assert shown == default


@pytest.mark.parametrize(
    ("name", "struct"),
    [("neuron.yaml", neuron.config.NeuronConfig), ("cortex.yaml", gateway.config.GatewayFile)],
)
def test_every_key_is_shown(name, struct):
    text = (FOLDER / name).read_text()
    missing = [key for key in keys_of(struct, []) if not re.search(rf"^#[ -]*{key}:", text, re.MULTILINE)]
    assert missing == []


def test_the_example_of_a_catalogue_shows_every_key_with_its_default(tmp_path):
    assert catalogue.load(FOLDER / "models.yaml", [], {}).models == []
    [entry] = catalogue.load(with_every_key("models.yaml", tmp_path), [], {}).models
    assert entry == Entry(id=entry.id)
    text = (FOLDER / "models.yaml").read_text()
    names = ["defaults", "models", "aliases", *Entry.__struct_fields__]
    assert [name for name in names if not re.search(rf"^#[ -]*{name}:", text, re.MULTILINE)] == []
