"""What the heavy imports leave behind, in a process of their own."""

import subprocess
import sys

import pytest

from support.command import ROOT


@pytest.mark.slow
def test_bitsandbytes_does_not_bring_the_compiler():
    """Dynamo and Inductor are a third of the imports' time in cu13, and nothing of ours compiles."""
    code = (
        "import sys, torch; before = torch.compile; from recipe.core import imports; imports.load()\n"
        "print('bitsandbytes' in sys.modules, torch.compile is before, 'torch._inductor.compile_fx' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=str(ROOT))
    assert done.stdout.split() == ["True", "True", "False"], done.stderr
