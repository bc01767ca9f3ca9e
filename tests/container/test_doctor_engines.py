"""`just doctor` on container engines, and which of them is chosen."""

import pytest

from support.stand_in_machine import (
    DOCKER_DOWN,
    IN_WSL,
    LITTLE,
    MISMATCH,
    NVIDIA,
    PULLED,
    RTX_3090,
    docker,
    fails,
    nvidia_smi,
    podman,
    told,
    without_environment,
)

DOCKER_DENIED = (
    "permission denied while trying to connect to the Docker daemon socket at unix:///var/run/docker.sock: Get "
    '"http://%2Fvar%2Frun%2Fdocker.sock/v1.24/info": dial unix /var/run/docker.sock: connect: permission denied'
)


NO_DRIVER = 'docker: Error response from daemon: could not select device driver "" with capabilities: [[gpu]].'


NO_CDI = "Error: setting up CDI devices: unresolvable CDI devices nvidia.com/gpu=all"


NO_LIBRARY = (
    "docker: Error response from daemon: failed to create task for container: failed to create shim task: OCI runtime "
    "create failed: runc create failed: unable to start container process: error during container init: error running "
    "hook #0: error running hook: exit status 1, stdout: , stderr: Auto-detected mode as 'legacy'\n"
    "nvidia-container-cli: initialization error: load library failed: libnvidia-ml.so.1: cannot open shared object "
    "file: no such file or directory: unknown."
)


NO_VENDOR = (
    "docker: Error response from daemon: failed to discover GPU vendor from CDI: no known GPU vendor found\n\n"
    "Run 'docker run --help' for more information"
)


SELINUX = "Failed to initialize NVML: Insufficient Permissions"


NEW = "docker: Something new went wrong.\n\nRun 'docker run --help' for more information"


NO_PROGRAM = 'exec: "nvidia-smi": executable file not found in $PATH: unknown.'


TOOLKIT = ["lacks the NVIDIA Container Toolkit", "sudo apt-get install -y nvidia-container-toolkit"]


IMAGE = "registry.example/me/internlm2-recipe:cu118"


@pytest.mark.parametrize(
    ("program", "engine", "words"),
    [
        (fails(DOCKER_DOWN, 1), "docker", ["does not answer", "systemctl enable --now docker"]),
        (fails(DOCKER_DENIED, 1), "docker", ["no right", "usermod -aG docker"]),
        (fails("Got " + DOCKER_DENIED, 1), "docker", ["no right", "usermod -aG docker"]),
        (docker(), "docker gpu", [*TOOLKIT, "nvidia-ctk runtime configure --runtime=docker"]),
        (docker(runtimes=NVIDIA, images=IMAGE, run=(NO_DRIVER, 125)), "docker gpu", TOOLKIT),
        (docker(runtimes=NVIDIA, images=IMAGE, run=(NO_LIBRARY, 127)), "docker gpu", ["no NVIDIA driver", "snap"]),
        (docker(runtimes=NVIDIA, images=IMAGE, run=(MISMATCH, 1)), "docker gpu", ["still loaded", "reboot"]),
        (docker(runtimes=NVIDIA, images=IMAGE, run=(NO_PROGRAM, 127)), "docker gpu", ["without the GPU", "nvidia-ctk"]),
        (docker(runtimes=NVIDIA, images=IMAGE, run=("", 0)), "docker gpu", ["without the GPU", "nvidia-ctk"]),
        (docker("29.1.0", runtimes=NVIDIA, images=IMAGE, run=(NO_VENDOR, 125)), "docker gpu",
         ["no CDI specification", "nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml"]),
        (docker(runtimes=NVIDIA, images=IMAGE, run=(SELINUX, 255)), "docker gpu", ["SELinux", "container_use_devices"]),
        (docker(runtimes=NVIDIA, images=IMAGE, run=(NEW, 125)), "docker gpu",
         ["Something new went wrong", "must work by itself first: docker run --rm --network none --gpus all"]),
    ],
    ids="down denied got-denied toolkit driver library mismatch program no-gpu cdi selinux unknown".split(),  # noqa: SIM905
)  # fmt: skip
def test_docker_faults(machine, program, engine, words):
    """Asked for, a fault stops; passed over by the choice of the runtime, it is a warning."""
    without_environment(machine)
    machine.has(nvidia_smi=nvidia_smi(RTX_3090), docker=program)
    lines, _ = machine.doctor(RUNTIME="docker")
    told(lines[engine], "stop", *words)
    lines, found = machine.doctor()
    if found["runtime"] == "host":
        told(lines[engine], "warning", *words)
        assert "passed over: docker" in found["reason"]
    else:
        assert "run)" in program  # only a container that was tried shows it


