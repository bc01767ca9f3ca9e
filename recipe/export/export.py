"""Hands the merged model over: what an engine needs beside it, and the command to type there.

A target is a function `work(run, merged, place) -> figures`. It writes into the fresh folder `place`, which becomes
output/<recipe>/export/<target>, and returns `commands` (to type, in order) and `notes` (what one must know).
Before any of them the merged folder is checked: an incomplete one is refused here, not by an engine an hour later.
The prompts are the ones the recipe trained with: everything is derived from XTuner's chat template.
"""

import dataclasses
import json
import os
import re
import shlex
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Callable, Dict, List, Set

import click

from recipe.base_model import architecture, folder, model_code
from recipe.core.errors import HostLacks, InputWrong, RunFailed
from recipe.core.settings import Export
from recipe.core.stage import Run, Stage, digest, perform
from recipe.export import gguf_writer
from recipe.inference import chat_model, terminal
from recipe.stages import pipeline

JUST = os.environ.get("RECIPE_COMMAND", "just")
# ChatML in Jinja, for model folders that bring no template of their own.
CHATML = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
PORT = 23333  # LMDeploy's default
# Published by XTuner for VLMEvalKit: what makes InternLM2 of this width see. Width → folder on Hugging Face.
LLAVA = {4096: "xtuner/llava-internlm2-7b", 6144: "xtuner/llava-internlm2-20b"}


@dataclasses.dataclass(frozen=True)
class Merged:
    """A merged folder that was checked. `template` is XTuner's, `chat_template` the same in Jinja, `own` if the
    folder brings it; `stops` the words that end an answer; `name` what engines shall call the model, `recipe` what
    the user calls it.
    """

    place: Path
    name: str
    recipe: str
    config: Dict[str, Any]
    template: Any
    chat_template: str
    own: bool
    stops: List[str]
    system: str
    after: str  # what stands between an answer and the next question

    def prompt(self) -> Dict[str, str]:
        """The pieces of the template: around the system prompt, around the question, and after the answer."""
        before_system, after_system = [*self.template.SYSTEM.format(system="\0").split("\0"), ""][:2]
        before, after = self.template.INSTRUCTION.format(input="\0", round=1).split("\0")
        end = self.after
        return dict(system=before_system, eosys=after_system, user=before, assistant=after, end=end)


# ---- what is checked before every target


def check(run: Run, recipe: str) -> Merged:
    """The run's merged folder, whole and with a chat template that is the trained one. `recipe` as the user typed it.

    Raises InputWrong or HostLacks for the first of: no folder, a shard missing or cut, a tensor missing, no tokenizer
    or another vocabulary's, the model's code missing, an answer's end that does not stop, another chat template.
    """
    place, shown = run.merged, run.shown(run.merged)
    again = f"Make it again: {JUST} merge {recipe}"
    if not place.is_dir() or not run.config.is_file():
        raise InputWrong(f"There is no merged model {shown}. Type first: {JUST} merge {recipe}")
    if pipeline.is_outdated(run):
        raise InputWrong(f"{shown} is of an earlier training than the one in {run.shown(run.folder)}. {again}")
    config = _json(place / "config.json", shown, again)
    _check_weights(place, shown, again)
    settings = _json(place / "tokenizer_config.json", shown, again)
    _check_tokenizer(place, shown, again, config["vocab_size"])
    code = {reference.split(".")[0] + ".py" for reference in _references([config, settings])}
    lacking = sorted(name for name in code if not (place / name).is_file())
    if lacking:
        raise HostLacks(f"{shown} lacks {', '.join(lacking)}, the model's own code. {again}")

    template = terminal.template(run)
    eos, bos = (_token(settings, name) for name in ("eos_token", "bos_token"))
    stops = list(template.get("STOP_WORDS", [])) or [eos]
    ids = {added["content"]: number for number, added in gguf_writer.added_tokens(place).items()}
    theirs = config.get("model_type") == "internlm2" and bool(template.get("STOP_WORDS"))
    ends = _json(place / "generation_config.json", shown, again).get("eos_token_id")
    ends = ends if isinstance(ends, list) else [ends]
    for word in stops if theirs else ():
        if ids.get(word) not in ends:
            raise HostLacks(
                f"{shown}/generation_config.json stops at {ends} only, not at {word} ({ids.get(word, 'no token')}): "
                f"answers would not end. {again}"
            )
    jinja = settings.get("chat_template") or (CHATML if theirs else in_jinja(template, eos, bos))
    if not theirs and not _agrees(jinja, template, settings):  # the family's own, but XTuner trains with another
        settings = {**settings, "chat_template": None}
        jinja = in_jinja(template, eos, bos)
    if not _agrees(jinja, template, settings):
        raise InputWrong(
            f"The chat template of {shown} is not the one that {run.name} was trained with (XTuner's, in "
            f"{run.shown(run.config)}): engines would ask otherwise than was trained. Correct its chat_template in "
            f"tokenizer_config.json."
        )
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", run.name).strip("-.") or "model"
    own = bool(settings.get("chat_template"))
    after = chat_model.separator(template, _Trained(template, _Tokens(eos, bos)))
    return Merged(place, name, recipe, config, template, jinja, own, stops, run.settings.data.system, after)


