"""The documents: both languages in step, links and named files that exist, commands and settings that the command line
accepts, errors that the source still prints.

What `HERE` names is run on the finished demo run, with `demo` instead of a recipe of the 7B model.
"""

import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Iterator, List, NamedTuple, Tuple

import pytest

from recipe.cli import grammar
from recipe.cli.main import COMMANDS, cli
from recipe.core import distributed, settings
from recipe.export.targets import TARGETS
from recipe.stages import reproduce
from support.command import ROOT, runner
from support.notebooks import NOTEBOOKS, shell

ENGLISH = sorted([ROOT / "README.md", ROOT / "data/README.md", *ROOT.glob("docs/en/*.md")])


CHINESE = {path: path.parent.parent / "zh" / path.name for path in ROOT.glob("docs/en/*.md")}


PAIRS = [(path, CHINESE.get(path, path.with_name(path.stem + ".zh-CN.md"))) for path in ENGLISH]


DOCUMENTS = [path for pair in PAIRS for path in pair]


NAMES = [path.relative_to(ROOT).as_posix() for path in ENGLISH]


FENCE = re.compile(r"(?ms)^```(\w*)\n(.*?)^```$")


JUST = re.compile(r"(?:^|[ |&] *)(?:\./justw|just)(?: |$)")


def text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def prose(path: Path) -> str:
    """A document without its fenced blocks."""
    return FENCE.sub("", text(path))


def spans(path: Path) -> List[str]:
    """What stands in backquotes within a line or over its break."""
    return [" ".join(span.split()) for span in re.findall(r"(?<!`)`([^`]+)`(?!`)", prose(path))]


def bare(line: str) -> str:
    """A command without the remark behind it."""
    return re.sub(r"\s+#\s.*$", "", line).strip()


def fenced(path: Path) -> List[str]:
    """The commands in blocks, those that are set in by four spaces as well: no diagrams, no trees, nothing printed."""
    blocks = "".join(
        block for language, block in FENCE.findall(text(path)) if language not in ("mermaid", "text")
    ).splitlines()
    blocks += re.findall(r"(?m)^    (\./justw .*)$", prose(path))
    return [bare(line) for line in blocks if line.strip() and not line.startswith("better: ")]


def typed(path: Path) -> List[str]:
    """Every command of a document."""
    return fenced(path) + [span for span in spans(path) if JUST.search(span) and not errors(path)]


def errors(path: Path) -> bool:
    return path.name.startswith("troubleshooting")


# ---- two languages


@pytest.mark.parametrize(("english", "chinese"), PAIRS, ids=NAMES)
def test_both_languages_say_the_same(english, chinese):
    """Headings (levels, numbers), commands, code in the text, tables, links and every figure."""
    one, other = text(english), text(chinese)
    shapes = [re.findall(r"(?m)^(#+)(?: (\d+\.))?", FENCE.sub("", page)) for page in (one, other)]
    assert shapes[0] == shapes[1]
    assert fenced(english) == fenced(chinese)
    for page, language in ((one, "English"), (other, "中文")):
        assert f"**{language}**" in page.splitlines()[0]
    rows = [
        [line.count("|") for line in re.sub(r"`[^`]*`", "", page).splitlines() if line.startswith("|")]
        for page in (one, other)
    ]
    assert rows[0] == rows[1], "tables differ"
    for what in (r"\d+(?:[.,]\d+)+", r"\d+e-\d+", r"\d{4}-\d\d-\d\d", r"\b[0-9a-f]{40,}\b"):
        found = [sorted(re.findall(what, re.sub(r"[，。、；：（）]", " ", page))) for page in (one, other)]
        assert found[0] == found[1], what
    code = [sorted(set(spans(path))) for path in (english, chinese)]
    assert code[0] == code[1]
    below = [page.split("\n", 1)[1].replace(".zh-CN", "").replace("/zh/", "/en/") for page in (one, other)]
    links = [sorted(set(re.findall(r"\]\(([^)#]+)", page))) for page in below]
    assert links[0] == links[1]


