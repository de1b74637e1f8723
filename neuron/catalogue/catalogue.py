"""From a model's id to the folder that holds it, on this host: nothing is downloaded here."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from math import inf
from pathlib import Path
from time import monotonic, thread_time

from msgspec.structs import replace

from ipc.errors import Code, CortexError
from ipc.messages.catalogue import FleetCatalogue
from ipc.messages.state import Device
from ipc.model_settings import changed_keys
from neuron.catalogue.hosting import NotHere, hosted
from neuron.config import ModelSettings, NeuronConfig
from neuron.pulling import unchecked
from neuron.pulling.hub import unset_empty
from workers.checkpoints.card import ModelCard
from workers.checkpoints.gguf.splits import by_label, files_in, name_of
from workers.checkpoints.presence import gguf_files, is_checkpoint, is_whole
from workers.checkpoints.reading import read_card

log = logging.getLogger("neuron.catalogue")

DEMO = "demo"  # the id of the model that comes with the package
DEMO_FOLDER = Path(__file__).parents[1] / "demo"

Signature = tuple[tuple[str, int, int], ...]


class Catalogue:
    """The models that this neuron can find.

    An id is looked up in the configured models, then it may be `demo`, then a folder below one of
    `model_folders` or a GGUF file in it, then a repository in the Hugging Face cache. Of several GGUF models
    in one folder each has its own name: `folder:Q4_K_M`. Ids come from clients: an absolute path is found
    only where the configuration has it as a model's id, and one that climbs with `..` never; with
    `only_configured` no id is that the configuration does not have.

    Args:
        devices: of this host; None: not known, and every model may be served here.
    """

    def __init__(self, config: NeuronConfig, devices: Sequence[Device] | None = None) -> None:
        self._devices = devices
        self._pinned: dict[str, bool] = {}  # models of which somebody said so while we run
        self._looked_at: dict[Path, tuple[Signature, str | None]] = {}  # by the last scan: why it is no model
        self._cards: dict[str, tuple[Path, ModelCard]] = {}  # that the last scan read, and where,
        self._reading = self._reading_cpu = 0.0  # in so many seconds, and so many of CPU time
        self.refused: dict[str, str] = {}  # what the last scan found and cannot load, and why
        self.away: dict[str, ModelSettings] = {}  # whose files it did not find, and which may be pulled
        self.unread = 0  # that it found and had no time for
        self.looked = 0.0  # seconds that it took, without what it takes to read what is new, once,
        self.worked = 0.0  # and of CPU time
        self.configure(config)

    def configure(self, config: NeuronConfig, fleet: FleetCatalogue | None = None) -> None:
        """Find by `config` from now on, and by what the gateway says of models that are not in it."""
        own = {model.id: model for model in config.models}
        said = {} if fleet is None else {model.id: model for model in fleet.models}
        elsewhere = {} if fleet is None else fleet.elsewhere
        self.not_here: dict[str, str] = {}  # models that this host is not to serve or cannot, and why
        self.differs: dict[str, list[str]] = {}  # own ones that the fleet's file has, too: in which keys
        for model_id in own.keys() & said.keys():
            self.differs[model_id] = changed_keys(own[model_id], said[model_id])
        for model_id in elsewhere.keys() - own.keys():
            self.not_here[model_id] = f"is served by {', '.join(elsewhere[model_id])} only"
        configured = {}
        for model in (said | own).values():
            try:
                configured[model.id] = self._hosted(model, is_own=model.id in own)
            except NotHere as reason:
                self.not_here[model.id] = str(reason)
        self._own = own.keys()
        self._configured: dict[str, ModelSettings] = configured
        self._adapters = {
            f"{model.id}:{name}": model.id for model in configured.values() for name in model.adapters
        }
        self._only_configured = config.only_configured
        self._folders = [Path(folder).expanduser() for folder in config.model_folders]
        self.cache = Path(config.hf_cache).expanduser() if config.hf_cache else default_cache()

    def _hosted(self, model: ModelSettings, *, is_own: bool) -> ModelSettings:
        """The settings as this host can follow them. Its own user's may name devices that come later."""
        if self._devices is None or (is_own and not (model.min_device_memory or model.min_memory)):
            return model
        return hosted(model, self._devices)

    def settings(self, model_id: str) -> ModelSettings:
        """How the user wants `model_id` served; the defaults for a model that is not configured."""
        configured = self._configured.get(model_id) or ModelSettings(id=model_id)
        pin = self._pinned.get(model_id, configured.pin)
        return configured if pin == configured.pin else replace(configured, pin=pin)

    def pin(self, model_id: str, pinned: bool) -> None:
        """Have `model_id` pinned, or not, whatever files say."""
        self._pinned[model_id] = pinned

    def is_own(self, model_id: str) -> bool:
        """Whether the neuron's own file says something of it."""
        return model_id in self._own

    def base(self, model_id: str) -> str:
        """The model that an adapter of that name is for; of any other name, the name itself."""
        return self._adapters.get(model_id, model_id)

    def find(self, model_id: str) -> Path:
        """The folder or the GGUF file of `model_id`.

        Raises:
            CortexError: MODEL_NOT_FOUND, saying where it was looked for and how to get it.
        """
        configured = self._configured.get(model_id)
        if model_id in self.not_here:
            raise _not_found(model_id, f"it {self.not_here[model_id]}")
        if configured is None and self._only_configured:
            why = f"this neuron serves only {', '.join(self._configured) or 'nothing'}"
            raise self._nowhere(model_id, why)
        if configured is not None and (configured.folder is not None or os.path.isabs(model_id)):
            folder = Path(configured.folder or model_id).expanduser()
            if not os.path.exists(folder):
                raise _not_found(model_id, f"its configured path {folder} is not there")
            return folder
        called = (configured and configured.name_on_hub) or model_id
        if called == DEMO:
            return DEMO_FOLDER
        if not _is_plain(called):
            raise self._nowhere(model_id, "an id is a name, or organisation/name")
        beside = []  # of the same folder
        for name, path in self._named(called):
            if _is_same(name, called) and is_checkpoint(path):
                if reason := _unchecked(name, path):
                    raise _not_found(model_id, reason)
                return path
            beside += [name] if name.startswith(f"{called}:") else []
        if beside:
            raise _not_found(model_id, f"there are {', '.join(beside)}")
        places = ", ".join(str(place) for place in (*self._folders, self.cache))
        get = f"`neuron pull {called}` gets it from the hub"
        if configured is not None and configured.pull:
            get += ", and so does a request for an answer of it"
        raise self._nowhere(model_id, f"looked in {places}; {get}")

    def folder(self, settings: ModelSettings) -> Path:
        """Where a model is; of a simulated one, what lends it tokenizer and template. Raises as `find`."""
        return DEMO_FOLDER if settings.simulated is not None else self.find(settings.id)

    def is_here(self, model_id: str) -> bool:
        """Whether all files of `model_id` are there: some of them may be what an earlier download left."""
        try:
            return is_whole(self.find(model_id))
        except CortexError:
            return False

    def _nowhere(self, model_id: str, why: str) -> CortexError:
        """MODEL_NOT_FOUND for `why`, or with the adapters there are where an adapter seems to be meant."""
        base = self._configured.get(model_id.rpartition(":")[0])
        if base is not None and base.adapters:
            why = f"the adapters of {base.id} are {', '.join(base.adapters)}"
        return _not_found(model_id, why)

    def list_models(self) -> list[str]:
        """Every id that can be loaded: configured, bundled, in the model folders, in the cache."""
        return list(self.scan())

    def scan(self, seconds: float = inf) -> dict[str, Signature]:
        """The same, with what changes as soon as a file of theirs does.

        Of folders that did not change only names, sizes and times are read: it may be done every few seconds.

        Args:
            seconds: of reading after which no other one is read; the next scan goes on with those. Those
                that are known are what they were.
        """
        began, worked = monotonic(), thread_time()
        self._reading = self._reading_cpu = 0.0
        try:
            return self._scan(seconds)
        finally:
            self.looked = monotonic() - began - self._reading
            self.worked = thread_time() - worked - self._reading_cpu

    def _scan(self, seconds: float) -> dict[str, Signature]:
        found, self.away = {}, {}
        self._cards, self.unread = {}, 0
        for model_id, settings in self._configured.items():
            signature = self._configured_signature(model_id)
            if settings.pull and not self.is_here(model_id):
                self.away[model_id] = settings
            elif signature is not None or self.is_own(model_id):  # whose user waits to see it
                found[model_id] = signature or ()
        if self._only_configured:
            return found
        looked_at = dict(self._looked_at)
        self._looked_at.clear()
        self.refused = {}
        for model_id, path in ((DEMO, DEMO_FOLDER), *self._in_folders(), *self._in_cache()):
            if model_id in found or model_id in self.not_here:
                continue
            if not _is_text(model_id):  # no message could have it
                if is_checkpoint(path):
                    name = model_id.encode(errors="backslashreplace").decode()
                    self.refused[name] = "its name is not in UTF-8: rename it"
                continue
            if reason := _unchecked(model_id, path):
                self.refused[model_id] = reason
                continue
            signature = _signature(path)
            before, reason = looked_at.get(path, (None, None))
            if signature != before and self._reading > seconds:
                self.unread += 1
                if before is None:
                    continue
                signature = before  # it is what it was until it is read again
            elif signature != before:
                began, worked = monotonic(), thread_time()
                reason = self._read(model_id, path)
                self._reading += monotonic() - began
                self._reading_cpu += thread_time() - worked
            self._looked_at[path] = (signature, reason)
            if reason is None:
                found[model_id] = signature
            elif is_checkpoint(path):
                self.refused[model_id] = reason
        return found

    def _read(self, model_id: str, path: Path) -> str | None:
        """Why what is at `path` is no model; None where it is one, whose card is kept for a moment."""
        if not is_checkpoint(path):  # of which nobody hears why
            return "is none"
        try:
            self._cards[model_id] = path, read_card(path)
        except CortexError as error:
            return error.message
        except Exception as error:  # whatever is in its files costs no other model
            log.exception("model cannot be read path=%s", path)
            return f"{path} cannot be read: {type(error).__name__}: {error}; the log has more"
        return None

    def take(self, settings: ModelSettings) -> tuple[Path, ModelCard | None]:
        """Where a model is, and its card where the last scan read it, once; others are found as by `folder`.

        Raises:
            CortexError: as `find`.
        """
        found = None if settings.id in self._configured else self._cards.pop(settings.id, None)
        return found or (self.folder(settings), None)

    def _configured_signature(self, model_id: str) -> Signature | None:
        """None where nothing of it is there."""
        if self._configured[model_id].simulated is not None:
            return ()
        folders = [Path(folder).expanduser() for folder in self._configured[model_id].adapters.values()]
        try:
            return sum(map(_signature, folders), _signature(self.find(model_id)))
        except CortexError:
            return None

    def _named(self, model_id: str) -> Iterator[tuple[str, Path]]:
        """Where `model_id` may be, and what else is in the same folders."""
        name = model_id.partition(":")[0]
        for parent in self._folders:
            yield model_id, parent / model_id
            yield from _models(name, parent / name)
            yield from _files(parent)
        if (folder := self._snapshot(name)) is not None:
            yield from _models(name, folder)
            yield from ((f"{name}:{label}", path) for label, path in by_label(gguf_files(folder)).items())

    def _in_folders(self) -> Iterator[tuple[str, Path]]:
        for parent in self._folders:
            for folder in _subfolders(parent):
                yield from _models(folder.name, folder)
                for nested in _subfolders(folder):
                    yield from _models(f"{folder.name}/{nested.name}", nested)
            yield from _files(parent)

    def _in_cache(self) -> Iterator[tuple[str, Path]]:
        for repository in _subfolders(self.cache):
            kind, *names = repository.name.split("--")
            model_id = "/".join(names)
            if kind == "models" and (folder := self._snapshot(model_id)) is not None:
                yield from _models(model_id, folder)

    def _snapshot(self, model_id: str) -> Path | None:
        """The folder to which `refs/main` of the cached repository points."""
        if "--" in model_id:  # stands for the slash there, and so in no repository's name
            return None
        repository = self.cache / "--".join(["models", *model_id.split("/")])
        try:
            revision = (repository / "refs" / "main").read_text().strip()
        except (OSError, UnicodeDecodeError):
            return None
        return repository / "snapshots" / revision if _is_plain(revision) else None


