"""What is fetched is what a model needs, whole and undamaged; else it is said why not."""

from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import msgspec
import pytest
from huggingface_hub.errors import HfHubHTTPError

from ipc.errors import CortexError
from neuron.catalogue.catalogue import Catalogue
from neuron.config import NeuronConfig
from neuron.pulling import hub as pulling
from neuron.pulling import resumed
from neuron.pulling.child import Complete, HubTask
from neuron.pulling.hub import choose, read_index
from tests.demo import DEMO
from tests.neuron.harness import wait_until
from tests.neuron.hub import COMMIT, Hub, Repository, serving
from workers.checkpoints.safetensors import INDEX

NEURON = sysconfig.get_path("scripts") + "/neuron"


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.fixture
def hub() -> Iterator[Hub]:
    demo = files_of(DEMO) | {"pytorch_model.bin": b"pickle", "consolidated.safetensors": b"again"}
    gguf = {f"m-{label}.gguf": label.encode() * 40_000 for label in ("Q4_K_M", "Q8_0")}
    gguf |= {f"m-BF16-0000{i}-of-00002.gguf": b"part" * i for i in (1, 2)} | {"mmproj-F16.gguf": b"eyes"}
    repositories = {
        "org/demo": Repository(demo),
        "org/quants": Repository(gguf | {"README.md": b"#"}),
        "org/private": Repository({"model-Q4_0.gguf": b"x" * 100}, token="hf_secret"),
        "org/gated": Repository({}, gated=True),
        "org/pickle": Repository({"pytorch_model.bin": b"pickle", "config.json": b"{}"}),
    }
    with serving(repositories) as each:
        yield each


