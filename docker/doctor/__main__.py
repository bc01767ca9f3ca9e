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
from lines import JUST, STATUSES, ok, stop, warning
from machine import CHECKS, Host, check_disk, check_platform, check_system
from needs import Need

from recipe.core.hardware import query, visible


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
        lines += [ok("runtime", f"{runtime}: {reason}"), *engines, *gpu]
        for check in CHECKS:
            lines += check(host, need, runtime)
        lines += check_disk(host, need, runtime, engine)
        lines += check_environment(host, need, runtime, engine.get("image", ""), cards)
        if not need.read:
            what = f"{need.name} was not read: this Python {platform.python_version()} reads no TOML"
            remedy = (
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
        mark = f"{line.status:8}" if plain else f"\033[{colours[line.status]}m{line.status:8}\033[0m"
        print(f"{mark} {line.name:10} {line.found}", file=stream)
        if line.remedy:
            print(f"{'':19} → {line.remedy}", file=stream)
    if quiet and found["status"] == "stop":
        rest = f"`{JUST} doctor` prints every line; DOCTOR=off skips these checks"
        print(f"Stopped before anything was downloaded. {rest}.", file=stream)
    elif not quiet:
        verdict = {"ok": "can run", "warning": "can run; read the warnings", "stop": "cannot run"}[found["status"]]
        print(f"\nRecipe {found['recipe']} {verdict} (runtime {found['runtime'] or 'unknown'}).")


def main(facts: Dict[str, str]) -> int:
    """Check what the command line asks for (`facts`: RECIPE_WORDS, see recipe/cli/words.py); returns the exit code."""
    stage = "" if facts["command"] == "doctor" else facts["command"]
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
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    words = dict(line.split("\t", 1) for line in os.environ.pop("RECIPE_WORDS", "").splitlines())
    try:
        sys.exit(main(words))
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # such as `just doctor | head`
        os._exit(0)
    except Exception as error:  # an error of the doctor's own stops no training
        print(f"doctor: unexpected: {type(error).__name__}: {error}. Please report it.", file=sys.stderr)
        sys.exit(1 if words.get("command") == "doctor" else 0)
