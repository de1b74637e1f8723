import subprocess
import sys

import pytest

from ipc.model_settings import SamplingDefaults
from ipc.settings import ConfigError
from ipc.worker_messages import WeightCache
from neuron.config import ModelSettings, NeuronConfig, QuantisedCache, check, load
from neuron.tenancy.launcher import weight_cache


@pytest.fixture
def read(tmp_path):
    def read(text):
        path = tmp_path / "neuron.yaml"
        path.write_text(text)
        return load(path)

    return read


def test_an_empty_file_is_a_working_configuration(read):
    config = read("")
    assert config.listen == "tcp://127.0.0.1:13131"
    assert config.name
    assert (config.queue.limit, config.queue.wait_seconds) == (512, 120.0)


def test_every_key_can_be_set(read):
    config = read(
        """
name: beast
listen: tcp://0.0.0.0:13131
insecure: true
key_file: /etc/neuron/key
allowed_keys: [gateway.pub]
model_folders: [/models]
hf_cache: /cache
devices: [cuda:0, "cuda:1", cpu]
cpu: {cores: 4, memory: 12GiB}
queue: {limit: 8, wait_seconds: 1.5}
keep_alive: 30m
parking: 48GiB
default_model: org/big
default_after_seconds: 5
step_deadline_seconds: 20
load_deadline_seconds: 60
log_level: DEBUG
models:
  - {id: org/big, path: /models/big, dtype: float32, exact: true, ranks: 2, devices: ["cuda:0", "cuda:1"],
     pin: true, preload: true, priority: 7, keep_alive: 15m, context_length: 4096, max_output: 512,
     max_sequences: 2, max_step_tokens: 64, kv_memory: 1GiB, min_device_memory: 24GB, min_memory: 48GB,
     host_state_memory: 8GiB,
     sampling: {temperature: 0.6, top_k: 20, top_p: 0.95, min_p: 0, repetition_penalty: 1.1, max_tokens: 256},
     tool_format: glm, reasoning_format: think, kv_cache_dtype: int8,
     speculation: ngram}
  - id: slow
    simulated:
      step_seconds: 0.01
      prefill_tokens_per_second: 1000
      load_seconds: 1
      memory: 1GiB
      context_length: 100
      failure: {rank: 1, die_at_step: 5, epochs: 1}
"""
    )
    assert (config.cpu.memory, config.parking) == (12 << 30, 48 << 30)
    assert (config.keep_alive, config.default_model, config.default_after_seconds) == (1800.0, "org/big", 5.0)
    assert config.models[0] == ModelSettings(
        id="org/big",
        path="/models/big",
        dtype="float32",
        exact=True,
        ranks=2,
        devices=["cuda:0", "cuda:1"],
        pin=True,
        preload=True,
        priority=7,
        keep_alive=900.0,
        context_length=4096,
        max_output=512,
        min_device_memory=24 * 10**9,
        min_memory=48 * 10**9,
        sampling=SamplingDefaults(
            temperature=0.6, top_k=20, top_p=0.95, min_p=0, repetition_penalty=1.1, max_tokens=256
        ),
        max_sequences=2,
        max_step_tokens=64,
        speculation="ngram",
        kv_memory=1 << 30,
        host_state_memory=8 << 30,
        tool_format="glm",
        reasoning_format="think",
        kv_cache_dtype="int8",
    )
    assert config.models[1].simulated.failure.die_at_step == 5


@pytest.mark.parametrize(
    "listen", ["tcp://*:0", "tcp://[::1]:13131", "tcp://beast.internal:*", "ipc:///run/neuron"]
)
def test_endpoints_of_zeromq_are_taken(read, listen):
    assert read(f"listen: '{listen}'").listen == listen


