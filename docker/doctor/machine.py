"""Checks the machine except GPU and container engines: system, rental platform, rights, tools, memory, disk."""

import functools
import os
import platform
import re
import shlex
from importlib.util import find_spec
from pathlib import Path
from typing import Dict, List, Tuple

from lines import CACHE, ROOT, Line, ask, dotted, existing, numbers, ok, read, stop, system, warning
from needs import Need, cost, toml

from recipe.core import rental
from recipe.core.hardware import Answer
from recipe.core.translation import _, listed, mark

MERGED = mark("merged model")
ROOM = 3.0  # GB of extra disk while the environment is made, as in docker/runtime/host
LIBRARIES = 4.0  # GB of RAM for Python with PyTorch and CUDA: an estimate, so less is only a warning
SMALL = 4.0  # GB of RAM for the demo, which was measured at 3.2
SHM = 64  # MiB: docker's default is enough for one process without loader workers
SHM_SEVERAL = 1024  # MiB for NCCL's buffers between several cards, as NVIDIA advises
# The newest that a wheel of the lock needs: bitsandbytes 0.43.0, manylinux_2_24; in cu13 torch 2.11.0, manylinux_2_28.
GLIBC = {"cu118": (2, 24), "cu13": (2, 28)}
# A platform's large disk, and a hint.
PLATFORMS = {
    "AutoDL": (
        "/root/autodl-tmp",
        mark("pip's mirror is set here, uv's is not: export UV_DEFAULT_INDEX=$(pip config get global.index-url); a "
             "mirror of PyTorch's index: TORCH_INDEX=https://… . `source /etc/network_turbo` speeds up GitHub and "
             "Hugging Face and slows the rest down: unset http_proxy https_proxy afterwards"),
    ),
    "Vast.ai": (
        "/workspace",
        mark("the disk's size is fixed when the instance is made; a destroyed instance keeps nothing"),
    ),
    "RunPod": (
        "/workspace",
        mark("only the volume outlives a stop; a terminated pod keeps nothing but a network volume"),
    ),
}  # fmt: skip
# By distribution (ID and ID_LIKE of os-release): how to install a package, and the driver. NVIDIA's open modules, and
# all drivers from 590 on, are for Turing and newer; older cards keep branch 580.
GUIDE = "docs.nvidia.com/datacenter/tesla/driver-installation-guide"
FROM_NVIDIA = mark(
    "install NVIDIA's driver from its repository ({guide}): {install} nvidia-open (before Turing: its branch 580)"
)
FROM_DEBIAN = mark("{install} nvidia-driver (Debian's contrib and non-free)")
PACKAGES = (
    ("ubuntu", "apt-get install -y", "sudo ubuntu-drivers install"),
    ("debian", "apt-get install -y", FROM_DEBIAN),
    ("rhel|centos|amzn", "dnf install -y", FROM_NVIDIA),
    ("fedora", "dnf install -y", mark("{install} akmod-nvidia (RPM Fusion's nonfree)")),
    ("suse", "zypper install -y", FROM_NVIDIA),
    ("arch", "pacman -S", mark("{install} nvidia-open (before Turing: the AUR's nvidia-580xx-dkms)")),
)
DEBIAN_DRIVER = (550, 999)  # the newest in Debian (in 13; 12 has 535)
# Packages with another name than in Debian; a sentence where the distribution has no package.
NAMES = (
    ("debian|ubuntu", {"docker": "docker.io", "apptainer": mark("install github.com/apptainer/apptainer's .deb")}),
    (
        "rhel|centos|amzn",
        {"docker": mark("install docker-ce from Docker's repository: docs.docker.com/engine/install")},
    ),
    ("fedora", {"docker": "moby-engine"}),
    ("arch", {"python3-pip": "python-pip"}),
)


