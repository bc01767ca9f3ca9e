"""Reads and edits XTuner's config files as text, so that comments and order are kept.

An edit names a place by a dotted path: first a name assigned at the top level, then keywords of `dict(...)` calls or
indexes of lists, as in `model.lora.r` or `custom_hooks.1.system`; `custom_hooks.+` appends an element. The new value is
Python source. All other bytes stay the same.
"""

import ast
import difflib
import functools
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Dict, List, Optional, Tuple, Union

from recipe.core.commands import command_line
from recipe.core.errors import HostLacks, InputWrong
from recipe.core.translation import _, listed, mark, sentences

_Change = Tuple[int, int, bytes]  # start, end, new bytes


def folder() -> Path:
    """The folder of the installed XTuner's configs, found without importing XTuner (5 s)."""
    spec = find_spec("xtuner")
    if spec is None or not spec.submodule_search_locations:
        raise HostLacks(_("XTuner is not installed in this environment. Start through just or ./justw."))
    return Path(next(iter(spec.submodule_search_locations))) / "configs"


@functools.lru_cache(maxsize=1)
def files() -> Dict[str, Path]:
    """Name → file of every preset, sorted by path."""
    found = sorted(path for path in folder().rglob("*.py") if not path.name.startswith((".", "_")))
    return {path.stem: path for path in found}


def source(name: str) -> str:
    """The text of a preset of `xtuner list-cfg`. Raises InputWrong for an unknown name."""
    if name not in files():
        close = difflib.get_close_matches(name, list(files()), n=3)
        raise InputWrong(
            sentences(
                _("base: XTuner 0.1.14 has no preset {name!r}.", name=name),
                _("Close to it: {names}.", names=listed(close)) if close else "",
                _("`{command}` lists all.", command=command_line("presets")),
            )
        )
    return files()[name].read_text(encoding="utf-8")


def deepspeed_config(name: str) -> Path:
    """The DeepSpeed file `name`: a path, or one of XTuner's names such as deepspeed_zero2. Raises InputWrong."""
    if Path(name).is_file():
        return Path(name)
    paths = {path.stem: path for path in (folder() / "deepspeed").glob("*.json")}
    if name not in paths:
        raise InputWrong(
            _(
                "train.deepspeed: {name!r} is neither a file nor one of XTuner's names: {names}.",
                name=name,
                names=listed(sorted(paths)),
            )
        )
    return paths[name]


def deepspeed_text(name: str, kind: str) -> str:
    """The DeepSpeed file `name` with the dtype `kind` (fp16, bf16, fp32) instead of "auto"; unchanged if `kind` is "".

    In XTuner's files for ZeRO-1 and 2 `overlap_comm` is turned off: DeepSpeed 0.14.0 and 0.18.9 may overwrite gradients
    that are still being summed (its pull requests 5606 and 7965). Raises InputWrong for a file with another dtype.
    """
    path = deepspeed_config(name)
    text = path.read_text(encoding="utf-8")
    if not kind:
        return text
    try:
        found = json.loads(text)
        for name in ("fp16", "bf16"):
            section = found.setdefault(name, {})
            if section.get("enabled", "auto") not in ("auto", name == kind):
                message = mark("train.deepspeed: {file} has {dtype} off, the recipe trains in {kind}: make them equal.")
                if section["enabled"]:
                    message = mark(
                        "train.deepspeed: {file} has {dtype} on, the recipe trains in {kind}: make them equal."
                    )
                raise InputWrong(_(message, file=path, dtype=name, kind=kind))
            section["enabled"] = name == kind
        zero = found.get("zero_optimization", {})
        if path.parent == folder() / "deepspeed" and zero["stage"] < 3:
            zero["overlap_comm"] = False
    except (ValueError, AttributeError, TypeError) as error:
        raise InputWrong(
            _("train.deepspeed: {file} is not a DeepSpeed configuration: {error}.", file=path, error=error)
        )
    return json.dumps(found, indent=2) + "\n"


class _ParsedConfig:
    """A config's text and syntax tree. Places are byte offsets; ast counts lines from 1 and columns in UTF-8 bytes."""

    def __init__(self, text: str) -> None:
        self.raw = text.encode("utf-8")
        self.tree = ast.parse(text)
        self.lines = [0]
        for line in self.raw.splitlines(keepends=True):
            self.lines.append(self.lines[-1] + len(line))

    def span(self, node: Union[ast.expr, ast.stmt]) -> Tuple[int, int]:
        """Start and end of a node."""
        start = self.lines[node.lineno - 1] + node.col_offset
        return start, self.lines[(node.end_lineno or 0) - 1] + (node.end_col_offset or 0)

    def column(self, offset: int) -> int:
        """The column of a place within its line."""
        return offset - (self.raw.rfind(b"\n", 0, offset) + 1)

    def keyword(self, keyword: ast.keyword) -> int:
        """The start of a keyword's `name=`; ast in Python 3.8 has only the place of its value."""
        return self.span(keyword.value)[0] - len(f"{keyword.arg}=")


def _assignment(tree: ast.Module, name: str) -> Optional[ast.Assign]:
    found = [
        node
        for node in tree.body
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets)
    ]
    return found[-1] if found else None


