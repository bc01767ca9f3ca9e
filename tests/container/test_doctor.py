"""`just doctor` on machines that are not here: recorded answers of nvidia-smi, docker and podman, given by programs of
those names on a PATH of the test's own; system files below a folder that stands for / (DOCTOR_ROOT).
"""

import json
import os
import re
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
from conftest import ROOT

# What the scripts themselves use; nothing else of this machine is on the PATH.
TOOLS = (
    "sh", "bash", "env", "dirname", "cksum", "cut", "timeout", "grep", "head", "tail", "awk", "df", "cat", "sleep",
    "id", "sed", "realpath", "stat", "readlink",
    "mkdir", "paste",
)  # fmt: skip
UBUNTU = 'PRETTY_NAME="Ubuntu 22.04.5 LTS"\nID=ubuntu\nID_LIKE=debian\n'
IN_WSL = {"dev/dxg": "", "usr/lib/wsl/lib/libcuda.so.1": ""}
WSL = "Linux version 5.15.167.4-microsoft-standard-WSL2 (root@f9c826d3017f) (gcc (GCC) 11.2.0) #1 SMP\n"

# What nvidia-smi answers: name, memory.total, memory.free, driver, capability. The H100's row was taken from one; the
# others' names, sizes and drivers are those of logs that their users published. Drivers before 510 are not asked for
# the capability with success.
H100 = ("NVIDIA H100 80GB HBM3", 81559, 81079, "580.159.04", "9.0")
K80 = ("Tesla K80", 11441, 11338, "470.82.01", None)
P100 = ("Tesla P100-PCIE-16GB", 16280, 16280, "460.32.03", None)
V100 = ("Tesla V100-SXM2-16GB", 16384, 16151, "525.85.12", "7.0")
T4 = ("Tesla T4", 15360, 15101, "535.104.05", "7.5")
RTX_2080_TI = ("NVIDIA GeForce RTX 2080 Ti", 11264, 11010, "535.183.01", "7.5")
RTX_3060 = ("NVIDIA GeForce RTX 3060", 12288, 11911, "550.120", "8.6")
RTX_3090 = ("NVIDIA GeForce RTX 3090", 24576, 24247, "535.129.03", "8.6")
RTX_4090 = ("NVIDIA GeForce RTX 4090", 24564, 24207, "525.105.17", "8.9")
A100 = ("NVIDIA A100-SXM4-80GB", 81920, 81226, "525.60.13", "8.0")
L4 = ("NVIDIA L4", 23034, 22565, "535.216.01", "8.9")
RTX_5090 = ("NVIDIA GeForce RTX 5090", 32607, 32110, "570.133.07", "12.0")
H200 = ("NVIDIA H200", 143771, 143155, "580.159.04", "9.0")
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
        for lock in (ROOT / "docker/locks").glob("more*.lock"):
            more = self.cache / f"more-{_checksum(lock)}"
            more.mkdir()
            (more / ".ready").touch()

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


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


