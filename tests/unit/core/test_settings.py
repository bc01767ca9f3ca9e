"""Every mistake in a recipe names its place and what is allowed."""

import pytest

from recipe.core import settings, settings_errors
from recipe.core.errors import InputWrong

GOOD = """\
base = "internlm2_chat_7b_qlora_oasst1_e3"

[data]
# a comment
files = [
  "data/workplace.xlsx",
]

[train]
lr = 2e-4
max_length = 512
"""


def test_overrides_are_typed(tmp_path):
    _, recipe = settings.load(
        "coach", ["train.max_epochs=5", "train.lr=1e-4", "model.path=/some/folder", 'data.files=["a.xlsx"]']
    )
    assert (recipe.train.max_epochs, recipe.train.lr) == (5, 1e-4)
    assert (recipe.model.path, recipe.data.files) == ("/some/folder", ["a.xlsx"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("lr = 2e-4", "lr = 0.05"), ["line 10", "train.lr", "less than or equal to 0.01", "0.05"]),
        (("lr = 2e-4", 'lr = "fast"'), ["line 10", "train.lr", "valid number"]),
        (("max_length = 512", "max_length = -1"), ["line 11", "train.max_length", "greater than or equal to 32"]),
        (("max_length = 512", "max_lenght = 512"), ["line 11", "unknown key", "did you mean train.max_length"]),
        (("max_length = 512", "max_length = 512.5"), ["line 11", "train.max_length", "valid integer"]),
        (("files = [", "files = ["), []),
        (('  "data/workplace.xlsx",', "  3,"), ["line 5", "data.files", "valid string"]),
        (('base = "internlm2_chat_7b_qlora_oasst1_e3"', ""), ["base: is missing"]),
        (("[train]", "[train"), ["not valid TOML", "line 9"]),
        (("[train]", "[trian]"), ["line 9", "trian", "unknown key"]),
        (("lr = 2e-4", 'evaluation_freq = 1.5\nmethod="qlora"\ndtype = "fp32"'), ["line 10", "train.evaluation_freq"]),
        (("lr = 2e-4", 'dtype = "fp32"'), ["fp32", "lora"]),
    ],
)
def test_mistakes_name_their_place(tmp_path, change, words):
    path = tmp_path / "mine.toml"
    path.write_text(GOOD.replace(*change), encoding="utf-8")
    if not words:
        assert settings.load(str(path))[0] == "mine"
        return
    with pytest.raises(InputWrong) as caught:
        settings.load(str(path))
    for word in [*words, "mine.toml"]:
        assert word in str(caught.value)


def test_every_mistake_of_a_file_is_told_at_once(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(GOOD.replace("2e-4", "7").replace("512", "'long'"), encoding="utf-8")
    with pytest.raises(InputWrong) as caught:
        settings.load(str(path))
    assert "line 10" in str(caught.value)
    assert "line 11" in str(caught.value)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.lr=0.05", ["override train.lr=0.05", "less than or equal to 0.01"]),
        ("train.max_epoch=5", ["unknown key", "did you mean train.max_epochs"]),
        ("nothing.at_all=1", ["override nothing.at_all=1", "unknown key"]),
        ("base.x=1", ["base is a value"]),
        ("9x=1", ["write it as key=value"]),
        ("train.lr=nan", ["finite number"]),
        ("plan.price_per_hour=inf", ["finite number"]),
        ('data.system="见 C:\\教练"', ["not valid TOML"]),
        ("data.files=[a.xlsx]", ["not valid TOML", "data.files='[\"data/mine.xlsx\"]'"]),
        ("train.lr=1\ntrain.seed=2", ["one value"]),
        (f"train.seed={'9' * 5000}", ["train.seed"]),
        (f"data.files={'[' * 3000}", ["not valid TOML"]),
        ("model.source=ftp", ["'modelscope', 'huggingface', 'smollm2' or 'tiny'"]),
    ],
)
def test_mistakes_in_overrides(override, words):
    with pytest.raises(InputWrong) as caught:
        settings.load("coach", [override])
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(("name", "word"), [("coahc", "Did you mean coach"), ("no/such.toml", "no recipe file")])
def test_unknown_recipes(name, word):
    with pytest.raises(InputWrong, match=word):
        settings.load(name)


def test_a_recipe_file_that_is_no_text(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputWrong, match="UTF-8"):
        settings.load(str(path))


def test_a_windows_file_with_a_byte_order_mark(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_bytes(b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n").encode())
    assert settings.load(str(path))[0] == "mine"


def test_one_workbook_needs_no_list():
    assert settings.load("coach", ["data.files=data/mine.xlsx"])[1].data.files == ["data/mine.xlsx"]


def test_thousands_of_mistakes_are_told_in_time(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(GOOD + "".join(f"unknown_{i} = 1\n" for i in range(2000)), encoding="utf-8")
    with pytest.raises(InputWrong) as caught:
        settings.load(str(path))
    assert len(str(caught.value).splitlines()) <= settings_errors.MAX_FAULTS + 1
