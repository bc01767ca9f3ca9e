"""Recipe files: small TOML files that are the only input, typed and checked before anything runs.

Names are XTuner's where XTuner has one. A key that is left out keeps the preset's value. Sources of the
ranges: what the field uses, widened; a value outside is a slip of the pen, not an experiment.
"""

import difflib
import json
from pathlib import Path
from typing import Any, ClassVar, Dict, List, Optional, Sequence, Tuple, Union

import tomli
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from typing_extensions import Annotated, Literal

from recipe.core.errors import InputWrong
from recipe.core.recipe_files import choose_hub, find_recipe, line_of, parse_override, put, read_recipe

HERE = Path(__file__).resolve().parent
SHOWN = 20  # faults listed before the rest is only counted

Count = Annotated[int, Field(ge=1)]
# Why a run cannot learn: what the plan refuses (`plan.refusals`).
Fault = Literal[
    "warmup-crash", "peak-not-reached", "few-updates", "answers-lost", "rows-cut", "no-evaluation",
    "no-checkpoint", "rate-range", "batch-range",
]  # fmt: skip
# A whole number counts iterations; below 1 it is a share of the run, as in transformers' TrainingArguments.
Interval = Union[Count, Annotated[float, Field(gt=0, lt=1)]]


Loggers = Annotated[
    List[Literal["wandb", "swanlab"]], BeforeValidator(lambda v: [v] if isinstance(v, str) else v)
]  # fmt: skip


class Table(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, protected_namespaces=(), allow_inf_nan=False)


class Model(Table):
    """Which base model. `path` (a local folder) wins over `id`; `tiny` is made on the spot. A recipe's table
    [model.huggingface] says which id and revision stand for these with source = "huggingface".

    Of LLaVA's presets: `visual_encoder` is CLIP's folder, its id at the same hub, or "tiny"; `pretrained_pth` the
    projector that the first stage trained, as a checkpoint or as that run's folder, or "none" for a random one.
    """

    # What it is, and what settings name it and a folder of it: for messages
    what: ClassVar[str] = "base model"
    named: ClassVar[str] = "model.id"
    placed: ClassVar[str] = "model.path"

    id: str = "Shanghai_AI_Laboratory/internlm2-chat-7b"
    source: Literal["modelscope", "huggingface", "tiny"] = "modelscope"
    revision: str = "master"
    path: str = ""
    tokenizer: str = ""
    visual_encoder: str = ""
    pretrained_pth: str = ""


class Encoder(Model):
    """CLIP, as a model of its own for what fetches and checks models."""

    what: ClassVar[str] = "visual encoder"
    named: ClassVar[str] = "model.visual_encoder"
    placed: ClassVar[str] = "model.visual_encoder"


class Columns(Table):
    """What the header calls the columns, where the usual names do not settle it."""

    question: str = ""
    answer: str = ""
    system: str = ""
    conversation: str = ""
    turn: str = ""
    text: str = ""
    image: str = ""


class Data(Table):
    """Which files or folders, and the one system prompt of the whole run.

    `kind`: what they hold, questions and answers (instruction), plain texts (pretrain), conversations with tools in
    MSAgent's form (agent), or questions and answers about an image (image); left out, what the preset trains on.
    `piece`: characters into which longer texts are parted. `images`: the folder below which the images lie; left out,
    the one in which the file lies that names them.
    `url` and `sha256` say where the first file is published and which bytes it must be. `sheet`: only these sheets,
    hidden or not. `skip_blank` drops conversations with a blank question or answer, `dedupe` all but the first of
    equal ones; both are counted. `eval_share` of the conversations are held out of training and evaluated, or those of
    `eval_files` instead, but for what is in training too.
    """

    files: Annotated[List[str], Field(min_length=1), BeforeValidator(lambda v: [v] if isinstance(v, str) else v)]
    kind: Optional[Literal["instruction", "pretrain", "agent", "image"]] = None
    sheet: Annotated[List[str], BeforeValidator(lambda v: [v] if isinstance(v, str) else v)] = []
    columns: Columns = Columns()
    url: str = ""
    sha256: str = ""
    system: str = ""
    piece: Optional[Annotated[int, Field(ge=32, le=1_000_000)]] = None
    images: str = ""
    skip_blank: bool = False
    dedupe: bool = False
    eval_share: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    eval_files: Annotated[List[str], BeforeValidator(lambda v: [v] if isinstance(v, str) else v)] = []