class Host:
    """The kind of machine. `install`, `driver` and `instance` are the beginnings of its remedies."""

    def __init__(self) -> None:
        self.release = dict(re.findall(r'(?m)^(\w+)="?([^"\n]*)"?$', read("/etc/os-release")))
        version = read("/proc/version").lower()
        self.wsl = (2 if re.search("wsl2|microsoft-standard", version) else 1) if "microsoft" in version else 0
        self.platform = rental.platform(os.environ, Path(system("/")))
        marks = ("APPTAINER_CONTAINER", "SINGULARITY_CONTAINER", "KUBERNETES_SERVICE_HOST")
        self.container = bool(self.platform) or any(map(_is_marked, (*marks, "/.dockerenv", "/run/.containerenv")))
        self.like = f"{self.release.get('ID')} {self.release.get('ID_LIKE')}"
        known = next((words for words in PACKAGES if re.search(words[0], self.like)), None)
        self.install = f"sudo {known[1]}" if known else _("install")
        self.instance = _("check that the card is plugged in and has power: lspci | grep -i nvidia")
        self.kind = known[2] if known else mark("install NVIDIA's driver")
        if self.wsl:
            self.kind = mark("install NVIDIA's driver in Windows, not inside WSL, then wsl --shutdown")
        elif self.container:
            self.kind = mark("the driver is the host's: choose an instance with a newer one")
            self.instance = _("start an instance or a container that has the GPU (on AutoDL: not in the mode without)")
        self.driver = _(self.kind, install=self.install, guide=GUIDE)

    def package(self, name: str) -> str:
        """How to install the package that Debian calls `name`."""
        names = next((names for like, names in NAMES if re.search(like, self.like)), {})
        own = names.get(name, name)
        return _(own) if own.startswith("install ") else f"{self.install} {own}"

    def driver_from(self, least: str) -> str:
        """How to install a driver of version `least` or newer."""
        if self.kind == FROM_DEBIAN and numbers(least) > DEBIAN_DRIVER:
            remedy = _(FROM_NVIDIA, install=self.install, guide=GUIDE)
            return _("{remedy}; Debian's own is older than {least}", remedy=remedy, least=least)
        return _("{remedy} ({least} or newer)", remedy=self.driver, least=least)


def _is_marked(mark: str) -> bool:
    return os.path.exists(system(mark)) if mark.startswith("/") else mark in os.environ


def check_system(host: Host, runtime: str) -> List[Line]:
    """The packages' binaries need Linux on x86_64 and a recent glibc."""
    machine = platform.machine()
    library = _c_library()
    parts = [host.release.get("PRETTY_NAME", platform.system()), machine, library or _("no glibc")]
    found = listed(parts + [f"WSL {host.wsl}"] * bool(host.wsl))
    if platform.system() != "Linux" or machine != "x86_64":
        return [stop("system", found, _("the locked packages exist for Linux on x86_64 only: use such a machine"))]
    if host.wsl == 1:
        return [stop("system", found, _("WSL 1 has no GPU. In Windows: wsl --set-version NAME 2"))]
    wanted = GLIBC.get(os.environ.get("VARIANT", ""), GLIBC["cu118"])
    if runtime == "host" and numbers(library) < wanted:
        remedy = _(
            "the packages need glibc {version}: run in a container (install docker or podman)", version=dotted(wanted)
        )
        return [stop("system", found, remedy)]
    return [ok("system", found)]


def _c_library() -> str:
    """ "glibc 2.36"; "" for another library (Alpine's musl)."""
    try:
        return os.confstr("CS_GNU_LIBC_VERSION") or ""
    except (AttributeError, OSError, ValueError):
        return ""


def check_platform(host: Host, need: Need, runtime: str) -> List[Line]:
    """On a rental platform the clone and the cache belong on the large disk."""
    if not host.platform:
        return []
    disk, hint = PLATFORMS[host.platform][0], _(PLATFORMS[host.platform][1])
    away = [str(place) for place in (ROOT, CACHE) if Path(disk) not in (place, *place.parents)]
    if not away or need.small or not os.path.isdir(system(disk)):
        return [ok("platform", _("{platform}; {hint}", platform=host.platform, hint=hint))]
    values = dict(platform=host.platform, folder=away[0], other=away[-1], disk=disk)
    if len(away) > 1:
        found = _("{platform}: {folder} and {other} not on the large disk {disk}", **values)
    else:
        found = _("{platform}: {folder} not on the large disk {disk}", **values)
    move = f"export RECIPE_CACHE={disk}/recipe-cache"
    if str(ROOT) in away:
        move = _("put the clone under {disk}", disk=disk)
    return [warning("platform", found, _("{move}; {hint}", move=move, hint=hint))]


