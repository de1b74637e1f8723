"""Files of a hub that come over several tries: each goes on behind the bytes that the one before it brought.

The hub's library gives each try a file of its own and deletes it when that fails. So large files come by its
transfer alone, into a file whose name stays, and are put where the library looks for what it has to bring.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from pathlib import Path
from typing import Protocol

FILES_AT_ONCE = 8  # as the library has it


class File(Protocol):
    """A file of a repository; one without a checksum does not go on where it was."""

    @property
    def size(self) -> int: ...

    @property
    def sha256(self) -> str: ...


def came(blobs: Path, files: Iterable[File]) -> int:
    """Bytes in `blobs` of these files, of which none is in the snapshot yet."""
    named = {file.sha256: file.size for file in files if file.sha256}
    return sum(
        size if (blobs / name).exists() else min(_size(_part(blobs / name)), size)
        for name, size in named.items()
    )


def fetch(repository: str, commit: str, files: Mapping[str, File], folder: Path) -> None:
    """Bring what files hold into the cache; they become part of the snapshot when the library brings it.

    Args:
        files: by their names; each has a checksum.
        folder: of the repository, in the cache.

    Raises:
        OSError, or an error of the library: not all came. What did stays for the next try.
    """
    with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
        tries = [pool.submit(_fetch, repository, commit, name, file, folder) for name, file in files.items()]
        for each in tries:
            each.result()


def _fetch(repository: str, commit: str, name: str, remote: File, folder: Path) -> None:
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import WeakFileLock, build_hf_headers

    address, headers = hf_hub_url(repository, name, revision=commit), build_hf_headers()
    there = get_hf_file_metadata(address)
    if there.etag != remote.sha256:
        return  # the library looks for it under another name, or says what is wrong
    tag, size = remote.sha256, remote.size if there.size is None else there.size
    whole, locks = folder / "blobs" / tag, folder.parent / ".locks" / folder.name
    for each in (whole.parent, locks):
        each.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(locks / f"{tag}.lock"):  # the library's own
        if whole.exists():
            return
        with _part(whole).open("ab") as file:
            if file.tell() > size:  # no beginning of it
                file.truncate(0)

            def go_on() -> None:
                begun = file.seek(0, os.SEEK_END)
                http_get(
                    address,
                    file,
                    resume_size=begun,
                    headers=headers,
                    expected_size=size,
                    displayed_filename=name,
                )

            try:
                go_on()
            except HfHubHTTPError as error:
                if error.response.status_code != HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                    raise
                file.truncate(0)  # the file ends before that, whatever its size is said to be
                go_on()
        os.replace(_part(whole), whole)


def _part(whole: Path) -> Path:
    return whole.with_name(f"{whole.name}.incomplete")


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
