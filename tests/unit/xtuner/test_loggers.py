"""Loggers that have to be fetched."""

import os
import sys
from types import SimpleNamespace

import pytest

from recipe.core import settings
from recipe.core.errors import HostLacks, NotFetched
from recipe.xtuner import loggers


def test_what_loggers_need_is_fetched_when_first_asked_for(monkeypatch):
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p != os.environ["LOGGERS"]])
    monkeypatch.setitem(os.environ, "PYTHONPATH", os.environ["PYTHONPATH"])
    run = SimpleNamespace(settings=settings.load("tiny", ["train.loggers=wandb"])[1])
    monkeypatch.setenv("RECIPE_FETCH", "no")  # a container without a network: docker/runtime/run starts one that has
    with pytest.raises(NotFetched) as caught:
        loggers.preflight(run)
    assert caught.value.code == 77
    monkeypatch.delenv("RECIPE_FETCH")
    loggers.preflight(run)
    assert os.environ["LOGGERS"] in sys.path
    assert os.environ["PYTHONPATH"].endswith(os.environ["LOGGERS"])


def test_loggers_that_cannot_be_fetched(monkeypatch, tmp_path):
    monkeypatch.setattr(loggers, "ROOT", tmp_path)
    (tmp_path / "docker" / "runtime").mkdir(parents=True)
    (tmp_path / "docker" / "runtime" / "host").write_text("#!/bin/sh\necho no network >&2\nexit 3\n")
    (tmp_path / "docker" / "runtime" / "host").chmod(0o755)
    with pytest.raises(HostLacks, match=r"no network Or train without: train\.loggers=\[\]"):
        loggers.fetch()
