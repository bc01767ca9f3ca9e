"""Reads and edits XTuner's shipped config files as text, so that comments and order survive.

An edit names a place by a dotted path: the first part is a name assigned at the top level, every further
part a keyword of the `dict(...)` call or an index of the list found there: `model.lora.r`,
`custom_hooks.1.system`; `custom_hooks.+` is a new last element. The new value is Python source. What is not named is
left as it is, byte for byte.
"""

import ast
import difflib
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

from .errors import HostLacks, InputWrong


def folder() -> Path:
    """Where the installed XTuner keeps its configs; found without importing XTuner (5 s)."""
    spec = find_spec("xtuner")
    if spec is None or not spec.submodule_search_locations:
        raise HostLacks("XTuner is not installed in this environment. Start through just or ./justw.")
    return Path(next(iter(spec.submodule_search_locations))) / "configs"


def source(name: str) -> str:
    """Text of the preset `name`, any name of `xtuner list-cfg`. Raises InputWrong for an unknown one."""
    paths = {path.stem: path for path in folder().rglob("*.py") if not path.name.startswith((".", "_"))}
    if name not in paths:
        close = difflib.get_close_matches(name, list(paths), n=3)
        hint = f" Close to it: {', '.join(close)}." if close else ""
        raise InputWrong(f"base: XTuner 0.1.14 has no preset {name!r}.{hint} `xtuner list-cfg` shows all.")
    return paths[name].read_text(encoding="utf-8")


def deepspeed_config(name: str) -> Path:
    """The DeepSpeed file `name`: a path, or one of XTuner's names such as deepspeed_zero2."""
    if Path(name).is_file():
        return Path(name)
    paths = {path.stem: path for path in (folder() / "deepspeed").glob("*.json")}
    if name not in paths:
        raise InputWrong(f"train.deepspeed: no file and no XTuner name: {name!r}. Names: {', '.join(sorted(paths))}.")
    return paths[name]


def _offset(text: bytes, line: int, column: int) -> int:
    """Byte offset of an ast position: lines count from 1, columns are UTF-8 bytes from 0."""
    start = 0
    for _ in range(line - 1):
        start = text.index(b"\n", start) + 1
    return start + column


def _span(text: bytes, node: ast.AST) -> Tuple[int, int]:
    return (
        _offset(text, node.lineno, node.col_offset),  # type: ignore[attr-defined]
        _offset(text, node.end_lineno, node.end_col_offset),  # type: ignore[attr-defined]
    )


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
    """`text` with each path of `changes` set to its Python source; None takes the keyword away.

    Raises KeyError if a path's parent is not in the text. One change at a time, so that each sees the
    positions the one before left.
    """
    for path, value in changes.items():
        raw = text.encode("utf-8")
        name, *keys = path.split(".")
        assignment = _assignment(ast.parse(text), name)
        if assignment is None:
            raise KeyError(f"{path}: the preset has no {name}")
        if not keys:
            start, end = _span(raw, assignment.value)
            new = (value or "None").encode("utf-8")
        else:
            call, keyword = _descend(assignment.value, keys, path)
            if isinstance(call, ast.List) and keys[-1] == "+":
                start = end = _span(raw, call.elts[-1])[1]
                column = _span(raw, call.elts[-1])[0]
                indent = b" " * (column - (raw.rfind(b"\n", 0, column) + 1))
                new = b",\n" + indent + (value or "None").encode("utf-8")
            elif keyword is not None and value is not None:
                start, end = _span(raw, keyword.value)
                new = value.encode("utf-8")
            elif keyword is not None:
                start, end = _without(raw, call, keyword)
                new = b""
            elif value is None:
                continue
            else:
                last = call.keywords[-1].value
                start = end = _span(raw, last)[1]
                indent = b" " * _keyword_column(raw, call.keywords[-1])
                new = b",\n" + indent + f"{keys[-1]}={value}".encode()
        text = (raw[:start] + new + raw[end:]).decode("utf-8")
    return text


def _keyword_column(raw: bytes, keyword: ast.keyword) -> int:
    """Column at which `name=` of a keyword begins (ast of Python 3.8 gives only the value's)."""
    start = _span(raw, keyword.value)[0] - len(f"{keyword.arg}=")
    return start - (raw.rfind(b"\n", 0, start) + 1)


def _without(raw: bytes, call: ast.Call, keyword: ast.keyword) -> Tuple[int, int]:
    """What to cut to take `keyword` away: with the comma that joins it to its neighbour."""
    index = call.keywords.index(keyword)
    if index > 0:
        return _span(raw, call.keywords[index - 1].value)[1], _span(raw, keyword.value)[1]
    if len(call.keywords) == 1:
        return _span(raw, keyword.value)[0] - len(f"{keyword.arg}="), _span(raw, keyword.value)[1]
    following = call.keywords[1]
    return (
        _span(raw, keyword.value)[0] - len(f"{keyword.arg}="),
        _span(raw, following.value)[0] - len(f"{following.arg}="),
    )


def difference(before: str, after: str, before_name: str, after_name: str) -> str:
    """Unified diff of two config texts."""
    return "".join(difflib.unified_diff(before.splitlines(True), after.splitlines(True), before_name, after_name, n=1))
