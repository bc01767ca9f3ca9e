"""Checks the container engines: they answer, this user may use them, their containers get the GPU."""

import os
import re
import shlex
import shutil
import subprocess
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Set, Tuple

from access import shared_by_group
from lines import JUST, ROOT, Line, ask, explain, ok, stop, system, warning
from machine import Host, check_system
from needs import Need

TOOLKIT = (
    "install the NVIDIA Container Toolkit: add NVIDIA's repository (docs.nvidia.com/datacenter/cloud-native/"
    "container-toolkit), then {install} nvidia-container-toolkit && "
)
DOCKER = TOOLKIT + "sudo nvidia-ctk runtime configure --runtime=docker && sudo systemctl restart docker"
CDI = "sudo nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml"
NO_CDI = "no CDI specification names the GPU"
LACKING = {
    "docker": "docker lacks the NVIDIA Container Toolkit",
    "podman": f"{NO_CDI}, and podman's --gpus would be silently ignored",
}
FLAGS = {"docker": ("--gpus", "all"), "podman": ("--device", "nvidia.com/gpu=all")}
RANGES = "--add-subuids 100000-165535 --add-subgids 100000-165535"
# NVIDIA Container Toolkit 1.19 writes group ids (additionalGids), which podman reads since 5.1. The toolkit's service
# reads the flag against that from REFRESH.
NO_GIDS = "no-additional-gids-for-device-nodes"
REFRESH = "/etc/nvidia-container-toolkit/nvidia-cdi-refresh.env"
# The verdicts of docker/runtime/examine: (what is wrong, the remedy). Those in GPU only matter if the GPU is needed.
GPU = ("desktop", "toolkit", "old", "cdi", "gids")
VERDICTS = {
    "absent": ("not installed", "{package}"),
    "shim": ("it is podman by another name", "RUNTIME=podman"),
    "denied": ("this user has no right to docker's socket",
               "sudo usermod -aG docker $USER, then log in again (that group is as good as root)"),
    "down": ("its daemon does not answer", "{start}sudo systemctl enable --now docker"),
    "hung": ("its daemon did not answer in 10 s", "sudo systemctl restart docker"),
    "remote": ("its daemon is on another machine, {detail}, which does not have this one's folders",
               "unset DOCKER_HOST, or docker context use default"),
    "squashed": ("its daemon runs as root, which may not enter {detail} on NFS or on a FUSE file system",
                 "chmod o+x {detail}, or a clone and a RECIPE_CACHE on a local disk (if the NFS server exports it with "
                 "no_root_squash, all is well)"),
    "desktop": ("Docker Desktop on Linux runs containers in a virtual machine, which has no GPU",
                "install Docker Engine ({package}) and choose it: docker context use default"),
    "toolkit": (LACKING["docker"], DOCKER),
    "failing": ("podman info fails: {detail}", "`podman info` tells more; after an update: podman system migrate"),
    "subuid": ("rootless, and /etc/subuid gives this user no range",
               f"sudo usermod {RANGES} {{user}} && podman system migrate"),
    "nfs": ("its images would lie in {detail} on NFS, whose server refuses the ids that rootless podman maps",
            "in ~/.config/containers/storage.conf name a graphroot on a local disk"),
    "old": ("{version} knows no CDI; 4.1 does", "update podman, or use docker"),
    "cdi": (LACKING["podman"], TOOLKIT + CDI),
    "gids": ("{version} cannot read {detail}, which NVIDIA Container Toolkit 1.19 or newer wrote (additionalGids)",
             "{generate}; or podman 5.1, or toolkit 1.18"),
    "image": ("there is no image file {detail}",
              "where docker or podman is: {just} image save internlm2-recipe.tar.gz; here: gunzip "
              "internlm2-recipe.tar.gz && apptainer build {detail} docker-archive:internlm2-recipe.tar"),
}  # fmt: skip
IGNORED = "the container started without the GPU"
# Engines' error messages when a container asks for the GPU: (pattern, meaning, remedy).
ERRORS = (
    (r"could not select device driver|nknown (or invalid )?runtime (name|specified)", LACKING["docker"], DOCKER),
    (r"unresolvable CDI devices|nvidia\.com/gpu=all: no such file|GPU vendor from CDI", NO_CDI,
     CDI + f" (the package nvidia-container-toolkit has nvidia-ctk; for podman before 5.1: --feature-flag={NO_GIDS})"),
    (r"[Dd]river/library version mismatch", "the driver was updated and the old one is still loaded",
     "reboot the machine"),
    (r"unsatisfied condition: cuda", "the driver is too old for the image", "update the driver"),
    (r"device rules|bpf_prog_query", "the toolkit may not set device rules (rootless, or too old for cgroup v2)",
     "rootless: sudo nvidia-ctk config --in-place --set nvidia-container-cli.no-cgroups=true; "
     "else update it: {install} nvidia-container-toolkit"),
    (r"nvidia-container-cli.*(libnvidia-ml|libcuda|driver)", "the engine finds no NVIDIA driver",
     "try nvidia-smi first; docker from snap, and Docker Desktop on Linux, cannot see the driver: "
     "{package}"),
    (r"Insufficient Permissions", "SELinux keeps the container from the card",
     "sudo setsebool -P container_use_devices 1"),
    (r"unknown flag: --gpus", "docker is older than 19.03, the first with GPU support", "update docker"),
    (r"executable file.* not found|nvidia-smi.*not found", IGNORED, "{usual}"),
)  # fmt: skip


