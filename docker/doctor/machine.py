"""The machine but for its GPU and container engines: system, rental platform, rights, tools, memory, disk."""

import functools
import os
import platform
import re
import shlex
import sys
from importlib.util import find_spec
from pathlib import Path

from lines import CACHE, ROOT, ask, dotted, existing, numbers, ok, read, stop, system, warning
from needs import cost, toml

MERGED = "merged model"
ROOM = 3.0  # GB beside the environment while it is made, as docker/runtime/host asks
LIBRARIES = 4.0  # GB of RAM of Python with PyTorch and CUDA loaded: estimated, so its lack is a warning only
TINY = 2.0  # GB of RAM of the demo: it was measured at 1
SHM = 64  # MiB: docker's own default; one process without loader workers takes less
SHM_SEVERAL = 1024  # MiB: NCCL's buffers between several cards, as NVIDIA advises
# Of the lock bitsandbytes 0.43.0's wheel asks for the newest, manylinux_2_24; in cu13's torch 2.11.0's, manylinux_2_28.
GLIBC = {"cu118": (2, 24), "cu13": (2, 28)}
# A platform's marks (environment variables, or files), its large disk, and what else is particular to it.
PLATFORMS = {
    "AutoDL": (
        ("AutoDLContainerUUID", "AutoDLRegion", "/etc/network_turbo"), "/root/autodl-tmp",
        "pip's mirror is set here, uv's is not: export UV_DEFAULT_INDEX=$(pip config get global.index-url); a mirror "
        "of PyTorch's index: TORCH_INDEX=https://… . `source /etc/network_turbo` speeds up GitHub and Hugging Face "
        "and slows the rest down: unset http_proxy https_proxy afterwards",
    ),
    "Vast.ai": (
        ("VAST_CONTAINERLABEL", "VAST_TCP_PORT_22", "/root/.vast_containerlabel"), "/workspace",
        "the disk's size is fixed when the instance is made; a destroyed instance keeps nothing",
    ),
    "RunPod": (("RUNPOD_POD_ID",), "/workspace", "only the volume outlives the pod"),
}  # fmt: skip
# By distribution (ID and ID_LIKE of os-release): how a package is installed, and how the driver. NVIDIA's open modules
# serve Turing and newer; drivers from 590 on serve nothing older, so cards before that keep branch 580.
GUIDE = "docs.nvidia.com/datacenter/tesla/driver-installation-guide"
FROM_NVIDIA = f"install NVIDIA's driver from its repository ({GUIDE}): {{}} nvidia-open (before Turing: its branch 580)"
PACKAGES = (
    ("ubuntu", "apt-get install -y", "sudo ubuntu-drivers install"),
    ("debian", "apt-get install -y", "sudo apt-get install -y nvidia-driver (Debian's contrib and non-free)"),
    ("rhel|centos|amzn", "dnf install -y", FROM_NVIDIA.format("sudo dnf install -y")),
    ("fedora", "dnf install -y", "sudo dnf install -y akmod-nvidia (RPM Fusion's nonfree)"),
    ("suse", "zypper install -y", FROM_NVIDIA.format("sudo zypper install -y")),
    ("arch", "pacman -S", "sudo pacman -S nvidia-open (before Turing: the AUR's nvidia-580xx-dkms)"),
)
DEBIAN_DRIVER = (550, 999)  # the newest that Debian has (13; 12 has 535)
# Packages that bear another name there; a sentence where the distribution has none.
NAMES = (
    ("debian|ubuntu", {"docker": "docker.io", "apptainer": "install github.com/apptainer/apptainer's .deb"}),
    ("rhel|centos|amzn", {"docker": "install docker-ce from Docker's repository: docs.docker.com/engine/install"}),
    ("fedora", {"docker": "moby-engine"}),
    ("arch", {"python3-pip": "python-pip"}),
)


