"""Whether a model folder is compatible with this stack. Reads its files and runs none of its code.

Published folders keep changing: newer code needs a newer transformers, older tokenizers have no chat markers. Either
fails late or trains on something else, so both are checked before the weights are downloaded and before each training.
"""

import ast
import importlib
import importlib.util
import json
import re
from importlib import metadata
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Sequence, Set, Tuple, Type

from recipe.base_model import architecture, loadable
from recipe.core.commands import command_line
from recipe.core.errors import InputWrong
from recipe.core.translation import _, listed, sentences

# The chat markers of InternLM2's published vocabulary of 92544; XTuner's template and stop words depend on them.
MARKERS = {"<|im_start|>": 92543, "<|im_end|>": 92542}
PUBLISHED = 92544


def read_json(path: Path) -> Any:
    """A JSON file of a model folder; {} if there is none. Raises InputWrong if it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (ValueError, OSError) as error:
        raise InputWrong(
            _(
                "{file} is damaged: {error}. Remove it and fetch it again: {command}.",
                file=path,
                error=error,
                command=command_line("model"),
            )
        )


def code_problems(place: Path) -> List[str]:
    """What the folder's own Python files need and this environment does not have, one line each."""
    from transformers.dynamic_module_utils import get_imports

    found = []
    for path in sorted(place.glob("*.py")):
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, ValueError) as error:
            found.append(_("{file} is not valid in this version of Python ({error})", file=path.name, error=error))
            continue
        for name in _set_after_super(tree):
            found.append(
                _(
                    "{file} needs transformers before 4.34: it sets {attribute} after super().__init__",
                    file=path.name,
                    attribute=name,
                )
            )
        for package in sorted(set(get_imports(path))):
            if importlib.util.find_spec(package) is None:
                found.append(_("{file} needs the package {package}", file=path.name, package=package))
        for node in _imports(tree.body):
            if node.level == 1 and node.module and not (place / (node.module.split(".")[0] + ".py")).is_file():
                found.append(_("{file} needs {other} beside it", file=path.name, other=f"{node.module}.py"))
            if node.level == 0 and node.module and node.module.split(".")[0] == "transformers":
                missing = _missing_names(node.module, node.names)
                found += [_("{file} needs {missing}", file=path.name, missing=one) for one in missing]
    return found


def _set_after_super(tree: ast.Module) -> Iterator[str]:
    """Attributes that a slow tokenizer sets after super().__init__ although its vocabulary needs them: since 4.34
    transformers' __init__ reads the vocabulary (Baichuan's tokenizer, and ChatGLM's from before December 2023).
    """
    for node in (node for node in tree.body if isinstance(node, ast.ClassDef)):
        methods = {method.name: method for method in node.body if isinstance(method, ast.FunctionDef)}
        if not {"__init__", "vocab_size", "get_vocab"} <= set(methods):
            continue
        super_lines = [
            call.lineno
            for call in ast.walk(methods["__init__"])
            if isinstance(call, ast.Call)
            and ast.dump(call.func).startswith("Attribute(value=Call(func=Name(id='super'")
        ]
        used = {
            name for method in ("vocab_size", "get_vocab") for name, _line in _self_names(methods[method], ast.Load)
        }
        first: Dict[str, int] = {}
        for name, line in _self_names(methods["__init__"], ast.Store):
            first[name] = min(line, first.get(name, line))
        yield from (f"self.{name}" for name in sorted(used) if super_lines and first.get(name, 0) > super_lines[0])


def _self_names(node: ast.AST, context: Type[ast.expr_context]) -> Iterator[Tuple[str, int]]:
    """(attribute of self, line) that is read (ast.Load) or set (ast.Store) below a node."""
    for one in ast.walk(node):
        if isinstance(one, ast.Attribute) and isinstance(one.ctx, context) and getattr(one.value, "id", "") == "self":
            yield one.attr, one.lineno


def _imports(body: Sequence[ast.stmt]) -> Iterator[ast.ImportFrom]:
    """The `from … import …` that run when the module is loaded, except those with a fallback."""
    for node in body:
        if isinstance(node, ast.ImportFrom):
            yield node
        elif not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and not getattr(node, "handlers", None):
            for block in ("body", "orelse", "finalbody"):
                yield from _imports(getattr(node, block, []))


def _missing_names(module: str, names: Sequence[ast.alias]) -> List[str]:
    """[module] if transformers has no such module, else a line with those of `names` that it does not have."""
    try:
        imported = importlib.import_module(module)
    except ImportError:
        return [module]
    missing = [
        name.name
        for name in names
        if name.name != "*" and not hasattr(imported, name.name) and not _has_submodule(imported, name.name)
    ]
    # With % because `stored` would find "{names} of {module}" in any text
    return [_("%(names)s of %(module)s") % {"names": listed(missing), "module": module}] if missing else []


def _has_submodule(package: Any, name: str) -> bool:
    return hasattr(package, "__path__") and importlib.util.find_spec(f"{package.__name__}.{name}") is not None


def marker_ids(place: Path) -> Dict[str, int]:
    """The ids of the chat markers, from the tokenizer files that exist; later ones take precedence, as when loading."""
    found: Dict[str, int] = {}
    pieces = place / "tokenizer.model"
    if pieces.is_file():
        import sentencepiece

        model = sentencepiece.SentencePieceProcessor()
        try:
            model.Load(str(pieces))
        except (RuntimeError, OSError) as error:
            raise InputWrong(
                _(
                    "{file} is damaged: {error}. Remove it and type: {command}.",
                    file=pieces,
                    error=str(error).splitlines()[0],
                    command=command_line("model"),
                )
            )
        found.update({name: model.PieceToId(name) for name in MARKERS if model.PieceToId(name) != model.unk_id()})
    found.update(
        {token["content"]: token["id"] for token in read_json(place / "tokenizer.json").get("added_tokens", [])}
    )
    found.update(read_json(place / "added_tokens.json"))
    added = read_json(place / "tokenizer_config.json").get("added_tokens_decoder", {})
    found.update({token["content"]: int(number) for number, token in added.items()})
    return {name: found[name] for name in MARKERS if name in found}


