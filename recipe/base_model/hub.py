"""ModelScope and Hugging Face: what a revision holds, and the shapes of its weights, before anything is downloaded."""

import json
from typing import Any, Dict, List

from recipe.base_model import hub_addresses, hub_clients
from recipe.base_model.hub_addresses import branch
from recipe.base_model.hub_errors import as_recipe_errors, is_client_fault
from recipe.core.errors import InputWrong
from recipe.core.http import causes, status
from recipe.core.resumable_download import TRY_NEXT
from recipe.core.settings import Model
from recipe.core.translation import _, mark

HEADER = 1 << 16  # bytes that hold the header of a 2 GB shard

# Values of `listed_by`, in English: they are recorded
CLIENT = mark("its client")  # the usual one
CLIENT_FAILED = mark("{how}, as the client failed ({error})")


def resolve(model: Model) -> Dict[str, Any]:
    """What the hub has at the recipe's revision: source, id, revision, commit ("" if unknown), listed_by (how the files
    were listed), and files: path → size, at (the commit to download from), and sha256 or git (blob id) where stated.

    Raises InputWrong for an unknown model or revision, HostLacks if the hub does not answer.
    """
    with as_recipe_errors(model):
        try:
            commit, files = hub_clients.list_files(model)
            listed_by = CLIENT
        except Exception as error:  # the clients, requests and urllib3 raise many types
            if not is_client_fault(error):
                raise
            found = hub_addresses.resolve(model, hub_clients.request_headers(model))
            if found is None:
                raise
            listed_by, commit, files = found
            *_outer, first = causes(error)
            reason = f"{type(first).__name__}: {str(first).strip()[:100]}"
            listed_by = CLIENT_FAILED.format(how=listed_by, error=reason)
    outside = [name for name in files if name.startswith("/") or ".." in name.split("/")]
    if outside:
        raise InputWrong(
            _(
                "{problem}. It was not fetched.",
                problem=_(
                    "{model} holds a file that would be outside its folder: {file}", model=model.id, file=outside[0]
                ),
            )
        )
    return {
        "source": model.source, "id": model.id, "revision": branch(model), "commit": commit, "listed_by": listed_by,
        "files": files,
    }  # fmt: skip


def safetensors_header(model: Model, name: str, file: Dict[str, Any]) -> Dict[str, List[int]]:
    """Name → shape of the tensors in a safetensors file at the hub; only its header is downloaded."""
    with as_recipe_errors(model):
        raw = _first_bytes(model, name, file, HEADER)
        length = int.from_bytes(raw[:8], "little")
        if 8 + length > min(file["size"], 1 << 27):
            raise InputWrong(
                _(
                    "{file} of {model} is not a safetensors file: its header is longer than the file.",
                    file=name,
                    model=model.id,
                )
            )
        if 8 + length > len(raw):
            raw = _first_bytes(model, name, file, 8 + length)
        try:
            header = json.loads(raw[8 : 8 + length])
            return {key: list(value["shape"]) for key, value in header.items() if key != "__metadata__"}
        except (ValueError, KeyError, TypeError, AttributeError):
            raise InputWrong(
                _("{file} of {model} is not a safetensors file: its header cannot be read.", file=name, model=model.id)
            )


def _first_bytes(model: Model, name: str, file: Dict[str, Any], length: int) -> bytes:
    import requests

    *others, last = hub_addresses.file_urls(model, name, file["at"])
    headers = hub_clients.request_headers(model)
    for url in others:
        try:
            return hub_addresses.first_bytes(url, name, file["size"], headers, length)
        except requests.RequestException as error:
            if status(error) not in TRY_NEXT:
                raise
    return hub_addresses.first_bytes(last, name, file["size"], headers, length)
