"""For LMDeploy."""

from pathlib import Path
from typing import Any, Dict

from recipe.core.run import Run
from recipe.export.merged import Merged, quoted_path, shown_path, write_json

PORT = 23333  # LMDeploy's default


# ---- the targets


def lmdeploy(run: Run, merged: Merged, place: Path) -> Dict[str, Any]:
    """chat_template.json: LMDeploy goes by the folder's name, and `merged` would get no chat template or another's."""
    pieces = merged.prompt()
    end, after = pieces.pop("end"), pieces["assistant"]
    eoh = end if after.startswith(end) else ""
    described = dict(
        model_name=f"{merged.name}-chat",
        meta_instruction=merged.system,
        capability="chat",
        stop_words=merged.stops,
        **{**pieces, "eoh": eoh, "assistant": after[len(eoh) :], "eoa": end},
    )
    write_json(place / "chat_template.json", described)
    folder, template = quoted_path(run, merged.place), shown_path(run, "lmdeploy", "chat_template.json")
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
