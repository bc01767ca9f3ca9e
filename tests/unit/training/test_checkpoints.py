"""Which checkpoint is the last complete one."""

from recipe.training import checkpoints


def test_the_last_checkpoint_is_the_recorded_whole_one(tmp_path):
    assert checkpoints.last_checkpoint(tmp_path) is None
    import torch

    torch.save({"x": 1}, str(tmp_path / "iter_7.pth"))
    torch.save({"x": 1}, str(tmp_path / "iter_9.pth"))
    (tmp_path / "last_checkpoint").write_text("/elsewhere/checkpoints/iter_7.pth")
    assert checkpoints.last_checkpoint(tmp_path) == tmp_path / "iter_7.pth"
    (tmp_path / "last_checkpoint").write_text("iter_9.pth")
    whole = (tmp_path / "iter_9.pth").read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:100] + b"damage" + whole[106:], b""):
        (tmp_path / "iter_9.pth").write_bytes(damaged)
        assert checkpoints.last_checkpoint(tmp_path) == tmp_path / "iter_7.pth"
    for note in ("", ".", "..", "iter_9999.pth"):
        (tmp_path / "last_checkpoint").write_text(note)
        assert checkpoints.last_checkpoint(tmp_path) == tmp_path / "iter_7.pth"
    (tmp_path / "last_checkpoint").write_bytes(b"\xff\xfe")
    (tmp_path / "iter_7.pth").unlink()
    assert checkpoints.last_checkpoint(tmp_path) is None
