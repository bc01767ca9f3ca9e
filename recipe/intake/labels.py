"""Recognises rows that hold no question and answer: further headers, hints, rules, totals, a form's footer.

By meaning, not by one spelling: cells are compared without case, width, punctuation and remarks in brackets.
"""

import re
from typing import Optional, Sequence

from recipe.core.translation import _
from recipe.intake.columns import ANSWER, QUESTION, ROLES, normalize

LONGEST, LONGEST_BESIDE = 20, 30  # characters of a question and of its answer, to be looked at in later rows
FIRST = 3  # rows below the header that are looked at whatever their length

WHO = (
    "客户|用户|顾客|访客|学员|学生|患者|病人|家长|会员|员工|来访者|客服|助手|机器人|坐席|专家|人工|老师|医生|模型|系统|标准|常见|正确|参考|"
    "建议|官方|推荐|简要?|详细?|完整|原始|示例|您的?|你的?|的|"
    "users?|customers?|clients?|students?|patients?|agents?|assistants?|models?|bots?|human|sample|example|your|the|"
    "standard|reference|expected|correct|short|long|full|original|faq"
)
QUESTIONS = (
    "问题?|提问|问句|题目?|咨询|询问|输入|指令|問題?|提問|詢問|questions?|query|queries|prompt|input|instruction|q"
)
ANSWERS = (
    "答案?|回答|回复|答复|解答|应答|话术|输出|回覆|答覆|回應|answers?|response|reply|replies|output|completion|target|a"
)
MORE = "内容|文本|描述|列|字段|语句|正文|text|content|column|field|en|zh|cn|english|chinese|中文|英文"
NAMES = {
    QUESTION: re.compile(f"(?:{WHO})*(?:{QUESTIONS})(?:{MORE})*"),
    ANSWER: re.compile(f"(?:{WHO})*(?:{ANSWERS})(?:{MORE})*"),
}
SPEAKERS = {
    **dict.fromkeys(["用户", "客户", "顾客", "客户说", "用户说", "user", "customer", "human", "client"], QUESTION),
    **dict.fromkeys(
        ["助手", "客服", "机器人", "坐席", "客服说", "assistant", "agent", "gpt", "bot", "chatbot", "ai"], ANSWER
    ),
}
TOTALS = re.compile(
    "(?:总?合计|总计|小计|共计|总数|汇总|总和|平均值?|均值|计数|条数|行数|grandtotal|sub-?total|total|sum|count|average|mean)"
    r"\d*(?:条|行|个|项|题)?|(?:总?共|合计)\d+(?:条|行|个|项|题)?.{0,4}"
)
AMOUNT = re.compile(r"[\W_]*\d[\d,.，%]*\s*(?:条|行|个|项|题|元|字|rows?|items?)?[\W_]*", re.IGNORECASE)
RULE = re.compile(r"[\s\-=_:*~+—–─━═]*(?:-|=|_|\*|~|—|–|─|━|═){2}[\s\-=_:*~+—–─━═]*")
STRICT = (
    "必填项?|选填项?|可选|非必填|不可为空|不能为空|可为空|文本型?|字符串|字符|示例|样例|示例数据|填写说明|required|optional|mandatory|"
    r"notnull|nullable|text|string|str|n?varchar(?:\d+)?|(?:不超过|最多|至多|不多于|限|≤|<=?|max)\d+个?(?:字符?|characters?|chars?|words?)?"
    r"(?:以内)?|\d+个?字符?(?:以内|以下)"
)
HINT = re.compile(
    r"[\W_]*(?:示例|样例|例如|比如|如|例|e\.?g\.?|example)[\W_].*|"
    r"[\W_]*(?:请|此处|这里|此列|本列|该列|please\s+)?(?:在此处?|在这里)?(?:填写|填入|填|输入|写入|写|录入|粘贴|enter|fill|type|write|put|paste).{0,16}"
    r"(?:问|答|题|回复|话术|内容|文本|question|answer|query|response|reply|prompt|text|here).{0,16}(?<![?？])",
    re.IGNORECASE | re.DOTALL,
)
FOOTER = re.compile(r"\W*(?:制表|填表|审核|复核|编制|审批|更新|修订|打印|导出)(?:人|者|日期|时间|部门)?\s*[:：].{0,20}")
STRICT_HINT = re.compile(f"(?:{STRICT})+")
# A name in any language, beside one that is known.
ABOUT = {
    QUESTION: re.compile("(?=.{0,8}$).*(?:问|問|题|題|询|詢|quest|query|prompt|ask|frag|вопр).*"),
    ANSWER: re.compile("(?=.{0,8}$).*(?:答|复|覆|應|话术|answ|repl|respon).*"),
}
ANSWER_NAMES = frozenset(name for name, role in ROLES.items() if role == ANSWER and len(name) > 1)
# A question's cell of any row that this module may recognise after the first rows.
SUSPECT = re.compile(
    rf"[\W\d_]*(?:(?:{WHO})*(?:{QUESTIONS}|{ANSWERS})(?:{MORE})*|{'|'.join([*ROLES, *SPEAKERS])}|"
    rf"(?:{TOTALS.pattern})[\W\d_]*(?:条|行|个|项|题)?|{STRICT}|"
    r"制表.*|填表.*|审核.*|复核.*|编制.*|审批.*|更新.*|修订.*|打印.*|导出.*)[\W_]*(?:[(（\[【].*)?",
    re.IGNORECASE,
)  # fmt: skip
# Tried before SUSPECT, which takes five times as long: only letters that occur in it, then signs.
LETTERS = "".join(sorted(set(re.sub(r"\\.|\W", "", SUSPECT.pattern))))
MAY_BE = re.compile(
    rf"[{LETTERS}\d\W_]+(?:[(（\[【].*)?|(?:制表|填表|审核|复核|编制|审批|更新|修订|打印|导出).*", re.IGNORECASE
)


