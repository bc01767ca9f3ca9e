"""Target opencompass: an evaluation config for OpenCompass."""

from pathlib import Path
from typing import Any, Dict

from recipe.base_model import folder, model_code
from recipe.core.hashing import sums
from recipe.core.run import Run
from recipe.core.translation import _, english, mark
from recipe.export.merged import MergedModel, target_path


def opencompass(run: Run, merged: MergedModel, output: Path) -> Dict[str, Any]:
    """Write eval.py: merged model and base on two small datasets, with classes and datasets of OpenCompass 0.5.4.

    Sets no max_seq_len, because OpenCompass then counts tokens in a way that transformers 4.36 does not support. For an
    InternLM2 base, links a folder with our model code, because the hub's code may need newer libraries.
    """
    base = folder.folder(run).resolve()
    if model_code.is_internlm2(base):
        model_code.link(base, output / "base")
        base = (run.folder / "export" / "opencompass" / "base").resolve()

    def entry(name: str, path: Path) -> str:
        return (
            "    dict(\n        type=HuggingFacewithChatTemplate,\n"
            f"        abbr={name!r},\n        path={str(path)!r},\n"
            "        max_out_len=1024,\n        batch_size=8,\n"
            f"        stop_words={merged.stop_words!r},\n        run_cfg=dict(num_gpus=1),\n    ),\n"
        )

    head = _(
        "OpenCompass 0.5.4: {name} and its base model. Other datasets: opencompass/configs/datasets.", name=merged.name
    )
    questions = _("4 questions of each of CMMLU's subjects, 64 of GSM8K")
    prompts = _("Uses the tokenizer's chat template without the recipe's system prompt, like published scores.")
    text = (
        f'"""{head}"""\n\n'
        "from mmengine.config import read_base\n"
        "from opencompass.models import HuggingFacewithChatTemplate\n\n"
        "with read_base():\n"
        f"    # {questions}\n"
        "    from opencompass.configs.datasets.demo.demo_cmmlu_chat_gen import cmmlu_datasets\n"
        "    from opencompass.configs.datasets.demo.demo_gsm8k_chat_gen import gsm8k_datasets\n\n"
        "datasets = cmmlu_datasets + gsm8k_datasets\n"
        f"# {prompts}\n"
        "models = [\n" + entry(merged.name, merged.folder.resolve()) + entry(f"{merged.name}-base", base) + "]\n"
    )
    (output / "eval.py").write_text(text, encoding="utf-8")
    config = target_path(run, "opencompass", "eval.py")
    with english():
        notes = [
            _(
                "In a separate environment: {command}",
                command='pip install "opencompass==0.5.4" "transformers==4.36.2"',
            )
        ]
    notes.append(mark("transformers 4.36.2, because the model's own code needs this version."))
    if not merged.has_chat_template:
        notes.append(mark("OpenCompass needs a chat_template in tokenizer_config.json; this model has none."))
    return {
        "commands": [f"opencompass {config} -w output/opencompass"], "notes": notes,
        "digests": {"export/opencompass": sums(output, links=False)},  # without the base's weights
    }  # fmt: skip
