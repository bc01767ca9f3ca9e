"""Container engines on machines that are not here: which is chosen, what the doctor says of it, how it is called.

The programs are stand-ins: for the choice those of support/stand_in_machine.py, for the calls one that
prints its arguments.
"""

import json
import os
import re
import subprocess

import pytest

from support.command import ROOT
from support.stand_in_machine import (
    DOCKER_DOWN,
    IN_WSL,
    NVIDIA,
    PULLED,
    RTX_3090,
    Machine,
    clone_for_the_doctor,
    docker,
    fails,
    nvidia_smi,
    podman,
    told,
    without_environment,
)  # fmt: skip

CARD = {"nvidia_smi": nvidia_smi(RTX_3090)}


CDI = "cdiVersion: 0.5.0\nkind: nvidia.com/gpu\n"


# As NVIDIA Container Toolkit 1.19 writes it.
WITH_GIDS = "cdiVersion: 0.7.0\nkind: nvidia.com/gpu\ndevices:\n- containerEdits:\n    additionalGids:\n    - 44\n"


APPTAINER = "#!/bin/sh\necho apptainer version 1.3.4\n"


FLAG = "nvidia-ctk cdi generate --feature-flag=no-additional-gids-for-device-nodes --output=/etc/cdi/nvidia.yaml"


DESKTOP = docker(system="Docker Desktop")


ADDRESSES = [
    "http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "PIP_INDEX_URL", "UV_DEFAULT_INDEX", "TORCH_INDEX",
    "HF_ENDPOINT", "MODELSCOPE_DOMAIN", "GITHUB_RAW",
]  # fmt: skip


# Programs, files, variables; which runtime is chosen; of each engine that is passed over, what the doctor says.
SITUATIONS = {
    "nothing": ({}, {}, {}, "host", {}),
    "podman without ids, apptainer": (
        {"podman": podman(), "apptainer": APPTAINER}, {"etc/subuid": ""}, PULLED,
        "apptainer", {"podman": ["/etc/subuid", "--add-subuids"]},
    ),
    "podman without ids": (
        {"podman": podman()}, {"etc/subuid": "other:100000:65536\n"}, {},
        "host", {"podman": ["/etc/subuid", "--add-subuids"]},
    ),
    "podman with a home on NFS, apptainer": (
        {"podman": podman(), "apptainer": APPTAINER}, {"proc/mounts": "server:/home /home nfs4 rw 0 0\n"}, PULLED,
        "apptainer", {"podman": ["/home/tester/.local/share/containers/storage on NFS", "storage.conf"]},
    ),
    "podman 3.4, a card, apptainer": (
        {**CARD, "podman": podman("3.4.4"), "apptainer": APPTAINER}, {"etc/cdi/nvidia.yaml": CDI}, PULLED,
        "apptainer", {"podman": ["3.4.4 knows no CDI", "update podman"]},
    ),
    "podman 3.4 without a card": ({"podman": podman("3.4.4")}, {}, {}, "podman", {}),
    "podman 4.9, toolkit 1.19": (
        {**CARD, "podman": podman("4.9.3")}, {"etc/cdi/nvidia.yaml": WITH_GIDS}, {},
        "host", {"podman": ["4.9.3 cannot read", "additionalGids", FLAG, "podman 5.1", "toolkit 1.18"]},
    ),
    "podman 4.9, toolkit 1.19 and its service": (
        {**CARD, "podman": podman("4.9.3")},
        {"var/run/cdi/nvidia.json": json.dumps({"cdiVersion": "0.7.0", "kind": "nvidia.com/gpu"}),
         "etc/nvidia-container-toolkit/nvidia-cdi-refresh.env": ""}, {},
        "host", {"podman": ["NVIDIA_CTK_CDI_GENERATE_FEATURE_FLAGS=no-additional-gids-for-device-nodes | sudo tee -a",
                            "systemctl restart nvidia-cdi-refresh.service"]},
    ),
    "podman 5.0, toolkit 1.19": (
        {**CARD, "podman": podman("5.0.3")}, {"etc/cdi/nvidia.yaml": WITH_GIDS}, {},
        "host", {"podman": ["5.0.3 cannot read", FLAG]},
    ),
    "podman 5.1, toolkit 1.19": (
        {**CARD, "podman": podman("5.1.0")}, {"etc/cdi/nvidia.yaml": WITH_GIDS}, {}, "podman", {},
    ),
    "podman 4.9, one file that it can read": (
        {**CARD, "podman": podman("4.9.3")}, {"var/run/cdi/nvidia.yaml": WITH_GIDS, "etc/cdi/nvidia.yaml": CDI}, {},
        "podman", {},
    ),
    "podman without CDI": ({**CARD, "podman": podman()}, {}, {}, "host", {"podman": ["nvidia-ctk cdi generate"]}),
    "podman without CDI, no GPU wanted": ({**CARD, "podman": podman()}, {}, {"GPUS": "none"}, "podman", {}),
    "apptainer without an image": (
        {"apptainer": APPTAINER}, {}, {},
        "host", {"apptainer": ["no image file", "just image save", "apptainer build"]},
    ),
    "docker down, apptainer without an image": (
        {"docker": fails(DOCKER_DOWN, 1), "apptainer": APPTAINER}, {}, {"RECIPE_IMAGE": "/nowhere.sif"},
        "host", {"docker": ["does not answer"], "apptainer": ["/nowhere.sif"]},
    ),
    "Docker Desktop on Linux, a card": (
        {**CARD, "docker": DESKTOP}, {"usr/bin/nvidia-container-runtime-hook": ""}, {},
        "host", {"docker": ["Docker Desktop on Linux", "virtual machine", "docker context use default"]},
    ),
    "Docker Desktop on Linux, a card, podman": (
        {**CARD, "docker": DESKTOP, "podman": podman()}, {"etc/cdi/nvidia.yaml": CDI}, {},
        "podman", {"docker": ["Docker Desktop on Linux"]},
    ),
    "Docker Desktop on Linux": ({"docker": DESKTOP}, {}, {}, "docker", {}),
    "Docker Desktop in WSL": ({**CARD, "docker": DESKTOP}, IN_WSL, {}, "docker", {}),
    "docker elsewhere": (
        {"docker": docker()}, {}, {"DOCKER_HOST": "ssh://me@far"}, "host", {"docker": ["ssh://me@far", "DOCKER_HOST"]},
    ),
    "docker without the toolkit": (
        {**CARD, "docker": docker()}, {"etc/cdi/nvidia.yaml": CDI}, {},
        "host", {"docker": ["lacks the NVIDIA Container Toolkit", "nvidia-ctk runtime configure"]},
    ),
    "docker with the toolkit, userns-remap": (
        {**CARD, "docker": docker(runtimes=NVIDIA, security="userns")}, {}, {}, "docker", {},
    ),
}  # fmt: skip


