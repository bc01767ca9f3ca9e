"""The NVIDIA GPU: whether its driver answers, which variant serves the card and why, whether its memory suffices."""

import os
import re
from pathlib import Path

from lines import JUST, ask, dotted, explain, numbers, ok, stop, system, warning
from needs import cost

from recipe.core.hardware import BF16_CAPABILITY, visible

# Capabilities: what the binaries of the lock were compiled for. Drivers: on Linux, and in Windows (WSL 2 shows that
# one), from the tables of the CUDA 11.8 and 13.0 Release Notes: `least` by minor version compatibility, `whole` the
# toolkit's own, which alone can compile its PTX for cards that are newer than the binaries.
VARIANTS = {
    # torch.cuda.get_arch_list() of 2.0.0+cu118: sm_37 … sm_86, sm_90
    "cu118": {
        "capability": ((3, 7), (9, 0)),
        "least": ("450.80.02", "452.39"),
        "whole": ("520.61.05", "522.06"),
        "cuda": "CUDA 11.8",
    },
    # of 2.11.0: sm_75, sm_80, sm_86, sm_90, sm_100, sm_120, which sm_121 runs
    "cu13": {
        "capability": ((7, 5), (12, 1)),
        "least": ("580.65.06", "580"),
        "whole": ("580.65.06", "580"),
        "cuda": "CUDA 13.0",
    },
}
PYPI_CAPABILITY = (8, 9)  # PyPI's torch 2.0.0 is a CUDA 11.7 build up to sm_86, which sm_89 runs and sm_90 does not
# The kernels in bitsandbytes 0.43.0's libbitsandbytes_cuda118*.so: sm_50 … sm_89, and PTX of sm_89 for newer cards.
FOUR_BIT_CAPABILITY = ((5, 0), (8, 9))
# MiB beside what training allocates: CUDA's context and cuBLAS (676 on an H100), fragmentation (a guess). Its lack is
# a warning only.
HEADROOM = 2048
# What nvidia-smi says when it fails: (its words, what it means, the remedy).
ERRORS = (
    (r"Driver/library version mismatch", "the driver was updated and the old one is still loaded",
     "reboot the machine (or unload and load the module nvidia)"),
    (r"couldn't communicate with the NVIDIA driver", "the driver's module is not loaded",
     "{driver}; after an update of the kernel build it again (sudo dkms autoinstall), for Secure Boot sign it; reboot"),
    (r"No devices were found", "the driver finds no card", "{instance}"),
    (r"GPU access blocked by the operating system", "WSL has no way to the card",
     "in Windows: update NVIDIA's driver, wsl --update, wsl --shutdown"),
    (r"Unable to determine the device handle|GPU is lost|Unknown Error",
     "the card does not answer, or a container lost it",
     "restart the container; on the host `sudo dmesg | grep -i xid` tells why, and a reboot brings the card back"),
    (r"Insufficient Permissions", "no right to the card", "look at the rights of /dev/nvidia*"),
)  # fmt: skip


def check_gpu(host, need, cards, answer):
    """(variant, lines). A recipe that needs no GPU never stops for one."""
    variant, lines = _check(host, need, cards, answer)
    if need.gpu:
        return variant, lines
    if cards and lines[0].status == "stop":
        hide = f"this recipe needs none; hide it: CUDA_VISIBLE_DEVICES= {JUST} {need.stage or 'demo'}"
        return variant, [warning("gpu", lines[0].found, hide)]
    return variant, [ok("gpu", f"{lines[0].found}; this recipe needs none")]


