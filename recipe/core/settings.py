"""The settings of a recipe: types, ranges and defaults, checked before anything runs.

Names are XTuner's where XTuner has one. A setting that is left out (None) keeps the preset's value. The ranges are
those in common use, widened: a value outside them is a typo.
"""

import functools
from pathlib import Path
from typing import Any, ClassVar, FrozenSet, List, Optional, Sequence, Tuple, Union

import tomli
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from typing_extensions import Annotated, Literal

from recipe.core.errors import InputWrong
from recipe.core.recipe_files import Recipe, find_recipe, read_values
from recipe.core.settings_errors import explain
from recipe.core.translation import _, mark

Count = Annotated[int, Field(ge=1)]
Tokens = Annotated[int, Field(ge=1, le=32768)]
# A whole number counts iterations; below 1 it is a share of the run, as in transformers' TrainingArguments.
Interval = Union[Count, Annotated[float, Field(gt=0, lt=1)]]
as_list = BeforeValidator(lambda value: [str(value)] if type(value) in (str, int) else value)  # a sheet called 2024
TextList = Annotated[List[str], as_list]


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError(_("a text is empty"))
    return text


Question = Annotated[str, AfterValidator(_not_blank)]
FilledTextList = Annotated[List[str], Field(min_length=1), as_list]
# Why a run cannot learn: what the plan refuses (planning/refusals.py).
Fault = Literal[
    "warmup-crash", "peak-not-reached", "few-updates", "answers-lost", "rows-cut", "no-evaluation",
    "no-checkpoint", "rate-range", "batch-range",
]  # fmt: skip


class Table(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, protected_namespaces=(), allow_inf_nan=False)


SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct"


class Pin(Table):
    """A model at another hub; what is empty is the same there."""

    id: str = ""
    revision: str = ""


class Model(Table):
    """The base model. `path` (a local folder) wins over `id`. Two sources make a small model on the spot, without a
    hub: "smollm2" a pre-trained one (SmolLM2-135M-Instruct), "tiny" one with random weights.

    source = "auto" takes the first hub that answers: ModelScope, then Hugging Face. A recipe's table
    [model.huggingface] has id and revision there, also for source = "huggingface". For LLaVA's presets,
    `visual_encoder` is CLIP: a folder, an id at the same hub, or "tiny". `pretrained_pth` is the projector that the
    first stage trained: a checkpoint, that run's folder, or "none" for a random one.
    """

    # For messages: what the model is called, and the settings that name it and its folder
    what: ClassVar[str] = mark("base model")
    named: ClassVar[str] = "model.id"
    placed: ClassVar[str] = "model.path"

    id: str = "Shanghai_AI_Laboratory/internlm2-chat-7b"
    source: Literal["auto", "modelscope", "huggingface", "smollm2", "tiny"] = "modelscope"
    revision: str = "master"
    huggingface: Pin = Pin()
    path: str = ""
    tokenizer: str = ""
    visual_encoder: str = ""
    pretrained_pth: str = ""

    @model_validator(mode="before")
    @classmethod
    def _name_smollm2(cls, values: Any) -> Any:
        """This source has one model."""
        is_smollm2 = isinstance(values, dict) and values.get("source") == "smollm2"
        return {**values, "id": SMOLLM2} if is_smollm2 else values

    @property
    def is_tiny(self) -> bool:
        """Whether the base model has random weights."""
        return self.source == "tiny" and not self.path

    @property
    def is_made(self) -> bool:
        """Whether the base model is made on the spot."""
        return self.source in ("smollm2", "tiny") and not self.path


class Encoder(Model):
    """The CLIP visual encoder; it is downloaded and checked like the base model."""

    what: ClassVar[str] = mark("visual encoder")
    named: ClassVar[str] = "model.visual_encoder"
    placed: ClassVar[str] = "model.visual_encoder"


class Columns(Table):
    """Column names in the header, where they are not the usual ones."""

    question: str = ""
    answer: str = ""
    system: str = ""
    conversation: str = ""
    turn: str = ""
    text: str = ""
    image: str = ""


