"""The published run on a tiny model, digit for digit."""

import json

from recipe.stages import reproduce
from support.command import ROOT, recipe


def test_the_published_run_digit_for_digit(real_workbook, real_tokenizer, tmp_path):
    """The whole tutorial on a tiny model with the real tokenizer: `just reproduce` on a machine without a GPU."""
    done = recipe(
        "reproduce", f'data.files=["{real_workbook}"]', f"model.tokenizer={real_tokenizer}", "--output", tmp_path,
        "train.evaluation_max_new_tokens=2",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    manifest = json.loads((tmp_path / "reproduce/run.json").read_text(encoding="utf-8"))
    figures = {name: entry["figures"] for name, entry in manifest["stages"].items()}
    assert figures["train"]["iterations"] == 51
    assert figures["train"]["updates"] == 4
    assert figures["plan"]["updates_with_deepspeed"] == 3
    assert figures["merge"]["tensors_changed"] == figures["merge"]["weights_changed"] == 0
    assert figures["adapter"]["underflow_share"] == 1.0
    assert "It trained nothing." in done.stdout
    assert "DIFFERS" not in done.stdout
    steps = reproduce.parse_iterations((ROOT / figures["train"]["log"]).read_text(encoding="utf-8"))
    for entry in reproduce.published()["log"]:
        assert f"{steps[entry['iteration']]['lr']:.4e}" == f"{entry['lr']:.4e}"
