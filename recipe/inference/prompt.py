"""The prompt that a conversation becomes, by XTuner's template."""

from typing import Any

from recipe.core.run import Run
from recipe.xtuner import config

PLAIN = {"SYSTEM": "", "INSTRUCTION": "{input}"}


def template(run: Run) -> Any:
    """The recipe's chat template, XTuner's own; for texts learnt as they are, one that adds nothing."""
    from mmengine.config import ConfigDict

    # By the settings, not by the config that lies in the folder: that may have been made of others since.
    return config.template(config.effective(run.settings)) or ConfigDict(PLAIN)


def separator(template: Any, of: Any) -> str:
    """What stands between an answer and the next question in training: the template's suffix where that ends an answer,
    else the end of the tokenizer of `of`, and its start again.
    """
    suffix, sep = template.get("SUFFIX", ""), template.get("SEP", "")
    if template.get("SUFFIX_AS_EOS", False):
        return f"{suffix}{sep}"
    return f"{suffix}{of.tokenizer.eos_token or ''}{sep}{of.tokenizer.bos_token or ''}"
