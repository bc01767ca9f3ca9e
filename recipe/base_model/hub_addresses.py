"""A hub asked by plain addresses, for when its client's calls fail or are answered in another shape.

modelscope 1.9.5 is of 2023, and the hub goes on changing. What does not change is that each file has an address. The
names come from ModelScope's list of files, read in every shape that its clients have known; without it from what model
folders usually hold, from the code that the JSON files name, and from the weights' index. Sizes and checksums come from
headers.
"""

import os
import re
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple
from urllib.parse import quote, urlsplit

from recipe.core.settings import Model

LIMIT = 30  # seconds without a byte
ELSEWHERE = (400, 401, 403, 404, 405, 410, 501)  # statuses after which another address of the same file is tried
# What a model folder may hold beside its weights and its code. Only config.json is required.
LIGHT = (
    *("config.json", "generation_config.json", "configuration.json", "README.md", "LICENSE", "tokenizer_config.json"),
    *("special_tokens_map.json", "added_tokens.json", "tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt"),
    *("vocab.txt", "qwen.tiktoken", "preprocessor_config.json", "chat_template.jinja"),
)
INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
WHOLE = ("model.safetensors", "pytorch_model.bin")  # of models so small that they have no index
WEIGHTS = (".safetensors", ".bin")

Files = Dict[str, Dict[str, Any]]


def endpoint(model: Model) -> str:
    """The hub's address, or the mirror's that stands in its place."""
    if model.source == "modelscope":
        return f"https://{os.environ.get('MODELSCOPE_DOMAIN') or 'www.modelscope.cn'}"
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def of_file(model: Model, name: str, at: str) -> List[str]:
    """The addresses of a file, in the order in which to try them."""
    resolve = f"{model.id}/resolve/{quote(at, safe='')}/{quote(name)}"
    if model.source == "huggingface":
        return [f"{endpoint(model)}/{resolve}"]
    api = f"{endpoint(model)}/api/v1/models/{model.id}/repo?Revision={quote(at, safe='')}&FilePath={quote(name)}"
    return [api, f"{endpoint(model)}/models/{resolve}"]


def _get(url: str, headers: Dict[str, str], **more: Any) -> Any:
    """requests' answer, its body not yet read. Not packed on the way, or lengths would count something else."""
    import requests

    return requests.get(url, headers={**headers, "Accept-Encoding": "identity", **more}, stream=True, timeout=LIMIT)


def first_bytes(url: str, name: str, size: int, headers: Dict[str, str], length: int) -> bytes:
    """The first bytes of a file of `size`; a server that knows no ranges is left in the middle of it."""
    with _get(url, headers, Range=f"bytes=0-{length - 1}") as answer:
        answer.raise_for_status()
        refuse_other(answer, name, size)
        found = b""
        for block in answer.iter_content(min(length, 1 << 16)):
            found += block
            if len(found) >= length:
                break
        return found[:length]


def refuse_other(answer: Any, name: str, size: Optional[int] = None) -> None:
    """Raise requests' HTTPError for an answer of status 200 that is not the file: a page, an error in JSON, another
    size where that is known.
    """
    import requests

    kind = answer.headers.get("Content-Type", "").split(";")[0].strip().lower()
    page = kind == "text/html" and not name.endswith(".html")
    error = kind == "application/json" and not name.endswith((".json", ".jsonl"))
    if page or error or (size is not None and _size(answer) not in (None, size)):
        answer.status_code = 404
        host = urlsplit(answer.url).netloc
        raise requests.HTTPError(f"{host} answers {kind or 'something'} in place of {name}", response=answer)


def _size(answer: Any) -> Optional[int]:
    """Bytes of a whole file, by an answer to its address; None where that does not tell."""
    if answer.status_code == 206:
        told = answer.headers.get("Content-Range", "").rpartition("/")[2]
    else:
        told = answer.headers.get("Content-Length", "")
    return int(told) if told.isdigit() else None


def resolve(model: Model, revision: str, headers: Dict[str, str]) -> Optional[Tuple[str, str, Files]]:
    """(how it was asked, commit, files) of a revision, as `hub.resolve` has them; None where no address answers."""
    if model.source == "modelscope":
        listed = _listed(model, revision, headers)
        if listed:
            return ("its list of files", *listed)
    return _by_names(model, revision, headers)


