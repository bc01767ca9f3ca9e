"""Asks ModelScope and Hugging Face through their own clients: files of a revision, branches and tags, login."""

import contextlib
import logging
import os
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Dict, List, Tuple

from recipe.base_model.hub_addresses import NAMES, Files, branch
from recipe.core.errors import InputWrong
from recipe.core.settings import Model
from recipe.core.translation import _, listed

LIMIT = 60  # seconds for an answer of a hub's API
STACK_DAY = datetime(2024, 3, 18, tzinfo=timezone.utc)  # as in docker/locks/lock.py: packages are from before this day


def modelscope_api() -> Any:
    logging.getLogger("modelscope").disabled = True  # it logs PyTorch versions and its index of code
    from modelscope.hub.api import HubApi, ModelScopeConfig

    home = Path(ModelScopeConfig.path_credential)
    if not (home / "cookies").is_file():  # without a login nothing is written outside our folders
        ModelScopeConfig.path_credential = os.path.join(os.environ.get("MODELSCOPE_CACHE", ".cache"), "login")
    return HubApi()


def _hugging_face_api() -> Any:
    from huggingface_hub import HfApi

    return HfApi(endpoint=os.environ.get("HF_ENDPOINT"))


def list_files(model: Model) -> Tuple[str, Files]:
    """(commit, files) of the recipe's revision. Raises InputWrong if it is unknown, and the client's own errors."""
    return _list_modelscope(model) if model.source == "modelscope" else _list_hugging_face(model)


def _list_modelscope(model: Model) -> Tuple[str, Files]:
    """The API of 1.9.5 does not return a branch's commit; the newest commit among the files stands for it."""
    api = modelscope_api()
    from modelscope.hub.api import ModelScopeConfig

    try:
        entries = api.get_model_files(
            model.id, model.revision, recursive=True, use_cookies=ModelScopeConfig.get_cookies() or False
        )
    except TypeError:  # the hub answers an unknown revision with files: null
        raise unknown_revision(model)
    files = [file for file in entries if file["Type"] != "tree"]
    if not files:
        raise InputWrong(_("{model} holds no files at revision {revision}.", model=model.id, revision=model.revision))
    newest = max(files, key=lambda file: file.get("CommittedDate") or 0)
    return newest["Revision"], {
        file["Path"]: {"size": file["Size"], "sha256": file.get("Sha256") or "", "at": file["Revision"]}
        for file in files
    }


def _list_hugging_face(model: Model) -> Tuple[str, Files]:
    found = _hugging_face_api().model_info(model.id, revision=branch(model), files_metadata=True, timeout=LIMIT)
    return found.sha, {
        file.rfilename: {
            "size": file.lfs["size"] if file.lfs else file.size,
            "sha256": file.lfs["sha256"] if file.lfs else "",
            "git": "" if file.lfs else file.blob_id or "",
            "at": found.sha,
        }
        for file in found.siblings
        if file.rfilename not in (".gitattributes", ".gitignore")
    }


def revisions(model: Model) -> List[str]:
    """Branches and tags at the hub; [] if it does not answer."""
    with contextlib.suppress(Exception):  # only completes the text of another error
        if model.source == "modelscope":
            branches, tags = modelscope_api().get_model_branches_and_tags(model.id)
            return [*branches, *tags]
        refs = _hugging_face_api().list_repo_refs(model.id)
        return [ref.name for ref in [*refs.branches, *refs.tags]]
    return []


def unknown_revision(model: Model) -> InputWrong:
    known = revisions(model)
    values = dict(model=model.id, revision=branch(model), hub=NAMES[model.source])
    problem = (
        _(
            "{model} has no revision {revision} at {hub}: it has {known}, and commits",
            known=listed(known[:12]) + (" …" if len(known) > 12 else ""),
            **values,
        )
        if known
        else _("{model} has no revision {revision} at {hub}: see its page", **values)
    )
    return InputWrong(_("{problem}. Name one: model.revision=…", problem=problem))


def latest_compatible_revision(model: Model) -> str:
    """The newest revision that the hub dates before STACK_DAY; "" if there is none.

    Hugging Face dates every commit. ModelScope dates only tags, and its API of 1.9.5 has no older commits.
    """
    with contextlib.suppress(Exception):  # only completes the text of another error
        if model.source == "modelscope":
            tags = modelscope_api().list_model_revisions(model.id, cutoff_timestamp=int(STACK_DAY.timestamp()))
            return next(iter(tags), "")
        commits = _hugging_face_api().list_repo_commits(model.id, revision=branch(model))
        return next((commit.commit_id for commit in commits if commit.created_at < STACK_DAY), "")
    return ""


def request_headers(model: Model) -> Dict[str, str]:
    """Headers for downloading a file: the client's user agent and, after a login, the user's token or cookies."""
    if model.source == "huggingface":
        from huggingface_hub.utils import build_hf_headers

        return dict(build_hf_headers())
    headers = {}
    with contextlib.suppress(Exception):  # the client's own files, which another version may have written
        from modelscope.hub.api import ModelScopeConfig

        headers["user-agent"] = ModelScopeConfig.get_user_agent()
        cookies = "; ".join(f"{c.name}={c.value}" for c in ModelScopeConfig.get_cookies() or ())
        headers.update({"Cookie": cookies} if cookies else {})
    return headers