class Train(Table):
    """XTuner's own settings by their names, and what decides whether the run repeats and learns.

    `method`: what is trained, an adapter on 4-bit (qlora) or whole (lora) weights, or all weights (full); left out,
    what the preset trains. `template`: one of XTuner's chat templates instead of the preset's.
    `deterministic`: the same seed gives the same adapter, byte for byte, also after an interruption; without it the
    losses agree to some digits only, and a run that went on draws other dropout. `speed`: XTuner's own step, or the
    same one faster (recipe/training/fast), or that in least memory; "auto" is what the card allows. `checkpointing`:
    layers are computed again for their gradients, which takes a third longer and far less memory (default: the
    preset's, where "fast" has the memory for it not). `guard`: stop when loss or gradient
    leaves the run, write checkpoints beside and rename them, save on SIGTERM. `timeout`: minutes without a word from
    the trainer after which it counts as hung. `loggers`: what beside TensorBoard's files is written, offline.
    `evaluation_images`: what evaluation_inputs are about, one for all or one for each (default: the data's first).
    """

    method: Optional[Literal["qlora", "lora", "full"]] = None
    template: str = ""
    dtype: Literal["auto", "fp16", "bf16", "fp32"] = "fp16"
    speed: Literal["stock", "fast", "small", "auto"] = "stock"
    checkpointing: Optional[bool] = None
    max_length: Optional[Annotated[int, Field(ge=32, le=1_000_000)]] = None
    pack_to_max_length: Optional[bool] = None
    batch_size: Optional[Annotated[int, Field(ge=1, le=4096)]] = None
    accumulative_counts: Optional[Annotated[int, Field(ge=1, le=4096)]] = None
    max_epochs: Optional[Annotated[int, Field(ge=1, le=1000)]] = None
    lr: Optional[Annotated[float, Field(gt=0, le=0.01)]] = None
    weight_decay: Optional[Annotated[float, Field(ge=0, le=1)]] = None
    max_norm: Optional[Annotated[float, Field(ge=1e-3, le=100)]] = None
    warmup_ratio: Optional[Annotated[float, Field(ge=0, lt=1)]] = None
    map_num_proc: Optional[Annotated[int, Field(ge=1, le=256)]] = None
    seed: Optional[Annotated[int, Field(ge=0, lt=2**32)]] = None
    deterministic: bool = True
    guard: bool = True
    timeout: Annotated[float, Field(gt=0, le=1440)] = 30.0
    loggers: Loggers = []
    deepspeed: str = ""
    evaluation_freq: Optional[Interval] = None
    evaluation_inputs: Optional[Annotated[List[str], Field(min_length=1)]] = None
    evaluation_images: Optional[
        Annotated[List[str], Field(min_length=1), BeforeValidator(lambda v: [v] if isinstance(v, str) else v)]
    ] = None
    evaluation_system: Optional[str] = None
    evaluation_max_new_tokens: Optional[Annotated[int, Field(ge=1, le=32768)]] = None
    save_steps: Optional[Interval] = None
    save_total_limit: Optional[Annotated[int, Field(ge=-1)]] = None
    log_interval: Optional[Annotated[int, Field(ge=1, le=100)]] = None


class Lora(Table):
    """Rank, scale and dropout of the adapter; PEFT's names."""

    r: Optional[Annotated[int, Field(ge=1, le=1024)]] = None
    lora_alpha: Optional[Annotated[int, Field(ge=1, le=4096)]] = None
    lora_dropout: Optional[Annotated[float, Field(ge=0, le=0.5)]] = None


class Adapter(Table):
    """The type of the saved adapter. fp16 is XTuner's; its underflow is measured and said."""

    dtype: Literal["fp16", "bf16", "fp32"] = "fp16"


class Merge(Table):
    """How the merged model is written. transformers' names.

    `adapters`: folders of further adapters, added to the run's own. `weights`: how much of each, the run's own first;
    all of everything where it is left out. `safe_serialization` false: PyTorch's .bin shards, as the tutorial's.
    """

    max_shard_size: Annotated[str, Field(pattern=r"^[1-9][0-9]*(KB|MB|GB)$")] = "2GB"
    safe_serialization: bool = True
    adapters: Annotated[List[str], BeforeValidator(lambda v: [v] if isinstance(v, str) else v)] = []
    weights: List[Annotated[float, Field(ge=-10, le=10)]] = []
    device: Literal["cpu", "cuda"] = "cpu"

    @model_validator(mode="after")
    def _one_weight_each(self) -> "Merge":
        if self.weights and len(self.weights) != 1 + len(self.adapters):
            raise ValueError(
                f"merge.weights has {len(self.weights)} numbers for {1 + len(self.adapters)} adapters (the run's own "
                f"comes first)"
            )
        return self


