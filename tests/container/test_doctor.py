"""`just doctor` on machines that are not here: recorded answers of nvidia-smi, docker and podman, given by programs of
those names on a PATH of the test's own; system files below a folder that stands for / (DOCTOR_ROOT).
"""

import json
import os
import re
import shutil
import sys

import pytest

from support.command import ROOT
from support.stand_in_machine import (
    B200,
    IN_WSL,
    LITTLE,
    NVIDIA,
    RTX_3060,
    RTX_3090,
    docker,
    nvidia_smi,
    older_python,
    podman,
    told,
    without_environment,
)

WSL = "Linux version 5.15.167.4-microsoft-standard-WSL2 (root@f9c826d3017f) (gcc (GCC) 11.2.0) #1 SMP\n"


def test_demo_on_a_plain_machine_has_nothing_to_say(machine):
    """No GPU, no engine: every line is ok, and before the stage not a word is printed."""
    _, found = machine.doctor("demo")
    assert found["status"] == "ok", found
    assert (found["runtime"], found["variant"]) == ("host", "")
    for before in ("demo", "train"):
        done = machine.run("--before", before, "demo")
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_train_stops_before_anything_is_downloaded(machine, measured):
    measured(**LITTLE)
    done = machine.run("--before", "train", "--force", "coach", "train.max_epochs=1")
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith("stop     gpu ")
    assert "ok " not in done.stderr.split("\n")[0]
    assert "DOCTOR=off" in done.stderr
    assert machine.run("--before", "train", DOCTOR="off").returncode == 0
    assert machine.run(DOCTOR="off").returncode == 3
    machine.has(nvidia_smi=nvidia_smi(RTX_3060))
    done = machine.run("--before", "train", "train.speed=stock")
    assert (done.returncode, done.stdout) == (0, "")
    assert "tight" in done.stderr


def test_just_train_asks_first_and_makes_nothing(machine):
    without_environment(machine)
    (machine.programs / "just").symlink_to(shutil.which("just"))
    asked = json.loads(machine.run("--dump", "--dump-format", "json", program="just").stdout)["recipes"]
    for name in ("demo", "train", "merge", "reproduce"):
        assert asked[name]["body"][0] == [f'@docker/runtime/run --doctor {name} "$@"']
    done = machine.run("train", "coach", "train.max_epochs=1", program="just")
    assert (done.returncode, done.stdout) == (3, "")
    assert "no NVIDIA GPU" in done.stderr
    assert "Making the environment" not in done.stderr
    assert not list(machine.cache.iterdir())


def test_a_finished_training_asks_for_no_card_again(machine, measured):
    measured(**LITTLE)
    output = machine.home / "out"
    (output / "coach").mkdir(parents=True)
    (output / "coach" / "run.json").write_text('{"stages": {"train": {}}}', encoding="utf-8")
    done = machine.run("--before", "merge", "--output", str(output))
    assert done.returncode == 0
    assert done.stderr.startswith("warning  gpu ")


def test_json_has_one_shape(machine):
    _, found = machine.doctor("tutorial")
    assert list(found) == ["status", "recipe", "stage", "runtime", "reason", "variant", "checks"]
    assert all(isinstance(found[key], str) for key in found if key != "checks")
    assert found["recipe"] == "tutorial"
    for line in found["checks"]:
        assert list(line) == ["name", "status", "found", "remedy"]
        assert all(isinstance(value, str) for value in line.values())
        assert line["status"] in ("ok", "warning", "stop")
        assert line["found"]
        assert bool(line["remedy"]) == (line["status"] != "ok"), line
    assert {"system", "runtime", "gpu", "memory", "shm", "tools", "libraries"} <= {c["name"] for c in found["checks"]}
    text = machine.run("tutorial").stdout
    assert text.count("\nstop ") == 1
    assert "Recipe tutorial cannot run (runtime host)." in text


def test_wrong_recipes(machine):
    (machine.home / "broken.toml").write_text("base = \n", encoding="utf-8")
    for words, said in (
        (["nope"], "no recipe 'nope'"),
        ([str(machine.home / "broken.toml")], "not valid TOML"),
        (["data.files.x=1"], "is a value"),
    ):
        done = machine.run(*words)
        assert done.returncode == 2
        assert said in done.stderr
        assert "Traceback" not in done.stderr
    done = machine.run("train.batch_size=many")
    assert (done.returncode, done.stdout) == (2, "")
    assert "train.batch_size: should be a whole number (found 'many')" in done.stderr


