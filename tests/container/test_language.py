"""The scripts and the doctor speak the user's language, whichever locales the machine has."""

import json
import os
import re
import subprocess

import pytest

from recipe.core.text_width import width
from support.command import ROOT
from support.stand_in_machine import DOCKER_DOWN, RTX_3060, T4, docker, fails, nvidia_smi, podman, without_environment

# Words of English sentences; commands, settings and names have none of them.
ENGLISH = re.compile(r"(?<![\w/.-])(a|and|are|for|has|in|is|it|its|no|not|of|or|the|this|which|with)(?![\w/.=-])")
CHINESE = {"RECIPE_LANG": "zh"}


def is_chinese(text):
    assert re.search("[\u4e00-\u9fff]", text), text
    assert not ENGLISH.search(text), (ENGLISH.search(text), text)


def start(*words, **variables):
    environment = {"PATH": os.environ["PATH"], "HOME": os.environ["HOME"], **variables}
    return subprocess.run(
        [str(ROOT / words[0]), *words[1:]],
        env=environment,
        cwd=str(ROOT),
        stdin=subprocess.DEVNULL,
        capture_output=True,
    )


@pytest.mark.parametrize(
    "programs",
    [
        {},
        {"docker": fails(DOCKER_DOWN, 1), "podman": podman("3.4.4"), "nvidia_smi": nvidia_smi(RTX_3060, T4)},
        {"docker": docker(), "nvidia_smi": nvidia_smi(RTX_3060, mode="Prohibited")},
        {
            "docker": docker(runtimes="nvidia runc", security="rootless"),
            "nvidia_smi": fails("No devices were found", 6),
        },
    ],
)
@pytest.mark.parametrize("words", [("coach",), ("demo",), ("--before", "train")])
def test_the_doctor_speaks_chinese(machine, programs, words):
    without_environment(machine)
    machine.has(**programs)
    done = machine.run(*words, **CHINESE)
    said = done.stdout + done.stderr
    assert done.returncode in (0, 3), said
    is_chinese(said)
    for line in said.splitlines():  # the columns begin where the English ones do
        row = re.match("(正常|警告|停止) +[^ ]+( (显卡|显存))? +", line)
        if row:
            assert width(row[0]) >= 20, line
            assert width(row[0]) == 20 or not row[0].endswith("  "), line
        elif "→" in line:
            assert line.startswith(" " * 20 + "→ "), line


def test_json_is_english_in_every_language(machine):
    without_environment(machine)
    machine.has(docker=fails(DOCKER_DOWN, 1), podman=podman("3.4.4"), nvidia_smi=nvidia_smi(RTX_3060))
    chinese, english = (machine.run("coach", "--json", RECIPE_LANG=name).stdout for name in ("zh", "en"))
    assert "passed over: docker (its daemon does not answer)" in json.loads(english)["reason"]
    free = re.compile(r"[\d.]+ GB free")  # of memory and disk, which others use
    assert free.sub("", chinese) == free.sub("", english)


REFUSALS = [
    (
        ["docker/runtime/choose"],
        {"RUNTIME": "boat"},
        "RUNTIME=boat is not known: use docker, podman, apptainer or host.\n",
    ),
    (
        ["docker/runtime/host", "env"],
        {"VARIANT": "cu99"},
        "VARIANT=cu99 is not known: use cu118 (Python 3.8, CUDA 11.8) or cu13 (Python 3.12, CUDA 13).\n",
    ),
    (
        ["docker/runtime/docker", "run", "plan"],
        {"GPUS": "one"},
        "GPUS=one is not known: use all or none (CUDA_VISIBLE_DEVICES=0 picks cards).\n",
    ),
    (
        ["docker/image", "save"],
        {"RUNTIME": "podman"},
        "just image save needs a file to write: just image save internlm2-recipe.tar.gz\n",
    ),
    (["docker/runtime/detach", "train"], {"DETACH": "long"}, "DETACH=long is not a number of seconds.\n"),
    (["docker/image", "load", "无 file"], {"RUNTIME": "podman"}, "There is no file 无 file.\n"),
]


@pytest.mark.parametrize(("words", "variables", "english"), REFUSALS)
def test_the_scripts_refuse_in_the_users_language(words, variables, english):
    for own in ({}, {"LANG": "C.UTF-8"}, {"LANG": "zh_CN.UTF-8", "RECIPE_LANG": "en"}):
        done = start(*words, **variables, **own)
        assert (done.returncode in (2, 3), done.stderr.decode()) == (True, english)
    # A locale that may not be there, one without Chinese signs, and the variable alone.
    for own in ({"LANG": "zh_CN.UTF-8"}, {"LC_ALL": "POSIX", **CHINESE}, {"LC_MESSAGES": "zh_CN"}, CHINESE):
        done = start(*words, **variables, **own)
        assert done.returncode in (2, 3)
        is_chinese(done.stderr.decode())
    # Without a Python the English text is better than none.
    broken = start(*words, **variables, **CHINESE, PYTHONHOME="/nowhere")
    assert broken.stderr.decode().endswith(english)


def test_values_keep_their_bytes(tmp_path):
    """A terminal of GBK has file names in it, whose second byte may be a backslash."""
    made = subprocess.run(["localedef", "-i", "zh_CN", "-f", "GBK", str(tmp_path / "zh_CN.GBK")], capture_output=True)
    if made.returncode:
        pytest.skip(f"localedef cannot make zh_CN.GBK: {made.stderr[-200:]}")
    script = f"root={ROOT}; . $root/docker/runtime/message; message 'There is no file %s.' \"$1\""
    name = "誠%s\\n 100%".encode("gbk")
    for shell in ("sh", "bash"):
        done = subprocess.run(
            [shell, "-c", script, "x", name],
            env={"PATH": os.environ["PATH"], "LOCPATH": str(tmp_path), "LANG": "zh_CN.GBK"}, capture_output=True,
        )  # fmt: skip
        assert done.stdout == "没有文件 ".encode("gbk") + name + "。\n".encode("gbk"), done


def test_containers_and_background_processes_have_the_language(tmp_path):
    (tmp_path / "docker").write_text(
        '#!/bin/sh\ncase "$*" in "info"*) exit ;; "image inspect"*) echo sha256:1; exit ;; esac\n'
        'env | grep ^RECIPE_LANG\nprintf "%s\\n" "$@"\n'
    )
    (tmp_path / "apptainer").write_text("#!/bin/sh\nenv | grep RECIPE_LANG\n")
    for name in ("docker", "apptainer"):
        (tmp_path / name).chmod(0o755)
    more = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}", "LANG": "zh_CN.UTF-8", "RECIPE_CACHE": str(tmp_path / "cache"),
        "GPUS": "none", "RECIPE_WORDS": "command\tplan\n",
    }  # fmt: skip
    said = start("docker/runtime/docker", "run", "plan", **more, RECIPE_IMAGE="image").stdout.decode()
    assert said.startswith("RECIPE_LANG=zh_CN.UTF-8\n")
    assert "\n--env\nRECIPE_LANG\n" in said
    said = start("docker/runtime/apptainer", "run", "plan", **more, RECIPE_IMAGE="docker://image").stdout.decode()
    assert "APPTAINERENV_RECIPE_LANG=zh_CN.UTF-8\n" in said
