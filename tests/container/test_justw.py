"""./justw, just and the host runtime on machines where little is installed."""

import os
import re
import shutil
import subprocess
import time

import pytest

from support.command import ROOT, refused
from support.justw import JUST, run


def justw(*words, cache, **more):
    """./justw on a machine that has made and fetched nothing yet; (finished process, seconds)."""
    environment = {**os.environ, "RECIPE_CACHE": str(cache), "PATH": "/usr/local/bin:/usr/bin:/bin", **more}
    environment.pop("RECIPE_ENV", None)
    began = time.monotonic()
    done = subprocess.run(
        [str(ROOT / "justw"), *words], env=environment, cwd=str(ROOT), stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    return done, time.monotonic() - began


@pytest.mark.parametrize("words", [["help"], ["train", "--help"], ["image", "-h"], ["help", "export"]])
def test_help_needs_nothing(tmp_path, words):
    spent = min(justw(*words, cache=tmp_path / "none")[1] for _ in range(3))
    done, _ = justw(*words, cache=tmp_path / "none")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Usage: ./justw ")
    assert not (tmp_path / "none").exists()
    assert spent < 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["trian"], "no command 'trian'. Did you mean train?"),
        (["plan", "coch"], "no recipe 'coch'. Did you mean coach?"),
        (["doctor", "coach", "train.speed=fsat"], "did you mean fast (found 'fsat')"),
        (["train", "coach", "train.max_epoch=3"], "unknown key; did you mean train.max_epochs"),
        (["train", "coach", "train.max_epochs=three"], "should be a whole number (found 'three')"),
        (["plan", "trian.lr=1"], "override trian.lr=1: trian: unknown key; did you mean train."),
        (["plan", "train.lr=1"], "should be at most 0.01 (found 1)"),
        (["merge", "train.lr＝1e-4"], "Type = instead"),
        (["verify", "coach", "train.lr=1e-4"], "verify takes no settings"),
        (["eval", "--png", "curve.png"], "eval has no option --png"),
        (["train", "--yes"], "train has no option --yes"),
        (["chat", "--tokenizer"], "chat has no option --tokenizer"),
        (["plan", "--dry-run"], "plan has no option --dry-run"),
        (["model", "--verfy"], "Did you mean --verify?"),
        (["export", "gguff"], "Did you mean gguf?"),
        (["image", "biuld"], "Did you mean build?"),
        (["compare", "coach"], "RUN is missing"),
        (["plan", "coach", "more"], "Too many words: more"),
        (["plan", "--output"], "--output needs a value"),
    ],
)
def test_mistakes_are_told_before_anything_is_made(tmp_path, words, said):
    done, _ = justw(*words, cache=tmp_path / "none")
    refused(done, 2, said)
    assert done.stdout == ""
    assert not (tmp_path / "none").exists()


def test_words_are_checked_from_any_folder(tmp_path):
    """Python imports from the current folder first: what lies there is not ours."""
    (tmp_path / "json.py").write_text("raise SystemExit('not ours')")
    (tmp_path / "recipe").mkdir()
    (tmp_path / "recipe/__init__.py").write_text("")
    done = subprocess.run(
        [str(ROOT / "docker/runtime/doctor"), "--help"], cwd=str(tmp_path), capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Usage: just doctor ")


def test_options_of_just_itself_are_justs(tmp_path):
    done, _ = justw("--show", "train", cache=os.environ.get("RECIPE_CACHE") or ROOT / ".cache")
    assert "docker/runtime/run --doctor train" in done.stdout, done.stderr
    done, _ = justw("help", "trian", cache=tmp_path / "none")
    refused(done, 2, "Did you mean train?")


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """The tracked files, somewhere else, under a name with a space and Chinese characters."""
    place = tmp_path_factory.mktemp("clone") / "我的 recipe"
    files = run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]).stdout.split("\0")
    for name in filter(None, files):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(str(ROOT / name), str(place / name))
    return place


def test_justw_fetches_just_and_prints_the_manual(clone, tmp_path):
    done = run(["./justw"], clone, RECIPE_CACHE=str(tmp_path))
    assert done.returncode == 0, done.stderr
    for word in ("[start]", "[one stage]", "[develop]", "demo", "train", "test"):
        assert word in done.stdout
    assert "fetching just and uv" in done.stderr
    again = run(["./justw", "--version"], clone, RECIPE_CACHE=str(tmp_path))
    assert (
        again.stdout.strip()
        == "just " + re.search(r"rust-just==(\S+)", (ROOT / "docker/locks/tools.in").read_text())[1]
    )
    assert "fetching" not in again.stderr


def test_just_alone_prints_the_same_manual(clone, tmp_path):
    tools = run(["./justw"], clone, RECIPE_CACHE=str(tmp_path)).stdout
    assert run([JUST], clone).stdout == tools


def test_justw_without_python_says_what_to_install(clone, tmp_path):
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("sh", "cksum", "cut", "dirname"):
        (tools / name).symlink_to(shutil.which(name))
    done = run(["sh", "./justw"], clone, PATH=str(tools), RECIPE_CACHE=str(tmp_path / "c"))
    assert done.returncode == 3
    assert "python3-pip" in done.stderr


def test_justw_with_an_unwritable_cache(clone, tmp_path):
    (tmp_path / "file").write_text("x")
    done = run(["./justw"], clone, RECIPE_CACHE=str(tmp_path / "file" / "cache"))
    assert done.returncode == 3
    assert "RECIPE_CACHE" in done.stderr


