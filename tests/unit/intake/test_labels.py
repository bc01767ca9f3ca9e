"""Rows that hold no question and answer, and rows that only look so."""

import openpyxl
import pytest

from support.intake import intake, pairs

ROWS = [["怎么申请年假？", "在系统里填申请，主管同意后生效。"], ["报销要多久？", "材料齐全的话，五个工作日到账。"],
        ["工牌丢了怎么办？", "到前台登记，当天可以补办。"], ["能远程办公吗？",
        "每周最多两天，先和主管商量。"]]  # fmt: skip
AGAIN = [
    ("Question", "Answer"), ("QUESTION", "ANSWER"), ("Q", "A"), ("q", "a"), ("问题", "回答"), ("答案", "问题"),
    ("【问题】", "【答案】"),
    ("问题：", "回答："), ("“提问”", "“回复”"), ("問題", "回覆"), ("質問", "回答"), ("질문", "답변"), ("Pregunta",
    "Respuesta"),
    ("Frage", "Antwort"), ("Вопрос", "Ответ"), ("客户问题", "客服回复"), ("用户的问题", "标准答案"),
    ("Ｑｕｅｓｔｉｏｎ", "Ａｎｓｗｅｒ"),
    ("1.问题", "2.答案"), ("问题(必填)", "回答(必填)"), ("Customer Question", "Agent Reply"), ("prompt", "completion"),
    ("*instruction*", "*output*"), ("用户", "助手"), ("user", "assistant"), (" 问 题 ", "答 案"), ("お問い合わせ",
    "回答"), ("问题", "标准话术"), ("Fragen", "Antwort"),
]  # fmt: skip


@pytest.mark.parametrize("again", AGAIN, ids=lambda pair: pair[0])
@pytest.mark.parametrize("header", [("问题", "回答"), ("question", "answer"), ("q", "a")], ids=lambda pair: pair[0])
def test_a_further_header_is_refused_with_its_row(tmp_path, header, again):
    for place in (2, 4):
        rows = [header, *ROWS[:place], again, *ROWS[place:]]
        path = tmp_path / "x.csv"
        path.write_text("".join(f'"{q}","{a}"\n' for q, a in rows), encoding="utf-8")
        got = intake(path)
        assert f"row {place + 2}: another header" in got, got


@pytest.mark.parametrize(
    "again", [("Question", "Answer"), ("問題", "答案"), ("用户的问题", "标准答案"), ("问题", "回答")]
)
def test_a_header_in_two_languages_is_one(workbook, again):
    assert pairs(workbook(s=[["问题", "回答"], list(again), *ROWS])) == [tuple(row) for row in ROWS]
    assert "row 2: another header" in intake(workbook(s=[["问题", "回答"], list(again)[::-1], *ROWS]))


@pytest.mark.parametrize(
    ("first", "second", "merged"),
    [
        (["问题", "回答", None], [None, "简答", "详答"], ["A1:A2", "B1:C1"]),
        (["问题", "回答", None], [None, "简版", "详版"], ["A1:A2", "B1:C1"]),
        (["问题", None, "回答"], ["原问", "改写", None], ["C1:C2", "A1:B1"]),
        (["问题", "回答", None], ["问题", "客服", "专家"], []),
        (["编号", "问题", "回答", None], [None, None, "中文", "英文"], ["A1:A2", "B1:B2", "C1:D1"]),
    ],
)
def test_a_header_of_two_rows_is_refused(tmp_path, first, second, merged):
    book = openpyxl.Workbook()
    for row in [first, second, *(["1", *row, "更多"][-len(first) :] for row in ROWS)]:
        book.active.append(row)
    for cells in merged:
        book.active.merge_cells(cells)
    book.save(str(tmp_path / "x.xlsx"))
    assert "row 2: a header of two rows" in intake(tmp_path / "x.xlsx")


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (("---", "---"), "a line drawn"), (("*****", "*****"), "a line drawn"), (("————", "————"), "a line drawn"),
        (("合计", "128"), "a total"), (("总计：", "20 条"), "a total"), (("Total", "20"), "a total"),
        (("共20条", "20"), "a total"), (("平均", "3.5"), "a total"), (("小计", "共 4 条"), "a total"),
        (("必填", "必填"), "a hint"), (("（必填）", "（选填）"), "a hint"), (("string", "string"), "a hint"),
        (("不超过50字", "不超过500字"), "a hint"), (("文本", "文本"), "a hint"), (("Required", "Optional"), "a hint"),
        (("制表人：张三", "审核人：李四"), "a form's footer"), (("审核：王五", "日期时间：无"), ""),
    ],
)  # fmt: skip
def test_rows_that_are_none_are_refused_anywhere(workbook, row, words):
    for place in (0, 2, 4):
        rows = [["问题", "回答"], *ROWS[:place], list(row), *ROWS[place:]]
        got = intake(workbook(s=rows))
        if words:
            assert f"row {place + 2}: {words}" in got, got
        else:
            assert isinstance(got, list), got


