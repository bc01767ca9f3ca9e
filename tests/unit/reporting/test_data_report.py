"""The data report and the preview: what they find, and that they show what the trainer gets."""

import json
import re
from array import array

import pytest

from recipe.reporting import data_report, data_survey
from support.command import recipe, refused


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    """A report over data with one mistake of each kind: (its finished process, its page, its run folder)."""
    folder = tmp_path_factory.mktemp("report")
    rows = [
        *[("压力大怎么办？", "先休息一下再说。")] * 2, ("压力大怎么办？", "把事情写下来看看。"),
        ("能给我电话吗？", "打我的13812345678就好。"), ("邮箱呢？", "写到 coach@example.com 来。"),
        ("身份证？", "号码是 11010519491231002X 这个。"), ("不是身份证？", "号码是 110105194912310021 这个。"),
        ("短吗？", "嗯。"), ("长吗？", "长" * 2001), ("How are you?", "I am fine, thank you."),
        ("怎么翻译？", "You could ask a friend."),
        ("请问这段网页代码<script>alert(1)</script>能运行吗？", "不要运行它们啊。"),
    ]  # fmt: skip
    path = folder / "x.jsonl"
    lines = [json.dumps({"q": question, "a": answer}, ensure_ascii=False) for question, answer in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    done = recipe("data-report", "tiny", f'data.files=["{path}"]', "--output", folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return done, (folder / "tiny" / "data-report.html").read_text(encoding="utf-8"), folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "what", "example"),
    [
        (1, "duplicate conversation (it counts twice", "line 2: same as line 1"),
        (1, "question with different answers", "line 1: 压力大怎么办？ (also line 2, 3)"),
        (1, "answer of fewer than 5 characters", "line 8: 嗯。"),
        (1, "answer of more than 2,000 characters", "line 9: 长长"),
        (3, "likely personal data", "line 4: 13812345678"),
        (1, "question and answer in different languages", "line 11: 怎么翻译？ → You could"),
        (2, "answers in Latin letters, unlike the others", "line 10: I am fine"),
    ],
)
def test_likely_mistakes_are_counted_with_examples(reported, count, what, example):
    done, page, _ = reported
    assert f"{count} {what}" in done.stdout
    assert example in done.stdout
    assert f"<p>{count} {what}" in page


def test_examples_of_personal_data(reported):
    done, _, _ = reported
    assert "line 5: coach@example.com" in done.stdout
    assert "line 6: 11010519491231002X" in done.stdout
    assert "line 7: 1101" not in done.stdout  # its last digit is no checksum


def test_the_page_shows_ten_conversations_and_runs_nothing(reported):
    _, page, _ = reported
    assert page.count("<h3>") == 10
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)" in page
    marked = re.findall(r"<mark>(.*?)</mark>", page, flags=re.S)[1:]
    assert all(text.endswith("&lt;|im_end|&gt;") or "长长" in text for text in marked)


@pytest.mark.slow
def test_preview_shows_what_the_trainer_gets(reported):
    _, _, folder = reported
    path = folder / "x.jsonl"
    done = recipe("preview", "tiny", "8", f'data.files=["{path}"]', "--output", folder)
    assert done.returncode == 0, done.stderr
    expected = (
        "<s><|im_start|>system\n你是一位有心理学背景的职场教练。<|im_end|>\n<|im_start|>user\n短吗？<|im_end|>\n"
        "<|im_start|>assistant\n⟦嗯。<|im_end|>⟧\n"
    )
    assert expected in done.stdout
    cut = recipe("preview", "tiny", "9", f'data.files=["{path}"]', "--output", folder)
    assert ", truncated at max_length 256" in cut.stdout
    assert "<|im_end|>⟧" not in cut.stdout  # the end is what the model would not learn
    refused(recipe("preview", "tiny", "13", f'data.files=["{path}"]', "--output", folder), 2, "has 1 to 12")
    refused(recipe("preview", "tiny", "one", "--output", folder), 2, "'one' is not a conversation number")


@pytest.mark.slow
def test_counts_of_what_was_dropped_and_changed(workbook, tmp_path):
    path = workbook(s=[["q", "a", "备注"], ["甲", 52, "x"], ["乙", None, ""], ["丙", "一\r\n二", ""], ["甲", 52, ""]])
    more = ["data.skip_blank=true", "data.dedupe=true"]
    done = recipe("data-report", "tiny", f'data.files=["{path}"]', *more, "--output", tmp_path)
    assert done.returncode == 0, done.stderr
    text = " ".join(done.stdout.split())
    for words in (
        "dropped 1 row with empty cells, 1 duplicate changed",
        "2 numbers and dates read as Excel",
        "not used: 备注",
    ):
        assert words in text, text


def test_histogram_ranges_hold_everything_once():
    values = array("L", [3, 7, 7, 12, 40, 41, 5000])
    rows = data_report.histogram(values)
    assert sum(count for _, count in rows) == 7
    assert rows[-1][0].endswith("–5000")


def test_equal_lines_are_grouped():
    assert data_survey._group_equal(array("q", [5, 7, 5, 9, 7, 5])) == [[1, 3, 6], [2, 5]]
    assert data_survey._group_equal(array("q", [1])) == []


@pytest.mark.slow
def test_what_is_known_of_the_tutorials_workbook(real_workbook, real_tokenizer, tmp_path):
    """Golden: 246 rows, 27,714 tokens, 3 equal rows, 5 questions with two answers each, answers of 39 to 183 signs."""
    words = [f'data.files=["{real_workbook}"]', f"model.tokenizer={real_tokenizer}", "--output", tmp_path]
    done = recipe("data-report", "tutorial", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    for words in (
        "27,714, 12,967 of them with loss",
        "3 duplicate conversations",
        "5 questions with different answers",
    ):
        assert words in done.stdout
    assert "likely mistakes: 2" in done.stdout
    assert "–183" in done.stdout
