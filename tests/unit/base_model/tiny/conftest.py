"""A tiny InternLM2: its folder, its tokenizer, the loaded model."""

import pytest
import torch

from support.tiny_model import TEXTS, make


@pytest.fixture(scope="module", autouse=True)
def few_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny") / "internlm2-chat-7b"
    make(folder, TEXTS)
    return folder