@pytest.mark.parametrize(
    "row",
    [("请填写用户的问题", "请填写标准答案"), ("在此输入问题", "在此输入回答内容"), ("示例：怎么请假？",
    "示例：在系统里填。"),
     ("Enter the question here", "Enter the answer here"), ("必填", "可以包含换行"), ("如：怎么请假",
     "如：在系统里填"), ("必填，50字以内", "必填，500字以内"), ("(请在此粘贴客户的提问)", "(请在此粘贴客服的回复)")],
)  # fmt: skip
def test_hints_below_the_header_are_refused(workbook, row):
    assert "row 2: a hint" in intake(workbook(s=[["问题", "回答"], list(row), *ROWS]))


@pytest.mark.parametrize(
    "row",
    [
        ("输入密码错误怎么办？", "请输入正确的密码。"), ("问题", "您好，请问有什么问题？"), ("合计怎么算？",
        "把各项相加，得128。"),
        ("“回答”用英语怎么说？", "answer"), ("下面哪个对？A 或 B", "A"), ("你好", "你好"), ("总数是多少？", "20"),
        ("必填项没填怎么办？", "必填"), ("怎么输入问题？", "点输入框，填写问题内容。"), ("用户",
        "用户是使用产品的人。"), ("在吗", "在的"),
        ("—", "破折号"), ("……", "怎么了？"), ("Total?", "It is 20."), ("客户问题很多怎么办？", "逐条回答"),
        ("What???", "Sorry!"),
        ("请填写表单后怎么办？", "等主管回复即可。"), ("问", "答"), ("1+1", "2"), ("回答问题", "好的，请讲。"),
        ("answer 的意思", "回答"), ("问题在哪？", "答案"), ("有问题，", "回答"), ("你好", "你好吗"),
    ],
)  # fmt: skip
def test_rows_that_only_look_so_are_read(workbook, row):
    for place in (0, 4):
        assert tuple(row) in pairs(workbook(s=[["query", "response"], *ROWS[:place], list(row)]))


@pytest.mark.parametrize(
    "text",
    [
        "| 问题 | 回答 |\n|---|---|\n| 甲？ | 一 |\n", "问题 | 回答\n:--- | ---:\n甲？ | 一\n",
        "| 问题 | 回答 |\n|:-:|:-:|\n| 甲？ | 一 |\n|---|---|\n", "|问题|回答|\n|-|-|\n|甲？|一|\n",
    ],
)  # fmt: skip
def test_tables_of_markdown_have_no_rules(tmp_path, text):
    (tmp_path / "x.txt").write_text(text, encoding="utf-8")
    assert pairs(tmp_path / "x.txt") == [("甲？", "一")]


