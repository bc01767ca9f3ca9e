"""Which column is which: by the names that people give them, in Chinese and English."""

import re
import unicodedata
from typing import Any, Dict, List, NamedTuple, Sequence

QUESTION, ANSWER, SYSTEM, CONVERSATION, TURN = "question", "answer", "system", "conversation", "turn"
MORE = "more"  # Alpaca's `input` beside its `instruction`: the rest of the question
NAMES = {
    QUESTION: "q question questions query prompt input instruction user human "
    "问 问题 提问 问句 题目 输入 指令 咨询 用户问题 用户提问 用户输入 咨询问题 咨询内容 问题内容",
    ANSWER: "a answer answers response reply output completion assistant target "
    "答 答案 回答 回复 答复 解答 输出 应答 标准答案 正确答案 参考答案 参考回答 助手回答 回复内容 回答内容",
    SYSTEM: "system systemprompt systemmessage 系统提示 系统提示词 系统设定 系统消息",
    CONVERSATION: "conversation conversationid convid dialog dialogid dialogue dialogueid session sessionid "
    "对话 对话id 对话编号 对话号 会话 会话id 会话编号 会话号",
    TURN: "turn turnid round 轮 轮次 轮数 轮号 回合",
}
ROLES = {name: role for role, names in NAMES.items() for name in names.split()}


class AmbiguousColumn(Exception):
    """More than one column could be meant; the text names them."""


class Columns(NamedTuple):
    """Role → index of its column, and the names of the columns that have no role."""

    roles: Dict[str, int]
    unused: List[str]


def normalize(name: Any) -> str:
    """A header cell without what does not count: case, width, spaces, a remark in brackets, a colon or star."""
    text = unicodedata.normalize("NFKC", "" if name is None else str(name)).casefold()
    text = re.sub(r"[(\[（【].*[)\]）】]\s*$", "", text) or text
    return re.sub(r"[\s_\-:*\u200b\ufeff]+", "", text)


def find_columns(header: Sequence[Any], chosen: Dict[str, str]) -> Columns:
    """The columns of a header. `chosen` (role → name) goes before all names known here.

    Raises AmbiguousColumn when two columns could be the same thing.
    """
    folded = [normalize(name) for name in header]
    roles: Dict[str, int] = {}
    taken: Dict[int, str] = {}
    for role, name in chosen.items():
        at = [index for index, one in enumerate(header) if str(one).strip() == name.strip()]
        at = at or [index for index, one in enumerate(folded) if one and one == normalize(name)]
        if len(at) > 1:
            raise AmbiguousColumn(f"the column {name} is there {len(at)} times. Rename or delete the others")
        if at:
            roles[role] = at[0]
            taken[at[0]] = role
    for role in NAMES:
        if chosen.get(role):
            continue
        at = [index for index, one in enumerate(folded) if ROLES.get(one) == role and index not in taken]
        if role == ANSWER and "b" in folded:
            at = [index for index in at if folded[index] != "a"]  # the first choice of several
        names = [folded[index] for index in at]
        if role == QUESTION and sorted(names) == ["input", "instruction"]:
            roles[QUESTION], roles[MORE] = at[names.index("instruction")], at[names.index("input")]
        elif len(set(names)) < len(names):
            double = next(str(header[index]).strip() for index, name in zip(at, names) if names.count(name) > 1)
            raise AmbiguousColumn(f"the column {double} is there twice. Rename or delete one")
        elif len(at) > 1:
            found = " and ".join(str(header[index]).strip() for index in at)
            raise AmbiguousColumn(
                f"{found} could both be the {role}. Say which: data.columns.{role}={str(header[at[0]]).strip()}"
            )
        elif at:
            roles[role] = at[0]
            if names == ["instruction"] and "context" in folded:  # Dolly
                roles[MORE] = folded.index("context")
    used = set(roles.values())
    unused = [str(name).strip() for index, name in enumerate(header) if index not in used and normalize(name)]
    return Columns(roles, unused)


def is_header(header: Sequence[Any], chosen: Dict[str, str]) -> bool:
    """Whether a row names a question and an answer column, in doubt or not."""
    try:
        return {QUESTION, ANSWER} <= set(find_columns(header, chosen).roles)
    except AmbiguousColumn:
        folded = {normalize(name) for name in header}
        known = {ROLES.get(name) for name in folded} | {
            role for role, name in chosen.items() if normalize(name) in folded
        }
        return {QUESTION, ANSWER} <= known


def is_repeated_header(header: Sequence[Any], row: Sequence[Any]) -> bool:
    """Whether a row below the header names question and answer again: by the same names, or by others as plain."""
    names, again = sorted(map(normalize, header)), sorted(map(normalize, row))
    roles = {ROLES.get(name) for name in again}
    return names == again or (roles == {QUESTION, ANSWER} and all(len(name) > 1 for name in again))