class Eval(Table):
    """How `just eval` measures. `answers`: held-out conversations that are answered too (the loss is of all), each with
    at most `max_new_tokens` (default: train.evaluation_max_new_tokens).
    """

    answers: Annotated[int, Field(ge=1, le=100_000)] = 32
    max_new_tokens: Optional[Annotated[int, Field(ge=1, le=32768)]] = None
    batch_size: Annotated[int, Field(ge=1, le=256)] = 8


class Export(Table):
    """What `just export` makes: `type` of the GGUF file, `quantize` for Ollama to do (both llama.cpp's names), and
    where upload sends to. `repo` is owner/name; `public` counts when the hub makes it.
    """

    type: Literal["f16", "f32", "bf16", "q8_0"] = "f16"
    quantize: Literal["", "q8_0", "q6_K", "q5_K_M", "q5_K_S", "q4_K_M", "q4_K_S", "q4_0"] = "q4_K_M"
    hub: Literal["modelscope", "huggingface"] = "modelscope"
    repo: Annotated[str, Field(pattern=r"^([\w.-]+/[\w.-]+)?$")] = ""
    public: bool = False


class Plan(Table):
    """For whom the plan reckons cost: a card (part of its name; default: the one in this machine), its price."""

    card: str = ""
    price_per_hour: Annotated[float, Field(ge=0)] = 0.0


class Cluster(Table):
    """What `just cluster` asks the scheduler for, on each node. Empty: the scheduler's own default.

    `gpu`: the card's name as the scheduler has it. `image`: of the containers (for Slurm an apptainer image, else the
    host's environment). `volume`: the disk that all nodes share (Kubernetes: a claim, SkyPilot: a volume).
    """

    time: Annotated[str, Field(pattern=r"^\d{1,3}:\d\d:\d\d$")] = "24:00:00"
    partition: Annotated[str, Field(pattern=r"^[\w.,-]*$")] = ""
    account: Annotated[str, Field(pattern=r"^[\w.-]*$")] = ""
    gpu: Annotated[str, Field(pattern=r"^[\w.-]*$")] = ""
    cpus: Annotated[int, Field(ge=1, le=1024)] = 16
    memory_gb: Annotated[int, Field(ge=1, le=100_000)] = 128
    image: Annotated[str, Field(pattern=r"^[\w./:@+-]*$")] = ""
    volume: Annotated[str, Field(pattern=r"^[a-z0-9.-]*$")] = "recipe"


class Settings(Table):
    """A whole recipe. `name` is the recipe file's name without its ending, and the output folder's.

    `gpus` on each of `nodes` machines train together. They share what one would do: what an update learns from
    (train.batch_size × train.accumulative_counts) does not depend on them.
    """

    base: str
    gpus: Annotated[int, Field(ge=1, le=64)] = 1
    nodes: Annotated[int, Field(ge=1, le=1024)] = 1
    known_faults: List[Fault] = []  # refusals of the plan that this recipe is about: shown, not stopped at
    model: Model = Model()
    data: Data
    train: Train = Train()
    lora: Lora = Lora()
    adapter: Adapter = Adapter()
    merge: Merge = Merge()
    eval: Eval = Eval()
    export: Export = Export()
    plan: Plan = Plan()
    cluster: Cluster = Cluster()

    @model_validator(mode="after")
    def _four_bits_have_limits(self) -> "Settings":
        if (self.train.method or ("qlora" if "_qlora_" in self.base else "")) != "qlora":
            return self
        if "zero3" in self.train.deepspeed:
            raise ValueError(
                'train.deepspeed = "deepspeed_zero3" cuts the base\'s weights into a part for each GPU, which 4-bit '
                "weights cannot be here: train.method=lora with it, or train.deepspeed=deepspeed_zero2"
            )
        if self.train.dtype == "fp32":
            raise ValueError(
                'train.dtype = "fp32" goes with train.method = "lora" or "full": QLoRA computes in 16 bits'
            )
        return self


def known_keys(model: Any = None, prefix: str = "") -> List[str]:
    """Every setting as a dotted key."""
    found = []
    for name, field in (model or Settings).model_fields.items():
        nested = field.annotation
        if isinstance(nested, type) and issubclass(nested, Table):
            found += known_keys(nested, f"{prefix}{name}.")
        else:
            found.append(prefix + name)
    return found