def clone_for_the_doctor(clone):
    """Puts the doctor and what it reads into a clone of its own."""
    shutil.copytree(str(ROOT / "docker"), str(clone / "docker"))
    shutil.copytree(str(ROOT / "recipe"), str(clone / "recipe"), ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(str(ROOT / "justfile"), str(clone))
    return clone


@pytest.fixture
def measured(machine, tmp_path):
    """A clone of the doctor's own, with sizes (GB) of the test's choice."""
    clone = clone_for_the_doctor(tmp_path / "我的 clone")

    def measure(**sizes):
        text = (ROOT / "recipe/core/measured.toml").read_text(encoding="utf-8")
        table = "".join(f"{name} = {size}\n" for name, size in sizes.items())
        (clone / "recipe/core/measured.toml").write_text(
            text[: text.index("[disk]")] + "[disk]\n" + table, encoding="utf-8"
        )
        machine.root = clone

    return measure


LITTLE = {"environment": 0.001, "model": 0.001, "checkpoint": 0.001, "adapter": 0.001, "merged": 0.001}


def told(line, status, *words):
    assert line["status"] == status, line
    for word in words:
        assert word in f"{line['found']} → {line['remedy']}", line


@pytest.mark.parametrize(
    ("card", "variant", "gpu", "memory", "words"),
    [
        (K80, "cu118", "stop", None, ["3.7", "4-bit kernels begin at 5.0"]),
        (P100, "cu118", "ok", "ok", ["6.0", "minor version compatibility", "520.61.05"]),
        (V100, "cu118", "ok", "ok", ["7.0", "cu118"]),
        (T4, "cu118", "ok", "ok", ["7.5"]),
        (RTX_2080_TI, "cu118", "ok", "warning", ["7.5"]),
        (RTX_3060, "cu118", "ok", "ok", ["8.6"]),
        (RTX_3090, "cu118", "ok", "ok", ["8.6", "3.7 to 9.0"]),
        (RTX_4090, "cu118", "ok", "ok", ["8.9"]),
        (A100, "cu118", "ok", "ok", ["8.0"]),
        (L4, "cu118", "ok", "ok", ["8.9"]),
        (H100, "cu118", "ok", "ok", ["9.0"]),
        (RTX_5090, "cu13", "stop", None, ["12.0", "CUDA 13.0 needs driver 580.65.06", "570.133.07"]),
        (B200, "cu13", "ok", "ok", ["10.0", "7.5 to 12.1"]),
        (("NVIDIA Rubin", 294912, 294000, "620.10", "13.0"), "cu13", "stop", None, ["13.0", "newer than any variant"]),
        # capability by name where the driver does not tell it, with and without NVIDIA in it
        (("GeForce GTX 1080 Ti", 11178, 11170, "450.80.02", None), "cu118", "ok", "warning", ["6.1"]),
        (("NVIDIA GeForce RTX 3090", 24268, 24000, "470.182.03", None), "cu118", "ok", "ok", ["8.6"]),
        (("NVIDIA TITAN Xp", 12196, 12190, "470.182.03", None), "cu118", "ok", "warning", ["6.1"]),
        (("NVIDIA A30", 24258, 24000, "470.182.03", None), "cu118", "ok", "ok", ["8.0"]),
        # too old a driver; one that may not compile the 4-bit kernels for a card newer than they are
        (("Tesla V100-SXM2-16GB", 16160, 16160, "418.67", None), "cu118", "stop", None, ["450.80.02", "418.67"]),
        (("NVIDIA H100 PCIe", 81559, 81000, "515.105.01", "9.0"), "cu118", "stop", None, ["520.61.05"]),
        (("Tesla K40m", 11441, 11441, "470.82.01", None), "", "stop", None, ["3.5", "less than 3.7"]),
        (("NVIDIA GeForce GTX 1650", 4096, 3900, "535.183.01", "7.5"), "cu118", "ok", "stop", ["7.5"]),
    ],
    ids=lambda value: value[0].replace("NVIDIA ", "") if isinstance(value, tuple) else None,
)
def test_cards_and_drivers(machine, card, variant, gpu, memory, words):
    machine.has(nvidia_smi=nvidia_smi(card))
    lines, found = machine.doctor(TORCH="cu118")
    assert found["variant"] == variant
    told(lines["gpu"], gpu, *words, card[0])
    assert lines["gpu memory"]["status"] == memory if memory else "gpu memory" not in lines
    if memory and card[1] < 15800:  # 15.5 GB of merged weights
        assert "just chat loads the whole merged model" in lines["gpu memory"]["found"] or memory == "stop"
    if gpu == "stop":
        assert lines["gpu"]["remedy"]


def test_the_need_is_what_the_plan_reckons(machine, monkeypatch):
    """10,580 MiB were measured on an RTX 3090 with 2 × 512; more tokens take more; coach's way is the plan's."""
    machine.has(nvidia_smi=nvidia_smi(RTX_3090))
    told(machine.doctor("train.speed=stock")[0]["gpu memory"], "ok", "10,580")
    from recipe.core import measurements, settings
    from recipe.xtuner import step_choice

    # Nothing is recomputed where the card has room for it; a card that was never measured is no exception.
    for card in (RTX_3060, RTX_3090, H200):
        machine.has(nvidia_smi=nvidia_smi(card))
        monkeypatch.setenv("PATH", str(machine.programs))
        for words in ((), ("train.checkpointing=true",), ("train.batch_size=4", "train.max_length=2048")):
            chosen = settings.load("coach", list(words))[1]
            batch, length = step_choice.batch_shape(chosen)
            plan = {"batch_size": batch, "max_length": length, "iterations": 1}
            plan["way"] = step_choice.way(chosen, batch * length)
            planned = measurements.estimate(plan, "", 0)
            assert planned["card"] == card[0]
            line = machine.doctor("coach", *words, TORCH="cu118")[0]["gpu memory"]
            assert f"takes about {planned['memory_mib']:,}," in line["found"], (card, words, plan["way"])
    assert plan["way"] == "kept"
    machine.has(nvidia_smi=nvidia_smi(RTX_3090))

    more = measurements.estimate({"batch_size": 8, "max_length": 4096, "iterations": 1}, "NVIDIA GeForce RTX 3090", 0)
    lines, _ = machine.doctor("coach", "train.speed=stock", "train.batch_size=8", "train.max_length=4096")
    told(lines["gpu memory"], "stop", f"{more['memory_mib']:,}", "larger card")
    told(machine.doctor("train.method=lora")[0]["gpu memory"], "ok", "not known", "only QLoRA")


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        (MISMATCH, 18, ["updated", "reboot"]),
        ("No devices were found", 6, ["no card", "lspci"]),
        ("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. Make sure that the latest "
         "NVIDIA driver is installed and running.", 9, ["not loaded", "ubuntu-drivers install", "dkms"]),
        ("Failed to initialize NVML: Unknown Error", 255, ["does not answer", "restart the container"]),
        ("Unable to determine the device handle for GPU 0000:65:00.0: GPU is lost.  Reboot the system to recover this "
         "GPU", 15, ["does not answer", "xid"]),
        ("Failed to initialize NVML: GPU access blocked by the operating system", 17, ["WSL", "wsl --update"]),
        ("Failed to initialize NVML: Something New", 3, ["Something New", "just demo"]),
        ("", 0, ["no message"]),
        ("one, two\nthree", 0, ["three"]),
        ("\x1b[31m\u4e2d\0, ,, " * 40, 1, ["nvidia-smi fails"]),
    ],
    ids=lambda value: None if not isinstance(value, str) else value.split("\n")[0][-30:],
)  # fmt: skip
def test_an_nvidia_smi_that_fails(machine, text, code, words):
    machine.has(nvidia_smi=fails(text, code))
    told(machine.doctor()[0]["gpu"], "stop", *words)
    told(machine.doctor("demo")[0]["gpu"], "ok", "needs none")