class Host:
    """What kind of machine this is. `install`, `driver` and `instance` are the words of its remedies."""

    def __init__(self):
        self.release = dict(re.findall(r'(?m)^(\w+)="?([^"\n]*)"?$', read("/etc/os-release")))
        version = read("/proc/version").lower()
        self.wsl = (2 if re.search("wsl2|microsoft-standard", version) else 1) if "microsoft" in version else 0
        self.platform = next((name for name, (marks, *_) in PLATFORMS.items() if any(map(_is_marked, marks))), "")
        marks = ("APPTAINER_CONTAINER", "SINGULARITY_CONTAINER", "KUBERNETES_SERVICE_HOST")
        self.container = bool(self.platform) or any(map(_is_marked, (*marks, "/.dockerenv", "/run/.containerenv")))
        self.like = f"{self.release.get('ID')} {self.release.get('ID_LIKE')}"
        known = next((words for words in PACKAGES if re.search(words[0], self.like)), None)
        self.install = f"sudo {known[1]}" if known else "install"
        self.driver = known[2] if known else "install NVIDIA's driver"
        self.instance = "look whether the card sits and has power: lspci | grep -i nvidia"
        if self.wsl:
            self.driver = "install NVIDIA's driver in Windows, none inside WSL, then wsl --shutdown"
        elif self.container:
            self.driver = "the driver is the host's: choose an instance with a newer one"
            self.instance = "start an instance or a container that has the GPU (on AutoDL: not in the mode without)"

    def package(self, name):
        """How the package that Debian calls `name` is installed here."""
        names = next((names for like, names in NAMES if re.search(like, self.like)), {})
        own = names.get(name, name)
        return own if own.startswith("install ") else f"{self.install} {own}"

    def driver_from(self, least):
        """How a driver of version `least` or newer is installed here."""
        if self.driver == PACKAGES[1][2] and numbers(least) > DEBIAN_DRIVER:
            return f"{FROM_NVIDIA.format('sudo apt-get install -y')}; Debian's own is older than {least}"
        return f"{self.driver} ({least} or newer)"


def _is_marked(mark):
    return os.path.exists(system(mark)) if mark.startswith("/") else mark in os.environ


def check_system(host, need, runtime):
    """Linux on x86_64, and a C library that the packages' binaries run on."""
    machine = platform.machine()
    library = _c_library()
    parts = [host.release.get("PRETTY_NAME", platform.system()), machine, library or "no glibc"]
    found = ", ".join(parts + [f"WSL {host.wsl}"] * bool(host.wsl))
    if platform.system() != "Linux" or machine != "x86_64":
        return [stop("system", found, "the locked packages exist for Linux on x86_64 only: use such a machine")]
    if host.wsl == 1:
        return [stop("system", found, "WSL 1 has no GPU. In Windows: wsl --set-version NAME 2")]
    wanted = GLIBC.get(os.environ.get("VARIANT"), GLIBC["cu118"])
    if runtime == "host" and numbers(library) < wanted:
        remedy = f"the packages need glibc {dotted(wanted)}: run in a container (install docker or podman)"
        return [stop("system", found, remedy)]
    return [ok("system", found)]


def _c_library():
    """ "glibc 2.36"; "" where it is another (Alpine's musl)."""
    try:
        return os.confstr("CS_GNU_LIBC_VERSION") or ""
    except (AttributeError, OSError, ValueError):
        return ""


def check_platform(host, need, runtime):
    """A rental platform: the clone and the cache belong on its large disk."""
    if not host.platform:
        return []
    _, disk, hint = PLATFORMS[host.platform]
    away = [str(place) for place in (ROOT, CACHE) if Path(disk) not in (place, *place.parents)]
    if not away or need.tiny or not os.path.isdir(system(disk)):
        return [ok("platform", f"{host.platform}; {hint}")]
    move = f"put the clone under {disk}" if str(ROOT) in away else f"export RECIPE_CACHE={disk}/recipe-cache"
    found = f"{host.platform}: {' and '.join(away)} not on the large disk {disk}"
    return [warning("platform", found, f"{move}; {hint}")]