def load(name: str, overrides: Sequence[str] = ()) -> Tuple[str, Settings]:
    """Read recipe `name` with `key=value` overrides; return (run name, settings).

    Raises InputWrong for an unknown recipe, broken TOML, an unknown key, a wrong type or a value out of
    range, naming file, line, key and what is allowed.
    """
    path = find_recipe(name)
    text, values = read_recipe(path, tomli)
    given: Dict[Tuple[str, ...], str] = {}
    for override in overrides:
        keys, value = parse_override(override, tomli)
        given[keys] = override
        put(values, keys, value, override)
    choose_hub(values, given)
    try:
        return path.stem, Settings.model_validate(values)
    except ValidationError as error:
        raise InputWrong(_explain(error, path, text, given))


def value(recipe: Settings, dotted: str) -> Any:
    """What `recipe` has at a key; None where a table of free names has no such one."""
    found: Any = recipe.model_dump()
    for name in dotted.split("."):
        found = found.get(name) if isinstance(found, dict) else None
    return found


def literal(value: Any) -> str:
    """A value in TOML, whose strings, numbers and lists are JSON's, but for DEL."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def flat(values: Dict[str, Any], above: str = "") -> Dict[str, Any]:
    """Nested tables as dotted keys."""
    found: Dict[str, Any] = {}
    for name, value in values.items():
        found.update(flat(value, f"{above}{name}.") if isinstance(value, dict) else {f"{above}{name}": value})
    return found


def differences(of: Settings, other: Settings) -> List[str]:
    """Overrides that make the settings `other` of `of`."""
    there = flat(of.model_dump())
    return [
        f"{name}={literal(one)}"
        for name, one in flat(other.model_dump()).items()
        if one != there.get(name) and one is not None
    ]


def replace(recipe: Settings, dotted: str, value: Any) -> Settings:
    """`recipe` with one key set, checked again."""
    values = recipe.model_dump()
    *tables, key = dotted.split(".")
    table = values
    for name in tables:
        table = table[name]
    table[key] = value
    return Settings.model_validate(values)


def price(overrides: Sequence[str]) -> Optional[float]:
    """The price an hour that overrides name, None for none. Raises InputWrong for any other override."""
    found = None
    for override in overrides:
        keys, value = parse_override(override, tomli)
        if keys != ("plan", "price_per_hour"):
            raise InputWrong(f"{override}: the run is as it was made; a report takes plan.price_per_hour=… alone.")
        try:
            found = Plan.model_validate({keys[1]: value}).price_per_hour
        except ValidationError as error:
            raise InputWrong(f"override {override}: {error.errors()[0]['msg']} (found {value!r}).")
    return found


def _explain(error: ValidationError, path: Path, text: str, given: Dict[Tuple[str, ...], str]) -> str:
    """One line per fault, with the place in the file or the override that made it."""
    faults: Dict[Tuple[str, str], List[str]] = {}
    for fault in error.errors()[: 2 * SHOWN]:
        keys = tuple(part for part in fault["loc"] if isinstance(part, str))
        # pydantic names the branch of a union ("constrained-int") behind the key; it is no key of ours
        known = known_keys()
        while keys and fault["type"] != "extra_forbidden" and len(keys) > 1 and ".".join(keys) not in known:
            keys = keys[:-1]
        dotted = ".".join(keys)
        override = next((given[k] for k in given if keys and k[: len(keys)] == keys), None)
        if override:
            where = f"override {override}"
        elif not keys:
            where = str(path)
        else:
            line = line_of(text, keys, tomli)
            where = f"{path}, line {line}" if line else str(path)
        if fault["type"] == "extra_forbidden":
            close = difflib.get_close_matches(dotted, known, n=1, cutoff=0.5)
            what = "unknown key" + (f"; did you mean {close[0]}?" if close else "")
            if not close:
                what += f"; known are {', '.join(known)}"
        elif fault["type"] == "missing":
            what = "is missing and has no default"
        else:
            what = fault["msg"].replace("Value error, ", "")
            what = what[0].lower() + what[1:]
            if keys and not isinstance(fault["input"], dict):
                what += f" (found {fault['input']!r})"
        faults.setdefault((where, dotted), []).append(what)
    told = list(faults.items())
    more = [f"… and {len(told) - SHOWN} more."] if len(told) > SHOWN else []
    return "\n".join(
        f"{where}: {dotted + ': ' if dotted else ''}{' or '.join(whats).rstrip('?.')}."
        for (where, dotted), whats in told[:SHOWN]
    ) + "".join(f"\n{line}" for line in more)
