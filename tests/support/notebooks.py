"""The notebooks' cells: what they type into a shell, with Python's variables put in."""

import ast
import json
import re
from typing import Dict, List

from support.command import ROOT

NOTEBOOKS = sorted(ROOT.glob("notebooks/*.ipynb"))


def cells(path, kind) -> List[str]:
    found = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in found if cell["cell_type"] == kind]


def python(cell) -> str:
    """A cell without the shell's lines and IPython's."""
    return "\n".join(line for line in cell.splitlines() if not line.startswith(("!", "%")))


def shell(path) -> List[str]:
    """Every line for the shell, in order."""
    variables: Dict[str, str] = {}
    lines = []
    for cell in cells(path, "code"):
        for node in ast.parse(python(cell)).body:
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
                variables[node.targets[0].id] = node.value.value
        lines += [
            re.sub(r"\{(\w+)\}", lambda found: variables[found[1]], line[1:])
            for line in cell.splitlines()
            if line.startswith("!")
        ]
    return lines
