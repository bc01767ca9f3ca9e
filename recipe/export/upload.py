"""Target upload: lists the files for a hub, and uploads them."""

import os
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any, Dict, List

from recipe.base_model import licence
from recipe.core.commands import command_line
from recipe.core.errors import HostLacks, InputWrong, RunFailed
from recipe.core.run import Run
from recipe.core.settings import Export
from recipe.core.translation import _, english
from recipe.export.merged import MergedModel, write_json

# By their names in a card; ModelScope has others for these. The client's own list ends with them.
MODELSCOPE_LICENCES = {
    "apache-2.0": "Apache License 2.0", "gpl-2.0": "GPL-2.0", "gpl-3.0": "GPL-3.0", "lgpl-2.1": "LGPL-2.1",
    "lgpl-3.0": "LGPL-3.0", "afl-3.0": "AFL-3.0", "ecl-2.0": "ECL-2.0", "mit": "MIT",
}  # fmt: skip


def upload(run: Run, merged: MergedModel, output: Path) -> Dict[str, Any]:
    """Write files.json, the files and sizes to upload, and ModelScope's configuration.json if the folder has none."""
    export = run.settings.export
    if export.hub == "modelscope" and not (merged.folder / "configuration.json").exists():
        write_json(output / "configuration.json", {"framework": "pytorch", "task": "text-generation"})
    files = {path.name: path.stat().st_size for path in files_to_send(merged.folder, output)}
    write_json(output / "files.json", files)
    repo = export.repo or "OWNER/NAME"
    with english():
        notes = _notes(run, merged, files, repo)
    words = [f"export.repo={repo}", *(["export.hub=huggingface"] if export.hub == "huggingface" else [])]
    words += ["export.public=true"] if export.public else []
    return {
        "files": files,
        "commands": [command_line("export upload", merged.recipe, *map(shlex.quote, words), "--yes")],
        "notes": notes,
    }


def _notes(run: Run, merged: MergedModel, files: Dict[str, int], repo: str) -> List[str]:
    export, notes = run.settings.export, []
    if not (merged.folder / "README.md").is_file():
        notes.append(_("The model card is missing: put a README.md into {folder}.", folder=run.relative(merged.folder)))
    notes.append(
        _("{files} files, {bytes:,} bytes; nothing was uploaded.", files=len(files), bytes=sum(files.values()))
    )
    token = "MODELSCOPE_API_TOKEN" if export.hub == "modelscope" else "HF_TOKEN"
    destination = (
        _("Destination: {repo} on {hub}, public. The token comes from {token}.", repo=repo, hub=export.hub, token=token)
        if export.public
        else _(
            "Destination: {repo} on {hub}, private if new (public: export.public=true). The token comes from {token}.",
            repo=repo,
            hub=export.hub,
            token=token,
        )
    )
    return [*notes, destination, licence.of(run).sentence()]


def files_to_send(merged: Path, extra_folder: Path) -> List[Path]:
    """Files of the merged folder, and ModelScope's configuration.json if we wrote it."""
    found = [path for path in sorted(merged.iterdir()) if path.is_file() and not path.name.startswith(".")]
    extra = extra_folder / "configuration.json"
    return [*found, extra] if extra.is_file() else found


def send(run: Run, merged: MergedModel) -> str:
    """Upload the files that `upload` listed; return the repository. Raises InputWrong, HostLacks, RunFailed."""
    export = run.settings.export
    if not export.repo:
        raise InputWrong(_("The destination is missing: set export.repo=owner/name"))
    staging = run.folder / ".upload.part"
    shutil.rmtree(str(staging), ignore_errors=True)
    staging.mkdir()
    try:
        for path in files_to_send(merged.folder, run.folder / "export" / "upload"):
            os.link(str(path), str(staging / path.name))  # hard links: no copy of 15 GB
        if export.hub == "modelscope":
            return _send_modelscope(export, staging, run.settings.model.id, licence.of(run).license)
        return _send_hugging_face(export, staging)
    finally:
        shutil.rmtree(str(staging), ignore_errors=True)


def _upload_failed(export: Export, error: Exception) -> str:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return _(
        "{repo} could not be uploaded to {hub}: {reason}. Run the same command to retry.",
        repo=export.repo,
        hub=export.hub,
        reason=reason[:300],
    )


def _send_hugging_face(export: Export, staging: Path) -> str:
    from huggingface_hub import HfApi

    token = os.environ.get("HF_TOKEN")
    if not token:
        raise HostLacks(
            _("The token for Hugging Face is missing: set HF_TOKEN (huggingface.co/settings/tokens, write).")
        )
    api = HfApi(token=token)
    try:
        url = api.create_repo(export.repo, private=not export.public, exist_ok=True)
        api.upload_folder(repo_id=export.repo, folder_path=str(staging), commit_message="Merged model")
        return str(url)
    except (ValueError, OSError) as error:  # refused names, network and hub errors
        raise RunFailed(_upload_failed(export, error))


def has_git_lfs() -> bool:
    """Whether git and git-lfs are installed."""
    return bool(shutil.which("git")) and subprocess.run(["git", "lfs", "version"], capture_output=True).returncode == 0


def _send_modelscope(export: Export, staging: Path, base: str, terms: str) -> str:
    from modelscope.hub.api import HubApi, ModelScopeConfig
    from modelscope.hub.constants import ModelVisibility

    if not has_git_lfs():
        raise HostLacks(
            _(
                "ModelScope uploads need git and git-lfs: install them (Debian, Ubuntu: apt-get install git-lfs), "
                "and use RUNTIME=host instead of a container."
            )
        )
    token = os.environ.get("MODELSCOPE_API_TOKEN")
    if not token and ModelScopeConfig.get_cookies() is None:
        raise HostLacks(
            _("The token for ModelScope is missing: set MODELSCOPE_API_TOKEN (modelscope.cn/my/myaccesstoken).")
        )
    api = HubApi()
    try:
        if token:
            api.login(token)
        api.push_model(
            model_id=export.repo,
            model_dir=str(staging),
            visibility=ModelVisibility.PUBLIC if export.public else ModelVisibility.PRIVATE,
            license=MODELSCOPE_LICENCES.get(terms.lower(), terms or "unknown"),  # of a new repository
            commit_message="Merged model",
            original_model_id=base,
            lfs_suffix=["*.safetensors", "*.bin", "*.model"],
        )
    except Exception as error:  # git and the hub raise many types
        raise RunFailed(_upload_failed(export, error))
    return export.repo