class Engine(NamedTuple):
    """What docker/runtime/examine finds."""

    verdict: str
    detail: str
    version: str
    storage: str
    traits: str


class Choice(NamedTuple):
    """What docker/runtime/choose finds. `closed`: folders that docker's daemon may not enter."""

    runtime: str
    reason: str
    engines: Dict[str, Engine]
    closed: Set[str]
    loopback: str


Fault = Callable[[str, str, str], Line]  # lines.stop or lines.warning


def choose_runtime(*paths: Any) -> Tuple[Optional[Choice], str]:
    """(Choice, ""), or (None, error). `paths`: what a container must reach besides the clone."""
    program = ROOT / "docker" / "runtime" / "choose"
    done = subprocess.run([str(program), "--verdicts", *map(str, paths)], capture_output=True)
    if done.returncode:
        return None, done.stderr.decode("utf-8", "replace").strip()
    runtime, reason, *facts = done.stdout.decode("utf-8", "replace").splitlines()
    engines: Dict[str, Engine] = {}
    closed: Set[str] = set()
    loopback = ""
    for kind, name, *rest in (line.split("\t") for line in facts):
        if kind == "engine":
            engines[name] = Engine(*rest)
        elif kind == "closed":
            closed.add(rest[0])
        else:
            loopback = name
    return Choice(runtime, reason, engines, closed, loopback), ""


def check_engines(host: Host, need: Need, choice: Choice) -> Tuple[List[Line], Dict[str, str]]:
    """(lines, {root, image} of the chosen engine): each engine that was examined, in the order of the choice.

    None was examined if the host was chosen first: in a container, or where the environment is made.
    """
    lines: List[Line] = []
    chosen: Dict[str, str] = {}
    for name, engine in choice.engines.items():
        is_chosen = choice.runtime == name
        # An engine that was passed over only gets a warning.
        fault = _stop_naming_the_host(host) if is_chosen else warning
        if not is_chosen and (engine.verdict in ("absent", "shim") or (engine.verdict in GPU and not need.gpu)):
            continue
        if engine.verdict not in ("ok", *GPU):
            lines.append(_explained(host, need, name, engine, fault))
            continue
        lines.append(ok(name, _described(name, engine)))
        if engine.verdict in GPU:
            lines.append(_explained(host, need, name, engine, fault))
        if not is_chosen:
            continue
        image = _image(name) if name != "apptainer" else ""
        chosen = {"root": engine.storage, "image": image}
        if engine.verdict == "ok" and engine.detail and need.gpu and name != "apptainer":
            lines.append(_check_gpu(name, host, need, fault, engine.detail, image))
        lines += _check_rights(host, need, choice, fault)
        lines += _check_loopback(need, choice, image)
    return lines, chosen


def _stop_naming_the_host(host: Host) -> Fault:
    """`stop`, with the host runtime as another remedy where it can run."""
    serves = check_system(host, "host")[0].status == "ok"
    return lambda name, found, remedy: stop(name, found, f"{remedy}; or RUNTIME=host" if serves else remedy)


def _explained(host: Host, need: Need, name: str, engine: Engine, fault: Fault) -> Line:
    """The line for a verdict that is a fault."""
    found, remedy = VERDICTS[engine.verdict]
    generate = f"sudo nvidia-ctk cdi generate --feature-flag={NO_GIDS} --output=/etc/cdi/nvidia.yaml"
    if os.path.exists(system(REFRESH)):
        variable = f"NVIDIA_CTK_CDI_GENERATE_FEATURE_FLAGS={NO_GIDS}"
        generate = f"echo {variable} | sudo tee -a {REFRESH} && sudo systemctl restart nvidia-cdi-refresh.service"
    words = {
        **engine._asdict(), "install": host.install, "package": host.package(name), "generate": generate, "just": JUST,
        "start": "start Docker Desktop with its WSL integration for this distribution, or: " if host.wsl else "",
        "user": os.environ.get("USER", "$USER"),
    }  # fmt: skip
    if engine.verdict == "squashed":
        fault = warning  # the server may let root in
    if engine.verdict not in GPU:
        return fault(name, found.format(**words), remedy.format(**words))
    remedy = remedy if need.gpu else f"GPUS=none, as {need.name} needs no GPU; or {remedy}"
    return fault(f"{name} gpu", found.format(**words), remedy.format(**words))