def tokenizer_problems(place: Path) -> List[str]:
    """What is wrong with the chat markers of an InternLM2 folder, one line each."""
    config = read_json(place / "config.json")
    if not architecture.is_internlm2(config):
        return []
    ids, size = marker_ids(place), config.get("vocab_size")
    settings, wrong = read_json(place / "tokenizer_config.json"), []
    for name, ours in (("add_bos_token", True), ("add_eos_token", False)):
        if settings.get(name, ours) is not ours:
            wrong.append(
                _(
                    "tokenizer_config.json has {name} = {found}, and our tokenizer has {ours}",
                    name=name,
                    found=settings[name],
                    ours=ours,
                )
            )
    for name, number in MARKERS.items():
        if name not in ids:
            wrong.append(_("its tokenizer has no {marker}", marker=name))
        elif size == PUBLISHED and ids[name] != number:
            wrong.append(
                _(
                    "{marker} is token {found} there and must be {expected}",
                    marker=name,
                    found=ids[name],
                    expected=number,
                )
            )
        elif size and ids[name] >= size:
            wrong.append(
                _("{marker} is token {found}, beyond its vocabulary of {size}", marker=name, found=ids[name], size=size)
            )
    return wrong


def weight_problems(place: Path) -> List[str]:
    """Where config.json and the weights disagree, one line each. Reads only the headers of the weights."""
    from safetensors import SafetensorError, safe_open

    config = read_json(place / "config.json")
    damaged: List[str] = []
    found: Dict[str, Optional[Sequence[int]]] = {}
    for path in loadable.weight_files(place):
        try:
            with safe_open(str(path), framework="np") as stored:
                found.update({name: stored.get_slice(name).get_shape() for name in stored.keys()})  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            damaged.append(
                _("{file} is damaged or cut short ({error})", file=path.name, error=str(error).splitlines()[0])
            )
    if damaged:
        return damaged
    index, size = place / "pytorch_model.bin.index.json", None
    if not found and index.is_file():
        found, size = read_index(index)
    numbers = (re.search(r"\blayers\.(\d+)\.", name) for name in found)
    layers: Set[int] = {int(number[1]) for number in numbers if number}
    expected = config.get("num_hidden_layers")
    if layers and expected and max(layers) + 1 != expected:
        return [
            _(
                "the weights have {found} layers, config.json says {expected}",
                found=max(layers) + 1,
                expected=expected,
            )
        ]
    if architecture.is_internlm2(config):
        return architecture.mismatches(config, found, size) if found else []
    sizes = [config.get("vocab_size"), config.get("hidden_size")]
    embeddings = {name: shape for name, shape in found.items() if shape and name.endswith("embed_tokens.weight")}
    return [
        _("{name} is {found}, config.json says {expected}", name=name, found=shape, expected=sizes)
        for name, shape in embeddings.items()
        if None not in sizes and shape != sizes
    ]


def read_index(path: Path) -> Tuple[Dict[str, Optional[Sequence[int]]], Optional[int]]:
    """(name → None, bytes of all weights or None) from a weights' index."""
    index = read_json(path)
    found: Dict[str, Optional[Sequence[int]]] = dict.fromkeys(index.get("weight_map", {}))
    size = index.get("metadata", {}).get("total_size")
    return found, int(size) if isinstance(size, (int, float)) else None


def check(place: Path, shown: str, remedy: str, weights: bool = True) -> None:
    """Raise InputWrong, with `remedy` at its end, unless code, tokenizer and (with `weights`) weights are compatible.

    Our own code loads InternLM2: it must support the folder's config, and the folder's code is not checked.
    """
    config = read_json(place / "config.json")
    if not config or not isinstance(config, dict):
        missing_config = _("{file} is missing, or is not a JSON object.", file=f"{shown}/config.json")
        raise InputWrong(sentences(missing_config, remedy))
    ours = architecture.is_internlm2(config)
    unsupported = architecture.unsupported_keys(config) if ours else []
    if unsupported:
        problem = _(
            "{file} asks for what our InternLM2 code does not support: {keys}.",
            file=f"{shown}/config.json",
            keys=parts(unsupported[:4]),
        )
        raise InputWrong(sentences(problem, remedy))
    missing = [] if ours else code_problems(place)
    if missing:
        saved = config.get("transformers_version")
        values = dict(model=shown, reasons=parts(missing[:4]), version=metadata.version("transformers"))
        problem = (
            _(
                "The code of {model} does not run here: {reasons}. This stack has transformers {version}, and the "
                "model was saved with {saved}.",
                saved=saved,
                **values,
            )
            if saved
            else _(
                "The code of {model} does not run here: {reasons}. This stack has transformers {version}.",
                **values,
            )
        )
        raise InputWrong(sentences(problem, remedy))
    wrong = [*tokenizer_problems(place), *(weight_problems(place) if weights else [])]
    if wrong:
        problem = _("{model} does not work with this stack: {reasons}.", model=shown, reasons=parts(wrong[:4]))
        raise InputWrong(sentences(problem, remedy))


def parts(texts: Sequence[str]) -> str:
    """Several faults in one sentence."""
    return _("; ").join(texts)