def _token(settings: Dict[str, Any], name: str) -> str:
    """A special token of tokenizer_config.json, which may stand there by itself or as a table."""
    found = settings.get(name) or ""
    return found if isinstance(found, str) else str(found.get("content", ""))


def in_jinja(template: Any, eos: str, bos: str) -> str:
    """XTuner's template as engines read one: a system message, questions, answers. Raises InputWrong."""

    def said(start: str, behind: str) -> str:
        return f"{{{{ {json.dumps(start)} + message['content'] + {json.dumps(behind)} }}}}"

    if "{round}" in template.INSTRUCTION:
        raise InputWrong("This chat template numbers its turns, which engines' templates here do not: export cannot.")
    system = ""
    if template.SYSTEM:  # texts that are learnt as they are have none
        system = said(*template.SYSTEM.format(system="\0").split("\0"))
    asked, answer = template.INSTRUCTION.format(input="\0", round=1).split("\0")
    end = chat_model.separator(template, _Trained(template, _Tokens(eos, bos)))
    return (
        "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'system' %}"
        f"{system}{{% elif message['role'] == 'user' %}}{said(asked, answer)}"
        f"{{% else %}}{said('', end)}{{% endif %}}{{% endfor %}}"
    )


def _json(path: Path, shown: str, again: str) -> Dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise HostLacks(f"{shown} lacks {path.name}. {again}")
    except ValueError:
        raise HostLacks(f"{shown}/{path.name} is damaged: it is no JSON. {again}")


def _check_weights(place: Path, shown: str, again: str) -> None:
    """Every shard of the index is there and whole (its header and its size agree), with the tensors it shall hold."""
    import zipfile

    from safetensors import SafetensorError, safe_open

    indexes = sorted(place.glob("*.index.json"))
    wanted: Dict[str, Set[str]] = {path.name: set() for path in folder.weights(place)}
    if indexes:
        wanted = {}
        for tensor, shard in _json(indexes[0], shown, again)["weight_map"].items():
            wanted.setdefault(shard, set()).add(tensor)
    if not wanted:
        raise HostLacks(f"{shown} holds no weights (*.safetensors, pytorch_model*.bin). {again}")
    for shard, tensors in sorted(wanted.items()):
        path = place / shard
        if not path.is_file():
            raise HostLacks(f"{shown} lacks the shard {shard} of {len(wanted)}. {again}")
        found = tensors
        try:
            if path.suffix == ".safetensors":
                with safe_open(str(path), framework="pt") as opened:  # refuses a file that is shorter than it says
                    found = set(opened.keys())
            elif not zipfile.is_zipfile(str(path)):  # the directory stands at the end
                raise ValueError
        except (SafetensorError, ValueError):
            raise HostLacks(f"The shard {shown}/{shard} ({path.stat().st_size:,} bytes) is cut or damaged. {again}")
        if tensors - found:
            raise HostLacks(
                f"The shard {shown}/{shard} lacks {sorted(tensors - found)[0]}, which is in the index. {again}"
            )


