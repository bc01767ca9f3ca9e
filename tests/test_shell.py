"""`just shell`: the tutorial's commands, pasted as they stand, find its folders.

What needs a GPU there (4-bit training, the conversion of its checkpoint) is not run here.
"""

import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT
from mmengine.config import Config

pytestmark = pytest.mark.skipif(Path("/root/autodl-tmp").exists(), reason="a real /root/autodl-tmp is not ours")
CONFIG = "/root/autodl-tmp/ft-learn/config/internlm2_chat_7b_qlora_oasst1_e3_career_coach.py"
COMMANDS = f"""
set -e
mkdir -p /root/autodl-tmp/ft-learn
mkdir -p /root/autodl-tmp/ft-learn/dataset
mkdir -p /root/autodl-tmp/ft-learn/config
xtuner version
xtuner list-cfg | grep internlm2
xtuner copy-cfg internlm2_chat_7b_qlora_oasst1_e3 /root/autodl-tmp/ft-learn/config
mv /root/autodl-tmp/ft-learn/config/internlm2_chat_7b_qlora_oasst1_e3_copy.py {CONFIG}
mkdir -p /root/work_dirs/internlm2_chat_7b_qlora_oasst1_e3_career_coach/hf
export MKL_SERVICE_FORCE_INTEL=1
pwd
"""


def test_the_pages_commands_find_its_folders():
    done = subprocess.run(
        [str(ROOT / "docker/host"), "shell"], input=COMMANDS, cwd="/", capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0.1.14" in done.stdout + done.stderr
    assert "internlm2_chat_7b_qlora_oasst1_e3" in done.stdout + done.stderr
    assert done.stdout.rstrip().endswith("/root")
    written = ROOT / "output/page/root/autodl-tmp/ft-learn/config" / CONFIG.rsplit("/", 1)[1]
    assert Config.fromfile(str(written)).max_length == 2048
    assert (ROOT / "output/page/root/work_dirs/internlm2_chat_7b_qlora_oasst1_e3_career_coach/hf").is_dir()
    shutil.rmtree(str(ROOT / "output/page"))


def test_the_machine_stays_as_it_was():
    subprocess.run([str(ROOT / "docker/host"), "shell"], input="touch /root/autodl-tmp/x\n", text=True, check=True)
    assert not subprocess.run(["ls", "/root/autodl-tmp/x"], capture_output=True, text=True).stdout
    shutil.rmtree(str(ROOT / "output/page"))
