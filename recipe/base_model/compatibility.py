"""Whether a model folder fits this stack: read from its files, none of its code is run.

The published folders go on being edited: their newer code needs a newer transformers, their older tokenizers
have no chat markers. Both fail late or train on something else, so both are looked at before the weights are
fetched and before every training.
"""

import ast
import functools
import importlib.util
import json
import re
from importlib import metadata
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Sequence, Set, Tuple

from recipe.base_model import architecture
from recipe.core.commands import command_line
from recipe.core.errors import InputWrong

# The chat markers of InternLM2's published vocabulary of 92544; XTuner's template and stop words rest on them.
MARKERS = {"<|im_start|>": 92543, "<|im_end|>": 92542}
PUBLISHED = 92544


def read(path: Path) -> Any:
    """A JSON file of a model folder. Raises InputWrong if it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise InputWrong(f"{path} is damaged: {error}. Remove it and fetch it again: {command_line('model')}.")


def code(place: Path) -> List[str]:
    """What the folder's own Python files import and this environment does not have, one line each."""
    missing = []
    for path in sorted(place.glob("*.py")):
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, ValueError) as error:
            missing.append(f"{path.name} is no Python of this version ({error})")
            continue
        for name in early_vocabulary(tree):
            missing.append(f"{path.name} needs a transformers before 4.34: it sets {name} behind super().__init__")
        # transformers itself asks for every package before it loads such a file, also for those of a function.
        for package in sorted({name.split(".")[0] for name in _packages(tree.body)}):
            if importlib.util.find_spec(package) is None:
                missing.append(f"{path.name} needs the package {package}")
        for node in _imports(tree.body):
            if node.level == 1 and node.module and not (place / (node.module.split(".")[0] + ".py")).is_file():
                missing.append(f"{path.name} needs {node.module}.py beside it")
            if node.level or not node.module or node.module.split(".")[0] != "transformers":
                continue
            has = _names(node.module)
            if has is None:
                missing.append(f"{path.name} needs {node.module}")
                continue
            lacking = [one.name for one in node.names if one.name != "*" and one.name not in has]
            if lacking:
                missing.append(f"{path.name} needs {', '.join(lacking)} of {node.module}")
    return missing


def early_vocabulary(tree: ast.Module) -> Iterator[str]:
    """What a slow tokenizer's class sets behind super().__init__ and its vocabulary needs: since 4.34 transformers'
    __init__ asks for the vocabulary itself (Baichuan's, and ChatGLM's of before December 2023).
    """
    for made in (node for node in tree.body if isinstance(node, ast.ClassDef)):
        methods = {node.name: node for node in made.body if isinstance(node, ast.FunctionDef)}
        begin = methods.get("__init__")
        if begin is None or not {"vocab_size", "get_vocab"} <= set(methods):
            continue
        calls = [
            node.lineno
            for node in ast.walk(begin)
            if isinstance(node, ast.Call)
            and ast.dump(node.func).startswith("Attribute(value=Call(func=Name(id='super'")
        ]
        used = {name for part in ("vocab_size", "get_vocab") for name, _ in _of_self(methods[part], ast.Load)}
        first: Dict[str, int] = {}
        for name, line in _of_self(begin, ast.Store):
            first[name] = min(line, first.get(name, line))
        yield from (f"self.{name}" for name in sorted(used) if calls and first.get(name, 0) > calls[0])


def _of_self(node: Any, how: Any) -> Iterator[Any]:
    """(attribute of self, line) that is read or set below a node."""
    for one in ast.walk(node):
        if isinstance(one, ast.Attribute) and isinstance(one.ctx, how) and getattr(one.value, "id", "") == "self":
            yield one.attr, one.lineno


def _blocks(node: Any, functions: bool) -> List[Any]:
    """The statements below one, except what is tried with something to fall back on."""
    if isinstance(node, ast.Try) and node.handlers:
        return []
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and not functions:
        return []
    return [*getattr(node, "body", []), *getattr(node, "orelse", []), *getattr(node, "finalbody", [])]


def _imports(body: List[Any]) -> Iterator[ast.ImportFrom]:
    """The `from … import …` that run when the module is loaded."""
    for node in body:
        if isinstance(node, ast.ImportFrom):
            yield node
        elif isinstance(node, ast.stmt):
            yield from _imports(_blocks(node, functions=False))


def _packages(body: List[Any]) -> Iterator[str]:
    for node in body:
        if isinstance(node, ast.Import):
            yield from (one.name for one in node.names)
        elif isinstance(node, ast.ImportFrom):
            if not node.level and node.module:
                yield node.module
        elif isinstance(node, ast.stmt):
            yield from _packages(_blocks(node, functions=True))


@functools.lru_cache(maxsize=None)
def _names(module: str) -> Optional[Set[str]]:
    """What can be imported from a module of transformers, read from its source; None if there is no such module.

    Importing it would tell the same in several seconds.
    """
    spec = importlib.util.find_spec("transformers")
    path = Path(spec.origin).parent.joinpath(*module.split(".")[1:])
    found = {one.stem for one in path.glob("*")}
    if path.is_dir():
        path /= "__init__"
    if not path.with_suffix(".py").is_file():
        return None
    # A package that loads lazily has its names in imports for type checkers.
    for node in ast.walk(ast.parse(path.with_suffix(".py").read_text(encoding="utf-8"))):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            found |= {one.asname or one.name for one in node.names}
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
    return found


