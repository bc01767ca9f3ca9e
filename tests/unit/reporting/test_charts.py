"""Fonts and long curves."""

import warnings

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
