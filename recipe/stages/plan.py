"""Plan stage: predicts the run and refuses one that cannot learn."""

import json
from pathlib import Path
from typing import Any, Dict

from recipe.base_model import folder, visual_encoder
from recipe.base_model import tokenizer as base_model_tokenizer
from recipe.core import imports, measurements
from recipe.core.errors import PlanRefused
from recipe.core.files import write_text
from recipe.core.hashing import source
from recipe.core.run import Run
from recipe.core.stage import Stage
from recipe.core.translation import _, listed, ngettext, stored
from recipe.planning import memory
from recipe.planning.plan import SMALL, combined_remedy, drawn_seed, predict, unknown_refusals
from recipe.xtuner import config, preset_facts, step_choice


def inputs(run: Run) -> Dict[str, Any]:
    preset_facts.check(run.settings)  # before a tokenizer is fetched
    chosen = run.settings.model.tokenizer
    # The folder of a model that is made here is named after what it is made of, and may not be there yet.
    tokenizer = Path(chosen) if chosen else folder.tokenizer_file(folder.folder(run))
    if not (chosen or run.settings.model.is_made or run.settings.model.path or folder.folder(run).exists()):
        tokenizer = base_model_tokenizer.download_tokenizer(
            run
        )  # the same file, so that the plan still holds when the model is there
        tokenizer = folder.tokenizer_file(tokenizer) if tokenizer.is_dir() else tokenizer
    return {
        "settings": run.settings.model_dump(
            exclude={
                "data": {"files", "sheet", "columns", "skip_blank", "dedupe", "eval_share", "eval_files"},
                "lora": True,
                "adapter": True,
                "merge": True,
                "eval": True,
                "export": True,
                "cluster": True,
            }
        ),
        "dataset": run.dataset,
        "held_out": run.figures("data").get("held_out", 0),
        "tokenizer": folder.folder(run).name if run.settings.model.is_made else tokenizer,
        **(
            {"visual_encoder": visual_encoder.settings_folder(run) / "config.json"}
            if preset_facts.has_images(run.settings)
            else {}
        ),
        "force": run.force,
        "speed": step_choice.speed(run.settings),
        "dtype": step_choice.training_dtype(run.settings),
        "deepspeed": step_choice.deepspeed_text(run.settings),  # a file that is wrong is refused here
        "bench": measurements.BENCH,
        "code": source(Path(__file__), Path(memory.__file__).parent, Path(visual_encoder.__file__)),
    }


def make(run: Run, output: Path) -> Dict[str, Any]:
    """Write plan.json; its fields are the figures. Raises PlanRefused for a run that cannot learn."""
    imports.load()
    with run.dataset.open(encoding="utf-8") as stream:
        lines = [json.loads(line) for line in stream]
    cfg = config.effective(run.settings)
    tokenizer = base_model_tokenizer.tokenizer(run)
    seed = run.settings.train.seed
    if seed is None:
        # XTuner would draw one itself. Drawn here, the plan is exact and the run can be repeated.
        seed = drawn_seed(run)
    images = [line.get("sha256", "") for line in lines]
    conversations = [line["conversation"] for line in lines]
    figures = predict(run, cfg, conversations, tokenizer, seed, images)
    text = json.dumps(figures, ensure_ascii=False, indent=1) + "\n"
    stopping = unknown_refusals(run, figures)
    if stopping and not run.force:
        # Keep the refused plan for reading, but not in the place of one that a training was made with. No later stage
        # uses it, since this stage fails.
        if "plan" not in run.manifest["stages"]:
            write_text(run.plan, text)
        reasons = "\n".join(f"- {stored(refusal['why'])}" for refusal in stopping)

        def plan_again(trial: Run) -> Dict[str, Any]:
            return predict(trial, config.effective(trial.settings), conversations, tokenizer, seed, images)

        if len(conversations) <= SMALL:
            reasons += combined_remedy(run, stopping, plan_again)
        what = _("Recipe {recipe} would not learn:", recipe=run.name)
        raise PlanRefused("\n".join((what, reasons, _("--force trains anyway."))), figures)
    (output / "plan.json").write_text(text, encoding="utf-8")
    return {name: value for name, value in figures.items() if name != "lr_trace"}


def summary(figures: Dict[str, Any]) -> str:
    kept, ranks = figures["tokens_kept"] / figures["tokens"], figures["ranks"]
    tokens = ngettext(
        "{tokens:,} tokens, {kept:.1%} kept in {n} pack", "{tokens:,} tokens, {kept:.1%} kept in {n} packs",
        figures["packs"], tokens=figures["tokens"], kept=kept,
    )  # fmt: skip
    steps = [
        ngettext("{n} iteration", "{n} iterations", figures["iterations"]),
        ngettext("{n} update", "{n} updates", figures["updates"])
        if ranks == 1
        else ngettext(
            "{n} update of {sequences} sequences, shared by {gpus} GPUs",
            "{n} updates of {sequences} sequences, shared by {gpus} GPUs",
            figures["updates"], sequences=figures["update_sequences"], gpus=ranks,
        ),
    ]  # fmt: skip
    return _("; ").join((tokens, listed(steps)))


STAGE = Stage("plan", inputs, make, summary, outputs=("plan.json",))
