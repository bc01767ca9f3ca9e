"""The environment on a machine that has a driver and nothing else: no CUDA toolkit, no compiler."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

from support.command import ROOT
from support.environment import CU13
from support.locks import pins

ENVIRONMENT = Path(os.environ["VIRTUAL_ENV"]).resolve()


[SITE] = ENVIRONMENT.glob("lib/python3.*/site-packages")


# What PyTorch's +cu118 wheels hold in torch/lib, by pytorch/builder at release/2.0 (56177be): DEPS_LIST of
# manywheel/build_cuda.sh, of which fname_with_sha256 in build_common.sh renames what the second line has
# (libcudart-d0da41ae.so.11.0). All else of CUDA is linked in (ATEN_STATIC_CUDA, USE_STATIC_NCCL).
BUNDLED = ["libcublas.so.11", "libcublasLt.so.11", "libnvrtc-builtins.so.11.8", "libcudnn.so.8"]
BUNDLED += [
    f"libcudnn_{part}.so.8" for part in ("adv_infer", "adv_train", "cnn_infer", "cnn_train", "ops_infer", "ops_train")
]


RENAMED = ["libcudart.so.11.0", "libnvToolsExt.so.1", "libnvrtc.so.11.2", "libgomp.so.1"]


PACKAGES = {"nvidia-cuda-runtime-cu11": "libcudart.so.11.0", "nvidia-cusparse-cu11": "libcusparse.so.11"}


# The C library's, GCC's and zlib of every Debian; libGL and GLib, which the Dockerfile installs.
BASE = r"(ld-linux-x86-64|lib(c|m|dl|rt|util|pthread|gcc_s|stdc\+\+|z|GL|glib-2\.0|gthread-2\.0))\.so\.\d+"


DRIVER = r"libcuda\.so\.1"


# Loaded by no stage: bitsandbytes for other accelerators, OpenCV's windows, InfiniBand and its like.
UNUSED = r"nvshmem_(bootstrap|transport)|libcufile_rdma|cv2/qt/|Qt5|libxcb|libxkb|libbitsandbytes_(?!cpu\.|cuda%s\.)"
UNUSED %= "130" if CU13 else "118"


def libraries(folder):
    """{file: (names that it needs, folders in which it looks itself)} of the shared libraries below `folder`."""
    found = {}
    for file in sorted(folder.rglob("*.so*")):
        with file.open("rb") as opened:
            if opened.read(4) != b"\x7fELF":
                continue
            dynamic = next((one for one in ELFFile(opened).iter_segments() if one["p_type"] == "PT_DYNAMIC"), None)
            tags = list(dynamic.iter_tags()) if dynamic else []
        needed = [tag.needed for tag in tags if tag.entry.d_tag == "DT_NEEDED"]
        paths = [getattr(tag, "runpath", "") or getattr(tag, "rpath", "") for tag in tags]
        places = [Path(one.replace("$ORIGIN", str(file.parent))) for path in paths for one in path.split(":") if one]
        # What lies beside it came with it: a process that loads it has loaded those.
        found[file] = needed, [*places, file.parent]
    return found


@pytest.fixture(scope="module")
def installed():
    [more] = [place for place in os.environ["PYTHONPATH"].split(os.pathsep) if Path(place).name.startswith("more-")]
    found = {**libraries(SITE), **libraries(Path(more))}
    assert len(found) > 400
    return {file: of for file, of in found.items() if not re.search(UNUSED, str(file))}


def missing(found, names=()):
    """{library: names that neither it, nor the base image, nor the driver, nor `names` provide}."""
    lacking = {}
    for file, (needed, places) in found.items():
        for name in needed:
            given = name in names or re.fullmatch(f"{BASE}|{DRIVER}", name)
            if not given and not any((place / name).exists() for place in places):
                lacking.setdefault(file, []).append(name)
    return lacking


def own(site):
    """The names in the folders that docker/runtime/host tells the loader."""
    return {file.name for place in [site / "torch/lib", *site.glob("nvidia/*/lib")] for file in place.iterdir()}


def test_every_library_finds_what_it_needs(installed):
    assert missing(installed, own(SITE)) == {}
    assert missing(installed)  # bitsandbytes alone would look in /usr/local/cuda


@pytest.mark.skipif(CU13, reason="of cu118")
def test_with_pytorchs_own_wheels_too(installed):
    """cu118.lock, which cannot be installed here: what its PyTorch bundles, and its two packages of NVIDIA's."""
    packages = {PACKAGES[name] for name in pins("cu118.lock") if name.startswith("nvidia-")}
    torch = {file.name for file in (SITE / "torch/lib").iterdir()}
    other = {SITE / name for name in ("torch", "nvfuser", "nvidia")}
    rest = {file: of for file, of in installed.items() if not other & set(file.parents)}
    assert missing(rest, {*BUNDLED, *torch, *packages}) == {}
    without = missing(rest, {*BUNDLED, *torch})
    assert set(without[SITE / "bitsandbytes/libbitsandbytes_cuda118.so"]) == packages == set(PACKAGES.values())


def renamed(source, target, names):
    """Copy a library, renaming `names` in what it needs and in its own name."""
    shutil.copyfile(str(source), str(target))
    with target.open("r+b") as file:
        section = ELFFile(file).get_section_by_name(".dynstr")
        text = section.data()
        for name, other in names.items():
            assert len(name) == len(other)
            text = text.replace(b"\0%s\0" % name.encode(), b"\0%s\0" % other.encode())
        file.seek(section["sh_offset"])
        file.write(text)