def default_cache() -> Path:
    """Where Hugging Face tools keep what they download: they read environment variables, once."""
    unset_empty()
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE)


def _models(name: str, folder: Path) -> Iterator[tuple[str, Path]]:
    """The models in a folder called `name`: itself, or where it has several in GGUF files, each of them."""
    files = gguf_files(folder)
    if len(files) < 2:
        yield name, folder
        return
    for label, path in by_label(files).items():
        yield f"{name}:{label}", path


def _files(parent: Path) -> Iterator[tuple[str, Path]]:
    """The GGUF files that lie in a model folder itself, by their names."""
    return ((name_of(path), path) for path in files_in(parent))


def _subfolders(folder: Path) -> list[Path]:
    """Those of `folder`, in order; none where it is not there or cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return sorted(Path(entry.path) for entry in entries if entry.is_dir())
    except OSError:
        return []


def _signature(path: Path) -> Signature:
    """Name, size and time of a file, or of each one in a folder, whatever links it is behind."""
    folder, only = (path, "") if os.path.isdir(path) else (path.parent, name_of(path))  # and its other parts
    try:
        with os.scandir(folder) as entries:
            files = [entry for entry in entries if entry.name.startswith(only) and entry.is_file()]
            stats = [(entry.name, entry.stat()) for entry in files]
    except OSError:
        return ()
    return tuple(sorted((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats))


def _is_same(name: str, called: str) -> bool:
    """Whether `called` is that name; of a quantisation people write small letters, too."""
    (one, _, label), (other, _, wanted) = name.partition(":"), called.partition(":")
    return one == other and label.upper() == wanted.upper()


def _is_plain(name: str) -> bool:
    """Whether `name`, as a path, stays below the folder that it is joined to."""
    return "\0" not in name and all(part not in ("", ".", "..") for part in name.split("/"))


def _is_text(name: str) -> bool:
    """Whether `name` can be said in UTF-8: those of files may have any bytes, which Python keeps as halves of
    surrogates."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _unchecked(name: str, path: Path) -> str:
    """Why a model that was pulled is not to be served yet; empty: it may be."""
    if not (names := unchecked.of_model(path)):
        return ""
    return f"{', '.join(names)} may be damaged: `neuron pull {name}` compares what came with its checksums"


def _not_found(model_id: str, why: str) -> CortexError:
    return CortexError(
        Code.MODEL_NOT_FOUND,
        f"the model {model_id!r} was not found: {why}",
        param="model",
        details={"model": model_id},
    )
