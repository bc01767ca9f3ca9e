"""Reports on dataset.jsonl: counts, lengths, dropped and changed rows, likely mistakes, and conversations as the model
sees them. `just data-report` (terminal and data-report.html) and `just preview`.

Streams the rows; only a few numbers per conversation stay in memory.
"""

import random
from itertools import groupby
from pathlib import Path
from typing import Any, Dict, Iterator, List, Sequence, Tuple

import numpy
from rich.console import Console
from rich.table import Table
from rich.text import Text

from recipe.base_model import tokenizer as base_model_tokenizer
from recipe.core import imports
from recipe.core.errors import HostLacks, InputWrong
from recipe.core.files import write_text
from recipe.core.run import Run
from recipe.core.text_width import fold, rjust
from recipe.core.translation import _, listed, ngettext, stored
from recipe.intake import dataset as intake_dataset
from recipe.intake.images import IMAGE_TOKEN
from recipe.intake.places import in_words
from recipe.intake.progress import Progress
from recipe.planning import tokens as planning_tokens
from recipe.planning.tokens import encoded
from recipe.reporting import pages
from recipe.reporting.data_survey import LOOKED_FOR, Conversation, Finding, Survey
from recipe.xtuner import config, preset_facts

RENDERED = 10
BARS = 40  # characters of the longest bar

Piece = Tuple[str, bool]  # text, whether it carries loss