@pytest.fixture
def bundled(tmp_path):
    """The environment of cu118.lock: PyPI's PyTorch made to look like the wheel that bundles CUDA."""
    lock = ROOT / "docker/locks/cu118.lock"
    checksum = subprocess.run(["cksum", str(lock)], stdout=subprocess.PIPE, check=True).stdout.decode().split()[0]
    place = tmp_path / f"env-cu118-cu118-{checksum}"
    site = place / SITE.relative_to(ENVIRONMENT)
    for folder in (site / "torch/lib", site / "nvidia/cuda_runtime/lib", site / "nvidia/cusparse/lib"):
        folder.mkdir(parents=True)
    (place / "bin").symlink_to(ENVIRONMENT / "bin")
    shutil.copy(str(ENVIRONMENT / "pyvenv.cfg"), str(place))
    for source, target in ((SITE, site), (SITE / "torch", site / "torch")):
        for file in source.iterdir():
            if not (target / file.name).exists():
                (target / file.name).symlink_to(file)
    own_version = site / "torch/version.py"
    own_version.unlink()
    text = (SITE / "torch/version.py").read_text(encoding="utf-8")
    own_version.write_text(text.replace("'11.7'", "'11.8'"), encoding="utf-8")
    # The names are as long as the plain ones, so that they fit in their place.
    other = {"libcudart.so.11.0": "libcudart-x.so.11", "libcusparse.so.11": "libcusparse-xy.so"}
    for file in (SITE / "torch/lib").iterdir():
        if file.name.startswith("libtorch") or file.name in ("libc10_cuda.so", "libnvfuser_codegen.so"):
            renamed(file, site / "torch/lib" / file.name, other)
        else:
            (site / "torch/lib" / file.name).symlink_to(file)
    for file in SITE.glob("nvidia/*/lib/*.so*"):
        if file.name in other:
            renamed(file, site / "torch/lib" / other[file.name], other)
            (site / "nvidia" / file.parts[-3] / "lib" / file.name).symlink_to(file)  # the lock's package
        else:
            (site / "torch/lib" / file.name).symlink_to(file)
    yield place
    shutil.rmtree(str(place))  # 1.7 GB


@pytest.mark.skipif(CU13, reason="of cu118")
def test_bitsandbytes_loads_beside_a_pytorch_that_bundles_cuda(bundled, tmp_path):
    """And beside another CUDA that the shell names."""
    toolkit = tmp_path / "cuda-12/lib64"
    toolkit.mkdir(parents=True)
    for name in PACKAGES.values():
        (toolkit / name).write_text("not a library")
    kept = {name: value for name, value in os.environ.items() if name not in ("LD_LIBRARY_PATH", "VARIANT", "TORCH")}
    selftest = [str(bundled / "bin/python"), str(ROOT / "docker/doctor/selftest.py")]
    fails = subprocess.run(
        [*selftest, "bitsandbytes"], env={**kept, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert fails.returncode == 3, fails.stdout + fails.stderr
    assert re.search(r"(?m)^stop\tbitsandbytes\t.* lib(cudart|cusparse)\.so\.11\S*: cannot open", fails.stdout)
    there = {**kept, "RECIPE_ENV": str(bundled), "LD_LIBRARY_PATH": str(toolkit)}
    done = subprocess.run(
        [str(ROOT / "docker/runtime/host"), "selftest", "bitsandbytes"], env=there, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ok\tbitsandbytes\tits libbitsandbytes_cuda118.so" in done.stdout


# A machine that has a card, and neither nvcc nor a C compiler: on its PATH is what the scripts themselves use.
TOOLS = (
    "bash",
    "env",
    "dirname",
    "cksum",
    "cut",
    "readlink",
    "sed",
    "paste",
    "grep",
    "cat",
    "mkdir",
    "flock",
    "df",
    "awk",
)


@pytest.fixture
def bare(tmp_path):
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in TOOLS:
        (folder / name).symlink_to(shutil.which(name))
    kept = {name: value for name, value in os.environ.items() if not re.search("^CC$|^LD_|^DS_", name)}
    return {**kept, "PATH": str(folder), "CUDA_HOME": str(tmp_path)}  # as if unset, where there is a /usr/local/cuda


def test_training_needs_no_toolkit_and_no_compiler(bare):
    """DeepSpeed 0.18 asks nvcc for its release when it is imported where there is a card; Triton wants a compiler."""
    done = subprocess.run([str(ROOT / "docker/runtime/host"), "selftest"], env=bare, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = dict(line.split("\t")[1::-1] for line in done.stdout.splitlines())
    assert lines == {"bitsandbytes": "ok", "compiler": "warning" if CU13 else "ok", "kernels": "ok", "deepspeed": "ok"}
    if CU13:
        assert "apt-get install gcc libc6-dev" in done.stdout
        selftest = [str(ENVIRONMENT / "bin/python"), str(ROOT / "docker/doctor/selftest.py"), "deepspeed"]
        fails = subprocess.run(selftest, env={**bare, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
        assert fails.returncode == 3
        assert "stop\tdeepspeed" in fails.stdout
