"""Speed of the readers beside the tutorial's way (pandas.read_excel, iterrows, json.dump): `just bench-data [rows]
[times]`.

Each line is one run of both, one after the other, each in a process of its own, imports included; the ratio is what
counts, on whatever machine. Two workbooks of `rows` × 2 cells: one as Excel writes them (shared texts), one as
openpyxl does (texts in the cells, characters as numbers).
"""

import json
import random
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from xml.sax.saxutils import escape

import openpyxl

ROOT = Path(__file__).resolve().parent.parent
HAN = (
    "怎样拒绝不合理的加班先说明手头优先级再给出可行时间新同事总抢我功劳办把进展写周报让贡献看得见升职失败后如何调整心态"
)
THEIRS = """
import json, sys, pandas
table = pandas.read_excel(sys.argv[1])
made = []
for _, row in table.iterrows():
    made.append({"conversation": [{"system": "教练", "input": str(row["q"]), "output": str(row["a"])}]})
with open(sys.argv[2], "w", encoding="utf-8") as stream:
    json.dump(made, stream, ensure_ascii=False)
"""


def texts(rows):
    chance = random.Random(0)

    def text(least, most):
        return "".join(chance.choice(HAN) for _ in range(chance.randint(least, most)))

    return [("q", "a"), *((text(8, 25), text(39, 183)) for _ in range(rows))]  # the tutorial's lengths


def by_openpyxl(path, lines):
    book = openpyxl.Workbook()
    for line in lines:
        book.active.append(line)
    book.save(str(path))


def like_excel(path, lines, pattern):
    """The workbook `pattern` with its sheet and texts as Excel lays them down."""
    main = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
    cell = '<c r="{}{}" t="s"><v>{}</v></c>'.format
    rows = "".join(
        f'<row r="{n}" spans="1:2">{cell("A", n, 2 * n - 2)}{cell("B", n, 2 * n - 1)}</row>'
        for n in range(1, len(lines) + 1)
    )
    items = "".join(f"<si><t>{escape(text)}</t></si>" for line in lines for text in line)
    kind = "http://schemas.openxmlformats.org/officeDocument/2006/relationships/sharedStrings"
    more = f'<Relationship Id="rId99" Type="{kind}" Target="sharedStrings.xml"/></Relationships>'
    type_ = "application/vnd.openxmlformats-officedocument.spreadsheetml.sharedStrings+xml"
    listed = f'<Override PartName="/xl/sharedStrings.xml" ContentType="{type_}"/></Types>'
    with zipfile.ZipFile(str(pattern)) as old, zipfile.ZipFile(str(path), "w", zipfile.ZIP_DEFLATED) as new:
        for part in old.namelist():
            content = old.read(part).decode("utf-8")
            if part.endswith("sheet1.xml"):
                content = f'<worksheet xmlns="{main}"><sheetData>{rows}</sheetData></worksheet>'
            content = content.replace("</Types>", listed)
            new.writestr(part, content.replace("</Relationships>", more) if "workbook.xml.rels" in part else content)
        new.writestr("xl/sharedStrings.xml", f'<sst xmlns="{main}">{items}</sst>')


def million_blank_rows(path, pattern):
    """200 used rows and a million that were only formatted."""
    cell = '<c r="{}{}" t="inlineStr"><is><t>{}</t></is></c>'.format
    used = "".join(f'<row r="{n}">{cell("A", n, a)}{cell("B", n, b)}</row>' for n, (a, b) in enumerate(texts(200), 1))
    blank = "".join(f'<row r="{n}" s="1"><c r="A{n}" s="1"/><c r="B{n}" s="1"/></row>' for n in range(202, 1_000_202))
    with zipfile.ZipFile(str(pattern)) as old, zipfile.ZipFile(str(path), "w", zipfile.ZIP_DEFLATED) as new:
        for part in old.namelist():
            content = old.read(part).decode("utf-8")
            if part.endswith("sheet1.xml"):
                content = content[: content.index("<row")] + used + blank + content[content.rindex("</sheetData>") :]
            new.writestr(part, content)


def seconds(command):
    began = time.monotonic()
    subprocess.run([sys.executable, *map(str, command)], cwd=str(ROOT), check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - began


def convert(path, folder):
    """(seconds, the stage's figures) of `recipe data` on a file."""
    out = Path(tempfile.mkdtemp(dir=str(folder)))
    took = seconds(
        [
            "-m",
            "recipe",
            "data",
            "tiny",
            f'data.files=["{path}"]',
            "data.system=教练",
            "data.eval_share=0",
            "--output",
            out,
        ]
    )
    entry = json.loads((out / "tiny" / "run.json").read_text(encoding="utf-8"))["stages"]["data"]
    return took, entry, out / "tiny" / "dataset.jsonl"


def main(rows=100_000, times=3):
    folder = Path(tempfile.mkdtemp())
    lines = texts(rows)
    small = folder / "small.xlsx"
    by_openpyxl(small, lines[:3])
    like_excel(folder / "excel.xlsx", lines, small)
    by_openpyxl(folder / "openpyxl.xlsx", lines)
    for name in ("excel", "openpyxl"):
        for _ in range(times):
            path = folder / f"{name}.xlsx"
            ours, entry, made = convert(path, folder)
            theirs = seconds(["-c", THEIRS, path, folder / "theirs.json"])
            with made.open(encoding="utf-8") as stream:
                same = [json.loads(line) for line in stream] == json.loads((folder / "theirs.json").read_text("utf-8"))
            print(f"{name}: {theirs:.2f} s / {ours:.2f} s = {theirs / ours:.2f} times, {entry['peak_memory_mb']} MB, "
                  f"{'equal' if same else 'DIFFERENT'}")  # fmt: skip
            assert same
    million_blank_rows(folder / "blank.xlsx", small)
    took, entry, _ = convert(folder / "blank.xlsx", folder)
    print(f"a million blank rows and {entry['figures']['rows']}: {took:.2f} s, {entry['peak_memory_mb']} MB")
    for count in (rows, 10 * rows):
        path = folder / f"{count}.csv"
        with path.open("w", encoding="utf-8") as stream:
            stream.write("q,a\n")
            stream.writelines(f"{n}{lines[n % rows + 1][0]},{lines[n % rows + 1][1]}\n" for n in range(count))
        took, entry, _ = convert(path, folder)
        print(f"{count:,} rows of CSV: {took:.2f} s, {entry['peak_memory_mb']} MB")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
