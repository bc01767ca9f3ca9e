"""The report of a run, two runs compared: every figure is the manifest's, nothing is loaded, at every stage."""

import dataclasses
import html
import html.parser
import json
import os
import random
import re
import shlex
import shutil
import time

import pytest
from filelock import FileLock

from recipe.core import hashing, host, settings, translation
from recipe.inference import evaluate
from recipe.reporting import charts, compare, format, pages, provenance, report, run_view
from recipe.reporting.sections import TIME_BREAKDOWN
from recipe.stages import reproduce
from recipe.training import checkpoints, log, log_lines
from support.chromium import CHROMIUM, chromium
from support.command import ROOT, recipe, refused

PLANNED = 792  # the demo's iterations: 24 epochs of 33 packs


class Page(html.parser.HTMLParser):
    """A page's tables as rows of texts, its attributes, and the text of each class."""

    def __init__(self, text):
        super().__init__()
        self.rows, self.attributes, self.tags, self.classes, self._open = [], [], [], {}, []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attributes]
        if tag not in ("meta", "link", "br", "img", "path", "use", "rect"):
            self._open.append((tag, dict(attributes).get("class") or ""))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        while self._open and self._open.pop()[0] != tag:
            pass

    def handle_data(self, data):
        if any(tag in ("td", "th") for tag, _ in self._open):
            self.rows[-1][-1] += data
        for _, names in self._open:
            for name in names.split():
                self.classes[name] = self.classes.get(name, "") + data

    def row(self, what):
        """The cells of the first row that begins with `what`."""
        return next([cell.strip() for cell in row] for row in self.rows if row and row[0].strip() == what)

    def first_line(self):
        return self.classes["headline"].strip()


def numbers(text):
    return [float(found.replace(",", "")) for found in re.findall(r"\d[\d,]*(?:\.\d+)?(?:e-?\d+)?", text)]


@pytest.fixture(scope="module")
def manifest(demo):
    return json.loads((demo[1] / "run.json").read_text(encoding="utf-8"))


@pytest.fixture
def folder(demo, tmp_path):
    """A copy of the demo's run folder, without its weights."""
    shutil.copytree(str(demo[1]), str(tmp_path / "tiny"), ignore=shutil.ignore_patterns("*.pth", "merged", "report"))
    return tmp_path / "tiny"


@pytest.fixture
def undrawn(monkeypatch):
    """For what is not about curves: they take most of the time."""
    monkeypatch.setattr(charts, "draw", lambda charts: [])


def change(folder, how):
    """Change run.json by a function. A training of other settings is recorded with these."""
    path = folder / "run.json"
    found = json.loads(path.read_text(encoding="utf-8"))
    how(found)
    if "trained" in found:
        found["trained"]["settings"] = found["settings"]
    path.write_text(json.dumps(found, ensure_ascii=False), encoding="utf-8")
    return found


def made(folder, **more):
    """Write the report of a run folder; its page."""
    return Page(report.write(run_view.find_run(str(folder), ROOT, ROOT), **more).read_text(encoding="utf-8"))


def pruned(folder, last):
    """The run as it stood after stage `last`."""

    def how(found):
        names = list(found["stages"])
        found["stages"] = {name: found["stages"][name] for name in names[: names.index(last) + 1]}

    change(folder, how)