@pytest.fixture
def machine(tmp_path):
    made = Machine(tmp_path)
    without_environment(made)
    return made


def of_engine(found, engine):
    return [line for line in found["checks"] if line["name"].split(" ")[0] == engine]


@pytest.mark.parametrize("situation", SITUATIONS)
def test_the_doctor_and_the_chooser_agree(machine, situation):
    """What is chosen has no fault; what is passed over has one, which stops where RUNTIME names that engine. Choosing
    takes no Python.
    """
    programs, files, variables, chosen, faults = SITUATIONS[situation]
    machine.has(**programs)
    machine.files(**files)
    done = machine.run(program="docker/runtime/choose", **variables, PYTHON="/nowhere")
    assert done.stdout == f"{chosen}\n", done.stderr
    reason = done.stderr.partition(": ")[2].strip()
    passed_over = reason.partition("passed over: ")[2]
    assert {engine for engine in ("docker", "podman", "apptainer") if f"{engine} (" in passed_over} == set(faults)
    _, found = machine.doctor(**variables)
    assert (found["runtime"], found["reason"]) == (chosen, reason)
    for engine in (engine for engine in ("docker", "podman", "apptainer") if engine in programs):
        lines = of_engine(found, engine)
        if engine in faults:
            told(lines[-1], "warning", *faults[engine])
            forced = of_engine(machine.doctor(**variables, RUNTIME=engine)[1], engine)
            told(forced[-1], "stop", *faults[engine], "RUNTIME=host")
        elif engine == chosen:
            assert lines
            assert {line["status"] for line in lines} == {"ok"}, lines


def test_a_demo_is_told_how_to_run_without_the_gpu_that_its_engine_lacks(machine):
    machine.has(**CARD, docker=docker())
    told(machine.doctor("tiny", RUNTIME="docker")[0]["docker gpu"], "stop", "GPUS=none, as tiny needs no GPU")
    assert "docker gpu" not in machine.doctor("tiny")[0]  # it runs on the host
    assert "docker gpu" not in machine.doctor("tiny", RUNTIME="docker", GPUS="none")[0]