def test_no_driver_and_no_card(machine):
    told(machine.doctor()[0]["gpu"], "stop", "no NVIDIA GPU", "just demo")
    machine.files(
        **{
            "sys/bus/pci/devices/0000:01:00.0/vendor": "0x10de\n",
            "sys/bus/pci/devices/0000:01:00.0/class": "0x030000\n",
        }
    )
    told(machine.doctor()[0]["gpu"], "stop", "no driver", "sudo ubuntu-drivers install")
    machine.files(**{"etc/os-release": 'ID=rocky\nID_LIKE="rhel centos fedora"\n'})
    told(machine.doctor()[0]["gpu"], "stop", "NVIDIA's driver")
    machine.files(**{".dockerenv": ""})
    machine.has(nvidia_smi=fails("No devices were found", 6))
    told(machine.doctor()[0]["gpu"], "stop", "start an instance")


@pytest.mark.parametrize(
    ("release", "older", "newer", "docker"),
    [
        (UBUNTU, "ubuntu-drivers install", "ubuntu-drivers install (580.65.06", "sudo apt-get install -y docker.io"),
        ("ID=debian\n", "apt-get install -y nvidia-driver", "repository ({}): sudo apt-get install -y nvidia-open",
         "sudo apt-get install -y docker.io"),
        ("ID=fedora\n", "akmod-nvidia (RPM Fusion", "akmod-nvidia (RPM Fusion", "sudo dnf install -y moby-engine"),
        ('ID=rocky\nID_LIKE="rhel centos fedora"\n', "dnf install -y nvidia-open", "dnf install -y nvidia-open",
         "install docker-ce from Docker's repository: docs.docker.com/engine/install"),
        ('ID="opensuse-leap"\nID_LIKE="suse opensuse"\n', "zypper install -y nvidia-open", "({}): sudo zypper",
         "sudo zypper install -y docker"),
        ("ID=arch\n", "sudo pacman -S nvidia-open", "nvidia-580xx-dkms", "sudo pacman -S docker"),
    ],
    ids=["ubuntu", "debian", "fedora", "rocky", "suse", "arch"],
)  # fmt: skip
def test_packages_by_their_names_of_today(machine, monkeypatch, release, older, newer, docker):
    """Debian's own driver is older than what CUDA 13 needs."""
    guide = "docs.nvidia.com/datacenter/tesla/driver-installation-guide"
    machine.files(**{"etc/os-release": release, "proc/version": "Linux version 6.12"})
    monkeypatch.syspath_prepend(str(ROOT / "docker/doctor"))
    monkeypatch.setenv("DOCTOR_ROOT", str(machine.system))
    import machine as checks

    host = checks.Host()
    assert older in host.driver_from("450.80.02")
    assert newer.format(guide) in host.driver_from("580.65.06")
    assert host.package("docker") == docker
    machine.has(nvidia_smi=nvidia_smi(RTX_5090))
    if "debian" in release and "Ubuntu" not in release:
        told(machine.doctor()[0]["gpu"], "stop", newer.format(guide), "580.65.06")


