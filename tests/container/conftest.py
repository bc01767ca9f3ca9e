"""Fixtures of the doctor's tests."""

import pytest

from support.command import ROOT
from support.stand_in_machine import Machine, clone_for_the_doctor


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


@pytest.fixture
def measured(machine, tmp_path):
    """A clone of the doctor's own, with sizes (GB) of the test's choice."""
    clone = clone_for_the_doctor(tmp_path / "我的 clone")

    def measure(**sizes):
        text = (ROOT / "recipe/core/measured.toml").read_text(encoding="utf-8")
        table = "".join(f"{name} = {size}\n" for name, size in sizes.items())
        (clone / "recipe/core/measured.toml").write_text(
            text[: text.index("[disk]")] + "[disk]\n" + table, encoding="utf-8"
        )
        machine.root = clone

    return measure
