"""The fleet's catalogue as a file: what it means, what it inherits, and how what is wrong with it is said."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway import catalogue
from gateway.catalogue import Cost, Entry
from ipc.model_settings import MAX_MODELS, ModelSettings, SamplingDefaults
from ipc.settings import ConfigError

GIB = 1 << 30


@pytest.fixture
def read(tmp_path: Path):
    def read(text: str, suffix: str = ".yaml", aliases: dict[str, str] | None = None) -> catalogue.Catalogue:
        path = tmp_path / f"models{suffix}"
        path.write_text(text)
        return catalogue.load(path, ["beast", "small"], aliases or {})

    return read


def test_an_entry_has_the_keys_of_a_neurons_file_and_those_of_the_fleet(read) -> None:
    said = read(
        """
models:
- id: Qwen/Qwen3-8B
  source: hf:Qwen/Qwen3-8B-GGUF:Q4_K_M
  ranks: 2
  min_device_memory: 12GiB
  keep_alive: 30m
  sampling: {temperature: 0.6}
  aliases: [gpt-4o, "claude-*"]
  pinned_on: [beast]
  cost: {input: 0.1, output: 0}
"""
    )
    settings = ModelSettings(
        id="Qwen/Qwen3-8B",
        source="hf:Qwen/Qwen3-8B-GGUF:Q4_K_M",
        ranks=2,
        min_device_memory=12 * GIB,
        keep_alive=1800.0,
        sampling=SamplingDefaults(temperature=0.6),
    )
    [entry] = said.models
    assert entry.settings == settings
    assert entry.cost == Cost(input=0.1, output=0.0)  # which is free, and not "nobody has said"
    assert said.aliases == {"gpt-4o": "Qwen/Qwen3-8B", "claude-*": "Qwen/Qwen3-8B"}
    beast, small = said.of("beast", "here"), said.of("small", "here")
    assert (beast.models, beast.elsewhere) == ([settings], {})
    assert (small.models, small.elsewhere) == ([], {"Qwen/Qwen3-8B": ["beast"]})
    assert beast.version == small.version == said.version


def test_a_model_inherits_what_it_does_not_say_itself(read) -> None:
    said = read(
        """
