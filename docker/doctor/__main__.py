"""Checks what this machine can and cannot do, before anything is downloaded (`just doctor`, docker/runtime/doctor).

Runs on a bare machine, with only the standard library of Python 3.8 or newer. It reads files and asks programs
(nvidia-smi, docker, podman); it fetches nothing and changes nothing. Each line is ok, warning or stop, with a remedy.
Exit code 3 if a line is a stop.

Each limit is kept in one place: GPU memory and disk in recipe/core/measured.toml, the runtime in docker/runtime/choose,
each variant's drivers and cards in gpu.py, CUDA's choice of cards in recipe/core/hardware.py.
"""

import json
import os
import platform
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Dict

from engines import check_engines, choose_runtime
from environment import check_environment, compiler_fault
from gpu import check_gpu, chosen
from lines import JUST, STATUSES, name_shown, ok, stop, warning
from machine import CHECKS, Host, check_disk, check_platform, check_system
from needs import Need

from recipe.core.hardware import query, visible
from recipe.core.text_width import ljust
from recipe.core.translation import _, mark, prepare_streams

VERDICTS = {
    "ok": mark("Recipe {recipe} can run (runtime {runtime})."),
    "warning": mark("Recipe {recipe} can run; read the warnings (runtime {runtime})."),
    "stop": mark("Recipe {recipe} cannot run (runtime {runtime})."),
}


def examine(need: Need) -> Dict[str, Any]:
    """Run all checks: {status, recipe, stage, runtime, reason, variant, checks: [Line]}."""
    host = Host()
    found: Dict[str, Any] = {
        "status": "ok", "recipe": need.name, "stage": need.stage, "runtime": "", "reason": "", "variant": "",
    }  # fmt: skip
    with ThreadPoolExecutor() as pool:  # either can take a second
        asked = pool.submit(query)
        choice, error = choose_runtime(need.folder, need.model)
        cards, answer = asked.result()
    # TORCH and VARIANT as docker/runtime/flavour sets them.
    os.environ.setdefault("TORCH", "cu118" if cards else "pypi")
    variant = chosen(next(iter(visible(cards)), None))
    if choice is None:
        lines = [stop("runtime", error, "unset RUNTIME")]
    else:
        runtime, reason = choice.runtime, choice.reason
        engines, engine = check_engines(host, need, choice)
        found["runtime"], found["reason"] = runtime, reason
        need.compiles = runtime != "host" or not compiler_fault(variant)[0]
        found["variant"], gpu = check_gpu(host, need, cards, answer)
        os.environ["VARIANT"] = variant
        if need.stage and need.is_trained():
            # A finished training does not run again, unless something changed.
            gpu = [line._replace(status="warning") if line.status == "stop" else line for line in gpu]
        lines = check_system(host, runtime) + check_platform(host, need, runtime)
        lines += [ok("runtime", _("{runtime}: {reason}", runtime=runtime, reason=reason)), *engines, *gpu]
        for check in CHECKS:
            lines += check(host, need, runtime)
        lines += check_disk(host, need, runtime, engine)
        lines += check_environment(host, need, runtime, engine.get("image", ""), cards)
        if not need.read:
            version = platform.python_version()
            what = _("{recipe} was not read: this Python {version} reads no TOML", recipe=need.name, version=version)
            remedy = _(
                "Python 3.11, or a newer pip, which has a reader; without one disk and GPU memory are not estimated"
            )
            lines.append(warning("recipe", what, remedy))
    return {**found, "status": max((line.status for line in lines), key=STATUSES.index), "checks": lines}


def show(found: Dict[str, Any], quiet: bool) -> None:
    """Print the lines; if `quiet`, only warnings and stops, to standard error."""
    stream = sys.stderr if quiet else sys.stdout
    colours = {"ok": "32", "warning": "33", "stop": "31"}
    plain = not stream.isatty() or os.environ.get("NO_COLOR")
    for line in found["checks"]:
        if quiet and line.status == "ok":
            continue
        status = ljust(_(line.status), 8)
        coloured = status if plain else f"\033[{colours[line.status]}m{status}\033[0m"
        print(f"{coloured} {ljust(name_shown(line.name), 10)} {line.found}", file=stream)
        if line.remedy:
            print(f"{'':19} → {line.remedy}", file=stream)
    if quiet and found["status"] == "stop":
        rest = _(
            "Stopped before anything was downloaded. `{just} doctor` prints every line; DOCTOR=off skips these checks.",
            just=JUST,
        )
        print(rest, file=stream)
    elif not quiet:
        verdict = VERDICTS[found["status"]]
        print(f"\n{_(verdict, recipe=found['recipe'], runtime=found['runtime'] or _('unknown'))}")


def main(facts: Dict[str, str]) -> int:
    """Check what the command line asks for (`facts`: RECIPE_WORDS, see recipe/cli/words.py); returns the exit code."""
    stage = "" if facts["command"] == "doctor" else facts["command"]
    os.environ["PYTHONIOENCODING"] = "utf-8"  # of the programs that it asks
    if "json" in facts:
        os.environ["RECIPE_LANG"] = "en"  # also for those programs
    found = examine(Need(facts["recipe"], json.loads(facts["values"]) or {}, stage, facts["output"]))
    if "json" in facts:
        checks = [line._asdict() for line in found["checks"]]
        print(json.dumps({**found, "checks": checks}, ensure_ascii=False, indent=1))
    else:
        show(found, bool(stage))
    return 3 if found["status"] == "stop" else 0


if __name__ == "__main__":
    if sys.argv[1:] == ["--variant"]:
        print(chosen(next(iter(visible(query()[0])), None)))
        sys.exit()
    prepare_streams()
    words = dict(line.split("\t", 1) for line in os.environ.pop("RECIPE_WORDS", "").splitlines())
    try:
        sys.exit(main(words))
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # such as `just doctor | head`
        os._exit(0)
    except Exception as error:  # an error of the doctor's own stops no training
        what = f"{type(error).__name__}: {error}"
        print(_("doctor: unexpected: {error}. Please report it.", error=what), file=sys.stderr)
        sys.exit(1 if words.get("command") == "doctor" else 0)
