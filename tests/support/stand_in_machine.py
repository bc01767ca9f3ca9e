"""Machines that are not here: programs on a PATH of their own, system files below a folder that stands for /."""

import json
import shutil
import subprocess
import sys

from recipe.core import host
from support.command import ROOT

# What the scripts themselves use; nothing else of this machine is on the PATH.
TOOLS = (
    "sh", "bash", "env", "dirname", "cksum", "cut", "timeout", "grep", "head", "tail", "awk", "df", "cat", "sleep",
    "id", "sed", "realpath", "stat", "readlink",
    "mkdir", "paste",
)  # fmt: skip


UBUNTU = 'PRETTY_NAME="Ubuntu 22.04.5 LTS"\nID=ubuntu\nID_LIKE=debian\n'


IN_WSL = {"dev/dxg": "", "usr/lib/wsl/lib/libcuda.so.1": ""}


T4 = ("Tesla T4", 15360, 15101, "535.104.05", "7.5")


RTX_2080_TI = ("NVIDIA GeForce RTX 2080 Ti", 11264, 11010, "535.183.01", "7.5")


RTX_3060 = ("NVIDIA GeForce RTX 3060", 12288, 11911, "550.120", "8.6")


RTX_3090 = ("NVIDIA GeForce RTX 3090", 24576, 24247, "535.129.03", "8.6")


B200 = ("NVIDIA B200", 183359, 182640, "580.126.09", "10.0")


def nvidia_smi(*cards, mode="Default", mig="[N/A]", listed="", processes=""):
    """A program that answers as nvidia-smi does for `cards`: queries by field, -L, and unknown fields with code 2."""
    rows = []
    for number, (name, total, free, driver, capability) in enumerate(cards):
        row = {
            "index": str(number), "uuid": f"GPU-0000000{number}-aaaa", "name": name, "memory.total": str(total),
            "memory.free": str(free), "driver_version": driver, "compute_mode": mode, "compute_cap": capability,
            "memory.used": str(total - free) if str(total).isdigit() else "[N/A]",
            "mig.mode.current": mig if driver > "450" else None,
        }  # fmt: skip
        rows.append({key: value for key, value in row.items() if value is not None})
    return f"""#!{sys.executable} -S
import sys
rows, listed, processes = {rows!r}, {listed!r}, {processes!r}
for word in sys.argv[1:]:
    if word.startswith("--id="):
        rows = [row for row in rows if row["index"] == word[5:]]
    elif word == "-L":
        print(listed or "\\n".join("GPU %(index)s: %(name)s (UUID: %(uuid)s)" % row for row in rows))
    elif word.startswith("--query-compute-apps="):
        print(processes)
    elif word.startswith("--query-gpu="):
        for field in word.partition("=")[2].split(","):
            if field not in rows[0]:
                print('Field "%s" is not a valid field to query.\\n' % field)
                sys.exit(2)
        for row in rows:
            print(", ".join(row[field] for field in word.partition("=")[2].split(",")))
"""


def older_python():
    """A python3 that is 3.7, with pip."""
    hide = "import sys; sys.version_info = (3, 7, 16, 'final', 0)"
    return f"""#!/bin/sh
case $1 in
    -c) exec {sys.executable} -c "{hide}; sys.modules['pip'] = sys; exec(sys.argv[1])" "$2" ;;
    -m) echo pip 24.0 ;;
    *) shift
        place=$1
        shift
        exec {sys.executable} -B -c "{hide}; import runpy; sys.argv.pop(0); sys.path.insert(0, sys.argv[0])
runpy.run_path(sys.argv[0], run_name='__main__')" "$place" "$@" ;;
esac
"""


def fails(text, code):
    """A program that says `text` and ends with `code`."""
    return f"#!/bin/sh\ncat <<'SAID'\n{text}\nSAID\nexit {code}\n"


DOCKER_DOWN = "Cannot connect to the Docker daemon at unix:///var/run/docker.sock. Is the docker daemon running?"


MISMATCH = "Failed to initialize NVML: Driver/library version mismatch\nNVML library version: 580.126"


# What docker/runtime/host selftest says of an environment that has what it takes.
SELFTEST = "ok\tdeepspeed\tcan be imported\t\n"


def _images_and_run(images, run):
    """The end of both engines' stubs; `run`: what `docker run` says, and its code."""
    return f"""    image) printf '%s\\n' {images!r} ;;
    run) case $* in *selftest*) printf {SELFTEST!r}; exit ;; esac
        cat <<'SAID'
{run[0]}
SAID
        exit {run[1]} ;;
esac
"""


def docker(version="24.0.7", runtimes="runc", images="", run=("", 0), system="Ubuntu 22.04.5 LTS", security="seccomp"):
    """docker with a daemon."""
    return f"""#!/bin/sh
case $1 in
    --version) echo "Docker version {version}, build afdd53b" ;;
    info) echo '{version}|{system}|{runtimes} |[name={security}]|/var/lib/docker' ;;
    context) echo unix:///var/run/docker.sock ;;
{_images_and_run(images, run)}"""


def podman(version="4.3.1", rootless="true", images="", run=("", 0), runtime="crun"):
    return f"""#!/bin/sh
case $1 in
    --version) echo "podman version {version}" ;;
    info) echo '{version}|/home/tester/.local/share/containers/storage|{rootless}|{runtime}' ;;
{_images_and_run(images, run)}"""