def test_mig(machine):
    listed = "GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-5d5ba0d6)\n"
    card = ("NVIDIA A100-SXM4-40GB", 40960, 40536, "525.60.13", "8.0")
    machine.has(nvidia_smi=nvidia_smi(card, mig="Enabled", listed=listed))
    told(machine.doctor()[0]["gpu"], "stop", "no instance", "-mig 0")
    listed += (
        "  MIG 1g.5gb      Device  0: (UUID: MIG-c6d4f1ef-42e4-5de3-91c7-45d71c87eb3f)\n"
        "  MIG 3g.20gb     Device  1: (UUID: MIG-e07a497d-1bb6-5a42-b670-1c33bf55ab6e)\n"
    )
    machine.has(nvidia_smi=nvidia_smi(card, mig="Enabled", listed=listed))
    larger = "MIG-e07a497d-1bb6-5a42-b670-1c33bf55ab6e"
    told(machine.doctor()[0]["gpu memory"], "stop", "1g.5gb", f"CUDA_VISIBLE_DEVICES={larger}")
    told(machine.doctor(CUDA_VISIBLE_DEVICES=larger)[0]["gpu memory"], "ok", "3g.20gb")


def test_other_processes_on_the_card(machine):
    processes = "GPU-00000000-aaaa, 4711, /usr/bin/ollama, 18120\nGPU-00000001-aaaa, 4712, python3, 9"
    machine.has(nvidia_smi=nvidia_smi((*RTX_3090[:2], 6100, *RTX_3090[3:]), processes=processes))
    lines, _ = machine.doctor()
    told(lines["gpu memory"], "stop", "/usr/bin/ollama (process 4711, 18120 MiB)", "end them")
    assert "4712" not in lines["gpu memory"]["found"]
    machine.has(nvidia_smi=nvidia_smi((*RTX_3090[:2], 6100, *RTX_3090[3:])))
    told(machine.doctor()[0]["gpu memory"], "stop", "not visible here")