def check_memory(host, need, runtime):
    """RAM that is free, within a container's limit, against two shards of the merge and the libraries."""
    found = re.search(r"MemAvailable:\s+(\d+) kB", read("/proc/meminfo"))
    if not found:
        return []
    free = int(found[1]) * 1024 / 1e9
    limit = (read("/sys/fs/cgroup/memory.max") or read("/sys/fs/cgroup/memory/memory.limit_in_bytes")).strip()
    bounded = limit.isdigit() and int(limit) / 1e9 < free
    free = int(limit) / 1e9 if bounded else free
    wanted = TINY if need.tiny else LIBRARIES + 2 * need.shard
    shown = f"{free:.1f} GB free{', this container’s limit' if bounded else ''}; about {wanted:.0f} GB are used"
    if free >= wanted:
        return [ok("memory", shown)]
    remedy = "close what else runs, or add swap"
    if host.wsl:
        remedy = "give WSL more than its half of the machine: memory=… in .wslconfig, then wsl --shutdown"
    elif host.container:
        remedy = "choose an instance with more"
    return [warning("memory", shown, f"{remedy}; a smaller merge.max_shard_size takes less")]


def check_shared_memory(host, need, runtime):
    """/dev/shm of this machine; containers of ours get their own."""
    place = system("/dev/shm")
    if runtime != "host" or need.tiny:
        return []
    remedy = "start the container with --shm-size=1g (Kubernetes: an emptyDir of medium Memory at /dev/shm)"
    if not os.path.isdir(place) or not os.access(str(place), os.W_OK):
        return [warning("shm", "/dev/shm is missing or not writable", remedy)]
    stat = os.statvfs(str(place))
    size = stat.f_blocks * stat.f_frsize / 2**20
    if size < SHM:
        return [warning("shm", f"/dev/shm has {size:.0f} MiB", remedy)]
    if need.gpus > 1 and size < SHM_SEVERAL:
        found = f"/dev/shm has {size:.0f} MiB; NCCL uses about 1 GiB between {need.gpus} GPUs"
        return [warning("shm", found, f"{remedy}; or NCCL_SHM_DISABLE=1, which is slower")]
    return [ok("shm", f"/dev/shm has {size:,.0f} MiB")]


def check_rights(host, need, runtime):
    """Whether what a run writes can be written."""
    places = [need.folder, ROOT / "models", *([CACHE] if runtime == "host" else [])]
    closed = [place for place in places if not os.access(str(existing(place)), os.W_OK | os.X_OK)]
    if not closed:
        return []
    owned = shlex.quote(str(existing(closed[0])))
    remedy = f"sudo chown -R {os.getuid()} {owned}, or a clone of your own; RECIPE_CACHE= names another cache"
    return [stop("rights", f"cannot write {', '.join(map(str, closed))}", remedy)]


@functools.lru_cache(maxsize=None)
def _made():
    """What docker/runtime/host says of the environment: code 0 if it is made; else a text if it lost its Python."""
    return ask(ROOT / "docker" / "runtime" / "host", "made")


def check_environment(host, need, runtime):
    """The environment lies on a disk that can outlive its Python: another image, an upgrade of the system."""
    if runtime != "host" or os.environ.get("RECIPE_ENV") or not _made().code or not _made().text:
        return []
    remedy = "the next command gives it another and keeps its packages; PYTHON38= or PYTHON312= names one that stays"
    return [warning("environment", _made().text, remedy)]


def check_tools(host, need, runtime):
    """What the host runtime starts from: just and uv, or a Python with pip that fetches them."""
    if runtime != "host" or os.environ.get("RECIPE_ENV"):
        return []
    checksum = ask("cksum", ROOT / "docker" / "locks" / "tools.lock").text.split(" ")[0]
    if os.path.exists(CACHE / f"tools-{checksum}" / "bin" / "uv"):
        return [ok("tools", "just and uv are here")]
    # As justw asks: just and uv come as wheels for Python 3.8 and newer.
    python = sys.executable if find_spec("pip") and sys.version_info >= (3, 8) else _python_with_pip()
    if not python:
        remedy = f"{host.package('python3-pip')}, or name a Python that has pip: PYTHON=/path/to/python3"
        return [stop("tools", "no Python 3.8 or newer with pip, which fetches just and uv", remedy)]
    return [ok("tools", f"pip of {python} will fetch just and uv")]


