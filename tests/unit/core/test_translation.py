"""Messages in the user's language, with a small catalogue of the test's own."""

import gettext
import io
import sys
import threading
import time

import pytest
from babel.messages.catalog import Catalog

from recipe.core import translation
from recipe.core.translation import _, english, language, listed, mark, ngettext, sentences, stored, use
from recipe.locale import catalogue

MESSAGES = {
    ", ": "、",
    "better": "更好",
    "base model": "底座模型",
    "its header cannot be read": "无法读取文件头",
    "The file {file} is damaged: {error}.": "文件 {file} 已损坏：{error}。",
    "{file}, row {row}: the question is empty.": "{file} 第 {row} 行：问题为空。",
    "{verdict}: loss {loss:+.4f}, {share:.1%} of {n:,} tokens": "{verdict}：{loss:+.4f}，{n:,} 个 token 的 {share:.1%}",
    "Train again.": "重新训练。",
    "Lower train.lr. Or use {dtype}.": "降低 train.lr。或用 {dtype}。",
    "Give {{name}} as {word!r}, as in {word!r}.": "把 {{name}} 写成 {word!r}，如 {word!r}。",
    "{a}, {b}": "{b}、{a}",  # too little of its own to be known again
    "a lone { brace": "孤立的 { 括号",
    ("{n:,} row", "{n:,} rows"): ("{n:,} 行",),
}


@pytest.fixture(autouse=True)
def no_language(monkeypatch):
    for name in ("RECIPE_LANG", "LC_ALL", "LC_MESSAGES", "LANG", "LANGUAGE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def chinese(monkeypatch, tmp_path):
    """Chinese with the messages above, in a catalogue compiled as the real one is."""
    made = Catalog(locale="zh_CN", charset="utf-8")
    for message, text in MESSAGES.items():
        made.add(message, text)
    place = tmp_path / "zh_CN" / "LC_MESSAGES"
    place.mkdir(parents=True)
    (place / "recipe.mo").write_bytes(catalogue.mo(made))
    yield from _with_folder(monkeypatch, tmp_path)


@pytest.fixture
def no_catalogue(monkeypatch, tmp_path):
    yield from _with_folder(monkeypatch, tmp_path / "absent")


def _with_folder(monkeypatch, folder):
    caches = (translation._catalogue, translation._templates, translation._retold)
    monkeypatch.setattr(translation, "FOLDER", folder)
    for cache in caches:
        cache.cache_clear()
    with use("zh"):
        yield
    for cache in caches:
        cache.cache_clear()


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, "en"),
        ({"LANG": "zh_CN.UTF-8"}, "zh_CN"),
        ({"LANG": "de_DE.UTF-8"}, "en"),
        ({"LANG": "zh_CN.UTF-8", "LC_MESSAGES": "en_US.UTF-8"}, "en"),
        ({"LANG": "en_US", "LC_MESSAGES": "zh_CN"}, "zh_CN"),
        ({"LC_MESSAGES": "zh_CN", "LC_ALL": "C"}, "en"),
        ({"LC_ALL": "C", "RECIPE_LANG": "zh"}, "zh_CN"),
        ({"LC_ALL": "zh_CN.UTF-8", "RECIPE_LANG": "en"}, "en"),
        ({"LC_ALL": "zh_CN.UTF-8", "RECIPE_LANG": "fr"}, "en"),
        ({"LC_ALL": "", "RECIPE_LANG": "", "LANG": "zh_CN"}, "zh_CN"),  # empty is not set
    ],
)
def test_the_environment_decides_in_order(monkeypatch, environment, expected):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert language() == expected


@pytest.mark.parametrize("name", ["zh", "ZH", "zh_CN", "zh-CN", "zh_TW.UTF-8", "zh-Hans", "zh_SG@pinyin", "zh.GBK"])
def test_every_chinese_is_the_one_that_is_there(name):
    assert translation.known(name) == "zh_CN"


@pytest.mark.parametrize("name", ["", "C", "POSIX", "en", "zha", "zhuang", "cn", "Chinese", "ii_CN"])
def test_what_is_unknown_is_english(name):
    assert translation.known(name) == "en"


