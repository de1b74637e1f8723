import json
import os
import shutil
import subprocess
import sys

import msgspec
import pytest

import neuron.catalogue.catalogue
from ipc.errors import Code, CortexError
from ipc.messages.state import Device
from neuron.catalogue.catalogue import Catalogue
from neuron.config import ModelSettings, NeuronConfig
from tests.neuron.folders import write_checkpoint
from workers.checkpoints.reading import read_card

REVISION = "0123456789abcdef0123456789abcdef01234567"


def cached(cache, model_id, **changes):
    """A checkpoint in the layout of the Hugging Face cache."""
    repository = cache / f"models--{model_id.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(REVISION)
    return write_checkpoint(repository / "snapshots" / REVISION, **changes)


@pytest.fixture
def places(tmp_path):
    """A catalogue over a model folder and a cache, and both of them."""
    shelf, cache = tmp_path / "shelf", tmp_path / "cache"
    shelf.mkdir()
    cache.mkdir()
    return Catalogue(NeuronConfig(model_folders=[str(shelf)], hf_cache=str(cache))), shelf, cache


def refusal(catalogue, model_id):
    with pytest.raises(CortexError) as raised:
        catalogue.find(model_id)
    assert (raised.value.code, raised.value.param) == (Code.MODEL_NOT_FOUND, "model")
    return raised.value.message


def test_a_model_is_found_in_a_model_folder_and_in_the_cache(places):
    catalogue, shelf, cache = places
    plain = write_checkpoint(shelf / "plain")
    nested = write_checkpoint(shelf / "org" / "nested")
    hub = cached(cache, "org/hub")
    assert catalogue.find("plain") == plain
    assert catalogue.find("org/nested") == nested
    assert catalogue.find("org/hub") == hub