def check_memory(host: Host, need: Need, runtime: str) -> List[Line]:
    """Free RAM, within a container's limit, must hold the libraries and two of the merge's shards."""
    found = re.search(r"MemAvailable:\s+(\d+) kB", read("/proc/meminfo"))
    if not found:
        return []
    free = int(found[1]) * 1024 / 1e9
    limit = (read("/sys/fs/cgroup/memory.max") or read("/sys/fs/cgroup/memory/memory.limit_in_bytes")).strip()
    bounded = limit.isdigit() and int(limit) / 1e9 < free
    free = int(limit) / 1e9 if bounded else free
    wanted = SMALL if need.small else LIBRARIES + 2 * need.shard
    if bounded:
        shown = _(
            "{free:.1f} GB free, this container’s limit; about {wanted:.0f} GB are used", free=free, wanted=wanted
        )
    else:
        shown = _("{free:.1f} GB free; about {wanted:.0f} GB are used", free=free, wanted=wanted)
    if free >= wanted:
        return [ok("memory", shown)]
    remedy = _("close other programs, or add swap")
    if host.wsl:
        remedy = _("give WSL more than its half of the machine: memory=… in .wslconfig, then wsl --shutdown")
    elif host.container:
        remedy = _("choose an instance with more")
    return [warning("memory", shown, _("{remedy}; a smaller merge.max_shard_size takes less", remedy=remedy))]


def check_shared_memory(host: Host, need: Need, runtime: str) -> List[Line]:
    """The host's /dev/shm must hold NCCL's buffers; our containers have their own."""
    place = system("/dev/shm")
    if runtime != "host" or need.small:
        return []
    remedy = _("start the container with --shm-size=1g (Kubernetes: an emptyDir of medium Memory at /dev/shm)")
    if not os.path.isdir(place) or not os.access(str(place), os.W_OK):
        return [warning("shm", _("/dev/shm is missing or not writable"), remedy)]
    stat = os.statvfs(str(place))
    size = stat.f_blocks * stat.f_frsize / 2**20
    if size < SHM:
        return [warning("shm", _("/dev/shm has {size:.0f} MiB", size=size), remedy)]
    if need.gpus > 1 and size < SHM_SEVERAL:
        found = _("/dev/shm has {size:.0f} MiB; NCCL uses about 1 GiB between {gpus} GPUs", size=size, gpus=need.gpus)
        return [warning("shm", found, _("{remedy}; or NCCL_SHM_DISABLE=1, which is slower", remedy=remedy))]
    return [ok("shm", _("/dev/shm has {size:,.0f} MiB", size=size))]


def check_rights(host: Host, need: Need, runtime: str) -> List[Line]:
    """The folders that a run writes to must be writable."""
    places = [need.folder, ROOT / "models", *([CACHE] if runtime == "host" else [])]
    closed = [place for place in places if not os.access(str(existing(place)), os.W_OK | os.X_OK)]
    if not closed:
        return []
    owned = shlex.quote(str(existing(closed[0])))
    remedy = _(
        "{command}, or use a clone of your own; RECIPE_CACHE= names another cache",
        command=f"sudo chown -R {os.getuid()} {owned}",
    )
    return [stop("rights", _("cannot write {folders}", folders=listed(closed)), remedy)]


@functools.lru_cache(maxsize=None)
def _made() -> Answer:
    """Code 0: the environment is ready. Any other code: its Python is gone if there is a text, else it is not made."""
    return ask(ROOT / "docker" / "runtime" / "host", "made")


def check_environment(host: Host, need: Need, runtime: str) -> List[Line]:
    """The environment's Python may be gone, after an upgrade of the system or in another image."""
    if runtime != "host" or os.environ.get("RECIPE_ENV") or not _made().code or not _made().text:
        return []
    remedy = _(
        "the next command gives it another and keeps its packages; PYTHON38= or PYTHON312= names a permanent one"
    )
    return [warning("environment", _made().text, remedy)]


