"""Config stage: renders the XTuner config and its difference from the preset."""

import json
from pathlib import Path
from typing import Any, Dict, List

from recipe.core import imports
from recipe.core.hashing import source
from recipe.core.run import Run
from recipe.core.settings import replace
from recipe.core.stage import Stage
from recipe.core.translation import ngettext
from recipe.intake.dataset import first_questions
from recipe.xtuner import preset_editor, preset_facts
from recipe.xtuner.config import render, template
from recipe.xtuner.config_edits import speed_edits
from recipe.xtuner.step_choice import dtype, speed, training_dtype


def inputs(run: Run) -> Dict[str, Any]:
    from recipe.base_model import folder
    from recipe.weights import llava

    return {
        **({"vision": llava.config_values(run)} if preset_facts.has_images(run.settings) else {}),
        "settings": run.settings.model_dump(
            exclude={
                "data": {"files", "skip_blank", "eval_share", "eval_files"},
                "adapter": True,
                "merge": True,
                "eval": True,
                "export": True,
                "plan": True,
                "cluster": True,
            }
        ),
        "dtype": dtype(run.settings),
        "speed": speed_edits(run.settings, 0),
        "plan": run.plan,
        "model": run.relative(folder.folder(run)),
        "own_code": folder.is_internlm2(run),
        **({"questions": _drawn(run)} if isinstance(run.settings.train.evaluation_inputs, int) else {}),
        "dataset": run.relative(run.dataset),
        "code": source(Path(__file__), Path(preset_editor.__file__).parent),
    }


def _drawn(run: Run) -> List[str]:
    """The questions of a recipe that only gives their number: held-out ones, else trained ones."""
    count = run.settings.train.evaluation_inputs
    return first_questions((run.eval_dataset, run.dataset), count) if isinstance(count, int) else []


def _lora(cfg: Any, name: str) -> Dict[str, Any]:
    """The settings of one of the model's adapters, {} where it has none."""
    return {key: value for key, value in (cfg.model.get(name) or {}).items() if key != "type"}


def make(run: Run, output: Path) -> Dict[str, Any]:
    """Write config.py and config.diff (against the preset). Figures: lines changed, LoRA settings, stop words."""
    from recipe.base_model import folder
    from recipe.weights import llava

    plan = json.loads(run.plan.read_text(encoding="utf-8"))
    vision = llava.config_values(run) if preset_facts.has_images(run.settings) else None
    own_code = folder.is_internlm2(run)
    drawn = _drawn(run)
    text = render(
        replace(run.settings, "train.evaluation_inputs", drawn) if drawn else run.settings,
        run.relative(folder.folder(run)),
        run.relative(run.dataset),
        plan["intervals"],
        vision,
        own_code,
    )
    diff = preset_editor.difference(
        preset_editor.source(run.settings.base), text, f"{run.settings.base}.py", "config.py"
    )
    (output / "config.py").write_text(text, encoding="utf-8")
    (output / "config.diff").write_text(diff, encoding="utf-8")
    imports.load()
    from mmengine.config import Config

    cfg = Config.fromfile(str(output / "config.py"))
    added = sum(line.startswith("+") and not line.startswith("+++") for line in diff.splitlines())
    return {
        "base": run.settings.base,
        "method": preset_facts.method(run.settings),
        "lines_changed": added,
        "dtype": training_dtype(run.settings),
        "speed": speed(run.settings),
        # What adapter and merge need of the config, without loading the libraries that reading it takes.
        "lora": _lora(cfg, "llm_lora" if vision else "lora"),
        **({"visual_encoder_lora": _lora(cfg, "visual_encoder_lora")} if vision else {}),
        **({"questions": drawn} if drawn else {}),
        "stop_words": list((template(cfg) or {}).get("STOP_WORDS", [])),
    }


def summary(figures: Dict[str, Any]) -> str:
    return ngettext(
        "{preset} with {n} line changed (config.diff), {dtype}",
        "{preset} with {n} lines changed (config.diff), {dtype}",
        figures["lines_changed"], preset=figures["base"], dtype=figures["dtype"],
    )  # fmt: skip


STAGE = Stage("config", inputs, make, summary, outputs=("config.py", "config.diff"))
