"""Fonts and long curves."""

import warnings

from recipe.core import translation
from recipe.reporting import charts


def test_names_that_no_font_here_can_draw_leave_no_boxes(monkeypatch):
    monkeypatch.setattr(charts, "_chinese_fonts", list)
    lines = [charts.Line("我的", {1: 2.0, 2: 1.0}), charts.Line("tiny", {1: 1.0, 2: 2.0}, "", "second")]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib warns of signs that its fonts lack
        (picture,) = charts.draw([charts.Chart("loss", "Loss", lines)])
    assert ">A</text>" in picture.svg
    assert ">tiny</text>" in picture.svg


def test_long_curves_keep_their_peaks():
    values = {n: float(n % 97) for n in range(1, 40_001)}
    values[12_345] = 1e6
    at = charts.downsample(values)
    assert len(at) <= 1500
    assert 12_345 in at
    assert min(values[n] for n in at) == 0
    assert charts.downsample({3: 1.0, 1: 2.0}) == [1, 3]


def test_in_chinese_without_a_font_the_picture_is_english_and_the_page_is_not(monkeypatch):
    monkeypatch.setattr(charts, "_chinese_fonts", list)
    lines = [charts.Line("actual", {1: 2.0, 2: 1.0}), charts.Line("mean over 10", {1: 1.0, 2: 2.0}, "", "second")]
    chart = charts.Chart("loss", "Training loss", lines, level=("configured", 1.0), note="")
    (english,) = charts.draw([chart])
    with warnings.catch_warnings(), translation.use("zh"):
        warnings.simplefilter("error")
        (picture,) = charts.draw([chart])
    assert picture.png == english.png
    assert picture.title == "训练损失"
    for text in (">迭代<", ">实际<", ">10 次平均<", ">设定值<", 'aria-label="训练损失"'):
        assert text in picture.svg


def test_in_chinese_with_a_font_the_picture_is_chinese(monkeypatch):
    drawn = []
    monkeypatch.setattr(charts, "has_glyphs", lambda text, fonts: True)
    monkeypatch.setattr(charts, "_draw", lambda chart: drawn.append(translation.language()))
    with translation.use("zh"):
        charts.draw([charts.Chart("lr", "Learning rate", [])])
    assert drawn == ["zh_CN"]


def test_names_of_runs_are_not_translated():
    chart = charts.Chart("loss", "Training loss", [charts.Line("planned", {1: 2.0}), charts.Line("b", {1: 1.0})],
                         of_runs=True)  # fmt: skip
    with translation.use("zh"):
        (picture,) = charts.draw([chart])
    assert ">planned<" in picture.svg