def slug(heading: str) -> str:
    """GitHub's anchor of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_and_anchors_lead_somewhere(path):
    for target, anchor in re.findall(r"\]\((?!http|\.\./\.\./actions/)([^)#]*)(?:#([^)]+))?\)", text(path)):
        place = path.parent / target if target else path
        assert place.exists(), target
        if anchor:
            assert anchor in map(slug, re.findall(r"(?m)^#+ (.+)$", text(place))), (target, anchor)


@pytest.mark.parametrize(
    "path", [*DOCUMENTS, ROOT / "CONTRIBUTING.md"], ids=lambda path: path.relative_to(ROOT).as_posix()
)
def test_files_of_the_project_that_are_named_exist(path):
    for name in spans(path):
        if re.match(r"(recipe|docker|tests|benchmarks)/[\w./*-]+$", name):
            assert list(ROOT.glob(name)), name


def test_the_architecture_page_has_every_package():
    packages = {place.parent.name for place in ROOT.glob("recipe/*/__init__.py")}
    for language in ("en", "zh"):
        page = text(ROOT / "docs" / language / "architecture.md")
        assert set(re.findall(r"(?m)^\| `(\w+)` \|", page)) >= packages


def test_every_guide_is_named_in_the_readme_and_leads_back():
    for language, readme in (("en", ROOT / "README.md"), ("zh", ROOT / "README.zh-CN.md")):
        guides = list((ROOT / "docs" / language).glob("*.md"))
        assert guides
        for guide in guides:
            assert f"(docs/{language}/{guide.name})" in text(readme), guide.name
            assert f"(../../{readme.name})" in text(guide), guide.name


# ---- commands


class Command(NamedTuple):
    """`name`: the justfile's recipe; `piped`: whether something is sent into it."""

    name: str
    words: Tuple[str, ...]
    piped: bool


def commands(line: str) -> Iterator[Command]:
    """What a line starts by just; words in [brackets] may be left out, TARGET stands for every target."""
    for part in re.split(r" && ", line):
        source, _, last = part.rpartition(" | ")
        found = [word for word in shlex.split(last) if not re.match(r"[A-Z_0-9]+=", word)]
        if not found or found[0] not in ("just", "./justw"):
            continue
        words = tuple(word for word in found[2:] if not re.match(r"\[.*\]$", word))
        name = found[1] if len(found) > 1 else ""
        for target in TARGETS if "TARGET" in words else ("",):
            yield Command(name, tuple(target if word == "TARGET" else word for word in words), bool(source))


def documented() -> List[Command]:
    lines = [line for path in DOCUMENTS for line in typed(path)] + [line for path in NOTEBOOKS for line in shell(path)]
    found = {command: None for line in lines for command in commands(line)}
    assert len(found) > 40
    return list(found)


def kind(command: Command) -> str:
    """A command's name with what makes it do something else."""
    more = [word for word in command.words if word.startswith("--")]
    if command.name == "image":
        more = list(command.words[:1])
    if command.name == "chat":
        named = [word.partition("=")[0] for word in command.words if word.startswith(("model=", "image="))]
        more = ["|"] if command.piped else named
    return " ".join([command.name, *more])


HERE = {"data", "data-report", "preview", "plan", "report", "compare", "diff", "model", "train", "merge", "eval",
        "merge --dry-run", "presets", "new --from", "config", "doctor", "fuzz", "bench-data", ""}  # fmt: skip


OF_NO_RECIPE = {"presets", "new"}


@pytest.fixture(scope="module")
def justfile():
    done = subprocess.run(
        [shutil.which("just"), "--dump", "--dump-format", "json"], cwd=str(ROOT), capture_output=True, text=True
    )
    return json.loads(done.stdout)["recipes"]


def test_every_command_exists(justfile):
    assert not {command.name for command in documented()} - {"", *justfile}


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """A folder as the clone is, with a workbook and a recipe file of one's own."""
    place = tmp_path_factory.mktemp("desk")
    (place / "data").mkdir()
    for name in ("workplace.xlsx", "mine.xlsx"):
        shutil.copy(str(ROOT / "data/workplace.xlsx"), str(place / "data" / name))
    (place / "models").symlink_to(ROOT / "models")
    (place / "recipe").symlink_to(ROOT / "recipe")
    shutil.copy(str(ROOT / "recipe/coach.toml"), str(place / "mine.toml"))
    return place


def own_recipe(desk, command):
    """Lay mine.toml down, unless the command names a data file: both would have the same run."""
    if "data/mine.xlsx" in command.words:
        (desk / "mine.toml").unlink(missing_ok=True)
    else:
        shutil.copy(str(ROOT / "recipe/coach.toml"), str(desk / "mine.toml"))


@pytest.fixture
def at_desk(desk, monkeypatch):
    monkeypatch.chdir(desk)
    return desk


def test_every_stages_words_are_read_as_meant(at_desk):
    """By the command line's own readers, overrides checked as before a run, also for the 7B model's recipes."""
    seen = 0
    for command in documented():
        if command.name not in COMMANDS or command.name in OF_NO_RECIPE:
            continue
        own_recipe(at_desk, command)
        checked = grammar.check(command.name, command.words, at_desk)
        if checked.values is None or command.name == "report":
            continue
        overrides = checked.words.settings
        if command.name == "reproduce":
            overrides = reproduce.overrides(overrides)
        recipe_name, found = settings.load(checked.recipe, overrides)
        distributed.update_per_rank(
            found, found.train.batch_size or 1, found.train.accumulative_counts or 1
        )  # gpus= and nodes=
        assert recipe_name in ("coach", "demo", "tiny", "tutorial", "mine")
        seen += 1
    assert seen > 25


