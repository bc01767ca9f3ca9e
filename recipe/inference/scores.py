"""Scores answers against references (sacrebleu, rouge-chinese) and detects repetition.

The packages are installed beside the environment (docker/locks/more.in); docker/runtime/host puts them on the path.
"""

import re
import warnings
from typing import Any, Dict, Sequence, Tuple

from recipe.core.errors import HostLacks
from recipe.core.translation import _

# 2 to 40 characters repeated four times, or one character ten times.
LOOP = re.compile(r"(.{2,40}?)\1{3}|(.)\2{9}", re.DOTALL)


def is_repetitive(answer: str) -> bool:
    """Whether an answer is stuck in a loop."""
    return LOOP.search(answer) is not None


def packages() -> Tuple[Any, Any, Any, Any]:
    """The modules and classes that `overlap` needs. Raises HostLacks if they are missing."""
    try:
        with warnings.catch_warnings():  # newer Pythons warn about rouge_chinese's regular expressions
            warnings.simplefilter("ignore")
            import rjieba
            from rouge_chinese import Rouge
            from sacrebleu.metrics import BLEU, CHRF
    except ImportError as error:
        raise HostLacks(
            _(
                "The scores need {package}, which docker/runtime/host provides. Run this through just or ./justw.",
                package=error.name,
            )
        )
    return rjieba, Rouge, BLEU, CHRF


def overlap(answers: Sequence[str], references: Sequence[str]) -> Dict[str, float]:
    """Scores from 0 to 100: bleu4 (corpus; sacrebleu's zh tokenizer), rouge_l (mean F1 over jieba's words) and chrf
    (sacrebleu's chrF2). Raises HostLacks if the packages are missing.
    """
    rjieba, Rouge, BLEU, CHRF = packages()
    rouge = Rouge(metrics=["rouge-l"])
    shared = []
    for answer, reference in zip(answers, references):
        hypothesis, expected = (" ".join(rjieba.cut(" ".join(text.split()))) for text in (answer, reference))
        is_empty = not hypothesis.strip() or not expected.strip()  # rouge_chinese raises for these
        shared.append(0.0 if is_empty else rouge.get_scores(hypothesis, expected)[0]["rouge-l"]["f"])
    return {
        "bleu4": BLEU(tokenize="zh").corpus_score(list(answers), [list(references)]).score,
        "rouge_l": 100 * sum(shared) / len(shared),
        "chrf": CHRF().corpus_score(list(answers), [list(references)]).score,
    }
