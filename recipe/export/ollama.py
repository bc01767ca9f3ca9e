"""Target ollama: a Modelfile for the GGUF file."""

import shlex
from pathlib import Path
from typing import Any, Dict

from recipe.base_model import licence
from recipe.core.errors import InputWrong
from recipe.core.run import Run
from recipe.core.translation import _, mark, stored
from recipe.export.gguf import gguf_name
from recipe.export.merged import MergedModel


def ollama(run: Run, merged: MergedModel, output: Path) -> Dict[str, Any]:
    """Write a Modelfile for target gguf's file, with the template, stop words and system prompt of the training."""
    parts = merged.template_parts()
    if '"""' in merged.system:
        raise InputWrong(_('data.system contains """, which ends the system prompt in a Modelfile. Remove it.'))
    lines = [
        f"FROM ../gguf/{gguf_name(run, merged)}",
        'TEMPLATE """{{ if .System }}' + parts["system"] + "{{ .System }}" + parts["eosys"] + "{{ end }}"
        "{{ if .Prompt }}" + parts["user"] + "{{ .Prompt }}" + parts["assistant"] + "{{ end }}"
        "{{ .Response }}" + parts["end"] + '"""',
        *(f'PARAMETER stop "{word}"' for word in merged.stop_words),
    ]
    terms = stored(licence.of(run).sentence()).replace('"', "'")
    lines.append(f'LICENSE """{terms}"""')
    if merged.system:
        lines.append(f'SYSTEM """{merged.system}"""')
    (output / "Modelfile").write_text("\n".join(lines) + "\n", encoding="utf-8")
    # Ollama quantizes only unquantized weights.
    small = run.settings.export.quantize if run.settings.export.type != "q8_0" else ""
    words = ["ollama", "create", merged.name, *(["-q", small] if small else [])]
    words += ["-f", run.relative(run.folder / "export" / "ollama" / "Modelfile")]
    return {
        "commands": [" ".join(map(shlex.quote, words)), f"ollama run {merged.name}"],
        "notes": [mark("Ollama keeps its own copy; you can delete the GGUF file afterwards.")],
    }