def _check_tokenizer(place: Path, shown: str, again: str, vocabulary: int) -> None:
    from sentencepiece import SentencePieceProcessor

    path = place / "tokenizer.model"
    if not path.is_file() and (place / "tokenizer.json").is_file():
        return  # a family without sentencepiece
    if not path.is_file():
        raise HostLacks(f"{shown} lacks tokenizer.model. {again}")
    spm = SentencePieceProcessor()
    try:
        spm.Load(str(path))
    except RuntimeError:
        raise HostLacks(f"{shown}/tokenizer.model is damaged. {again}")
    if spm.GetPieceSize() > vocabulary:
        raise HostLacks(
            f"{shown}/tokenizer.model has {spm.GetPieceSize():,} pieces, the model {vocabulary:,}: it is another "
            f"model's tokenizer. {again}"
        )


def _references(settings: List[Dict[str, Any]]) -> List[str]:
    """The classes of the model's own code that its settings name (auto_map), of this folder only."""
    found: List[str] = []
    for one in settings:
        for value in one.get("auto_map", {}).values():
            found += [each for each in (value if isinstance(value, list) else [value]) if each and "--" not in each]
    return found


def _agrees(jinja: str, template: Any, settings: Dict[str, Any]) -> bool:
    """Whether the Jinja template asks as XTuner's does, in a conversation of two turns with a system prompt."""
    from jinja2 import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    turns = [("system", "甲"), ("user", "乙 1"), ("assistant", "丙"), ("user", "丁")]
    messages = [{"role": role, "content": content} for role, content in turns]
    bos = _token(settings, "bos_token")
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)  # as transformers has it
    try:
        asked = environment.from_string(jinja).render(messages=messages, bos_token=bos, add_generation_prompt=True)
    except TemplateError:
        return False
    talker_of = _Trained(template, _Tokens(_token(settings, "eos_token"), bos))
    trained = terminal.Talker.prompt(talker_of, "甲", [("乙 1", "丙")], "丁")  # type: ignore[arg-type]
    return asked == bos + trained or asked == trained


@dataclasses.dataclass
class _Tokens:
    eos_token: str
    bos_token: str


@dataclasses.dataclass
class _Trained:
    """What `Talker.prompt` needs of a talker."""

    template: Any
    tokenizer: _Tokens


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
    _write_json(place / "chat_template.json", described)
    folder, template = _quoted(run, merged.place), _shown(run, "lmdeploy", "chat_template.json")
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


def vllm(run: Run, merged: Merged, place: Path) -> Dict[str, Any]:
    """The command, and the chat template where the folder brings none."""
    longest = merged.config["max_position_embeddings"]
    words = ["vllm", "serve", run.shown(merged.place), "--served-model-name", merged.name, "--trust-remote-code"]
    words += ["--max-model-len", str(longest)]
    notes = ["In an environment of its own: pip install vllm==0.21.0"]
    if architecture.rope_type(architecture.rope(merged.config)[1]) == "dynamic":
        words += ["--hf-overrides", '{"rope_scaling": null}']
        notes.append(
            f"vLLM stretches dynamically scaled positions at every length, the model itself only beyond {longest:,} "
            f"tokens: --hf-overrides switches that off, --max-model-len keeps within."
        )
    if not merged.own:
        (place / "chat_template.jinja").write_text(merged.chat_template, encoding="utf-8")
        words += ["--chat-template", run.shown(run.folder / "export" / "vllm" / "chat_template.jinja")]
    if merged.system:
        notes.append(
            "vLLM adds no system prompt: every request brings the recipe's as its first message, as request.json."
        )
    messages = [{"role": "user", "content": terminal.questions(run)[0]}]
    if merged.system:
        messages.insert(0, {"role": "system", "content": merged.system})
    _write_json(place / "request.json", {"model": merged.name, "messages": messages, "temperature": 0})
    ask = (
        "curl http://127.0.0.1:8000/v1/chat/completions -H 'Content-Type: application/json' -d @"
        f"{_shown(run, 'vllm', 'request.json')}"
    )
    return {"commands": [" ".join(map(shlex.quote, words)), ask], "notes": notes}


