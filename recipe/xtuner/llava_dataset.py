"""XTuner's dataset of image-text pairs, read from our dataset.jsonl; the rendered config names this class.

XTuner's own class reads one JSON array and encodes it in 32 processes, however few rows there are; the rest is
inherited. Only the trainer's process and the plan import this module.
"""

from typing import Any

import datasets
from torch.utils.data import Dataset as Base
from xtuner.dataset import LLaVADataset
from xtuner.dataset.huggingface import process_hf_dataset
from xtuner.registry import BUILDER


class Dataset(LLaVADataset):
    """`data_path`: dataset.jsonl, whose lines hold `conversation` and `image`, a path below `image_folder`."""

    def __init__(
        self, data_path: str, image_folder: str, image_processor: Any, pad_image_to_square: bool = False, **more: Any
    ) -> None:
        Base.__init__(self)
        self.text_data = encoded_rows(data_path, **more)
        self.image_folder = image_folder
        self.image_processor = BUILDER.build(image_processor)
        self.pad_image_to_square = pad_image_to_square


def encoded_rows(data_path: str, **more: Any) -> Any:
    """The rows encoded by XTuner, each with XTuner's placeholder for an image."""
    return process_hf_dataset(
        dataset=datasets.load_dataset("json", data_files={"train": data_path}), split="train",
        remove_unused_columns=False, pack_to_max_length=False, with_image_token=True, **more,
    )  # fmt: skip
