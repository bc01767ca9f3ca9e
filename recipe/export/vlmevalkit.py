"""Target vlmevalkit: configs for VLMEvalKit."""

from pathlib import Path
from typing import Any, Dict, List

from recipe.core.commands import command_line
from recipe.core.run import Run
from recipe.core.translation import _, english
from recipe.export.lmdeploy import PORT
from recipe.export.merged import MergedModel, target_path, write_json

# XTuner's LLaVA models for VLMEvalKit: InternLM2's hidden size → folder on Hugging Face.
LLAVA = {4096: "xtuner/llava-internlm2-7b", 6144: "xtuner/llava-internlm2-20b"}


def vlmevalkit(run: Run, merged: MergedModel, output: Path) -> Dict[str, Any]:
    """Write two files.

    judge.env: the merged model, served by LMDeploy, judges answers in place of GPT. config.json: XTuner's published
    LLaVA with the merged model as its language model, for the hidden sizes that XTuner has.

    """
    endpoint = f"http://127.0.0.1:{PORT}/v1/chat/completions"
    (output / "judge.env").write_text(
        f"OPENAI_API_KEY=sk-123456\nOPENAI_API_BASE={endpoint}\nLOCAL_LLM={merged.name}\n", encoding="utf-8"
    )
    with english():
        notes = _notes(run, merged)
    commands = [f"cp {target_path(run, 'vlmevalkit', 'judge.env')} VLMEvalKit/.env"]
    vision = _vision(merged)
    if not vision:
        return {"commands": commands, "notes": notes}
    llava = {
        "class": "LLaVA_XTuner",
        "llm_path": str(merged.folder.resolve()),
        "llava_path": vision,
        "visual_select_layer": -2,
        "prompt_template": "internlm2_chat",
    }
    data = {"MMBench_DEV_CN": {"class": "ImageMCQDataset", "dataset": "MMBench_DEV_CN"}}
    write_json(output / "config.json", {"model": {f"llava-{merged.name}": llava}, "data": data})
    commands.append(f"python VLMEvalKit/run.py --config {target_path(run, 'vlmevalkit', 'config.json')}")
    return {"commands": commands, "notes": notes}


def _vision(merged: MergedModel) -> str:
    """XTuner's LLaVA for the merged model; "" if there is none."""
    return LLAVA.get(merged.config["hidden_size"], "") if merged.config.get("model_type") == "internlm2" else ""


def _notes(run: Run, merged: MergedModel) -> List[str]:
    notes = [
        _(
            "VLMEvalKit evaluates vision models and cannot evaluate this text model. For text, use {command}.",
            command=command_line("export opencompass", merged.recipe),
        ),
        _(
            "To judge other models' answers, serve the model ({command}) and copy {file} to VLMEvalKit/.env",
            command=command_line("export lmdeploy", merged.recipe),
            file=target_path(run, "vlmevalkit", "judge.env"),
        ),
    ]
    vision = _vision(merged)
    if not vision:
        notes.append(
            _(
                "XTuner has no LLaVA for a model of width {width}: no config.json was written.",
                width=merged.config["hidden_size"],
            )
        )
        return notes
    notes.append(
        _(
            "{model} (XTuner's LLaVA) was trained on the base model. Its score with the merged model, compared to "
            "VLMEvalKit's own {name}, shows how fine-tuning changed the use of images, not answers.",
            model=vision,
            name=vision.split("/")[1],
        )
    )
    return notes