def test_justw_behind_a_closed_link_names_the_mirror_setting(clone, tmp_path):
    done = run(
        ["./justw"], clone, RECIPE_CACHE=str(tmp_path), PIP_INDEX_URL="http://127.0.0.1:9/simple", PIP_RETRIES="0",
        PIP_NO_CACHE_DIR="1", PIP_CONFIG_FILE=os.devnull, PIP_FIND_LINKS="",
    )  # fmt: skip
    assert done.returncode == 3
    assert "PIP_INDEX_URL" in done.stderr
    assert not list(tmp_path.glob("tools-*"))


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"TORCH": "cuda12"}, ["TORCH=cuda12", "cu118", "pypi"]),
        ({"TORCH": "pypi", "PYTHON38": "/usr/bin/false"}, ["PYTHON38=/usr/bin/false", "not a Python 3.8"]),
        ({"VARIANT": "cu12"}, ["VARIANT=cu12", "cu118", "cu13"]),
        ({"VARIANT": "cu13", "PYTHON312": "/usr/bin/false"}, ["PYTHON312=/usr/bin/false", "not a Python 3.12"]),
    ],
)
def test_host_runtime_refuses_clearly(clone, tmp_path, environment, words):
    done = run(["docker/runtime/host", "env"], clone, RECIPE_CACHE=str(tmp_path), **{"VARIANT": "cu118", **environment})
    assert done.returncode == 3
    for word in words:
        assert word in done.stderr


def test_what_python_compiles_is_kept():
    """Also where the machine's own setting forbids it, as many images' does: each start would compile anew."""
    done = run(
        ["docker/runtime/host", "exec", "python", "-c", "import sys; print(sys.dont_write_bytecode)"],
        PYTHONDONTWRITEBYTECODE="1",
    )
    assert done.stdout == "False\n", done.stderr


def test_host_runtime_chooses_variant_and_torch_by_the_gpu(clone, tmp_path):
    """With an NVIDIA driver the CUDA 11.8 build, else PyPI's, with a card newer than that the variant cu13: seen in the
    names of environment and image.
    """
    cache = tmp_path / "cache"
    driver, wsl, other = tmp_path / "driver", tmp_path / "wsl", tmp_path / "other"
    for file in (driver / "dev/nvidiactl", wsl / "dev/dxg", wsl / "usr/lib/wsl/lib/libcuda.so.1", other / "dev/dxg"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    older, newer = tmp_path / "older", tmp_path / "newer"
    for folder, card in ((older, "H100, 81559, 81000, 580.126.09"), (newer, "B200, 183359, 182640, 580.126.09")):
        folder.mkdir()
        capability = {"older": "9.0", "newer": "10.0"}[folder.name]
        stub = f"#!/bin/sh\necho 0, GPU-0, NVIDIA {card}, Default, Disabled, {capability}\n"
        (folder / "nvidia-smi").write_text(stub, encoding="utf-8")
        (folder / "nvidia-smi").chmod(0o755)
    for flavour, system, path in (
        ("cu118-cu118", driver, older), ("cu118-cu118", wsl, older), ("cu118-pypi", other, newer),
        ("cu13-pypi", driver, newer),
    ):  # fmt: skip
        lock = {"cu118-cu118": "cu118.lock", "cu118-pypi": "cu118-pypi.lock", "cu13-pypi": "cu13.lock"}[flavour]
        total = subprocess.run(["cksum"], input=(ROOT / "docker/locks" / lock).read_bytes(), stdout=subprocess.PIPE)
        made = cache / f"env-{flavour}-{total.stdout.split()[0].decode()}"
        (made / "bin").mkdir(parents=True, exist_ok=True)
        (made / ".ready").touch()
        (made / "bin/python").write_text(f"#!/bin/sh\necho {'3.12' if 'cu13' in flavour else '3.8'}\n")
        (made / "bin/python").chmod(0o755)
        chosen = {"VARIANT": "", "TORCH": "", "DOCTOR_ROOT": str(system), "PATH": f"{path}:{os.environ['PATH']}"}
        done = run(["docker/runtime/host", "env"], clone, RECIPE_CACHE=str(cache), **chosen)
        assert done.stdout.strip() == str(made)
        name = run(["docker/image", "name"], clone, **chosen).stdout
        assert name.startswith(f"internlm2-recipe:{flavour}-")


def test_arguments_with_spaces_and_chinese_arrive_whole(clone, tmp_path):
    env = run(["docker/runtime/host", "env"]).stdout.strip()
    cache = str(os.path.dirname(env))
    done = run([JUST, "data", "demo", 'data.files=["data/没有 这个.xlsx"]'], clone, RECIPE_CACHE=cache)
    assert done.returncode == 2
    assert "data/没有 这个.xlsx" in done.stderr


def test_a_clone_by_git_for_windows_runs_in_wsl(clone, tmp_path):
    """Line ends come out as they went in, of binary files too."""
    place, target = tmp_path / "source.git", tmp_path / "target"
    git = ["git", "-c", "user.name=me", "-c", "user.email=me@localhost", "-c", "core.autocrlf=true"]
    of_clone = [*git, f"--git-dir={place}", f"--work-tree={clone}"]
    for words in (["init", "-q"], ["add", "--all"], ["commit", "-q", "-m", "all"]):
        assert run([*of_clone, *words], clone).returncode == 0
    assert run([*git, "clone", "-q", "--config", "core.autocrlf=true", place, target]).returncode == 0
    files = run([*of_clone, "ls-files", "-z"], clone).stdout.split("\0")[:-1]
    assert len(files) > 200
    for name in files:
        assert (target / name).read_bytes() == (clone / name).read_bytes(), name