def check_tools(host: Host, need: Need, runtime: str) -> List[Line]:
    """The host runtime needs just and uv, or a Python with pip that fetches them."""
    if runtime != "host" or os.environ.get("RECIPE_ENV"):
        return []
    checksum = ask("cksum", ROOT / "docker" / "locks" / "tools.lock").text.split(" ")[0]
    if os.path.exists(CACHE / f"tools-{checksum}" / "bin" / "uv"):
        return [ok("tools", _("just and uv are here"))]
    found = ask(ROOT / "docker" / "runtime" / "python", "pip")
    if found.code:
        remedy = _(
            "{command}, or name a Python that has pip: PYTHON=/path/to/python3", command=host.package("python3-pip")
        )
        return [stop("tools", _("no Python 3.8 or newer with pip, which fetches just and uv"), remedy)]
    return [ok("tools", _("pip of {python} will fetch just and uv", python=found.text))]


def check_libraries(host: Host, need: Need, runtime: str) -> List[Line]:
    """Variables and files of this shell that would load libraries other than the lock's.

    docker/runtime/host already keeps out PYTHONPATH, PYTHONHOME, ~/.local and LD_LIBRARY_PATH.
    """
    if runtime != "host":
        return []
    lines = []
    preloaded = [part for part in re.split("[: ]", os.environ.get("LD_PRELOAD", "")) if _is_cuda(part)]
    if preloaded:
        remedy = _("unset LD_PRELOAD for this command: the lock's PyTorch has its own")
        found = _("LD_PRELOAD names other CUDA libraries: {files}", files=listed(preloaded))
        lines.append(warning("libraries", found, remedy))
    if os.environ.get("BNB_CUDA_VERSION"):
        found = _("BNB_CUDA_VERSION is set: bitsandbytes loads another CUDA's library")
        lines.append(warning("libraries", found, "unset BNB_CUDA_VERSION"))
    conda = os.environ.get("CONDA_PREFIX", "")
    if conda and any(Path(conda, "lib").glob("libcudart.so*")):
        found = _("conda's environment {folder} is active and has a CUDA, where bitsandbytes looks first", folder=conda)
        lines.append(warning("libraries", found, "conda deactivate"))
    version = "3.12" if os.environ.get("VARIANT") == "cu13" else "3.8"
    for config in CACHE.glob("env-*/pyvenv.cfg"):
        home = re.search(r"(?m)^home *= *(.+)/bin$", config.read_text(encoding="utf-8"))
        file = Path(home[1] if home else "", "lib", f"python{version}", "sitecustomize.py")
        if home and os.path.isfile(file) and "/etc/" not in str(file.resolve()):  # Debian's own is harmless
            found = _("the environment's Python runs {file} at every start", file=file)
            variable = f"PYTHON{version.replace('.', '')}="
            remedy = _("move that file away, or name another Python: {variable}", variable=variable)
            lines.append(warning("libraries", found, remedy))
    if lines:
        return lines
    own = os.path.expanduser(f"~/.local/lib/python{version}/site-packages")  # Path.home() fails for a uid without one
    kept_out = [name for name in ("PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH") if os.environ.get(name)]
    others = kept_out + [own] * os.path.isdir(own)
    if not others:
        return [ok("libraries", _("no other libraries come before the locked ones"))]
    return [ok("libraries", _("kept out: {what}", what=listed(others)))]


def _is_cuda(file: str) -> bool:
    return bool(re.search("libcu|nccl", os.path.basename(file)))


def check_proxies(host: Host, need: Need, runtime: str) -> List[Line]:
    """The shell's proxies, which pip and uv use; shown without passwords."""
    names = [name for name in os.environ if re.fullmatch("(http|https|all)_proxy", name.lower()) and os.environ[name]]
    if not names:
        return []
    shown = listed(f"{name}={re.sub('//[^@/]*@', '//…@', os.environ[name])}" for name in sorted(names))
    socks = [name for name in names if os.environ[name].startswith("socks")]
    if socks and runtime == "host" and not find_spec("socks"):
        remedy = _(
            "pip alone cannot use a SOCKS proxy: name an HTTP proxy, or {command}", command=f"unset {' '.join(socks)}"
        )
        return [warning("proxy", shown, remedy)]
    return [ok("proxy", shown)]


def check_certificates(host: Host, need: Need, runtime: str) -> List[Line]:
    """The certificate files of a closed network must exist."""
    names = ("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE", "CURL_CA_BUNDLE")
    given = {name: os.environ[name] for name in names if os.environ.get(name)}
    wrong = {name: path for name, path in given.items() if not os.path.exists(path)}
    if wrong:
        files = listed(f"{name}={path}" for name, path in wrong.items())
        remedy = _("correct it, or {command}", command=f"unset {' '.join(wrong)}")
        return [warning("certificate", _("{files}: there is no such file", files=files), remedy)]
    return [ok("certificate", listed(sorted(set(given.values()))))] if given else []