def test_a_change_of_the_environment_counts_at_once(monkeypatch):
    assert language() == "en"
    monkeypatch.setenv("RECIPE_LANG", "zh")
    assert language() == "zh_CN"


def test_messages(chinese):
    assert _("better") == "更好"
    assert _("{file}, row {row}: the question is empty.", file="a.xlsx", row=3) == "a.xlsx 第 3 行：问题为空。"
    assert _("a lone { brace") == "孤立的 { 括号"
    assert _("not in the catalogue, {word}", word="x") == "not in the catalogue, x"
    assert _("") == ""  # for gettext that is the catalogue's header
    assert _(mark("base model")) == "底座模型"
    with english():
        assert _("better") == "better"
        assert _("Give {{name}} as {word!r}, as in {word!r}.", word="x") == "Give {name} as 'x', as in 'x'."
    assert _("Give {{name}} as {word!r}, as in {word!r}.", word="x") == "把 {name} 写成 'x'，如 'x'。"


def test_values_may_hold_braces_and_any_name(chinese):
    said = _("The file {file} is damaged: {error}.", file="{x}", error="{0} {")
    assert said == "文件 {x} 已损坏：{0} {。"
    assert _("{message} {text}", message="a", text="b") == "a b"


def test_plurals(chinese):
    assert [ngettext("{n:,} row", "{n:,} rows", n) for n in (0, 1, 2000)] == ["0 行", "1 行", "2,000 行"]
    with english():
        assert [ngettext("{n:,} row", "{n:,} rows", n) for n in (0, 1, 2000)] == ["0 rows", "1 row", "2,000 rows"]
        assert ngettext("{n} row in {file}", "{n} rows in {file}", 1, file="a") == "1 row in a"


def test_enumerations_and_sentences(chinese):
    assert listed(["a", 1, None]) == "a、1、None"
    assert listed([]) == ""
    assert sentences("问题为空。", "", "重新训练。") == "问题为空。重新训练。"
    assert sentences("运行：", "just plan") == "运行：just plan"
    assert sentences("（见上文）", "重新训练。") == "（见上文）重新训练。"
    with english():
        assert listed(["a", 1]) == "a, 1"
        assert sentences("It is empty.", " ", "Train again. ") == "It is empty. Train again."


@pytest.mark.parametrize(
    ("message", "values"),
    [
        ("better", {}),
        ("a lone { brace", {}),
        ("{file}, row {row}: the question is empty.", {"file": "my, own.xlsx", "row": 3}),
        ("{file}, row {row}: the question is empty.", {"file": "{row} {} }{", "row": "{file}"}),
        ("Give {{name}} as {word!r}, as in {word!r}.", {"word": "it's"}),
        ("Lower train.lr. Or use {dtype}.", {"dtype": "bf16"}),
    ],
)
def test_finished_texts_are_what_the_message_would_have_been(chinese, message, values):
    with english():
        finished = _(message, **values)
    assert finished != _(message, **values) == stored(finished)
    with english():
        assert stored(finished) == finished


def test_numbers_stay_as_they_were_formatted(chinese):
    values = {"loss": -0.25, "share": 0.125, "n": 12345}
    with english():
        finished = _("{verdict}: loss {loss:+.4f}, {share:.1%} of {n:,} tokens", verdict="better", **values)
    assert stored(finished) == "更好：-0.2500，12,345 个 token 的 12.5%"


def test_finished_texts_with_messages_as_values(chinese):
    with english():
        inner = _("The file {file} is damaged: {error}.", file="b", error=_("its header cannot be read"))
        finished = _("The file {file} is damaged: {error}.", file="a", error=inner)
    assert stored(finished) == "文件 a 已损坏：文件 b 已损坏：无法读取文件头。。"


def test_finished_plurals(chinese):
    with english():
        finished = [ngettext("{n:,} row", "{n:,} rows", n) for n in (1, 2000)]
    assert list(map(stored, finished)) == ["1 行", "2,000 行"]


