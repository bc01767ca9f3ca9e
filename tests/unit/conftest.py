"""Fixtures of several packages: machines with other GPUs, or without a compiler."""

import os

import pytest

from support.stand_in_machine import nvidia_smi


@pytest.fixture
def compiler(monkeypatch):
    """recipe.core.compiler on a machine that has none; what else may be missing is the test's."""
    from recipe.core import compiler

    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CC", raising=False)
    fault = compiler.fault
    fault.cache_clear()
    yield compiler
    fault.cache_clear()


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A function that fakes nvidia-smi for these cards and sets CUDA_VISIBLE_DEVICES as given."""

    def has(*cards, visible=None, **more):
        program = tmp_path / "nvidia-smi"
        program.write_text(nvidia_smi(*cards, **more), encoding="utf-8")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if visible is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)

    return has
