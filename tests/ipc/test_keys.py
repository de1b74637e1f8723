"""Keys: the secret one stays with its owner, nothing is overwritten, a bad file is named."""

import os
import stat

import pytest
import zmq

from ipc.errors import CortexError
from ipc.keys import generate, load_public, load_secret


def test_a_generated_pair_belongs_together(tmp_path):
    secret_path, public_path = generate(tmp_path / "new" / "folder", "beast")
    assert (secret_path.name, public_path.name) == ("beast.secret", "beast.key")
    assert zmq.curve_public(load_secret(secret_path).encode()).decode() == load_public(public_path)


def test_only_the_owner_can_read_the_secret(tmp_path):
    secret_path, _ = generate(tmp_path)
    assert stat.S_IMODE(secret_path.stat().st_mode) == 0o600
    secret_path.chmod(0o640)
    with pytest.raises(CortexError, match="chmod 600"):
        load_secret(secret_path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes files for others")
def test_what_root_makes_belongs_to_the_owner_of_the_folder(tmp_path):
    """The folder is the service's (systemd/tmpfiles.d), which could not read root's key."""
    os.chown(tmp_path, 65534, 65533)
    for path in generate(tmp_path):
        assert (path.stat().st_uid, path.stat().st_gid) == (65534, 65533)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_key_of_another_user_says_what_to_do(tmp_path):
    secret_path, _ = generate(tmp_path)
    secret_path.chmod(0)
    with pytest.raises(CortexError, match=f"chown USER {tmp_path}"):
        load_secret(secret_path)


@pytest.mark.parametrize("kept", [0, 1])
def test_no_key_is_ever_overwritten(tmp_path, kept):
    paths = generate(tmp_path)
    text = paths[kept].read_text()
    paths[1 - kept].unlink()
    with pytest.raises(FileExistsError):
        generate(tmp_path)
    assert paths[kept].read_text() == text
    assert not paths[1 - kept].exists()


def test_a_public_key_may_stand_where_a_path_may(tmp_path):
    _, public_path = generate(tmp_path)
    key = load_public(public_path)
    assert load_public(str(public_path)) == key
    assert load_public(key) == key


@pytest.mark.parametrize(
    "text", ["", "# nothing\n", "short", "x" * 41, "x" * 39 + '"', "x" * 40 + "\n" + "y" * 40]
)
def test_a_file_without_a_key_is_named(tmp_path, text):
    path = tmp_path / "bad.key"
    path.write_text(text)
    with pytest.raises(CortexError, match=r"bad\.key must hold one key"):
        load_public(path)


def test_a_missing_or_binary_file_is_named(tmp_path):
    with pytest.raises(CortexError, match=r"absent\.key"):
        load_public(tmp_path / "absent.key")
    (tmp_path / "binary.key").write_bytes(b"\xff\xfe")
    with pytest.raises(CortexError, match=r"binary\.key"):
        load_secret(tmp_path / "binary.key")


@pytest.mark.parametrize("given", ["x" * 300, "a\0b", "/" + "y" * 5000])
def test_what_can_be_no_path_and_is_no_key_is_refused_as_a_file_that_cannot_be_read(given):
    with pytest.raises(CortexError, match="cannot read the key file"):
        load_public(given)