def test_a_clone_that_dockers_daemon_cannot_reach(machine, tmp_path):
    """A home on NFS, where root counts as nobody; a FUSE file system of the user's own."""
    home = tmp_path / "my disk" / "me"
    machine.root = clone_for_the_doctor(home / "clone")
    machine.has(docker=docker(), id="#!/bin/sh\n[ $1 = -u ] && echo 1000 || echo tester\n")
    point = str(home.parent).replace(" ", "\\040")
    home.chmod(0o700)
    for mounts, chosen, folder in (
        (f"disk / ext4 rw 0 0\nserver:/home {point} nfs4 rw,vers=4.2 0 0\n", "host", home),
        (f"sshfs {point} fuse.sshfs rw,user_id=1000 0 0\n", "host", home.parent),
        (f"sshfs {point} fuse.sshfs rw,user_id=1000,allow_other 0 0\n", "docker", None),
        (f"server:/home {point} nfs4 rw 0 0\ndisk {point} ext4 rw 0 0\n", "docker", None),
        ("disk / ext4 rw 0 0\n", "docker", None),
    ):
        machine.files(**{"proc/mounts": mounts})
        lines, found = machine.doctor()
        assert found["runtime"] == chosen
        if folder:
            assert "docker (its daemon cannot reach" in found["reason"]
            told(lines["docker"], "warning", str(folder), "chmod o+x")
            told(machine.doctor(RUNTIME="docker")[0]["docker"], "warning", str(folder))  # the server may allow it
        else:
            told(lines["docker"], "ok", "24.0.7")
    # The clone may be elsewhere and the model there.
    machine.root = ROOT
    machine.files(**{"proc/mounts": f"server:/home {point} nfs4 rw 0 0\n"})
    told(machine.doctor("coach", f"model.path={home}/model")[0]["docker"], "warning", str(home), "NFS")
    machine.has(docker=docker(security="seccomp name=rootless"))
    told(machine.doctor("coach", f"model.path={home}/model")[0]["docker"], "ok")
    home.chmod(0o755)
    machine.has(docker=docker())
    told(machine.doctor("coach", f"model.path={home}/model")[0]["docker"], "ok")


def test_a_model_that_a_group_shares(tmp_path, monkeypatch):
    """Rootless engines leave the user's further groups behind, but for podman with crun."""
    monkeypatch.syspath_prepend(str(ROOT / "docker/doctor"))
    import engines
    from lines import stop
    from machine import Host
    from needs import Need

    model = tmp_path / "model"
    model.mkdir()
    weights = model / "weights"
    weights.touch()
    need = Need("coach", {"model": {"path": str(model)}}, "", str(tmp_path))
    group = os.stat(str(model)).st_gid
    for name, value in (("geteuid", 4711), ("getegid", 4711), ("getgroups", [4711, group])):
        monkeypatch.setattr(os, name, lambda value=value: value)

    def told_of(runtime, traits):
        engine = engines.Engine("ok", "", "1", "", traits)
        choice = engines.Choice(runtime, "", {runtime: engine}, set(), "")
        return engines._check_rights(Host(), need, choice, stop)

    for folder, file, place in ((0o755, 0o644, None), (0o750, 0o640, model), (0o755, 0o640, weights)):
        model.chmod(folder)
        weights.chmod(file)
        for runtime, traits, keeps in (
            ("podman", "runc rootless", False),
            ("docker", " rootless", False),
            ("podman", "crun rootless", True),
            ("podman", "runc", True),
            ("docker", " userns", True),
        ):
            lines = told_of(runtime, traits)
            if keeps or place is None:
                assert not lines
            else:
                told(lines[0]._asdict(), "stop", f"can only access {place} through the group", "chmod -R o+rX")
                assert ("crun" in lines[0].remedy) is (runtime == "podman")


def printing(folder, name, more=""):
    """A program `name` that prints its arguments, one a line."""
    program = folder / name
    program.write_text(f'#!/bin/sh\n{more}\nprintf "%s\\n" "$@"\n')
    program.chmod(0o755)


