"""The checksum of a folder."""

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
