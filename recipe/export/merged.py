"""The merged model that is handed over, checked: weights, tokenizer, chat template."""

import dataclasses
import json
import re
import shlex
from pathlib import Path
from typing import Any, Dict, List, Set

from recipe.base_model import folder
from recipe.core.commands import command_line
from recipe.core.errors import HostLacks, InputWrong
from recipe.core.run import Run
from recipe.export import gguf_writer
from recipe.inference import terminal
from recipe.inference.prompt import separator
from recipe.stages import merge

# ChatML in Jinja, for model folders that bring no template of their own.
CHATML = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@dataclasses.dataclass(frozen=True)
class MergedModel:
    """A merged folder that was checked. `template` is XTuner's, `chat_template` the same in Jinja, `has_chat_template` if the
    folder brings it; `stop_words` the words that end an answer; `name` what engines shall call the model, `recipe` what
    the user calls it.
    """

    folder: Path
    name: str
    recipe: str
    config: Dict[str, Any]
    template: Any
    chat_template: str
    has_chat_template: bool
    stop_words: List[str]
    system: str
    answer_suffix: str  # what stands between an answer and the next question

    def template_parts(self) -> Dict[str, str]:
        """The pieces of the template: around the system prompt, around the question, and after the answer."""
        before_system, after_system = [*self.template.SYSTEM.format(system="\0").split("\0"), ""][:2]
        before, after = self.template.INSTRUCTION.format(input="\0", round=1).split("\0")
        end = self.answer_suffix
        return dict(system=before_system, eosys=after_system, user=before, assistant=after, end=end)