def test_several_cards(machine):
    machine.has(nvidia_smi=nvidia_smi(RTX_5090, RTX_4090))
    told(machine.doctor()[0]["gpu"], "stop", "CUDA_VISIBLE_DEVICES=1 just train", "RTX 4090")
    told(machine.doctor(CUDA_VISIBLE_DEVICES="1")[0]["gpu"], "ok", "RTX 4090")
    told(machine.doctor(CUDA_VISIBLE_DEVICES="GPU-00000001")[0]["gpu"], "ok", "RTX 4090")
    for hidden in ("", "-1", "7"):
        told(machine.doctor(CUDA_VISIBLE_DEVICES=hidden)[0]["gpu"], "stop", "names no card")
    machine.has(nvidia_smi=nvidia_smi(RTX_4090, RTX_4090))
    told(machine.doctor("coach", "gpus=2")[0]["gpu"], "ok")
    told(machine.doctor("coach", "gpus=3")[0]["gpu"], "stop", "gpus=3, and 2 can be used here", "gpus=2 gives")
    hidden = machine.doctor("coach", "gpus=2", CUDA_VISIBLE_DEVICES="1")[0]
    told(hidden["gpu"], "stop", "gpus=2, and 1 can be used here")
    machine.has(nvidia_smi=nvidia_smi(RTX_4090, RTX_5090))
    told(machine.doctor("coach", "gpus=2")[0]["gpu"], "stop", "RTX 5090", "takes variant cu13", "one variant")
    machine.has(nvidia_smi=nvidia_smi(RTX_4090, RTX_5090, mode="Prohibited"))
    told(machine.doctor()[0]["gpu"], "stop", "Prohibited", "-c DEFAULT")


def test_training_finds_the_card_of_an_older_driver_too(machine, monkeypatch):
    """Its nvidia-smi knows no compute_cap: the name tells it, else PyTorch, which also knows the memory of a card that
    shares the CPU's.
    """
    import torch

    from recipe.core.host import gpus

    machine.has(nvidia_smi=nvidia_smi(("NVIDIA GeForce RTX 3090", 24268, 24000, "470.182.03", None)))
    monkeypatch.setenv("PATH", str(machine.programs))
    card = {"name": "NVIDIA GeForce RTX 3090", "memory_mib": 24268, "driver": "470.182.03", "capability": "8.6"}
    assert gpus() == [card]
    machine.has(
        nvidia_smi=nvidia_smi(("NVIDIA GB10", "[N/A]", "[N/A]", "580.95.05", "12.1"), ("X", 9, 9, "470.1", "[N/A]"))
    )
    assert gpus() == []  # PyTorch reaches neither here
    known = [SimpleNamespace(major=12, minor=1, total_memory=119 << 30), SimpleNamespace(major=8, minor=6)]
    known[1].total_memory = 1 << 30
    monkeypatch.setattr(torch.cuda, "get_device_properties", known.__getitem__)
    assert [(c["memory_mib"], c["capability"]) for c in gpus()] == [(119 << 10, "12.1"), (9, "8.6")]
    told(machine.doctor()[0]["gpu memory"], "ok", "? MiB", "not known")
    machine.has(nvidia_smi=nvidia_smi(RTX_3090))
    assert gpus()[0]["capability"] == "8.6"
    machine.has(nvidia_smi=fails(MISMATCH, 18))
    assert gpus() == []


