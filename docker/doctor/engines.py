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

from recipe.core.translation import _, mark

DOCKER = mark(
    "install the NVIDIA Container Toolkit: add NVIDIA's repository (docs.nvidia.com/datacenter/cloud-native/"
    "container-toolkit), then {install} nvidia-container-toolkit && sudo nvidia-ctk runtime configure --runtime=docker "
    "&& sudo systemctl restart docker"
)
PODMAN = mark(
    "install the NVIDIA Container Toolkit: add NVIDIA's repository (docs.nvidia.com/datacenter/cloud-native/"
    "container-toolkit), then {install} nvidia-container-toolkit && sudo nvidia-ctk cdi generate "
    "--output=/etc/cdi/nvidia.yaml"
)
NO_TOOLKIT = mark("docker lacks the NVIDIA Container Toolkit")
FLAGS = {"docker": ("--gpus", "all"), "podman": ("--device", "nvidia.com/gpu=all")}
RANGES = "--add-subuids 100000-165535 --add-subgids 100000-165535"
# NVIDIA Container Toolkit 1.19 writes group ids (additionalGids), which podman reads since 5.1. The toolkit's service
# reads the flag against that from REFRESH.
NO_GIDS = "no-additional-gids-for-device-nodes"
REFRESH = "/etc/nvidia-container-toolkit/nvidia-cdi-refresh.env"
# The verdicts of docker/runtime/examine: messages (what is wrong, the remedy). Those in GPU only matter if the GPU is
# needed.
GPU = ("desktop", "toolkit", "old", "cdi", "gids")
VERDICTS = {
    "absent": (mark("not installed"), "{package}"),
    "shim": (mark("it is podman by another name"), "RUNTIME=podman"),
    "denied": (mark("this user has no right to docker's socket"),
               mark("sudo usermod -aG docker $USER, then log in again (that group is as good as root)")),
    "down": (mark("its daemon does not answer"), "{start}"),
    "hung": (mark("its daemon did not answer in 10 s"), "sudo systemctl restart docker"),
    "remote": (mark("its daemon is on another machine, {detail}, which does not have this one's folders"),
               mark("unset DOCKER_HOST, or docker context use default")),
    "squashed": (mark("its daemon runs as root, which may not enter {detail} on NFS or on a FUSE file system"),
                 mark("chmod o+x {detail}, or a clone and a RECIPE_CACHE on a local disk (if the NFS server exports it "
                      "with no_root_squash, all is well)")),
    "desktop": (mark("Docker Desktop on Linux runs containers in a virtual machine, which has no GPU"),
                mark("install Docker Engine ({package}) and choose it: docker context use default")),
    "toolkit": (NO_TOOLKIT, DOCKER),
    "failing": (mark("podman info fails: {detail}"),
                mark("`podman info` tells more; after an update: podman system migrate")),
    "subuid": (mark("rootless, and /etc/subuid gives this user no range"),
               f"sudo usermod {RANGES} {{user}} && podman system migrate"),
    "nfs": (mark("its images would lie in {detail} on NFS, whose server refuses the ids that rootless podman maps"),
            mark("in ~/.config/containers/storage.conf name a graphroot on a local disk")),
    "old": (mark("{version} knows no CDI; 4.1 does"), mark("update podman, or use docker")),
    "cdi": (mark("no CDI specification names the GPU, and podman's --gpus would be silently ignored"), PODMAN),
    "gids": (mark("{version} cannot read {detail}, which NVIDIA Container Toolkit 1.19 or newer wrote "
                  "(additionalGids)"),
             mark("{generate}; or podman 5.1, or toolkit 1.18")),
    "image": (mark("there is no image file {detail}"),
              mark("where docker or podman is: {just} image save internlm2-recipe.tar.gz; here: gunzip "
                   "internlm2-recipe.tar.gz && apptainer build {detail} docker-archive:internlm2-recipe.tar")),
}  # fmt: skip
IGNORED = mark("the container started without the GPU")
# Engines' error messages when a container asks for the GPU: (pattern, meaning, remedy).
ERRORS = (
    (r"could not select device driver|nknown (or invalid )?runtime (name|specified)", NO_TOOLKIT, DOCKER),
    (r"unresolvable CDI devices|nvidia\.com/gpu=all: no such file|GPU vendor from CDI",
     mark("no CDI specification names the GPU"),
     mark("sudo nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml (the package nvidia-container-toolkit has "
          "nvidia-ctk; for podman before 5.1: --feature-flag=no-additional-gids-for-device-nodes)")),
    (r"[Dd]river/library version mismatch", mark("the driver was updated and the old one is still loaded"),
     mark("reboot the machine")),
    (r"unsatisfied condition: cuda", mark("the driver is too old for the image"), mark("update the driver")),
    (r"device rules|bpf_prog_query", mark("the toolkit may not set device rules (rootless, or too old for cgroup v2)"),
     mark("rootless: sudo nvidia-ctk config --in-place --set nvidia-container-cli.no-cgroups=true; "
          "else update it: {install} nvidia-container-toolkit")),
    (r"nvidia-container-cli.*(libnvidia-ml|libcuda|driver)", mark("the engine finds no NVIDIA driver"),
     mark("try nvidia-smi first; docker from snap, and Docker Desktop on Linux, cannot see the driver: {package}")),
    (r"Insufficient Permissions", mark("SELinux keeps the container from the card"),
     "sudo setsebool -P container_use_devices 1"),
    (r"unknown flag: --gpus", mark("docker is older than 19.03, the first with GPU support"), mark("update docker")),
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
    """What docker/runtime/choose finds; it gives reason and details in the user's language.

    `closed`: folders that docker's daemon may not enter.
    """

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

    def with_host(remedy: str) -> str:
        return _("{remedy}; or RUNTIME=host", remedy=remedy) if serves else remedy

    return lambda name, found, remedy: stop(name, found, with_host(remedy))


def _explained(host: Host, need: Need, name: str, engine: Engine, fault: Fault) -> Line:
    """The line for a verdict that is a fault."""
    found, remedy = VERDICTS[engine.verdict]
    generate = f"sudo nvidia-ctk cdi generate --feature-flag={NO_GIDS} --output=/etc/cdi/nvidia.yaml"
    if os.path.exists(system(REFRESH)):
        variable = f"NVIDIA_CTK_CDI_GENERATE_FEATURE_FLAGS={NO_GIDS}"
        generate = f"echo {variable} | sudo tee -a {REFRESH} && sudo systemctl restart nvidia-cdi-refresh.service"
    start = "sudo systemctl enable --now docker"
    if host.wsl:
        start = _("start Docker Desktop with its WSL integration for this distribution, or: {command}", command=start)
    words = {
        **engine._asdict(), "install": host.install, "package": host.package(name), "generate": generate, "just": JUST,
        "start": start, "user": os.environ.get("USER", "$USER"),
    }  # fmt: skip
    found, remedy = _(found, **words), _(remedy, **words)
    if engine.verdict == "squashed":
        fault = warning  # the server may let root in
    if engine.verdict not in GPU:
        return fault(name, found, remedy)
    if not need.gpu:
        remedy = _("GPUS=none, as {recipe} needs no GPU; or {remedy}", recipe=need.name, remedy=remedy)
    return fault(f"{name} gpu", found, remedy)


def _described(name: str, engine: Engine) -> str:
    if name == "docker":
        if "userns" in engine.traits:
            return _("daemon {version}; userns-remap, which stages do not use", version=engine.version)
        return _("daemon {version}", version=engine.version)
    if name == "podman":
        if "rootless" in engine.traits:
            return _("{version}, rootless", version=engine.version)
        return _("{version}, as root", version=engine.version)
    program = next(name for name in ("apptainer", "singularity") if shutil.which(name))
    version = ask(program, "--version").text
    return _("{version}; {image}; --nv takes the host's driver", version=version, image=engine.detail)


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
        found = _(
            "this user can only access {path} through the group {group}, which rootless {engine} does not keep",
            path=path, group=group, engine=name,
        )  # fmt: skip
        remedy = f"chmod -R o+rX {shlex.quote(str(path))}"
        if name == "podman":
            remedy = _(
                '{install} crun and runtime = "crun" in containers.conf, which keeps groups; or {command}',
                install=host.install, command=remedy,
            )  # fmt: skip
        lines.append(fault("rights", found, remedy))
    return lines


def _check_loopback(need: Need, choice: Choice, image: str) -> List[Line]:
    """A proxy on the host's own address, which some kinds of docker cannot reach when they fetch."""
    engine = choice.engines[choice.runtime]
    kinds = {"rootless": _("rootless docker"), "desktop": "Docker Desktop"}
    if not image:
        kinds["userns"] = _("docker's builds under userns-remap")
    kind = next((words for trait, words in kinds.items() if trait in engine.traits and choice.runtime == "docker"), "")
    nothing_to_fetch = image and (os.path.exists(need.model) or not need.fetched)
    if not kind or not choice.loopback or nothing_to_fetch:
        return []
    found = _(
        "{variable} names this machine's own address, out of reach of {engine}", variable=choice.loopback, engine=kind
    )
    return [warning("proxy", found, _("name the address that it has in the network; or RUNTIME=host"))]


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
    usual = _(VERDICTS["toolkit" if engine == "docker" else "cdi"][1], install=host.install)
    if need.stage:
        return ok(name, inspected)
    if not image:
        why = _("{why}; not tried, as our image is not here yet ({just} image)", why=inspected, just=JUST)
        return ok(name, why)
    run = [engine, "run", "--rm", "--network", "none", *FLAGS[engine]]
    run += ["--entrypoint", "nvidia-smi", image, "-L"]
    answer = ask(*run, seconds=30)
    if answer.code == 0 and re.search(r"(?m)^GPU \d", answer.text):
        return ok(name, _("a container of {image} sees the GPU", image=image))
    if answer.code == 0:
        return fault(name, _(IGNORED), usual)
    meaning, remedy = explain(ERRORS, answer.text, install=host.install, package=host.package("docker"), usual=usual)
    return fault(name, meaning, remedy or _("it must work by itself first: {command}", command=" ".join(run)))
