"""Surveys the conversations of a dataset.jsonl: lengths, duplicates and likely mistakes, with examples."""

import re
from array import array
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple

import numpy

from recipe.core.translation import _, listed, mark, ngettext, stored
from recipe.intake import checks, damage
from recipe.reporting import pages

SHORT, LONG = 5, 2000  # characters of an answer
EXAMPLES = 5

Conversation = List[Dict[str, str]]

LATIN = re.compile("[A-Za-z\u00c0-\u024f]")
PHONE = re.compile(r"(?<![\d.])(?:\+?86[- ]?)?1[3-9]\d[- ]?\d{4}[- ]?\d{4}(?!\d)")
MAIL = re.compile(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)*\.[A-Za-z]{2,}")
IDENTITY = re.compile(r"(?<![\dA-Za-z])\d{17}[\dXx](?![\dA-Za-z])")
IDENTITY_WEIGHTS = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)  # GB 11643-1999

# What the report looks for. It says "none found" only of this.
LOOKED_FOR = mark(
    "duplicates, one question with different answers, very short and very long answers, mixed languages, personal "
    "data, blanks around texts, invisible and private-use characters, U+FFFC, \\n as text, question marks inside "
    "words, HTML's &nbsp;, numbers that Excel shortened"
)
SHORTENED = re.compile(r"(?<![\w.])\d\.\d{1,5}[Ee]\+1\d(?!\d)")


class Finding(NamedTuple):
    """A likely mistake: how often it occurs, and examples as (line of dataset.jsonl, text)."""

    issue: str
    occurrences: int
    examples: List[Tuple[int, str]]


def _issue(key: str, n: int) -> str:
    """What `n` findings of the survey are; `key` is its own or one of damage.ODDITIES."""
    if key == "short":
        return ngettext(
            "answer of fewer than {least} characters", "answers of fewer than {least} characters", n, least=SHORT
        )
    if key == "long":
        return ngettext(
            "answer of more than {most:,} characters", "answers of more than {most:,} characters", n, most=LONG
        )
    if key == "languages":
        return ngettext("question and answer in different languages", "questions and answers in different languages", n)
    if key == "personal":
        return _("likely personal data (telephone, e-mail, identity number)")
    if key == "blanks":
        return _("blanks or line breaks before or after a text (they are trained)")
    if key == "shortened":
        return ngettext("number that Excel shortened", "numbers that Excel shortened", n)
    if key == "Chinese":
        return ngettext("answer in Chinese, unlike the others", "answers in Chinese, unlike the others", n)
    if key == "Latin letters":
        return ngettext("answer in Latin letters, unlike the others", "answers in Latin letters, unlike the others", n)
    return stored(key)


def is_identity(number: str) -> bool:
    """Whether 18 characters are a Chinese identity number; the last one is a checksum."""
    total = sum(int(digit) * weight for digit, weight in zip(number, IDENTITY_WEIGHTS))
    return "10X98765432"[total % 11] == number[17].upper()


def find_personal_data(text: str) -> Optional[str]:
    """The first telephone number, e-mail address or identity number in a text, if any."""
    for pattern in (MAIL, IDENTITY, PHONE):
        for found in pattern.finditer(text):
            if pattern is not IDENTITY or is_identity(found.group()):
                return found.group()
    return None


def detect_language(text: str) -> str:
    """ "Chinese", "Latin letters", or "" for too short a text. Compares Chinese characters with Latin words."""
    han, latin = len(pages.HAN.findall(text)), len(re.findall(f"{LATIN.pattern}+", text))
    if han + latin < 2:
        return ""
    return "Chinese" if han >= latin else "Latin letters"


def _count(findings: Dict[str, Finding], issue: str, number: int, text: str) -> None:
    """Count `issue` and keep the first few examples."""
    finding = findings.get(issue) or Finding(issue, 0, [])
    if len(finding.examples) < EXAMPLES:
        finding.examples.append((number, text))
    findings[issue] = finding._replace(occurrences=finding.occurrences + 1)