def is_suspect(question: str, answer: str) -> bool:
    """Whether `reason` and `is_header` have to look at a row whose answer is no longer than LONGEST_BESIDE."""
    if len(question) <= LONGEST and MAY_BE.fullmatch(question) and SUSPECT.fullmatch(question.replace(" ", "")):
        return True
    return answer.casefold() in ANSWER_NAMES or answer.startswith("Err:")


def clean(cell: Optional[str]) -> str:
    """A cell as a name: without case, width, remarks, punctuation and a number in front."""
    bare = re.sub(r"[\W_]+", "", normalize(cell))
    return re.sub(r"^\d+(?=\D)", "", bare)


def role(name: str) -> str:
    """What a cleaned cell would name as a column: question, answer or nothing."""
    known = ROLES.get(name) or SPEAKERS.get(name, "")
    if known in (QUESTION, ANSWER):
        return known
    return next((which for which, pattern in NAMES.items() if pattern.fullmatch(name)), "")


def is_header(header: Sequence[Optional[str]], pair: Sequence[Optional[str]]) -> bool:
    """Whether a question and an answer cell name columns, as the header above them does or in other words."""
    names, again = [clean(cell) for cell in header], [clean(cell) for cell in pair]
    if sorted(names) == sorted(again):
        return True
    # Alone, 问 and 答 are also what somebody types to try things out.
    certain = all(len(name) > 1 or name.isascii() for name in again)
    roles = [role(name) for name in again]
    if certain and set(roles) == {QUESTION, ANSWER}:
        return True
    ends = [bool(re.search(r"[?？。！!，,]\s*$", cell or "")) for cell in pair]
    return not any(ends) and any(
        len(again[known]) > 1 and ROLES.get(again[known]) == named and bool(ABOUT[other].fullmatch(again[1 - known]))
        for known in (0, 1)
        for named, other in ((QUESTION, ANSWER), (ANSWER, QUESTION))
    )


def same_role(name: Optional[str], cell: Optional[str]) -> bool:
    """Whether a cell says the same as the name above it, perhaps in another language."""
    return clean(name) == clean(cell) or role(clean(name)) in ("", role(clean(cell)))


def is_half_header(header: Sequence[Optional[str]], pair: Sequence[Optional[str]]) -> bool:
    """Whether a row right below the header repeats one of its names: a header of two rows."""
    names = [(normalize(name), normalize(cell)) for name, cell in zip(header, pair)]
    return any(name == cell and len(name) > 1 for name, cell in names)


def is_rule(pair: Sequence[Optional[str]]) -> bool:
    """Whether both cells are lines drawn with signs, such as --- in Markdown."""
    return all(RULE.fullmatch(cell or "") for cell in pair)


def reason(number: int, question: str, answer: str) -> str:
    """Why row `number` (from 0) below the header is no question with its answer; "" for all others."""
    pair = (question, answer)
    names = [clean(cell) for cell in pair]
    if is_rule(pair):
        return _("a line drawn with signs")
    if TOTALS.fullmatch(names[0]) and (AMOUNT.fullmatch(answer) or TOTALS.fullmatch(names[1])):
        return _("a total")
    strict = [bool(STRICT_HINT.fullmatch(name)) for name in names]
    hints = [strict[index] or bool(HINT.fullmatch(pair[index])) for index in (0, 1)]
    if all(strict) or (number < FIRST and all(hints)) or (number == 0 and strict[0]):
        return _("a hint for filling in the table")
    if all(map(FOOTER.fullmatch, pair)):
        return _("a form's footer")
    return ""
