"""Reads and edits XTuner's shipped config files as text, so that comments and order survive.

An edit names a place by a dotted path: the first part is a name assigned at the top level, every further
part a keyword of the `dict(...)` call or an index of the list found there: `model.lora.r`,
`custom_hooks.1.system`; `custom_hooks.+` is a new last element. The new value is Python source. What is not named is
left as it is, byte for byte.
"""

import ast
import difflib
import functools
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

from recipe.core.commands import command_line
from recipe.core.errors import HostLacks, InputWrong


def folder() -> Path:
    """Where the installed XTuner keeps its configs; found without importing XTuner (5 s)."""
    spec = find_spec("xtuner")
    if spec is None or not spec.submodule_search_locations:
        raise HostLacks("XTuner is not installed in this environment. Start through just or ./justw.")
    return Path(next(iter(spec.submodule_search_locations))) / "configs"


@functools.lru_cache(maxsize=1)
def files() -> Dict[str, Path]:
    """name → file of every preset, in the order of `xtuner list-cfg`'s folders."""
    found = sorted(path for path in folder().rglob("*.py") if not path.name.startswith((".", "_")))
    return {path.stem: path for path in found}


def source(name: str) -> str:
    """Text of the preset `name`, any name of `xtuner list-cfg`. Raises InputWrong for an unknown one."""
    if name not in files():
        close = difflib.get_close_matches(name, list(files()), n=3)
        hint = f" Close to it: {', '.join(close)}." if close else ""
        raise InputWrong(f"base: XTuner 0.1.14 has no preset {name!r}.{hint} `{command_line('presets')}` lists all.")
    return files()[name].read_text(encoding="utf-8")


def deepspeed_config(name: str) -> Path:
    """The DeepSpeed file `name`: a path, or one of XTuner's names such as deepspeed_zero2."""
    if Path(name).is_file():
        return Path(name)
    paths = {path.stem: path for path in (folder() / "deepspeed").glob("*.json")}
    if name not in paths:
        raise InputWrong(f"train.deepspeed: no file and no XTuner name: {name!r}. Names: {', '.join(sorted(paths))}.")
    return paths[name]


def deepspeed_text(name: str, kind: str) -> str:
    """The DeepSpeed file `name` with fp16, bf16 or fp32 (`kind`) in place of its "auto"; as it is where `kind` is "".

    XTuner's `overlap_comm` is off in ZeRO-1 and 2: DeepSpeed 0.14.0 and 0.18.9 may overwrite gradients that are still
    being summed (its pull requests 5606 and 7965). Raises InputWrong for a file that names another type.
    """
    path = deepspeed_config(name)
    text = path.read_text(encoding="utf-8")
    if not kind:
        return text
    try:
        found = json.loads(text)
        for one in ("fp16", "bf16"):
            section = found.setdefault(one, {})
            if section.get("enabled", "auto") not in ("auto", one == kind):
                other = f"{one} {'on' if section['enabled'] else 'off'}"
                raise InputWrong(f"train.deepspeed: {path} has {other}, the recipe trains in {kind}: make them equal.")
            section["enabled"] = one == kind
        zero = found.get("zero_optimization", {})
        if path.parent == folder() / "deepspeed" and zero["stage"] < 3:
            zero["overlap_comm"] = False
    except (ValueError, AttributeError, TypeError) as error:
        raise InputWrong(f"train.deepspeed: {path} is no DeepSpeed configuration: {error}.")
    return json.dumps(found, indent=2) + "\n"


class _Text:
    """A config's text, parsed; places are byte offsets (ast counts lines from 1 and columns in UTF-8 bytes)."""

    def __init__(self, text: str) -> None:
        self.raw = text.encode("utf-8")
        self.tree = ast.parse(text)
        self.lines = [0]
        for line in self.raw.splitlines(keepends=True):
            self.lines.append(self.lines[-1] + len(line))

    def span(self, node: ast.AST) -> Tuple[int, int]:
        first, last = node.lineno, node.end_lineno  # type: ignore[attr-defined]
        begin, end = node.col_offset, node.end_col_offset  # type: ignore[attr-defined]
        return self.lines[first - 1] + begin, self.lines[last - 1] + end

    def column(self, offset: int) -> int:
        return offset - (self.raw.rfind(b"\n", 0, offset) + 1)

    def keyword(self, keyword: ast.keyword) -> int:
        """Where `name=` of a keyword begins (ast of Python 3.8 gives only the value's place)."""
        return self.span(keyword.value)[0] - len(f"{keyword.arg}=")


def _assignment(tree: ast.Module, name: str) -> Optional[ast.Assign]:
    found = [
        node
        for node in tree.body
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets)
    ]
    return found[-1] if found else None


def value(text: str, name: str) -> Any:
    """What `name` is set to at the top of a config's text, if that is a literal. Raises KeyError if it is not there."""
    assignment = _assignment(ast.parse(text), name)
    if assignment is None:
        raise KeyError(f"{name}: the preset has no {name}")
    return ast.literal_eval(assignment.value)


