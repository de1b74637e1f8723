"""`cortex up` refuses what cannot work before anything starts, and says which option it is."""

import json
import shlex
import socket

import msgspec
import pytest

import neuron.config
from gateway.commands.up import example
from gateway.commands.up_plan import LOOPBACK, UpError, free_socket, make_plan, model_entry, parse_devices
from ipc.messages.state import ModelState
from ipc.settings import load_settings
from neuron.catalogue.catalogue import Catalogue
from tests.ports import free_ports


def plan(models=("demo",), dtype=None, ranks=1, device=None, listen="127.0.0.1:0"):
    return make_plan(models, dtype, ranks, device, listen)


@pytest.fixture
def checkpoint(tmp_path):
    folder = tmp_path / "tiny"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return folder


@pytest.mark.parametrize(
    ("text", "devices"),
    [
        ("cpu", ["cpu"]),
        ("cuda:0", ["cuda:0"]),
        ("cuda:0,1", ["cuda:0", "cuda:1"]),
        ("cuda:2,cuda:0", ["cuda:2", "cuda:0"]),
    ],
)
def test_devices_are_understood(text, devices):
    assert parse_devices(text) == devices


@pytest.mark.parametrize("text", ["", "gpu", "cuda", "cuda:", "cuda:x", "cuda:0,", "cpu,cuda:0", "cuda:1,1"])
def test_a_device_that_cannot_be_meant_is_named(text):
    with pytest.raises(UpError, match=r"--device"):
        parse_devices(text)


def test_a_folder_is_served_under_its_name(checkpoint):
    entry = model_entry(str(checkpoint), "float32", 2, ["cpu"])
    assert entry == {
        "id": "tiny",
        "path": str(checkpoint),
        "ranks": 2,
        "pin": True,
        "dtype": "float32",
        "devices": ["cpu"],
    }


def test_a_folder_of_the_working_directory_is_found(checkpoint, monkeypatch):
    monkeypatch.chdir(checkpoint.parent)
    assert model_entry("tiny", None, 1, None)["path"] == str(checkpoint)
    assert model_entry("./tiny", None, 1, None)["id"] == "tiny"


def test_a_gguf_file_is_served_under_its_name(tmp_path):
    for name, model_id in (("a-Q4_K_M.gguf", "a-Q4_K_M"), ("b-00001-of-00002.gguf", "b")):
        (tmp_path / name).write_text("")
        entry = model_entry(str(tmp_path / name), None, 1, None)
        assert (entry["id"], entry["path"]) == (model_id, str(tmp_path / name))
    with pytest.raises(UpError, match="no such file"):
        model_entry("missing.gguf", None, 1, None)


def test_an_id_is_left_to_the_neuron_to_find():
    assert "path" not in model_entry("Qwen/Qwen3-0.6B", None, 1, None)


def test_a_folder_without_a_checkpoint_is_refused(tmp_path):
    with pytest.raises(UpError, match=r"neither a config\.json nor a GGUF file"):
        plan([str(tmp_path)])
    with pytest.raises(UpError, match="no such folder"):
        plan([str(tmp_path / "missing")])


def test_a_file_that_is_no_checkpoint_is_called_one(tmp_path, monkeypatch):
    (tmp_path / "README.md").write_text("")
    monkeypatch.chdir(tmp_path)
    for name in ("README.md", str(tmp_path / "README.md")):
        with pytest.raises(UpError, match="it is a file"):
            model_entry(name, None, 1, None)


def test_a_model_cannot_be_there_twice():
    with pytest.raises(UpError, match="demo"):
        plan(["demo", "demo"])


def test_ranks_need_devices():
    with pytest.raises(UpError, match="--ranks 2"):
        plan(device="cuda:0", ranks=2)
    assert plan(device="cpu", ranks=2).models[0]["ranks"] == 2


@pytest.mark.parametrize("listen", ["31313", "localhost", "127.0.0.1:99999", "127.0.0.1:x", ":1"])
def test_an_address_that_is_none_is_named(listen):
    with pytest.raises(UpError, match="--listen"):
        plan(listen=listen)


def test_a_port_in_use_is_named_with_its_option():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(UpError, match=rf"port {port} on 127\.0\.0\.1 is in use.*--listen"):
            plan(listen=f"127.0.0.1:{port}")


def test_an_address_of_another_host_is_refused():
    with pytest.raises(UpError, match=r"192\.0\.2\.1"):
        free_socket("192.0.2.1", 0)


def test_all_ports_are_different_and_the_metrics_stay_next_to_the_api():
    made = plan()
    ports = {made.listen[1], made.metrics_port, made.neuron_port}
    assert len(ports) == 3
    with socket.create_server(("127.0.0.1", made.metrics_port)):
        assert plan(listen=f"127.0.0.1:{made.listen[1]}").metrics_port != made.metrics_port


def test_the_neuron_is_where_clients_look_for_one_if_that_is_free():
    free, api = free_ports(2)
    listen = f"{LOOPBACK}:{api}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gateway.commands.up_plan.NEURON_PORT", free)
        assert plan(listen=listen).neuron_port == free
        assert plan(listen=f"{LOOPBACK}:0").neuron_port != free
        with socket.create_server((LOOPBACK, free)):
            assert plan(listen=listen).neuron_port != free


def test_clients_are_sent_to_loopback_when_every_interface_is_open():
    assert plan(listen="0.0.0.0:0").base.startswith("http://127.0.0.1:")


def test_both_daemons_accept_what_they_are_told(tmp_path, checkpoint):
    from json import dumps

    from gateway import config

    made = plan(["demo", "simulated", str(checkpoint)], "float32", 2, "cpu")
    (tmp_path / "neuron.yaml").write_text(dumps(made.neuron_settings()))
    (tmp_path / "cortex.yaml").write_text(dumps(made.gateway_settings(tmp_path)))
    told = neuron.config.load(tmp_path / "neuron.yaml")
    assert [model.id for model in told.models] == ["demo", "simulated", "tiny"]
    assert told.models[1].simulated is not None
    assert load_settings(tmp_path / "cortex.yaml", config.GatewayConfig).neurons[0].endpoint == told.listen


@pytest.mark.parametrize(("listen", "wanted"), [("0.0.0.0:0", True), ("127.0.0.1:0", False)])
def test_what_is_there_to_paste_has_a_key_where_one_is_wanted(listen, wanted):
    line = plan(listen=listen).curl("/v1/completions", {"prompt": "It's"})
    words = shlex.split(line)
    assert ("Authorization: Bearer $CORTEX_API_KEY" in words) is wanted
    assert json.loads(words[words.index("-d") + 1]) == {"prompt": "It's"}


def test_only_the_models_that_were_asked_for_are_offered(checkpoint):
    """Neither the bundled model nor what else is on the host: nobody asked for it."""
    told = msgspec.convert(plan([str(checkpoint)]).neuron_settings(), neuron.config.NeuronConfig)
    assert Catalogue(told).list_models() == ["tiny"]


@pytest.mark.parametrize(
    ("can", "path"),
    [
        ({}, "/v1/chat/completions"),
        ({"chat": False}, "/v1/completions"),
        ({"completion": False, "embedding": True}, "/v1/embeddings"),
        ({"completion": False, "rerank": True}, "/v1/rerank"),
    ],
)
def test_what_to_begin_with_is_what_the_model_can_do(can, path):
    shown, body = example(ModelState(id="m", status="ready", **can))
    assert (shown, body["model"]) == (path, "m")