@pytest.fixture
def called(tmp_path):
    """Function: how `script` calls an engine, for a user who also belongs to the groups 4712 and 4713."""
    folder = tmp_path / "programs"
    folder.mkdir()

    def call(script, *words, user=4711, security="name=seccomp", code=0, then="", **variables):
        answers = f'case "$*" in "info"*) echo "{security}"; exit ;; "image inspect"*) echo sha256:1; exit ;; esac'
        for engine in ("docker", "podman", "apptainer"):
            printing(folder, engine, f"{answers}\n{then}")
        printing(folder, "id", f'case $1 in -G) echo "{user} 4712 4713" ;; -u | -g) echo {user} ;; esac; exit')
        image = tmp_path / "image.sif"
        image.touch()
        environment = {
            **os.environ, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", "RECIPE_CACHE": str(tmp_path / "cache"),
            "RECIPE_IMAGE": str(image), "VARIANT": "cu118", "TORCH": "pypi", "GPUS": "none",
            **dict.fromkeys(ADDRESSES, ""), **variables,
        }  # fmt: skip
        done = subprocess.run(
            [str(ROOT / script), *words], env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=60,
        )  # fmt: skip
        assert done.returncode == code, done.stderr
        return done.stderr if code else f"\n{done.stdout}"

    call.folder = folder
    return call


def test_the_users_groups_go_along(called):
    plan = ("run", "plan", "tiny")
    added = "\n--group-add\n4712\n--group-add\n4713\n"
    kept = "\n--annotation\nrun.oci.keep_original_groups=1\n"  # what podman makes of `--group-add keep-groups`
    said = called("docker/runtime/docker", *plan)
    assert "\n--user\n4711:4711\n" in said
    assert added in said
    assert "--userns" not in said
    said = called("docker/runtime/docker", *plan, security="name=seccomp name=userns")
    assert "\n--userns\nhost\n" in said
    assert added in said
    said = called("docker/runtime/docker", *plan, security="name=seccomp name=rootless")
    assert "\n--user\n0:0\n" in said
    assert "--group-add" not in said
    said = called("docker/runtime/podman", *plan)
    assert f"\n--user\n0:0{kept}" in said
    assert "--group-add" not in said
    assert added in called("docker/runtime/podman", *plan, user=0)


@pytest.mark.parametrize("engine", ["docker", "podman"])
def test_a_proxy_of_this_machines_own_is_reached_while_fetching_alone(called, engine):
    for address, is_own in (
        ("http://127.0.0.1:7890", True),
        ("http://me:secret@LOCALHOST:7890/", True),
        ("[::1]:7890", True),
        ("127.0.1.1", True),
        ("http://10.0.0.1:7890", False),
        ("http://127.0.0.1.example:7890", False),
        ("http://localhost:x@proxy:1", False),
    ):
        said = called(f"docker/runtime/{engine}", "run", "model", "tiny", RECIPE_FETCH="yes", https_proxy=address)
        assert ("\n--network\nhost\n" in said) is is_own, address
    own = {"https_proxy": "http://127.0.0.1:7890"}
    assert "\n--network\nhost\n" in called(
        f"docker/runtime/{engine}", "run", "model", RECIPE_FETCH="yes", HF_ENDPOINT="localhost:1"
    )
    web = called(f"docker/runtime/{engine}", "run", "web", "tiny", "port=8765", RECIPE_FETCH="model", **own)
    assert "\n--network\nhost\n" in web
    assert "--publish" not in web
    for stage in ("train", "chat"):
        assert "\n--network\nnone\n" in called(f"docker/runtime/{engine}", "run", stage, "tiny", **own)
    assert "--network" not in called(f"docker/runtime/{engine}", "run", "web", "tiny", "port=8765", **own)
    manifest = {"RUNTIME": engine}
    assert "\n--network\nhost\n" in called("docker/image", "build", "bare", **manifest, **own)
    assert "--network" not in called("docker/image", "build", "bare", no_proxy="localhost", **manifest)
    if engine == "docker":
        refused = called("docker/image", "build", "bare", security="name=userns", code=3, **manifest, **own)
        assert "https_proxy is an address of this machine's own" in refused