FILES = (".jsonl", ".json", ".html")


def test_keys_and_variables_are_known():
    """Overrides that the text names by themselves, and environment variables, are those that something reads."""
    keys = settings.known_keys()
    keys += [f"data.columns.{name}" for name in settings.Columns.model_fields]
    files = [ROOT / "justw", *ROOT.glob("docker/**/*"), *ROOT.glob("recipe/**/*.py")]
    sources = "".join(text(path) for path in files if path.is_file() and path.suffix not in (".lock", ".pyc"))
    others = {"UV_CACHE_DIR", "REAL_DATA", "NCCL_DEBUG", "CUDA_DEVICE_ORDER", "CUDA_VISIBLE_DEVICES", "SYSTEM"}
    for path in ENGLISH:
        for span in spans(path):
            for key in re.findall(
                r"(?:^| )((?:data|train|lora|adapter|merge|model|eval|export|plan)\.[\w.]+)(?==|$)", span
            ):
                assert key in keys or key.endswith(FILES), (path.name, span)
            for name in re.findall(r"^([A-Z][A-Z_0-9]{3,})=", span):
                assert name in sources or name in others, (path.name, span)


def on_demo(command: Command) -> List[str]:
    """The words of a command with the demo instead of a recipe of the 7B model."""
    named = ("coach", "tutorial", "demo", "tiny", "mine.toml", "data/mine.xlsx")
    words = [word for word in command.words if word not in named]
    words = [word for word in words if not word.startswith(("base=", "model.source=", "model.id=", "model.revision="))]
    if "data/mine.xlsx" in command.words and command.name in ("data", "data-report", "preview", "plan", "config"):
        words.append("data.files=data/mine.xlsx")
    if command.name in ("train", "merge", "eval", "model"):  # of the finished run: nothing is trained anew
        words = [word for word in words if "=" not in word]
    if "gpus=2" in words:
        words.append("train.batch_size=2")  # coach's: the demo's one sequence cannot be shared
    named = [] if command.name in ("compare", "diff") else ["tiny"]
    return [command.name, *named, *("tiny" if word == "RUN" else word for word in words)]


@pytest.fixture
def restored(demo):
    """What commands with other settings make in the shared run's folder; the files of the run come back."""
    files = [*demo[1].iterdir(), *demo[1].glob("report/*")]
    files = {path: path.read_bytes() for path in files if path.is_file()}
    yield demo
    for path, content in files.items():
        path.write_bytes(content)


def test_stages_of_the_documents_run(restored, desk, monkeypatch, tmp_path):
    """In this process, one after the other: on the finished demo's run, where nothing is trained again; with data of
    one's own in another place.
    """
    # A script under docker/ would replace this process.
    stages = {name for name, module in COMMANDS.items() if module != "scripts"} - OF_NO_RECIPE
    asked = {tuple(on_demo(one)) for one in documented() if kind(one) in HERE and one.name in stages}
    assert len(asked) > 12
    for words in sorted(asked):
        own = any(word.startswith("data.") for word in words)
        monkeypatch.chdir(desk if own else ROOT)
        output = "output" if own else str(restored[1].parent)
        if "gpus=2" in words:  # another plan, which is not to be that of the demo's run
            output = str(tmp_path)
        result = runner().invoke(cli, [*words, "--output", output])
        assert result.exit_code == 0, (words, result.stdout, result.stderr, result.exception)
        assert result.stdout.strip(), words
        for stage in re.findall(r"(?m)^(train|adapter|merge) .*", result.stdout if "--dry-run" not in words else ""):
            assert re.search(rf"(?m)^{stage} .*unchanged$", result.stdout), result.stdout


def test_what_is_asked_of_no_recipe_runs(at_desk):
    made = ""
    for command in documented():
        if command.name in OF_NO_RECIPE:
            (at_desk / "mine.toml").unlink(missing_ok=True)
            result = runner().invoke(cli, [command.name, *command.words])
            assert result.exit_code == 0, result.stderr
            assert result.stdout.strip()
            made += text(at_desk / "mine.toml") if command.name == "new" else ""
    assert "mixtral" in made
    assert "The recipe coach with data of your own" in made
    shutil.copy(str(ROOT / "recipe/coach.toml"), str(at_desk / "mine.toml"))


