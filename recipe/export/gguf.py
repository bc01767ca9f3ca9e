"""Target gguf: a GGUF file for llama.cpp."""

import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Dict

from recipe.base_model import folder
from recipe.core.commands import command_line, program
from recipe.core.errors import HostLacks, InputWrong
from recipe.core.run import Run
from recipe.core.translation import _, english
from recipe.export import gguf_writer
from recipe.export.merged import MergedModel, target_path


def gguf(run: Run, merged: MergedModel, output: Path) -> Dict[str, Any]:
    """The model as one GGUF file. Raises HostLacks if the disk is too small."""
    kind = run.settings.export.type
    needed = _gguf_size(merged, kind)
    free = shutil.disk_usage(str(output)).free
    if free < needed * 1.05:
        raise HostLacks(
            _(
                "The GGUF file needs {needed:.1f} GB in {folder}, but only {free:.1f} GB are free.",
                needed=needed / 1e9,
                folder=run.relative(run.folder),
                free=free / 1e9,
            )
        )
    if find_spec("gguf") is None:
        raise HostLacks(
            _(
                "The gguf package is not installed: run this command through {program}, which installs it.",
                program=program(),
            )
        )
    if not merged.stop_words:
        raise InputWrong(_("{name}'s chat template has no STOP_WORDS, so answers would not end.", name=run.name))
    path = output / gguf_name(run, merged)
    written = gguf_writer.write(merged.folder, path, kind, merged.name, merged.stop_words[0], merged.chat_template)
    shown = target_path(run, "gguf", path.name)
    with english():
        notes = [
            _(
                "For llama.cpp and programs based on it. For Ollama: {command}",
                command=command_line("export ollama", merged.recipe),
            )
        ]
        if kind != "q8_0":
            small = target_path(run, "gguf", f"{merged.name}-q4_k_m.gguf")
            notes.append(
                _(
                    "For a smaller file (4.5 GB for 7B), use llama.cpp's tool: {command}",
                    command=f"llama-quantize {shown} {small} q4_k_m",
                )
            )
    return {**written, "commands": [f"llama-server -m {shown} --jinja -c 4096 --port 8080"], "notes": notes}


def gguf_name(run: Run, merged: MergedModel) -> str:
    return f"{merged.name}-{run.settings.export.type}.gguf"


def _gguf_size(merged: MergedModel, kind: str) -> int:
    """Size of the GGUF file in bytes, from the size of the weights (2 bytes each)."""
    size = sum(path.stat().st_size for path in folder.weights(merged.folder))
    return round(size * {"f32": 2.0, "f16": 1.0, "bf16": 1.0, "q8_0": 34 / 64}[kind])
