"""`just doctor` on cards and drivers."""

from types import SimpleNamespace

import pytest

from support.command import ROOT
from support.stand_in_machine import (
    B200,
    MISMATCH,
    RTX_2080_TI,
    RTX_3060,
    RTX_3090,
    T4,
    UBUNTU,
    fails,
    nvidia_smi,
    told,
)

# What nvidia-smi answers: name, memory.total, memory.free, driver, capability. The H100's row was taken from one; the
# others' names, sizes and drivers are those of logs that their users published. Drivers before 510 are not asked for
# the capability with success.
H100 = ("NVIDIA H100 80GB HBM3", 81559, 81079, "580.159.04", "9.0")


K80 = ("Tesla K80", 11441, 11338, "470.82.01", None)


P100 = ("Tesla P100-PCIE-16GB", 16280, 16280, "460.32.03", None)


V100 = ("Tesla V100-SXM2-16GB", 16384, 16151, "525.85.12", "7.0")


RTX_4090 = ("NVIDIA GeForce RTX 4090", 24564, 24207, "525.105.17", "8.9")


A100 = ("NVIDIA A100-SXM4-80GB", 81920, 81226, "525.60.13", "8.0")


L4 = ("NVIDIA L4", 23034, 22565, "535.216.01", "8.9")


RTX_5090 = ("NVIDIA GeForce RTX 5090", 32607, 32110, "570.133.07", "12.0")


H200 = ("NVIDIA H200", 143771, 143155, "580.159.04", "9.0")


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
            planned = measurements.estimate(plan, "")
            assert planned["card"] == card[0]
            line = machine.doctor("coach", *words, TORCH="cu118")[0]["gpu memory"]
            assert f"takes about {planned['memory_mib']:,}," in line["found"], (card, words, plan["way"])
    assert plan["way"] == "kept"
    machine.has(nvidia_smi=nvidia_smi(RTX_3090))

    more = measurements.estimate({"batch_size": 8, "max_length": 4096, "iterations": 1}, "NVIDIA GeForce RTX 3090")
    lines, _ = machine.doctor("coach", "train.speed=stock", "train.batch_size=8", "train.max_length=4096")
    told(lines["gpu memory"], "stop", f"{more['memory_mib']:,}", "larger card")
    told(machine.doctor("train.method=lora")[0]["gpu memory"], "ok", "not known", "only QLoRA")


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        (MISMATCH, 18, ["updated", "reboot"]),
        ("No devices were found", 6, ["no card", "lspci", "just demo"]),
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
    told(machine.doctor()[0]["gpu"], "stop", "start an instance", "just demo")


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

    from recipe.core import host

    machine.has(nvidia_smi=nvidia_smi(("NVIDIA GeForce RTX 3090", 24268, 24000, "470.182.03", None)))
    monkeypatch.setenv("PATH", str(machine.programs))
    card = {"name": "NVIDIA GeForce RTX 3090", "memory_mib": 24268, "driver": "470.182.03", "capability": "8.6"}
    assert host.gpus() == [card]
    machine.has(
        nvidia_smi=nvidia_smi(("NVIDIA GB10", "[N/A]", "[N/A]", "580.95.05", "12.1"), ("X", 9, 9, "470.1", "[N/A]"))
    )
    assert [c["name"] for c in host.gpus()] == ["NVIDIA GB10"]  # PyTorch reaches neither here
    host._gpus.cache_clear()
    known = [SimpleNamespace(major=12, minor=1, total_memory=119 << 30), SimpleNamespace(major=8, minor=6)]
    known[1].total_memory = 1 << 30
    monkeypatch.setattr(torch.cuda, "get_device_properties", known.__getitem__)
    assert [(c["memory_mib"], c["capability"]) for c in host.gpus()] == [(119 << 10, "12.1"), (9, "8.6")]
    told(machine.doctor()[0]["gpu memory"], "ok", "? MiB", "not known")
    machine.has(nvidia_smi=nvidia_smi(RTX_3090))
    assert host.gpus()[0]["capability"] == "8.6"
    machine.has(nvidia_smi=fails(MISMATCH, 18))
    assert host.gpus() == []


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


def test_demo_hides_a_card_that_no_variant_serves(machine):
    machine.has(nvidia_smi=nvidia_smi(RTX_5090))
    told(machine.doctor("demo")[0]["gpu"], "warning", "CUDA_VISIBLE_DEVICES= just demo")


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
