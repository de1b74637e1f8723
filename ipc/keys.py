"""CURVE keys in files: who a neuron is, and which clients it lets in.

A key is 40 characters of Z85 (ZeroMQ's RFC 32). `NAME.secret` holds the secret one, readable by its owner
alone; `NAME.key` holds the public one, to be given away. Lines that begin with "#" are comments.
"""

from __future__ import annotations

import os
from pathlib import Path

import zmq
from zmq.utils import z85

from ipc.errors import Code, CortexError

KEY_LENGTH = 40  # characters of Z85 for 32 bytes


def generate(folder: str | Path, name: str = "cortex") -> tuple[Path, Path]:
    """Make a key pair in `folder`, which is created where it is missing.

    What root makes belongs to the folder's owner, which is the user of the service that reads it.

    Returns:
        The paths of the secret and of the public key.

    Raises:
        FileExistsError: one of the two files is there; nothing is ever overwritten.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    secret_path, public_path = folder / f"{name}.secret", folder / f"{name}.key"
    if public_path.exists():
        raise FileExistsError(f"{public_path} exists; it is not overwritten")
    public, secret = zmq.curve_keypair()
    _write(secret_path, "# CURVE secret key of cortex: give it to nobody\n", secret, 0o600)
    _write(public_path, "# CURVE public key of cortex\n", public, 0o644)
    return secret_path, public_path


def load_secret(path: str | Path) -> str:
    """The secret key in a file; CortexError when it is not there, is open to others, or holds no key."""
    path = Path(path)
    key = _load(path)
    if path.stat().st_mode & 0o077:
        raise CortexError(Code.BAD_REQUEST, f"{path} can be read by others; run: chmod 600 {path}")
    return key


def load_public(key_or_path: str | Path) -> str:
    """The public key itself, or the one in the file of that name; CortexError when it is neither."""
    if not os.path.isfile(key_or_path) and _is_key(str(key_or_path)):
        return str(key_or_path)
    return _load(Path(key_or_path))


def _write(path: Path, comment: str, key: bytes, mode: int) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    if os.geteuid() == 0:
        owner = path.parent.stat()
        os.fchown(fd, owner.st_uid, owner.st_gid)
    with open(fd, "w", encoding="ascii") as file:
        file.write(comment + key.decode("ascii") + "\n")


def _load(path: Path) -> str:
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except PermissionError as error:
        raise CortexError(
            Code.BAD_REQUEST,
            f"user {os.geteuid()} may not read the key file {path}; give it and its folder to the user of "
            f"the service: chown USER {path.parent} {path}",
        ) from error
    except (OSError, ValueError) as error:
        raise CortexError(Code.BAD_REQUEST, f"cannot read the key file {path}: {error}") from error
    keys = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    if len(keys) != 1 or not _is_key(keys[0]):
        raise CortexError(Code.BAD_REQUEST, f"{path} must hold one key: {KEY_LENGTH} characters of Z85")
    return keys[0]


def _is_key(text: str) -> bool:
    return len(text) == KEY_LENGTH and all(char.encode() in _ALPHABET for char in text)


_ALPHABET = frozenset(bytes((byte,)) for byte in z85.Z85CHARS)
