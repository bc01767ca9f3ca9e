"""For LMDeploy."""

from pathlib import Path
from typing import Any, Dict

from recipe.core.run import Run
from recipe.export.merged import MergedModel, shell_path, target_path, write_json

PORT = 23333  # LMDeploy's default


def lmdeploy(run: Run, merged: MergedModel, output: Path) -> Dict[str, Any]:
    """chat_template.json: LMDeploy goes by the folder's name, and `merged` would get no chat template or another's."""
    parts = merged.template_parts()
    end, after_question = parts.pop("end"), parts["assistant"]
    eoh = end if after_question.startswith(end) else ""
    template_json = dict(
        model_name=f"{merged.name}-chat",
        meta_instruction=merged.system,
        capability="chat",
        stop_words=merged.stop_words,
        **{**parts, "eoh": eoh, "assistant": after_question[len(eoh) :], "eoa": end},
    )
    write_json(output / "chat_template.json", template_json)
    folder, template = shell_path(run, merged.folder), target_path(run, "lmdeploy", "chat_template.json")
    return {
        "commands": [
            f"lmdeploy serve api_server {folder} --trust-remote-code --model-name {merged.name} "
            f"--chat-template {template} --server-port {PORT}"
        ],
        "notes": [
            "In an environment of its own: pip install lmdeploy==0.18.0 (old ones know no --trust-remote-code)",
            f"To talk at the terminal: lmdeploy chat {folder} --trust-remote-code --chat-template {template}",
            "Where a request has no system message, the recipe's system prompt is put in front.",
        ],
    }