def _python_with_pip():
    for folder in os.environ.get("PATH", "").split(os.pathsep):
        candidate = os.path.join(folder, "python3")
        if os.access(candidate, os.X_OK):
            code = "import sys, pip; sys.exit(sys.version_info < (3, 8))"
            if ask(candidate, "-c", code).code == 0:
                return candidate
    return ""


def check_libraries(host, need, runtime):
    """What in this shell would come before the lock's own libraries.

    docker/runtime/host already keeps out other Python packages (PYTHONPATH, PYTHONHOME, ~/.local) and other CUDA
    libraries of LD_LIBRARY_PATH.
    """
    if runtime != "host":
        return []
    lines = []
    preloaded = [part for part in re.split("[: ]", os.environ.get("LD_PRELOAD", "")) if _is_cuda(part)]
    if preloaded:
        remedy = "unset LD_PRELOAD for this command: the lock's PyTorch brings its own"
        lines.append(warning("libraries", f"LD_PRELOAD names other CUDA libraries: {', '.join(preloaded)}", remedy))
    if os.environ.get("BNB_CUDA_VERSION"):
        found = "BNB_CUDA_VERSION is set: bitsandbytes loads another CUDA's library"
        lines.append(warning("libraries", found, "unset BNB_CUDA_VERSION"))
    conda = os.environ.get("CONDA_PREFIX", "")
    if conda and any(Path(conda, "lib").glob("libcudart.so*")):
        found = f"conda's environment {conda} is active and has a CUDA, where bitsandbytes looks first"
        lines.append(warning("libraries", found, "conda deactivate"))
    version = "3.12" if os.environ.get("VARIANT") == "cu13" else "3.8"  # as docker/runtime/flavour has it
    for config in CACHE.glob("env-*/pyvenv.cfg"):
        home = re.search(r"(?m)^home *= *(.+)/bin$", config.read_text(encoding="utf-8"))
        file = Path(home[1] if home else "", "lib", f"python{version}", "sitecustomize.py")
        if home and os.path.isfile(file) and "/etc/" not in str(file.resolve()):  # Debian's own is harmless
            found = f"the Python beneath the environment runs {file} at every start"
            remedy = f"move that file away, or name another Python: PYTHON{version.replace('.', '')}="
            lines.append(warning("libraries", found, remedy))
    if lines:
        return lines
    own = os.path.expanduser(f"~/.local/lib/python{version}/site-packages")  # Path.home() fails for a uid without one
    kept_out = [name for name in ("PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH") if os.environ.get(name)]
    others = kept_out + [own] * os.path.isdir(own)
    return [ok("libraries", f"kept out: {', '.join(others)}" if others else "nothing comes before the locked ones")]


def _is_cuda(file):
    return bool(re.search("libcu|nccl", os.path.basename(file)))


def check_proxies(host, need, runtime):
    """Proxies of the shell, which pip and uv use; without their passwords."""
    names = [name for name in os.environ if re.fullmatch("(http|https|all)_proxy", name.lower()) and os.environ[name]]
    if not names:
        return []
    shown = ", ".join(f"{name}={re.sub('//[^@/]*@', '//…@', os.environ[name])}" for name in sorted(names))
    socks = [name for name in names if os.environ[name].startswith("socks")]
    if socks and runtime == "host" and not find_spec("socks"):
        remedy = f"pip alone cannot use a SOCKS proxy: name an HTTP proxy, or unset {' '.join(socks)}"
        return [warning("proxy", shown, remedy)]
    return [ok("proxy", shown)]


