"""GPUs as nvidia-smi lists them."""

from recipe.core import host


def test_gpus_as_nvidia_smi_tells_them(tmp_path, monkeypatch):
    fake = tmp_path / "nvidia-smi"
    calls = tmp_path / "calls"
    fake.write_text(
        f"#!/bin/sh\necho >> {calls}\n"
        "echo '0, GPU-0, NVIDIA GeForce RTX 3090, 24576, 24000, 535.129.03, Default, [N/A], 8.6'\n"
    )
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
