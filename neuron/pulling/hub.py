"""Fetching a model's files from a hub into the Hugging Face cache: those that it needs, and no others.

What is whole there is what the neuron finds by the repository's name (`refs/main`), whatever its revision.
The hub is whatever `HF_ENDPOINT` names; `HF_TOKEN` opens what is not for everybody. Where the connection
breaks, or the download is ended, a large file goes on where it was when it is fetched again; what comes is
compared with the hub's checksums.
"""

from __future__ import annotations

import errno
import fnmatch
import glob
import hashlib
import os
import re
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import msgspec
from msgspec import Struct

from ipc.errors import Code, CortexError
from ipc.model_settings import HUB
from neuron.pulling import resumed, unchecked
from workers.checkpoints.gguf.header import SUFFIX
from workers.checkpoints.gguf.splits import BESIDE, PART, by_label
from workers.checkpoints.safetensors import INDEX

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError

T = TypeVar("T")

# Beside weights: what says how they are to be used.
USEFUL = ("*.json", "*.jinja", "*.model", "*.tiktoken", "vocab.txt", "merges.txt", "chat_template*")
# The same weights once more, in another layout.
DOUBLE = ("consolidated*",)
NO_NAME = "that is no name of a repository, which are ORGANISATION/NAME"
NO_REVISION = "it has no such revision"
CHUNK = 1 << 20  # bytes that are looked at at once
ROOM = 1 << 30  # bytes that stay free on the disk
BUSY_SECONDS = 40.0  # for which one that is too busy is asked again, before anything has come

_BUSY = (429, 502, 503, 504)
_SHA256 = re.compile(r"[0-9a-f]{64}")
_COMMIT = re.compile(r"[0-9a-f]{40,64}")
# What its library raises where something answers that is no hub.
_NO_HUB = (ValueError, KeyError, TypeError, AttributeError)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
# What of an address is nobody else's business: who asks, and with what signature.
_USER = re.compile(r"(https?://)[^\s/@'\"]+@")
_QUERY = re.compile(r"(https?://[^\s?'\"]+)\?[^\s'\"]*")


class Remote(NamedTuple):
    """A file of a repository; `sha256` is empty where the hub has none."""

    size: int
    sha256: str


class Chosen(NamedTuple):
    """What is fetched."""

    repository: str
    commit: str
    files: dict[str, Remote]

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files.values())


class _Index(Struct):
    weight_map: dict[str, str]  # files of tensors


def silence_library(bars: bool) -> None:
    """Have the hub's library write nothing itself, but bars where these are wanted: its warnings have
    addresses, signed ones too. It asks once, when it is imported, and not what loggers were told before.
    """
    unset_empty()
    os.environ["HF_HUB_VERBOSITY"] = "critical"
    if not bars:
        os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"


def unset_empty() -> None:
    """What is set to nothing is not set: its library takes it for a hub without a name, or a folder."""
    for name, value in list(os.environ.items()):
        if name.startswith("HF_") and not value.strip():
            del os.environ[name]


def look(model_id: str, cache: Path, revision: str | None = None) -> Chosen:
    """What has to be fetched for `model_id`: `org/name`, or `org/name:Q4_K_M` of several GGUF models.

    Raises:
        CortexError: there is no such repository, it is not for us, no hub answers, or it has no weights that
            can be loaded.
    """
    from huggingface_hub import HfApi, hf_hub_download

    repository, _, label = model_id.removeprefix(HUB).partition(":")
    if "/" in label:
        raise _refused(model_id, NO_NAME)
    if revision is not None and not {"", ".", ".."}.isdisjoint(revision.split("/")):
        raise _refused(repository, NO_REVISION)
    with _hub_errors(repository):
        ask = partial(HfApi().model_info, repository, revision=revision, files_metadata=True)
        found = _patiently(ask)
    if not isinstance(found.sha, str) or not _COMMIT.fullmatch(found.sha):  # a folder is named by it
        raise _refused(repository, f"the hub says no commit of it, but {found.sha!r}")
    there = {
        each.rfilename: Remote(
            max(each.size or 0, 0), _checksum(each.lfs.sha256) if each.lfs is not None else ""
        )
        for each in found.siblings or ()
        if not {"", ".", ".."}
        & set(each.rfilename.split("/"))  # the library gives up all for one that climbs
    }

    def weight_map() -> Mapping[str, str]:
        with _hub_errors(repository):
            path = hf_hub_download(repository, INDEX, revision=found.sha, cache_dir=cache)
        return read_index(repository, Path(path).read_bytes())

    names = choose(repository, list(there), label, weight_map)
    return Chosen(repository, found.sha, {name: there[name] for name in names})