def _described(name: str, engine: Engine) -> str:
    if name == "docker":
        remapped = "; userns-remap, which stages do not use" if "userns" in engine.traits else ""
        return f"daemon {engine.version}{remapped}"
    if name == "podman":
        return f"{engine.version}, {'rootless' if 'rootless' in engine.traits else 'as root'}"
    program = next(name for name in ("apptainer", "singularity") if shutil.which(name))
    return f"{ask(program, '--version').text}; {engine.detail}; --nv takes the host's driver"


def _check_rights(host: Host, need: Need, choice: Choice, fault: Fault) -> List[Line]:
    """Paths that this user can access, but a container of the chosen engine cannot."""
    name, engine = choice.runtime, choice.engines[choice.runtime]
    lines = []
    if name == "docker" and "rootless" not in engine.traits and "desktop" not in engine.traits:
        lines += [
            _explained(host, need, name, engine._replace(verdict="squashed", detail=folder), fault)
            for folder in sorted(choice.closed)
        ]
    # Rootless, only crun keeps the user's groups.
    shared = shared_by_group(need) if "rootless" in engine.traits and "crun" not in engine.traits else None
    if shared:
        path, group = shared
        found = f"this user can only access {path} through the group {group}, which rootless {name} does not keep"
        remedy = f"chmod -R o+rX {shlex.quote(str(path))}"
        if name == "podman":
            remedy = f'{host.install} crun and runtime = "crun" in containers.conf, which keeps groups; or {remedy}'
        lines.append(fault("rights", found, remedy))
    return lines


def _check_loopback(need: Need, choice: Choice, image: str) -> List[Line]:
    """A proxy on the host's own address, which some kinds of docker cannot reach when they fetch."""
    engine = choice.engines[choice.runtime]
    kinds = {"rootless": "rootless docker", "desktop": "Docker Desktop"}
    if not image:
        kinds["userns"] = "docker's builds under userns-remap"
    kind = next((words for trait, words in kinds.items() if trait in engine.traits and choice.runtime == "docker"), "")
    nothing_to_fetch = image and (os.path.exists(need.model) or not need.fetched)
    if not kind or not choice.loopback or nothing_to_fetch:
        return []
    found = f"{choice.loopback} names this machine's own address, out of reach of {kind}"
    return [warning("proxy", found, "name the address that it has in the network; or RUNTIME=host")]


def _image(engine: str) -> str:
    """Our image's name if `engine` has it, this clone's and variant's own first, else ""."""
    wanted = os.environ.get("RECIPE_IMAGE", "internlm2-recipe")
    names = ask(engine, "image", "ls", "--format", "{{.Repository}}:{{.Tag}}").text.splitlines()
    ours = [name for name in names if wanted in (name, name.rpartition(":")[0].rpartition("/")[2])]
    exact = ask(ROOT / "docker" / "image", "name").text if len(ours) > 1 else ""
    return next((name for name in ours if name.rpartition("/")[2] == exact), ours[0] if ours else "")


def _check_gpu(engine: str, host: Host, need: Need, fault: Fault, inspected: str, image: str) -> Line:
    """A container must get the GPU: started with our image if the engine has it, except before a stage.

    `inspected`: why it should, without a start.
    """
    name = f"{engine} gpu"
    usual = VERDICTS["toolkit" if engine == "docker" else "cdi"][1].format(install=host.install)
    if not image or need.stage:
        why = "" if need.stage else f"; not tried, as our image is not here yet ({JUST} image)"
        return ok(name, inspected + why)
    run = [engine, "run", "--rm", "--network", "none", *FLAGS[engine]]
    run += ["--entrypoint", "nvidia-smi", image, "-L"]
    answer = ask(*run, seconds=30)
    if answer.code == 0 and re.search(r"(?m)^GPU \d", answer.text):
        return ok(name, f"a container of {image} sees the GPU")
    if answer.code == 0:
        return fault(name, IGNORED, usual)
    meaning, remedy = explain(ERRORS, answer.text, install=host.install, package=host.package("docker"), usual=usual)
    return fault(name, meaning, remedy or f"it must work by itself first: {' '.join(run)}")