def gguf(run: Run, merged: Merged, place: Path) -> Dict[str, Any]:
    """The model as one GGUF file. Raises HostLacks if the disk cannot hold it."""
    kind = run.settings.export.type
    needed = _gguf_bytes(merged, kind)
    free = shutil.disk_usage(str(place)).free
    if free < needed * 1.05:
        raise HostLacks(
            f"The GGUF file needs {needed / 1e9:.1f} GB in {run.shown(run.folder)}; {free / 1e9:.1f} are free."
        )
    if find_spec("gguf") is None:
        raise HostLacks(f"The gguf package is not installed: start this through {JUST}, which brings it.")
    if not merged.stops:
        raise InputWrong(f"{run.name}'s chat template names no word that ends an answer (STOP_WORDS).")
    path = place / _gguf_name(run, merged)
    written = gguf_writer.write(merged.place, path, kind, merged.name, merged.stops[0], merged.chat_template)
    shown = _shown(run, "gguf", path.name)
    notes = [f"For llama.cpp and what is built on it; for Ollama: {JUST} export ollama {merged.recipe}"]
    if kind != "q8_0":
        small = _shown(run, "gguf", f"{merged.name}-q4_k_m.gguf")
        notes.append(f"Smaller (llama.cpp's own tool, 4.5 GB for 7B): llama-quantize {shown} {small} q4_k_m")
    return {**written, "commands": [f"llama-server -m {shown} --jinja -c 4096 --port 8080"], "notes": notes}


def ollama(run: Run, merged: Merged, place: Path) -> Dict[str, Any]:
    """Modelfile beside the GGUF file of target gguf: template, stop words and system prompt of the training."""
    pieces = merged.prompt()
    if '"""' in merged.system:
        raise InputWrong('data.system holds """, which a Modelfile cannot: Ollama ends the system prompt there.')
    lines = [
        f"FROM ../gguf/{_gguf_name(run, merged)}",
        'TEMPLATE """{{ if .System }}' + pieces["system"] + "{{ .System }}" + pieces["eosys"] + "{{ end }}"
        "{{ if .Prompt }}" + pieces["user"] + "{{ .Prompt }}" + pieces["assistant"] + "{{ end }}"
        "{{ .Response }}" + pieces["end"] + '"""',
        *(f'PARAMETER stop "{word}"' for word in merged.stops),
    ]
    if merged.system:
        lines.append(f'SYSTEM """{merged.system}"""')
    (place / "Modelfile").write_text("\n".join(lines) + "\n", encoding="utf-8")
    # Ollama makes small weights from whole ones only.
    small = run.settings.export.quantize if run.settings.export.type != "q8_0" else ""
    words = ["ollama", "create", merged.name, *(["-q", small] if small else [])]
    words += ["-f", run.shown(run.folder / "export" / "ollama" / "Modelfile")]
    return {
        "commands": [" ".join(map(shlex.quote, words)), f"ollama run {merged.name}"],
        "notes": ["Ollama keeps a copy of its own: the GGUF file may go afterwards."],
    }


