"""The page's texts."""

from recipe.web import texts
from support.command import ROOT


def test_no_text_is_missing_or_unused():
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "recipe/web").glob("*.py"))
    for key, (english, chinese) in texts.TEXTS.items():
        assert english.count("{}") == chinese.count("{}"), key
        assert sources.count(f'"{key}"') > 1 or key.startswith("title "), key
    assert set(texts.CHARTS) >= {"iteration", "mean over 10"}