@pytest.mark.parametrize(
    ("text", "key", "words"),
    [
        ("listen: http://beast:13131", "listen", ["tcp://host:port", "http://beast:13131"]),
        ("listen: tcp://beast", "listen", ["tcp://beast"]),
        ("listen: tcp://beast:99999", "listen", ["99999"]),
        ("devices: []", "devices", ["empty"]),
        ("devices: [gpu0]", "devices[0]", ["cuda:N", "gpu0"]),
        ("devices: ['cuda:01']", "devices[0]", ["cuda:01"]),
        ("devices: ['cuda:0', 'cuda:0']", "devices[1]", ["twice"]),
        ("models: [{id: a}, {id: b}, {id: a}]", "models[2].id", ["'a'", "models[0]"]),
        ("models: [{id: a, ranks: 0}]", "models[0].ranks", [">= 1", "0"]),
        ("models: [{id: ''}]", "models[0].id", ["length >= 1"]),
        ("models: [{id: a, speculation: eagle}]", "models[0].speculation", ["'eagle'"]),
        ("models: [{id: a, speculation: ngram, simulated: {}}]", "models[0].speculation", ["simulated"]),
        ("models: [{id: a, dtype: int8}]", "models[0].dtype", ["'int8'"]),
        ("models: [{id: a, source: 'ollama:b'}]", "models[0].source", ["hf:ORG/NAME", "'ollama:b'"]),
        ("models: [{id: a, source: 'hf:b'}]", "models[0].source", ["'hf:b'"]),
        ("models: [{id: a, source: /a, path: /b}]", "models[0].source", ["'/b'"]),
        ("models: [{id: a, pull: true}]", "models[0].pull", ["'a'", "hf:ORG/NAME"]),
        ("models: [{id: a/b, path: /a, pull: true}]", "models[0].pull", ["no repository"]),
        ("models: [{id: a/b, simulated: {}, pull: true}]", "models[0].pull", ["no repository"]),
        ("models: [{id: a, source: 'hf:b/c', simulated: {}}]", "models[0].source", ["simulated"]),
        ("models: [{id: a, keep_alive: soon}]", "models[0].keep_alive", ["15m", "'soon'"]),
        ("models: [{id: a, max_output: 0}]", "models[0].max_output", [">= 1"]),
        ("models: [{id: a, sampling: {top_p: 0}}]", "models[0].sampling.top_p", ["> 0"]),
        ("models: [{id: a, sampling: {seed: 1}}]", "models[0].sampling.seed", ["unknown", "top_p"]),
        ("models: [{id: a, exact: true, adapters: {b: /b}}]", "models[0].adapters", ["exact"]),
        ("models: [{id: a, adapters: {'b/c': /b}}]", "models[0].adapters", ["b/c"]),
        ("models: [{id: a, adapters: {b: /b}}, {id: 'a:b'}]", "models[0].adapters.b", ["a:b"]),
        ("models: [{id: a, tool_format: xml}]", "models[0].tool_format", ["'xml'", "hermes", "mistral"]),
        ("models: [{id: a, reasoning_format: xml}]", "models[0].reasoning_format", ["'xml'", "think"]),
        ("models: [{id: a, devices: [x]}]", "models[0].devices[0]", ["'x'"]),
        ("models: [{id: a, ranks: 2, devices: ['cuda:0']}]", "models[0].devices", ["2 ranks", "cuda:0"]),
        ("models: [{id: a, devices: [cpu, 'cuda:0']}]", "models[0].devices", ["cpu alone"]),
        ("devices: [cpu]\nmodels: [{id: a, devices: ['cuda:0']}]", "models[0].devices", ["cuda:0", "cpu"]),
        ("models: [{id: a, path: /x, simulated: {}}]", "models[0].path", ["/x", "simulated"]),
        (
            "models: [{id: a, simulated: {speed: 1}}]",
            "models[0].simulated.speed",
            ["unknown", "step_seconds"],
        ),
        ("queue: {wait_seconds: 0}", "queue.wait_seconds", ["> 0"]),
        ("cpu: {cores: 0}", "cpu.cores", [">= 1"]),
        ("log_level: LOUD", "log_level", ["'LOUD'"]),
        ("standby: 2", "standby", ["bool"]),
    ],
)
def test_an_error_names_file_key_and_value(read, text, key, words):
    with pytest.raises(ConfigError) as raised:
        read(text)
    assert raised.value.key == key
    assert "neuron.yaml" in str(raised.value)
    assert all(word in raised.value.message for word in words), raised.value.message


def test_several_ranks_may_share_the_cpu(read):
    assert read("models: [{id: a, ranks: 4, devices: [cpu]}]").models[0].ranks == 4


def test_a_configuration_made_in_code_is_checked_the_same():
    with pytest.raises(ConfigError, match="command line"):
        check(NeuronConfig(models=[ModelSettings(id="a"), ModelSettings(id="a")]), "command line")


def test_knowing_the_neuron_costs_no_heavy_import():
    code = (
        "import sys, neuron.config, neuron.memory.devices, neuron.memory.ledger, neuron.catalogue.catalogue\n"
        "import workers.checkpoints.reading\n"
        "print({'torch', 'pynvml', 'tokenizers', 'jinja2', 'huggingface_hub', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=150, check=True
    )
    assert done.stdout.strip() == "set()"


def test_quantised_copies_are_kept_where_the_service_or_the_user_keeps_what_can_be_made_again(monkeypatch):
    monkeypatch.delenv("CACHE_DIRECTORY", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/home/somebody/cache")
    assert weight_cache(QuantisedCache()).folder == "/home/somebody/cache/cortex/quantised"
    monkeypatch.setenv("CACHE_DIRECTORY", "/var/cache/neuron")
    assert weight_cache(QuantisedCache()).folder == "/var/cache/neuron/quantised"
    assert weight_cache(QuantisedCache(path="/data/q", max_size=5)) == WeightCache("/data/q", 5)
    assert weight_cache(QuantisedCache(max_size=0)) is None
