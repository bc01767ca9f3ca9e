"""Checkpoints that a thread flushes to disk while training goes on."""

import errno
from types import SimpleNamespace

import pytest
import torch

from recipe.training import checkpoints
from recipe.training.hooks import checkpoint


@pytest.fixture
def runner(tmp_path):
    """What the hook asks of mmengine's runner."""

    def save_checkpoint(folder, name, *words, **more):
        torch.save({}, f"{folder}/{name}")

    return SimpleNamespace(
        iter=0, hooks=[], model=torch.nn.Linear(1, 1), save_checkpoint=save_checkpoint,
        message_hub=SimpleNamespace(update_info=lambda *words: None),
        optim_wrapper=SimpleNamespace(_accumulative_counts=1),
    )  # fmt: skip


@pytest.fixture
def hook(tmp_path):
    made = checkpoint.AtomicCheckpointHook(interval=1, max_keep_ckpts=2)
    made.out_dir, made.filename_tmpl = str(tmp_path), "iter_{}.pth"
    return made


def test_a_checkpoint_bears_its_name_once_it_is_flushed(hook, runner, tmp_path):
    (tmp_path / ".iter_2.pth.part").write_text("of a trainer that was killed")
    for step in (3, 4, 5):
        hook._save_checkpoint_with_step(runner, step, {})
    hook._wait()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["iter_4.pth", "iter_5.pth", "last_checkpoint"]
    assert checkpoints.last_checkpoint(tmp_path, read=False).name == "iter_5.pth"


def test_a_disk_that_fills_while_a_checkpoint_is_flushed_ends_the_training(hook, runner, tmp_path, monkeypatch):
    def full(path):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "_sync_to_disk", full)
    hook._save_checkpoint_with_step(runner, 3, {})
    hook._writer.shutdown()
    with pytest.raises(OSError, match="No space left on device"):
        hook.after_train_iter(runner, 3)
    assert checkpoints.last_checkpoint(tmp_path) is None


def test_all_ranks_ask_for_room_once_older_checkpoints_are_gone(hook, runner, monkeypatch):
    done = []
    monkeypatch.setattr(hook, "_wait", lambda: done.append("wait"))
    monkeypatch.setattr(checkpoint, "barrier", lambda: done.append("barrier"))
    monkeypatch.setattr(hook, "_check_disk", lambda runner, step: done.append("check"))
    hook._save_checkpoint_with_step(runner, 3, {})
    hook._writer.shutdown()
    assert done[:3] == ["wait", "barrier", "check"]