def _check(host, need, cards, answer):
    without = f"a machine with an NVIDIA card; without one `{JUST} demo` runs everything on a tiny model"
    if answer.code is None:
        folder = system("/usr/lib/wsl/lib")
        if os.path.exists(folder / "nvidia-smi"):
            return "", [stop("gpu", f"nvidia-smi lies in {folder}, not on the PATH", f'export PATH="$PATH:{folder}"')]
        if _has_nvidia_card():
            return "", [stop("gpu", "an NVIDIA card, but no driver (no nvidia-smi)", f"{host.driver}, then reboot")]
        return "", [stop("gpu", "no NVIDIA GPU: there is no nvidia-smi", host.instance if host.container else without)]
    if not cards:
        meaning, remedy = explain(ERRORS, answer.text, driver=host.driver, instance=host.instance)
        if answer.code == 124:
            remedy = "the driver hangs: `sudo dmesg | grep -i xid` tells why; reboot"
        return "", [stop("gpu", f"nvidia-smi fails: {meaning}", remedy or without)]
    used = visible(cards)[: need.gpus]
    if not used:
        value = os.environ.get("CUDA_VISIBLE_DEVICES")
        empty = next((card for card in cards if card.mig and not card.instances), None)
        if value is None and empty:
            remedy = f"have one made (nvidia-smi mig -cgi), or switch MIG off: sudo nvidia-smi -i {empty.index} -mig 0"
            return "", [stop("gpu", f"{empty}: MIG is on and the card has no instance: CUDA sees no GPU", remedy)]
        return "", [stop("gpu", f"CUDA_VISIBLE_DEVICES={value!r} names no card", "unset CUDA_VISIBLE_DEVICES")]
    card = used[0]
    variant, line = verdict(card, need, host)
    lines = [line]
    if line.status == "stop":
        other = next((one for one in cards if verdict(one, need, host)[1].status != "stop"), None)
        if other:
            use = f"CUDA_VISIBLE_DEVICES={other.index} {JUST} {need.stage or 'train'}"
            lines = [line._replace(remedy=f"use the other card ({other.name}): {use}")]
    else:
        if card.mode == "Prohibited":
            remedy = f"sudo nvidia-smi -i {card.index} -c DEFAULT"
            lines.append(stop("gpu", "its compute mode is Prohibited: no program may use it", remedy))
        lines.append(_memory(card, need, cards))
    for other in used[1:]:
        theirs, line = verdict(other, need, host)
        if variant and theirs and theirs != variant:
            remedy = "train on cards of one variant (CUDA_VISIBLE_DEVICES=… names them)"
            line = stop("gpu", f"{other}: takes variant {theirs}, and {card.name} {variant}", remedy)
        lines.append(line)
        if lines[-1].status != "stop":
            lines.append(_memory(other, need, cards))
    if len(used) < need.gpus:
        found = f"gpus={need.gpus}, and {len(used)} can be used here"
        lines.append(stop("gpu", found, f"gpus={len(used)} learns the same in more time"))
    rest = [str(one) for one in cards if one.index not in {card.index for card in used}]
    return variant, lines + [ok("gpu", f"beside it, not used: {'; '.join(rest)}")] * bool(rest)


def _has_nvidia_card():
    for device in system("/sys/bus/pci/devices").glob("*"):
        try:
            if (device / "vendor").read_text().strip() == "0x10de" and (device / "class").read_text().startswith(
                "0x03"
            ):
                return True
        except OSError:
            continue
    return False


def forced():
    """The variant that does not depend on the card: the one of this image, else VARIANT's; "" if there is neither."""
    image = re.match(r"env-(\w+)-", Path(os.environ.get("RECIPE_ENV", "")).resolve().name)
    return image[1] if image else os.environ.get("VARIANT", "")


def chosen(card):
    """The variant for a card, or for none: cu118, but for one that only cu13 knows. runtime/flavour asks this."""
    newer = card and card.capability and card.capability > VARIANTS["cu118"]["capability"][1]
    return forced() or ("cu13" if newer else "cu118")