def test_settings_that_do_not_fit_the_card(machine):
    machine.has(nvidia_smi=nvidia_smi(H100))
    told(machine.doctor(TORCH="pypi")[0]["gpu"], "stop", "TORCH=pypi", "unset TORCH")
    machine.has(nvidia_smi=nvidia_smi(T4))
    told(machine.doctor("train.dtype=bf16")[0]["gpu"], "warning", "bf16 begins at capability 8.0")
    lines, found = machine.doctor(VARIANT="cu13")
    told(lines["gpu"], "stop", "variant cu13's CUDA 13.0 needs driver 580.65.06")
    assert found["variant"] == "cu13"
    machine.has(nvidia_smi=nvidia_smi((*V100[:3], "580.126.09", V100[4])))
    told(machine.doctor(VARIANT="cu13")[0]["gpu"], "stop", "set to cu13", "7.5 to 12.1", "needs cu118", "unset VARIANT")
    machine.has(nvidia_smi=nvidia_smi(B200))
    told(machine.doctor(VARIANT="cu118")[0]["gpu"], "stop", "set to cu118", "3.7 to 9.0", "needs cu13", "unset VARIANT")
    image = str(next(machine.cache.glob("env-cu118-cu118-*")))
    told(machine.doctor(RECIPE_ENV=image)[0]["gpu"], "stop", "this image is variant cu118", "VARIANT=cu13 just image")
    told(machine.doctor(VARIANT="cu12")[0]["gpu"], "stop", "VARIANT=cu12 is not known", "unset VARIANT")


def test_demo_on_a_plain_machine_has_nothing_to_say(machine):
    """No GPU, no engine: every line is ok, and before the stage not a word is printed."""
    _, found = machine.doctor("demo")
    assert found["status"] == "ok", found
    assert (found["runtime"], found["variant"]) == ("host", "")
    for before in ("demo", "train"):
        done = machine.run("--before", before, "demo")
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_demo_hides_a_card_that_no_variant_serves(machine):
    machine.has(nvidia_smi=nvidia_smi(RTX_5090))
    told(machine.doctor("demo")[0]["gpu"], "warning", "CUDA_VISIBLE_DEVICES= just demo")


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


def test_a_card_of_8_gb_is_told_what_fits(machine):
    """By itself coach takes least memory there; as XTuner ships it, it does not fit."""
    machine.has(nvidia_smi=nvidia_smi(("NVIDIA GeForce RTX 3060 Ti", 8192, 8000, "550.120", "8.6")))
    from recipe.core import measurements

    small = f"{measurements.memory_mib(1024, 'RTX 3060 Ti', 'small'):,}"
    told(machine.doctor()[0]["gpu memory"], "warning", f"coach takes about {small}", "tight")
    told(machine.doctor("train.speed=stock")[0]["gpu memory"], "stop", f"train.speed=small takes about {small}")
    two = machine.doctor("coach", "gpus=2")[0]["gpu memory"]
    told(two, "stop", f"train.speed=small takes about {small}")  # by itself several cards take XTuner's own step
    for words in (("train.method=full",), ("train.method=lora", "train.deepspeed=deepspeed_zero3")):
        found = machine.doctor("coach", *words, "train.speed=stock")[0]["gpu memory"]
        assert "train.speed=small" not in str(found)  # which trains adapters, on weights that lie whole on the card


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


# --- container engines ---


def without_environment(machine):
    shutil.rmtree(str(machine.cache))
    machine.cache.mkdir()


TOOLKIT = ["lacks the NVIDIA Container Toolkit", "sudo apt-get install -y nvidia-container-toolkit"]
IMAGE = "registry.example/me/internlm2-recipe:cu118"
NVIDIA = "nvidia runc"
PULLED = {"RECIPE_IMAGE": "docker://ghcr.io/me/recipe:1"}


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
    assert "instance" in lines["gpu"]["remedy"]
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
    """Then it says what it could not reckon; the environment's own reader serves as soon as there is one."""
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
    """By the doctor as by the model stage, for both hubs: what is there is not reckoned again."""
    from recipe.base_model import record
    from recipe.core import settings
    from recipe.core.run import Run

    monkeypatch.syspath_prepend(str(ROOT / "docker" / "doctor"))
    import needs

    _, coach = settings.load("coach")
    for source in ("modelscope", "huggingface"):
        recipe = settings.replace(coach, "model.source", source)
        found = needs.Need("coach", recipe.model_dump(), "train", "output").partly
        assert found == record.staging_folder(Run("coach", recipe, ROOT, ROOT / "output"))
