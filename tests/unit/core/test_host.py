"""GPUs as nvidia-smi lists them."""

import pytest

from recipe.core import hardware, host


def test_gpus_as_nvidia_smi_tells_them(tmp_path, monkeypatch):
    fake = tmp_path / "nvidia-smi"
    calls = tmp_path / "calls"
    line = "0, GPU-0, NVIDIA GeForce RTX 3090, 24576, 24000, 535.129.03, Default, [N/A], 8.6"
    fake.write_text(f"#!/bin/sh\necho >> {calls}\necho '{line}'\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    card = {"name": "NVIDIA GeForce RTX 3090", "memory_mib": 24576, "driver": "535.129.03", "capability": "8.6"}
    found = host.gpus()
    assert found == [card]
    found[0]["name"] = "changed"
    assert host.gpus() == [card]
    assert calls.read_text() == "\n"  # asked once
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert host.gpus() == []
    fake.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed'\nexit 9\n")
    host._gpus.cache_clear()
    assert host.gpus() == []


@pytest.mark.parametrize(
    ("total", "free", "capability"),
    [
        ("[N/A]", "[N/A]", "12.1"),
        ("[Not Supported]", "[Not Supported]", "12.1"),
        ("N/A", "100", "9.0"),
        ("", "", "[N/A]"),
    ],
)
def test_a_card_whose_memory_is_the_machines_own(tmp_path, monkeypatch, total, free, capability):
    """What the doctor reads without a word, the stages read, too."""
    fake = tmp_path / "nvidia-smi"
    row = f"0, GPU-1c0e, NVIDIA GB10, {total}, {free}, 580.95.05, Default, [N/A], {capability}"
    fake.write_text(f"#!/bin/sh\necho '{row}'\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert [card.name for card in hardware.query()[0]] == ["NVIDIA GB10"]
    found = host.gpus()
    assert [(card["name"], card["capability"]) for card in found] == [("NVIDIA GB10", capability)] * (
        capability[0] != "["
    )
    assert all(card["memory_mib"] > 0 for card in found)