def _descend(node: ast.AST, keys: List[str], path: str) -> Tuple[ast.Call, Optional[ast.keyword]]:
    """The `dict(...)` call holding the last of `keys`, and that keyword if it is there."""
    call = node
    keyword: Optional[ast.keyword] = None
    for depth, key in enumerate(keys):
        if keyword is not None:
            call = keyword.value
        if isinstance(call, ast.List) and key.isdigit() and int(key) < len(call.elts):
            call, keyword = call.elts[int(key)], None
            continue
        if isinstance(call, ast.List) and call.elts and key == "+":
            break
        if not isinstance(call, ast.Call):
            raise KeyError(f"{path}: {'.'.join(path.split('.')[: depth + 1])} is not a dict(...) in this preset")
        keyword = next((k for k in call.keywords if k.arg == key), None)
        if keyword is None and depth < len(keys) - 1:
            raise KeyError(f"{path}: the preset has no {key}")
    return call, keyword  # type: ignore[return-value]


def edit(text: str, changes: Dict[str, Optional[str]]) -> str:
    """`text` with each path of `changes` set to its Python source; None takes the keyword, or the whole name, away.

    Raises KeyError if a path's parent is not in the text. Changes are gathered as long as each can be placed in the
    text as it stands (parsing is most of the time); one that touches another's place sees what that one left.
    """
    parsed, waiting = _Text(text), []  # type: Tuple[_Text, List[Tuple[int, int, bytes]]]
    for path, value in changes.items():
        try:
            found = _place(parsed, path, value)
            if found is not None and any(_touch(found, other) for other in waiting):
                raise KeyError(path)
        except KeyError:
            if not waiting:
                raise
            parsed, waiting = _Text(_apply(parsed, waiting)), []
            found = _place(parsed, path, value)
        if found is not None:
            waiting.append(found)
    return _apply(parsed, waiting)


def _touch(one: Tuple[int, int, bytes], other: Tuple[int, int, bytes]) -> bool:
    """Whether two changes are not apart: they overlap, or both put something in at one place."""
    return one[0] <= other[1] and other[0] <= one[1]


def _apply(parsed: _Text, changes: List[Tuple[int, int, bytes]]) -> str:
    raw = parsed.raw
    for start, end, new in sorted(changes, reverse=True):
        raw = raw[:start] + new + raw[end:]
    return raw.decode("utf-8")


def _place(parsed: _Text, path: str, value: Optional[str]) -> Optional[Tuple[int, int, bytes]]:
    """(start, end, new bytes) of one change, None if there is nothing to do."""
    name, *keys = path.split(".")
    assignment = _assignment(parsed.tree, name)
    if assignment is None:
        if value is None and not keys:
            return None
        raise KeyError(f"{path}: the preset has no {name}")
    if not keys:
        if value is not None:
            return (*parsed.span(assignment.value), value.encode("utf-8"))
        start, end = parsed.span(assignment)
        newline = parsed.raw.find(b"\n", end)  # with the line's comment
        return start, len(parsed.raw) if newline < 0 else newline + 1, b""
    call, keyword = _descend(assignment.value, keys, path)
    if isinstance(call, ast.List) and keys[-1] == "+":
        start, end = parsed.span(call.elts[-1])
        return end, end, b",\n" + b" " * parsed.column(start) + (value or "None").encode("utf-8")
    if keyword is not None:
        if value is not None:
            return (*parsed.span(keyword.value), value.encode("utf-8"))
        return (*_without(parsed, call, keyword), b"")
    if value is None:
        return None
    last = call.keywords[-1]
    end = parsed.span(last.value)[1]
    return end, end, b",\n" + b" " * parsed.column(parsed.keyword(last)) + f"{keys[-1]}={value}".encode()


def _without(parsed: _Text, call: ast.Call, keyword: ast.keyword) -> Tuple[int, int]:
    """What to cut to take `keyword` away: with the comma that joins it to its neighbour."""
    index = call.keywords.index(keyword)
    if index > 0:
        return parsed.span(call.keywords[index - 1].value)[1], parsed.span(keyword.value)[1]
    if len(call.keywords) == 1:
        return parsed.keyword(keyword), parsed.span(keyword.value)[1]
    return parsed.keyword(keyword), parsed.keyword(call.keywords[1])


def importing(text: str, module: str, names: Sequence[str]) -> str:
    """`text` with those of `names` imported from `module` ("": modules themselves) that it does not import yet."""
    parsed = _Text(text)
    imports = [node for node in parsed.tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
    there = {one.asname or one.name for node in imports for one in node.names}
    missing = [name for name in names if name not in there]
    if not missing:
        return text
    end = parsed.span(imports[-1])[1]
    line = f"\n{f'from {module} ' if module else ''}import {', '.join(missing)}"
    return (parsed.raw[:end] + line.encode() + parsed.raw[end:]).decode("utf-8")


def difference(before: str, after: str, before_name: str, after_name: str) -> str:
    """Unified diff of two config texts."""
    return "".join(difflib.unified_diff(before.splitlines(True), after.splitlines(True), before_name, after_name, n=1))
