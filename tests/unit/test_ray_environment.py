"""The environment set before Ray starts on this machine: a private token, a suitable temporary folder, a home."""

import os
import stat

import pytest

from avvp_dist.errors import ConfigError
from avvp_dist.launch import ray_environment
from avvp_dist.storage import user_folders


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path):
    """A user's environment without anything of Ray; what `prepare` sets goes again."""
    for name in [name for name in os.environ if name.startswith(("RAY_", "TUNE_"))]:
        monkeypatch.delenv(name)
    here = dict(os.environ) | {"HOME": str(tmp_path)}
    monkeypatch.setattr(os, "environ", here)
    return here


def mode(path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_the_token_is_readable_by_this_user_only(tmp_path, environment):
    old = os.umask(0)
    try:
        ray_environment.prepare()
    finally:
        os.umask(old)
    token = tmp_path / ".ray" / "auth_token"
    assert (mode(token), mode(token.parent)) == (0o600, 0o700)
    assert len(token.read_text()) == 64
    content = token.read_text()
    ray_environment.prepare()
    assert token.read_text() == content
    assert [path.name for path in token.parent.iterdir()] == ["auth_token"]


@pytest.mark.parametrize("named", [True, False])
def test_a_readable_token_is_made_private_with_a_warning(tmp_path, environment, caplog, named):
    token = tmp_path / ("mine" if named else ".ray/auth_token")
    token.parent.mkdir(exist_ok=True)
    token.write_text("secret")
    token.chmod(0o644)
    if named:
        environment["RAY_AUTH_TOKEN_PATH"] = str(token)
    ray_environment.prepare()
    assert mode(token) == 0o600
    assert token.read_text() == "secret"
    assert "other users could read Ray's token (mode 644)" in caplog.text
    assert "secret" not in caplog.text


def test_without_a_writable_home_the_token_is_temporary(tmp_path, environment):
    environment["HOME"] = "/proc/nowhere"
    ray_environment.prepare()
    assert mode(user_folders.private() / "ray_auth_token") == 0o600
    assert environment["RAY_AUTH_TOKEN_PATH"] == str(user_folders.private() / "ray_auth_token")


@pytest.mark.parametrize("ours", [{"RAY_ADDRESS": "10.0.0.1:6379"}, {"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_TOKEN": "t"}])
def test_no_token_is_created_if_none_is_used_or_one_is_given(tmp_path, environment, ours):
    environment.update(ours)
    ray_environment.prepare()
    assert not (tmp_path / ".ray").exists()


def test_a_long_temporary_folder_is_replaced(tmp_path, environment):
    long = tmp_path / ("x" * 60)
    long.mkdir()
    for folder in (long, tmp_path / "missing"):
        environment.pop("RAY_TMPDIR", None)
        environment["TMPDIR"] = str(folder)
        ray_environment.prepare()
        assert environment["RAY_TMPDIR"] in ("/tmp", "/var/tmp", "/dev/shm")


def test_an_unsuitable_folder_chosen_for_ray_is_refused(tmp_path, environment):
    environment["RAY_TMPDIR"] = str(tmp_path / ("x" * 60))
    with pytest.raises(ConfigError, match="RAY_TMPDIR=.*paths of Ray's sockets allow"):
        ray_environment.prepare()
    environment["RAY_TMPDIR"] = "/nowhere"
    with pytest.raises(ConfigError, match="RAY_TMPDIR=/nowhere: no such folder"):
        ray_environment.prepare()


def test_a_private_folder_of_another_user_is_not_used(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    user_folders.private.cache_clear()
    try:
        usual = user_folders.private()
        assert mode(usual) == 0o700
        usual.chmod(0o777)
        user_folders.private.cache_clear()
        other = user_folders.private()
        assert other != usual
        assert mode(other) == 0o700
    finally:
        user_folders.private.cache_clear()