def test_finished_sentences_and_lines(chinese):
    empty = "a, row 3: the question is empty."
    damaged = "The file a is damaged: its header cannot be read."
    assert stored(f"{empty} Train again.") == "a 第 3 行：问题为空。重新训练。"
    assert stored(f"{damaged} {damaged}") == "文件 a 已损坏：无法读取文件头。文件 a 已损坏：无法读取文件头。"
    assert stored(f"{empty}\n{empty}") == "a 第 3 行：问题为空。\na 第 3 行：问题为空。"
    assert stored(f"Who knows.\n\n{damaged}\n") == "Who knows.\n\n文件 a 已损坏：无法读取文件头。\n"
    assert stored("\n".join([empty] * 3000)).count("问题为空") == 3000
    assert stored(f"Lower train.lr. Or use bf16. {empty}") == "降低 train.lr。或用 bf16。a 第 3 行：问题为空。"
    assert stored("Unknown is this. Train again.") == "Unknown is this. 重新训练。"
    foreign = "The file a is damaged: [Errno 5] Bad. Very bad."
    assert stored(foreign) == "文件 a 已损坏：[Errno 5] Bad. Very bad。"


@pytest.mark.parametrize("text", ["", "unknown", "文件 a 已损坏。", "{", "{file}", "a, b", "GB"])
def test_what_no_message_made_stays(chinese, text):
    assert stored(text) == text


def test_long_texts_are_compared_in_no_time(chinese):
    began = time.monotonic()
    for text in ("a" * 50_000, "The file , row : is damaged. " * 200):
        assert stored(text) == text
    assert time.monotonic() - began < 5


def test_without_a_catalogue_all_is_english(no_catalogue):
    assert language() == "zh_CN"
    assert _("{file} is empty.", file="a") == "a is empty."
    assert ngettext("{n} row", "{n} rows", 1) == "1 row"
    assert listed("ab") == "a, b"
    assert stored("The file a is damaged: b.") == "The file a is damaged: b."


def test_blocks_nest_and_end(monkeypatch):
    with use("zh"):
        with english():
            assert language() == "en"
        assert language() == "zh_CN"
        with pytest.raises(KeyboardInterrupt), use("en"):
            raise KeyboardInterrupt
        assert language() == "zh_CN"
    assert language() == "en"


def test_a_block_is_its_threads_own(chinese):
    found = []
    barrier = threading.Barrier(2)

    def ask(name):
        with use(name):
            barrier.wait()
            found.append((name, _("better")))
            barrier.wait()

    threads = [threading.Thread(target=ask, args=(name,)) for name in ("en", "zh")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == [("en", "better"), ("zh", "更好")]
    thread = threading.Thread(target=lambda: found.append(language()))
    thread.start()
    thread.join()
    assert found[-1] == "en"  # the environment's: this thread's block is not the other's


@pytest.mark.parametrize(
    ("encoding", "name", "expected"),
    [
        ("ascii", "en", b"? row"),
        ("ascii", "zh", "→ 行".encode()),
        ("latin-1", "zh", "→ 行".encode()),
        ("gb18030", "zh", "→ 行".encode("gb18030")),
        ("utf-8", "zh", "→ 行".encode()),
        ("utf-8", "en", "→ row".encode()),
    ],
)
def test_streams_lose_signs_but_not_chinese(monkeypatch, encoding, name, expected):
    streams = [io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _name in ("stdout", "stderr")]
    monkeypatch.setattr(sys, "stdout", streams[0])
    monkeypatch.setattr(sys, "stderr", streams[1])
    with use(name):
        translation.prepare_streams()
    for stream in streams:
        stream.write("→ 行" if name == "zh" else "→ row")
        stream.flush()
    monkeypatch.undo()
    assert [stream.buffer.getvalue() for stream in streams] == [expected, expected]


def test_streams_that_cannot_be_prepared_stay(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    monkeypatch.setattr(sys, "stderr", None)
    with use("zh"):
        translation.prepare_streams()


def test_a_shell_asks_by_the_modules_name(chinese, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["translation", "base model"])
    translation.main()
    assert capsys.readouterr().out == "底座模型\n"


def test_the_real_catalogue_is_read():
    assert isinstance(translation._catalogue("zh_CN"), gettext.GNUTranslations)
    assert type(translation._catalogue("en")) is gettext.NullTranslations
