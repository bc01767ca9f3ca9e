"""Writes docs/guide/large-models.md, what larger models take on how many GPUs: just memory

Full training by DeepSpeed's own estimators; LoRA and QLoRA computed from them and the sizes of the weights; the 7B
model beside what was measured. A test makes the page again and compares.
"""

import math
import sys
from pathlib import Path
from typing import Dict, List, NamedTuple, Tuple

from recipe.core import measurements

PAGE = Path(__file__).resolve().parent.parent / "docs" / "guide" / "large-models.md"
GPUS = ((1, 1), (2, 1), (4, 1), (8, 1), (8, 2))  # on each machine, machines
CARD = 75.0  # GiB of an 80 GB card that are left for model states, beside CUDA's context and a small batch
RANK = 64  # of the adapters, as in XTuner's presets
# Bytes a weight: NF4, and its scales quantized once more (32 bits for 64 weights, of these 8 and 32 for 256 scales)
NF4 = (4 + 8 / 64 + 32 / (64 * 256)) / 8

# Whether this DeepSpeed's estimator of ZeRO-2 divides the 16-bit gradients, too: 0.18.9's (cu13) does, not 0.14.0's
DIVIDES = sys.version_info >= (3, 12)


class Model(NamedTuple):
    """The shape of an InternLM2 or Llama. `head`: whether XTuner puts an adapter on the output layer, too (it leaves
    out what is called lm_head; InternLM2's is called output).
    """

    name: str
    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    head: bool

    @property
    def matrices(self) -> List[Tuple[int, int]]:
        """Of a layer: (outputs, inputs); Llama's three of q, k and v count as one of the same size."""
        width = self.hidden // self.heads * self.kv_heads
        qkv = (self.hidden + 2 * width, self.hidden)
        return [qkv, (self.hidden, self.hidden), *[(self.inner, self.hidden)] * 2, (self.hidden, self.inner)]

    @property
    def layer(self) -> int:
        return sum(rows * columns for rows, columns in self.matrices)

    @property
    def rest(self) -> int:
        """Parameters outside the layers' matrices: embeddings, output layer, norms."""
        return 2 * self.vocabulary * self.hidden + (2 * self.layers + 1) * self.hidden

    @property
    def parameters(self) -> int:
        return self.layers * self.layer + self.rest

    @property
    def trained(self) -> int:
        """Parameters of the adapters."""
        matrices = list(self.matrices)
        if not self.head:  # q, k and v have an adapter each
            width = self.hidden // self.heads * self.kv_heads
            matrices[:1] = [(self.hidden, self.hidden), (width, self.hidden), (width, self.hidden)]
        total = self.layers * sum(RANK * (rows + columns) for rows, columns in matrices)
        return total + (RANK * (self.vocabulary + self.hidden) if self.head else 0)


MODELS = (
    Model("InternLM2 7B", 4096, 14336, 32, 32, 8, 92544, True),
    Model("InternLM2 20B", 6144, 16384, 48, 48, 8, 92544, True),
    Model("Llama 2 70B", 8192, 28672, 80, 64, 8, 32000, False),
)


def states(model: Model, gpus: int, nodes: int) -> Dict[str, Tuple[float, float]]:
    """method → (bytes on each GPU, bytes of each machine's RAM) of weights, gradients and optimizer."""
    from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs as zero3
    from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs as estimated

    def zero2(weights: int, cpu_offload: bool, **here: int) -> Tuple[float, ...]:
        """As DeepSpeed 0.14.0 tells it, for the page is the same in both variants."""
        ram, gpu = estimated(weights, cpu_offload=cpu_offload, **here)
        if DIVIDES and not cpu_offload:
            gpu += 2 * weights * (1 - 1 / (here["num_gpus_per_node"] * here["num_nodes"]))
        return ram, gpu

    total, trained, largest = model.parameters, model.trained, model.vocabulary * model.hidden
    here = {"num_gpus_per_node": gpus, "num_nodes": nodes}

    def of(found: Tuple[float, ...]) -> Tuple[float, float]:
        return found[1], found[0]  # DeepSpeed tells RAM first

    adapters2 = of(zero2(trained, cpu_offload=False, **here))[0]
    offloaded2 = of(zero2(trained, cpu_offload=True, **here))
    adapters3 = of(zero3(trained, 0, cpu_offload=False, **here))[0]
    loading = 2.0 * total * gpus  # each process reads the weights whole before it hands them to its GPU
    return {
        "full, ZeRO-2": of(zero2(total, cpu_offload=False, **here)),
        "full, ZeRO-2 offload": of(zero2(total, cpu_offload=True, **here)),
        "full, ZeRO-3": of(zero3(total, largest, cpu_offload=False, cpu_offload_params=False, **here)),
        "full, ZeRO-3 offload": of(zero3(total, largest, cpu_offload=True, cpu_offload_params=True, **here)),
        "LoRA, ZeRO-2": (2 * total + adapters2, loading),
        "LoRA, ZeRO-2 offload": (2 * total + offloaded2[0], max(loading, offloaded2[1])),
        "LoRA, ZeRO-3": (2 * total / (gpus * nodes) + 4 * largest + adapters3, loading),
        "QLoRA, ZeRO-2": (NF4 * model.layers * model.layer + 4 * model.rest + adapters2, loading),
    }