def check_certificates(host, need, runtime):
    """Variables that name the certificates of a closed network (runtime/flavour, justw): whether the file is there."""
    names = ("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE", "CURL_CA_BUNDLE")
    given = {name: os.environ[name] for name in names if os.environ.get(name)}
    wrong = {name: path for name, path in given.items() if not os.path.exists(path)}
    if wrong:
        found = ", ".join(f"{name}={path}" for name, path in wrong.items())
        return [warning("certificate", f"{found}: there is no such file", f"correct it, or unset {' '.join(wrong)}")]
    return [ok("certificate", ", ".join(sorted(set(given.values()))))] if given else []


# Those that ask for nothing but this; the order is the printed one.
CHECKS = (
    check_memory, check_shared_memory, check_rights, check_environment, check_tools, check_libraries, check_proxies,
    check_certificates,
)  # fmt: skip


def check_disk(host, need, runtime, engine):
    """Free space on every disk that a run writes to, less what is there already.

    `engine`: {root, image} of the chosen container engine, where it keeps images and whether ours is among them.
    """
    if toml() is None:
        return []
    wanted = _writes(need, runtime, engine, cost().measurements()["disk"])
    lines = []
    for disk in sorted({_disk(place) for place, *_ in wanted}):
        here = [entry for entry in wanted if _disk(entry[0]) == disk]
        place = existing(here[0][0])
        stat = os.statvfs(str(place))
        free = stat.f_bavail * stat.f_frsize / 1e9
        whole = sum(size for _, size, _ in here)
        what = ", ".join(f"{name} {size:.1f}" for _, size, name in here)
        shown = f"{free:.1f} GB free at {place}; {whole:.1f} GB are needed ({what})"
        remedy = "free some, or move: RECIPE_CACHE= the environment, model.path= the model, --output the results"
        if host.platform:
            remedy = f"put the clone and RECIPE_CACHE on {host.platform}'s data disk, or make it larger; {remedy}"
        training = sum(size for _, size, name in here if name != MERGED)
        if free < (whole if need.stage == "merge" else training):
            lines.append(stop("disk", shown, remedy))
        elif free < whole:
            lines.append(warning("disk", f"{shown}: enough to train, not to merge", remedy))
        else:
            lines.append(ok("disk", shown))
    if not need.measured and not need.tiny:
        lines.append(ok("disk", "model and results not reckoned: only the 7B model's sizes were measured"))
    return lines


def _writes(need, runtime, engine, sizes):
    """[(folder, GB, what)] that a run will write, by the measured `sizes`."""
    wanted = []
    if runtime != "host":
        if engine.get("root") and not engine["image"]:
            wanted.append((Path(engine["root"]), sizes["environment"] + ROOM, "image"))
    elif not os.environ.get("RECIPE_ENV") and _made().code and not _made().text:
        wanted.append((CACHE, sizes["environment"] + ROOM, "environment"))
        caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        unpacked = Path(os.environ.get("UV_CACHE_DIR") or Path(caches, "uv"))
        # Where it cannot be written, docker/runtime/host puts it into ours; on one disk they share their bytes.
        if os.access(str(existing(unpacked)), os.W_OK) and _disk(unpacked) != _disk(CACHE):
            wanted.append((unpacked, sizes["environment"], "uv's cache (UV_CACHE_DIR)"))
    if need.measured:
        if need.fetched and not os.path.exists(need.model):
            wanted.append((need.model, max(0, sizes["model"] - _size(need.partly)), "model"))
        results = 2 * sizes["checkpoint"] + sizes["adapter"] - _size(need.folder / "checkpoints")
        wanted.append((need.folder, max(0, results), "checkpoints and adapter"))
        if not os.path.exists(need.folder / "merged"):
            wanted.append((need.folder, sizes["merged"], MERGED))
    return wanted


def _disk(path):
    return existing(path).stat().st_dev


def _size(folder):
    """GB of the files below a folder; 0 if there is none."""
    paths = [os.path.join(place, name) for place, _, names in os.walk(str(folder)) for name in names]
    return sum(os.path.getsize(path) for path in paths if os.path.isfile(path)) / 1e9