def test_the_rest_of_the_documents_commands_run(demo):
    """`doctor`, the manual, and the two development commands that can be made small."""
    just = shutil.which("just")
    for command in documented():
        if command.name == "doctor" or not command.name:
            done = subprocess.run(
                [just, *filter(None, [command.name]), *command.words], cwd=str(ROOT), capture_output=True, text=True
            )
            assert done.returncode in ((0,) if not command.name else (0, 3)), done.stderr
            assert ("[start]" if not command.name else "Recipe coach can") in done.stdout
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for words, said in (
        (["benchmarks/fuzz.py", "1", "20261125"], "none failed"),
        (["benchmarks/bench_data.py", "50", "1"], "equal"),
    ):
        done = subprocess.run([sys.executable, *words], cwd=str(ROOT), env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert said in done.stdout


OTHERS = {"git", "cd", "export", "source", "unset", "shutdown"}


def test_other_programs_commands(demo):
    """What the shell does alone is run; sha256sum checks the merged model."""
    seen = set()
    for path in ENGLISH:
        for line in fenced(path):
            first = shlex.split(line)[0]
            if JUST.search(line):
                continue
            seen.add(first)
            assert first in OTHERS, line
            if first in ("export", "unset"):
                stub = "pip() { echo https://mirror/simple; }; "
                said = subprocess.run(
                    ["bash", "-euc", f"{stub}{line}; env"], capture_output=True, text=True, check=True
                )
                name = re.match(r"\w+ (\w+)", line)[1]
                assert (f"{name}=" in said.stdout) == (first == "export")
            elif first == "source":
                assert f"`{line}`" in text(ROOT / "docker/doctor/machine.py")
    assert seen == OTHERS
    assert "`sha256sum -c SHA256SUMS`" in text(ROOT / "docs/en/merged-model.md")
    subprocess.run(["sha256sum", "--quiet", "-c", "SHA256SUMS"], cwd=str(demo[1] / "merged"), check=True)


# ---- error texts


def filled(node: ast.AST) -> str:
    """A text of the source with … where something is put in."""
    if isinstance(node, ast.JoinedStr):
        return "".join(map(filled, node.values))
    if isinstance(node, ast.FormattedValue):
        call = node.value
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "command_line":
            return " ".join(["just", *map(filled, call.args)])
    return str(node.value) if isinstance(node, ast.Constant) else "…"


def literals() -> List[str]:
    """Every text in the source, with … where something is put in."""
    found = []
    for path in [*ROOT.glob("recipe/**/*.py"), *ROOT.glob("docker/doctor/*.py")]:
        for node in ast.walk(ast.parse(text(path))):
            if isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str)):
                found.append(filled(node))
    for path in [ROOT / "justw", *ROOT.glob("docker/**/*")]:
        if path.is_file() and path.suffix not in (".lock", ".in", ".txt", ".py", ".pyc"):
            joined = re.sub(r'" \\\n *"', " ", text(path))  # said in two words
            found += [re.sub(r"\$\{[^}]*\}|\$\([^()]*(?:\([^()]*\))?[^()]*\)|\$\w+", "…", line).replace("\\`", "`")
                      for line in joined.splitlines()]  # fmt: skip
    return found


def is_said(quoted: str, sources: List[str]) -> bool:
    """Whether one of the source's texts holds `quoted`, with anything at its …"""
    pattern = re.compile(".*".join(map(re.escape, re.split(r"\s*…\s*", quoted))), re.S)
    return any(pattern.search(source) for source in sources)


OTHER_PROGRAMS = {r"bash\r: No such file or directory"}


def test_the_source_still_says_every_quoted_error():
    quoted = re.findall(r"(?m)^\| `([^`]+)` \|", text(ROOT / "docs/en/troubleshooting.md"))
    assert len(quoted) == 30
    assert quoted == re.findall(r"(?m)^\| `([^`]+)` \|", text(ROOT / "docs/zh/troubleshooting.md"))
    assert len(set(quoted)) == len(quoted)
    sources = literals()
    assert not [one for one in quoted if one not in OTHER_PROGRAMS and not is_said(one, sources)]
    assert not is_said("There is no … that anybody would miss", sources)


# ---- figures


def table(path: Path, first: str) -> List[List[str]]:
    """The rows of the table whose header begins with `first`."""
    rows = [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in text(path).splitlines() if "|" in line
    ]
    start = next(number for number, row in enumerate(rows) if row and row[0] == first)
    width = len(rows[start])
    found = []
    for row in rows[start + 2 :]:
        if len(row) != width:
            break
        found.append(row)
    return found


def test_the_settings_table_has_coachs_values():
    coach, checked = settings.load("coach")[1].model_dump(), 0
    for key, told, _ in table(ROOT / "docs/en/settings.md", "key"):
        part, _, last = key.split("`")[1].partition(".")
        found = coach[part][last]
        if told.startswith("`"):
            value = told.strip("`")
            assert (value if isinstance(found, str) else float(value)) == found, key
            checked += 1
    assert checked > 8
