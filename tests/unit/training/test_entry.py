"""The trainer's imports and start time."""

import subprocess
import sys
import time

import pytest

from support.command import ROOT


def test_the_trainers_libraries_come_in_the_order_that_is_soonest(monkeypatch):
    """What looks through the source of all frames above it is imported where there are few, and nothing compiles."""
    import torch

    from recipe.training import entry

    seen = []
    compile_ = torch.compile

    def note(name):
        seen.append((name, torch.compile is compile_))
        sys.modules.setdefault(name, object())

    monkeypatch.setattr(entry.importlib, "import_module", note)
    monkeypatch.delitem(sys.modules, entry.TRAINER, raising=False)
    monkeypatch.setattr(sys, "argv", ["entry"])
    monkeypatch.setattr(entry.runpy, "run_module", lambda name, **more: seen.append((name, sys.argv[1:])))
    entry.main(["a", "b"])
    assert seen == [(entry.SLOW_IMPORT, True), (entry.TRAINER, False), (entry.TRAINER, ["a", "b"])]
    assert entry.TRAINER not in sys.modules  # runpy would warn


@pytest.mark.slow
def test_the_trainers_process_knows_when_it_began():
    """Not up to a second before, as psutil has it: the kernel tells its boot in whole seconds."""
    code = "import time; from recipe.training.hooks import timing; print(time.monotonic() - timing.process_age())"
    before = time.monotonic()
    child = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    after = time.monotonic()
    assert before - 0.02 < float(child.communicate()[0].split()[-1]) < after + 0.02


def test_a_waiting_trainer_counts_from_its_arguments(monkeypatch):
    import time

    from recipe.training.hooks import timing

    monkeypatch.setenv(timing.STARTED, str(time.clock_gettime(time.CLOCK_BOOTTIME) - 5))
    assert timing.training_age() == pytest.approx(5, abs=0.5)
    monkeypatch.delenv(timing.STARTED)
    assert timing.training_age() == pytest.approx(timing.process_age(), abs=0.5)