def environment(hub: Hub, folder: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    return kept | {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(folder), "HF_HUB_DISABLE_XET": "1"}


@contextmanager
def killed(hub: Hub, folder: Path, *arguments: str) -> Iterator[None]:
    """A pull that is killed at the end."""
    with subprocess.Popen(
        [NEURON, "pull", *arguments],
        env=environment(hub, folder),
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            yield
        finally:
            process.kill()


def pull(hub: Hub, folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [NEURON, "pull", *arguments],
        env=environment(hub, folder) | variables,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
    )


def refusal(hub: Hub, folder: Path, *arguments: str, **variables: str) -> str:
    ended = pull(hub, folder, *arguments, **variables)
    assert ended.returncode == 1, ended.stdout
    return ended.stderr.splitlines()[-1]


def snapshot(folder: Path) -> dict[str, bytes]:
    (found,) = folder.glob("hub/models--*/snapshots/*")
    return files_of(found)


def test_a_checkpoint_comes_without_what_is_not_read(hub: Hub, tmp_path: Path) -> None:
    ended = pull(hub, tmp_path, "hf:org/demo")
    assert ended.returncode == 0, ended.stderr
    got = snapshot(tmp_path)
    wanted = files_of(DEMO)
    del wanted["README.md"]
    assert got == wanted
    assert "hf:org/demo is in" in ended.stdout
    given = len(hub.given)
    assert pull(hub, tmp_path, "org/demo").returncode == 0
    assert len(hub.given) == given  # nothing comes twice


def test_one_of_several_ggufs_comes_with_all_its_parts(hub: Hub, tmp_path: Path) -> None:
    said = refusal(hub, tmp_path, "org/quants")
    assert "name one, as in org/quants:" in said
    assert "it has no Q2_K, but" in refusal(hub, tmp_path, "org/quants:Q2_K")
    assert pull(hub, tmp_path, "org/quants:q4_k_m").returncode == 0
    assert snapshot(tmp_path).keys() == {"m-Q4_K_M.gguf"}
    assert pull(hub, tmp_path, "org/quants:BF16").returncode == 0
    parts = {f"m-BF16-0000{i}-of-00002.gguf" for i in (1, 2)}
    assert snapshot(tmp_path).keys() == {"m-Q4_K_M.gguf"} | parts


def test_a_file_goes_on_where_it_was_when_its_connection_broke_or_the_download_was_killed(
    hub: Hub, tmp_path: Path
) -> None:
    size, content = 60_000_000, b"Q8_0" * 15_000_000
    quants = hub.repositories["org/quants"]
    quants.files["m-Q8_0.gguf"], quants.held = content, threading.Event()

    def part() -> Path | None:
        return next((each for each in tmp_path.glob("hub/*/blobs/*.incomplete")), None)

    with killed(hub, tmp_path, "org/quants:Q8_0"):
        wait_until(lambda: part() is not None and part().stat().st_size >= 20_000_000, "a part of the file")
    quants.held.set()
    quants.cut["m-Q8_0.gguf"] = 15_000_000
    here = part().stat().st_size
    chosen = pulling.Chosen("org/quants", COMMIT, {"m-Q8_0.gguf": pulling.Remote(size, part().stem)})
    assert pulling.check_room(chosen, tmp_path / "hub") == size - here
    assert pull(hub, tmp_path, "org/quants:Q8_0").returncode == 0
    assert snapshot(tmp_path) == {"m-Q8_0.gguf": content}
    begun = [begin for name, begin in hub.given if name == "m-Q8_0.gguf"]
    assert begun[:2] == [0, here]
    assert here < begun[2] < size
    assert part() is None


def test_a_file_is_named_by_its_checksum_whatever_a_hub_calls_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for said in ("../../name", "/name"):
        assert not pulling._checksum(said)
        file = pulling.Remote(1, "a" * 64)
        odd = SimpleNamespace(etag=said)
        monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda address, odd=odd: odd)
        resumed.fetch("org/m", COMMIT, {"m.gguf": file}, tmp_path / "models--org--m")
    assert not any(tmp_path.iterdir())  # the library decides what becomes of it


def test_what_came_damaged_is_deleted(hub: Hub, tmp_path: Path) -> None:
    data = hub.repositories["org/quants"].files["m-Q8_0.gguf"]
    blobs = tmp_path / "hub" / "models--org--quants" / "blobs"
    blobs.mkdir(parents=True)
    part = blobs / f"{hashlib.sha256(data).hexdigest()}.incomplete"
    part.write_bytes(b"?" * 1000)
    of_the_library = blobs / f"{'b' * 40}.01234567.incomplete"
    of_the_library.touch()
    assert "came damaged" in refusal(hub, tmp_path, "org/quants:Q8_0")
    assert not of_the_library.exists()
    assert snapshot(tmp_path) == {}
    part.write_bytes(data + b"?")  # no beginning of it
    assert pull(hub, tmp_path, "org/quants:Q8_0").returncode == 0
    assert snapshot(tmp_path) == {"m-Q8_0.gguf": data}
    assert [begin for name, begin in hub.given if name == "m-Q8_0.gguf"] == [1000, 0]


def test_a_part_that_is_longer_than_its_file_is_begun_anew_though_the_hub_says_that_more_would_come(
    hub: Hub, tmp_path: Path
) -> None:
    quants = hub.repositories["org/quants"]
    data = quants.files["m-Q8_0.gguf"]
    quants.said["m-Q8_0.gguf"] = len(data) + 7
    part = (
        tmp_path / "hub" / "models--org--quants" / "blobs" / f"{hashlib.sha256(data).hexdigest()}.incomplete"
    )
    part.parent.mkdir(parents=True)
    part.write_bytes(data + b"?")
    said = refusal(hub, tmp_path, "org/quants:Q8_0")
    assert f"should be of size {len(data) + 7} but has size {len(data)}" in said
    assert [begin for name, begin in hub.given if name == "m-Q8_0.gguf"] == [len(data) + 1, 0]
    del quants.said["m-Q8_0.gguf"]
    assert pull(hub, tmp_path, "org/quants:Q8_0").returncode == 0
    assert snapshot(tmp_path) == {"m-Q8_0.gguf": data}


def test_what_an_ended_fetch_did_not_compare_the_next_one_does(hub: Hub, tmp_path: Path) -> None:
    assert pull(hub, tmp_path, "org/quants:Q8_0").returncode == 0
    (blob,) = tmp_path.glob("hub/models--*/blobs/*")
    blob.write_bytes(b"x" + blob.read_bytes()[1:])
    (ref,) = tmp_path.glob("hub/models--*/refs/main")
    ref.unlink()  # as it is before the comparison
    assert "came damaged" in refusal(hub, tmp_path, "org/quants:Q8_0")
    assert not ref.exists()


def test_all_that_came_is_compared_by_the_next_fetch_also_beside_what_is_current(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {"a.gguf": pulling.Remote(1, "of a"), "b.gguf": pulling.Remote(1, "of b")}
    chosen = pulling.Chosen("org/m", "c" * 40, files)
    place, compared = pulling.storage("org/m", tmp_path), []
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text(chosen.commit)  # as an earlier fetch of another quantisation left it

    def download(chosen: pulling.Chosen, cache: Path) -> Path:
        snapshot = place / "snapshots" / chosen.commit
        snapshot.mkdir(parents=True, exist_ok=True)
        for name in chosen.files:
            (snapshot / name).touch()
        return snapshot

    def check(repository: str, path: Path, sha256: str, tell: object) -> None:
        compared.append((path.name, sha256))
        if len(compared) == 1:
            raise CortexError("model_load_failed", "ended meanwhile")

    monkeypatch.setattr(pulling, "_download", download)
    monkeypatch.setattr(pulling, "_check", check)
    with pytest.raises(CortexError, match="ended meanwhile"):
        pulling.fetch(chosen, tmp_path)
    pulling.fetch(chosen, tmp_path)
    assert compared == [("a.gguf", "of a"), ("a.gguf", "of a"), ("b.gguf", "of b")]
    pulling.fetch(chosen, tmp_path)
    assert len(compared) == 3


def test_errors_of_chunked_storage_are_told_as_all_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise RuntimeError("Data processing error: CAS service error")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(CortexError, match="org/m: RuntimeError: Data processing error"):
        pulling.fetch(pulling.Chosen("org/m", "c" * 40, {}), tmp_path)


def test_no_error_has_a_signature_or_a_password_in_it() -> None:
    said = "Server error '503' for url 'https://me:word@cdn.example/file?X-Signature=secret&x=1'"
    with pytest.raises(CortexError) as told, pulling._hub_errors("org/m"):
        raise OSError(said)
    assert "https://cdn.example/file'" in told.value.message
    assert not any(word in told.value.message for word in ("secret", "word@"))


def test_what_is_not_for_us_says_what_to_do(hub: Hub, tmp_path: Path) -> None:
    assert "needs HF_TOKEN" in refusal(hub, tmp_path, "org/private")
    assert "no token has" in refusal(hub, tmp_path, "org/private", HF_TOKEN="hf_sécret")
    assert pull(hub, tmp_path, "org/private", HF_TOKEN="hf_secret").returncode == 0
    assert "consent" in refusal(hub, tmp_path, "org/gated")
    assert "no such revision" in refusal(hub, tmp_path, "org/demo", "--revision", "v9")
    assert "no such repository" in refusal(hub, tmp_path, "org/nothing")
    assert "ORGANISATION/NAME" in refusal(hub, tmp_path, "../../etc/passwd")
    assert "neither safetensors nor GGUF" in refusal(hub, tmp_path, "org/pickle")
    assert "HF_HUB_OFFLINE" in refusal(hub, tmp_path, "org/demo", HF_HUB_OFFLINE="1")
    said = refusal(hub, tmp_path, "org/demo", HF_ENDPOINT="http://127.0.0.1:9")
    assert "http://127.0.0.1:9 does not give it" in said


@pytest.mark.parametrize("name", ["HF_ENDPOINT", "HF_HOME", "HF_TOKEN"])
def test_what_is_set_to_nothing_is_not_set(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, " ")
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    pulling.unset_empty()
    assert name not in os.environ
    assert "HF_HUB_DISABLE_XET" in os.environ


def test_a_hub_that_is_too_busy_is_asked_again_when_it_says(hub: Hub, tmp_path: Path) -> None:
    hub.repositories["org/demo"].busy = [(503, "0"), (429, "0"), (502, "0")]
    assert pull(hub, tmp_path, "org/demo").returncode == 0
    hub.repositories["org/quants"].busy = [(429, "3600")]
    said = refusal(hub, tmp_path, "org/quants:Q4_K_M")
    assert "429" in said
    assert said.endswith("it may be asked again in 3600 s")


@pytest.mark.parametrize(
    ("after", "waits"),
    [("", [1, 2, 4, 8, 16]), ("7", [7] * 5), ("0", [0.5] * 80), ("Fri, 1 Jan 2100", [1, 2, 4, 8, 16])],
)
def test_nobody_waits_for_a_busy_hub_for_ever(
    after: str, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    clock = SimpleNamespace(monotonic=lambda: sum(slept), sleep=slept.append)
    monkeypatch.setattr(pulling, "time", clock)

    def ask() -> None:
        response = SimpleNamespace(status_code=503, headers={"Retry-After": after}, request=None)
        raise HfHubHTTPError("busy", response=response)

    with pytest.raises(HfHubHTTPError):
        pulling._patiently(ask)
    assert slept == waits


@pytest.mark.parametrize(
    ("says", "told"),
    [
        (b"<html>Please log in</html>", "is no hub: JSONDecodeError"),
        (b"[]", "is no hub"),
        (b"{}", "is no hub: KeyError"),
        (b'{"id": "org/demo", "sha": "../../../elsewhere", "siblings": []}', "no commit"),
        (b'{"id": "org/demo", "siblings": []}', "no commit"),
    ],
)
def test_what_answers_as_no_hub_does_is_told(hub: Hub, tmp_path: Path, says: bytes, told: str) -> None:
    hub.repositories["org/demo"].says = says
    ended = pull(hub, tmp_path, "org/demo")
    assert (ended.returncode, ended.stderr.count("\n")) == (1, 1)
    assert told in ended.stderr


def test_a_name_or_revision_that_leads_elsewhere_is_none(tmp_path: Path) -> None:
    with pytest.raises(CortexError, match="ORGANISATION/NAME"):
        pulling.look("https://hub.example/org", tmp_path)
    for revision in ("", "..", "refs/../pr/1"):
        with pytest.raises(CortexError, match="no such revision"):
            pulling.look("org/demo", tmp_path, revision)


def test_a_disk_that_is_full_is_not_the_hubs_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(*args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(pulling, "_download", fill)
    with pytest.raises(CortexError, match="org/m: what comes cannot be written: No"):
        pulling.fetch(pulling.Chosen("org/m", "c" * 40, {}), tmp_path)


def test_nothing_of_what_its_library_says_is_written(hub: Hub, tmp_path: Path) -> None:
    """It warns with addresses, which may be signed; and in a file there are no bars."""
    hub.repositories["org/demo"].cut = {"config.json": 3}
    ended = pull(hub, tmp_path, "org/demo")
    assert (ended.returncode, ended.stderr) == (0, "")

    hub.repositories["org/quants"].cut = {"m-Q8_0.gguf": 3}
    task = HubTask(source="org/quants:Q8_0", cache=str(tmp_path / "hub"), fetch=True)
    read, write = os.pipe()
    command = [sys.executable, "-m", "neuron.pulling.child", str(write), str(os.getpid()), "INFO"]
    ended = subprocess.run(
        [*command, msgspec.json.encode(task).decode()],
        env=environment(hub, tmp_path),
        pass_fds=(write,),
        capture_output=True,
        text=True,
        timeout=120,
    )
    os.close(write)
    with open(read, "rb") as told:
        assert told.read().splitlines()[-1] == msgspec.json.encode(Complete())
    assert (ended.returncode, ended.stderr) == (0, "")


def test_the_index_says_which_files_there_are() -> None:
    names = [INDEX, "config.json", "a-1.safetensors", "a-2.safetensors", "model.safetensors", "x/y/z.json"]
    index = {"w": "a-1.safetensors", "v": "a-2.safetensors"}
    chosen = choose("r", names, "", lambda: index)
    assert chosen == ["a-1.safetensors", "a-2.safetensors", "config.json", INDEX]
    with pytest.raises(CortexError, match=r"names lost\.safetensors"):
        choose("r", names, "", lambda: {"w": "lost.safetensors"})


def test_an_encoder_comes_with_its_modules() -> None:
    names = ["modules.json", "1_Pooling/config.json", "2_Dense/config.json", "2_Dense/model.safetensors"]
    names += ["model.safetensors", "onnx/model.onnx", "openvino/model.xml", "vocab.txt", "config.json"]
    assert choose("r", names, "", dict) == sorted(set(names) - {"onnx/model.onnx", "openvino/model.xml"})


def test_only_what_fits_is_begun(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulling, "ROOM", 1 << 60)
    chosen = pulling.Chosen("org/big", "c" * 40, {"model.safetensors": pulling.Remote(5 << 30, "")})
    with pytest.raises(CortexError, match=r"5,120 MiB are to come"):
        pulling.fetch(chosen, tmp_path / "cache")


def test_a_second_quantisation_of_what_is_current_is_found_once_it_was_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalogue, seen = Catalogue(NeuronConfig(hf_cache=str(tmp_path))), []
    place = pulling.storage("org/m", tmp_path) / "snapshots" / ("c" * 40)

    def download(chosen: pulling.Chosen, cache: Path) -> Path:
        place.mkdir(parents=True, exist_ok=True)
        for name in chosen.files:
            (place / name).touch()
        return place

    def here() -> list[str]:
        return [label for label in ("Q2_K", "Q4_K", "Q8_0") if catalogue.is_here(f"org/m:{label}")]

    def check(*_: object) -> None:
        seen.append(here())
        if len(seen) == 2:
            raise CortexError("model_load_failed", "ended meanwhile")

    def fetch(label: str) -> None:
        files = {f"m-{label}.gguf": pulling.Remote(1, "its checksum")}
        pulling.fetch(pulling.Chosen("org/m", place.name, files), tmp_path)

    monkeypatch.setattr(pulling, "_download", download)
    monkeypatch.setattr(pulling, "_check", check)
    fetch("Q4_K")
    with pytest.raises(CortexError, match="ended meanwhile"):
        fetch("Q8_0")
    fetch("Q2_K")
    assert seen == [[], ["Q4_K"], ["Q4_K"]]
    assert here() == ["Q2_K", "Q4_K"]
    catalogue.scan()
    assert "m-Q8_0.gguf may be damaged: `neuron pull org/m:Q8_0`" in catalogue.refused["org/m:Q8_0"]
    fetch("Q8_0")
    assert here() == ["Q2_K", "Q4_K", "Q8_0"]
    assert not list(place.parents[1].glob(".unchecked*"))


@pytest.mark.parametrize(
    ("arguments", "found"),
    [(["org/demo"], "org/demo"), (["org/quants:Q8_0", "--revision", "main"], "org/quants")],
)
def test_what_was_pulled_is_found_once_it_is_whole(
    hub: Hub, tmp_path: Path, arguments: list[str], found: str
) -> None:
    catalogue = Catalogue(NeuronConfig(model_folders=[], hf_cache=str(tmp_path / "hub")))

    def there() -> bool:
        try:
            return tmp_path in catalogue.find(found).parents
        except CortexError:
            return False

    for repository in hub.repositories.values():
        repository.damaged |= {"model.safetensors", "m-Q8_0.gguf"}
    assert "came damaged" in refusal(hub, tmp_path, *arguments)
    assert not there()
    for repository in hub.repositories.values():
        repository.damaged.clear()
    assert pull(hub, tmp_path, *arguments).returncode == 0
    assert there()


def test_a_place_that_cannot_be_written_is_told(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "hub").write_text("a file")
    assert f"{tmp_path / 'hub'} cannot be written" in refusal(hub, tmp_path, "org/demo")


@pytest.mark.parametrize(
    "index", [b"{", b"[]", b'{"weight_map": ["a"]}', b'{"weight_map": {"w": 1}}', b"\xff"]
)
def test_an_index_that_is_none_is_told(index: bytes) -> None:
    with pytest.raises(CortexError, match=r"^org/demo: its model\.safetensors\.index\.json cannot be read: "):
        read_index("org/demo", index)


def test_names_that_lead_out_of_the_snapshot_are_none(hub: Hub, tmp_path: Path) -> None:
    outside = "../../../../../out.safetensors"
    files = hub.repositories["org/demo"].files
    files |= {outside: b"x", INDEX: b'{"weight_map": {"w": "%s"}}' % outside.encode()}
    assert f"names {outside}, which it has not" in refusal(hub, tmp_path, "org/demo")
    assert not [*tmp_path.rglob("out.safetensors"), *tmp_path.parent.glob("out.safetensors")]
