"""Checks the merged model before an export: weights, tokenizer, chat template."""

import dataclasses
import json
import shlex
from pathlib import Path
from typing import Any, Dict, List, Set

from recipe.base_model import folder
from recipe.core.commands import command_line
from recipe.core.errors import HostLacks, InputWrong
from recipe.core.names import plain_name
from recipe.core.run import Run
from recipe.core.translation import _, listed
from recipe.export import gguf_writer
from recipe.inference import terminal
from recipe.inference.prompt import separator
from recipe.stages import merge

# ChatML in Jinja, for model folders without a chat template.
CHATML = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@dataclasses.dataclass(frozen=True)
class MergedModel:
    """A checked merged model."""

    folder: Path
    name: str  # for the engines
    recipe: str  # as the user typed it
    config: Dict[str, Any]
    template: Any  # XTuner's
    chat_template: str  # the same in Jinja
    has_chat_template: bool  # the folder has one
    stop_words: List[str]
    system: str
    answer_suffix: str  # text between an answer and the next question

    def template_parts(self) -> Dict[str, str]:
        """The template's parts around the system prompt and the question, and after the answer."""
        before_system, after_system = [*self.template.SYSTEM.format(system="\0").split("\0"), ""][:2]
        before, after = self.template.INSTRUCTION.format(input="\0", round=1).split("\0")
        end = self.answer_suffix
        return dict(system=before_system, eosys=after_system, user=before, assistant=after, end=end)


def check_merged(run: Run, recipe: str) -> MergedModel:
    """Check that the run's merged folder is complete and has the trained chat template. `recipe`: as the user typed it.

    Raises InputWrong or HostLacks for: no folder, a missing or truncated shard, a missing tensor, a missing or wrong
    tokenizer, missing model code, a stop word that generation ignores, another chat template.
    """
    model_folder, shown = run.merged, run.relative(run.merged)
    remedy = _("Recreate it: {command}", command=command_line("merge", recipe))
    if not model_folder.is_dir() or not run.config.is_file():
        raise InputWrong(
            _(
                "There is no merged model {model}. First run: {command}",
                model=shown,
                command=command_line("merge", recipe),
            )
        )
    if merge.is_outdated(run):
        raise InputWrong(
            _(
                "{model} belongs to an earlier training than the one in {folder}. {remedy}",
                model=shown,
                folder=run.relative(run.folder),
                remedy=remedy,
            )
        )
    config = read_json(model_folder / "config.json", shown, remedy)
    _check_weights(model_folder, shown, remedy)
    settings = read_json(model_folder / "tokenizer_config.json", shown, remedy)
    _check_tokenizer(model_folder, shown, remedy, config["vocab_size"])
    code = {reference.split(".")[0] + ".py" for reference in _auto_map_classes([config, settings])}
    missing = sorted(name for name in code if not (model_folder / name).is_file())
    if missing:
        raise HostLacks(
            _(
                "{model} is incomplete: the model code {files} is missing. {remedy}",
                model=shown,
                files=listed(missing),
                remedy=remedy,
            )
        )

    template = terminal.template(run)
    eos, bos = (_token(settings, name) for name in ("eos_token", "bos_token"))
    stop_words = list(template.get("STOP_WORDS", [])) or [eos]
    ids = {added["content"]: number for number, added in gguf_writer.added_tokens(model_folder).items()}
    is_internlm2 = config.get("model_type") == "internlm2" and bool(template.get("STOP_WORDS"))
    end_tokens = read_json(model_folder / "generation_config.json", shown, remedy).get("eos_token_id")
    end_tokens = end_tokens if isinstance(end_tokens, list) else [end_tokens]
    for word in stop_words if is_internlm2 else ():
        if ids.get(word) not in end_tokens:
            raise HostLacks(
                _(
                    "{model}/generation_config.json stops at {tokens} only, not at {word} ({token}): "
                    "answers would not end. {remedy}",
                    model=shown,
                    tokens=end_tokens,
                    word=word,
                    token=ids.get(word, _("no token")),
                    remedy=remedy,
                )
            )
    jinja = settings.get("chat_template") or (CHATML if is_internlm2 else to_jinja(template, eos, bos))
    if not is_internlm2 and not _prompts_match(jinja, template, settings):  # XTuner trains with another template
        settings = {**settings, "chat_template": None}
        jinja = to_jinja(template, eos, bos)
    if not _prompts_match(jinja, template, settings):
        raise InputWrong(
            _(
                "The chat template of {model} is not the one that {name} was trained with (XTuner's, in "
                "{config}): engines would prompt the model differently. Correct chat_template in "
                "tokenizer_config.json.",
                model=shown,
                name=run.name,
                config=run.relative(run.config),
            )
        )
    has_chat_template = bool(settings.get("chat_template"))
    after = separator(template, _PromptBuilder(template, _Tokens(eos, bos)))
    return MergedModel(
        model_folder,
        plain_name(run.name),
        recipe,
        config,
        template,
        jinja,
        has_chat_template,
        stop_words,
        run.settings.data.system,
        after,
    )


def _token(settings: Dict[str, Any], name: str) -> str:
    """A special token of tokenizer_config.json, where it is a string or a table."""
    found = settings.get(name) or ""
    return found if isinstance(found, str) else str(found.get("content", ""))