def opencompass(run: Run, merged: Merged, place: Path) -> Dict[str, Any]:
    """eval.py: merged model and base side by side on two small sets; OpenCompass 0.5.4's classes and data sets.

    Without max_seq_len: with it OpenCompass counts tokens in a way that transformers 4.36 does not know. An InternLM2
    base is named by a folder of links with our code, which runs there; the hub's own may ask for newer libraries.
    """
    base = folder.folder(run).resolve()
    if model_code.is_ours(base):
        model_code.link(base, place / "base")
        base = (run.folder / "export" / "opencompass" / "base").resolve()

    def entry(name: str, path: Path) -> str:
        return (
            "    dict(\n        type=HuggingFacewithChatTemplate,\n"
            f"        abbr={name!r},\n        path={str(path)!r},\n"
            "        max_out_len=1024,\n        batch_size=8,\n"
            f"        stop_words={merged.stops!r},\n        run_cfg=dict(num_gpus=1),\n    ),\n"
        )

    text = (
        f'"""OpenCompass 0.5.4: {merged.name} and its base model. Other data sets: opencompass/configs/datasets."""\n\n'
        "from mmengine.config import read_base\n"
        "from opencompass.models import HuggingFacewithChatTemplate\n\n"
        "with read_base():\n"
        "    # 4 questions of each of CMMLU's subjects, 64 of GSM8K\n"
        "    from opencompass.configs.datasets.demo.demo_cmmlu_chat_gen import cmmlu_datasets\n"
        "    from opencompass.configs.datasets.demo.demo_gsm8k_chat_gen import gsm8k_datasets\n\n"
        "datasets = cmmlu_datasets + gsm8k_datasets\n"
        "# Asked with the tokenizer's chat template, without the recipe's system prompt, as published scores are.\n"
        "models = [\n" + entry(merged.name, merged.place.resolve()) + entry(f"{merged.name}-base", base) + "]\n"
    )
    (place / "eval.py").write_text(text, encoding="utf-8")
    config = _shown(run, "opencompass", "eval.py")
    notes = ['In an environment of its own: pip install "opencompass==0.5.4" "transformers==4.36.2"']
    notes.append("transformers 4.36.2 because the model's own code is of that time.")
    if not merged.own:
        notes.append("OpenCompass needs a chat_template in tokenizer_config.json; this model has none.")
    return {
        "commands": [f"opencompass {config} -w output/opencompass"], "notes": notes,
        "digests": {"export/opencompass": digest(place / "eval.py")},  # not of the base's weights, to which links lead
    }  # fmt: skip


def vlmevalkit(run: Run, merged: Merged, place: Path) -> Dict[str, Any]:
    """What VLMEvalKit, which asks about pictures, can do with a model of text: let it judge, or give it eyes.

    judge.env: the model, served by LMDeploy, takes GPT's place in reading answers. config.json: XTuner's published
    LLaVA with the merged model as its language part, for the widths that there are.
    """
    endpoint = f"http://127.0.0.1:{PORT}/v1/chat/completions"
    (place / "judge.env").write_text(
        f"OPENAI_API_KEY=sk-123456\nOPENAI_API_BASE={endpoint}\nLOCAL_LLM={merged.name}\n", encoding="utf-8"
    )
    notes = [
        "VLMEvalKit scores models that see. This one reads only, so VLMEvalKit cannot score it by itself; "
        f"{JUST} export opencompass {merged.recipe} can.",
        f"As judge of other models' answers: serve it ({JUST} export lmdeploy {merged.recipe}) and copy "
        f"{_shown(run, 'vlmevalkit', 'judge.env')} to VLMEvalKit/.env",
    ]
    commands = [f"cp {_shown(run, 'vlmevalkit', 'judge.env')} VLMEvalKit/.env"]
    eyes = LLAVA.get(merged.config["hidden_size"])
    if eyes is None or merged.config.get("model_type") != "internlm2":
        notes.append(
            f"No eyes are published for a model of width {merged.config['hidden_size']}: no config.json was written."
        )
        return {"commands": commands, "notes": notes}
    llava = {
        "class": "LLaVA_XTuner",
        "llm_path": str(merged.place.resolve()),
        "llava_path": eyes,
        "visual_select_layer": -2,
        "prompt_template": "internlm2_chat",
    }
    data = {"MMBench_DEV_CN": {"class": "ImageMCQDataset", "dataset": "MMBench_DEV_CN"}}
    _write_json(place / "config.json", {"model": {f"llava-{merged.name}": llava}, "data": data})
    notes.append(
        f"With eyes: {eyes} (XTuner's LLaVA) was trained on the base model. Its score with the merged one behind it, "
        f"beside VLMEvalKit's own {eyes.split('/')[1]}, tells what fine-tuning did to its sight, not to its answers."
    )
    commands.append(f"python VLMEvalKit/run.py --config {_shown(run, 'vlmevalkit', 'config.json')}")
    return {"commands": commands, "notes": notes}