def _checksum(said: str) -> str:
    """What a hub says is one, if it can be: a file is named by it."""
    return said if _SHA256.fullmatch(said) else ""


def read_index(repository: str, content: bytes) -> Mapping[str, str]:
    """Which file each tensor is in. CortexError where that is not what it says."""
    try:
        return msgspec.json.decode(content, type=_Index).weight_map
    except (ValueError, msgspec.DecodeError) as error:
        raise _refused(repository, f"its {INDEX} cannot be read: {error}") from error


def choose(
    repository: str, names: Sequence[str], label: str, weight_map: Callable[[], Mapping[str, str]]
) -> list[str]:
    """The files of a model, of all that its repository has.

    Args:
        label: of one of several GGUF models; empty: none is named.
        weight_map: reads which files the weights are in, where there is an index of them.

    Raises:
        CortexError: there are none, or several and none is named.
    """
    top = [name for name in names if "/" not in name]
    useful = [
        name for name in names if any(fnmatch.fnmatch(name.rpartition("/")[2], each) for each in USEFUL)
    ]
    useful = [
        name for name in useful if name.count("/") < 2
    ]  # a module of an encoder has a folder of its own
    weights = [name for name in top if name.endswith(".safetensors") and not _is_any(name, DOUBLE)]
    if weights and not label:
        if INDEX in top:
            weights = sorted(set(weight_map().values()))
            if missing := [name for name in weights if name not in names]:
                raise _refused(repository, f"{INDEX} names {', '.join(missing)}, which it has not")
        folders = {name.partition("/")[0] for name in useful if "/" in name}
        modules = [
            name
            for name in names
            if name.endswith(".safetensors") and name.count("/") == 1 and name.partition("/")[0] in folders
        ]
        return sorted({*useful, *weights, *(modules if "modules.json" in top else ())})
    first_parts = [
        Path(name)
        for name in sorted(top)
        if name.endswith(SUFFIX)
        and not BESIDE.search(name)
        and ((part := PART.fullmatch(name)) is None or int(part[2]) == 1)
    ]
    models = by_label(first_parts)
    if label:
        found = {each.upper(): path for each, path in models.items()}.get(label.upper())
        if found is None:
            what = f"it has no {label}, but {', '.join(models)}" if models else "it has no GGUF files"
            raise _refused(repository, what, Code.MODEL_NOT_FOUND)
        return [*_parts(found.name, top)]
    if len(models) == 1:
        return [*_parts(next(iter(models.values())).name, top)]
    if models:
        each = f"{repository}:{next(iter(models))}"
        several = ", ".join(models)
        raise _refused(repository, f"it has several GGUF models, {several}: name one, as in {each}")
    raise _refused(repository, "it has neither safetensors nor GGUF files, and nothing else is loaded")


def missing(chosen: Chosen, cache: Path) -> dict[str, Remote]:
    """The files that are not in `cache` yet."""
    from huggingface_hub import try_to_load_from_cache

    return {
        name: file
        for name, file in chosen.files.items()
        if not isinstance(try_to_load_from_cache(chosen.repository, name, cache, chosen.commit), str)
    }


def check_room(chosen: Chosen, cache: Path, promised: int = 0) -> int:
    """Bytes that are to come; what killed downloads have left of that repository is deleted first.

    Args:
        promised: bytes of the disk that others will take.

    Raises:
        CortexError: the disk has no room for it, or cannot be written.
    """
    with _hub_errors(chosen.repository):
        cache.mkdir(parents=True, exist_ok=True)
        _delete_left_overs(chosen.repository, cache)
        to_come = missing(chosen, cache)
        here = resumed.came(storage(chosen.repository, cache) / "blobs", to_come.values())
        needed = sum(file.size for file in to_come.values()) - here
        free = shutil.disk_usage(cache).free - promised
    if needed and needed + ROOM > free:
        room = f"{cache} has {max(free, 0) >> 20:,} free, of which 1,024 stay so"
        raise _refused(chosen.repository, f"{needed >> 20:,} MiB are to come; {room}")
    return needed


