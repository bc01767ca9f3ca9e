"""Model stage: the base model's folder, made, fetched or checked."""

from pathlib import Path
from typing import Any, Dict

from recipe.base_model import hub, hub_addresses, licence, model_code
from recipe.base_model.download import commit, ensure
from recipe.base_model.folder import fingerprint
from recipe.base_model.record import ORIGIN, read_record
from recipe.base_model.visual_encoder import encoder_run
from recipe.core.run import Run
from recipe.core.stage import Stage
from recipe.xtuner import preset_facts


def inputs(run: Run) -> Dict[str, Any]:
    return {"settings": run.settings.model.model_dump()}


def make(run: Run, output: Path) -> Dict[str, Any]:
    """Make sure of the base model. Figures: its folder, files, bytes, and what its record says of its origin."""
    place = ensure(run)
    encoder = encoder_run(run) if preset_facts.has_images(run.settings) else None
    sizes = [p.stat().st_size for p in place.iterdir() if p.is_file()]
    record, model = read_record(place), run.settings.model
    return {
        "folder": run.relative(place),
        "files": len(sizes),
        "bytes": sum(sizes),
        "fingerprint": fingerprint(place),
        **(
            {"visual_encoder": fingerprint(ensure(encoder)), "visual_encoder_commit": commit(encoder)}
            if encoder
            else {}
        ),
        **{name: (record or {}).get(name, "") for name in ORIGIN},
        "code": model_code.describe(place),
        "base_licence": licence.read(run)._asdict(),
        "verified": run.verify,
        "unknown_revision": record is None and not model.path and not model.is_tiny,
    }


def summary(figures: Dict[str, Any]) -> str:
    """The folder, where its files come from, and whose code loads them."""
    revision, commit, source = figures["revision"], figures["commit"], figures["source"]
    origin = ""
    if figures["unknown_revision"]:
        origin = "; not fetched by this recipe, so its revision is unknown"
    elif figures["sha256"]:
        origin = f"; from {revision} of {hub_addresses.NAMES[source]}"
    elif commit:
        origin = f"; {revision} is commit {commit[:12]} at {hub_addresses.NAMES[source]}"
    elif source:
        origin = f"; {revision} of {hub_addresses.NAMES[source]}, which states no commit"
    if figures["listed_by"] not in ("", hub.CLIENT) and not figures["unknown_revision"]:
        origin += f"; the hub was asked by {figures['listed_by']}"
    origin += f" ({figures['instead_of']})" if figures["instead_of"] else ""
    checked = "; every byte matches the download" if figures["verified"] else ""
    terms = licence.Licence(**figures["base_licence"]).title or "unknown"
    size = f"{figures['bytes'] / 1e6:,.1f} MB"
    return f"{figures['folder']}, {size}{origin}{checked}; loaded with {figures['code']} code; licence {terms}"


STAGE = Stage("model", inputs, make, summary, always=True)
