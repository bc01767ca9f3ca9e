"""What an answer has in common with the one in the data, by sacrebleu and rouge-chinese; and whether it repeats itself.

Those packages lie beside the environment (docker/more.in): docker/host puts them on the path.
"""

import re
import warnings
from typing import Dict, Sequence

from recipe.core.errors import HostLacks

# A piece of 2 to 40 characters four times in a row, or one character ten times.
LOOP = re.compile(r"(.{2,40}?)\1{3}|(.)\2{9}", re.DOTALL)


def is_loop(answer: str) -> bool:
    """Whether an answer repeats a piece of itself without end, or nearly."""
    return LOOP.search(answer) is not None


def overlap(answers: Sequence[str], references: Sequence[str]) -> Dict[str, float]:
    """Scores from 0 to 100: bleu4 of all (characters for Chinese: sacrebleu's zh), rouge_l (mean F1 over jieba's words)
    and chrf (sacrebleu's chrF2).

    Raises HostLacks if the packages are not on the path.
    """
    try:
        with warnings.catch_warnings():  # newer Pythons find fault with rouge_chinese's way of writing patterns
            warnings.simplefilter("ignore")
            import rjieba
            from rouge_chinese import Rouge
            from sacrebleu.metrics import BLEU, CHRF
    except ImportError as error:
        raise HostLacks(f"The scores need {error.name}, which docker/host brings: start this through just or ./justw.")
    rouge = Rouge(metrics=["rouge-l"])
    shared = []
    for answer, reference in zip(answers, references):
        made, wanted = (" ".join(rjieba.cut(" ".join(text.split()))) for text in (answer, reference))
        # It takes no empty text; that has nothing in common with any.
        shared.append(rouge.get_scores(made, wanted)[0]["rouge-l"]["f"] if made.strip() and wanted.strip() else 0.0)
    return {
        "bleu4": BLEU(tokenize="zh").corpus_score(list(answers), [list(references)]).score,
        "rouge_l": 100 * sum(shared) / len(shared),
        "chrf": CHRF().corpus_score(list(answers), [list(references)]).score,
    }
