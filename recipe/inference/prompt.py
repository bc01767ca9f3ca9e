"""Chat templates: the recipe's, and what separates turns."""

from typing import Any

from recipe.core.run import Run
from recipe.xtuner import config

PLAIN = {"SYSTEM": "", "INSTRUCTION": "{input}"}


def template(run: Run) -> Any:
    """The recipe's chat template, from XTuner; an empty one for recipes that train on plain text."""
    from mmengine.config import ConfigDict

    # From the settings: the config in the folder may have been rendered from others since.
    return config.template(config.effective(run.settings)) or ConfigDict(PLAIN)


def separator(template: Any, of: Any) -> str:
    """What separates an answer from the next question in training: the template's suffix, or end and start token.

    `of` is anything with a `tokenizer`.
    """
    suffix, sep = template.get("SUFFIX", ""), template.get("SEP", "")
    if template.get("SUFFIX_AS_EOS", False):
        return f"{suffix}{sep}"
    return f"{suffix}{of.tokenizer.eos_token or ''}{sep}{of.tokenizer.bos_token or ''}"