def gguf(path):
    """The header of a GGUF file without anything in it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"GGUF" + (3).to_bytes(4, "little") + bytes(16))
    return path


def test_gguf_files_have_the_name_of_their_folder_or_their_own(places):
    catalogue, shelf, cache = places
    alone = gguf(shelf / "alone" / "whatever-Q8_0.gguf")
    small, large = (
        gguf(shelf / "org" / "two" / "two-IQ4_XS.gguf"),
        gguf(shelf / "org" / "two" / "two.f16.gguf"),
    )
    gguf(shelf / "org" / "two" / "mmproj-two-f16.gguf")
    beside = gguf(shelf / "beside-00001-of-00002.gguf")
    gguf(shelf / "beside-00002-of-00002.gguf")
    snapshot = cached(cache, "org/hub")
    for file in snapshot.glob("*.safetensors"):
        file.unlink()
    hub = gguf(snapshot / "hub-Q4_K_M.gguf")
    assert catalogue.find("alone") == alone.parent
    assert catalogue.find("org/two:IQ4_XS") == small
    assert catalogue.find("org/two:F16") == large
    assert catalogue.find("beside") == beside
    assert catalogue.find("org/hub") == hub.parent
    gguf(snapshot / "hub-UD-Q8_K_XL.gguf")
    assert catalogue.find("org/hub:Q4_K_M") == hub
    assert "there are org/hub:Q4_K_M, org/hub:UD-Q8_K_XL" in refusal(catalogue, "org/hub")
    refusal(catalogue, "org/two:Q2_K")
    refusal(catalogue, "other.gguf")
    catalogue.scan()
    assert {"alone", "org/two:F16", "org/two:IQ4_XS", "beside", "org/hub:Q4_K_M"} <= catalogue.refused.keys()


def test_a_part_that_comes_makes_a_set_another_one(places):
    catalogue, shelf, _ = places
    gguf(shelf / "split-00001-of-00002.gguf")
    catalogue.scan()
    assert "split-00002-of-00002.gguf: is missing" in catalogue.refused["split"]
    gguf(shelf / "split-00002-of-00002.gguf")
    catalogue.scan()
    assert "is missing" not in catalogue.refused["split"]


def test_a_model_folder_comes_before_the_cache(places):
    catalogue, shelf, cache = places
    cached(cache, "org/both")
    folder = write_checkpoint(shelf / "org" / "both")
    assert catalogue.find("org/both") == folder


def test_a_configured_path_wins_and_its_settings_are_the_users(tmp_path):
    folder = write_checkpoint(tmp_path / "x")
    model = ModelSettings(id="demo", path=str(folder), max_sequences=3)
    catalogue = Catalogue(NeuronConfig(models=[model], hf_cache=str(tmp_path)))
    assert catalogue.find("demo") == folder
    assert catalogue.settings("demo") is model
    assert catalogue.settings("other") == ModelSettings(id="other")


def test_a_source_says_under_which_name_a_model_is_found(places):
    catalogue, shelf, cache = places
    hub, file = cached(cache, "org/hub"), gguf(shelf / "several" / "m-Q8_0.gguf")
    gguf(shelf / "several" / "m-Q4_K_M.gguf")
    folder = write_checkpoint(shelf / "plain")
    sources = {"a": "hf:org/hub", "b": str(folder), "c": "hf:org/gone"}
    models = [ModelSettings(id=name, source=source) for name, source in sources.items()]
    models.append(ModelSettings(id="d", path=str(file)))
    catalogue.configure(NeuronConfig(models=models, model_folders=[str(shelf)], hf_cache=str(cache)))
    assert [catalogue.find(name) for name in "abd"] == [hub, folder, file]
    assert "neuron pull org/gone" in refusal(catalogue, "c")


def test_a_model_that_its_host_is_too_small_for_is_neither_found_nor_listed(tmp_path):
    cached(tmp_path, "org/hub")
    device = Device(id="cpu", kind="cpu", name="cpu", memory_total=1 << 30, memory_free=0)
    models = [ModelSettings(id="org/hub", min_memory=2 << 30)]
    catalogue = Catalogue(NeuronConfig(models=models, hf_cache=str(tmp_path)), [device])
    assert catalogue.list_models() == ["demo"]
    assert "wants 2.00 GiB" in refusal(catalogue, "org/hub")


def test_a_model_may_be_called_like_an_adapter_of_another(tmp_path):
    folder = write_checkpoint(tmp_path / "x")
    models = [
        ModelSettings(id="a", adapters={"b": "/b"}),
        ModelSettings(id="a:Q4_K_M", path=str(folder)),
    ]
    catalogue = Catalogue(NeuronConfig(models=models, hf_cache=str(tmp_path)))
    assert catalogue.find("a:Q4_K_M") == folder
    assert "the adapters of a are b" in refusal(catalogue, "a:Q8_0")


def test_other_files_beside_a_model_with_adapters_are_found(tmp_path):
    small, large = (gguf(tmp_path / "shelf" / "a" / f"x-{kind}.gguf") for kind in ("Q4_K_M", "Q8_0"))
    model = ModelSettings(id="a", path=str(large), adapters={"b": "/b"})
    catalogue = Catalogue(
        NeuronConfig(models=[model], model_folders=[str(tmp_path / "shelf")], hf_cache=str(tmp_path / "none"))
    )
    assert catalogue.find("a:Q4_K_M") == small
    assert "the adapters of a are b" in refusal(catalogue, "a:c")


def test_a_configured_path_that_is_gone_is_named(tmp_path):
    catalogue = Catalogue(
        NeuronConfig(models=[ModelSettings(id="a", path="/not/there")], hf_cache=str(tmp_path))
    )
    assert "/not/there" in refusal(catalogue, "a")


def test_an_absolute_folder_is_taken_from_the_configuration_only(tmp_path):
    folder = write_checkpoint(tmp_path / "x")
    open_to_all = Catalogue(NeuronConfig(hf_cache=str(tmp_path)))
    assert "organisation/name" in refusal(open_to_all, str(folder))
    configured = Catalogue(NeuronConfig(models=[ModelSettings(id=str(folder))], hf_cache=str(tmp_path)))
    assert configured.find(str(folder)) == folder


@pytest.mark.parametrize(
    "model_id", ["../secret", "org/../../secret", "./secret", "a//b", "", "/", "..", "a\0b", "a/", "x" * 5000]
)
def test_no_id_from_the_network_leaves_the_folders(places, model_id):
    catalogue, shelf, _ = places
    write_checkpoint(shelf.parent / "secret")
    refusal(catalogue, model_id)


def test_a_reference_in_the_cache_cannot_leave_it(places):
    catalogue, shelf, cache = places
    write_checkpoint(shelf.parent / "secret")
    cached(cache, "org/evil")
    (cache / "models--org--evil" / "refs" / "main").write_text("../../../secret")
    refusal(catalogue, "org/evil")


def test_one_repository_has_one_id(places):
    catalogue, _, cache = places
    cached(cache, "org/hub")
    refusal(catalogue, "org--hub")


def test_not_found_says_where_it_looked_and_how_to_get_it(places):
    catalogue, shelf, cache = places
    message = refusal(catalogue, "Qwen/Qwen3-0.6B")
    assert str(shelf) in message
    assert str(cache) in message
    assert "neuron pull Qwen/Qwen3-0.6B" in message


def test_the_list_holds_everything_that_can_be_loaded_and_nothing_else(places):
    _, shelf, cache = places
    config = NeuronConfig(models=[ModelSettings(id="mine")], model_folders=[str(shelf)], hf_cache=str(cache))
    write_checkpoint(shelf / "plain")
    write_checkpoint(shelf / "org" / "nested", shards=2)
    write_checkpoint(shelf / "encoder", architectures=["ElectraModel"])
    (shelf / "empty").mkdir()
    cached(cache, "org/hub")
    (cached(cache, "org/partial") / "model.safetensors").unlink()
    assert Catalogue(config).list_models() == ["mine", "demo", "org/nested", "plain", "org/hub"]


def test_a_neuron_can_serve_what_it_was_told_to_and_nothing_else(places):
    _, shelf, cache = places
    config = NeuronConfig(
        models=[ModelSettings(id="org/hub")],
        model_folders=[str(shelf)],
        hf_cache=str(cache),
        only_configured=True,
    )
    write_checkpoint(shelf / "plain")
    folder = cached(cache, "org/hub")
    catalogue = Catalogue(config)
    assert catalogue.list_models() == ["org/hub"]
    assert catalogue.find("org/hub") == folder
    for model_id in ("demo", "plain"):
        assert "only org/hub" in refusal(catalogue, model_id)


def test_folders_that_are_not_there_hold_no_models(tmp_path):
    config = NeuronConfig(model_folders=[str(tmp_path / "a")], hf_cache=str(tmp_path / "b"))
    assert Catalogue(config).list_models() == ["demo"]


def test_a_scan_sees_what_came_what_went_and_what_changed(places):
    catalogue, shelf, cache = places
    assert set(catalogue.scan()) == {"demo"}
    folder = write_checkpoint(shelf / "org" / "new", shards=2)
    hub = cached(cache, "org/hub")
    first = catalogue.scan()
    assert set(first) == {"demo", "org/new", "org/hub"}
    assert catalogue.scan() == first
    (folder / "generation_config.json").write_text("{}")
    second = catalogue.scan()
    assert {name for name in first if second[name] != first[name]} == {"org/new"}
    (hub / "model.safetensors").unlink()
    assert set(catalogue.scan()) == {"demo", "org/new"}


@pytest.mark.parametrize("kind", ["folder", "nested", "file", "cached"])
def test_a_name_that_is_no_text_is_refused_and_the_others_are_found(places, kind):
    catalogue, shelf, cache = places
    write_checkpoint(shelf / "good")
    if kind == "cached":
        cached(cache, "org/b")
        (cache / "models--org--b").rename(cache / "models--org--b\udcff")
    elif kind == "file":
        (shelf / "b\udcff.gguf").write_bytes(b"GGUF")
    else:
        parent = shelf if kind == "folder" else shelf / "org"
        write_checkpoint(parent / "b").rename(parent / "b\udcff")
    found = catalogue.scan()
    assert set(found) == {"demo", "good"}
    assert [why for name, why in catalogue.refused.items() if "b\\udcff" in name] == [
        "its name is not in UTF-8: rename it"
    ]
    msgspec.msgpack.encode(catalogue.refused)


def test_what_is_no_model_is_not_read(places, monkeypatch):
    catalogue, shelf, _ = places
    (shelf / "org" / "inner").mkdir(parents=True)
    monkeypatch.setattr(neuron.catalogue.catalogue, "read_card", None)
    assert set(catalogue.scan()) <= {"demo"}
    assert "org" not in catalogue.refused


def test_what_did_not_change_is_not_read_again(places, monkeypatch):
    catalogue, shelf, _ = places
    write_checkpoint(shelf / "plain")
    catalogue.scan()
    monkeypatch.setattr(neuron.catalogue.catalogue, "read_card", None)
    assert set(catalogue.scan()) == {"demo", "plain"}


def test_a_scan_with_little_time_reads_one_model_and_the_next_one_another(places):
    catalogue, shelf, _ = places
    for name in "abc":
        write_checkpoint(shelf / name)
    for known in (["demo"], ["demo", "a"], ["demo", "a", "b"], ["demo", "a", "b", "c"]):
        assert list(catalogue.scan(seconds=0.0)) == known
        assert catalogue.unread == 4 - len(known)


def test_models_that_wait_to_be_read_again_are_what_they_were(places):
    catalogue, shelf, _ = places
    for name in "abc":
        write_checkpoint(shelf / name)
    before = catalogue.scan()
    for name in "abc":
        (shelf / name / "generation_config.json").write_text("{}")
    for unread in (2, 1, 0):
        found = catalogue.scan(seconds=0.0)
        assert sum(found[name] == before[name] for name in "abc") == catalogue.unread == unread


def test_a_fault_of_ours_in_reading_one_model_costs_no_other_one(places, monkeypatch):
    catalogue, shelf, _ = places
    for name in "abc":
        write_checkpoint(shelf / name)

    def faulty(path):
        if path.name == "b":
            raise ZeroDivisionError("of b")
        return read_card(path)

    monkeypatch.setattr(neuron.catalogue.catalogue, "read_card", faulty)
    assert list(catalogue.scan()) == ["demo", "a", "c"]
    assert "ZeroDivisionError: of b; the log has more" in catalogue.refused["b"]


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("shards", [1, 3])
def test_a_model_that_is_being_copied_is_listed_when_all_of_it_is_there(places, tmp_path, shards, backwards):
    catalogue, shelf, _ = places
    source, copy = write_checkpoint(tmp_path / "source", shards=shards), shelf / "copied"
    copy.mkdir()
    for file in sorted(source.iterdir(), reverse=backwards):
        whole = file.read_bytes()
        for share in range(8):
            (copy / file.name).write_bytes(whole[: len(whole) * share // 8])
            assert set(catalogue.scan()) == {"demo"}, (file.name, share)
        (copy / file.name).write_bytes(whole)
    assert set(catalogue.scan()) == {"demo", "copied"}


def test_a_model_that_goes_while_it_is_read_costs_no_other_one(places, monkeypatch):
    catalogue, shelf, _ = places
    for name in "abc":
        write_checkpoint(shelf / name)

    def late(path):
        if path.name == "b":
            shutil.rmtree(path)
        return read_card(path)

    monkeypatch.setattr(neuron.catalogue.catalogue, "read_card", late)
    assert set(catalogue.scan()) == {"demo", "a", "c"}
    assert "b" not in catalogue.refused  # it is nothing any more


def test_the_cache_is_where_hugging_face_tools_keep_it(tmp_path):
    code = "from neuron.catalogue.catalogue import default_cache; print(default_cache())"
    said = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"HF_HUB_CACHE": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout.strip() == str(tmp_path)


@pytest.mark.parametrize("what", ["index", "gguf", "nothing but a configuration"])
def test_what_may_be_pulled_is_away_until_all_of_it_is_there(tmp_path, what):
    name = "org/m:Q8_0" if what == "gguf" else "org/m"
    config = NeuronConfig(
        model_folders=[], hf_cache=str(tmp_path), models=[ModelSettings(id=name, pull=True)]
    )
    catalogue = Catalogue(config)
    folder = cached(tmp_path, "org/m")
    if what == "gguf":
        shutil.rmtree(folder)
        missing = [folder / f"m-Q8_0-0000{number}-of-00003.gguf" for number in (1, 2, 3)]
        gguf(missing.pop(0))
    else:
        missing = [folder / "model.safetensors"]
        (folder / "model.safetensors").unlink()
    if what == "index":
        missing = [folder / "a.safetensors", folder / "b.safetensors"]
        (folder / "model.safetensors.index.json").write_text(
            json.dumps({"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}})
        )
    while missing:
        assert not catalogue.is_here(name)
        assert name not in catalogue.scan()
        assert list(catalogue.away) == [name]
        missing.pop().write_bytes(b"")
    assert catalogue.is_here(name)
    assert name in catalogue.scan()
    assert not catalogue.away