class Data(Table):
    """The files or folders to train on, and the system prompt of the whole run.

    `kind`: questions and answers (instruction), plain texts (pretrain), conversations with tools in MSAgent's form
    (agent), or questions about an image (image). Default: what the preset trains on.
    `piece`: longer texts are cut into pieces of so many characters. `images`: the folder that image paths start from.
    Default: the folder of the file that names them.
    `url`, `sha256`: where the first file is published, and its checksum. If it is missing, and has the name that the
    address ends in, it is fetched from there (intake/published.py). `sheet`: read only these sheets, hidden ones
    too. `skip_blank` drops conversations with a blank question or answer, `dedupe` exact duplicates; both are counted.
    `eval_share` of the conversations are held out of training for the evaluation, or else those of `eval_files`,
    except the ones that are also in training.
    """

    files: FilledTextList
    kind: Optional[Literal["instruction", "pretrain", "agent", "image"]] = None
    sheet: TextList = []
    columns: Columns = Columns()
    url: str = ""
    sha256: str = ""
    system: str = ""
    piece: Optional[Annotated[int, Field(ge=32, le=1_000_000)]] = None
    images: str = ""
    skip_blank: bool = False
    dedupe: bool = False
    eval_share: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    eval_files: TextList = []


class Train(Table):
    """XTuner's training settings under their own names, and ours.

    `method`: train an adapter on 4-bit weights (qlora) or on full ones (lora), or all weights (full). Default: the
    preset's. `template`: another of XTuner's chat templates.
    `deterministic`: the same seed gives the same adapter, byte for byte, also after an interruption. Without it the
    losses agree to a few digits, and a resumed run draws other dropout.
    `speed`: XTuner's training step (stock), a faster equal one (fast, see recipe/training/fast), the one that needs the
    least memory (small), or what the card allows (auto). `checkpointing`: recompute activations, which takes a third
    longer and far less memory. Default: the preset's; "fast" turns it off where the memory suffices.
    `guard`: stop diverging runs, write checkpoints atomically, save on SIGTERM. `timeout`: minutes of silence after
    which the trainer counts as hung. `loggers`: written beside TensorBoard's files, offline.
    `evaluation_inputs`: the questions asked during training, or a number: so many of those that are held out.
    `evaluation_images`: the images of evaluation_inputs, one for all or one each. Default: the data's first.
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
    loggers: Annotated[List[Literal["wandb", "swanlab"]], as_list] = []
    deepspeed: str = ""
    evaluation_freq: Optional[Interval] = None
    evaluation_inputs: Optional[
        Union[Annotated[int, Field(ge=1, le=100)], Annotated[List[Question], Field(min_length=1)]]
    ] = None
    evaluation_images: Optional[FilledTextList] = None
    evaluation_system: Optional[str] = None
    evaluation_max_new_tokens: Optional[Tokens] = None
    save_steps: Optional[Interval] = None
    save_total_limit: Optional[Annotated[int, Field(ge=-1)]] = None
    log_interval: Optional[Annotated[int, Field(ge=1, le=100)]] = None

    @property
    def questions(self) -> List[str]:
        """evaluation_inputs as questions; empty ones where they are not drawn yet."""
        asked = self.evaluation_inputs
        return [""] * asked if isinstance(asked, int) else list(asked or ())


class Lora(Table):
    """Rank, scale and dropout of the adapter, under PEFT's names."""

    r: Optional[Annotated[int, Field(ge=1, le=1024)]] = None
    lora_alpha: Optional[Annotated[int, Field(ge=1, le=4096)]] = None
    lora_dropout: Optional[Annotated[float, Field(ge=0, le=0.5)]] = None


class Adapter(Table):
    """The type of the saved adapter. fp16 is XTuner's; the adapter stage measures its underflow."""

    dtype: Literal["fp16", "bf16", "fp32"] = "fp16"


class Merge(Table):
    """How the merged model is written, under transformers' names.

    `adapters`: folders of more adapters to add to the run's own. `weights`: the factor of each, the run's own first.
    Default: 1 each. `safe_serialization` = false writes PyTorch's .bin shards, as the tutorial does.
    """

    max_shard_size: Annotated[str, Field(pattern=r"^[1-9][0-9]*(KB|MB|GB)$")] = "2GB"
    safe_serialization: bool = True
    adapters: TextList = []
    weights: List[Annotated[float, Field(ge=-10, le=10)]] = []
    device: Literal["cpu", "cuda"] = "cpu"

    @model_validator(mode="after")
    def _one_weight_each(self) -> "Merge":
        if self.weights and len(self.weights) != 1 + len(self.adapters):
            raise ValueError(
                _(
                    "merge.weights has {weights} numbers for {adapters} adapters (the run's own comes first)",
                    weights=len(self.weights),
                    adapters=1 + len(self.adapters),
                )
            )
        return self


class Eval(Table):
    """What `just eval` measures. The loss is of all held-out conversations; `answers` of them are answered too, with
    up to `max_new_tokens` (default: train.evaluation_max_new_tokens).
    """

    answers: Annotated[int, Field(ge=1, le=100_000)] = 32
    max_new_tokens: Optional[Tokens] = None
    batch_size: Annotated[int, Field(ge=1, le=256)] = 8