def _listed(model: Model, revision: str, headers: Dict[str, str]) -> Optional[Tuple[str, Files]]:
    """ModelScope's list of files, in any of the shapes that its clients of 2023 to 2026 read."""
    url = f"{endpoint(model)}/api/v1/models/{model.id}/repo/files?Revision={quote(revision, safe='')}&Recursive=True"
    payload = _json(url, headers)
    entries: Any = payload
    for key in ("data", "files"):
        if isinstance(entries, dict):
            entries = {name.lower(): value for name, value in entries.items()}.get(key, entries)
    if not isinstance(entries, list):
        return None
    commit, newest, files = "", -1, {}
    for entry in entries:
        if not isinstance(entry, dict):
            return None
        told = {name.lower(): value for name, value in entry.items()}
        if told.get("type") in ("tree", "dir", "directory"):
            continue
        path, size = told.get("path") or told.get("name"), told.get("size")
        if not isinstance(path, str) or not isinstance(size, int):
            return None
        if path.split("/")[-1] in (".gitignore", ".gitattributes"):
            continue
        at = told.get("revision") if isinstance(told.get("revision"), str) else ""
        date = told.get("committeddate")
        if at and isinstance(date, (int, float)) and date > newest:
            commit, newest = at, date
        files[path] = {"size": size, "sha256": told.get("sha256") or "", "at": at or revision}
    return (commit, files) if "config.json" in files else None


def _json(url: str, headers: Dict[str, str]) -> Any:
    """What an address answers in JSON; None where it does not."""
    import requests

    try:
        with _get(url, headers) as answer:
            answer.raise_for_status()
            return answer.json()
    except (requests.RequestException, ValueError):
        return None


def _by_names(model: Model, revision: str, headers: Dict[str, str]) -> Optional[Tuple[str, str, Files]]:
    files: Files = {}
    texts: Dict[str, Any] = {}
    commits: List[str] = []

    def ask(name: str) -> bool:
        """Whether the hub has a file; its entry, and of JSON its content, are noted."""
        for url in of_file(model, name, revision):
            found = _head(url, name, headers)
            if found is not None:
                entry, commit, content = found
                files[name] = {**entry, "at": revision}
                commits.append(commit)
                texts[name] = content
                return True
        return False

    if not ask("config.json"):
        return None
    for name in LIGHT[1:]:
        ask(name)
    _ask_code(texts, ask)
    shards: List[str] = []
    for name in INDEXES:
        if not shards and ask(name):
            weight_map = (texts[name] or {}).get("weight_map")
            shards = sorted(set(weight_map.values())) if isinstance(weight_map, dict) else []
    for name in shards or WHOLE:
        if ask(name) and name in WHOLE and not shards:
            break
    commit = commits[0] if commits and set(commits) == {commits[0]} else ""
    for entry in files.values():
        entry["at"] = commit or revision
    return "the addresses of its files", commit, files


def _ask_code(texts: Dict[str, Any], ask: Callable[[str], bool]) -> None:
    """The Python files that the JSON files name."""
    for module in sorted({one for text in list(texts.values()) for one in _modules(text)}):
        ask(f"{module}.py")


def _modules(text: Any) -> Iterator[str]:
    """Modules of a folder's own code that a config names in its auto_map."""
    named = text.get("auto_map") if isinstance(text, dict) else None
    for value in named.values() if isinstance(named, dict) else ():
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, str) and re.fullmatch(r"\w+\.\w+", one):
                yield one.split(".")[0]


def _head(url: str, name: str, headers: Dict[str, str]) -> Optional[Tuple[Dict[str, Any], str, Any]]:
    """(entry, commit, content of JSON) of a file by the answer to its address; None where there is none."""
    import requests

    heavy = name.endswith(WEIGHTS)  # of which one byte is enough
    try:
        with _get(url, headers, **({"Range": "bytes=0-0"} if heavy else {})) as answer:
            answer.raise_for_status()
            refuse_other(answer, name)
            content = answer.json() if name.endswith(".json") else None
            if isinstance(content, dict) and {"Code", "Message"} <= set(content):  # an error that says 200
                return None
            size = _size(answer)
            if size is None and not heavy:
                size = len(answer.content)
            if size is None:
                return None
            told = [{key.lower(): value for key, value in one.headers.items()} for one in [*answer.history, answer]]
    except (requests.RequestException, ValueError):
        return None
    commit = next((one["x-repo-commit"] for one in told if "x-repo-commit" in one), "")  # Hugging Face alone says it
    stated = ("x-linked-etag", "etag") if commit else ("x-linked-etag",)
    tags = [one[key].strip('W/"') for one in told for key in stated if key in one]
    sha256 = next((tag for tag in tags if re.fullmatch(r"[0-9a-f]{64}", tag)), "")
    git = next((tag for tag in tags if re.fullmatch(r"[0-9a-f]{40}", tag)), "") if not sha256 else ""
    return {"size": size, "sha256": sha256, "git": git}, commit, content