def marker_ids(place: Path) -> Dict[str, int]:
    """The ids of the chat markers, from whichever tokenizer files are there; the later ones win, as when loading."""
    found: Dict[str, int] = {}
    pieces = place / "tokenizer.model"
    if pieces.is_file():
        import sentencepiece

        model = sentencepiece.SentencePieceProcessor()
        try:
            model.Load(str(pieces))
        except (RuntimeError, OSError) as error:
            raise InputWrong(
                f"{pieces} is damaged: {str(error).splitlines()[0]}. Remove it and type: {command_line('model')}."
            )
        found.update({name: model.PieceToId(name) for name in MARKERS if model.PieceToId(name) != model.unk_id()})
    if (place / "tokenizer.json").is_file():
        found.update({one["content"]: one["id"] for one in read(place / "tokenizer.json").get("added_tokens", [])})
    if (place / "added_tokens.json").is_file():
        found.update(read(place / "added_tokens.json"))
    if (place / "tokenizer_config.json").is_file():
        added = read(place / "tokenizer_config.json").get("added_tokens_decoder", {})
        found.update({token["content"]: int(number) for number, token in added.items()})
    return {name: found[name] for name in MARKERS if name in found}


def tokens(place: Path) -> List[str]:
    """What is wrong with the chat markers of an InternLM2 folder, one line each."""
    config = read(place / "config.json")
    if not architecture.is_internlm2(config):
        return []
    ids, size = marker_ids(place), config.get("vocab_size")
    wrong = []
    settings = read(place / "tokenizer_config.json") if (place / "tokenizer_config.json").is_file() else {}
    for name, ours in (("add_bos_token", True), ("add_eos_token", False)):
        if settings.get(name, ours) is not ours:
            wrong.append(f"tokenizer_config.json says {name} = {settings[name]}, and our tokenizer has {ours}")
    for name, number in MARKERS.items():
        if name not in ids:
            wrong.append(f"its tokenizer has no {name}")
        elif size == PUBLISHED and ids[name] != number:
            wrong.append(f"{name} is token {ids[name]} there and must be {number}")
        elif size and ids[name] >= size:
            wrong.append(f"{name} is token {ids[name]}, beyond its vocabulary of {size}")
    return wrong


def shapes(place: Path) -> List[str]:
    """Where config.json and the weights' own headers disagree, one line each. Only headers are read."""
    from safetensors import SafetensorError, safe_open

    config = read(place / "config.json")
    wrong: List[str] = []
    found: Dict[str, Optional[Sequence[int]]] = {}
    for path in sorted(place.glob("*.safetensors")):
        try:
            with safe_open(str(path), framework="np") as stored:
                names = stored.keys()
                found.update({name: stored.get_slice(name).get_shape() for name in names})
        except (SafetensorError, OSError) as error:
            wrong.append(f"{path.name} is damaged or cut short ({str(error).splitlines()[0]})")
    if wrong:
        return wrong
    index = place / "pytorch_model.bin.index.json"
    size = None
    if not found and index.is_file():
        found, size = indexed(read(index))
    layers = {int(one[1]) for one in (re.search(r"\blayers\.(\d+)\.", name) for name in found) if one}
    asked = config.get("num_hidden_layers")
    if layers and asked and max(layers) + 1 != asked:
        return [f"the weights have {max(layers) + 1} layers, config.json says {asked}"]
    if architecture.is_internlm2(config):
        return architecture.mismatches(config, found, size) if found else []
    sizes = [config.get("vocab_size"), config.get("hidden_size")]
    embeddings = {name: shape for name, shape in found.items() if shape and name.endswith("embed_tokens.weight")}
    return [
        f"{name} is {shape}, config.json says {sizes}"
        for name, shape in embeddings.items()
        if None not in sizes and shape != sizes
    ]


def indexed(index: Any) -> Tuple[Dict[str, Optional[Sequence[int]]], Optional[int]]:
    """(name → None, bytes of all weights) as an index tells them; no bytes where it does not."""
    found: Dict[str, Optional[Sequence[int]]] = dict.fromkeys(index.get("weight_map", {}))
    size = index.get("metadata", {}).get("total_size")
    return found, int(size) if isinstance(size, (int, float)) else None


def check(place: Path, shown: str, remedy: str, weights: bool = True) -> None:
    """Raise InputWrong, with `remedy` behind it, unless code, tokenizer and (with `weights`) shapes fit.

    InternLM2 is loaded with our own code, so its config must be one that this knows; the folder's own is not looked at.
    """
    config = read(place / "config.json")
    if not isinstance(config, dict):
        raise InputWrong(f"{shown}/config.json is damaged: it holds no table.")
    ours = architecture.is_internlm2(config)
    unsupported = architecture.unsupported_keys(config) if ours else []
    if unsupported:
        raise InputWrong(
            f"{shown}/config.json asks for what our InternLM2 code does not compute: {'; '.join(unsupported[:4])}. "
            f"{remedy}".strip()
        )
    lacking = [] if ours else code(place)
    if lacking:
        saved = config.get("transformers_version")
        newer = f", and the model was saved with {saved}" if saved else ""
        raise InputWrong(
            f"The code of {shown} does not run here: {'; '.join(lacking[:4])}. This stack has transformers "
            f"{metadata.version('transformers')}{newer}. {remedy}".strip()
        )
    wrong = [*tokens(place), *(shapes(place) if weights else [])]
    if wrong:
        raise InputWrong(f"{shown} does not fit: {'; '.join(wrong[:4])}. {remedy}".strip())