@pytest.mark.parametrize(
    ("header", "names"),
    [
        (["问题", "回答", None, "客户说", "话术"], "客户说, 话术"), (["问题", "回答", None, None, "场景", "说法"],
        "场景, 说法"),
        (["编号", "问题", "回答", None, "编码", "说法二"], "编码, 说法二"),
    ],
)  # fmt: skip
def test_a_second_table_beside_the_first_is_told(workbook, tmp_path, header, names):
    from support.command import recipe

    rows = [header, *([f"{name}{number}" if name else None for name in header] for number in range(5))]
    path = workbook(s=rows)
    done = recipe("data", "tiny", f'data.files=["{path}"]', "--output", tmp_path)
    assert f"not read: a second table beside the first in {path} ({names})" in done.stdout


CLEAN = {
    "two columns": [["q", "a"], *ROWS],
    "Chinese names": [["问题", "答案"], *ROWS],
    "a title above": [["员工常见问题（2026 版）"], [], ["问题", "回答"], *ROWS],
    "a number in front": [["序号", "问题", "回答"], *([n, *row] for n, row in enumerate(ROWS, 1))],
    "English": [["Question", "Answer"], ["How do I ask for leave?", "Fill in the form."], ["Is it \"free\"?",
    "Yes & no."]],
    "French": [["Question", "Réponse"], ["Où poser mes congés ?", "Sur l'intranet, « Congés »."], ["Ça va ?",
    "Très bien !"]],
    "turns": [["会话ID", "轮次", "问题", "回答"], *([n // 2 + 1, n % 2 + 1, *row] for n, row in enumerate(ROWS))],
    "a system prompt": [["系统提示", "用户提问", "助手回答"], *(["你是助手。", *row] for row in ROWS)],
    "Alpaca": [["instruction", "input", "output"], ["翻译成英文", "你好", "Hello"], ["写一句诗", None, "山高月小"]],
    "short answers": [["题目", "答案"], ["1+1=?", 2], ["天空是什么颜色", "蓝"], ["选择：A 还是 B", "A"],
    ["今天几号", "17"]],
    "line breaks and lists": [["问题", "回答"], ["怎么办？", "第一,列清单。\n第二,排序。\n第三,沟通。"], ["代码？",
    "print('a\\n')\nx = 1"]],
    "traditional": [["問題", "回答"], ["怎麼請假？", "先填表單，再請主管簽名。"], ["加班費怎麼算？", "依勞基法計算。"]],
    "emoji and symbols": [["问题", "回答"], ["开心吗？😀", "当然👨‍👩‍👧！❤️"], ["多少度？", "25°C ± 2…“左右”——"],
    ["真的???", "真的！！"]],
}  # fmt: skip


@pytest.mark.parametrize("name", CLEAN)
def test_clean_workbooks_pass_without_a_word(workbook, tmp_path, name):
    import csv
    import json

    from support.command import recipe

    path = workbook(s=CLEAN[name])
    with (tmp_path / "x.csv").open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows(CLEAN[name])
    for file in (path, tmp_path / "x.csv"):
        assert isinstance(intake(file), list), intake(file)
    done = recipe("data", "tiny", f'data.files=["{path}", "{tmp_path / "x.csv"}"]', "--output", tmp_path)
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "tiny/run.json").read_text("utf-8"))["stages"]["data"]["figures"]
    assert figures["notes"] == {}
    assert figures["skipped"] == []
    assert not any(one["beside"] or "without a name" in str(one["unused"]) for one in figures["read"])


@pytest.mark.parametrize("recipe_name", ["tiny"])
def test_the_sample_passes_without_a_word(tmp_path, recipe_name):
    from support.command import recipe

    done = recipe("data", recipe_name, "data.files=data/workplace.xlsx", "--output", tmp_path)
    assert done.stdout.count(";") == 1, done.stdout  # what is held out


def test_the_tutorials_workbook_passes_without_a_word(real_workbook, tmp_path):
    from support.command import recipe

    done = recipe("data", "tiny", f'data.files=["{real_workbook}"]', "data.eval_share=0", "--output", tmp_path)
    assert done.returncode == 0, done.stderr
    assert ";" not in done.stdout
