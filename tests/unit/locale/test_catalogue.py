"""The catalogue and the code fit each other; Chinese is written as Chinese is."""

import ast
import re
import string

import pytest
from babel.messages.pofile import read_po

from recipe.core.translation import mark, ngettext, use
from recipe.locale import catalogue

CALLS = ("_", "ngettext", "listed", "stored")  # they ask for the language; mark does not
FILES = sorted(path for pattern in catalogue.PYTHON for path in catalogue.ROOT.glob(pattern))
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
CHINESE = r"[一-鿿]"
# What Chinese sentences may hold although it looks like a fault: each with the texts that may.
EXCEPTIONS = (
    r"\\n",  # a line end in a shell script
    r"https?://[^\s，。；：（）]*",  # addresses
    r"`[^`]*`",  # code
)


def names(path):
    return str(path.relative_to(catalogue.ROOT))


def parsed(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def called(node):
    """The name of translation.py's function that a call calls; "" for other nodes."""
    if not isinstance(node, ast.Call):
        return ""
    name = node.func.id if isinstance(node.func, ast.Name) else ""
    if isinstance(node.func, ast.Attribute) and getattr(node.func.value, "id", "") == "translation":
        name = node.func.attr
    return name if name in (*CALLS, "mark") else ""


def at_import(node):
    """The nodes of a module that are evaluated when it is imported: not the bodies of functions, but their defaults
    and decorators; not what only the module that is started does.
    """
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and getattr(getattr(child.test, "left", None), "id", "") == "__name__":
            continue
        if isinstance(child, FUNCTIONS):
            now = [*child.args.defaults, *filter(None, child.args.kw_defaults), *getattr(child, "decorator_list", ())]
            for one in now:
                yield one
                yield from at_import(one)
        else:
            yield child
            yield from at_import(child)


def imports_translation(tree):
    return any(
        isinstance(node, ast.ImportFrom) and any((one.asname or one.name) == "_" for one in node.names)
        for node in ast.walk(tree)
    )


def bindings(tree):
    """Lines that bind _ other than by the import."""
    for node in ast.walk(tree):
        is_name = isinstance(node, ast.Name) and node.id == "_" and not isinstance(node.ctx, ast.Load)
        is_argument = isinstance(node, ast.arg) and node.arg == "_"
        is_definition = isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.ExceptHandler)) and node.name == "_"
        is_import = isinstance(node, (ast.Import, ast.ImportFrom)) and any(
            one.asname == "_" or (one.name == "_" and getattr(node, "module", "") != "recipe.core.translation")
            for one in node.names
        )
        if is_name or is_argument or is_definition or is_import:
            yield getattr(node, "lineno", 0)


@pytest.mark.parametrize("path", FILES, ids=names)
def test_no_message_is_translated_at_import(path):
    """The language is not known then, and a web page has several."""
    assert [node.lineno for node in at_import(parsed(path)) if called(node) in CALLS] == []


@pytest.mark.parametrize("path", FILES, ids=names)
def test_the_name_of_gettext_is_nothing_else(path):
    tree = parsed(path)
    if imports_translation(tree) and path.name != "translation.py":
        assert list(bindings(tree)) == []


@pytest.mark.parametrize("path", FILES, ids=names)
def test_messages_are_constants(path):
    """Nothing finds a translation for an f-string, nor for a text that was filled in or joined before."""
    found = []
    for node in ast.walk(parsed(path)):
        if called(node) in ("_", "mark", "ngettext") and node.args:
            for text in node.args[: 2 if called(node) == "ngettext" else 1]:
                is_filled = isinstance(text, ast.Call) and getattr(text.func, "attr", "") in ("format", "join")
                if is_filled or isinstance(text, (ast.JoinedStr, ast.BinOp)):
                    found.append(node.lineno)
    assert found == []


@pytest.mark.parametrize("path", FILES, ids=names)
def test_values_are_those_that_the_message_names(path):
    """A value that is missing would end the command with a KeyError, but only where the message is shown."""
    found = []
    for node in ast.walk(parsed(path)):
        name = called(node)
        count = {"_": 1, "ngettext": 3}.get(name, 0)
        if not count or len(node.args) != count or any(keyword.arg is None for keyword in node.keywords):
            continue
        texts = [one.value for one in node.args[: 2 if count == 3 else 1] if isinstance(one, ast.Constant)]
        given = {keyword.arg for keyword in node.keywords}
        named = set().union(*map(named_values, texts)) if given or count == 3 else given
        if texts and named - {"n"} != given - {"n"}:
            found.append(f"line {node.lineno}: {sorted(named)} are named, {sorted(given)} given")
    assert found == []


