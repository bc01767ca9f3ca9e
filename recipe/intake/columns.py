"""Recognises columns by the header names that people use, in Chinese and English."""

import functools
import re
import unicodedata
from typing import Any, Dict, List, NamedTuple, Sequence

from recipe.core.translation import _, listed

QUESTION, ANSWER, SYSTEM, CONVERSATION, TURN = "question", "answer", "system", "conversation", "turn"
MORE = "more"  # the rest of the question: Alpaca's `input` beside its `instruction`
NAMES = {
    QUESTION: "q question questions query prompt input instruction user human "
    "问 问题 提问 问句 题目 输入 指令 咨询 用户问题 用户提问 用户输入 咨询问题 咨询内容 问题内容 "
    "問 問題 提問 詢問 質問 질문 문의 pregunta pergunta domanda frage вопрос câuhỏi",
    ANSWER: "a answer answers response reply output completion assistant target "
    "答 答案 回答 回复 答复 解答 输出 应答 标准答案 正确答案 参考答案 参考回答 助手回答 回复内容 回答内容 "
    "回覆 答覆 回應 답변 대답 답 respuesta resposta risposta réponse antwort ответ trảlời",
    SYSTEM: "system systemprompt systemmessage 系统提示 系统提示词 系统设定 系统消息",
    CONVERSATION: "conversation conversationid convid dialog dialogid dialogue dialogueid session sessionid "
    "对话 对话id 对话编号 对话号 会话 会话id 会话编号 会话号",
    TURN: "turn turnid round 轮 轮次 轮数 轮号 回合",
}
ROLES = {name: role for role, names in NAMES.items() for name in names.split()}


class AmbiguousColumn(Exception):
    """More than one column could be meant. The text names them."""


class Columns(NamedTuple):
    """Role → index of its column, and the names of the columns that have no role."""

    roles: Dict[str, int]
    unused: List[str]


@functools.lru_cache(maxsize=4096)  # the keys of a JSON file are the same in every record
def normalize(name: Any) -> str:
    """A header cell without case, width, spaces, a final remark in brackets, colons and stars."""
    text = unicodedata.normalize("NFKC", "" if name is None else str(name)).casefold()
    text = re.sub(r"[(\[（【].*[)\]）】]\s*$", "", text) or text
    return re.sub(r"[\s_\-:*\u200b\ufeff]+", "", text)


def label(name: Any) -> str:
    """A header cell as messages show it."""
    return str(name).strip()


def show_header(cells: Sequence[Any]) -> str:
    """A row, shortened for a message."""
    return listed(label(cell)[:20] for cell in cells if cell)


def role_name(role: str) -> str:
    """A role as messages name it."""
    names = {
        QUESTION: _("question"), ANSWER: _("answer"), SYSTEM: _("system prompt"), CONVERSATION: _("conversation"),
        TURN: _("turn"),
    }  # fmt: skip
    return names.get(role, role)


def find_columns(header: Sequence[Any], chosen: Dict[str, str]) -> Columns:
    """The columns of a header. `chosen` (role → name) takes precedence over the names known here.

    Raises AmbiguousColumn when two columns could have the same role.
    """
    normalized = [normalize(name) for name in header]
    roles = _chosen_columns(header, normalized, chosen)
    taken = set(roles.values())
    for role in NAMES:
        if chosen.get(role):
            continue
        at = [index for index, name in enumerate(normalized) if ROLES.get(name) == role and index not in taken]
        if role == ANSWER and "b" in normalized:
            at = [index for index in at if normalized[index] != "a"]  # A, B, C: choices of a question
        names = [normalized[index] for index in at]
        if role == QUESTION and sorted(names) == ["input", "instruction"]:
            roles[QUESTION], roles[MORE] = at[names.index("instruction")], at[names.index("input")]
        elif len(set(names)) < len(names):
            double = next(label(header[index]) for index, name in zip(at, names) if names.count(name) > 1)
            raise AmbiguousColumn(_("the column {column} appears twice. Rename or delete one", column=double))
        elif len(at) > 1:
            raise AmbiguousColumn(
                _(
                    "{columns} could both be the {role}. Say which: {setting}={column}",
                    columns=_(" and ").join(label(header[index]) for index in at), role=role_name(role),
                    setting=f"data.columns.{role}", column=label(header[at[0]]),
                )
            )  # fmt: skip
        elif at:
            roles[role] = at[0]
            if names == ["instruction"] and "context" in normalized:  # Dolly
                roles[MORE] = normalized.index("context")
    used = set(roles.values())
    return Columns(roles, [label(name) for at, name in enumerate(header) if at not in used and normalized[at]])


def _chosen_columns(header: Sequence[Any], normalized: Sequence[str], chosen: Dict[str, str]) -> Dict[str, int]:
    roles = {}
    for role, name in chosen.items():
        at = [index for index, one in enumerate(header) if label(one) == name.strip()]
        at = at or [index for index, one in enumerate(normalized) if one and one == normalize(name)]
        if len(at) > 1:
            raise AmbiguousColumn(
                _("the column {column} appears {n} times. Rename or delete the others", column=name, n=len(at))
            )
        if at:
            roles[role] = at[0]
    return roles


def is_header(header: Sequence[Any], chosen: Dict[str, str]) -> bool:
    """Whether a row names a question and an answer column, even if ambiguously."""
    try:
        return {QUESTION, ANSWER} <= set(find_columns(header, chosen).roles)
    except AmbiguousColumn:
        names = {normalize(name) for name in header}
        known = {ROLES.get(name) for name in names} | {
            role for role, name in chosen.items() if normalize(name) in names
        }
        return {QUESTION, ANSWER} <= known
