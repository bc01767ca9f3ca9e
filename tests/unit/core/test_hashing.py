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