# --- the rest of the machine ---


def test_wsl(machine):
    machine.files(**{"proc/version": WSL, "usr/lib/wsl/lib/nvidia-smi": "", **IN_WSL})
    lines, _ = machine.doctor()
    told(lines["system"], "ok", "WSL 2")
    told(lines["gpu"], "stop", "not on the PATH", "export PATH=")
    # WSL shows the driver of Windows, whose numbers are other ones.
    machine.has(nvidia_smi=nvidia_smi(("NVIDIA GeForce RTX 3090", 24576, 23000, "461.33", None)))
    told(machine.doctor()[0]["gpu"], "ok", "522.06")
    machine.has(nvidia_smi=nvidia_smi(("NVIDIA GeForce RTX 3090", 24576, 23000, "451.48", None)))
    told(machine.doctor()[0]["gpu"], "stop", "452.39", "in Windows")
    machine.files(**{"proc/meminfo": "MemAvailable:   3600000 kB\n"})
    told(machine.doctor()[0]["memory"], "warning", ".wslconfig")
    machine.files(**{"proc/version": "Linux version 4.4.0-19041-Microsoft (Microsoft@Microsoft.com)\n"})
    told(machine.doctor()[0]["system"], "stop", "WSL 1", "--set-version")


def test_systems_that_the_packages_do_not_run_on(machine, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docker/doctor"))
    monkeypatch.setenv("DOCTOR_ROOT", str(machine.system))
    import machine as checks

    host = checks.Host()
    (line,) = checks.check_system(host, "host")
    told(line._asdict(), "ok", "Ubuntu 22.04.5 LTS, x86_64, glibc 2.")
    for variant, needed, library, runtime, status in (
        ("cu118", "glibc 2.24", "glibc 2.17", "host", "stop"),
        ("cu118", "glibc 2.24", "", "host", "stop"),
        ("cu118", "glibc 2.24", "glibc 2.24", "host", "ok"),
        ("cu118", "glibc 2.24", "glibc 2.17", "docker", "ok"),
        ("cu13", "glibc 2.28", "glibc 2.24", "host", "stop"),
        ("cu13", "glibc 2.28", "glibc 2.28", "host", "ok"),
    ):
        monkeypatch.setenv("VARIANT", variant)
        monkeypatch.setattr(checks.os, "confstr", lambda name, library=library: library)
        (line,) = checks.check_system(host, runtime)
        told(
            line._asdict(),
            status,
            library or "no glibc",
            *([needed, "run in a container"] if status == "stop" else []),
        )
    monkeypatch.setattr(checks.platform, "machine", lambda: "aarch64")
    (line,) = checks.check_system(host, "docker")
    told(line._asdict(), "stop", "aarch64", "x86_64 only")


def test_memory_within_the_limit_of_a_container(machine):
    machine.files(**{"sys/fs/cgroup/memory.max": "4000000000\n", ".dockerenv": ""})
    told(machine.doctor()[0]["memory"], "warning", "4.0 GB", "limit", "choose an instance")
    told(machine.doctor("demo")[0]["memory"], "ok", "limit")
    machine.files(**{"sys/fs/cgroup/memory.max": "max\n"})
    told(machine.doctor()[0]["memory"], "ok", "61.4 GB")
    (machine.system / "dev/shm").rmdir()
    told(machine.doctor()[0]["shm"], "warning", "--shm-size")


@pytest.mark.parametrize(
    ("variables", "files", "words"),
    [
        ({"AutoDLContainerUUID": "x"}, {"root/autodl-tmp/x": ""}, ["AutoDL", "UV_DEFAULT_INDEX", "network_turbo"]),
        ({}, {"etc/network_turbo": "", "root/autodl-tmp/x": ""}, ["AutoDL", "/root/autodl-tmp"]),
        ({"VAST_CONTAINERLABEL": "C.1"}, {"workspace/x": ""}, ["Vast.ai", "/workspace", "fixed"]),
        ({"RUNPOD_POD_ID": "x"}, {"workspace/x": ""}, ["RunPod", "/workspace", "volume"]),
    ],
)  # fmt: skip
def test_rental_platforms(machine, variables, files, words):
    machine.files(**files)
    lines, found = machine.doctor(**variables)
    told(lines["platform"], "warning", *words)
    assert found["runtime"] == "host"
    told(lines["gpu"], "stop", "instance", "just demo")
    for address in ("pypi.", "mirrors.", "tuna", "aliyun"):
        assert address not in json.dumps(found)
    told(machine.doctor("demo", **variables)[0]["platform"], "ok", words[0])


def test_what_would_come_before_the_locked_libraries(machine):
    told(machine.doctor()[0]["libraries"], "ok", "no other libraries")
    own = machine.home / ".local/lib/python3.8/site-packages"
    own.mkdir(parents=True)
    told(machine.doctor(PYTHONPATH="/opt/x")[0]["libraries"], "ok", "kept out: PYTHONPATH", str(own))
    cuda = machine.home / "cuda-12.4" / "lib"
    cuda.mkdir(parents=True)
    (cuda / "libcudart.so.12").touch()
    told(machine.doctor(LD_LIBRARY_PATH=str(cuda))[0]["libraries"], "ok", "kept out: LD_LIBRARY_PATH")
    preloaded = machine.doctor(LD_PRELOAD=f"/nowhere.so:{cuda}/libcudart.so.12")[0]["libraries"]
    told(preloaded, "warning", str(cuda), "unset LD_PRELOAD")
    told(machine.doctor(CONDA_PREFIX=str(cuda.parent))[0]["libraries"], "warning", "conda deactivate")
    told(machine.doctor(BNB_CUDA_VERSION="121")[0]["libraries"], "warning", "unset BNB_CUDA_VERSION")
    machine.files(**{"py/lib/python3.8/sitecustomize.py": ""})
    made = next(machine.cache.glob("env-*"))
    (made / "pyvenv.cfg").write_text(f"home = {machine.system}/py/bin\nversion = 3.8.18\n", encoding="utf-8")
    told(machine.doctor()[0]["libraries"], "warning", "sitecustomize.py", "PYTHON38=")


def test_an_environment_that_lost_its_python(machine, measured):
    """The cache outlives the interpreter, on a disk of its own or over an upgrade: it is no environment to choose."""
    measured(**{**LITTLE, "environment": 1e6})
    assert "environment" not in machine.doctor()[0]
    for made in machine.cache.glob("env-*"):
        (made / "bin/python").unlink()
        (made / "bin/python").symlink_to("/nowhere/python3.8")
    lines, found = machine.doctor()
    told(lines["environment"], "warning", "is gone or does not start", "keeps its packages")
    assert found["runtime"] == "host"
    told(disk(machine), "ok")  # its packages are there
    machine.has(docker=docker())
    assert machine.doctor()[1]["runtime"] == "docker"  # as where none was made


def test_certificates_that_are_not_there(machine):
    assert "certificate" not in machine.doctor()[0]
    own = str(machine.system / "etc/os-release")
    told(machine.doctor(REQUESTS_CA_BUNDLE=own)[0]["certificate"], "ok", own)
    lines = machine.doctor(REQUESTS_CA_BUNDLE=own, SSL_CERT_FILE="/nowhere/ca.pem")[0]
    told(lines["certificate"], "warning", "SSL_CERT_FILE=/nowhere/ca.pem: there is no such file", "unset SSL_CERT_FILE")


def test_a_user_without_a_home(machine):
    """A Kubernetes uid: no line is missing for it, and uv's cache counts as part of ours."""
    names = {line["name"] for line in machine.doctor()[1]["checks"]}
    machine.variables["HOME"] = "/dev/null/home"
    assert {line["name"] for line in machine.doctor()[1]["checks"]} == names


def test_the_environment_is_tried_where_it_is_made(machine):
    """On this machine or in our image; before a stage, which meets it by itself, and without a card it is not."""
    machine.has(nvidia_smi=nvidia_smi(B200))
    told(machine.doctor()[0]["deepspeed"], "ok", "can be imported")
    machine.selftest("printf 'noise\\nstop\\tdeepspeed\\tMissingCUDAException\\tmake it again\\n'; exit 3")
    told(machine.doctor()[0]["deepspeed"], "stop", "MissingCUDAException", "make it again")
    assert "deepspeed" not in machine.run("--before", "train").stderr
    assert "deepspeed" not in machine.doctor("demo")[0]
    machine.selftest("echo cannot; exit 1")
    told(machine.doctor()[0]["selftest"], "warning", "cannot", "makes it again")
    machine.has(docker=docker(runtimes='{"nvidia":{}}', images="internlm2-recipe:1", run=("GPU 0: one", 0)))
    told(machine.doctor(RUNTIME="docker")[0]["deepspeed"], "ok", "can be imported")


def test_a_compiler_is_asked_for_before_the_environment_is_made(machine):
    machine.has(nvidia_smi=nvidia_smi(B200))
    assert "warning  compiler   there is no C compiler" in machine.run("--before", "train").stderr
    for made in machine.cache.glob("env-cu13*"):
        shutil.rmtree(str(made))
    without = machine.doctor()[0]
    told(without["compiler"], "warning", "no C compiler", "sudo apt-get install -y gcc libc6-dev")
    assert "compiler" not in machine.doctor("coach", "train.speed=stock")[0]
    assert "compiler" not in machine.doctor(VARIANT="cu118")[0]
    machine.has(gcc="#!/bin/sh\n", python3_12=f"#!/bin/sh\necho {machine.home}\n")
    (machine.programs / "python3-12").rename(machine.programs / "python3.12")
    told(machine.doctor()[0]["compiler"], "warning", "no headers", "sudo apt-get install -y python3.12-dev")
    (machine.home / "Python.h").touch()
    lines = machine.doctor()[0]
    told(lines["compiler"], "ok")
    assert lines["gpu memory"] != without["gpu memory"]  # without a compiler layers are recomputed


def test_proxies_are_shown_without_passwords(machine):
    lines, _ = machine.doctor(https_proxy="http://me:secret@127.0.0.1:7890")
    told(lines["proxy"], "ok", "https_proxy=http://…@127.0.0.1:7890")
    assert "secret" not in json.dumps(lines)
    told(machine.doctor(all_proxy="socks5://127.0.0.1:1080")[0]["proxy"], "warning", "SOCKS", "unset all_proxy")


def test_tools(machine):
    """Where just and uv are not here yet, a Python with pip must fetch them."""
    told(machine.doctor()[0]["tools"], "ok", "are here")
    (machine.tools / "uv").unlink()
    bare = machine.home / "python3"  # without pip, whatever this machine's has
    (machine.home / "sitecustomize.py").write_text("import sys; sys.modules['pip'] = None\n", encoding="utf-8")
    bare.write_text(f'#!/bin/sh\nPYTHONPATH={machine.home} exec {sys.executable} "$@"\n', encoding="utf-8")
    bare.chmod(0o755)
    machine.variables["PYTHON"] = str(bare)
    machine.has(python3="#!/bin/sh\nexit 1\n")
    told(machine.doctor()[0]["tools"], "stop", "no Python 3.8 or newer with pip", "sudo apt-get install -y python3-pip")
    machine.has(python3="#!/bin/sh\nexit 0\n")
    told(machine.doctor()[0]["tools"], "ok", "will fetch", str(machine.programs / "python3"))
    machine.has(python3=older_python())
    told(machine.doctor()[0]["tools"], "stop", "no Python 3.8 or newer with pip")
    machine.files(**{"etc/os-release": "ID=arch\n"})
    told(machine.doctor()[0]["tools"], "stop", "sudo pacman -S python-pip")


@pytest.mark.skipif(sys.version_info >= (3, 11), reason="this Python reads TOML by itself")
def test_without_a_reader_of_toml(machine):
    """Then it says what it could not estimate; the environment's own reader serves as soon as there is one."""
    bare = machine.home / "python3"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n', encoding="utf-8")
    bare.chmod(0o755)
    machine.variables["PYTHON"] = str(bare)
    machine.has(nvidia_smi=nvidia_smi(RTX_3090))
    lines, _ = machine.doctor()
    told(lines["recipe"], "warning", "coach was not read", "newer pip")
    told(lines["gpu memory"], "ok", "was not read")
    assert "disk" not in lines
    assert machine.run("--before", "demo").returncode == 0
    import tomli

    place = next(machine.cache.glob("env-*")) / "lib/python3.8/site-packages"
    shutil.copytree(os.path.dirname(tomli.__file__), str(place / "tomli"))
    lines, _ = machine.doctor()
    assert "recipe" not in lines
    told(lines["gpu memory"], "ok", "coach takes about ")


def test_no_python_is_said_by_the_starter(machine):
    done = machine.run(PYTHON="/nowhere/python3")
    assert done.returncode == 3
    assert "Python 3.8" in done.stderr
    done = machine.run("--before", "train", PYTHON="/nowhere/python3")  # docker alone needs none
    assert (done.returncode, done.stderr) == (0, "")


def disk(machine, *words):
    return machine.doctor(*words)[0]["disk"]


def disk_before(machine, stage):
    """The status of the disk, as it is printed before a stage; "" where it is not a warning or a stop."""
    return "".join(re.findall(r"(?m)^(\w+) +disk ", machine.run("--before", stage).stderr))


def test_a_fault_of_its_own_keeps_nobody_from_training(machine, measured):
    measured()  # no sizes at all
    done = machine.run("--before", "train")
    assert done.returncode == 0
    assert done.stderr.startswith("doctor: unexpected: KeyError")
    assert machine.run().returncode == 1


def test_help_needs_no_check(machine):
    assert machine.run("--before", "train", "--help").stdout.startswith("Usage: just train")
    assert machine.run("--help").stdout.startswith("Usage: just doctor")


def test_disk(machine, measured):
    measured(**LITTLE)
    told(disk(machine), "ok", "model 0.0", "merged model 0.0")
    measured(**{**LITTLE, "merged": 1e6})
    told(disk(machine), "warning", "enough to train, not to merge")
    assert disk_before(machine, "train") == "warning"
    assert disk_before(machine, "merge") == "stop"
    (machine.root / "output/coach/merged").mkdir(parents=True)  # what is there is not asked for again
    assert disk_before(machine, "merge") == ""
    measured(**{**LITTLE, "model": 1e6})
    told(disk(machine), "stop", "model 1000000.0")
    told(disk(machine, "model.path=/somewhere"), "ok")
    (machine.root / "models/Shanghai_AI_Laboratory/internlm2-chat-7b").mkdir(parents=True)
    told(disk(machine), "ok")
    measured(**{**LITTLE, "environment": 1e6})
    told(disk(machine), "ok")
    without_environment(machine)
    told(disk(machine), "stop", "environment 1000003.0")
    told(disk(machine, "model.id=internlm/internlm2-20b", "base=internlm2_20b_qlora_oasst1_e3"), "stop")


def test_what_cannot_be_written(machine):
    if os.getuid() == 0:  # root may write everywhere: a file stands where a folder must come
        (machine.home / "file").touch()
        lines, _ = machine.doctor(RECIPE_CACHE=str(machine.home / "file" / "cache"))
    else:
        machine.cache.chmod(0o500)
        lines, _ = machine.doctor()
    told(lines["rights"], "stop", "cannot write", "RECIPE_CACHE")


def test_it_is_quick(machine, measured):
    """What train asks first must not be felt: less than a second of all processes together when all is well."""
    measured(**LITTLE)
    without_environment(machine)
    machine.has(nvidia_smi=nvidia_smi(RTX_3090), docker=docker(runtimes=NVIDIA), podman=podman())
    spent = os.times()
    done = machine.run("--before", "train")
    assert (done.returncode, done.stderr) == (0, "")
    after = os.times()
    assert after.children_user + after.children_system - spent.children_user - spent.children_system < 1


def test_what_is_fetched_already_is_looked_for_where_it_gathers(monkeypatch, tmp_path):
    """By the doctor as by the model stage, for both hubs: files that exist are not counted again."""
    from recipe.base_model import folder, record
    from recipe.core import settings
    from recipe.core.run import Run

    monkeypatch.syspath_prepend(str(ROOT / "docker" / "doctor"))
    import needs

    _, coach = settings.load("coach")
    monkeypatch.setattr(needs, "ROOT", tmp_path)

    def looked_for(source):
        """As the doctor and as the model stage has it: the download's folder and the model's."""
        recipe = settings.replace(coach, "model.source", source)
        need, run = (
            needs.Need("coach", recipe.model_dump(), "train", "output"),
            Run("coach", recipe, tmp_path, tmp_path),
        )
        assert (need.partly, need.model) == (record.staging_folder(run), folder.folder(run))
        return need.model

    first, second = "Shanghai_AI_Laboratory/internlm2-chat-7b", "internlm/internlm2-chat-7b"
    for source in ("modelscope", "huggingface", "auto"):
        assert looked_for(source) == tmp_path / "models" / first
    begun = tmp_path / "models" / ".download" / "huggingface" / second
    begun.mkdir(parents=True)
    record.save_record(begun, {
        "source": "huggingface", "id": second, "revision": coach.model.huggingface.revision, "commit": "", "files": {},
    })  # fmt: skip
    assert looked_for("auto") == tmp_path / "models" / second
    (tmp_path / "models" / second).mkdir(parents=True)
    assert looked_for("auto") == tmp_path / "models" / second
    (tmp_path / "models" / first).mkdir(parents=True)
    assert looked_for("auto") == tmp_path / "models" / first
