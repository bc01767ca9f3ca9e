"""Target lmdeploy: a chat template for LMDeploy."""

from pathlib import Path
from typing import Any, Dict

from recipe.core.run import Run
from recipe.core.translation import _, english
from recipe.export.merged import MergedModel, shell_path, target_path, write_json

PORT = 23333  # LMDeploy's default


def lmdeploy(run: Run, merged: MergedModel, output: Path) -> Dict[str, Any]:
    """Write chat_template.json: LMDeploy chooses templates by folder name, and finds none for `merged`."""
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
    with english():
        notes = [
            _(
                "In a separate environment: {command} (older versions do not have {option})",
                command="pip install lmdeploy==0.18.0",
                option="--trust-remote-code",
            ),
            _(
                "To chat in the terminal: {command}",
                command=f"lmdeploy chat {folder} --trust-remote-code --chat-template {template}",
            ),
            _("Requests without a system message get the recipe's system prompt."),
        ]
    return {
        "commands": [
            f"lmdeploy serve api_server {folder} --trust-remote-code --model-name {merged.name} "
            f"--chat-template {template} --server-port {PORT}"
        ],
        "notes": notes,
    }
