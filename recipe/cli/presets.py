"""`just presets` and `just new`: what XTuner ships, as a table; a recipe file to begin with."""

import re
import shlex
from pathlib import Path
from typing import Any, List, Tuple

import click

from recipe.cli.command import OUTPUT, command, console
from recipe.core import data_source
from recipe.core.commands import command_line
from recipe.core.errors import InputWrong, reason
from recipe.core.files import write_text
from recipe.core.overrides import to_toml
from recipe.core.recipe_files import RECIPES, recipes
from recipe.core.text_width import fold
from recipe.core.translation import _, english, mark, ngettext, stored
from recipe.planning import memory
from recipe.xtuner import preset_editor, preset_facts

HEAD = (
    mark("preset"), mark("family"), mark("method"), mark("template"), mark("data"), mark("GiB computed"), mark("here"),
)  # fmt: skip
TABLE = Path(__file__).resolve().parent.parent.parent / "docs" / "presets.tsv"


def rows(word: str = "") -> List[List[str]]:
    """A row for every preset whose row holds `word`, in any case; see HEAD. Memory is of one GPU, as shipped."""
    with english():
        found = [
            preset_facts.table_row(preset_facts.facts(name), memory.preset_gib(name)) for name in preset_editor.files()
        ]
    return [row for row in found if word.lower() in " ".join(row).lower()]


def as_tsv(table: List[List[str]]) -> str:
    return "".join("\t".join(row) + "\n" for row in (HEAD, *table))


def show(word: str, terminal: Any) -> None:
    """Print the table, or what of it holds `word`. Raises InputWrong if nothing does."""
    from rich.table import Table

    found = rows(word)
    if not found:
        raise InputWrong(_("{word!r} matches no preset's name, family, method, template or data.", word=word))
    if not terminal.is_terminal:  # to a pipe: in the format of docs/presets.tsv
        print(as_tsv(found), end="")
        return
    table = Table(*map(_, HEAD), box=None)
    for row in found:
        table.add_row(*row[:-1], stored(row[-1]))
    fold(table)
    terminal.print(table)
    terminal.print(
        ngettext(
            "{n} preset. GiB: computed from the shape, for the preset's own batch and length on one GPU",
            "{n} presets. GiB: computed from the shape, for the preset's own batch and length on one GPU",
            len(found),
        )
    )


def write_recipe(name: str, base: str) -> Path:
    """Write the recipe file NAME.toml into the current folder, from a shipped recipe or a preset. Raises InputWrong for
    a name that is taken.
    """
    path = Path(name if name.endswith(".toml") else f"{name}.toml")
    if path.stem in recipes():
        raise InputWrong(_("{name} is a recipe that ships. Choose another name.", name=path.stem))
    if not path.stem.replace("-", "_").isidentifier():
        raise InputWrong(
            _(
                "{name!r} is not a valid recipe name: use letters, digits, - and _, as it also names a folder.",
                name=path.stem,
            )
        )
    text = _from_recipe(path, base) if base in recipes() else _from_preset(path, base)
    try:
        with path.open("x", encoding="utf-8") as stream:
            stream.write(text)
    except FileExistsError:
        raise InputWrong(_("{file} already exists. Choose another name.", file=path))
    except OSError as error:
        raise InputWrong(_("{file} cannot be written: {reason}.", file=path, reason=reason(error)))
    return path


def _from_recipe(path: Path, base: str) -> str:
    """The text of a shipped recipe with the user's data in place of its own."""
    here = sorted(str(file) for file in Path("data").glob(f"{path.stem}.*"))
    remembered = data_source.read(Path(OUTPUT, path.stem))  # where the data file was named directly before
    data = remembered.get("data", here[0] if here else f"data/{path.stem}.xlsx")
    text = (RECIPES / f"{base}.toml").read_text(encoding="utf-8")
    for pattern, new in (
        (r"\A(#.*\n)+", OWN.format(name=path, base=base)),
        (r"^(url|sha256) = .*\n", ""),
        (r"^files = .*", f"files = [{to_toml(data)}] # workbooks, CSV, JSON, Parquet, or folders of them"),
        (r"^system = .*", f"system = {to_toml(remembered.get('system', ''))} # who the model is to be"),
        (r"^evaluation_inputs = (.|\n)*?\]\n", f"evaluation_inputs = {data_source.QUESTIONS} # of those held out\n"),
    ):
        text = re.sub(f"(?m){pattern}", lambda _found, new=new: new, text)  # type: ignore[misc]
    return text


