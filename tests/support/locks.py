"""What the locks pin."""

import re
import sys

from support.command import ROOT

sys.path.insert(0, str(ROOT / "docker/locks"))

import lock

DOCKER = ROOT / "docker/locks"


def blocks(name):
    return dict(lock.packages((DOCKER / name).read_text(encoding="utf-8")))


def pins(name):
    return {
        package: re.match(r"\S+?==(\S+)", re.sub(r"\[.*?\]", "", block))[1] for package, block in blocks(name).items()
    }
