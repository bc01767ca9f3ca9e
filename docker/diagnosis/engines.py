"""Container engines: whether they answer, whether this user may use them, whether they hand the GPU on."""

import contextlib
import json
import os
import re
import shutil

from lines import JUST, ask, explain, numbers, ok, read, stop, system, text_of, warning

HOOK = "nvidia-container-runtime-hook"  # what dockerd looks for on its PATH to serve --gpus
TOOLKIT = (
    "install the NVIDIA Container Toolkit: add NVIDIA's repository (docs.nvidia.com/datacenter/cloud-native/"
    "container-toolkit), then {install} nvidia-container-toolkit && "
)
DOCKER = TOOLKIT + "sudo nvidia-ctk runtime configure --runtime=docker && sudo systemctl restart docker"
CDI = "sudo nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml"
NO_CDI = "no CDI specification names the GPU"
REMEDIES = {"docker": DOCKER, "podman": TOOLKIT + CDI}
LACKING = {
    "docker": "docker lacks the NVIDIA Container Toolkit",
    "podman": f"{NO_CDI}, and podman's --gpus would be ignored without a word",
}
FLAGS = {"docker": ("--gpus", "all"), "podman": ("--device", "nvidia.com/gpu=all")}
# Not all of docker info: for that the client asks every plugin of its own.
INFO = (
    '{"ServerVersion": {{json .ServerVersion}}, "OperatingSystem": {{json .OperatingSystem}}, '
    '"DockerRootDir": {{json .DockerRootDir}}, "Runtimes": {{json .Runtimes}}}'
)
IGNORED = "the container started without the GPU"
# What engines answer when a container asks for the GPU: (their words, what it means, the remedy).
ERRORS = (
    (r"could not select device driver|nknown (or invalid )?runtime (name|specified)", LACKING["docker"], DOCKER),
    (r"unresolvable CDI devices|nvidia\.com/gpu=all: no such file|GPU vendor from CDI", NO_CDI,
     CDI + " (the package nvidia-container-toolkit has nvidia-ctk)"),
    (r"[Dd]river/library version mismatch", "the driver was updated and the old one is still loaded",
     "reboot the machine"),
    (r"unsatisfied condition: cuda", "the driver is too old for the image", "update the driver"),
    (r"device rules|bpf_prog_query", "the toolkit may not set device rules (rootless, or too old for cgroup v2)",
     "rootless: sudo nvidia-ctk config --in-place --set nvidia-container-cli.no-cgroups=true; "
     "else update it: {install} nvidia-container-toolkit"),
    (r"nvidia-container-cli.*(libnvidia-ml|libcuda|driver)", "the engine finds no NVIDIA driver",
     "look at nvidia-smi first; docker from snap, and Docker Desktop on Linux, cannot see the driver: "
     "{install} docker.io"),
    (r"Insufficient Permissions", "SELinux keeps the container from the card",
     "sudo setsebool -P container_use_devices 1"),
    (r"unknown flag: --gpus", "docker is older than 19.03, which knows no GPUs", "update docker"),
    (r"executable file.* not found|nvidia-smi.*not found", IGNORED, "{usual}"),
)  # fmt: skip


def check_engines(host, need, runtime, reason, cards):
    """(lines, {root, image} of the chosen engine).

    Where the host was chosen for a reason of its own (a container, an environment that is here), engines do not
    matter; where RUNTIME names one, the others do not.
    """
    forced = os.environ.get("RUNTIME", "")
    lines, chosen = [], {}
    if runtime == "host" and "passed over" not in reason:
        return lines, chosen
    # podman-docker is podman by another name
    shim = bool(shutil.which("docker")) and "podman" in ask("docker", "--version").text
    for engine, check, package in (("docker", check_docker, "docker.io"), ("podman", check_podman, "podman")):
        if forced not in ("", engine) or (engine == "docker" and shim and not forced):
            continue
        if not shutil.which(engine):
            if forced:
                lines.append(stop(engine, "not installed", f"{host.install} {package}"))
            continue
        # One that was passed over is worth a word, not a stop.
        told, facts = check(host, need, bool(cards), stop if runtime == engine else warning)
        lines += told
        if runtime == engine:
            chosen = facts
            break
    if runtime == "apptainer":
        name = next((name for name in ("apptainer", "singularity") if shutil.which(name)), "")
        version = ask(name, "--version").text if name else ""
        missing = stop("apptainer", "not installed", f"{host.install} apptainer")
        lines.append(ok("apptainer", f"{version}; --nv takes the host's driver") if name else missing)
    return lines, chosen


