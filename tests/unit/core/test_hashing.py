"""The checksum of a folder."""

import os
import signal
import threading
import time

import pytest

from recipe.core import hashing


def test_digest_of_a_folder_sees_names_and_contents(tmp_path):
    folder = tmp_path / "a"
    folder.mkdir()
    (folder / "x").write_text("1")
    first = hashing.digest(folder)
    (folder / "x").rename(folder / "y")
    assert hashing.digest(folder) != first
    (folder / "y").rename(folder / "x")
    assert hashing.digest(folder) == first
    assert hashing.digest(tmp_path / "none") == "absent"


def test_sums_without_links_leave_out_what_leads_elsewhere(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "own").write_text("1")
    (tmp_path / "weights").write_text("2")
    (tmp_path / "a" / "linked").symlink_to(tmp_path / "weights")
    assert set(hashing.sums(tmp_path / "a")) == {"own", "linked"}
    assert set(hashing.sums(tmp_path / "a", links=False)) == {"own"}


def test_an_interrupt_does_not_wait_for_the_files(tmp_path):
    for number in range(8):
        with (tmp_path / str(number)).open("wb") as stream:
            stream.truncate(16 << 30)  # half a minute each
    began = time.monotonic()
    threading.Timer(0.3, os.kill, [os.getpid(), signal.SIGINT]).start()
    with pytest.raises(KeyboardInterrupt):
        hashing.sums(tmp_path)
    assert time.monotonic() - began < 5