class Survey:
    """One pass over the conversations of a dataset.jsonl."""

    def __init__(self) -> None:
        self.lines = array("q")
        self.questions, self.answers = array("q"), array("q")  # of conversations of one turn, else 0
        self.answer_lengths = array("L")
        self.question_lengths = array("L")
        self.tokens = array("L")
        self.answer_tokens = array("L")
        self.mistakes: Dict[str, Finding] = {}
        self.languages: Dict[str, Finding] = {}

    def count(self, issue: str, number: int, text: str) -> None:
        _count(self.mistakes, issue, number, text)

    def add(self, number: int, conversation: Conversation, image: str = "") -> None:
        """Add the conversation on line `number` (from 1). `image`: its sha256, because the same question about
        another image may have another answer.
        """
        self.lines.append(hash((image, str(conversation))))
        first, one = conversation[0], len(conversation) == 1
        self.questions.append(hash((image, first.get("system"), first["input"].strip())) if one else 0)
        self.answers.append(hash(conversation[0]["output"].strip()) if one else 0)
        answer_language = detect_language(" ".join(turn["output"] for turn in conversation))
        if answer_language:
            _count(self.languages, answer_language, number, conversation[0]["output"])
        for turn in conversation:
            question, answer = turn["input"], turn["output"]
            self.question_lengths.append(len(question))
            self.answer_lengths.append(len(answer))
            if len(answer.strip()) < SHORT:
                self.count("short", number, answer)
            elif len(answer) > LONG:
                self.count("long", number, answer)
            question_language, answer_language = detect_language(question), detect_language(answer)
            if question_language and answer_language and question_language != answer_language:
                self.count("languages", number, f"{question} → {answer}")
            for text in (question, answer):
                self._look_at_characters(number, text)
            for text in (question, answer):
                private = find_personal_data(text)
                if private:
                    self.count("personal", number, private)
                    break

    def _look_at_characters(self, number: int, text: str) -> None:
        if text != text.strip():
            self.count("blanks", number, repr(text[-20:]))
        if checks.needs_check(text):
            for what, around in damage.oddities(text):
                self.count(what, number, ascii(around) if what == damage.ODDITIES[0][0] else around)
        if "E+1" in text.upper() and SHORTENED.search(text):
            self.count("shortened", number, text)

    def findings(self, texts: Callable[[Sequence[int]], Dict[int, str]]) -> List[Finding]:
        """All likely mistakes; `texts` returns the questions on the given lines."""
        found = []
        copies = _group_equal(self.lines)
        if copies:
            examples = [(group[1], _("same as line {line}", line=group[0])) for group in copies[:EXAMPLES]]
            extra = sum(len(group) - 1 for group in copies)
            issue = ngettext(
                "duplicate conversation (it counts twice in training)",
                "duplicate conversations (they count twice in training)",
                extra,
            )
            found.append(Finding(issue, extra, examples))
        conflicts = []
        for group in _group_equal(self.questions):
            if self.questions[group[0] - 1] and len({self.answers[number - 1] for number in group}) > 1:
                conflicts.append(group)
        if conflicts:
            questions = texts([group[0] for group in conflicts[:EXAMPLES]])
            examples = [
                (g[0], _("{question} (also line {lines})", question=questions[g[0]], lines=listed(g[1:4])))
                for g in conflicts[:EXAMPLES]
            ]
            issue = ngettext("question with different answers", "questions with different answers", len(conflicts))
            found.append(Finding(issue, len(conflicts), examples))
        likely = list(self.mistakes.values())
        if len(self.languages) > 1:
            likely.append(min(self.languages.values(), key=lambda finding: finding.occurrences))
        found += [finding._replace(issue=_issue(finding.issue, finding.occurrences)) for finding in likely]
        return found


def _group_equal(hashes: Any) -> List[List[int]]:
    """Groups of line numbers (from 1) with equal hashes, in the order of their first lines."""
    values = numpy.frombuffer(hashes, dtype="int64")
    order = numpy.argsort(values, kind="stable")
    same = numpy.flatnonzero(values[order[1:]] == values[order[:-1]])
    groups: List[List[int]] = []
    last = -2
    for at in same.tolist():
        if at != last + 1:
            groups.append([int(order[at]) + 1])
        groups[-1].append(int(order[at + 1]) + 1)
        last = at
    return sorted(groups)
