"""The gateway's configuration: what is read, and how what is wrong is said."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from msgspec import json
from msgspec.structs import replace

from gateway import config
from ipc import keys
from ipc.settings import ConfigError


def test_toml_of_the_design_and_the_same_in_yaml_mean_the_same(tmp_path: Path) -> None:
    toml, yaml = tmp_path / "cortex.toml", tmp_path / "cortex.yaml"
    toml.write_text(
        '[gateway]\nlisten = "0.0.0.0:31313"\nmetrics_listen = "0.0.0.0:31314"\nbody_limit = "1MiB"\n'
        '[eviction]\nstrategy = "lru"\ndefrag_after_cycles = 50\n'
        '[[neurons]]\nname = "beast"\nendpoint = "http://beast.internal:13131"\n'
    )
    yaml.write_text(
        "gateway: {listen: '0.0.0.0:31313', metrics_listen: '0.0.0.0:31314', body_limit: 1MiB}\n"
        "eviction: {strategy: lru, defrag_after_cycles: 50}\n"
        "neurons: [{name: beast, endpoint: 'tcp://beast.internal:13131'}]\n"
    )
    said = [replace(config.load(path), path="", modified=0.0) for path in (toml, yaml)]
    assert said[0] == said[1]
    assert config.load(toml).neurons[0].endpoint == "tcp://beast.internal:13131"
    assert config.load(toml).gateway.body_limit == 1 << 20


def test_without_a_file_the_neuron_of_this_host_is_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CORTEX_CONFIG", raising=False)
    monkeypatch.setattr(config, "PLACES", config.PLACES[:2])
    assert config.load() == config.GatewayConfig()
    (tmp_path / "cortex.toml").write_text("[gateway]\nworkers = 3\n")
    assert config.load().gateway.workers == 3
    (tmp_path / "other.yaml").write_text("gateway: {workers: 4}\n")
    monkeypatch.setenv("CORTEX_CONFIG", "other.yaml")
    assert config.load().gateway.workers == 4


def test_with_it_goes_which_file_it_was_as_it_was_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CORTEX_CONFIG", raising=False)
    path = tmp_path / "cortex.yaml"
    path.write_text("models_config: models.yaml")
    os.utime(path, (50, 50))
    read = config.load()
    assert (read.path, read.modified) == (str(path), 50.0)
    assert json.decode(json.encode(read), type=config.GatewayConfig) == read  # as the process aside has it
    assert (config.load("cortex.yaml").path, read.models_config) == (str(path), str(tmp_path / "models.yaml"))


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("path: /etc/cortex/cortex.yaml", "path", "unknown key"),
        ("gateway: {listne: x}", "gateway.listne", "listen"),
        ("gateway: {listen: here}", "gateway.listen", "'here'"),
        ("gateway: {listen: '127.0.0.1:70000'}", "gateway.listen", "70000"),
        ("gateway: {metrics_listen: '127.0.0.1:0'}", "gateway.metrics_listen", "0"),
        ("gateway: {metrics_listen: '0.0.0.0:31313'}", "gateway.metrics_listen", "'0.0.0.0:31313'"),
        ("gateway: {workers: 0}", "gateway.workers", "0"),
        ("gateway: {body_limit: lots}", "gateway.body_limit", "'lots'"),
        ("gateway: {body_limit: 1GiB}", "gateway.body_limit", "1073741824"),
        ("gateway: {body_limit: 0}", "gateway.body_limit", "not 0"),
        ("gateway: {body_memory: 1MiB}", "gateway.body_memory", "33554432"),
        ("gateway: {header_limit: 100}", "gateway.header_limit", "not 100"),
        ("gateway: {header_seconds: 0}", "gateway.header_seconds", "0"),
        ("gateway: {keepalive_seconds: 0}", "gateway.keepalive_seconds", "0"),
        ("gateway: {cors_origins: [loopback, chat.example.org]}", "gateway.cors_origins[1]", "'chat.example"),
        ("gateway: {cors_origins: ['https://a.example/b']}", "gateway.cors_origins[0]", "scheme://host"),
        ("gateway: {key_file: missing.secret}", "gateway.key_file", "missing.secret"),
        ("store: {path: ''}", "store.path", "length"),
        ("store: {path: /dev/null/responses.db}", "store.path", "/dev/null is no folder"),
        ("store: {path: /tmp}", "store.path", "it is a folder"),
        ("store: {max_size: 1KiB}", "store.max_size", "1024"),
        ("store: {max_age_days: 0}", "store.max_age_days", "0"),
        ("store: {keep: true}", "store.keep", "enabled"),
        ("images: {fetch: maybe}", "images.fetch", "bool"),
        ("images: {networks: [10.0.0.1/8]}", "images.networks[0]", "10.0.0.1/8"),
        ("images: {hosts: [a.example, 'https://b.example']}", "images.hosts[1]", "'https://b.example'"),
        ("images: {hosts: ['*..']}", "images.hosts[0]", "'*..'"),
        ("gateway: {hosts: [a.example, 'b.example:80']}", "gateway.hosts[1]", "without a port"),
        ("images: {fetch: true, limit: 64MiB}", "images.limit", "67108864"),
        ("{images: {fetch: true}, gateway: {body_limit: 50MiB}}", "images.limit", "gateway.body_limit"),
        ("images: {seconds: 0}", "images.seconds", "0"),
        ("images: {at_once: 0}", "images.at_once", "0"),
        ("eviction: {strategy: random}", "eviction.strategy", "'random'"),
        ("eviction: {defrag_after_cycles: 0}", "eviction.defrag_after_cycles", "0"),
        ("neurons: []", "neurons", "empty"),
        ("neurons: [{name: a}]", "neurons[0]", "'endpoint'"),
        ("neurons: [{name: a, endpoint: beast}]", "neurons[0].endpoint", "'beast'"),
        ("neurons: [{name: a, endpoint: 'tcp://h:0'}]", "neurons[0].endpoint", "'tcp://h:0'"),
        ("neurons: [{name: a, endpoint: 'tcp://h:1', public_key: k}]", "neurons[0].public_key", "key_file"),
        (
            "neurons: [{name: a, endpoint: 'tcp://h:1'}, {name: a, endpoint: 'tcp://h:2'}]",
            "neurons[1].name",
            "neurons[0]",
        ),
        (
            "neurons: [{name: a, endpoint: 'tcp://h:1'}, {name: b, endpoint: 'http://h:1/'}]",
            "neurons[1].endpoint",
            "'http://h:1/' is the endpoint of neurons[0]",
        ),
    ],
)
def test_error_names_file_key_and_value(tmp_path: Path, text: str, key: str, value: str) -> None:
    path = tmp_path / "cortex.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        config.load(path)
    assert str(caught.value).startswith(f"{path}: {key}: ")
    assert value in caught.value.message


def test_keys_are_read_at_the_start(tmp_path: Path) -> None:
    secret, public = keys.generate(tmp_path)
    path = tmp_path / "cortex.yaml"
    path.write_text(
        f"gateway: {{key_file: {secret}}}\n"
        f"neurons: [{{name: a, endpoint: 'tcp://h:1', public_key: {public}}}]\n"
    )
    assert config.load(path).gateway.key_file == str(secret)
    public.write_text("not a key\n")
    with pytest.raises(ConfigError, match=r"neurons\[0\]\.public_key"):
        config.load(path)