def table(model: Model) -> str:
    heads = [f"{gpus * nodes} GPU{'s' * (gpus * nodes > 1)}" + " (2 × 8)" * (nodes > 1) for gpus, nodes in GPUS]
    rows = [f"| {model.name} | from | {' | '.join(heads)} | RAM, 1 → 8 GPUs |", "|---" * (len(heads) + 3) + "|"]
    found = [states(model, gpus, nodes) for gpus, nodes in GPUS]
    for method in found[0]:
        cells = []
        for one in found:
            size = one[method][0] / 2**30
            cells.append(f"**{size:,.1f}**" if size <= CARD else f"{size:,.0f}")
        ram = [math.ceil(found[number][method][1] / 2**30) for number in (0, 3)]
        origin = "DeepSpeed" if method.startswith("full") else "computed"
        rows.append(f"| {method} | {origin} | {' | '.join(cells)} | {ram[0]:,} → {ram[1]:,} |")
    return "\n".join(rows)


def prices() -> str:
    """GPU time of a million tokens, from the 7B model's measured iteration."""
    entry = next(
        e for e in measurements.measurements()["measurement"] if e["card"] == "H100" and e["max_length"] == 2048
    )
    seconds = entry["seconds"] / (entry["batch_size"] * entry["max_length"]) * 1e6
    rows = ["| model | from | H100 seconds for a million tokens |", "|---|---|---|"]
    for model in MODELS:
        origin = "measured" if model is MODELS[0] else "computed: in proportion to the weights"
        rows.append(f"| {model.name} | {origin} | {seconds * model.parameters / MODELS[0].parameters:,.0f} |")
    return "\n".join(rows)


def page() -> str:
    computed = states(MODELS[0], 1, 1)["QLoRA, ZeRO-2"][0] / 2**20
    measured = measurements.memory_mib(0, "H100")
    return TEXT.format(
        computed=round(computed), measured=measured, apart=abs(computed / measured - 1),
        token=measurements.memory_per_token(),
        tables="\n\n".join(map(table, MODELS)), prices=prices(), card=CARD, trained=MODELS[0].trained, rank=RANK,
        parameters=", ".join(f"{model.name} {model.parameters:,}" for model in MODELS),
    )  # fmt: skip


TEXT = """# Larger models: memory and time by number of GPUs

Made by `./justw memory`; a test makes it again and compares. GiB on each GPU for weights, gradients and optimizer,
before any data; **bold** fits an 80 GB card ({card:g} GiB, the rest for CUDA and a small batch). XTuner's DeepSpeed
files: `train.deepspeed=deepspeed_zero2`, `deepspeed_zero2_offload`, `deepspeed_zero3`, `deepspeed_zero3_offload`.

- *DeepSpeed*: its own estimators (`estimate_zero2_model_states_mem_needs`, `estimate_zero3_model_states_mem_needs`) of
  0.14.0. That of 0.18.9, in the variant `cu13`, divides ZeRO-2's 16-bit gradients among the GPUs, too: 2 × (1 − 1/GPUs)
  bytes less for each weight that is trained.
- *computed*: frozen weights (16 bits; NF4 with its scales, and 32 bits for embeddings, output layer and norms) and, for
  the adapters of rank {rank} on every matrix, the same estimators. With ZeRO-3 frozen weights are cut, too; 4-bit ones
  cannot be (the recipe refuses that).
- *measured*: the 7B model by QLoRA on one H100 took {measured:,} MiB (measured at two sizes, extrapolated to no
  tokens); computed here {computed:,} MiB, {apart:.1%} apart. Each token of an iteration took {token:.2f} MiB more.
  The 20B and 70B models were not run, nor was anything on more than one GPU for this table.

Parameters: {parameters}; the 7B model's adapters {trained:,}.
RAM is of a machine that holds all GPUs. InternLM2 has no 70B model; Llama 2's is the one for which XTuner ships
presets. `full` is shown for comparison: the recipes here train adapters (`train.method=qlora` or `lora`).

{tables}

{prices}

Seconds are of one GPU's time with gradient checkpointing, one sequence of 2048 tokens an iteration, which does not fill
the card: larger batches take less. On several GPUs the same time is shared, at best equally.
"""


if __name__ == "__main__":
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)