def fetch(
    chosen: Chosen, cache: Path, checking: Callable[[str, int], None] = lambda name, size: None
) -> Path:
    """Bring the files into `cache`, where they are not there yet; the folder, which is found from now on.

    Args:
        checking: is told which file is compared with its checksum, and how many bytes of it have been.

    Raises:
        CortexError: the disk has no room or cannot be written, the hub is gone, or a file came damaged, which
            is deleted.
    """
    check_room(chosen, cache)
    with _hub_errors(chosen.repository):
        to_check = _note_unchecked(chosen, cache)
        folder = _download(chosen, cache)
    for name in to_check:
        _check(chosen.repository, folder / name, chosen.files[name].sha256, partial(checking, name))
    with _hub_errors(chosen.repository):
        unchecked.remove(folder, chosen.files)
        _make_current(folder, chosen.commit)
    return folder


def _download(chosen: Chosen, cache: Path) -> Path:
    from huggingface_hub import constants, errors, snapshot_download

    def bring(names: Collection[str]) -> Path:
        return Path(
            snapshot_download(
                chosen.repository,
                revision=chosen.commit,
                cache_dir=cache,
                allow_patterns=[glob.escape(name) for name in names],
            )
        )

    large = {
        name: file
        for name, file in missing(chosen, cache).items()
        if file.sha256 and file.size <= constants.MAX_HTTP_DOWNLOAD_SIZE
    }
    try:
        bring(chosen.files.keys() - large.keys())
        resumed.fetch(chosen.repository, chosen.commit, large, storage(chosen.repository, cache))
        return bring(chosen.files)
    except (errors.HTTPError, errors.HFValidationError):
        raise
    except (RuntimeError, *_NO_HUB) as error:  # the first as its library for chunked storage (Xet) does
        raise _refused(chosen.repository, f"{type(error).__name__}: {error}") from error


def _note_unchecked(chosen: Chosen, cache: Path) -> list[str]:
    """The files that are to be compared with their checksums, as far as the hub has any: those that come, and
    those that came before and were not, since whoever brought them was ended or found another one damaged."""
    coming = missing(chosen, cache) if _is_current(chosen, cache) else chosen.files
    with_checksums = {name for name, file in chosen.files.items() if file.sha256}
    snapshot = storage(chosen.repository, cache) / "snapshots" / chosen.commit
    return sorted(unchecked.add(snapshot, with_checksums & coming.keys()) & with_checksums)


def storage(repository: str, cache: Path) -> Path:
    """Where `cache` keeps that repository; its files are in `blobs`, also those that are not whole."""
    return cache / "--".join(("models", *repository.split("/")))


def _delete_left_overs(repository: str, cache: Path) -> None:
    """Delete what the library's own downloads were killed over: it gives each try another name, and goes on
    with none. Whoever still downloads a file holds its lock."""
    from filelock import FileLock, Timeout

    folder = storage(repository, cache)
    for path in folder.glob("blobs/*.????????.incomplete"):
        lock = cache / ".locks" / folder.name / f"{path.name.partition('.')[0]}.lock"
        with suppress(Timeout, FileNotFoundError), FileLock(lock, timeout=0):
            path.unlink()


def _is_current(chosen: Chosen, cache: Path) -> bool:
    """Whether the repository's name leads to that snapshot."""
    try:
        return (storage(chosen.repository, cache) / "refs" / "main").read_text().strip() == chosen.commit
    except OSError:
        return False


def _make_current(snapshot: Path, commit: str) -> None:
    """Have the repository's name lead to that snapshot: the library writes this for a branch only."""
    ref = snapshot.parents[1] / "refs" / "main"
    ref.parent.mkdir(exist_ok=True)
    whole = ref.with_name(f".main.{os.getpid()}")
    whole.write_text(commit)
    os.replace(whole, ref)


