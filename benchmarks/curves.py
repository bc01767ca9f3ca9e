"""50 updates of the 7B model by XTuner's own step and by the fast one, on a GPU: python benchmarks/curves.py

Random weights in NF4, bf16, 2 × 512 tokens, the same LoRA without dropout: how far losses and the first gradients go
apart. Without a GPU a tiny model in fp32, where nothing may. The texts are of 600 words, each followed by one of four.
"""

import contextlib
import io
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from recipe.core import imports
from recipe.training import bench
from recipe.xtuner import config_edits

imports.load()

from peft import LoraConfig  # noqa: E402
from xtuner.model import SupervisedFinetune  # noqa: E402

from recipe.training.fast.finetune import Finetune  # noqa: E402

UPDATES, WORDS = 50, 600


def texts(rows, tokens, device):
    """Batches, the same each time; of the first row a quarter is not learned."""
    draw, found = torch.Generator().manual_seed(5), []
    for _ in range(UPDATES):
        ids = torch.zeros(rows, tokens, dtype=torch.long)
        ids[:, 0] = torch.randint(5, 5 + WORDS, (rows,), generator=draw)
        for place in range(1, tokens):
            ids[:, place] = 5 + (ids[:, place - 1] * 7 + torch.randint(0, 4, (rows,), generator=draw)) % WORDS
        labels = ids.clone()
        labels[0, : tokens // 4] = -100
        batch = dict(input_ids=ids, attention_mask=torch.ones_like(ids).bool(), labels=labels)
        found.append({name: one.to(device) for name, one in batch.items()})
    return found


def made(way, device, kind):
    """The model of a way, and what it trains: for both the same numbers, no LoRA zero."""
    words = dict(
        r=64, lora_alpha=16, lora_dropout=0.0, target_modules=list(config_edits.LINEARS), task_type="CAUSAL_LM"
    )
    torch.manual_seed(1)
    with contextlib.redirect_stdout(io.StringIO()):
        base = bench.build_llm(bench.SHAPES_7B if device == "cuda" else bench.SHAPES_TINY, device, kind)
        lora = LoraConfig(**words)
        model = SupervisedFinetune(base, lora) if way == "stock" else Finetune(base, lora, None, True)
    own = {name: one for name, one in model.to(device).train().named_parameters() if one.requires_grad}
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name in sorted(own):
            wide = 0.01 if "lora_B" in name else 0.02
            own[name].copy_((torch.randn(own[name].shape, generator=draw) * wide).to(own[name]))
    return model, own


def learn(way, batches, device, kind):
    """(losses, the first gradients)"""
    model, own = made(way, device, kind)
    optimizer = torch.optim.AdamW(own.values(), lr=2e-4 if device == "cuda" else 2e-3)
    losses, gradients = [], {}
    for batch in batches:
        optimizer.zero_grad(set_to_none=way == "stock")  # a recorded step adds to the same ones
        with torch.autocast(device, dtype=kind) if device == "cuda" else contextlib.nullcontext():
            loss = model(batch, mode="loss")["loss"]
        loss.backward()
        gradients = gradients or {name: one.grad.float().cpu().clone() for name, one in own.items()}
        torch.nn.utils.clip_grad_norm_(list(own.values()), 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
    return torch.tensor(losses), gradients


def main():
    device = "cuda" if torch.cuda.is_available() else "cpu"
    kind = torch.bfloat16 if device == "cuda" else torch.float32
    batches = texts(2, 512 if device == "cuda" else 64, device)
    (stock, wanted), (fast, got) = (learn(way, batches, device, kind) for way in ("stock", "fast"))
    apart = ((stock - fast) / stock).abs()
    print(f"stock {stock[0]:.4f} → {stock[-1]:.4f}, fast {fast[0]:.4f} → {fast[-1]:.4f}")
    print(f"losses apart by {apart.max():.2%} at most, {apart.mean():.3%} in the mean")
    off = sum(float((wanted[name] - got[name]).pow(2).sum()) for name in wanted) ** 0.5
    print(f"first gradients apart by {off / sum(float(one.pow(2).sum()) for one in wanted.values()) ** 0.5:.2%}")
    assert device == "cuda" or (float(apart.max()) < 1e-4 and off < 1e-3)


if __name__ == "__main__":
    main()