defaults: {keep_alive: 600, sampling: {temperature: 0.5, top_k: 20}, pinned_on: [beast]}
models:
- {id: a}
- {id: b, keep_alive: null, sampling: {top_k: 5}, pinned_on: []}
"""
    )
    a, b = said.models
    assert (a.keep_alive, a.sampling, a.pinned_on) == (
        600.0,
        SamplingDefaults(temperature=0.5, top_k=20),
        ["beast"],
    )
    assert (b.keep_alive, b.sampling, b.pinned_on) == (None, SamplingDefaults(temperature=0.5, top_k=5), [])
    assert said.inherited == {"a": ["keep_alive", "sampling", "pinned_on"]}


SEED = """
[[models]]
id = "Qwen/Qwen3.6-27B"
harness = "candle"
quant = "q6k"
vram_mb = 54000
min_devices = 2
min_device_vram_mb = 24000
pinned_on = ["beast"]
residency_priority = 300
limit.context = 32768
limit.input = 28672
limit.output = 4096
cost.input = 0.0
cost.output = 0.0
capabilities = ["text"]
[aliases]
"helexa/small" = "Qwen/Qwen3-1.7B"
"""


def test_the_file_of_the_seed_system_means_the_same_here(read) -> None:
    said = read(SEED, ".toml")
    assert said.models == [
        Entry(
            id="Qwen/Qwen3.6-27B",
            quantization="q6",
            min_memory=54000 << 20,
            ranks=2,
            min_device_memory=24000 << 20,
            pinned_on=["beast"],
            priority=300,
            context_length=32768,
            max_output=4096,
            cost=Cost(input=0, output=0),
        )
    ]
    assert said.aliases == {"helexa/small": "Qwen/Qwen3-1.7B"}
    unread = [note for note in said.notes if "changes nothing" in note]
    assert [note.split(" ")[0] for note in unread] == [
        f"models[0].{key}" for key in ("harness", "capabilities", "limit.input")
    ]


def test_an_empty_file_takes_everything_back(read) -> None:
    assert read("").models == []


def test_the_version_is_that_of_the_content(read) -> None:
    one = read("models: [{id: a}]")
    assert one.version == read("# the same\nmodels:\n- id: a\n").version
    assert one.version != read("models: [{id: a, aliases: [b]}]").version


@pytest.mark.parametrize(
    ("text", "key", "words"),
    [
        ("models: [{id: a, contxt: 1}]", "models[0].contxt", ["unknown", "context_length", "(line 1)"]),
        ("models:\n- id: a\n- id: b\n  ranks: 0\n", "models[1].ranks", [">= 1", "(line 4)"]),
        ("models:\n- id: a\n- id: a\n", "models[1].id", ["models[0]", "(line 3)"]),
        ("models: [{ranks: 1}]", "models[0]", ["'id' is missing"]),
        ("models: {a: {}}", "models", ["array"]),
        ("models: [a]", "models[0]", ["'a'"]),
        ("models: [{id: a, pinned_on: [beest]}]", "models[0].pinned_on[0]", ["'beest'", "beast, small"]),
        ("models: [{id: a, cost: {input: -1, output: 0}}]", "models[0].cost.input", [">= 0"]),
        ("models: [{id: a, cost: {input: 1}}]", "models[0].cost", ["'output' is missing"]),
        ("models: [{id: a, aliases: [x]}, {id: b, aliases: [x]}]", "models[1].aliases", ["'x' means 'a'"]),
        ("models: [{id: a, aliases: [b]}, {id: b}]", "models[0].aliases", ["'b' is the id of a model"]),
        ("models: [{id: a, aliases: [mine]}]", "models[0].aliases", ["'mine' means 'other' already"]),
        ("models: [{id: a, aliases: [a]}]", "models[0].aliases", ["leads back to itself"]),
        ("aliases: {x: y, y: x}", "aliases.x", ["leads back to itself"]),
        ("defaults: {id: a}", "defaults.id", ["one model's"]),
        ("defaults: {ranks: 0}\nmodels: [{id: a}]", "defaults.ranks", [">= 1", "(line 1)"]),
        ("defaults: [a]", "defaults", ["['a']"]),
        ("models: [{id: a, quant: q5_1}]", "models[0].quant", ["'q5_1'", "hf:ORG/NAME"]),
        ("models: [{id: a, ranks: 1, min_devices: 2}]", "models[0].min_devices", ["ranks"]),
        ("models: [{id: a, vram_mb: lots}]", "models[0].vram_mb", ["MiB", "'lots'"]),
        ("models: [{id: a, limit: {prompt: 1}}]", "models[0].limit.prompt", ["unknown"]),
        ("models: [{id: a, limit: 5}]", "models[0].limit", ["5"]),
        ("models: [{id: a, devices: [gpu]}]", "models[0].devices[0]", ["'gpu'"]),
        ("models: [", "", ["line 1"]),
        ("model: []", "model", ["unknown", "models", "defaults"]),
    ],
)
def test_an_error_names_file_key_value_and_line(
    read, tmp_path: Path, text: str, key: str, words: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        read(text, aliases={"mine": "other"})
    assert caught.value.key == key
    assert str(tmp_path / "models.yaml") in str(caught.value)
    assert all(word in caught.value.message for word in words), caught.value.message


def test_a_file_has_so_many_models_at_most(read) -> None:
    def file(count: int) -> str:
        return "".join(f'[[models]]\nid = "m{number}"\n' for number in range(count))

    assert len(read(file(MAX_MODELS), ".toml").models) == MAX_MODELS
    with pytest.raises(ConfigError) as refused:
        read(file(MAX_MODELS + 1), ".toml")
    assert refused.value.key == "models"


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone\.yaml: cannot be read: No such file"):
        catalogue.load(tmp_path / "gone.yaml", [], {})