@pytest.mark.parametrize("engine", ["docker", "podman", "apptainer"])
def test_a_missing_workbook_is_fetched_by_a_container_that_may_write_data(called, engine):
    def sights(said):
        """(network, data, models): what a container may use and write."""
        writable = [
            not re.search(rf"{re.escape(str(ROOT / name))}(,readonly|:ro)\n", said) for name in ("data", "models")
        ]
        return "\n--network\nnone\n" not in said, *writable

    script = f"docker/runtime/{engine}"
    assert sights(called(script, "run", "plan", "coach", RECIPE_FETCH="no")) == (False, False, False)
    assert sights(called(script, "run", "plan", "coach", RECIPE_FETCH="workbook")) == (True, True, False)
    assert sights(called(script, "run", "plan", "coach", RECIPE_FETCH="model")) == (True, False, True)
    # A stage that lacks the workbook ends with 78: it is fetched, then the stage runs again.
    mark = called.folder / "fetched"
    then = f'[ "$RECIPE_FETCH" != workbook ] || touch {mark}; [ -e {mark} ] || exit 78'
    said = called("docker/runtime/run", "plan", "coach", then=then, RUNTIME=engine)
    assert [sights(part) for part in said.split("\nplan\ncoach\n")[:-1]] == [(True, True, False), (False, False, False)]
    then = '[ "$RECIPE_FETCH" = workbook ] || exit 78'
    lost = called("docker/runtime/run", "plan", "coach", then=then, code=3, RUNTIME=engine)
    assert "(workbook) is still not found. Look at what data.files" in lost


def test_a_proxy_that_docker_cannot_reach_is_told_before_anything_is_built(machine):
    for engine, words in (
        (docker(security="rootless"), ["https_proxy", "out of reach of rootless docker", "RUNTIME=host"]),
        (docker(security="userns"), ["out of reach of docker's builds under userns-remap"]),
        (docker(system="Docker Desktop"), ["out of reach of Docker Desktop"]),
        (docker(), None),
    ):
        machine.has(docker=engine)
        line = machine.doctor(https_proxy="http://127.0.0.1:7890")[0]["proxy"]
        told(line, "warning" if words else "ok", *(words or []))
        told(machine.doctor(https_proxy="http://10.0.0.1:7890")[0]["proxy"], "ok")


def test_apptainers_temporary_files_have_a_disk(called, tmp_path):
    """Its own /tmp lies in memory, with room for 64 MiB."""
    said = called("docker/runtime/apptainer", "run", "plan", "tiny")
    work = said.split("\n--workdir\n")[1].split("\n")[0]
    assert work.startswith(f"{tmp_path}/cache/apptainer-work/4711-{os.uname().nodename}/")  # the stand-in `id`
    assert os.path.isdir(work)
    (tmp_path / "cache/apptainer-work/elsewhere/1").mkdir(parents=True)
    again = called("docker/runtime/apptainer", "run", "plan", "tiny").split("\n--workdir\n")[1].split("\n")[0]
    assert os.path.isdir(again)
    assert os.path.isdir(work)  # another PID namespace's runs cannot be told from ended ones
    os.utime(work, (0, 0))
    called("docker/runtime/apptainer", "run", "plan", "tiny")
    assert not os.path.exists(work)
    assert (tmp_path / "cache/apptainer-work/elsewhere/1").is_dir()  # another machine's


@pytest.mark.parametrize("said", ["setpriv: unrecognized option '--pdeathsig'", "setpriv: unknown option"])
def test_a_setpriv_that_knows_no_death_signal(called, said):
    """Older than util-linux 2.33, or busybox's."""
    program = called.folder / "setpriv"
    program.write_text(f'#!/bin/sh\ncase $1 in --pdeathsig) echo "{said}" >&2; exit 1 ;; esac\nexec "$@"\n')
    program.chmod(0o755)
    assert "\nplan\ntiny\n" in called("docker/runtime/run", "plan", "tiny", RUNTIME="docker")


def test_several_gpus_want_shared_memory(machine, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docker/doctor"))
    monkeypatch.setenv("DOCTOR_ROOT", str(machine.system))
    import machine as checks
    from needs import Need

    def size(mib):
        monkeypatch.setattr(checks.os, "statvfs", lambda place: os.statvfs_result((4096, 4096, mib * 256) + (0,) * 7))

    for mib, gpus, status in (
        (63, 1, "warning"),
        (64, 1, "ok"),
        (64, 2, "warning"),
        (1023, 8, "warning"),
        (1024, 8, "ok"),
    ):
        size(mib)
        (line,) = checks.check_shared_memory(checks.Host(), Need("coach", {"gpus": gpus}, "", "output"), "host")
        assert line.status == status, line
        if status == "warning":
            told(line._asdict(), "warning", f"{mib} MiB", "--shm-size=1g")