def check_merged(run: Run, recipe: str) -> MergedModel:
    """The run's merged folder, whole and with a chat template that is the trained one. `recipe` as the user typed it.

    Raises InputWrong or HostLacks for the first of: no folder, a shard missing or cut, a tensor missing, no tokenizer
    or another vocabulary's, the model's code missing, an answer's end that does not stop, another chat template.
    """
    model_folder, shown = run.merged, run.relative(run.merged)
    remedy = f"Make it again: {command_line('merge', recipe)}"
    if not model_folder.is_dir() or not run.config.is_file():
        raise InputWrong(f"There is no merged model {shown}. Type first: {command_line('merge', recipe)}")
    if merge.is_outdated(run):
        raise InputWrong(f"{shown} is of an earlier training than the one in {run.relative(run.folder)}. {remedy}")
    config = read_json(model_folder / "config.json", shown, remedy)
    _check_weights(model_folder, shown, remedy)
    settings = read_json(model_folder / "tokenizer_config.json", shown, remedy)
    _check_tokenizer(model_folder, shown, remedy, config["vocab_size"])
    code = {reference.split(".")[0] + ".py" for reference in _auto_map_classes([config, settings])}
    missing = sorted(name for name in code if not (model_folder / name).is_file())
    if missing:
        raise HostLacks(f"{shown} lacks {', '.join(missing)}, the model's own code. {remedy}")

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
                f"{shown}/generation_config.json stops at {end_tokens} only, not at {word} ({ids.get(word, 'no token')}): "
                f"answers would not end. {remedy}"
            )
    jinja = settings.get("chat_template") or (CHATML if is_internlm2 else to_jinja(template, eos, bos))
    if not is_internlm2 and not _prompts_match(
        jinja, template, settings
    ):  # the family's own, but XTuner trains with another
        settings = {**settings, "chat_template": None}
        jinja = to_jinja(template, eos, bos)
    if not _prompts_match(jinja, template, settings):
        raise InputWrong(
            f"The chat template of {shown} is not the one that {run.name} was trained with (XTuner's, in "
            f"{run.relative(run.config)}): engines would ask otherwise than was trained. Correct its chat_template in "
            f"tokenizer_config.json."
        )
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", run.name).strip("-.") or "model"
    has_chat_template = bool(settings.get("chat_template"))
    after = separator(template, _PromptBuilder(template, _Tokens(eos, bos)))
    return MergedModel(
        model_folder,
        name,
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
    """A special token of tokenizer_config.json, which may stand there by itself or as a table."""
    found = settings.get(name) or ""
    return found if isinstance(found, str) else str(found.get("content", ""))


def to_jinja(template: Any, eos: str, bos: str) -> str:
    """XTuner's template as engines read one: a system message, questions, answers. Raises InputWrong."""

    def message(start: str, after: str) -> str:
        return f"{{{{ {json.dumps(start)} + message['content'] + {json.dumps(after)} }}}}"

    if "{round}" in template.INSTRUCTION:
        raise InputWrong("This chat template numbers its turns, which engines' templates here do not: export cannot.")
    system = ""
    if template.SYSTEM:  # texts that are learnt as they are have none
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
        raise HostLacks(f"{shown} lacks {path.name}. {remedy}")
    except ValueError:
        raise HostLacks(f"{shown}/{path.name} is damaged: it is no JSON. {remedy}")


def _check_weights(model_folder: Path, shown: str, remedy: str) -> None:
    """Every shard of the index is there and whole (its header and its size agree), with the tensors it shall hold."""
    import zipfile

    from safetensors import SafetensorError, safe_open

    indexes = sorted(model_folder.glob("*.index.json"))
    expected: Dict[str, Set[str]] = {path.name: set() for path in folder.weights(model_folder)}
    if indexes:
        expected = {}
        for tensor, shard in read_json(indexes[0], shown, remedy)["weight_map"].items():
            expected.setdefault(shard, set()).add(tensor)
    if not expected:
        raise HostLacks(f"{shown} holds no weights (*.safetensors, pytorch_model*.bin). {remedy}")
    for shard, tensors in sorted(expected.items()):
        path = model_folder / shard
        if not path.is_file():
            raise HostLacks(f"{shown} lacks the shard {shard} of {len(expected)}. {remedy}")
        found = tensors
        try:
            if path.suffix == ".safetensors":
                with safe_open(str(path), framework="pt") as opened:  # refuses a file that is shorter than it says
                    found = set(opened.keys())
            elif not zipfile.is_zipfile(str(path)):  # the directory stands at the end
                raise ValueError
        except (SafetensorError, ValueError):
            raise HostLacks(f"The shard {shown}/{shard} ({path.stat().st_size:,} bytes) is cut or damaged. {remedy}")
        if tensors - found:
            raise HostLacks(
                f"The shard {shown}/{shard} lacks {sorted(tensors - found)[0]}, which is in the index. {remedy}"
            )


def _check_tokenizer(model_folder: Path, shown: str, remedy: str, vocabulary: int) -> None:
    from sentencepiece import SentencePieceProcessor

    path = model_folder / "tokenizer.model"
    if not path.is_file() and (model_folder / "tokenizer.json").is_file():
        return  # a family without sentencepiece
    if not path.is_file():
        raise HostLacks(f"{shown} lacks tokenizer.model. {remedy}")
    spm = SentencePieceProcessor()
    try:
        spm.Load(str(path))
    except RuntimeError:
        raise HostLacks(f"{shown}/tokenizer.model is damaged. {remedy}")
    if spm.GetPieceSize() > vocabulary:
        raise HostLacks(
            f"{shown}/tokenizer.model has {spm.GetPieceSize():,} pieces, the model {vocabulary:,}: it is another "
            f"model's tokenizer. {remedy}"
        )


def _auto_map_classes(settings: List[Dict[str, Any]]) -> List[str]:
    """The classes of the model's own code that its settings name (auto_map), of this folder only."""
    found: List[str] = []
    for one in settings:
        for value in one.get("auto_map", {}).values():
            found += [each for each in (value if isinstance(value, list) else [value]) if each and "--" not in each]
    return found


def _prompts_match(jinja: str, template: Any, settings: Dict[str, Any]) -> bool:
    """Whether the Jinja template asks as XTuner's does, in a conversation of two turns with a system prompt."""
    from jinja2 import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    turns = [("system", "甲"), ("user", "乙 1"), ("assistant", "丙"), ("user", "丁")]
    messages = [{"role": role, "content": content} for role, content in turns]
    bos = _token(settings, "bos_token")
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)  # as transformers has it
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
    """What `ChatModel.prompt` needs of a talker."""

    template: Any
    tokenizer: _Tokens


def write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def shell_path(run: Run, path: Path) -> str:
    return shlex.quote(run.relative(path))


def target_path(run: Run, target: str, name: str) -> str:
    """Where the user will find a target's file, ready for a shell."""
    return shell_path(run, run.folder / "export" / target / name)