class Export(Table):
    """What `just export` makes: the GGUF file's `type`, and what Ollama quantizes it to (both llama.cpp's names).

    `hub` and `repo` (owner/name) are where upload sends to; `public` applies when upload creates the repository.
    """

    type: Literal["f16", "f32", "bf16", "q8_0"] = "f16"
    quantize: Literal["", "q8_0", "q6_K", "q5_K_M", "q5_K_S", "q4_K_M", "q4_K_S", "q4_0"] = "q4_K_M"
    hub: Literal["modelscope", "huggingface"] = "modelscope"
    repo: Annotated[str, Field(pattern=r"^([\w.-]+/[\w.-]+)?$")] = ""
    public: bool = False


class Plan(Table):
    """The card that the plan estimates time and cost for (part of its name; default: this machine's), and its price
    (default: planning/prices.toml). `download_mbit`: the speed of downloads in Mbit/s, an assumption.
    """

    card: str = ""
    price_per_hour: Annotated[float, Field(ge=0)] = 0.0
    download_mbit: Annotated[float, Field(gt=0, le=100_000)] = 100.0


class Cluster(Table):
    """What `just cluster` requests from the scheduler on each node. Empty: the scheduler's default.

    `gpu`: the scheduler's name of the card. `image`: the container image (Slurm: an Apptainer image; empty: the host's
    environment). `volume`: the disk that all nodes share (Kubernetes: a claim, SkyPilot: a volume).
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
    """A whole recipe.

    `gpus` on each of `nodes` machines train together and share the work of one: an update learns from
    train.batch_size × train.accumulative_counts sequences on any number of them.
    """

    base: str
    gpus: Annotated[int, Field(ge=1, le=64)] = 1
    nodes: Annotated[int, Field(ge=1, le=1024)] = 1
    known_faults: List[Fault] = []  # refusals of the plan that are shown but do not stop this recipe
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
    def _qlora_limits(self) -> "Settings":
        if (self.train.method or ("qlora" if "_qlora_" in self.base else "")) != "qlora":
            return self
        if "zero3" in self.train.deepspeed:
            raise ValueError(
                _(
                    'train.deepspeed = "deepspeed_zero3" splits the base\'s weights among the GPUs, which 4-bit '
                    "weights do not allow here: use train.method=lora with it, or train.deepspeed=deepspeed_zero2"
                )
            )
        if self.train.dtype == "fp32":
            raise ValueError(_('train.dtype = "fp32" needs train.method = "lora" or "full": QLoRA computes in 16 bits'))
        return self


def known_keys(model: Any = None, prefix: str = "") -> List[str]:
    """Every setting as a dotted key."""
    return [key for key, _annotation in _annotations(model, prefix)]


@functools.lru_cache(maxsize=1)
def text_keys() -> FrozenSet[str]:
    """The settings that are texts or lists of texts."""
    return frozenset(key for key, annotation in _annotations() if _is_text(annotation))


def _annotations(model: Any = None, prefix: str = "") -> List[Tuple[str, Any]]:
    found: List[Tuple[str, Any]] = []
    for name, field in (model or Settings).model_fields.items():
        table = field.annotation
        is_table = isinstance(table, type) and issubclass(table, Table)
        found += _annotations(table, f"{prefix}{name}.") if is_table else [(prefix + name, table)]
    return found


def _is_text(annotation: Any) -> bool:
    kinds = [one for one in getattr(annotation, "__args__", None) or [annotation] if one is not type(None)]
    return all(one is str or (getattr(one, "__args__", None) and _is_text(one)) for one in kinds)


def load(
    name: Union[str, Recipe], overrides: Sequence[str] = (), output: Optional[Path] = None
) -> Tuple[str, Settings]:
    """Read recipe `name` with `key=value` overrides; return (run name, settings). `output`: where runs lie.

    Raises InputWrong for an unknown recipe, broken TOML, an unknown key, a wrong type or a value out of range. The
    message names file, line, key and what is allowed.
    """
    output = output or Path.cwd() / "output"
    recipe = find_recipe(name, output=output) if isinstance(name, str) else name
    text, values, given = read_values(recipe, overrides, tomli, output, is_text=text_keys().__contains__)
    try:
        return recipe.name, Settings.model_validate(values)
    except ValidationError as error:
        raise InputWrong(explain(error, recipe.path, text, given, known_keys()))


def replace(settings: Settings, key: str, value: Any) -> Settings:
    """`settings` with another value of a dotted key, checked again."""
    values = settings.model_dump()
    *tables, name = key.split(".")
    table = values
    for one in tables:
        table = table[one]
    table[name] = value
    return Settings.model_validate(values)