def test_the_demo_ends_with_its_report(demo):
    place = demo[1] / "report"
    assert str(place / "index.html") in demo[0].stdout
    last = "memory.png" if host.gpus() else "seconds.png"
    assert {path.name for path in place.iterdir()} == {
        *("index.html", "README.md", "tiny.toml", "loss.png", "learning-rate.png", "grad-norm.png", last)
    }
    for picture in place.glob("*.png"):
        assert picture.read_bytes().startswith(b"\x89PNG")
    card = (place / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\nbase_model: ")
    assert "![Training loss](loss.png)" in card


def test_every_figure_is_the_manifests(demo, manifest):
    page = Page((demo[1] / "report/index.html").read_text(encoding="utf-8"))
    entries = manifest["stages"]
    plan, train, merge = (entries[name]["figures"] for name in ("plan", "train", "merge"))
    assert page.row("iterations")[1:] == [f"{plan['iterations']:,}", f"{train['iterations']:,}", "same"]
    assert page.row("optimizer updates")[1:] == [f"{plan['updates']:,}", f"{train['updates']:,}", "same"]
    peaks = page.row("peak learning rate")
    assert (numbers(peaks[1]), numbers(peaks[2])) == (pytest.approx([plan["lr_peak"]]), [train["lr_peak_logged"]])
    epochs = plan["iterations"] // plan["iterations_per_epoch"]
    assert page.row("tokens trained on")[1:] == [f"{plan['tokens_kept'] * epochs:,}"] * 2 + ["same"]
    assert numbers(page.row("tokens")[1])[:2] == [plan["tokens"], plan["tokens_kept"]]
    assert page.row("evaluations at")[1:] == [", ".join(map(str, plan["evaluations"]))] * 2 + ["same"]
    for name, kind in merge["kinds"].items():
        _, _, share, tensors, mean, largest = page.row(name)
        assert numbers(share)[0] == pytest.approx(100 * kind["weights_changed"] / kind["weights"], abs=0.05)
        assert numbers(tensors) == [kind["tensors_changed"], kind["tensors"]]
        assert numbers(mean)[0] == pytest.approx(100 * kind["mean"], rel=0.006)
        assert numbers(largest)[0] == pytest.approx(100 * kind["largest"], rel=0.006)
    for name, entry in entries.items():
        row = next(row for row in page.rows if len(row) == 4 and row[0] == name)
        shown = sum(n * unit for n, unit in zip(reversed(numbers(row[2])), (1, 60)))
        assert shown == pytest.approx(entry["seconds"], abs=0.51, rel=0.06)
        assert numbers(row[3]) == [entry["peak_memory_mb"]]
        for output, written in entry["outputs"].items():
            assert [output, f"sha256 {written['sha256']}"] in page.rows
    for name, what in TIME_BREAKDOWN.items():
        (shown,) = (row[1] for row in page.rows if len(row) == 2 and row[0] == what)
        assert shown == format.seconds(train["time_breakdown"][name])
    assert page.row("seconds of iterations")[2] == format.seconds(
        train["time_breakdown"]["iterations"]
    )  # answers are not in it
    assert page.row("seed")[1] == str(train["seed"])
    for name, version in manifest["versions"].items():
        assert f"{name} {version}" in page.row("versions")[1]
    head = page.first_line() + page.classes["tiles"]
    for figure in (f"{train['loss_first']:.3f}", f"{train['loss_last']:.3f}", f"{merge['share_changed']:.1%}"):
        assert figure in head
    assert page.first_line().startswith("The model learned its training data")
    for sample in entries["chat"]["figures"]["samples"]:
        assert pages.clean(sample["merged"]) in page.classes["tuned"]


def test_the_curves_hold_what_the_trainer_logged(demo, manifest):
    train = manifest["stages"]["train"]["figures"]
    place = (ROOT / train["log"]).parent
    steps = log.read_iterations(place)
    assert list(steps) == list(range(1, train["iterations"] + 1))
    for iteration, logged in log_lines.parse_iterations((place / "train.log").read_text("utf-8")).items():
        assert steps[iteration]["lr"] == pytest.approx(logged["lr"], rel=1e-4)
        assert steps[iteration]["loss"] == pytest.approx(logged["loss"], abs=1e-4)
    raw = log.per_iteration(steps)
    assert min(raw.values()) > 0  # a loss; what is undone wrongly drifts below
    said = log.read_answers(place, manifest["settings"]["train"]["evaluation_inputs"], [])
    assert [one.iteration for one in said] == manifest["stages"]["plan"]["figures"]["evaluations"]
    assert all(ended and answer for _, answer, ended in said[-1].replies)
    assert all("<|" not in answer for one in said for _, answer, _ in one.replies)


def test_at_every_stage(folder, undrawn, demo):
    """From the data alone to the whole: what is not there yet is said, and the first line says how far it is."""
    shutil.copytree(str(demo[1]), str(folder.parent / "whole"), ignore=shutil.ignore_patterns("*.pth", "merged"))
    expected = {
        "merge": "The model learned its training data",
        "adapter": "The model learned its training data",
        "train": "The model learned its training data",
        "model": f"Training stopped at iteration {PLANNED} of {PLANNED}",
        "config": f"Training stopped at iteration {PLANNED} of {PLANNED}",  # its log is there
        "plan": f"Nothing is trained yet; the plan has {PLANNED} updates in {PLANNED} iterations.",
        "data": "Nothing is trained yet; only the data stage has run: 94 conversations",
    }
    for last, line in expected.items():
        pruned(folder, last)
        assert made(folder).first_line().startswith(line), last
    shutil.rmtree(str(folder / "checkpoints"))
    shutil.copy(str(folder.parent / "whole/run.json"), str(folder))
    pruned(folder, "model")
    page = made(folder)
    assert page.first_line() == f"Nothing is trained yet; the plan has {PLANNED} updates in {PLANNED} iterations."
    text = (folder / "report/index.html").read_text(encoding="utf-8")
    for words in ("There is no training log yet", "No questions have been answered yet", "There is no adapter yet"):
        assert words in text, words
    assert page.row("iterations")[1:3] == [str(PLANNED), "not yet"]
    assert not list((folder / "report").glob("*.png"))
    with FileLock(str(folder / ".lock")):
        assert made(folder).first_line() == "Training is about to start."


def test_a_training_under_way(folder, undrawn):
    pruned(folder, "model")
    (path,) = folder.glob("checkpoints/*/*/vis_data/scalars.json")
    path.write_text("".join(path.read_text("utf-8").splitlines(keepends=True)[:300]), encoding="utf-8")
    with FileLock(str(folder / ".lock")):
        page = made(folder)
    assert page.first_line() == f"Training is running: iteration 300 of {PLANNED}."
    assert page.row("iterations")[1:] == [str(PLANNED), "300", ""]


def test_what_was_looked_at_since_does_not_hide_the_training(folder):
    """After a plan and a config with other settings, report, compare and diff are of the training that is there. Only
    when a training with the others has begun they are of that.
    """
    before = made(folder)
    pictures = {path.name for path in folder.glob("report/*.png")}
    words = ("train.max_epochs=1", "lora.r=4", "--output", folder.parent)
    for command in ("plan", "config"):
        done = recipe(command, folder.name, *words)
        assert done.returncode == 0, done.stderr
        page = made(folder)
        assert (page.first_line(), page.row("iterations")) == (before.first_line(), before.row("iterations"))
        assert {path.name for path in folder.glob("report/*.png")} == pictures
        assert "note" not in page.classes or "Left out" not in page.classes["note"]
    run = run_view.find_run(str(folder), ROOT, ROOT)
    assert run.settings.lora.r != 4
    assert not run.is_replaced("dataset.jsonl")
    assert run.is_replaced("plan.json")
    changed = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    others = dataclasses.replace(run, settings=settings.Settings.model_validate(changed["settings"]), manifest=changed)
    assert others.settings.lora.r == 4
    begun = checkpoints.folder(others)
    begun.mkdir()
    (begun / "train.log").touch()
    assert run_view.find_run(str(folder), ROOT, ROOT).settings == others.settings


def test_results_of_other_settings_are_left_out(folder, undrawn):
    """Without a record of what the training was made of: planned anew with another rate."""

    def how(found):
        del found["trained"]
        found["settings"]["train"]["lr"] = 2e-4
        found["stages"]["plan"]["finished"] = "2099-01-01T00:00:00+0000"

    change(folder, how)
    page = made(folder)
    assert page.first_line().startswith("Nothing is trained with these settings and data yet (the existing model")
    assert "Left out: config, train, adapter, merge, chat" in page.classes["note"]


def test_a_model_of_random_weights_is_not_judged_by_what_was_held_out(folder, undrawn):
    (folder / "eval.json").write_text(json.dumps(evaluation(verdict="worse")), encoding="utf-8")
    page = made(folder)
    assert page.first_line().startswith("The model learned its training data")
    assert "Worse than the base model on held-out data, as expected for a model with random" in page.classes["verdict"]


def tutorial(folder, **train):
    """The demo's folder made that of the tutorial: its recipe, its figures, and its published log."""
    shipped = settings.load("tutorial")[1]
    page = reproduce.published()
    log = "".join(
        f"x - Iter(train) [{e['iteration']}/51]  lr: {e['lr']:.4e}  eta: 0:00:01  time: {e['seconds']}  "
        f"memory: {e['memory_mb']}  loss: {e['loss']:.4f}\n"
        for e in page["log"]
    )
    shutil.rmtree(str(folder / "checkpoints"))
    (folder / "checkpoints/page").mkdir(parents=True)
    (folder / "checkpoints/page/train.log").write_text(log, encoding="utf-8")
    (folder / "plan.json").unlink()

    def how(found):
        found["settings"] = shipped.model_dump()
        found["stages"]["plan"]["figures"].update(
            iterations=51, iterations_per_epoch=17, updates=3, lr_peak=2e-9, lr_configured=2e-4, accumulative_counts=16,
            refusals=[{"fault": "peak-not-reached", "why": "The rate never comes near its peak."},
                      {"fault": "few-updates", "why": "Only 3 optimizer updates."}],
        )  # fmt: skip
        found["stages"]["train"]["figures"].update(
            iterations=51, updates=3, lr_peak_logged=1.8763e-9, loss_first=2.0068, loss_last=2.0157,
            log="output/tutorial/checkpoints/page/train.log",
        )  # fmt: skip
        found["stages"]["adapter"]["figures"]["underflow_share"] = 1.0
        found["stages"]["merge"]["figures"].update(weights_changed=0, share_changed=0.0, tensors_changed=0)

    change(folder, how)
    return folder.rename(folder.with_name("tutorial"))


def test_the_tutorials_first_line_says_that_nothing_was_learned(folder, monkeypatch):
    place = tutorial(folder)
    page = made(place)
    assert re.match(
        r"The model learned nothing: 3 updates at a learning rate of at most 2e-9 left all", page.first_line()
    )
    card = (place / "report/README.md").read_text(encoding="utf-8").split("\n# tutorial\n")[1].strip()
    assert card.startswith("**The model learned nothing: 3 updates at a learning rate of at most 2e-9")
    assert "2.0068 → 2.0157" in page.classes["verdict"]
    assert page.row("GPU memory")[2] == "10,580 MiB"
    assert (place / "report/memory.png").is_file()
    assert not (place / "report/grad-norm.png").exists()  # the published log holds none
    monkeypatch.setattr(charts, "draw", lambda charts: [])
    for last, line in (
        ("adapter", "The model learned nothing: 3 updates at a learning rate of at most 2e-9 left an adapter that is "
                    "zero."),
        ("train", "The model learned nothing: 3 updates at a learning rate of at most 2e-9 change nothing."),
        ("model", "Nothing is trained yet, and the plan would learn nothing: 3 updates at a learning rate of at "
                  "most 2e-9."),
    ):  # fmt: skip
        pruned(place, last)
        assert made(place).first_line() == line


def evaluation(**more):
    model = {"loss": 2.9513, "loss_interval": [2.9, 3.0], "perplexity": 19.13, "bleu4": 1.5, "rouge_l": 10.25,
             "chrf": 5.5, "repetition": 0.25, "never_stops": 0.5, "answer_length": 80.5}  # fmt: skip
    tuned = {**model, "loss": 2.3874, "loss_interval": [2.3, 2.5], "never_stops": 0.0}
    sample = {"question": "怎么办？", "reference": "好好休息。", "base": "啊" * 9, "tuned": "先休息。",
              "base_ended": False, "tuned_ended": True}  # fmt: skip
    difference = {"loss": -0.5639, "interval": [-0.62, -0.51], "lower_in": 16}
    return {"conversations": 16, "tokens": 1234, "models": {"base": model, "tuned": tuned}, "difference": difference,
            "verdict": "better", "summary": "loss lower by 0.5639", "samples": [sample], **more}  # fmt: skip


@pytest.mark.parametrize(
    ("verdict", "line"),
    [
        ("better", "Better than the base model"),
        ("worse", "Worse than the base model"),
        ("no difference", "No difference from the base model"),
    ],
)
def test_the_evaluations_verdict_comes_first(folder, undrawn, verdict, line):
    change(folder, lambda found: found["settings"]["model"].update(source="modelscope"))
    path = folder / "eval.json"
    says = f"{verdict}: loss lower by 0.5639"  # as `just eval` writes it
    path.write_text(json.dumps(evaluation(verdict=verdict, summary=says)), encoding="utf-8")
    page = made(folder)
    assert page.first_line() == f"{line}: loss lower by 0.5639"
    assert page.row("loss, nats per token")[1:] == ["2.9513 (2.9000 to 3.0000)", "2.3874 (2.3000 to 2.5000)"]
    assert page.row("answers without an end")[1:] == ["50.0%", "0.0%"]
    text = (folder / "report/index.html").read_text(encoding="utf-8")
    assert "lower in 16 of 16" in text
    assert "好好休息。" in text
    os.utime(str(path), (1, 1))  # of an earlier training
    assert made(folder).first_line().startswith("The model learned its training data")
    path.write_text('{"models": {}', encoding="utf-8")  # just being written
    assert made(folder).first_line().startswith("The model learned its training data")


HOSTILE = "</div></pre><script>alert(1)</script><img src=x onerror=alert(1)>\u202e\x00`````|<!--{{ 7*7 }}"


ENGLISH = re.compile(r"[A-Za-z][a-z]+(?: (?:[a-z]+|[A-Z]+)){2,}")  # three words in a row


def test_in_chinese(folder):
    """All but data, code and what comes from other programs; run.json and file names stay as they are."""
    measured = evaluation(verdict="worse")
    with translation.english():
        measured["summary"] = evaluate.summary(measured)
    (folder / "eval.json").write_text(json.dumps(measured), encoding="utf-8")
    with translation.use("zh"):
        page = report.write(run_view.find_run(str(folder), ROOT, ROOT)).read_text(encoding="utf-8")
    assert '<html lang="zh-CN">' in page
    assert "模型学会了训练数据" in Page(page).first_line()
    assert Page(page).row("参数更新")[1:] == ["792", "792", "相同"]
    shown = re.sub(r"<(style|pre|code|title)\b.*?</\1>|<svg.*?>", "", page, flags=re.S)
    shown = html.unescape(re.sub(r"<[^>]*>", "\n", shown))
    assert ENGLISH.findall(shown) == []
    card = (folder / "report/README.md").read_text(encoding="utf-8")
    head, text = card.split("---\n", 2)[1:]
    assert "a tiny InternLM2 with random weights" in head  # which programs read
    assert "## 训练设置" in text


def test_hostile_text_stays_text(folder, undrawn):
    def how(found):
        found["settings"]["data"].update(system=HOSTILE, files=[HOSTILE])
        found["stages"]["data"]["figures"]["read"][0]["sheet"] = HOSTILE
        found["stages"]["adapter"]["figures"]["targets"] = [HOSTILE]
        found["host"]["image"] = HOSTILE
        found["settings"]["model"]["source"] = "modelscope"

    change(folder, how)
    texts = {name: HOSTILE for name in ("question", "base", "merged")}
    (folder / "samples.json").write_text(json.dumps([{**texts, "base_ended": True, "merged_ended": True}]))
    sample = {**texts, "reference": HOSTILE, "tuned": HOSTILE, "base_ended": True, "tuned_ended": False}
    (folder / "eval.json").write_text(json.dumps(evaluation(summary=HOSTILE, samples=[sample])))
    (folder / "config.diff").write_text(HOSTILE)
    page = made(folder)
    assert not {"script", "img"} & set(page.tags)
    assert not [entry for entry in page.attributes if entry[1].startswith("on")]
    text = (folder / "report/index.html").read_text(encoding="utf-8")
    assert text.count("&lt;script&gt;alert(1)") >= 8
    assert "\u202e" not in text
    assert "\x00" not in text
    assert "49" not in page.classes["headline"]
    card = (folder / "report/README.md").read_text(encoding="utf-8")
    fenced = re.sub(r"(?ms)^(`{3,})text\n.*?^\1$", "", card)
    assert "<script" not in fenced.replace("\\<script", "")
    assert "\n<script" not in fenced


def test_nothing_outside_the_page_is_loaded(demo, folder):
    first, second = (run_view.read_run(run_view.find_run(str(path), ROOT, ROOT)) for path in (demo[1], folder))
    pages = [demo[1] / "report/index.html", compare.write(first, second, folder.parent / "compare")]
    for path in pages:
        text = path.read_text(encoding="utf-8")
        loading = [value for _, name, value in Page(text).attributes if name in ("src", "href", "srcset", "xlink:href")]
        assert [value for value in loading if not re.match(r"#|data:,$|\.\./data-report\.html$", value)] == []
        assert not re.search(r"url\((?!#)|@import|<script|<iframe|http-equiv=.refresh", text)
        assert "default-src 'none'" in text
        ids = re.findall(r'\bid="([^"]+)"', text)
        assert len(ids) == len(set(ids))
        assert set(re.findall(r'(?:href="|url\()#([^")]+)', text)) <= set(ids)


def test_what_it_costs(folder, undrawn):
    price = 3600.0  # one a second
    page = made(folder, price=price)
    entries = json.loads((folder / "run.json").read_text(encoding="utf-8"))["stages"]
    row = next(row for row in page.rows if len(row) == 5 and row[0] == "train")
    assert float(row[3]) == pytest.approx(entries["train"]["seconds"], abs=1e-3)
    total = next(row for row in page.rows if len(row) == 5 and row[0] == "total")
    assert float(total[3]) == pytest.approx(sum(entry["seconds"] for entry in entries.values()), abs=1e-3)
    refused(recipe("report", folder, "train.lr=1e-4"), 2, "train.lr=1e-4", "plan.price_per_hour")


def test_the_recipe_beside_the_report_and_the_command_repeat_the_run(folder, undrawn):
    strange = 'a "quoted" \\ backslash\ttab\nline \x7f 你是…… #]'

    def how(found):
        found["settings"]["data"]["system"] = strange
        found["settings"]["train"]["lr"] = 1e-5

    change(folder, how)
    made(folder)
    name, again = settings.load(str(folder / "report/tiny.toml"))
    run = run_view.find_run(str(folder), ROOT, ROOT)
    assert (name, again) == ("tiny", run.settings)
    words = shlex.split(provenance.repeat_command(run_view.read_run(run)))
    assert words[:3] == ["just", "demo", "tiny"]
    assert settings.load("tiny", words[3:])[1] == run.settings
    mine = folder.rename(folder.with_name("我的 recipe"))
    command = provenance.repeat_command(run_view.read_run(run_view.find_run(str(mine), ROOT, ROOT)))
    assert command.endswith("我的 recipe/report/我的 recipe.toml'")


def test_no_run_is_one_clear_error(demo):
    done = recipe("report", "coach", "--output", demo[1].parent)
    refused(done, 2, "There is no run 'coach'", "train coach", "Existing runs: tiny")
    refused(recipe("compare", "tiny", "--output", demo[1].parent), 2, "RUN is missing")


def test_compare_and_diff_tell_what_differs(demo, folder):
    def how(found):
        found["settings"]["train"]["lr"] = 1e-3
        found["versions"]["torch"] = "2.0.1"
        found["host"]["gpus"] = [{"name": "RTX 3090", "memory_mib": 24576, "driver": "535", "capability": "8.6"}]
        found["stages"]["data"]["outputs"]["dataset.jsonl"]["sha256"] = "0" * 64
        found["stages"]["merge"]["figures"]["weights_changed"] = 1234567

    change(folder, how)
    mine = folder.rename(folder.with_name("我的"))
    done = recipe("compare", "tiny", mine, "--output", demo[1].parent, COLUMNS="160")
    assert done.returncode == 0, done.stderr
    page = demo[1].parent / "compare/tiny-against-我的.html"
    assert str(page) in done.stdout
    found = Page(page.read_text(encoding="utf-8"))
    for what, first, second in (
        ("train.lr", "0.004", "0.001"),
        ("torch", host.versions()["torch"], "2.0.1"),
        ("GPU", "none", "RTX 3090, driver 535"),
    ):
        assert found.row(what) == [what, first, second]
        assert re.search(rf"{re.escape(what)} +│ {first} +│ {second}", done.stdout), what
    assert found.row("dataset.jsonl, sha256")[2] == "0" * 64
    assert "1,234,567" in found.row("weights changed")[2]
    assert "train.max_epochs" not in done.stdout
    assert page.with_name("tiny-against-我的-loss.png").read_bytes().startswith(b"\x89PNG")
    table = recipe("diff", "tiny", mine, "--output", demo[1].parent, COLUMNS="160").stdout
    assert done.stdout.startswith(table)
    both = [run_view.read_run(run_view.find_run("tiny", ROOT, demo[1].parent))] * 2
    assert compare.differences(*both)[0] == []


def test_it_is_quick(folder):
    """It stands at the end of every training: 20,000 iterations cost little more than the demo's 792."""

    def cost():
        began = time.process_time()  # of this process alone, whatever else the machine does
        made(folder)
        return time.process_time() - began

    made(folder)  # matplotlib's import is not the report's
    few = cost()
    (path,) = folder.glob("checkpoints/*/*/vis_data/scalars.json")
    line = json.loads(path.read_text("utf-8").splitlines()[0])
    lines = [json.dumps({**line, "step": n, "loss": 2 + 0.1 * random.random()}) for n in range(1, 20_001)]
    path.write_text("\n".join(lines), encoding="utf-8")
    assert cost() < 2 * few  # 1.3


def test_in_a_browser(demo, folder):
    """Desktop and phone width: nothing stands out of the page, every curve has a size, nothing is asked of a network;
    and it prints."""
    if not CHROMIUM:
        pytest.skip("no chromium here: the report is not looked at in a browser (apt-get install chromium)")
    sides = [run_view.read_run(run_view.find_run(str(path), ROOT, ROOT)) for path in (demo[1], folder)]
    pages = [demo[1] / "report/index.html", compare.write(*sides, folder.parent / "compare")]
    frames = "".join(
        f'<iframe width="{width}" height="900" srcdoc="{html.escape(path.read_text("utf-8"))}"></iframe>'
        for path in pages
        for width in (390, 1280)
    )
    script = (
        "onload = () => { let found = [...document.querySelectorAll('iframe')].map(f => { let d = f.contentDocument,"
        " e = d.documentElement, out = [...d.querySelectorAll('main *')].filter(x => !x.closest('.scroll, svg')"
        " && x.getBoundingClientRect().right > e.clientWidth + 1).length;"
        " return {out, wide: e.scrollWidth - e.clientWidth,"
        " curves: [...d.querySelectorAll('svg')].map(s => s.getBoundingClientRect().height > 100)} });"
        " document.body.textContent = 'FOUND' + JSON.stringify(found) + 'END' }"
    )
    outer = folder.parent / "frames.html"
    outer.write_text(f"<!DOCTYPE html><meta charset=utf-8>{frames}<script>{script}</script>", encoding="utf-8")
    log = folder.parent / "net.json"
    done = chromium("--dump-dom", f"--log-net-log={log}", f"file://{outer}", folder=folder.parent)
    found = json.loads(re.search(r"FOUND(.*?)END", done.stdout)[1])
    assert len(found) == 4
    for one in found:
        assert (one["out"], one["wide"]) == (0, 0)
        assert one["curves"]
        assert all(one["curves"])
    assert "file:///" in log.read_text(encoding="utf-8", errors="replace")  # requests are logged
    asked = set(re.findall(r'"url":"(https?://[^"]+)"', log.read_text(encoding="utf-8", errors="replace")))
    assert not [url for url in asked if "google" not in url and "gvt1" not in url]  # the browser's own
    chromium(
        "--no-pdf-header-footer", f"--print-to-pdf={folder}/report.pdf", f"file://{pages[0]}", folder=folder.parent
    )
    assert (folder / "report.pdf").read_bytes().startswith(b"%PDF")


def test_nothing_of_a_run_is_changed(demo):
    before = hashing.stamp(demo[1] / "run.json"), sorted(p.name for p in demo[1].iterdir())
    made(demo[1])
    assert (hashing.stamp(demo[1] / "run.json"), sorted(p.name for p in demo[1].iterdir())) == before