def check_docker(host, need, has_gpu, fault):
    """(lines, {root, image}): the daemon answers, this user may use it, it hands the GPU on."""
    answer = ask("docker", "info", "--format", INFO)
    facts = {}
    with contextlib.suppress(ValueError):
        facts = json.loads(answer.text[answer.text.index("{") :])
    if answer.code == 124:
        return [fault("docker", answer.text, "sudo systemctl restart docker")], {}
    if answer.code or not facts.get("ServerVersion"):
        if "permission denied" in answer.text:
            remedy = "sudo usermod -aG docker $USER, then log in again (that group is as good as root)"
            return [fault("docker", "this user has no right to docker's socket", remedy)], {}
        remedy = "sudo systemctl enable --now docker"
        if host.wsl:
            remedy = "start Docker Desktop with its WSL integration for this distribution, or: " + remedy
        return [fault("docker", "its daemon does not answer", remedy)], {}
    lines, image = [ok("docker", f"daemon {facts['ServerVersion']}")], _image("docker")
    if has_gpu and need.gpu:
        signs = {
            "a runtime nvidia is set up": "nvidia" in (facts.get("Runtimes") or {}),
            "the toolkit is installed": shutil.which(HOOK) or os.path.exists(system(f"/usr/bin/{HOOK}")),
            "a CDI specification names the GPU": numbers(facts["ServerVersion"]) >= (29,) and bool(_cdi()),
            "Docker Desktop brings its own toolkit": "Docker Desktop" in (facts.get("OperatingSystem") or ""),
        }
        inspected = [sign for sign, is_there in signs.items() if is_there]
        lines.append(_hands_gpu_on("docker", host, need, fault, inspected, image))
    # Docker Desktop's folder is in a machine of its own.
    root = "" if "Docker Desktop" in (facts.get("OperatingSystem") or "") else facts.get("DockerRootDir")
    return lines, {"root": root, "image": image}


def check_podman(host, need, has_gpu, fault):
    """(lines, {root, image}): it answers, it may map users, a CDI specification names the GPU."""
    answer = ask("podman", "info", "--format", "{{.Version.Version}}|{{.Store.GraphRoot}}|{{.Host.Security.Rootless}}")
    if answer.code:
        remedy = "`podman info` tells more; after an update: podman system migrate"
        return [fault("podman", f"podman info fails: {explain((), answer.text)[0]}", remedy)], {}
    version, root, rootless = [*answer.text.splitlines()[-1].split("|"), "", ""][:3]
    lines, image = [ok("podman", f"{version}, {'rootless' if rootless == 'true' else 'as root'}")], _image("podman")
    user = os.environ.get("USER", "$USER")
    if rootless == "true" and not re.search(rf"(?m)^({re.escape(user)}|{os.getuid()}):", read("/etc/subuid")):
        ranges = "--add-subuids 100000-165535 --add-subgids 100000-165535"
        remedy = f"sudo usermod {ranges} {user} && podman system migrate"
        lines.append(fault("podman", "rootless, and /etc/subuid gives this user no range", remedy))
    if has_gpu and need.gpu:
        if numbers(version) < (4, 1):
            lines.append(fault("podman gpu", f"{version} knows no CDI; 4.1 does", "update podman, or use docker"))
        else:
            lines.append(_hands_gpu_on("podman", host, need, fault, list(map(str, _cdi()[:1])), image))
    return lines, {"root": root, "image": image}


def _cdi():
    """Files that name the GPU for CDI."""
    files = [file for folder in ("/etc/cdi", "/var/run/cdi") for file in sorted(system(folder).glob("*"))]
    return [file for file in files if "nvidia.com/gpu" in text_of(file)]


def _image(engine):
    """Our image's name where `engine` has it, else "". RECIPE_IMAGE names another."""
    wanted = os.environ.get("RECIPE_IMAGE", "internlm2-recipe")
    names = ask(engine, "image", "ls", "--format", "{{.Repository}}:{{.Tag}}").text.splitlines()
    return next((name for name in names if wanted in (name, name.rpartition(":")[0].rpartition("/")[2])), "")


def _hands_gpu_on(engine, host, need, fault, inspected, image):
    """Whether a container gets the GPU: tried with our own image where it is here, else what was looked at.

    `inspected`: what speaks for it. Before a stage nothing is tried: the stage's own container comes next.
    """
    name = f"{engine} gpu"
    usual = REMEDIES[engine].format(install=host.install)
    if not inspected:
        return fault(name, LACKING[engine], usual)
    if not image or need.stage:
        why = "" if need.stage else f"; looked at, not tried: our image is not here yet ({JUST} image)"
        return ok(name, ", ".join(inspected) + why)
    run = [engine, "run", "--rm", "--network", "none", *FLAGS[engine]]
    run += ["--entrypoint", "nvidia-smi", image, "-L"]
    answer = ask(*run, seconds=30)
    if answer.code == 0 and re.search(r"(?m)^GPU \d", answer.text):
        return ok(name, f"a container of {image} sees the GPU")
    if answer.code == 0:
        return fault(name, IGNORED, usual)
    meaning, remedy = explain(ERRORS, answer.text, install=host.install, usual=usual)
    return fault(name, meaning, remedy or f"it must work by itself first: {' '.join(run)}")
