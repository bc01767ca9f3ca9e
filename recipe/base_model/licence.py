"""The base model's licence, from its card (README.md): it also covers everything that is made of its weights."""

import json
import re
from pathlib import Path
from typing import NamedTuple

from recipe.base_model.folder import folder
from recipe.core.run import Run
from recipe.core.translation import mark


class Licence(NamedTuple):
    """A licence under the names of a hub's card; "" is unknown. `terms`: what the card says only in its text."""

    license: str = ""
    license_name: str = ""
    license_link: str = ""
    terms: str = ""

    @property
    def title(self) -> str:
        """What it is called, with its address."""
        name = self.license_name or self.license
        return f"{name} ({self.license_link})" if self.license_link else name

    def front_matter(self) -> str:
        """The lines for the card of a model that is made of this one."""
        fields = {"license": self.license or "unknown", "license_name": self.license_name}
        fields["license_link"] = self.license_link
        return "\n".join(f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in fields.items() if value)

    def sentence(self) -> str:
        """For a card's reader, and before an upload; in English, because cards are (`stored` translates it)."""
        if not self.license:
            return mark(
                "The base model's licence also covers this model, and is unknown: the base's folder has no card "
                "(README.md) that names one. Look it up before you pass this on."
            )
        if not self.terms:
            return mark("The base model's licence also covers this model: {licence}.").format(licence=self.title)
        return mark("The base model's licence also covers this model: {licence}. {terms}").format(
            licence=self.title, terms=self.terms
        )


# Its cards at Hugging Face say `license: other` since 2024-01-18 and have the terms in their text.
INTERNLM2 = Licence(
    "other",
    "internlm2-weights",
    "https://huggingface.co/internlm/internlm2-chat-7b#open-source-license",
    mark(
        "The weights are open for academic research; commercial use is free, but has to be applied for with the form "
        "that is linked there. Only InternLM2's code is Apache-2.0."
    ),
)
OURS = Licence("apache-2.0")  # of random weights


def of(run: Run) -> Licence:
    """The licence of the run's base model, as the model stage has read it, else from the folder."""
    found = run.figures("model").get("base_licence")
    return Licence(**found) if found else read(run)


def read(run: Run) -> Licence:
    """The licence of the run's base model, by its name or by the card in its folder."""
    model = run.settings.model
    if model.is_tiny:
        return OURS
    if re.search(r"(^|/)(internlm|Shanghai_AI_Laboratory)/internlm2-", model.path or model.id):
        return INTERNLM2
    return read_card(folder(run))


def read_card(place: Path) -> Licence:
    """The licence that the card in a model's folder names; an unknown one without a card."""
    import yaml

    try:
        text = (place / "README.md").read_text(encoding="utf-8-sig", errors="replace")
        found = re.match(r"\s*---[^\S\n]*\n(.*?)\n---[^\S\n]*(\n|$)", text, re.DOTALL)
        card = yaml.safe_load(found.group(1)) if found else {}
    except (OSError, yaml.YAMLError):
        return Licence()
    if not isinstance(card, dict):
        return Licence()
    values = {name: card.get(name) for name in Licence._fields[:3]}
    if isinstance(values["license"], list):
        values["license"] = ", ".join(map(str, values["license"]))
    return Licence(**{name: " ".join(str(value).split()) for name, value in values.items() if value})
