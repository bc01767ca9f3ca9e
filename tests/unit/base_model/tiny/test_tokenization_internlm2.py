"""The tiny model's tokenizer, and the real one."""

import copy
import pickle
from pathlib import Path

import openpyxl
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AutoTokenizer,
)

from recipe.base_model.tiny import tokenizer_from_model

MARKERS = ["<|plugin|>", "<|interpreter|>", "<|action_end|>", "<|action_start|>", "<|im_end|>", "<|im_start|>"]


SYSTEM = (
    "你是一个专业的，经验丰富的有心理学背景的职场教练。你总是根据有职场焦虑的病人的问题提供准确、全面和详细的答案。"
)


@pytest.fixture(scope="module")
def tokenizer(base):
    return tokenizer_from_model(base / "tokenizer.model")


@pytest.fixture(scope="module")
def real(real_tokenizer):
    return tokenizer_from_model(real_tokenizer)


# The tokenizer.


def check_special_tokens(tokenizer):
    size = tokenizer.vocab_size
    assert len(tokenizer) == size == len(tokenizer.get_vocab())
    assert sorted(tokenizer.get_vocab().values()) == list(range(size))
    assert tokenizer.convert_tokens_to_ids(["<unk>", "<s>", "</s>"]) == [0, 1, 2]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    assert tokenizer.convert_tokens_to_ids(MARKERS) == list(range(size - 6, size))
    assert tokenizer.additional_special_tokens == MARKERS[::-1]
    for i, name in enumerate(MARKERS, size - 6):
        assert tokenizer.encode(name, add_special_tokens=False) == [i]
        assert tokenizer.encode(f"好{name} 好", add_special_tokens=False).count(i) == 1
        assert tokenizer.decode([i]) == name
        assert tokenizer.decode([1, i, 2], skip_special_tokens=True) == ""


def test_special_tokens(base, tokenizer):
    check_special_tokens(tokenizer)
    check_special_tokens(AutoTokenizer.from_pretrained(str(base), trust_remote_code=True))


def test_real_special_tokens(real):
    check_special_tokens(real)
    assert real.convert_tokens_to_ids("<|im_end|>") == 92542


def test_begins_and_never_ends(tokenizer):
    plain = tokenizer.encode("工作", add_special_tokens=False)
    assert tokenizer.encode("工作") == [1, *plain]
    assert tokenizer("工作", "学校")["input_ids"] == [1, *plain, *tokenizer.encode("学校", add_special_tokens=False)]
    batch = tokenizer(["工作", "工作工作学校"], padding=True, return_special_tokens_mask=True)
    assert [sum(mask) for mask in batch["attention_mask"]] == [
        1 + len(tokenizer.tokenize(text)) for text in ("工作", "工作工作学校")
    ]
    assert batch["special_tokens_mask"][1][:2] == [1, 0]


def test_chat_template(base):
    tokenizer = AutoTokenizer.from_pretrained(str(base), trust_remote_code=True)
    talk = [{"role": "system", "content": "教练"}, {"role": "user", "content": "累"}]
    assert tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=True) == (
        "<s><|im_start|>system\n教练<|im_end|>\n<|im_start|>user\n累<|im_end|>\n<|im_start|>assistant\n"
    )


def test_trained_like_the_real_one(base, real_tokenizer):
    """The same normaliser: identity, no space put in front, none taken away; the same kinds of pieces."""
    real, ours = (
        sentencepiece.SentencePieceProcessor(model_file=str(path))
        for path in (real_tokenizer, base / "tokenizer.model")
    )
    for text in (" 好", "  好  的 ", "ＡＢＣ", "\t\n\n ", "a１2", "e\u0301"):
        assert ours.decode(ours.encode(text)) == real.decode(real.encode(text)) == text
    for pieces in (real, ours):
        size = pieces.get_piece_size()
        assert [pieces.id_to_piece(i) for i in (0, 1, 2, 3, 258)] == ["<unk>", "<s>", "</s>", "<0x00>", "<0xFF>"]
        last = [pieces.id_to_piece(i) for i in range(size - 6, size)]
        assert all(piece.startswith("[UNUSED_TOKEN_") for piece in last)
        assert [pieces.encode(piece) for piece in last] == [[i] for i in range(size - 6, size)]


# U+2581 is sentencepiece's own sign for a space, U+0000 ends its input, surrogates are no text.
plain_text = st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="\u2581\0")).filter(
    lambda text: not any(name in text for name in ("<", "[UNUSED_TOKEN_"))
)


awkward = ["工作", " .", " n't", " ", "  ", "\n", "\r\n", "😀", "👩\u200d⚕️", "a", "，", "1", "　", "<", "<0x41>"]


texts = plain_text | st.lists(st.sampled_from(awkward)).map("".join)


def check_round_trip(tokenizer, text):
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode(tokenizer.encode(text), skip_special_tokens=True) == text
    marked = f"<|im_start|>user\n{text}<|im_end|>"
    assert tokenizer.decode(tokenizer.encode(marked, add_special_tokens=False)) == marked
    assert tokenizer.decode(tokenizer.encode(marked), skip_special_tokens=True) == "user\n" + text


@settings(deadline=None, max_examples=150)
@given(text=texts)
def test_round_trip(tokenizer, text):
    check_round_trip(tokenizer, text)


@settings(deadline=None, max_examples=100)
@given(text=texts)
def test_real_round_trip(real, text):
    check_round_trip(real, text)


def test_tokenizer_copies_pickles_and_saves(tokenizer, tmp_path):
    text = "工作 <|im_end|>\n😀"
    for other in (copy.deepcopy(tokenizer), pickle.loads(pickle.dumps(tokenizer))):
        assert other.encode(text) == tokenizer.encode(text)
    plain = Path(tokenizer.save_vocabulary(str(tmp_path))[0])
    assert plain.read_bytes() == Path(tokenizer.vocab_file).read_bytes()
    assert tokenizer_from_model(plain).save_vocabulary(str(tmp_path)) == (str(plain),)
    orphan = tokenizer_from_model(plain)
    plain.unlink()
    assert Path(orphan.save_vocabulary(str(tmp_path))[0]).read_bytes() == Path(tokenizer.vocab_file).read_bytes()


def test_tokenizer_refuses(tmp_path):
    with pytest.raises(OSError, match="Not found"):
        tokenizer_from_model(tmp_path / "missing.model")
    (tmp_path / "bad.model").write_bytes(b"nonsense")
    with pytest.raises(RuntimeError):
        tokenizer_from_model(tmp_path / "bad.model")


@pytest.mark.parametrize(("system", "total"), [(SYSTEM, 27714), ("", 19104)], ids=["system", "bare"])
def test_tutorials_workbook_in_tokens(system, total, real, real_workbook):
    """The published count, through XTuner's own template and encoding."""
    from mmengine import ConfigDict
    from xtuner.dataset.map_fns import template_map_fn
    from xtuner.dataset.utils import encode_fn
    from xtuner.utils import PROMPT_TEMPLATE

    template = ConfigDict(PROMPT_TEMPLATE.internlm2_chat)
    rows = list(openpyxl.load_workbook(str(real_workbook), read_only=True).active.values)
    question, answer = rows[0].index("q"), rows[0].index("a")
    lengths = []
    for row in rows[1:]:
        turn = {"system": system, "input": row[question], "output": row[answer]}
        example = template_map_fn({"conversation": [turn]}, template)
        lengths.append(len(encode_fn(example, real, 2048)["input_ids"]))
    assert (len(lengths), sum(lengths)) == (246, total)
    if system:
        assert max(lengths) == 164
