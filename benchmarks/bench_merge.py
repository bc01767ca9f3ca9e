"""Speed of the merge beside XTuner's and beside a plain copy: `just bench-merge [GB] [times] [folder] [cpu,cuda]`.

Makes an InternLM2 of random weights with the 7B model's own shapes (one layer for 2 GB, all 32 for 15.5), in .bin
shards as published (below 1 GB: of an eighth of its widths, for a try), and a random adapter of rank 64 on every
matrix. Then, in turn and each in a process of its own,
imports included: a copy of the same bytes, this merge with all its checks, `xtuner convert merge --device cpu`. Tells
where this merge's time went, and asserts that the results are equal to one fp16 rounding of each side. Needs 3 times
the size on disk; removes what it made.
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HIDDEN, INTERMEDIATE, VOCABULARY, HEADS, KV_HEADS = 4096, 14336, 92544, 32, 8
RANK, ALPHA = 64, 16


def shapes(layers, narrow=1):
    """name → shape of an InternLM2 of the 7B model's widths, each divided by `narrow`."""
    hidden, wide, qkv = (one // narrow for one in (HIDDEN, INTERMEDIATE, HIDDEN + 2 * HIDDEN // HEADS * KV_HEADS))
    made = {"model.tok_embeddings.weight": (VOCABULARY, hidden)}
    for number in range(layers):
        for name, shape in (
            ("attention.wqkv", (qkv, hidden)), ("attention.wo", (hidden, hidden)), ("feed_forward.w1", (wide, hidden)),
            ("feed_forward.w3", (wide, hidden)), ("feed_forward.w2", (hidden, wide)), ("attention_norm", (hidden,)),
            ("ffn_norm", (hidden,)),
        ):  # fmt: skip
            made[f"model.layers.{number}.{name}.weight"] = shape
    return {**made, "model.norm.weight": (hidden,), "output.weight": (VOCABULARY, hidden)}


def weights_in(layers, narrow):
    """Weights of such a model."""
    return sum(shape[0] * (shape[1] if len(shape) > 1 else 1) for shape in shapes(layers, narrow).values())


def size_for(gigabytes):
    """(layers, what the widths are divided by) of a model of about that many 10^9 bytes."""
    if gigabytes < 1:
        return 1, 8
    outside = weights_in(0, 1)
    return max(1, min(32, round((gigabytes * 1e9 / 2 - outside) / (weights_in(1, 1) - outside)))), 1


def make(place, gigabytes):
    """Write base/ and adapter/ into `place`."""
    import torch
    from safetensors.torch import save_file

    from recipe.base_model import architecture, tiny
    from recipe.base_model.tiny.configuration_internlm2 import InternLM2Config

    torch.manual_seed(0)
    layers, narrow = size_for(float(gigabytes))
    model = shapes(layers, narrow)
    base = Path(place) / "base"
    base.mkdir()
    tiny.write_tokenizer(base, tiny.train_pieces(["压力很大，怎么办？ hello world"] * 9, 2048))
    for name in architecture.CODE:
        shutil.copyfile(str(ROOT / "recipe/base_model/tiny" / f"{name}.py"), str(base / f"{name}.py"))
    InternLM2Config(
        vocab_size=VOCABULARY, hidden_size=HIDDEN // narrow, intermediate_size=INTERMEDIATE // narrow,
        num_hidden_layers=layers, num_attention_heads=HEADS // narrow, num_key_value_heads=KV_HEADS // narrow,
        torch_dtype="float16",
        architectures=["InternLM2ForCausalLM"],
        auto_map={
            "AutoConfig": "configuration_internlm2.InternLM2Config",
            "AutoModelForCausalLM": "modeling_internlm2.InternLM2ForCausalLM",
        },
    ).save_pretrained(str(base))  # fmt: skip
    # Drawing 7.7 billion numbers takes minutes: pieces of one long draw, begun at another place each time.
    drawn = (torch.randn(50_000_017) * 0.02).half()
    shards, used, start = [{}], 0, 0
    for name, shape in model.items():
        count = shape[0] * (shape[1] if len(shape) > 1 else 1)
        if used and used + 2 * count > 2e9:
            shards.append({})
            used = 0
        start = (start + 7_919_003) % len(drawn)
        rolled = drawn.roll(-start)
        shards[-1][name] = rolled.repeat(-(-count // len(drawn)))[:count].view(shape).clone()
        used += 2 * count
        if used > 1.5e9:  # written at once, so that making 15.5 GB takes no more memory than a shard
            _write(base, shards)
            used = 2e9
    _write(base, shards)
    parts = sorted(base.glob("part-*.bin"), key=lambda p: int(p.stem[5:]))
    where = {}
    for number, path in enumerate(parts, start=1):
        name = f"pytorch_model-{number:05d}-of-{len(parts):05d}.bin"
        where.update(dict.fromkeys(json.loads(path.with_suffix(".json").read_text()), name))
        path.with_suffix(".json").unlink()
        path.rename(base / name)
    (base / "pytorch_model.bin.index.json").write_text(
        json.dumps({"metadata": {"total_size": 2 * weights_in(layers, narrow)}, "weight_map": where}, indent=1)
    )
    lora = {}
    for name, shape in model.items():
        if len(shape) == 2 and "tok_embeddings" not in name:
            module = "base_model.model." + name[: -len(".weight")]
            lora[f"{module}.lora_A.weight"] = (torch.randn(RANK, shape[1]) / HIDDEN**0.5).half()
            lora[f"{module}.lora_B.weight"] = (torch.randn(shape[0], RANK) * 0.002).half()
    adapter = Path(place) / "adapter"
    adapter.mkdir()
    save_file(lora, str(adapter / "adapter_model.safetensors"), {"format": "pt"})
    (adapter / "adapter_config.json").write_text(
        json.dumps(
            {
                "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": ALPHA, "bias": "none",
                "lora_dropout": 0.1, "inference_mode": True, "base_model_name_or_path": str(base),
                "target_modules": ["wqkv", "wo", "w1", "w2", "w3", "output"],
            }
        )
    )  # fmt: skip


def _write(base, shards):
    import torch

    if shards[-1]:
        number = len(list(base.glob("part-*.bin")))
        torch.save(shards[-1], str(base / f"part-{number}.bin"))
        (base / f"part-{number}.json").write_text(json.dumps(list(shards[-1])))
        shards[-1].clear()


def timed(owner, name, found):
    """Note in `found` when `owner`'s function first began and last ended (s since this process was started), and how
    long it ran in all, threads added up.
    """
    whole, lock, start = getattr(owner, name), threading.Lock(), float(os.environ["BENCH_BEGAN"])

    def call(*arguments, **more):
        began = time.monotonic()
        try:
            return whole(*arguments, **more)
        finally:
            ended = time.monotonic()
            with lock:
                first, _, total = found.get(name, (began - start, 0, 0))
                found[name] = first, ended - start, total + ended - began

    setattr(owner, name, call)


def ours(base, adapter, out, device, checks):
    """The stage's own work. Without `checks` its last one is left out, the fresh process that loads the result."""
    from recipe.core import tensor_files
    from recipe.weights import merge, merge_write

    if checks == "no":
        merge.check_loads = lambda _: contextlib.nullcontext(lambda *_: {})
    spans = {}
    for owner, name in (
        (merge, "make_plan"), (merge, "write_shards"), (merge, "check_weights"), (merge_write, "_task"),
        (merge_write, "_change"),
        (merge_write, "_finish"), (tensor_files, "read_into"), (tensor_files, "write_from"),
        (merge_write.lora, "LoadedChange"),
    ):  # fmt: skip
        timed(owner, name, spans)
    plan = merge.make_plan(Path(base), [(Path(adapter), 1.0)], merge.parse_size("2GB"))
    timed(merge, "merge", spans)
    figures = merge.merge(plan, Path(out), stop_words=["<|im_end|>"], device=device)
    marks = {
        name: int(line.split()[1]) * 1024
        for line in Path("/proc/self/status").read_text().splitlines()
        for name in [line.split(":")[0]]
        if name in ("VmHWM", "RssAnon")
    }
    keys = ("tensors_changed", "tensors", "share_changed", "shards", "bytes", "weights_check", "load_check")
    print(json.dumps({"spans": spans, **marks, **{key: figures[key] for key in keys}}))


def compare(base, one, other):
    """Assert that two merged folders are equal to one fp16 rounding of each side."""
    from recipe.core.tensor_files import pieces
    from recipe.weights.merge_plan import base_tensors

    before, ours, theirs = (base_tensors(Path(place)) for place in (base, one, other))
    assert set(ours) == set(theirs) == set(before)
    values = different = 0
    for name, tensor in ours.items():
        for first, last in pieces(tensor, 1 << 24):
            a, b, c = (found[name].read(first, last).float() for found in (ours, theirs, before))
            slack = 2**-10 * (a.abs() + (a - c).abs()) + 2**-24
            assert bool(((a - b).abs() <= slack).all()), name
            values += a.numel()
            different += int((a != b).sum())
    print(json.dumps({"values": values, "different": different}))


def copy(base, out):
    """The floor: the same bytes read and written."""
    Path(out).mkdir()
    for path in Path(base).iterdir():
        shutil.copyfile(str(path), str(Path(out) / path.name))


def child(*words, quiet=False):
    """(seconds, CPU seconds, peak resident bytes, last line printed) of a process of its own and its children."""
    os.sync()
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"}
    environment["MKL_THREADING_LAYER"] = "GNU"  # as the tutorial has it, for XTuner
    environment["OMP_WAIT_POLICY"] = "PASSIVE"  # as the stages run; else threads wait by spinning on shared cores
    errors = subprocess.DEVNULL if quiet else None
    began = time.monotonic()
    environment["BENCH_BEGAN"] = str(began)
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen([sys.executable, *map(str, words)], stdout=said, stderr=errors, env=environment)
        _, status, used = os.wait4(process.pid, 0)
        took = time.monotonic() - began
        said.seek(0)
        lines = said.read().splitlines()
    assert status == 0, f"{words} ended with {status}"
    told = json.loads(lines[-1]) if lines and lines[-1].startswith("{") else None
    return took, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024, told


def round_of(place, devices):
    """One line for each way: the copy, XTuner's, this merge on each device without and with its last check."""
    base, adapter = place / "base", place / "adapter"
    floor, *_ = child(__file__, "copy", base, place / "copy")
    shutil.rmtree(str(place / "copy"))
    print(f"copy: {floor:.1f} s", flush=True)
    runs = [(device, checks) for device in devices for checks in ("no", "yes")]
    words = [__file__, "ours", base, adapter, place / "ours"]
    first = child(*words, *runs[0])  # before XTuner's, the others after it
    shutil.rmtree(str(place / "ours"))
    xtuner = ["-m", "xtuner.tools.model_converters.merge", base, adapter, place / "theirs", "--device", "cpu"]
    theirs, their_cpu, their_peak, _ = child(*xtuner, quiet=True)
    print(f"xtuner: {theirs:.1f} s, {their_cpu:.1f} CPU s, {their_peak / 1e9:.2f} GB", flush=True)
    for device, checks in runs:
        took, cpu, peak, told = first if (device, checks) == runs[0] else child(*words, device, checks)
        print(
            f"merge, {device}{', and last check' if checks == 'yes' else ''}: {took:.1f} s, {cpu:.1f} CPU s; "
            f"{theirs / took:.2f} times as fast as xtuner, {their_cpu / cpu:.2f} by CPU; {took / floor:.2f} times the "
            f"copy\n  peak resident {told['VmHWM'] / 1e9:.2f} GB (VmHWM), of the largest process {peak / 1e9:.2f} GB"
        )
        for name, (began, ended, total) in told["spans"].items():
            print(f"  {name:12} {began:6.2f} to {ended:6.2f} s, {total:7.2f} in all")
        print(f"  {told['load_check'].get('seconds', '')}", flush=True)
        if checks == "yes":
            *_, same = child(__file__, "compare", base, place / "ours", place / "theirs")
            print(
                f"  equal to one rounding of each: {same['values']:,} weights, {same['different']:,} in the last bit; "
                f"{told['tensors_changed']} of {told['tensors']} tensors changed",
                flush=True,
            )
        shutil.rmtree(str(place / "ours"), ignore_errors=True)
    shutil.rmtree(str(place / "theirs"))


def main(gigabytes=2, times=2, folder=None, devices="cpu"):
    place = Path(tempfile.mkdtemp(dir=folder))
    try:
        layers, narrow = size_for(float(gigabytes))
        widths = f", widths divided by {narrow}" if narrow > 1 else ""
        print(f"making {layers} of the 7B model's 32 layers{widths}, in {place}", flush=True)
        child(__file__, "make", place, gigabytes)
        base, lora = (sum(p.stat().st_size for p in (place / n).iterdir()) for n in ("base", "adapter"))
        print(f"base {base / 1e9:.2f} GB, adapter {lora / 1e9:.2f} GB, {len(os.sched_getaffinity(0))} cores")
        for _ in range(int(times)):
            round_of(place, devices.split(","))
    finally:
        shutil.rmtree(str(place))


if __name__ == "__main__":
    inner = {"make": make, "ours": ours, "compare": compare, "copy": copy}
    if sys.argv[1:2] and sys.argv[1] in inner:
        inner[sys.argv[1]](*sys.argv[2:])
    else:
        main(*sys.argv[1:])