def upload(run: Run, merged: Merged, place: Path) -> Dict[str, Any]:
    """files.json: what would go, with sizes; and ModelScope's configuration.json where the folder has none."""
    export = run.settings.export
    if export.hub == "modelscope" and not (merged.place / "configuration.json").exists():
        _write_json(place / "configuration.json", {"framework": "pytorch", "task": "text-generation"})
    files = {path.name: path.stat().st_size for path in _going(merged.place, place)}
    _write_json(place / "files.json", files)
    notes = []
    if not (merged.place / "README.md").is_file():
        notes.append(f"There is no model card: put a README.md into {run.shown(merged.place)}.")
    notes.append(f"{len(files)} files, {sum(files.values()):,} bytes; nothing was sent.")
    repo = export.repo or "OWNER/NAME"
    token = "MODELSCOPE_API_TOKEN" if export.hub == "modelscope" else "HF_TOKEN"
    notes.append(
        f"Goes to {export.hub}, {repo}, {'public' if export.public else 'private if it is new (export.public=true)'}; "
        f"the token is taken from {token}."
    )
    words = [f"export.repo={repo}", *(["export.hub=huggingface"] if export.hub == "huggingface" else [])]
    words += ["export.public=true"] if export.public else []
    return {
        "files": files,
        "commands": [f"{JUST} export upload {merged.recipe} {' '.join(map(shlex.quote, words))} --yes"],
        "notes": notes,
    }


TARGETS: Dict[str, Callable[[Run, Merged, Path], Dict[str, Any]]] = {
    "lmdeploy": lmdeploy,
    "vllm": vllm,
    "gguf": gguf,
    "ollama": ollama,
    "opencompass": opencompass,
    "vlmevalkit": vlmevalkit,
    "upload": upload,
}
NEEDS = {"ollama": "gguf"}  # target: the one that must have been made before


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def _quoted(run: Run, path: Path) -> str:
    return shlex.quote(run.shown(path))


def _shown(run: Run, target: str, name: str) -> str:
    """Where the user will find a target's file, ready for a shell."""
    return _quoted(run, run.folder / "export" / target / name)


def _gguf_name(run: Run, merged: Merged) -> str:
    return f"{merged.name}-{run.settings.export.type}.gguf"


def _gguf_bytes(merged: Merged, kind: str) -> int:
    """Size of the GGUF file, from the weights' (of 2 bytes each, but for models kept in fp32)."""
    total = sum(path.stat().st_size for path in folder.weights(merged.place))
    return round(total * {"f32": 2.0, "f16": 1.0, "bf16": 1.0, "q8_0": 34 / 64}[kind])


# ---- the one step that leaves the machine


def _going(merged: Path, more: Path) -> List[Path]:
    """Files of the merged folder, and ModelScope's configuration where we had to write it."""
    found = [path for path in sorted(merged.iterdir()) if path.is_file() and not path.name.startswith(".")]
    extra = more / "configuration.json"
    return [*found, extra] if extra.is_file() else found


def send(run: Run, merged: Merged) -> str:
    """Upload what `upload` listed; return where it is then. Raises InputWrong, HostLacks, RunFailed."""
    export = run.settings.export
    if not export.repo:
        raise InputWrong("Where to? Name it: export.repo=owner/name")
    staged = run.folder / ".upload.part"
    shutil.rmtree(str(staged), ignore_errors=True)
    staged.mkdir()
    try:
        for path in _going(merged.place, run.folder / "export" / "upload"):
            os.link(str(path), str(staged / path.name))  # no copy: the same 15 GB under another name
        if export.hub == "modelscope":
            return _send_modelscope(export, staged, run.settings.model.id)
        return _send_hugging_face(export, staged)
    finally:
        shutil.rmtree(str(staged), ignore_errors=True)


def _not_sent(export: Export, error: Exception) -> str:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return f"{export.repo} could not be sent to {export.hub}: {reason[:300]}. The same command tries again."


