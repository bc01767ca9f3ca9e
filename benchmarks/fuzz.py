"""Damaged and strange files against the readers: `just fuzz [seconds] [seed]`.

Takes good files of every kind, changes bytes in them (in workbooks also inside the parts of the archive, then packed
again) and reads each. A file may be read or be refused; anything else, a traceback above all, ends the run and names
the file, which is kept. What was read must be conversations of visible text without control tokens.
"""

import io
import json
import random
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import openpyxl
import pandas

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from recipe.core.errors import InputWrong  # noqa: E402
from recipe.core.settings import Data  # noqa: E402
from recipe.intake import xml_parts  # noqa: E402
from recipe.intake.checks import CONTROL_TOKEN  # noqa: E402
from recipe.intake.reader import DatasetReader  # noqa: E402
from recipe.intake.writer import Writer  # noqa: E402

PIECES = [
    *b"<! ]]> <![CDATA[ <!-- &#0; &#xD800; &lt; &x; </row> </c> <v> <f> -1 1e999 NaN 99999999999999999999".split(),
    *b'"conversation": "messages": "from": [ ] { } " "" , ; <|im_end|> </s> _x0000_ _xD800_ \\ud800 0.5% null'.split(),
    b"<row ", b"<c ", b' r="ZZZZ9"', b' r="A0"', b' t="s"', b' t="e"', b' t="d"', b' s="99999999"', b"\t", b"\n", b"\r",
    b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"\xe2\x80\x8b", b"\xef\xbf\xbd", b'mergeCell ref="A1:A9"',
    b"<!DOCTYPE x [<!ENTITY x 'x'>]>", "问题".encode("gb18030"), "回答".encode("utf-16"), "对话".encode(),
]  # fmt: skip


def seeds(folder):
    """Good files of every kind, their bytes by name."""
    book = openpyxl.Workbook()
    sheet = book.active
    for row in [["对话", "问题", "回答"], [1, "甲", "一"], [1, "乙", 52], [None, "丙", 0.5], ["x", "丁", True]]:
        sheet.append(row)
    sheet["C4"].number_format = "0.0%"
    sheet.merge_cells("A2:A3")
    book.create_sheet("other").append(["note"])
    buffer = io.BytesIO()
    book.save(buffer)
    rows = [{"q": "问", "a": "答"}, {"q": "甲,乙", "a": '说"好"\n二'}]
    pandas.DataFrame(rows).to_parquet(str(folder / "seed.parquet"))
    records = [
        {"conversation": [{"system": "s", "input": "问", "output": "答"}, {"input": "二", "output": "三"}]},
        {"messages": [{"role": "user", "content": "问"}, {"role": "assistant", "content": "答"}]},
        {"conversations": [{"from": "human", "value": "问"}, {"from": "gpt", "value": "答"}]},
        {"instruction": "做", "input": "这", "output": "好", "history": [["一", "二"]]},
        *rows,
    ]
    text = 'q,a\n问,答\n"甲,乙","说""好""\n二"\n'
    return {
        "mine.xlsx": buffer.getvalue(),
        "sample.xlsx": (ROOT / "data" / "workplace.xlsx").read_bytes(),
        "mine.parquet": (folder / "seed.parquet").read_bytes(),
        "mine.jsonl": "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode(),
        "mine.json": json.dumps(records, ensure_ascii=False, indent=1).encode(),
        "mine.csv": text.encode(),
        "gbk.csv": text.encode("gb18030"),
        "utf16.tsv": text.replace(",", "\t").encode("utf-16"),
    }


def mutated(content, chance):
    """`content` with a few places changed."""
    out = bytearray(content)
    for _ in range(chance.choice((1, 1, 2, 4, 16))):
        at = chance.randrange(len(out) + 1)
        kind = chance.randrange(5)
        if kind == 0:
            out[at:at] = chance.choice(PIECES)
        elif kind == 1:
            out[at : at + chance.choice((1, 2, 8, 64))] = b""
        elif kind == 2:
            out[at : at + 1] = bytes([chance.randrange(256)])
        elif kind == 3:
            start = chance.randrange(len(out) + 1)
            out[at:at] = out[start : start + chance.choice((4, 32, 256))]
        else:
            out = out[:at] if chance.random() < 0.3 else out
    return bytes(out)


def changed(name, content, chance):
    """One changed file; workbooks mostly inside."""
    if not name.endswith(".xlsx") or chance.random() < 0.2:
        return mutated(content, chance)
    archive = zipfile.ZipFile(io.BytesIO(content))
    parts = {part: archive.read(part) for part in archive.namelist()}
    part = chance.choice([p for p in parts if "theme" not in p and "docProps" not in p])
    if chance.random() < 0.05:
        del parts[part]
    else:
        parts[part] = mutated(parts[part], chance)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as packed:
        for key, value in parts.items():
            packed.writestr(key, value)
    return buffer.getvalue()


def read(path, settings):
    """Read `path`; whether it was accepted. What was accepted is checked."""
    stream = io.StringIO()
    reader = DatasetReader(settings, Writer(stream, "系统"))
    reader.read_conversations(path, path.name)
    reader.writer.flush()
    try:
        reader.errors.raise_if_any()
    except InputWrong:
        return False
    for line in stream.getvalue().split("\n")[:-1]:
        for turn in json.loads(line)["conversation"]:
            assert set(turn) <= {"system", "input", "output"}
            for text in turn.values():
                text.encode("utf-8")
                assert any(c.isprintable() and not c.isspace() for c in text)
                assert not CONTROL_TOKEN.search(text)
    return True


def main(seconds=60.0, seed=0):
    chance = random.Random(seed)
    folder = Path(tempfile.mkdtemp())
    good = seeds(folder)
    tried = accepted = 0
    slowest = 0.0
    began = time.monotonic()
    while time.monotonic() - began < seconds:
        name = chance.choice(sorted(good))
        path = folder / name
        path.write_bytes(changed(name, good[name], chance))
        xml_parts.CHUNK = chance.choice((64, 1024, 1 << 16))  # small pieces take the ways that small files never would
        settings = Data(files=[name], skip_blank=chance.random() < 0.5)
        start = time.monotonic()
        try:
            accepted += read(path, settings)
        except BaseException:
            kept = path.rename(path.with_name(f"failed-{seed}-{tried}{path.suffix}"))
            print(f"failed on {kept}, skip_blank={settings.skip_blank}, CHUNK={xml_parts.CHUNK}")
            raise
        slowest = max(slowest, time.monotonic() - start)
        tried += 1
    print(f"{tried:,} files in {seconds:.0f} s (seed {seed}), slowest {slowest:.2f} s:")
    print(f"{accepted:,} read, {tried - accepted:,} refused, none failed")


if __name__ == "__main__":
    main(*[kind(word) for kind, word in zip((float, int), sys.argv[1:])])
