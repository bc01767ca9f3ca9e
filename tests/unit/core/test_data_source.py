"""A data file named in place of a recipe: its run's name, whose folder that is, the system prompt."""

import io
import json
from pathlib import Path

import pytest

from recipe.core import data_source, settings
from recipe.core.errors import InputWrong
from recipe.core.recipe_files import find_recipe, find_run_folder, recipes


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A folder as the clone is, with data files that lie in several places."""
    for name in (
        "data/mine.xlsx",
        "data/我的 数据.csv",
        "data/more/mine.xlsx",
        "data/sheets/a.xlsx",
        "coach.xlsx",
        "a",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("word", "data", "name"),
    [
        ("data/mine.xlsx", "data/mine.xlsx", "mine"),
        ("./data//sheets/../mine.xlsx", "data/mine.xlsx", "mine"),
        ("data/我的 数据.csv", "data/我的 数据.csv", "我的 数据"),
        ("data/sheets/", "data/sheets", "sheets"),
        ("data/sheets", "data/sheets", "sheets"),
    ],
)
def test_a_run_is_named_after_its_data(clone, word, data, name):
    found = find_recipe(word)
    assert (found.data, found.name, found.path.stem) == (data, name, "coach")
    absolute = find_recipe(str(clone / word), default="demo")
    assert (absolute.data, absolute.name, absolute.path.stem) == (data, name, "demo")


def test_data_elsewhere_keep_their_whole_path(clone, tmp_path_factory):
    place = tmp_path_factory.mktemp("elsewhere") / "a=b.xlsx"
    place.touch()
    assert find_recipe(str(place)) == (find_recipe("coach").path, "a=b", str(place))


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("data/none.xlsx", "no data file data/none.xlsx. data holds: mine.xlsx, 我的 数据.csv"),
        ("none/none.xlsx", "no folder none"),
        ("none.xlsx", "no data file none.xlsx. The clone holds: coach.xlsx"),
        ("coach.xlsx", "the recipe coach's"),
        ("data", "The folder of data is named data/."),
        ("a", "There is no recipe 'a'"),
        (".", "There is no recipe '.'"),
        ("./", "no name"),
        ("data/none.toml", "no recipe file data/none.toml"),
        ("data/.mine.xlsx", "not beginning with a dot"),
        ("data/~$mine.xlsx", "Excel's lock file"),
        ("data/a\tb.xlsx", "control characters"),
        ("data/\udcff.xlsx", "UTF-8"),
        ("x" * 400 + ".xlsx", "no data file"),
    ],
)
def test_what_names_no_data_is_one_clear_error(clone, word, said):
    with pytest.raises(InputWrong) as caught:
        find_recipe(word)
    assert said in str(caught.value)


def test_a_run_folder_is_no_data(clone):
    (clone / "output/coach").mkdir(parents=True)
    (clone / "output/coach/run.json").touch()
    with pytest.raises(InputWrong, match="a run's folder"):
        find_recipe("output/coach")
    assert find_run_folder("output/coach", clone, clone / "output") == Path("output/coach")


def test_a_recipe_file_of_the_same_name(clone):
    """The file's run would lie in the same folder. A recipe with the same data is the same source."""
    (clone / "mine.toml").write_text('base = "x"\n[data]\nfiles = ["data/other.xlsx"]\n', encoding="utf-8")
    with pytest.raises(InputWrong, match=r"mine\.toml's"):
        find_recipe("data/mine.xlsx")
    assert find_recipe("mine").data == find_recipe("mine.toml").data == ""
    data_source.remember(clone / "output/mine", {"data": "data/mine.xlsx"})
    with pytest.raises(InputWrong, match=r"output/mine holds the run of data/mine\.xlsx"):
        settings.load("mine.toml")
    for same in ("data/mine.xlsx", "./data/mine.xlsx", str(clone / "data/mine.xlsx")):
        assert settings.load("mine.toml", [f"data.files={same}"])[1].data.files == [same]
    with pytest.raises(InputWrong, match=r"output/mine holds the run of data/mine\.xlsx"):
        settings.load("mine.toml", ['data.files=["data/mine.xlsx", "data/other.xlsx"]'])


def test_a_run_folder_belongs_to_one_source(clone):
    output = clone / "output"
    data_source.remember(output / "mine", {"data": "data/mine.xlsx"})
    assert settings.load("data/mine.xlsx")[0] == "mine"
    assert settings.load(str(clone / "data/mine.xlsx"))[0] == "mine"
    for load in (settings.load, lambda word: find_run_folder(word, clone, output)):
        with pytest.raises(InputWrong, match=r"holds the run of data/mine\.xlsx, not of data/more/mine\.xlsx"):
            load("data/more/mine.xlsx")
    assert settings.load("data/more/mine.xlsx", output=clone / "other")[0] == "mine"
    (output / "sheets").mkdir()
    (output / "sheets/run.json").touch()
    with pytest.raises(InputWrong, match="the run of a recipe"):
        settings.load("data/sheets")