def verdict(card, need, host):
    """(variant, line) for a card: which variant serves it, with the reason, and whether its driver does."""
    found, windows, variant = str(card), int(bool(host.wsl)), chosen(card)
    if variant not in VARIANTS:
        return "", stop("gpu", f"{found}: VARIANT={variant} is not known", "unset VARIANT")
    lowest, highest = VARIANTS[variant]["capability"]
    cuda = VARIANTS[variant]["cuda"]
    if card.capability is None:
        remedy = "update the driver to 510 or newer: it tells the capability"
        return variant, warning("gpu", f"{found}: this card is not known here", remedy)
    other = next(
        (name for name, of in VARIANTS.items() if of["capability"][0] <= card.capability <= of["capability"][1]), ""
    )
    if not lowest <= card.capability <= highest and other:
        what = "this image is variant" if os.environ.get("RECIPE_ENV") else "VARIANT is set to"
        remedy = f"VARIANT={other} {JUST} image makes the other" if os.environ.get("RECIPE_ENV") else "unset VARIANT"
        span = f"{dotted(lowest)} to {dotted(highest)}"
        return variant, stop("gpu", f"{found}: {what} {variant}, whose {cuda} serves {span}; it takes {other}", remedy)
    if card.capability > highest:
        return variant, stop(
            "gpu", f"{found}: newer than any variant ({cuda} ends at {dotted(highest)})", "use an older card"
        )
    if card.capability < lowest:
        return "", stop("gpu", f"{found}: no variant reaches below {dotted(lowest)}", "use a newer card")
    if need.four_bit and card.capability < FOUR_BIT_CAPABILITY[0]:
        begin = dotted(FOUR_BIT_CAPABILITY[0])
        why = f"variant {variant} runs on it, but bitsandbytes' 4-bit kernels begin at {begin}, and the recipe is QLoRA"
        return variant, stop("gpu", f"{found}: {why}", f"use a card of capability {begin} or newer")
    if variant == "cu118" and os.environ.get("TORCH") == "pypi" and card.capability > PYPI_CAPABILITY:
        return variant, stop("gpu", f"{found}: TORCH=pypi ends at {dotted(PYPI_CAPABILITY)}", "unset TORCH")
    least, whole = VARIANTS[variant]["least"][windows], VARIANTS[variant]["whole"][windows]
    if variant == "cu118" and need.four_bit and card.capability > FOUR_BIT_CAPABILITY[1]:
        least = whole  # the driver compiles bitsandbytes' kernels from PTX
    if numbers(card.driver) < numbers(least):
        remedy = host.driver_from(least)
        return variant, stop("gpu", f"{found}: variant {variant}'s {cuda} needs driver {least} here", remedy)
    why = f"variant {variant}, which serves {dotted(lowest)} to {dotted(highest)}"
    if numbers(card.driver) < numbers(whole):
        why += f"; its driver is older than {cuda}'s own ({whole}) and does by minor version compatibility"
    if need.dtype == "bf16" and card.capability < BF16_CAPABILITY:
        remedy = "train.dtype=auto or train.dtype=fp16"
        return variant, warning("gpu", f"{found}: {why}; bf16 begins at capability {dotted(BF16_CAPABILITY)}", remedy)
    return variant, ok("gpu", f"{found}: {why}")


def _memory(card, need, cards):
    """The card's memory against what the plan estimates for the recipe; who else holds it."""
    name, total, free, larger = card.name, card.total, card.free, "use a larger card"
    if card.mig:
        largest = max((one for whole in cards for one in whole.instances), key=lambda one: one.total)
        if largest.total > total:
            larger = f"use the larger instance: CUDA_VISIBLE_DEVICES={largest.uuid}"
    if not need.measured or not need.four_bit or total is None:
        why = "only QLoRA of the 7B model was measured" if need.read else "the recipe was not read"
        why = "nvidia-smi does not report this card's memory" if total is None else why
        return ok("gpu memory", f"{total or '?'} MiB, {free or '?'} free; what is needed is not known: {why}")
    way = need.way(card)
    wanted = cost().memory_mib(need.tokens, name, way)
    shown = f"{name}: {total:,} MiB, {free:,} free; {need.name} takes about {wanted:,}, as the plan estimates"
    merged = round(cost().measurements()["disk"]["merged"] * 1e9 / 2**20)
    if total < merged + HEADROOM // 2:
        shown += f" ({JUST} chat loads the merged model whole: {merged:,} and more)"
    if total < wanted:
        small = cost().memory_mib(need.tokens, name, "small")
        if need.has_fast and small <= total:
            return stop("gpu memory", shown, f"train.speed=small takes about {small:,}; or {larger}")
        return stop(
            "gpu memory", shown, f"{larger}; the model without data takes {cost().memory_mib(0, name, way):,} MiB"
        )
    if free < wanted:
        return stop("gpu memory", f"{shown}; held by {_holders(card)}", "wait for them, end them, or use another card")
    if free < wanted + HEADROOM:
        remedy = "if it runs out: train.batch_size=1 train.accumulative_counts=2 learns the same and takes less"
        return warning("gpu memory", f"{shown}: tight", remedy)
    return ok("gpu memory", shown)


def _holders(card):
    """Who holds the card's memory, as far as it is told: a container does not see others."""
    fields = "gpu_uuid,pid,process_name,used_memory"
    answer = ask("nvidia-smi", f"--query-compute-apps={fields}", "--format=csv,noheader,nounits")
    rows = [[part.strip() for part in row.split(",")] for row in answer.text.splitlines()]
    mine = [f"{row[2]} (process {row[1]}, {row[3]} MiB)" for row in rows if len(row) == 4 and row[0] == card.uuid]
    return ", ".join(mine) or "others that are not told here (the desktop, another container)"