def to_jinja(template: Any, eos: str, bos: str) -> str:
    """XTuner's template in Jinja. Raises InputWrong if it numbers the turns."""

    def message(start: str, after: str) -> str:
        return f"{{{{ {json.dumps(start)} + message['content'] + {json.dumps(after)} }}}}"

    if "{round}" in template.INSTRUCTION:
        raise InputWrong(_("This chat template numbers its turns, which export does not support."))
    system = ""
    if template.SYSTEM:  # plain-text training has none
        system = message(*template.SYSTEM.format(system="\0").split("\0"))
    rendered, answer = template.INSTRUCTION.format(input="\0", round=1).split("\0")
    end = separator(template, _PromptBuilder(template, _Tokens(eos, bos)))
    return (
        "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'system' %}"
        f"{system}{{% elif message['role'] == 'user' %}}{message(rendered, answer)}"
        f"{{% else %}}{message('', end)}{{% endif %}}{{% endfor %}}"
    )


def read_json(path: Path, shown: str, remedy: str) -> Dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise HostLacks(
            _("{model} is incomplete: {file} is missing. {remedy}", model=shown, file=path.name, remedy=remedy)
        )
    except ValueError:
        raise HostLacks(_("{file} is damaged: it is not JSON. {remedy}", file=f"{shown}/{path.name}", remedy=remedy))


def _check_weights(model_folder: Path, shown: str, remedy: str) -> None:
    """Check that every shard exists, is complete and has its tensors."""
    import zipfile

    from safetensors import SafetensorError, safe_open

    indexes = sorted(model_folder.glob("*.index.json"))
    expected: Dict[str, Set[str]] = {path.name: set() for path in folder.weights(model_folder)}
    if indexes:
        expected = {}
        for tensor, shard in read_json(indexes[0], shown, remedy)["weight_map"].items():
            expected.setdefault(shard, set()).add(tensor)
    if not expected:
        raise HostLacks(
            _("{model} has no weights (*.safetensors, pytorch_model*.bin). {remedy}", model=shown, remedy=remedy)
        )
    for shard, tensors in sorted(expected.items()):
        path = model_folder / shard
        if not path.is_file():
            raise HostLacks(
                _(
                    "{model} is incomplete: shard {shard} of {shards} is missing. {remedy}",
                    model=shown,
                    shard=shard,
                    shards=len(expected),
                    remedy=remedy,
                )
            )
        found = tensors
        try:
            if path.suffix == ".safetensors":
                with safe_open(str(path), framework="pt") as opened:  # refuses truncated files
                    found = set(opened.keys())
            elif not zipfile.is_zipfile(str(path)):  # the zip directory is at the end
                raise ValueError
        except (SafetensorError, ValueError):
            raise HostLacks(
                _(
                    "The shard {file} ({size:,} bytes) is truncated or damaged. {remedy}",
                    file=f"{shown}/{shard}",
                    size=path.stat().st_size,
                    remedy=remedy,
                )
            )
        if tensors - found:
            raise HostLacks(
                _(
                    "The shard {file} does not contain {weight}, which is in the index. {remedy}",
                    file=f"{shown}/{shard}",
                    weight=sorted(tensors - found)[0],
                    remedy=remedy,
                )
            )


def _check_tokenizer(model_folder: Path, shown: str, remedy: str, vocabulary: int) -> None:
    from sentencepiece import SentencePieceProcessor

    path = model_folder / "tokenizer.model"
    if not path.is_file() and (model_folder / "tokenizer.json").is_file():
        return  # a tokenizer without sentencepiece
    if not path.is_file():
        raise HostLacks(
            _("{model} is incomplete: {file} is missing. {remedy}", model=shown, file=path.name, remedy=remedy)
        )
    spm = SentencePieceProcessor()
    try:
        spm.Load(str(path))
    except RuntimeError:
        raise HostLacks(_("{file} is damaged. {remedy}", file=f"{shown}/{path.name}", remedy=remedy))
    if spm.GetPieceSize() > vocabulary:
        raise HostLacks(
            _(
                "{file} has {pieces:,} pieces, the model {vocabulary:,}: it is another model's tokenizer. {remedy}",
                file=f"{shown}/{path.name}",
                pieces=spm.GetPieceSize(),
                vocabulary=vocabulary,
                remedy=remedy,
            )
        )


def _auto_map_classes(settings: List[Dict[str, Any]]) -> List[str]:
    """References in auto_map to code in this folder."""
    found: List[str] = []
    for one in settings:
        for value in one.get("auto_map", {}).values():
            found += [each for each in (value if isinstance(value, list) else [value]) if each and "--" not in each]
    return found


def _prompts_match(jinja: str, template: Any, settings: Dict[str, Any]) -> bool:
    """Whether the Jinja template gives the same prompt as XTuner's for two turns with a system prompt."""
    from jinja2 import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    turns = [("system", "甲"), ("user", "乙 1"), ("assistant", "丙"), ("user", "丁")]
    messages = [{"role": role, "content": content} for role, content in turns]
    bos = _token(settings, "bos_token")
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)  # like transformers
    try:
        rendered = environment.from_string(jinja).render(messages=messages, bos_token=bos, add_generation_prompt=True)
    except TemplateError:
        return False
    trained = _PromptBuilder(template, _Tokens(_token(settings, "eos_token"), bos))
    prompt = terminal.ChatModel.prompt(trained, "甲", [("乙 1", "丙")], "丁")  # type: ignore[arg-type]
    return rendered == bos + prompt or rendered == prompt


@dataclasses.dataclass
class _Tokens:
    eos_token: str
    bos_token: str


@dataclasses.dataclass
class _PromptBuilder:
    """The attributes that `ChatModel.prompt` uses."""

    template: Any
    tokenizer: _Tokens


def write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def shell_path(run: Run, path: Path) -> str:
    return shlex.quote(run.relative(path))


def target_path(run: Run, target: str, name: str) -> str:
    """The path of a target's file, quoted for a shell."""
    return shell_path(run, run.folder / "export" / target / name)