# Checks with the same parameters, in the order of printing.
CHECKS = (
    check_memory, check_shared_memory, check_rights, check_environment, check_tools, check_libraries, check_proxies,
    check_certificates,
)  # fmt: skip


def check_disk(host: Host, need: Need, runtime: str, engine: Dict[str, str]) -> List[Line]:
    """Every disk that a run writes to must have space for what is not there yet.

    `engine`: {root, image} of the chosen container engine: where it keeps images, and our image's name if it has it.
    """
    if toml() is None:
        return []
    wanted = _writes(need, runtime, engine, cost().measurements()["disk"])
    lines = []
    for disk in sorted({_disk(entry[0]) for entry in wanted}):
        here = [entry for entry in wanted if _disk(entry[0]) == disk]
        place = existing(here[0][0])
        stat = os.statvfs(str(place))
        free = stat.f_bavail * stat.f_frsize / 1e9
        whole = sum(size for _place, size, _name in here)
        what = listed(f"{_(name)} {size:.1f}" for _place, size, name in here)
        shown = _(
            "{free:.1f} GB free at {folder}; {whole:.1f} GB are needed ({what})",
            free=free, folder=place, whole=whole, what=what,
        )  # fmt: skip
        remedy = _("free some, or move: RECIPE_CACHE= the environment, model.path= the model, --output the results")
        if host.platform:
            remedy = _(
                "put the clone and RECIPE_CACHE on {platform}'s data disk, or make it larger; {remedy}",
                platform=host.platform, remedy=remedy,
            )  # fmt: skip
        training = sum(size for _place, size, name in here if name != MERGED)
        if free < (whole if need.stage == "merge" else training):
            lines.append(stop("disk", shown, remedy))
        elif free < whole:
            lines.append(warning("disk", _("{disk}: enough to train, not to merge", disk=shown), remedy))
        else:
            lines.append(ok("disk", shown))
    if not need.measured and not need.small:
        lines.append(ok("disk", _("model and results are not estimated: only the 7B model's sizes were measured")))
    return lines


def _writes(need: Need, runtime: str, engine: Dict[str, str], sizes: Dict[str, float]) -> List[Tuple[Path, float, str]]:
    """[(folder, GB, message: what)] that a run will write, by the measured `sizes`."""
    wanted: List[Tuple[Path, float, str]] = []
    if runtime != "host":
        if engine.get("root") and not engine["image"]:
            wanted.append((Path(engine["root"]), sizes["environment"] + ROOM, mark("image")))
    elif not os.environ.get("RECIPE_ENV") and _made().code and not _made().text:
        wanted.append((CACHE, sizes["environment"] + ROOM, mark("environment")))
        caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        unpacked = Path(os.environ.get("UV_CACHE_DIR") or Path(caches, "uv"))
        # If it is not writable, docker/runtime/host uses our cache. On one disk, uv's cache and ours share files.
        if os.access(str(existing(unpacked)), os.W_OK) and _disk(unpacked) != _disk(CACHE):
            wanted.append((unpacked, sizes["environment"], mark("uv's cache (UV_CACHE_DIR)")))
    if need.measured:
        if need.fetched and not os.path.exists(need.model):
            wanted.append((need.model, max(0, sizes["model"] - _size(need.partly)), mark("model")))
        results = 2 * sizes["checkpoint"] + sizes["adapter"] - _size(need.folder / "checkpoints")
        wanted.append((need.folder, max(0, results), mark("checkpoints and adapter")))
        if not os.path.exists(need.folder / "merged"):
            wanted.append((need.folder, sizes["merged"], MERGED))
    return wanted


def _disk(path: Path) -> int:
    return existing(path).stat().st_dev


def _size(folder: Path) -> float:
    """GB of the files below a folder; 0 if it does not exist."""
    paths = [os.path.join(place, name) for place, _folders, names in os.walk(str(folder)) for name in names]
    return sum(os.path.getsize(path) for path in paths if os.path.isfile(path)) / 1e9