def test_a_model_is_not_replaced_by_another_recipes(clone):
    folder = clone / "output/mine"
    data_source.check_trainer(folder, clone, "demo")
    data_source.remember(folder, {"data": "data/mine.xlsx", "recipe": "coach"})
    data_source.check_trainer(folder, clone, "coach")
    with pytest.raises(InputWrong, match=r"output/mine holds what coach trained .* --output"):
        data_source.check_trainer(folder, clone, "demo")


def test_a_run_is_found_by_name_and_when_its_data_are_gone(clone):
    data_source.remember(clone / "output/mine", {"data": "data/mine.xlsx"})
    assert find_recipe("mine") == find_recipe("data/mine.xlsx")
    (clone / "data/mine.xlsx").unlink()
    assert find_recipe("data/mine.xlsx").name == "mine"
    assert find_run_folder("data/mine.xlsx", clone, clone / "output") == clone / "output/mine"


def test_the_recipe_without_what_is_the_tutorials(clone):
    found = settings.load("data/mine.xlsx", ["train.max_epochs=5"])[1]
    coach = settings.load("coach")[1]
    assert (found.data.files, found.data.url, found.data.sha256, found.data.system) == (["data/mine.xlsx"], "", "", "")
    assert found.train.evaluation_inputs == data_source.QUESTIONS
    same = {"evaluation_inputs", "max_epochs"}
    assert found.train.model_dump(exclude=same) == coach.train.model_dump(exclude=same)
    assert found.data.eval_share == coach.data.eval_share
    with pytest.raises(InputWrong, match="name the data once"):
        settings.load("data/mine.xlsx", ["data.files=data/other.xlsx"])
    with pytest.raises(InputWrong, match=r"just merge data/mine\.xlsx"):
        find_recipe("data/mine.xlsx", default="tutorial")


def test_the_system_prompt_is_remembered(clone):
    data_source.remember(clone / "output/mine", {"data": "data/mine.xlsx", "system": "你是教练。"})
    assert settings.load("data/mine.xlsx")[1].data.system == "你是教练。"
    assert settings.load("data/mine.xlsx", ["data.system="])[1].data.system == ""
    data_source.remember(clone / "output/mine", {"data": "data/mine.xlsx"})
    assert settings.load("data/mine.xlsx")[1].data.system == "你是教练。"


@pytest.mark.parametrize("text", ["[]", "{", '{"data": 3}', '{"system": "x"}', "null"])
def test_a_damaged_record_remembers_nothing(tmp_path, text):
    (tmp_path / data_source.RECORD).write_text(text, encoding="utf-8")
    assert data_source.read(tmp_path) == {}


@pytest.mark.parametrize("name", recipes())
@pytest.mark.parametrize("text", ["你是……", "你是", "You are ...", "You are…", "you are", " 你是...... "])
def test_a_placeholder_is_no_system_prompt(name, text):
    with pytest.raises(InputWrong, match=r'placeholder.*system="'):
        settings.load(name, [f"data.system={json.dumps(text)}"])
    assert settings.load(name, ["data.system=You are a coach."])[1].data.system == "You are a coach."


class Terminal(io.StringIO):
    def isatty(self):
        return True


def asked(monkeypatch, typed, folder, given=()):
    said = Terminal()
    monkeypatch.setattr("sys.stdin", Terminal(typed))
    monkeypatch.setattr("sys.stderr", said)
    data_source.ask_system(folder, "data/mine.xlsx", list(given))
    return said.getvalue()


def test_it_asks_once(tmp_path, monkeypatch):
    said = asked(monkeypatch, "你是……\n 你是教练。 \n", tmp_path)
    assert "data/mine.xlsx" in said
    assert "placeholder" in said
    assert data_source.read(tmp_path) == {"data": "data/mine.xlsx", "system": "你是教练。"}
    assert asked(monkeypatch, "", tmp_path) == ""


def test_it_asks_for_nothing_that_is_known_and_nobody_who_is_not_there(tmp_path, monkeypatch):
    assert asked(monkeypatch, "", tmp_path / "given", ["data.system="]) == ""
    asked(monkeypatch, "\n", tmp_path / "none")
    assert data_source.read(tmp_path / "none")["system"] == ""
    with pytest.raises(KeyboardInterrupt):
        asked(monkeypatch, "", tmp_path / "left")
    assert not (tmp_path / "left").exists()
    monkeypatch.undo()
    monkeypatch.setattr("sys.stdin", io.StringIO("x\n"))
    data_source.ask_system(tmp_path / "pipe", "data/mine.xlsx", [])
    assert not (tmp_path / "pipe").exists()
