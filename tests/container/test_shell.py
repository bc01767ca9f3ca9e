"""`just shell`: the tutorial's commands, pasted as they stand, find its folders and do their work.

Where they ask for a GPU, `no_gpu/sitecustomize.py` answers: no 4-bit and no 16-bit arithmetic is tried here. The
base model is a tiny one and the data is made such that the page's own `iter_51.pth` comes out of it.
"""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from mmengine.config import Config

from recipe.base_model import tiny
from support.command import ROOT

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


def in_shell(commands, timeout):
    """The finished `just shell` that was given `commands`, on the host and from another folder."""
    return subprocess.run(
        [str(ROOT / "docker/runtime/host"), "shell"],
        input=commands,
        cwd="/",
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def test_the_pages_commands_find_its_folders():
    done = in_shell(COMMANDS, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0.1.14" in done.stdout + done.stderr
    assert "internlm2_chat_7b_qlora_oasst1_e3" in done.stdout + done.stderr
    assert done.stdout.rstrip().endswith("/root")
    written = ROOT / "output/page/root/autodl-tmp/ft-learn/config" / CONFIG.rsplit("/", 1)[1]
    assert Config.fromfile(str(written)).max_length == 2048
    assert (ROOT / "output/page/root/work_dirs/internlm2_chat_7b_qlora_oasst1_e3_career_coach/hf").is_dir()
    shutil.rmtree(str(ROOT / "output/page"))


BASE = "/root/autodl-tmp/Shanghai_AI_Laboratory/internlm2-chat-7b"


WORK = "/root/work_dirs/internlm2_chat_7b_qlora_oasst1_e3_career_coach"


# The page edits its config by hand: these are its changes.
EDITS = {
    "^pretrained_model_name_or_path = .*": f"pretrained_model_name_or_path = '{BASE}'",
    "^data_path = .*": "data_path = '/root/autodl-tmp/ft-learn/dataset/career_coach.jsonl'",
    "^max_length = .*": "max_length = 512",
    "^batch_size = 1.*": "batch_size = 2",
    "dataset=dict(type=load_dataset, path=data_path)": (
        "dataset=dict(type=load_dataset, path='json', data_files=dict(train=data_path))"
    ),
    "dataset_map_fn=oasst1_map_fn": "dataset_map_fn=None",
}


PREPARE = """
set -e
mkdir -p {base} /root/autodl-tmp/ft-learn/dataset /root/autodl-tmp/ft-learn/config
cp -r {here}/base/. {base}
cp {here}/career_coach.jsonl /root/autodl-tmp/ft-learn/dataset/
export PYTHONPATH={no_gpu} OMP_NUM_THREADS=1
xtuner copy-cfg internlm2_chat_7b_qlora_oasst1_e3 /root/autodl-tmp/ft-learn/config
mv /root/autodl-tmp/ft-learn/config/internlm2_chat_7b_qlora_oasst1_e3_copy.py {config}
sed -i {edits} {config}
"""


TRAIN = f"""
xtuner train {CONFIG} --deepspeed deepspeed_zero2
mkdir -p {WORK}/hf
export MKL_SERVICE_FORCE_INTEL=1
xtuner convert pth_to_hf {CONFIG} {WORK}/iter_51.pth {WORK}/hf
export MKL_THREADING_LAYER=GNU
xtuner convert merge {BASE} {WORK}/hf /root/autodl-tmp/ft-learn/merged --max-shard-size 2GB
"""


def test_the_pages_training_conversion_and_merge(tmp_path):
    sizes = {"vocab_size": 700, "hidden_size": 64, "layers": 2, "heads": 4, "kv_heads": 2, "intermediate_size": 128}
    answer = "0123456789" * 60  # more than 512 tokens: each row fills a pack of its own
    tiny.make(tmp_path / "base", ["你是一个职场教练。问题回答工作压力 hello " * 9], **sizes)
    with (tmp_path / "career_coach.jsonl").open("w", encoding="utf-8") as stream:
        for number in range(34):  # 34 packs, batches of 2, 3 epochs: 51 iterations, as published
            turn = {"system": "你是职场教练", "input": f"问题{number}", "output": answer}
            stream.write(json.dumps({"conversation": [turn]}, ensure_ascii=False) + "\n")
    edits = " ".join(f'-e "s|{old}|{new}|"' for old, new in EDITS.items())
    no_gpu = ROOT / "tests" / "support" / "no_gpu"
    commands = PREPARE.format(base=BASE, here=tmp_path, no_gpu=no_gpu, config=CONFIG, edits=edits) + TRAIN
    done = in_shell(commands, timeout=900)
    told = done.stdout + done.stderr
    seen = ROOT / "output/page/root"
    # xtuner ends with 0 whatever happens: what it wrote is looked at.
    assert (seen / WORK[6:] / "iter_51.pth").exists(), told
    for rate in ("1.8763e-09", "1.4258e-09", "8.1262e-10", "2.7103e-10", "7.8853e-12"):
        assert f"lr: {rate}" in told, told  # the published log, line for line
    assert json.loads((seen / WORK[6:] / "hf/adapter_config.json").read_text())["r"] == 64, told
    merged = seen / "autodl-tmp/ft-learn/merged"
    assert list(merged.glob("*.bin")), told
    config = json.loads((merged / "config.json").read_text())
    assert config["architectures"] == ["InternLM2ForCausalLM"]
    assert config["vocab_size"] == 700
    shutil.rmtree(str(ROOT / "output/page"))


def test_the_machine_stays_as_it_was():
    subprocess.run(
        [str(ROOT / "docker/runtime/host"), "shell"], input="touch /root/autodl-tmp/x\n", text=True, check=True
    )
    assert not subprocess.run(["ls", "/root/autodl-tmp/x"], capture_output=True, text=True).stdout
    shutil.rmtree(str(ROOT / "output/page"))