def _from_preset(path: Path, base: str) -> str:
    found = preset_facts.facts(base)
    warning = f"# Does not run here: {found.refusal}.\n" if found.refusal else ""  # English, as the other comments
    has_images = found.kind == "image"
    vision = VISUAL_ENCODER.format(visual_encoder=found.visual_encoder) if has_images else ""
    rate = {"full": "2e-5", "projector": "1e-3"}.get(found.method, "2e-4")
    return NEW.format(
        name=path, base=base, warning=warning, model=found.model, method=found.method,
        template=found.template or "none", lr=rate, data=DATA[found.kind],
        length=found.names["max_length"] if found.names["max_length"].isdigit() else 2048 - 576 * has_images,
        vision=vision + PROJECTOR * ("pretrained_pth" in found.names),
    )  # fmt: skip


def write_table() -> Path:
    """Make docs/presets.tsv again."""
    write_text(TABLE, as_tsv(rows()))
    return TABLE


DATA = {
    "instruction": 'files = ["data/mine.xlsx"] # columns q and a of a workbook, or CSV, JSON, Parquet, a folder\n'
    'system = "" # the system prompt of training, evaluation and chat',
    "pretrain": 'files = ["data/texts"] # .txt, .md, a folder of them, or one column of a workbook\n'
    '# columns.text = "text" # which column of a workbook',
    "agent": 'files = ["data/tools.jsonl"] # conversations with tools, in the form of ModelScope\'s MSAgent-Bench',
    "image": 'files = ["data/images.xlsx"] # columns image (a path), q and a of a workbook, or LLaVA\'s own JSON\n'
    'images = "data/images" # below which the images lie; left out: beside the file\n'
    'system = "" # the system prompt of training, evaluation and chat',
}
VISUAL_ENCODER = 'visual_encoder = "{visual_encoder}" # CLIP at the same hub, or a folder that you have\n'
PROJECTOR = 'pretrained_pth = "none" # better: the folder of the first stage\'s run, output/…\n'
OWN = """# The recipe {base} with data of your own. Check it with: just plan {name}, then: just merge {name}
"""
NEW = """# A recipe of your own. Check it with: just plan {name}, then: just train {name}
{warning}
base = "{base}" # XTuner's preset: whatever is not named here stays as it has it

[model]
id = "{model}"
source = "huggingface" # or "modelscope"; or name a folder that you have: path = "models/mine"
revision = "main" # of a model that brings its own code, one from before 2024-03-18
{vision}
[data]
{data}
eval_share = 0.05 # of it is held out: `just eval` measures there whether the model got better

[train]
# method = "{method}" # the preset's: qlora (4-bit weights and an adapter), lora (whole ones), full (all weights)
# template = "{template}" # the preset's chat template; another of XTuner's
dtype = "auto" # bf16 where the card has it
max_length = {length} # tokens of a pack; what is longer is cut, and the plan says so
batch_size = 1
accumulative_counts = 1 # packs of an update; 16 as shipped leaves few updates on little data
max_epochs = 3
lr = {lr}
warmup_ratio = 0.1
map_num_proc = 1 # each process more throws the rest of its last pack away
seed = 0
evaluation_freq = 0.5 # at start, middle and end
save_steps = 0.5
log_interval = 1
deepspeed = "deepspeed_zero2"
"""


@command("presets", "presets llava", default="", settings=False)
@click.argument("words", nargs=-1, metavar="[WORD]...")
@click.option("--write", is_flag=True, help="Make docs/presets.tsv again.")
def presets(words: Tuple[str, ...], write: bool) -> None:
    """List what XTuner ships: 408 presets with family, method, template, data, GPU memory."""
    if write:
        click.echo(write_table())
    else:
        show(" ".join(words), console())


@command("new mine --from coach", "new mine --from internlm2_chat_7b_qlora_oasst1_e3", default="", settings=False)
@click.argument("name")
@click.option(
    "--from", "base", required=True, metavar="NAME", help="The recipe (coach) or preset to begin with; see `presets`."
)
def new(name: str, base: str) -> None:
    """Write a recipe file of your own, NAME.toml, from a shipped recipe or one of XTuner's presets."""
    path = write_recipe(name, base)
    click.echo(_("{file}: edit it, then: {command}", file=path, command=command_line("plan", shlex.quote(str(path)))))
