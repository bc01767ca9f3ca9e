"""What tests of a hub compare: the model's files, their record."""

import json

import pytest

from recipe.base_model.record import RECORD

HUB_ID = "model.id=org/tiny"


AT_HUGGING_FACE = 'model.source="huggingface"'


BOTH = pytest.mark.parametrize("where", [(), (AT_HUGGING_FACE,)], ids=["modelscope", "huggingface"])


def record(place):
    return json.loads((place / RECORD).read_text())


def is_whole(place, files):
    return {p.name: p.read_bytes() for p in place.iterdir() if p.is_file()} == files


def heavy(files):
    return {name for name in files if name.endswith(".safetensors")}