def named_values(text):
    """Names in a message, without what follows them."""
    return {re.split(r"[.\[]", name)[0] for _, name, _, _ in string.Formatter().parse(text) if name is not None}


def test_the_catalogue_is_complete_and_compiled():
    assert catalogue.check() == []


def test_nothing_is_fuzzy_or_obsolete():
    with catalogue.PO.open("rb") as stream:
        found = read_po(stream, locale="zh_CN")
    assert [one.id for one in found if one.fuzzy and one.id] == []
    assert list(found.obsolete) == []


def entries():
    """(English, Chinese) of every translated message; a plural's many, which Chinese has alone."""
    for one in catalogue.load():
        english, chinese = (text if isinstance(text, str) else text[-1] for text in (one.id, one.string))
        if english and chinese:
            yield english, chinese


def wrong(is_wrong):
    return [chinese for english, chinese in entries() if is_wrong(english, chinese)]


def plain(text):
    """The text without code, addresses and values, each of which may be anything."""
    for pattern in (*EXCEPTIONS, r"\{[^{}]*\}", r"%[sd]"):
        text = re.sub(pattern, "\ufffc", text)
    return text


def test_values_are_those_of_the_english_text():
    assert wrong(lambda english, chinese: catalogue.fields(english) != catalogue.fields(chinese)) == []
    # A shell script's values have no names, only their order.
    assert wrong(lambda english, chinese: english.count("%s") != chinese.count("%s")) == []


def formats(text):
    """(value, conversion, format) of a message."""
    try:
        parsed_text = list(string.Formatter().parse(text))
    except ValueError:
        return set()
    return {(name, conversion, spec) for _literal, name, spec, conversion in parsed_text if name is not None}


def test_numbers_are_formatted_as_in_english():
    assert wrong(lambda english, chinese: formats(english) != formats(chinese)) == []


def test_texts_begin_and_end_as_in_english():
    """With the same blanks and line ends, which are part of what is printed."""

    def edges(text):
        return re.match(r"\s*", text).group(), re.search(r"\s*$", text).group()

    assert wrong(lambda english, chinese: english not in ALONE and edges(english) != edges(chinese)) == []


ALONE = (", ", "; ", ": ", " or ")  # separators: 、 ； ： have no blank


def test_chinese_has_chinese_punctuation():
    """No half-width mark after a Chinese character, nor brackets around Chinese; no blank beside a full-width mark."""
    marks = rf"{CHINESE}[,.:;?!]|{CHINESE}\(|\({CHINESE}|{CHINESE}\)"
    assert wrong(lambda _english, chinese: re.search(marks, plain(chinese))) == []
    assert (
        wrong(
            lambda _english, chinese: re.search(
                r"[，。；：！？、（）] (?! )|(?<! ) [，。；：！？、（）]", plain(chinese)
            )
        )
        == []
    )


def test_a_blank_stands_between_chinese_and_latin():
    sides = rf"{CHINESE}[A-Za-z0-9]|[A-Za-z0-9]{CHINESE}"
    assert wrong(lambda _english, chinese: re.search(sides, plain(chinese))) == []


def test_no_blank_stands_between_chinese_characters():
    assert wrong(lambda _english, chinese: re.search(rf"{CHINESE} {CHINESE}", plain(chinese))) == []


def test_nobody_is_addressed_formally():
    assert wrong(lambda _english, chinese: "您" in chinese) == []


def test_plurals_are_found(monkeypatch):
    """One of the code's own, by the compiled catalogue."""
    plural = next((one for one in catalogue.load() if one.pluralizable and one.string[0]), None)
    assert plural is not None
    one, many = plural.id
    values = {name: 7 for name in named_values(many) - {"n"}}
    with use("zh"):
        assert ngettext(one, many, 2, **values) == plural.string[0].format(n=2, **values)
    assert mark(one) == one