def _check(repository: str, path: Path, sha256: str, tell: Callable[[int], None]) -> None:
    digest, done = hashlib.sha256(), 0
    tell(done)
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            done += len(chunk)
            tell(done)
    if digest.hexdigest() != sha256:
        path.resolve().unlink()
        path.unlink(missing_ok=True)
        raise _refused(repository, f"{path.name} came damaged, and is deleted")


def _parts(name: str, names: Sequence[str]) -> list[str]:
    """All parts of the GGUF model whose first file is `name`."""
    part = PART.fullmatch(name)
    if part is None:
        return [name]
    return sorted(each for each in names if (other := PART.fullmatch(each)) and other[1] == part[1])


def _is_any(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)


def _refused(repository: str, why: str, code: str = Code.MODEL_LOAD_FAILED) -> CortexError:
    return CortexError(code, f"{repository}: {why}")


def _patiently(ask: Callable[[], T]) -> T:
    """What `ask` brings; where the hub is too busy, once the time has passed that it says, or a growing one,
    if that is soon. Of files its library does the same."""
    from huggingface_hub.errors import HfHubHTTPError

    until, pause = time.monotonic() + BUSY_SECONDS, 0.5
    while True:
        try:
            return ask()
        except HfHubHTTPError as error:
            said, pause = _retry_after(error), 2 * pause
            wait = pause if said is None else max(said, 0.5)  # it may say 0
            if error.response.status_code not in _BUSY or time.monotonic() + wait > until:
                raise
            time.sleep(wait)


def _retry_after(error: HfHubHTTPError) -> float | None:
    """Seconds after which the hub wants to be asked again; None: it says none, or a date."""
    said = error.response.headers.get("Retry-After", "")
    return float(said) if said.isascii() and said.isdigit() else None


def _shown(error: Exception) -> str:
    """What is wrong, in a line without what is nobody else's business."""
    said = str(error).splitlines()[0] if str(error) else type(error).__name__
    return _QUERY.sub(r"\1", _USER.sub(r"\1", said))


@contextmanager
def _hub_errors(repository: str) -> Iterator[None]:
    """What the hub's library raises, in our words."""
    from huggingface_hub import constants, errors

    hub = _USER.sub(r"\1", constants.ENDPOINT)
    try:
        yield
    except errors.GatedRepoError as error:
        why = f"its owner asks for consent: give it at {hub}/{repository}, and set HF_TOKEN"
        raise _refused(repository, why) from error
    except errors.RepositoryNotFoundError as error:
        why = f"{hub} has no such repository, or not for us: a private one needs HF_TOKEN"
        raise _refused(repository, why, Code.MODEL_NOT_FOUND) from error
    except errors.RevisionNotFoundError as error:
        raise _refused(repository, NO_REVISION) from error
    except errors.HFValidationError as error:
        raise _refused(repository, NO_NAME) from error
    except errors.OfflineModeIsEnabled as error:
        raise _refused(repository, "HF_HUB_OFFLINE is set, so no hub is asked") from error
    except errors.HfHubHTTPError as error:
        wait = _retry_after(error)
        later = f"; it may be asked again in {wait:g} s" if wait is not None else ""
        raise _refused(repository, f"{hub} does not give it: {_shown(error)}{later}") from error
    except (OSError, errors.HTTPError) as error:  # what it raises where no hub answers is either
        if isinstance(error, OSError) and error.filename is not None:
            raise _refused(repository, f"{error.filename} cannot be written: {error.strerror}") from error
        if isinstance(error, OSError) and error.errno in _FULL:
            raise _refused(repository, f"what comes cannot be written: {error.strerror}") from error
        raise _refused(repository, f"{hub} does not give it: {_shown(error)}") from error
    except UnicodeEncodeError as error:
        raise _refused(repository, "HF_TOKEN has letters that no token has") from error
    except _NO_HUB as error:
        raise _refused(
            repository, f"what answers at {hub} is no hub: {type(error).__name__}: {error}"
        ) from error