def test_docker_that_works(machine, measured):
    measured(**LITTLE)
    without_environment(machine)
    machine.has(nvidia_smi=nvidia_smi(RTX_3090))
    machine.has(docker=docker(runtimes=NVIDIA, images="other:1", run=("must not run", 1)))
    lines, found = machine.doctor()
    assert found["runtime"] == "docker"
    told(lines["docker"], "ok", "24.0.7")
    told(lines["docker gpu"], "ok", "a runtime nvidia is set up", "not tried", "just image")
    assert "image 3.0" in lines["disk"]["found"]
    machine.has(docker=docker(images=IMAGE, run=("GPU 0: NVIDIA GeForce RTX 3090 (UUID: GPU-1)", 0)))
    machine.files(**{"usr/bin/nvidia-container-runtime-hook": ""})
    lines, _ = machine.doctor()
    told(lines["docker gpu"], "ok", "a container of registry.example/me/internlm2-recipe:cu118 sees the GPU")
    assert "image" not in lines["disk"]["found"]
    # Before a stage no container is started: the stage's own comes next.
    machine.has(docker=docker(runtimes=NVIDIA, images=IMAGE, run=("must not run", 1)))
    assert machine.run("--before", "train").stderr == ""
    # Where the recipe needs no GPU, neither does the engine.
    machine.has(docker=docker())
    assert "docker gpu" not in machine.doctor("demo")[0]


def test_a_daemon_that_hangs_is_not_waited_for(machine):
    without_environment(machine)
    machine.has(docker="#!/bin/sh\ncase $1 in --version) echo Docker version 24.0.7 ;; *) exec sleep 60 ;; esac\n")
    machine.has(timeout='#!/bin/sh\nshift\ncase "$*" in *info*) exit 124 ;; esac\nexec "$@"\n')  # ten seconds, at once
    done = machine.run(program="docker/runtime/choose")
    assert done.stdout == "host\n"
    assert "does not answer" in done.stderr


@pytest.mark.parametrize(
    ("program", "cdi", "words"),
    [
        (podman(), None, ["silently ignored", "nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml"]),
        (
            podman(images=IMAGE, run=(NO_CDI, 126)),
            "nvidia.com/gpu",
            ["no CDI specification", "nvidia-ctk cdi generate"],
        ),
        (podman(images=IMAGE, run=("", 0)), "nvidia.com/gpu", ["started without the GPU", "nvidia-ctk cdi generate"]),
        (podman("3.4.4"), "nvidia.com/gpu", ["3.4.4 knows no CDI"]),
    ],
    ids=["no-cdi", "unresolvable", "ignored", "too-old"],
)
def test_podman_faults(machine, program, cdi, words):
    without_environment(machine)
    machine.has(nvidia_smi=nvidia_smi(RTX_3090), podman=program)
    if cdi:
        machine.files(**{"etc/cdi/nvidia.yaml": "cdiVersion: 0.5.0\nkind: nvidia.com/gpu\n"})
    lines, _ = machine.doctor(RUNTIME="podman")
    told(lines["podman"], "ok", "rootless")
    told(lines["podman gpu"], "stop", *words)


def test_podman_that_works_and_one_without_subordinate_ids(machine):
    without_environment(machine)
    machine.files(**{"var/run/cdi/nvidia.yaml": "cdiVersion: 0.5.0\nkind: nvidia.com/gpu\n"})
    machine.has(nvidia_smi=nvidia_smi(RTX_3090))
    machine.has(podman=podman(images=IMAGE, run=("GPU 0: NVIDIA GeForce RTX 3090 (UUID: GPU-1)", 0)))
    lines, found = machine.doctor()
    assert found["runtime"] == "podman"
    told(lines["podman gpu"], "ok", "sees the GPU")
    machine.files(**{"etc/subuid": ""})
    told(machine.doctor(RUNTIME="podman")[0]["podman"], "stop", "subuid", "--add-subuids 100000-165535", "tester")
    machine.files(**{"etc/nsswitch.conf": "subid: sss\n"})  # a directory service has the ranges
    assert machine.doctor()[0]["podman"]["status"] == "ok"
    machine.files(**{"etc/nsswitch.conf": ""})
    machine.has(podman=podman(rootless="false"))
    assert machine.doctor()[0]["podman"]["status"] == "ok"


