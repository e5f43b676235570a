"""Error messages on a terminal: grouped, counted, cut, with the full text in a file; errors of other packages too."""

import errno
import os
import tempfile

import numpy as np
import pytest
import torch

from avvp_dist.cli import errors, messages
from avvp_dist.errors import AvvpError, ConfigError, DataError, StorageError, TrainingError


@pytest.fixture(autouse=True)
def temporary_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def full_text_of(message):
    return open(message.rsplit("full message: ", 1)[1]).read()


def test_a_short_message_is_the_error_itself(temporary_folder):
    for error in (DataError("a: bad; fix it"), DataError(["a", "b"]), DataError(["a"], "t"), TrainingError("loss\nis nan")):
        assert messages.brief(error) == str(error)
    assert not list(temporary_folder.iterdir())


def test_similar_problems_are_counted_and_all_are_in_a_file():
    unknown = [f"AVVP_train.csv:{row}: unknown class 'Class{row}'; did you mean 'Dog'?" for row in range(3000)]
    other = ["AVVP_val_pd.csv:7: event_labels is empty"]
    message = messages.brief(DataError([*unknown, *other], "annotations"))
    lines = message.splitlines()
    assert lines[:4] == ["annotations", *(f"  - {problem}" for problem in unknown[:3])]
    assert "2,997 more like these" in lines[4]
    assert lines[5] == f"  - {other[0]}"
    assert full_text_of(message).splitlines() == ["annotations", *(f"  - {problem}" for problem in [*unknown, *other])]


def test_many_kinds_are_cut_too():
    problems = [f"{word} is wrong" for word in (f"{a}{b}" for a in "abcdefgh" for b in "abcdefgh")]
    message = messages.brief(DataError(problems))
    assert len(message.splitlines()) <= messages.LINES
    assert "other problems" in message
    assert len(full_text_of(message).splitlines()) == 65


@pytest.mark.parametrize("limit", [0, 1, 5])
def test_a_limit_holds(limit):
    error = DataError([f"video{number}: bad" for number in range(100)], "title")
    error.limit = limit
    shown = [line for line in messages.brief(error).splitlines() if line.startswith("  - ")]
    assert len(shown) <= limit


def test_long_lines_are_cut_and_control_characters_shown(temporary_folder):
    message = messages.brief(DataError("x" * 700_000 + "\x1b[31m; fix it"))
    assert len(message.splitlines()[0]) == messages.WIDTH
    assert message.splitlines()[0].endswith("\\x1b[31m; fix it")
    [file] = temporary_folder.iterdir()
    assert file.stat().st_mode & 0o077 == 0


def test_without_a_temporary_folder_the_message_says_so(monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere/at/all")
    assert "could not be written" in messages.brief(DataError([f"a{n}" for n in range(99)]))


def test_problems_stay_complete_for_programs():
    assert len(DataError([f"a{number}" for number in range(5000)]).problems) == 5000


@pytest.mark.parametrize(
    ("code", "remedy"),
    [
        (errno.ENOSPC, "free some space"),
        (errno.EACCES, "permissions"),
        (errno.EROFS, "choose another location"),
        (errno.ENAMETOOLONG, "shorter name"),
        (errno.ELOOP, "symbolic links"),
        (errno.EISDIR, "give the name of a file"),
        (errno.ENOTDIR, "there is a file where a folder is needed"),
        (errno.EMFILE, "ulimit -n"),
    ],
)
def test_system_errors_name_path_and_remedy(code, remedy):
    message, status = errors.describe_error(OSError(code, os.strerror(code), "/some/\x1bplace"))
    assert status == 2
    assert message.startswith("/some/\\x1bplace: ")
    assert remedy in message


def allocate():
    np.ones(2**62, np.uint8)


@pytest.mark.parametrize(
    ("act", "expected"),
    [
        (lambda: b"\xff".decode(), "not valid text"),
        (allocate, "not enough memory"),
        (lambda: torch.empty(2**50), "not enough memory"),
        (lambda: int("x"), "this is a bug"),
    ],
)
def test_expected_errors_of_other_packages_become_messages(act, expected):
    with pytest.raises(Exception) as caught:
        act()
    message, code = errors.describe_error(caught.value)
    assert expected in message
    assert code == (1 if "bug" in expected else 2)


def test_a_missing_package_is_reported_with_its_extra():
    message, code = errors.describe_error(ModuleNotFoundError("No module named 'ray'", name="ray.train"))
    assert (message, code) == ("ray is required for this but not installed: pip install 'avvp_dist[ray]'", 2)


def test_an_unexpected_error_is_a_bug_with_its_traceback_in_a_file(temporary_folder):
    def fail():
        raise KeyError("\x1b[2J")

    with pytest.raises(KeyError) as caught:
        fail()
    message, code = errors.describe_error(caught.value)
    [file] = temporary_folder.iterdir()
    assert code == 1
    assert message.startswith("this is a bug in avvp_dist: KeyError: ")
    assert str(file) in message
    assert "\x1b" not in message
    assert "in fail" in file.read_text()
    assert file.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("error", [ConfigError("a"), StorageError("a", transient=True), AvvpError("a"), TrainingError("a")])
def test_errors_of_this_package_keep_their_exit_codes(error):
    assert errors.describe_error(error) == ("a", error.exit_code)
