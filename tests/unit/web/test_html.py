"""Texts of others are shown as they are."""


def test_what_is_said_is_shown_as_it_is():
    from recipe.web import html as pieces

    line = pieces.turn("<b>![x](http://evil.example/x.png)", [pieces.answer_box("Base", "a\n\n# b\u202e<script>")])
    assert "\n" not in line
    assert "<script>" not in line
    assert "<b>!" not in line
    assert pieces.button_label("[a](b) *c* $") == r"\[a\](b) \*c\* \$"
    assert "a&#10;&#10;# b\ufffd&lt;script&gt;" in line


def test_each_visitor_has_a_language():
    from recipe.core import translation
    from recipe.web import html as pieces

    for language, label in (("en", "You asked"), ("zh-CN,zh;q=0.9", "提问")):
        with translation.use(language):
            assert f"<b>{label}</b>" in pieces.turn("q", [])