# Of the recipe's code, what the doctor reads.


class Machine:
    """A machine of the test's own: programs on its PATH, files of its system, variables of its shell."""

    def __init__(self, folder):
        self.programs, self.system, self.home = folder / "bin", folder / "root", folder / "home"
        for place in (self.programs, self.system, self.home):
            place.mkdir()
        for name in TOOLS:
            (self.programs / name).symlink_to(shutil.which(name))
        self.files(**{"etc/os-release": UBUNTU, "proc/version": "Linux version 5.15.0-122-generic\n"})
        self.files(**{"proc/meminfo": "MemTotal: 65536000 kB\nMemAvailable:   60000000 kB\n"})
        self.files(**{"etc/subuid": "tester:100000:65536\n"})
        (self.system / "dev" / "shm").mkdir(parents=True)
        self.root = ROOT
        self.variables = {"PYTHON": sys.executable, "TORCH": "pypi"}
        self.cache = folder / "cache"
        # just, uv and the environment count as made, unless a test says otherwise: 5.6 GB are not asked of this disk.
        self.tools = self.cache / f"tools-{_checksum(ROOT / 'docker/locks/tools.lock')}" / "bin"
        self.tools.mkdir(parents=True)
        (self.tools / "uv").touch()
        for lock, kind in (
            ("cu118-pypi.lock", "cu118-pypi"),
            ("cu118.lock", "cu118-cu118"),
            ("cu13.lock", "cu13-pypi"),
        ):
            made = self.cache / f"env-{kind}-{_checksum(ROOT / 'docker/locks' / lock)}"
            (made / "bin").mkdir(parents=True)
            (made / ".ready").touch()
        self.selftest(f"printf {SELFTEST!r}")
        locks = ROOT / "docker/locks"
        for lock in (*locks.glob("more*.lock"), locks / "smollm2.lock"):
            packages = self.cache / f"{lock.stem.split('-')[0]}-{_checksum(lock)}"
            packages.mkdir()
            (packages / ".ready").touch()

    def selftest(self, script):
        """What the environments' Python does: docker/runtime/host selftest starts it."""
        for made in self.cache.glob("env-*"):
            version = "3.12" if "cu13" in made.name else "3.8"
            fake = f"#!/bin/sh\ncase $1 in -I) echo {version}; exit ;; esac\n{script}\n"  # asked whether it starts
            (made / "bin/python").write_text(fake, encoding="utf-8")
            (made / "bin/python").chmod(0o755)

    def files(self, **texts):
        for name, text in texts.items():
            (self.system / name).parent.mkdir(parents=True, exist_ok=True)
            (self.system / name).write_text(text, encoding="utf-8")

    def has(self, **programs):
        host._gpus.cache_clear()  # asked once a process
        for name, text in programs.items():
            path = self.programs / name.replace("_", "-")
            if path.exists():
                path.unlink()  # it may be a link to this machine's own: that must not be written through
            path.write_text(text, encoding="utf-8")
            path.chmod(0o755)
        if "nvidia_smi" in programs and "exit" not in programs["nvidia_smi"].split("\n")[-2]:
            self.files(**{"dev/nvidiactl": ""})

    def run(self, *words, program="docker/runtime/doctor", **variables):
        environment = {
            "PATH": str(self.programs), "HOME": str(self.home), "USER": "tester", "LANG": "C.UTF-8",
            "DOCTOR_ROOT": str(self.system), "RECIPE_CACHE": str(self.cache), **self.variables, **variables,
        }  # fmt: skip
        start = [str(self.root / program)] if program != "just" else ["just", "--justfile", str(self.root / "justfile")]
        return subprocess.run(
            [*start, *words], env=environment, cwd=str(self.home), stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip

    def doctor(self, *words, **variables):
        """{name: its worst line} and the whole answer of `doctor --json`."""
        done = self.run(*words, "--json", **variables)
        assert done.returncode in (0, 3), done.stdout + done.stderr
        found = json.loads(done.stdout)
        order = ("ok", "warning", "stop")
        worst = {}
        for line in found["checks"]:
            if line["name"] not in worst or order.index(line["status"]) > order.index(worst[line["name"]]["status"]):
                worst[line["name"]] = line
        assert (done.returncode == 3) == (found["status"] == "stop")
        return worst, found


def _checksum(path):
    return subprocess.run(["cksum", str(path)], stdout=subprocess.PIPE, check=True).stdout.decode().split()[0]


def clone_for_the_doctor(clone):
    """Puts the doctor and what it reads into a clone of its own."""
    shutil.copytree(str(ROOT / "docker"), str(clone / "docker"))
    shutil.copytree(str(ROOT / "recipe"), str(clone / "recipe"), ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(str(ROOT / "justfile"), str(clone))
    return clone


LITTLE = {"environment": 0.001, "model": 0.001, "checkpoint": 0.001, "adapter": 0.001, "merged": 0.001}


def told(line, status, *words):
    assert line["status"] == status, line
    for word in words:
        assert word in f"{line['found']} → {line['remedy']}", line


# --- container engines ---


def without_environment(machine):
    shutil.rmtree(str(machine.cache))
    machine.cache.mkdir()


NVIDIA = "nvidia runc"


PULLED = {"RECIPE_IMAGE": "docker://ghcr.io/me/recipe:1"}
