"""Templates in two languages."""

import re

from recipe.core import translation
from recipe.inference import evaluate
from recipe.reporting import pages, verdict


def test_values_of_messages_are_escaped_and_tags_of_messages_are_not(tmp_path, monkeypatch):
    for language, line in (("en", "Data report: <b>&x"), ("zh", "数据报告：<b>&x")):
        with translation.use(language):
            page = pages.render(
                "data-report.html", name="<b>&x", rows=[], histograms=[], findings=[], examples=[], looked_for="l"
            )
        assert f"<title>{line.replace('&', '&amp;').replace('<', '&lt;').replace('>', '&gt;')}</title>" in page
        assert f'<html lang="{"zh-CN" if language == "zh" else "en"}">' in page


def test_the_verdict_of_an_evaluation_is_found_again():
    figures = {
        "verdict": "better", "conversations": 16,
        "difference": {"loss": -0.5, "interval": [-0.6, -0.4], "lower_in": 15},
        "models": {"base": {"loss": 2.9}, "tuned": {"loss": 2.4}},
    }  # fmt: skip
    with translation.english():
        summary = evaluate.summary(figures).replace("better: ", "", 1)
    pattern = re.sub(r"\\{\w+\\}", "(.*)", re.escape(verdict.MEASURED))
    assert re.fullmatch(pattern, summary)
    with translation.use("zh"):
        assert "16 段对话中有 15 段更低" in translation.stored(summary)
