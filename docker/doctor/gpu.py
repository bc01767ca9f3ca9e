"""Checks the NVIDIA GPU: its driver answers, a variant supports the card, its memory is enough."""

import os
import re
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

from lines import JUST, Line, ask, dotted, explain, numbers, ok, stop, system, warning
from machine import Host
from needs import Need, cost

from recipe.core.hardware import BF16_CAPABILITY, Answer, Card, visible
from recipe.core.translation import _, listed, mark

# Capabilities that the lock's binaries were compiled for. Drivers on Linux and in Windows (WSL 2 shows that one), from
# the CUDA 11.8 and 13.0 Release Notes: `least` runs by minor version compatibility; `whole` is the toolkit's own, which
# can also compile PTX for cards that are newer than the binaries.
VARIANTS: Dict[str, Dict[str, Any]] = {
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
PYPI_CAPABILITY = (8, 9)  # PyPI's torch 2.0.0 is a CUDA 11.7 build up to sm_86, which also runs on sm_89
# bitsandbytes 0.43.0's libbitsandbytes_cuda118*.so has kernels for sm_50 … sm_89, and PTX of sm_89 for newer cards.
FOUR_BIT_CAPABILITY = ((5, 0), (8, 9))
# MiB in addition to training's allocations: CUDA's context and cuBLAS (676 on an H100), fragmentation (a guess). Less
# is only a warning.
HEADROOM = 2048
# nvidia-smi's error messages: (pattern, meaning, remedy).
ERRORS = (
    (r"Driver/library version mismatch", mark("the driver was updated and the old one is still loaded"),
     mark("reboot the machine (or unload and load the module nvidia)")),
    (r"couldn't communicate with the NVIDIA driver", mark("the driver's module is not loaded"),
     mark("{driver}; after an update of the kernel build it again (sudo dkms autoinstall), for Secure Boot sign it; "
          "reboot")),
    (r"No devices were found", mark("the driver finds no card"), "{instance}"),
    (r"GPU access blocked by the operating system", mark("WSL cannot access the card"),
     mark("in Windows: update NVIDIA's driver, wsl --update, wsl --shutdown")),
    (r"Unable to determine the device handle|GPU is lost|Unknown Error",
     mark("the card does not answer, or a container lost it"),
     mark("restart the container; on the host `sudo dmesg | grep -i xid` shows why, and a reboot restores the card")),
    (r"Insufficient Permissions", mark("no access to the card"), mark("check the rights of /dev/nvidia*")),
)  # fmt: skip


OTHER_VARIANT = mark(
    "{card}: VARIANT is set to {variant}, whose {cuda} supports {low} to {high}; this card needs {needed}"
)
OTHER_IMAGE = mark(
    "{card}: this image is variant {variant}, whose {cuda} supports {low} to {high}; this card needs {needed}"
)
SUPPORTED = mark("{card}: variant {variant}, which supports {low} to {high}")
SUPPORTED_BY_MINOR = mark(
    "{card}: variant {variant}, which supports {low} to {high}; its driver is older than {cuda}'s own ({whole}) and "
    "works by minor version compatibility"
)
Checked = Tuple[str, List[Line]]  # variant, results


def check_gpu(host: Host, need: Need, cards: List[Card], answer: Answer) -> Checked:
    """(variant, lines); no stop where the recipe needs no GPU. `answer` is nvidia-smi's."""
    variant, lines = _check(host, need, cards, answer)
    if need.gpu:
        return variant, lines
    if cards and lines[0].status == "stop":
        command = f"CUDA_VISIBLE_DEVICES= {JUST} {need.stage or 'demo'}"
        hide = _("this recipe needs none; hide it: {command}", command=command)
        return variant, [warning("gpu", lines[0].found, hide)]
    return variant, [ok("gpu", _("{found}; this recipe needs none", found=lines[0].found))]


def _check(host: Host, need: Need, cards: List[Card], answer: Answer) -> Checked:
    without = _("a machine with an NVIDIA card; without one `{just} demo` fine-tunes a small model", just=JUST)
    instance = _("{instance}; without one `{just} demo` fine-tunes a small model", instance=host.instance, just=JUST)
    if answer.code is None:
        folder = system("/usr/lib/wsl/lib")
        if os.path.exists(folder / "nvidia-smi"):
            found = _("nvidia-smi lies in {folder}, not on the PATH", folder=folder)
            return "", [stop("gpu", found, f'export PATH="$PATH:{folder}"')]
        if _has_nvidia_card():
            remedy = _("{driver}, then reboot", driver=host.driver)
            return "", [stop("gpu", _("an NVIDIA card, but no driver (no nvidia-smi)"), remedy)]
        return "", [stop("gpu", _("no NVIDIA GPU: there is no nvidia-smi"), instance if host.container else without)]
    if not cards:
        meaning, remedy = explain(ERRORS, answer.text, driver=host.driver, instance=instance)
        if answer.code == 124:
            remedy = _("the driver hangs: `sudo dmesg | grep -i xid` shows why; reboot")
        return "", [stop("gpu", _("nvidia-smi fails: {error}", error=meaning), remedy or without)]
    used = visible(cards)[: need.gpus]
    if not used:
        value = os.environ.get("CUDA_VISIBLE_DEVICES")
        empty = next((card for card in cards if card.mig and not card.instances), None)
        if value is None and empty:
            remedy = _(
                "create one (nvidia-smi mig -cgi), or switch MIG off: {command}",
                command=f"sudo nvidia-smi -i {empty.index} -mig 0",
            )
            found = _("{card}: MIG is on and the card has no instance: CUDA sees no GPU", card=empty)
            return "", [stop("gpu", found, remedy)]
        found = _("{variable} names no card", variable=f"CUDA_VISIBLE_DEVICES={value!r}")
        return "", [stop("gpu", found, "unset CUDA_VISIBLE_DEVICES")]
    card = used[0]
    variant, line = verdict(card, need, host)
    lines = [line]
    if line.status == "stop":
        other = next((one for one in cards if verdict(one, need, host)[1].status != "stop"), None)
        if other:
            use = f"CUDA_VISIBLE_DEVICES={other.index} {JUST} {need.stage or 'train'}"
            remedy = _("use the other card ({card}): {command}", card=other.name, command=use)
            lines = [line._replace(remedy=remedy)]
    else:
        if card.mode == "Prohibited":
            remedy = f"sudo nvidia-smi -i {card.index} -c DEFAULT"
            lines.append(stop("gpu", _("its compute mode is Prohibited: no program may use it"), remedy))
        lines.append(_memory(card, need, cards))
    for other in used[1:]:
        theirs, line = verdict(other, need, host)
        if variant and theirs and theirs != variant:
            remedy = _("train on cards of one variant (CUDA_VISIBLE_DEVICES=… names them)")
            found = _(
                "{card}: takes variant {variant}, and {other} {its}",
                card=other, variant=theirs, other=card.name, its=variant,
            )  # fmt: skip
            line = stop("gpu", found, remedy)
        lines.append(line)
        if lines[-1].status != "stop":
            lines.append(_memory(other, need, cards))
    if len(used) < need.gpus:
        found = _("gpus={wanted}, and {n} can be used here", wanted=need.gpus, n=len(used))
        lines.append(stop("gpu", found, _("gpus={n} gives the same result in more time", n=len(used))))
    rest = [str(one) for one in cards if one.index not in {card.index for card in used}]
    return variant, lines + [ok("gpu", _("not used: {cards}", cards=_("; ").join(rest)))] * bool(rest)


def _has_nvidia_card() -> bool:
    for device in system("/sys/bus/pci/devices").glob("*"):
        try:
            if (device / "vendor").read_text().strip() == "0x10de" and (device / "class").read_text().startswith(
                "0x03"
            ):
                return True
        except OSError:
            continue
    return False


def forced() -> str:
    """The variant of this image, else VARIANT's; "" if the card decides."""
    image = re.match(r"env-(\w+)-", Path(os.environ.get("RECIPE_ENV", "")).resolve().name)
    return image[1] if image else os.environ.get("VARIANT", "")


def chosen(card: Optional[Card]) -> str:
    """The variant for a card, or for none: cu118, except for cards that only cu13 supports."""
    newer = card and card.capability and card.capability > VARIANTS["cu118"]["capability"][1]
    return forced() or ("cu13" if newer else "cu118")


def verdict(card: Card, need: Need, host: Host) -> Tuple[str, Line]:
    """(variant, line) for a card: the variant that supports it, if its driver does."""
    found, windows, variant = str(card), int(bool(host.wsl)), chosen(card)
    if variant not in VARIANTS:
        wrong = _("{card}: VARIANT={variant} is not known", card=found, variant=variant)
        return "", stop("gpu", wrong, "unset VARIANT")
    lowest, highest = VARIANTS[variant]["capability"]
    cuda = VARIANTS[variant]["cuda"]
    if card.capability is None:
        remedy = _("update the driver to 510 or newer, which reports the capability")
        return variant, warning("gpu", _("{card}: this card is not known", card=found), remedy)
    other = next(
        (name for name, of in VARIANTS.items() if of["capability"][0] <= card.capability <= of["capability"][1]), ""
    )
    if not lowest <= card.capability <= highest and other:
        wrong, remedy = OTHER_VARIANT, "unset VARIANT"
        if os.environ.get("RECIPE_ENV"):
            wrong = OTHER_IMAGE
            remedy = _("{command} makes the other", command=f"VARIANT={other} {JUST} image")
        values = dict(card=found, variant=variant, cuda=cuda, low=dotted(lowest), high=dotted(highest), needed=other)
        return variant, stop("gpu", _(wrong, **values), remedy)
    if card.capability > highest:
        wrong = _("{card}: newer than any variant ({cuda} ends at {high})", card=found, cuda=cuda, high=dotted(highest))
        return variant, stop("gpu", wrong, _("use an older card"))
    if card.capability < lowest:
        wrong = _("{card}: no variant supports less than {low}", card=found, low=dotted(lowest))
        return "", stop("gpu", wrong, _("use a newer card"))
    if need.four_bit and card.capability < FOUR_BIT_CAPABILITY[0]:
        begin = dotted(FOUR_BIT_CAPABILITY[0])
        wrong = _(
            "{card}: variant {variant} runs on it, but bitsandbytes' 4-bit kernels begin at {low}, and the recipe is "
            "QLoRA",
            card=found, variant=variant, low=begin,
        )  # fmt: skip
        return variant, stop("gpu", wrong, _("use a card of capability {low} or newer", low=begin))
    if variant == "cu118" and os.environ.get("TORCH") == "pypi" and card.capability > PYPI_CAPABILITY:
        wrong = _("{card}: TORCH=pypi ends at {high}", card=found, high=dotted(PYPI_CAPABILITY))
        return variant, stop("gpu", wrong, "unset TORCH")
    least, whole = VARIANTS[variant]["least"][windows], VARIANTS[variant]["whole"][windows]
    if variant == "cu118" and need.four_bit and card.capability > FOUR_BIT_CAPABILITY[1]:
        least = whole  # the driver compiles bitsandbytes' kernels from PTX
    if numbers(card.driver) < numbers(least):
        remedy = host.driver_from(least)
        wrong = _(
            "{card}: variant {variant}'s {cuda} needs driver {least} here",
            card=found, variant=variant, cuda=cuda, least=least,
        )  # fmt: skip
        return variant, stop("gpu", wrong, remedy)
    told = SUPPORTED if numbers(card.driver) >= numbers(whole) else SUPPORTED_BY_MINOR
    shown = _(told, card=found, variant=variant, low=dotted(lowest), high=dotted(highest), cuda=cuda, whole=whole)
    if need.dtype == "bf16" and card.capability < BF16_CAPABILITY:
        remedy = _("train.dtype=auto or train.dtype=fp16")
        late = _("{card}; bf16 begins at capability {low}", card=shown, low=dotted(BF16_CAPABILITY))
        return variant, warning("gpu", late, remedy)
    return variant, ok("gpu", shown)


def _memory(card: Card, need: Need, cards: List[Card]) -> Line:
    """The card's free memory must hold the plan's estimate; names the processes that use it."""
    name, total, free, larger = card.name, card.total, card.free, _("use a larger card")
    if card.mig:
        largest = max((one for whole in cards for one in whole.instances), key=lambda one: one.total or 0)
        if (largest.total or 0) > (total or 0):
            larger = _("use the larger instance: {variable}", variable=f"CUDA_VISIBLE_DEVICES={largest.uuid}")
    if not need.measured or not need.four_bit or total is None or free is None:
        why = _("only QLoRA of the 7B model was measured") if need.read else _("the recipe was not read")
        why = _("nvidia-smi does not report this card's memory") if total is None else why
        found = _(
            "{total} MiB, {free} free; the recipe's need is not known: {why}",
            total=total or "?", free=free or "?", why=why,
        )  # fmt: skip
        return ok("gpu memory", found)
    way = need.way(card)
    wanted = cost().memory_mib(need.tokens, name, way)
    shown = _(
        "{card}: {total:,} MiB, {free:,} free; {recipe} takes about {wanted:,}, as the plan estimates",
        card=name, total=total, free=free, recipe=need.name, wanted=wanted,
    )  # fmt: skip
    merged = round(cost().measurements()["disk"]["merged"] * 1e9 / 2**20)
    if total < merged + HEADROOM // 2:
        shown = _(
            "{memory} ({just} chat loads the whole merged model: {merged:,} and more)",
            memory=shown, just=JUST, merged=merged,
        )  # fmt: skip
    if total < wanted:
        small = cost().memory_mib(need.tokens, name, "small")
        if need.has_fast and small <= total:
            remedy = _("train.speed=small takes about {small:,}; or {larger}", small=small, larger=larger)
            return stop("gpu memory", shown, remedy)
        least = cost().memory_mib(0, name, way)
        remedy = _("{larger}; the model without data takes {least:,} MiB", larger=larger, least=least)
        return stop("gpu memory", shown, remedy)
    if free < wanted:
        held = _("{memory}; held by {programs}", memory=shown, programs=_holders(card))
        return stop("gpu memory", held, _("wait for them, end them, or use another card"))
    if free < wanted + HEADROOM:
        remedy = _("if memory runs out: train.batch_size=1 train.accumulative_counts=2 needs less for the same result")
        return warning("gpu memory", _("{memory}: tight", memory=shown), remedy)
    return ok("gpu memory", shown)


def _holders(card: Card) -> str:
    """The processes that hold the card's memory; a container does not see those outside."""
    fields = "gpu_uuid,pid,process_name,used_memory"
    answer = ask("nvidia-smi", f"--query-compute-apps={fields}", "--format=csv,noheader,nounits")
    rows = [[part.strip() for part in row.split(",")] for row in answer.text.splitlines()]
    mine = [
        _("{program} (process {number}, {memory} MiB)", program=row[2], number=row[1], memory=row[3])
        for row in rows
        if len(row) == 4 and row[0] == card.uuid
    ]
    return listed(mine) or _("processes that are not visible here (the desktop, another container)")