def histogram(values: Any, max_bars: int = 10) -> List[Tuple[str, int]]:
    """(range, count) rows with ranges of equal, round width; the top 1 % of values share the last row."""
    numbers = numpy.frombuffer(values, dtype=f"uint{8 * values.itemsize}")
    top = float(numpy.percentile(numbers, 99)) or 1.0
    width = next(w * 10**e for e in range(9) for w in (1, 2, 5) if w * 10**e * max_bars > top)
    edges = [width * step for step in range(int(top // width) + 2)]
    counts = [int(((numbers >= low) & (numbers < high)).sum()) for low, high in zip(edges, edges[1:])]
    rows = [(f"{low}–{high - 1}", count) for low, high, count in zip(edges, edges[1:], counts)]
    first = next(at for at, (_range, count) in enumerate(rows) if count)
    rows = rows[first:]
    beyond = len(numbers) - sum(counts)
    return [*rows, (f"{edges[-1]}–{int(numbers.max())}", beyond)] if beyond else rows


def render_pieces(
    conversation: Conversation, template: Any, tokenizer: Any, max_length: int, has_images: bool = False
) -> List[Piece]:
    """The conversation as XTuner passes it to the model, in pieces with and without loss.

    Omits everything after `max_length`. With `has_images`, an image token is its own piece.
    """
    made = encoded(conversation, template, tokenizer, max_length, has_images)
    pairs = zip(made["input_ids"], made["labels"])
    return [
        (IMAGE_TOKEN if image else tokenizer.decode([token for token, _label in group]), loss)
        for (loss, image), group in groupby(pairs, lambda p: (p[1] >= 0, p[0] < 0))
    ]


class TokenView:
    """Shows conversations as the model sees them, with the recipe's tokenizer and chat template."""

    def __init__(self, run: Run) -> None:
        imports.load()
        cfg = config.effective(run.settings)
        self.template, self.max_length = config.template(cfg), cfg.max_length
        self.tokenizer = base_model_tokenizer.tokenizer(run)
        self.has_images = preset_facts.has_images(run.settings)

    def count(self, conversation: Conversation) -> Tuple[int, int]:
        """(tokens, tokens with loss) before truncation."""
        counted = planning_tokens.count([conversation], self.template, self.tokenizer, 10**9, self.has_images)
        return counted["lengths"][0], counted["answers"][0]

    def pieces(self, conversation: Conversation) -> List[Piece]:
        return render_pieces(conversation, self.template, self.tokenizer, self.max_length, self.has_images)


def _select_lines(dataset: Path, numbers: Sequence[int]) -> Iterator[Tuple[int, Conversation]]:
    wanted = set(numbers)
    for number, conversation in enumerate(intake_dataset.conversations(dataset), start=1):
        if number in wanted:
            yield number, conversation


def preview(run: Run, row: int, console: Console) -> None:
    """Print the conversation on line `row` of dataset.jsonl as the model sees it. Raises InputWrong."""
    found = next(_select_lines(run.dataset, [row]), None)
    if found is None:
        count = run.figures("data")["conversations"]
        raise InputWrong(_("There is no conversation {number}: dataset.jsonl has 1 to {last}.", number=row, last=count))
    view = TokenView(run)
    tokens, with_loss = view.count(found[1])
    counts = {"number": row, "tokens": tokens, "with_loss": with_loss}
    if tokens > view.max_length:
        line = _(
            "conversation {number}: {tokens} tokens, {with_loss} with loss (between ⟦ and ⟧), truncated at max_length "
            "{limit}",
            limit=view.max_length,
            **counts,
        )
    else:
        line = _("conversation {number}: {tokens} tokens, {with_loss} with loss (between ⟦ and ⟧)", **counts)
    console.print(f"{line}\n", highlight=False)
    console.print(_mark_loss(view.pieces(found[1])))


def _mark_loss(pieces: Sequence[Piece]) -> Text:
    text = Text()
    for part, loss in pieces:
        text.append(f"⟦{part}⟧" if loss else part, style="bold green" if loss else "")
    return text


def write(run: Run, console: Console) -> Path:
    """Print the report and write data-report.html into the run's folder; return its path."""
    figures = run.figures("data")
    view, reason = None, ""
    try:
        view = TokenView(run)
    except (HostLacks, InputWrong) as error:
        reason = str(error)
    survey = Survey()
    progress = Progress()
    rng = random.Random(0)
    count = max(1, figures["conversations"])
    try:
        for number, line in enumerate(intake_dataset.lines(run.dataset), start=1):
            conversation = line["conversation"]
            survey.add(number, conversation, line.get("sha256", ""))
            if view:
                tokens, with_loss = view.count(conversation)
                survey.tokens.append(tokens)
                survey.answer_tokens.append(with_loss)
            if number & 255 == 0:
                progress.step("data-report", number / count)
    finally:
        progress.stop()
    findings = survey.findings(lambda lines: _questions(run, lines))
    examples = []
    if view:
        numbers = sorted(rng.sample(range(1, count + 1), min(RENDERED, count)))
        examples = [(number, view.pieces(conversation)) for number, conversation in _select_lines(run.dataset, numbers)]
    histograms = _length_histograms(survey)
    if view:
        histograms.append((_("conversations, tokens"), histogram(survey.tokens)))
    rows = _count_rows(figures, survey, view.max_length if view else 0)
    if reason:
        rows.append((_("tokens"), _("not counted: {reason}", reason=reason)))
    _print_report(rows, histograms, findings, examples, console)
    path = run.folder / "data-report.html"
    write_text(path, page(run, rows, histograms, findings, examples))
    return path


def page(run: Run, rows: Any, histograms: Any, findings: Any, examples: Any = ()) -> str:
    """The report as a page, of what `summarize` returns; `examples`: (number, pieces) of conversations."""
    return pages.render(
        "data-report.html", name=run.name, rows=rows, histograms=histograms, findings=findings, examples=examples,
        looked_for=_(LOOKED_FOR),
    )  # fmt: skip


def summarize(run: Run) -> Tuple[List[Tuple[str, str]], List[Tuple[str, Any]], List[Finding]]:
    """(counts, histograms, likely mistakes) without token counts, for the run's report."""
    survey = Survey()
    for number, line in enumerate(intake_dataset.lines(run.dataset), start=1):
        survey.add(number, line["conversation"], line.get("sha256", ""))
    findings = survey.findings(lambda lines: _questions(run, lines))
    return _count_rows(run.figures("data"), survey, 0), _length_histograms(survey), findings


def _questions(run: Run, lines: Sequence[int]) -> Dict[int, str]:
    return {number: conversation[0]["input"] for number, conversation in _select_lines(run.dataset, lines)}


def _length_histograms(survey: Survey) -> List[Tuple[str, Any]]:
    return [
        (_("answers, characters"), histogram(survey.answer_lengths)),
        (_("questions, characters"), histogram(survey.question_lengths)),
    ]


def _count_rows(figures: Dict[str, Any], survey: Survey, max_length: int) -> List[Tuple[str, str]]:
    f = figures
    longest = ngettext(
        "{conversations:,}, the longest {n} turn",
        "{conversations:,}, the longest {n} turns",
        f["longest"],
        conversations=f["conversations"],
    )
    rows = [(_("rows"), f"{f['rows']:,}"), (_("conversations"), longest)]
    rows += [(_("read"), _read(one)) for one in f["read"]]
    held_out = ngettext(
        "{n} more conversation (eval.jsonl), not counted below",
        "{n} more conversations (eval.jsonl), not counted below",
        f["held_out"],
    )
    rows.append((_("held out"), held_out))
    rows += [(_("not read"), in_words(place)) for place in f["skipped"]]
    for what, (times, places) in f.get("notes", {}).items():
        shown = _("; ").join([*map(in_words, places), *["…"] * (times > len(places))])
        texts = ngettext(
            "{n:,} text with {what}: {places}",
            "{n:,} texts with {what}: {places}",
            times,
            what=stored(what),
            places=shown,
        )
        rows.append((_("unusual"), texts))
    blank = ngettext("{n} row with empty cells", "{n} rows with empty cells", f["blank_dropped"])
    duplicates = ngettext("{n} duplicate", "{n} duplicates", f["duplicates_dropped"])
    rows.append((_("dropped"), listed([blank, duplicates])))
    numbers = ngettext(
        "{n} number or date read as Excel shows it",
        "{n} numbers and dates read as Excel shows them",
        f["numbers_as_text"],
    )
    breaks = ngettext(
        "{n} cell's line breaks changed to \\n", "{n} cells' line breaks changed to \\n", f["line_breaks_changed"]
    )
    rows.append((_("changed"), _("{first}, {second}", first=numbers, second=breaks)))
    if survey.tokens:
        over = sum(1 for tokens in survey.tokens if tokens > max_length)
        counted = ngettext(
            "{tokens:,}, {with_loss:,} of them with loss; {n} conversation over {limit}",
            "{tokens:,}, {with_loss:,} of them with loss; {n} conversations over {limit}",
            over,
            tokens=sum(survey.tokens),
            with_loss=sum(survey.answer_tokens),
            limit=max_length,
        )
        rows.append((_("tokens"), counted))
    return rows


def _read(one: Dict[str, Any]) -> str:
    """What was read of a file: its sheet, encoding, rows and columns."""
    where = one["file"]
    if one.get("sheet"):
        where = _("{file}, sheet {sheet}", file=where, sheet=one["sheet"])
    if one["encoding"]:
        where = listed([where, _(one["encoding"])])
    parts = [ngettext("{where}: {n:,} row", "{where}: {n:,} rows", one["rows"], where=where)]
    # The roles are named as in data.columns; a file of records has none.
    parts.append(_("; ").join(f"{role}: {column}" for role, column in one.get("columns", {}).items()))
    if one.get("unused"):
        parts.append(_("columns not used: {columns}", columns=listed(map(in_words, one["unused"]))))
    return _("; ").join(parts)


def _print_report(rows: Any, histograms: Any, findings: Sequence[Finding], examples: Any, console: Console) -> None:
    table = Table(show_header=False, box=None, pad_edge=False)
    for what, figure in rows:
        table.add_row(what, Text(figure))
    fold(table)
    console.print(table)
    for title, counts in histograms:
        console.print(f"\n[bold]{title}[/]")
        top = max(count for _range, count in counts)
        for name, count in counts:
            console.print(f"  {rjust(name, 12)}  {'█' * round(count / top * BARS)} {count:,}", highlight=False)
    if findings:
        heading = _("[bold]likely mistakes: {n}[/] (lines of dataset.jsonl)", n=len(findings))
        console.print(f"\n{heading}", highlight=False)
    else:
        heading = _("[bold]likely mistakes: none found[/]. Looked for: {what}", what=_(LOOKED_FOR))
        console.print(f"\n{heading}", highlight=False)
    for finding in findings:
        issue = _("{n} {what}", n=f"[yellow]{finding.occurrences:,}[/]", what=finding.issue)
        console.print(f"  {issue}", highlight=False)
        for number, text in finding.examples:
            line = _("line {number}: {text}", number=number, text=pages.shorten(text, 60))
            console.print(Text(f"     {line}"))
    if examples:
        heading = _("[bold]as the model sees them[/] (loss between ⟦ and ⟧)")
        console.print(f"\n{heading}")
    for number, pieces in examples:
        console.print(Text(f"\n— {number}"))
        console.print(_mark_loss(pieces))
