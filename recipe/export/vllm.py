"""Target vllm: a command and a request for vLLM."""

import shlex
from pathlib import Path
from typing import Any, Dict

from recipe.base_model import architecture
from recipe.core.run import Run
from recipe.core.translation import _, english, mark
from recipe.export.merged import MergedModel, target_path, write_json
from recipe.inference import terminal


def vllm(run: Run, merged: MergedModel, output: Path) -> Dict[str, Any]:
    """Write request.json, and a chat template if the model folder has none."""
    longest = merged.config["max_position_embeddings"]
    words = ["vllm", "serve", run.relative(merged.folder), "--served-model-name", merged.name, "--trust-remote-code"]
    words += ["--max-model-len", str(longest)]
    with english():
        notes = [_("In a separate environment: {command}", command="pip install vllm==0.21.0")]
    if architecture.rope_type(architecture.rope(merged.config)[1]) == "dynamic":
        words += ["--hf-overrides", '{"rope_scaling": null}']
        with english():
            notes.append(
                _(
                    "vLLM applies dynamic RoPE scaling at every length, the model only beyond {longest:,} tokens. "
                    "--hf-overrides disables it, and --max-model-len limits the length.",
                    longest=longest,
                )
            )
    if not merged.has_chat_template:
        (output / "chat_template.jinja").write_text(merged.chat_template, encoding="utf-8")
        words += ["--chat-template", run.relative(run.folder / "export" / "vllm" / "chat_template.jinja")]
    if merged.system:
        notes.append(mark("vLLM adds no system prompt: put the recipe's first into every request, as in request.json."))
    messages = [{"role": "user", "content": terminal.questions(run)[0]}]
    if merged.system:
        messages.insert(0, {"role": "system", "content": merged.system})
    write_json(output / "request.json", {"model": merged.name, "messages": messages, "temperature": 0})
    ask = (
        "curl http://127.0.0.1:8000/v1/chat/completions -H 'Content-Type: application/json' -d @"
        f"{target_path(run, 'vllm', 'request.json')}"
    )
    return {"commands": [" ".join(map(shlex.quote, words)), ask], "notes": notes}
