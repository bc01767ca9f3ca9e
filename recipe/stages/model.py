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
from recipe.core.translation import _, stored
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
    size = f"{figures['bytes'] / 1e6:,.1f} MB"
    parts = [_("{first}, {second}", first=figures["folder"], second=size)]
    if figures["unknown_revision"]:
        parts.append(_("not fetched by this recipe, so its revision is unknown"))
    elif figures["sha256"]:
        parts.append(_("from {revision} of {hub}", revision=revision, hub=hub_addresses.NAMES[source]))
    elif commit:
        hub_name = hub_addresses.NAMES[source]
        parts.append(_("{revision} is commit {commit} at {hub}", revision=revision, commit=commit[:12], hub=hub_name))
    elif source:
        hub_name = hub_addresses.NAMES[source]
        parts.append(_("{revision} of {hub}, which states no commit", revision=revision, hub=hub_name))
    if figures["listed_by"] not in ("", hub.CLIENT) and not figures["unknown_revision"]:
        parts.append(_("the hub was asked by {program}", program=figures["listed_by"]))
    if figures["instead_of"]:
        parts[-1] = _("{figure} ({why})", figure=parts[-1], why=stored(figures["instead_of"]))
    if figures["verified"]:
        parts.append(_("every byte matches the download"))
    parts.append(_("loaded with {whose} code", whose=stored(figures["code"])))
    terms = licence.Licence(**figures["base_licence"]).title or _("unknown")
    parts.append(_("licence {name}", name=terms))
    return _("; ").join(parts)


STAGE = Stage("model", inputs, make, summary, always=True)