@pytest.mark.parametrize(
    ("programs", "files", "variables", "chosen", "reason"),
    [
        ({}, {}, {}, "host", "no container engine is installed"),
        ({"docker": docker()}, {}, {}, "docker", "version 24.0.7"),
        ({"docker": docker(), "podman": podman()}, {}, {"RUNTIME": "podman"}, "podman", "set by RUNTIME"),
        ({"docker": fails(DOCKER_DOWN, 1), "podman": podman()}, {}, {}, "podman", "passed over: docker"),
        ({"docker": fails(DOCKER_DENIED, 1)}, {}, {}, "host", "no right to its socket"),
        ({"docker": docker(), "apptainer": "#!/bin/sh\n"}, {".dockerenv": ""}, {}, "host", "a container already"),
        ({"docker": docker()}, {}, {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, "host", "a container already"),
        ({"docker": docker()}, {"proc/1/cgroup": "12:pids:/docker/5f3c\n"}, {}, "host", "a container already"),
        ({"docker": docker()}, {}, {"RECIPE_ENV": "/opt/recipe"}, "host", "part of this image"),
        ({"docker": docker()}, {}, {"DOCKER_HOST": "ssh://me@far"}, "host", "on another machine"),
        ({"docker": docker()}, {"dev/nvidiactl": ""}, {}, "host", "no NVIDIA Container Toolkit"),
        ({"docker": docker(runtimes=NVIDIA)}, {"dev/nvidiactl": ""}, {}, "docker", "answers"),
        ({"docker": docker("28.0.1")}, {"dev/nvidiactl": "", "etc/cdi/a": "nvidia.com/gpu"}, {}, "host", "Toolkit"),
        ({"docker": docker("29.1.0")}, {"dev/nvidiactl": "", "etc/cdi/a": "nvidia.com/gpu"}, {}, "docker", "29.1.0"),
        ({"docker": docker(system="Docker Desktop")}, IN_WSL, {}, "docker", "answers"),
        ({"podman": podman()}, {"dev/nvidiactl": ""}, {}, "host", "no CDI specification"),
        ({"podman": podman()}, {"dev/nvidiactl": "", "etc/cdi/a.json": '"nvidia.com/gpu"'}, {}, "podman", "answers"),
        ({"podman": fails("boom", 125), "apptainer": "#!/bin/sh\n"}, {}, PULLED, "apptainer", "podman info fails"),
        ({"singularity": "#!/bin/sh\n"}, {}, PULLED, "apptainer", "singularity is installed"),
        # podman-docker: podman by another name
        ({"docker": podman(), "podman": podman()}, {}, {}, "podman", "version 4.3.1"),
    ],
)  # fmt: skip
def test_choice_of_the_runtime(machine, programs, files, variables, chosen, reason):
    without_environment(machine)
    machine.has(**programs)
    machine.files(**files)
    done = machine.run(program="docker/runtime/choose", **variables)
    assert (done.returncode, done.stdout) == (0, f"{chosen}\n"), done.stderr
    assert done.stderr.startswith(f"{chosen}: ")
    assert reason in done.stderr


def test_choice_of_an_unknown_runtime_and_of_the_environment_that_is_here(machine):
    done = machine.run(program="docker/runtime/choose", RUNTIME="lxc")
    assert (done.returncode, done.stdout) == (3, "")
    assert "docker, podman, apptainer or host" in done.stderr
    told(machine.doctor(RUNTIME="lxc")[0]["runtime"], "stop", "lxc")
    machine.has(docker=docker())
    done = machine.run(program="docker/runtime/choose")
    assert (done.stdout, "already made" in done.stderr) == ("host\n", True)
    for engine in ("docker", "podman", "apptainer"):
        (machine.programs / engine).unlink() if engine == "docker" else None
        told(machine.doctor(RUNTIME=engine)[0][engine], "stop", "not installed", "install")
