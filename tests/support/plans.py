"""Plans as the command writes them."""

import json

from support.command import recipe


def plan_of(batch_size, max_length, iterations):
    return {"batch_size": batch_size, "max_length": max_length, "iterations": iterations}


def planned(output, *words):
    done = recipe("plan", *words, "--output", output)
    path = output / words[0] / "plan.json"
    return done, json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
