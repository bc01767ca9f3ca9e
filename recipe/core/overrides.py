"""Settings as overrides (key=value): what one recipe has to add to become another."""

import json
from typing import Any, Dict, List, Optional, Sequence

import tomli
from pydantic import ValidationError

from recipe.core.errors import InputWrong
from recipe.core.recipe_files import parse_override
from recipe.core.settings import Plan, Settings
from recipe.core.settings_errors import message
from recipe.core.translation import _


def get(settings: Settings, key: str) -> Any:
    """The value of a dotted key; None for a key that does not exist."""
    found: Any = settings.model_dump()
    for name in key.split("."):
        found = found.get(name) if isinstance(found, dict) else None
    return found


def to_toml(value: Any) -> str:
    """A value as TOML: its JSON, with DEL escaped as TOML requires."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def flatten(values: Dict[str, Any], above: str = "") -> Dict[str, Any]:
    """Nested tables as dotted keys."""
    found: Dict[str, Any] = {}
    for name, value in values.items():
        found.update(flatten(value, f"{above}{name}.") if isinstance(value, dict) else {f"{above}{name}": value})
    return found


def between(base: Settings, other: Settings) -> List[str]:
    """The overrides that turn the settings `base` into `other`."""
    before = flatten(base.model_dump())
    return [
        f"{key}={to_toml(value)}"
        for key, value in flatten(other.model_dump()).items()
        if value != before.get(key) and value is not None
    ]


def price(overrides: Sequence[str]) -> Optional[float]:
    """The plan.price_per_hour among `overrides`, None without one. Raises InputWrong for any other override."""
    found = None
    for override in overrides:
        keys, value = parse_override(override, tomli)
        if keys != ("plan", "price_per_hour"):
            raise InputWrong(
                _(
                    "{override}: a finished run cannot change; a report accepts only plan.price_per_hour=….",
                    override=override,
                )
            )
        try:
            found = Plan.model_validate({keys[1]: value}).price_per_hour
        except ValidationError as error:
            reason = _("{error} (found {value!r})", error=message(error.errors()[0]), value=value)
            place = _("override {override}", override=override)
            raise InputWrong(_("{place}: {reason}.", place=place, reason=reason))
    return found
