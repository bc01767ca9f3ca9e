"""Keys and columns beside a record's texts. What decides which answers are trained is refused by name.

Sources of the names: OpenAI (weight, tool_calls), ms-swift (loss, loss_scale, rejected_response), LLaMA-Factory
(kto_tag, images), axolotl (train, train_detail, weight), TRL (label, completion_mask, chosen and rejected).
"""

import json
import unicodedata
from typing import Any, Set

from recipe.core.translation import _
from recipe.intake.columns import normalize


def _names(text: str) -> "frozenset[str]":
    return frozenset(map(normalize, text.split()))


# An answer is trained if this is true, or 1.
TRAINED = _names(
    "loss has_loss compute_loss need_loss is_loss train training is_train is_trained is_training train_on "
    "train_on_turn do_train trainable is_trainable enabled is_enabled use is_used valid is_valid label labels kto_tag "
    "is_desirable desirable need_eos_token output_with_loss 训练 是否训练 参与训练 参与损失 计算损失 有效 是否有效 "
    "启用 是否启用 是否采用 是否使用"
)
# The same as a number: anything but 1 makes an answer count less, more or not at all.
WEIGHTS = _names("loss weight weights loss_weight loss_scale sample_weight example_weight 权重 样本权重 损失权重")
MASKS = _names("mask masks loss_mask train_mask completion_mask assistant_mask assistant_masks train_detail 掩码")
# An answer is left out if this is true.
LEFT_OUT = _names(
    "mask masked is_masked 掩码 ignore ignored ignore_loss no_loss skip skipped skip_loss exclude excluded deleted "
    "is_deleted disabled is_disabled invalid 忽略 跳过 排除 作废 是否作废 删除 已删除 是否删除"
)
SPLITS = _names("split subset partition 划分 数据集划分")
HELD_OUT = _names("test testing eval evaluation val valid validation dev holdout 测试 测试集 验证 验证集 评测")
PREFERENCES = _names("rejected rejected_response rejected_messages rejected_output non_preferred_output chosen")
TOOLS = _names("tools functions function_call function_calls tool_calls tool_choice")
MEDIA = _names("image images image_url img video videos audio audios 图片 图像")
HISTORY = _names(
    "history histories chat_history dialog_history dialogue_history conversation_history message_history "
    "previous_turns 历史 历史对话 历史记录 历史消息 对话历史 聊天记录 上文"
)

TRUE = frozenset(("true", "yes", "y", "on", "1", "1.0", "是", "√", "✓", "✔"))
FALSE = frozenset(("false", "no", "n", "off", "0", "0.0", "否", "不", "不训练", "×", "✗", "✘"))
EMPTY = ("", "[]", "{}", "null", "none")


def is_empty(value: Any) -> bool:
    """Whether a key or cell holds nothing."""
    return value is None or value in ([], {}) or (isinstance(value, str) and value.strip().lower() in EMPTY)


def is_history(key: str) -> bool:
    """Whether a key or column names the earlier turns of a conversation."""
    return normalize(key) in HISTORY


def matters(key: str) -> bool:
    """Whether `refusal` refuses some values of this key, apart from images."""
    return any(normalize(key) in group for group in (TRAINED, WEIGHTS, MASKS, LEFT_OUT, SPLITS, PREFERENCES, TOOLS))


def refusal(key: str, value: Any) -> str:
    """Why a record with this key cannot be trained as it is; "" if the key changes nothing."""
    name = normalize(key)
    if is_empty(value):
        return ""
    if name in TOOLS:
        if "call" in name:
            return _(
                "{key}: tool calls are not supported. Leave the record out, or remove tools and tool calls from it",
                key=key,
            )
        return _(
            "{key}: tools are not supported. Leave the record out, or remove tools and tool calls from it", key=key
        )
    if name in MEDIA:
        return _(
            "{key}: only texts are trained here. For questions about images: data.kind=image and a preset of LLaVA",
            key=key,
        )
    if name in PREFERENCES:
        return _(
            "{key} is not supported: preferences are not trained. Keep the good answers, and leave the key out", key=key
        )
    words = {_word(one) for one in (value if isinstance(value, list) else [value])}
    if name in SPLITS and words & HELD_OUT:
        return _(
            "{key} is {value}: every record is trained. Put it into a file of its own: data.eval_files",
            key=key, value=_shown(value),
        )  # fmt: skip
    if not _decides(name, words):
        return ""
    return _(
        "{key} is not supported (found {value}): every answer is trained. Remove what should not be trained, then "
        "{key} everywhere",
        key=key, value=_shown(value),
    )  # fmt: skip


def _decides(name: str, words: Set[str]) -> bool:
    """Whether a flag says that an answer counts less than others, or not at all."""
    no = FALSE - {"no", "n", "不"} if name.startswith("label") else FALSE  # as the name of a class
    return (
        (name in TRAINED and bool(words & no))
        or (name in LEFT_OUT and bool(words & TRUE))
        or (name in WEIGHTS and any(_is_number(word) and float(word) != 1 for word in words))
        or (name in MASKS and any(word in FALSE or _is_number(word) or word[:1] in "[{" for word in words - TRUE))
    )


def _word(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return unicodedata.normalize("NFKC", text).strip().casefold()


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 30 else f"{text[:29]}…"
