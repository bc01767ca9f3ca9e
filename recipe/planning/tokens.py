"""Tokens of the conversations and the packs that XTuner makes of them, by XTuner's own code."""

import copy
from pathlib import Path
from typing import Any, Dict, List, Sequence

from recipe.xtuner import config


def encoded(
    conversation: List[Dict[str, str]], template: Any, tokenizer: Any, max_length: int, pictures: bool = False
) -> Dict[str, List[int]]:
    """`input_ids` and `labels` of a conversation, cut at `max_length`, by XTuner's template_map_fn and encode_fn.

    Without a `template` the texts are encoded as they are, as for continued pre-training. With `pictures` one id, below
    0, stands for an image.
    """
    from xtuner.dataset.map_fns.template_map_fn import template_map_fn
    from xtuner.dataset.utils import encode_fn

    example = {"conversation": copy.deepcopy(conversation)}
    if template is not None:
        example = template_map_fn(example, template)
    return encode_fn(example, tokenizer, max_length=max_length, with_image_token=pictures)


def count(
    conversations: Sequence[List[Dict[str, str]]],
    template: Any,
    tokenizer: Any,
    max_length: int,
    pictures: bool = False,
) -> Dict[str, Any]:
    """Token counts before packing, by XTuner's template_map_fn and encode_fn.

    `lengths` and `answers` hold each conversation's tokens and its tokens that carry loss, both before the
    cut at `max_length`; `cut` the 1-based numbers of conversations that are cut (they lose their end);
    `masked` those that keep no token with loss after the cut; `answers_cut` the answer tokens cut off.
    """
    lengths, answers, cut, masked, answers_cut = [], [], [], [], 0
    for number, conversation in enumerate(conversations, start=1):
        labels = encoded(conversation, template, tokenizer, 10**9, pictures)["labels"]
        lengths.append(len(labels))
        answers.append(sum(label >= 0 for label in labels))
        if len(labels) > max_length:
            cut.append(number)
            answers_cut += sum(label >= 0 for label in labels[max_length:])
        if not any(label >= 0 for label in labels[:max_length]):
            masked.append(number)
    return {"lengths": lengths, "answers": answers, "cut": cut, "masked": masked, "answers_cut": answers_cut}


def pack(cfg: Any, dataset: Path, tokenizer: Any, seed: int, pictures: bool = False) -> Dict[str, int]:
    """Sequences that training will see, through XTuner's own pipeline with training's own seed; with `pictures` one of
    each conversation, in which the image is one token.

    Returns packs (sequences), tokens_kept and answer_tokens_kept.
    """
    import datasets
    import numpy
    from xtuner.dataset.huggingface import process

    arguments = {k: v for k, v in config.dataset(cfg).items() if k not in ("type", "dataset", "tokenizer")}
    # The trainer seeds numpy once, and datasets' shuffle takes its seed from there.
    numpy.random.seed(seed)
    datasets.disable_progress_bar()
    try:
        if pictures:
            from recipe.xtuner.llava_dataset import texts

            for name in ("data_path", "image_folder", "image_processor", "pad_image_to_square"):
                arguments.pop(name)
            made = texts(str(dataset), tokenizer=tokenizer, **arguments)
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
