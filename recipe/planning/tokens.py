"""Counts the tokens of the conversations and packs them, with XTuner's own code."""

import copy
from pathlib import Path
from typing import Any, Dict, List, Sequence

from recipe.xtuner import config


def encoded(
    conversation: List[Dict[str, str]], template: Any, tokenizer: Any, max_length: int, images: bool = False
) -> Dict[str, List[int]]:
    """`input_ids` and `labels` of a conversation, cut at `max_length`.

    Without a `template` the texts are encoded unchanged, as for continued pre-training. With `images` a negative id
    stands for an image.
    """
    from xtuner.dataset.map_fns.template_map_fn import template_map_fn
    from xtuner.dataset.utils import encode_fn

    example = {"conversation": copy.deepcopy(conversation)}
    if template is not None:
        example = template_map_fn(example, template)
    return encode_fn(example, tokenizer, max_length=max_length, with_image_token=images)


def count(
    conversations: Sequence[List[Dict[str, str]]],
    template: Any,
    tokenizer: Any,
    max_length: int,
    images: bool = False,
) -> Dict[str, Any]:
    """Token counts before packing.

    `lengths` and `answers`: each conversation's tokens, and its tokens with loss, before the cut at `max_length`;
    `cut`: the 1-based numbers of conversations that are cut; `masked`: of those without a token with loss after it;
    `answers_cut`: how many answer tokens are cut off.
    """
    lengths, answers, cut, masked, answers_cut = [], [], [], [], 0
    for number, conversation in enumerate(conversations, start=1):
        labels = encoded(conversation, template, tokenizer, 10**9, images)["labels"]
        lengths.append(len(labels))
        answers.append(sum(label >= 0 for label in labels))
        if len(labels) > max_length:
            cut.append(number)
            answers_cut += sum(label >= 0 for label in labels[max_length:])
        if not any(label >= 0 for label in labels[:max_length]):
            masked.append(number)
    return {"lengths": lengths, "answers": answers, "cut": cut, "masked": masked, "answers_cut": answers_cut}


def pack(cfg: Any, dataset: Path, tokenizer: Any, seed: int, images: bool = False) -> Dict[str, int]:
    """The sequences that training will see with this seed: packs (their number), tokens_kept, answer_tokens_kept.

    With `images` nothing is packed, and an image counts as one token.
    """
    import datasets
    import numpy
    from xtuner.dataset.huggingface import process

    arguments = {k: v for k, v in config.dataset(cfg).items() if k not in ("type", "dataset", "tokenizer")}
    # As in the trainer: datasets' shuffle draws its seed from numpy.
    numpy.random.seed(seed)
    datasets.disable_progress_bar()
    try:
        if images:
            from recipe.xtuner.llava_dataset import encoded_rows

            for name in ("data_path", "image_folder", "image_processor", "pad_image_to_square"):
                arguments.pop(name)
            made = encoded_rows(str(dataset), tokenizer=tokenizer, **arguments)
        else:
            rows = datasets.load_dataset("json", data_files={"train": str(dataset)})
            made = process(dataset=rows, tokenizer=tokenizer, **arguments)
    finally:
        datasets.enable_progress_bar()
    kept = sum(made["length"])
    return {
        "packs": len(made),
        "tokens_kept": kept,
        "answer_tokens_kept": sum(label >= 0 for labels in made["labels"] for label in labels),
    }