def _send_hugging_face(export: Export, staged: Path) -> str:
    from huggingface_hub import HfApi

    token = os.environ.get("HF_TOKEN")
    if not token:
        raise HostLacks("There is no token for Hugging Face: set HF_TOKEN (huggingface.co/settings/tokens, write).")
    api = HfApi(token=token)
    try:
        place = api.create_repo(export.repo, private=not export.public, exist_ok=True)
        api.upload_folder(repo_id=export.repo, folder_path=str(staged), commit_message="Merged model")
        return str(place)
    except (ValueError, OSError) as error:  # names the hub refuses; what the network and the hub say
        raise RunFailed(_not_sent(export, error))


def has_git_lfs() -> bool:
    """Whether git and its extension for large files answer."""
    quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return bool(shutil.which("git")) and subprocess.run(["git", "lfs", "version"], **quiet).returncode == 0


def _send_modelscope(export: Export, staged: Path, base: str) -> str:
    from modelscope.hub.api import HubApi, ModelScopeConfig
    from modelscope.hub.constants import Licenses, ModelVisibility

    if not has_git_lfs():
        raise HostLacks(
            "ModelScope takes models through git and git-lfs: install them (Debian, Ubuntu: "
            "apt-get install git-lfs), and where the runtime is a container, RUNTIME=host."
        )
    token = os.environ.get("MODELSCOPE_API_TOKEN")
    if not token and ModelScopeConfig.get_cookies() is None:
        raise HostLacks("There is no token for ModelScope: set MODELSCOPE_API_TOKEN (modelscope.cn/my/myaccesstoken).")
    api = HubApi()
    try:
        if token:
            api.login(token)
        api.push_model(
            model_id=export.repo,
            model_dir=str(staged),
            visibility=ModelVisibility.PUBLIC if export.public else ModelVisibility.PRIVATE,
            license=Licenses.APACHE_V2,
            commit_message="Merged model",
            original_model_id=base,
            lfs_suffix=["*.safetensors", "*.bin", "*.model"],
        )
    except Exception as error:  # git's and the hub's refusals are of many kinds
        raise RunFailed(_not_sent(export, error))
    return export.repo


# ---- around them


def stage(target: str, merged: Merged) -> Stage:
    """The target as a stage: skipped when nothing it depends on has changed, written beside, with figures."""

    def work(run: Run, out: Path) -> Dict[str, Any]:
        place = out / "export" / target
        place.mkdir(parents=True)
        (run.folder / "export").mkdir(exist_ok=True)
        return TARGETS[target](run, merged, place)

    return Stage(f"export-{target}", work, lambda run: _reads(run, merged), (f"export/{target}",))


def _reads(run: Run, merged: Merged) -> Dict[str, Any]:
    return {
        "merged": folder.fingerprint(run.merged),
        "named": [str(run.merged.resolve()), run.shown(run.merged), merged.recipe, JUST],
        "config": run.config,
        "settings": run.settings.export.model_dump(),
        "system": run.settings.data.system,
        "code": Path(__file__),
        "gguf": Path(gguf_writer.__file__),
    }


def hand_over(run: Run, target: str, recipe: str, yes: bool) -> None:
    """Check the merged model, make `target`, say what was made and what to type; with `yes`, upload."""
    merged = check(run, recipe)
    for name in [*([NEEDS[target]] if target in NEEDS else []), target]:
        entry, ran = perform(run, stage(name, merged))
        took = click.style(f"{entry['seconds']:.1f} s" if ran else "unchanged", dim=True)
        click.echo(f"{click.style(f'{name:11}', bold=True)} {run.shown(run.folder / 'export' / name)}  {took}")
    figures = entry["figures"]
    for name, size in figures.get("files", {}).items():
        click.echo(f"  {size:>15,}  {name}")
    if target == "upload" and yes:
        click.echo(f"Sent: {send(run, merged)}")
        return
    for note in figures["notes"]:
        click.echo(note)
    click.echo("\nNext:")
    for command in figures["commands"]:
        click.echo(f"  {command}")
