"""Time and memory of the adapter stage's work on the 7B recipe's 157 million parameters: `just bench-adapter [layers]
[folder]`, layers of its 32.

Makes two checkpoints of random LoRA weights on the 7B model's shapes, with Adam's moments, as they lie on disk after
training: mmengine's file and DeepSpeed's ZeRO-2 folder of two processes. Each is converted in a process of its own;
what importing torch takes is told apart. Needs 6 GB on disk; removes what it made.
"""

import json
import re
import shutil
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.bench_merge import ALPHA, RANK, child, shapes

LORA = {"r": RANK, "lora_alpha": ALPHA, "lora_dropout": 0.1, "bias": "none", "task_type": "CAUSAL_LM"}


def weights(layers):
    """XTuner's name → random LoRA weight, fp32, on every matrix of the 7B model but the embeddings."""
    import torch

    made = {}
    for name, shape in shapes(layers).items():
        if len(shape) == 2 and "tok_embeddings" not in name:
            module = "llm.base_model.model." + name[: -len(".weight")]
            made[f"{module}.lora_A.default.weight"] = torch.randn(RANK, shape[1])
            made[f"{module}.lora_B.default.weight"] = torch.randn(shape[0], RANK) * 1e-4
    return made


def make(place, layers):
    """Write file.pth and folder.pth into `place`."""
    import torch

    torch.manual_seed(0)
    state = weights(int(layers))
    moments = {
        n: {"step": torch.tensor(1.0), "exp_avg": w, "exp_avg_sq": w.clone()} for n, w in enumerate(state.values())
    }
    saved = {"meta": {"iter": 81}, "state_dict": state, "optimizer": {"state": moments, "param_groups": []}}
    torch.save(saved, f"{place}/file.pth")
    write_zero(Path(place) / "folder.pth", [state], stage=2, ranks=2)


def write_zero(folder, groups, stage, ranks):
    """A DeepSpeed folder (format of 0.14.0) of trained weights, groups of name → fp32 tensor, saved by `ranks`."""
    import torch

    folder.mkdir()
    flat = [_cut(group, stage, ranks) for group in groups]  # group → rank → tensor
    key = "fp32_flat_groups" if stage == 3 else "single_partition_of_fp32_groups"
    for rank in range(ranks):
        parts = [group[rank].clone() for group in flat]
        state = {n: {"step": 81, "exp_avg": p, "exp_avg_sq": p.clone()} for n, p in enumerate(parts)}
        optimizer = {
            "base_optimizer_state": {"state": state},
            "zero_stage": stage,
            "partition_count": ranks,
            key: parts,
        }
        name = f"bf16_zero_pp_rank_{rank}_mp_rank_00"
        torch.save({"optimizer_state_dict": optimizer, "ds_version": "0.14.0"}, str(folder / f"{name}_optim_states.pt"))
        model = {
            "module": {}, "buffer_names": [], "param_shapes": [{n: w.shape for n, w in g.items()} for g in groups],
            "shared_params": {}, "frozen_param_shapes": None, "frozen_param_fragments": None, "ds_version": "0.14.0",
            "meta": {"iter": 81}, "global_steps": 81,
        }  # fmt: skip
        name = f"zero_pp_rank_{rank}_mp_rank_00" if stage == 3 else "mp_rank_00"
        torch.save(model, str(folder / f"{name}_model_states.pt"))


def _cut(group, stage, ranks):
    """One flat tensor a rank: ZeRO-1 and 2 cut the whole group, padded to twice the ranks, ZeRO-3 each weight."""
    import torch

    def padded(values, multiple):
        return torch.nn.functional.pad(values, (0, -len(values) % multiple))

    if stage == 3:
        cut = [padded(weight.reshape(-1), ranks).chunk(ranks) for weight in group.values()]
        return [torch.cat([pieces[rank] for pieces in cut]) for rank in range(ranks)]
    return list(padded(torch.cat([weight.reshape(-1) for weight in group.values()]), 2 * ranks).chunk(ranks))


def convert(checkpoint, out):
    began = time.monotonic()
    from recipe.weights import adapter

    light = time.monotonic()
    import torch  # noqa: F401
    from safetensors import torch as _  # noqa: F401

    imported = time.monotonic()
    figures = adapter.convert(Path(checkpoint), Path(out), LORA, "fp16", {"base_model": "x", "base_sha256": "x"})
    done = time.monotonic()
    status = Path("/proc/self/status").read_text()
    told = {name: int(re.search(rf"{name}:\s+(\d+)", status)[1]) * 1024 for name in ("VmHWM",)}
    heavy = [name for name in ("mmengine", "deepspeed", "transformers", "peft", "xtuner") if name in sys.modules]
    print(json.dumps({"work": done - imported, "torch": imported - light, "recipe": light - began, "heavy": heavy,
                      "parameters": figures["parameters"], **told}))  # fmt: skip


def main(layers=32, folder=None):
    place = Path(tempfile.mkdtemp(dir=folder))
    try:
        child(__file__, "make", place, layers)
        for name in ("file.pth", "folder.pth") * 2:
            took, cpu, _, told = child(__file__, "convert", place / name, place / "out")
            print(
                f"{name}: {told['parameters']:,} parameters: work {told['work']:.2f} s, importing torch "
                f"{told['torch']:.2f} s, the recipe's own modules {told['recipe']:.2f} s, whole process {took:.2f} s "
                f"({cpu:.2f} CPU s); peak resident {told['VmHWM'] / 1e9:.2f} GB (VmHWM); other libraries loaded: "
                f"{told['heavy'] or 'none'}",
                flush=True,
            )
            shutil.rmtree(str(place / "out"))
    finally:
        shutil.rmtree(str(place))


if __name__ == "__main__":
    inner = {"make": make, "convert": convert}
    if sys.argv[1:2] and sys.argv[1] in inner:
        inner[sys.argv[1]](*sys.argv[2:])
    else:
        main(*sys.argv[1:])