def part(text: str, path: str) -> str:
    """The source of the value at a path of a config's text. Raises KeyError if it has no such name."""
    parsed = _ParsedConfig(text)
    name, *keys = path.split(".")
    assignment = _assignment(parsed.tree, name)
    if assignment is None:
        raise KeyError(_("{path}: the preset has no {name}", path=path, name=name))
    node, keyword = _descend(assignment.value, keys, path)
    start, end = parsed.span(keyword.value if keyword else node)
    return parsed.raw[start:end].decode("utf-8")


def _descend(node: ast.expr, keys: List[str], path: str) -> Tuple[ast.expr, Optional[ast.keyword]]:
    """The `dict(...)` call that holds the last of `keys`, and its keyword if it has it; for "+" the list."""
    keyword: Optional[ast.keyword] = None
    for depth, key in enumerate(keys):
        if keyword is not None:
            node = keyword.value
        if isinstance(node, ast.List) and key.isdigit() and int(key) < len(node.elts):
            node, keyword = node.elts[int(key)], None
            continue
        if isinstance(node, ast.List) and node.elts and key == "+":
            break
        if not isinstance(node, ast.Call):
            above = ".".join(path.split(".")[: depth + 1])
            raise KeyError(_("{path}: {above} is not a dict(...) in this preset", path=path, above=above))
        keyword = next((k for k in node.keywords if k.arg == key), None)
        if keyword is None and depth < len(keys) - 1:
            raise KeyError(_("{path}: the preset has no {name}", path=path, name=key))
    return node, keyword


def edit(text: str, changes: Dict[str, Optional[str]]) -> str:
    """`text` with each path of `changes` set to its Python source; None removes the keyword or the whole name.

    Raises KeyError if a path's parent is not in the text. Parsing takes most of the time, so changes are collected and
    applied together, until one overlaps another or needs what another inserts.
    """
    parsed = _ParsedConfig(text)
    waiting: List[_Change] = []
    for path, value in changes.items():
        try:
            found = _place(parsed, path, value)
            if found is not None and any(_overlap(found, other) for other in waiting):
                raise KeyError(path)
        except KeyError:
            if not waiting:
                raise
            parsed, waiting = _ParsedConfig(_apply(parsed, waiting)), []
            found = _place(parsed, path, value)
        if found is not None:
            waiting.append(found)
    return _apply(parsed, waiting)


def _overlap(one: _Change, other: _Change) -> bool:
    """Whether two changes overlap, or insert at the same place."""
    return one[0] <= other[1] and other[0] <= one[1]


def _apply(parsed: _ParsedConfig, changes: List[_Change]) -> str:
    raw = parsed.raw
    for start, end, new in sorted(changes, reverse=True):
        raw = raw[:start] + new + raw[end:]
    return raw.decode("utf-8")


def _place(parsed: _ParsedConfig, path: str, value: Optional[str]) -> Optional[_Change]:
    """One change; None if what it removes does not exist."""
    name, *keys = path.split(".")
    assignment = _assignment(parsed.tree, name)
    if assignment is None:
        if value is None and not keys:
            return None
        raise KeyError(_("{path}: the preset has no {name}", path=path, name=name))
    if not keys:
        if value is not None:
            return (*parsed.span(assignment.value), value.encode("utf-8"))
        start, end = parsed.span(assignment)
        newline = parsed.raw.find(b"\n", end)  # includes the line's comment
        return start, len(parsed.raw) if newline < 0 else newline + 1, b""
    call, keyword = _descend(assignment.value, keys, path)
    if isinstance(call, ast.List) and keys[-1] == "+":
        start, end = parsed.span(call.elts[-1])
        return end, end, b",\n" + b" " * parsed.column(start) + (value or "None").encode("utf-8")
    if keyword is not None and isinstance(call, ast.Call):
        if value is not None:
            return (*parsed.span(keyword.value), value.encode("utf-8"))
        return (*_removal(parsed, call, keyword), b"")
    if value is None or not isinstance(call, ast.Call):
        return None
    last = call.keywords[-1]
    end = parsed.span(last.value)[1]
    return end, end, b",\n" + b" " * parsed.column(parsed.keyword(last)) + f"{keys[-1]}={value}".encode()


def _removal(parsed: _ParsedConfig, call: ast.Call, keyword: ast.keyword) -> Tuple[int, int]:
    """The span of `keyword` with the comma that joins it to its neighbour."""
    index = call.keywords.index(keyword)
    if index > 0:
        return parsed.span(call.keywords[index - 1].value)[1], parsed.span(keyword.value)[1]
    if len(call.keywords) == 1:
        return parsed.keyword(keyword), parsed.span(keyword.value)[1]
    return parsed.keyword(keyword), parsed.keyword(call.keywords[1])


def add_import(text: str, module: str, name: str) -> str:
    """`text` with `name` imported from `module` ("": the module `name` itself), unless it already imports it."""
    parsed = _ParsedConfig(text)
    imports = [node for node in parsed.tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
    if name in {alias.asname or alias.name for node in imports for alias in node.names}:
        return text
    end = parsed.span(imports[-1])[1]
    line = f"\n{f'from {module} ' if module else ''}import {name}"
    return (parsed.raw[:end] + line.encode() + parsed.raw[end:]).decode("utf-8")


def difference(before: str, after: str, before_name: str, after_name: str) -> str:
    """Unified diff of two config texts."""
    return "".join(difflib.unified_diff(before.splitlines(True), after.splitlines(True), before_name, after_name, n=1))
