"""The page's texts in English and Chinese."""

from typing import Dict, Tuple

LANGUAGES = {"English": "en", "中文": "zh-CN"}

TEXTS: Dict[str, Tuple[str, str]] = {
    "title talk": ("Base and tuned models side by side", "原模型与微调后，并排对比"),
    "title run": ("Training status", "训练实况"),
    "title data": ("Data report", "数据报告"),
    "page": ("Page", "页面"),
    "talk": ("Talk", "对话"),
    "run": ("Run", "训练"),
    "data": ("Data", "数据"),
    "base": ("Base", "原模型"),
    "tuned": ("Tuned", "微调后"),
    "you": ("You asked", "提问"),
    "sampling": ("Parameters", "参数"),
    "temperature": ("Temperature (0: most likely answer)", "温度（0：最可能的回答）"),
    "top_p": ("Top-p", "Top-p"),
    "limit": ("Maximum answer length (tokens)", "回答最多词元数"),
    "seed": ("Seed", "随机种子"),
    "system": ("System prompt", "系统提示词"),
    "none": ("none", "无"),
    "samples": ("Questions to try", "示例问题"),
    "ask": ("Ask both models", "向两个模型提问"),
    "keys": ("Enter sends, Shift+Enter starts a new line.", "回车发送，Shift+回车换行。"),
    "less": ("less", "减小"),
    "more": ("more", "增大"),
    "send": ("Send", "发送"),
    "stop": ("Stop", "停止"),
    "new": ("New chat", "新对话"),
    "copy": ("Copy", "复制"),
    "copied": ("Copied", "已复制"),
    "download": ("Download", "下载"),
    "loading": ("Loading the model.", "正在加载模型。"),
    "waiting": ("Waiting: {} ahead of you.", "排队中：前面还有 {} 个。"),
    "next": ("You are next.", "马上轮到您。"),
    "answering": ("Answering.", "正在回答。"),
    "later": ("after the base model", "原模型之后"),
    "stopped": ("stopped", "已停止"),
    "cut": ("length limit reached", "达到长度上限，已截断"),
    "dropped": ("{} earlier turns did not fit and were left out.", "较早的 {} 轮对话超出长度，模型未看到。"),
    "failed": ("No answer: {}", "没有回答：{}"),
    "nothing": ("(empty)", "（空）"),
    "under way": ("Training is running", "训练进行中"),
    "trained": ("Trained", "训练已完成"),
    "halted": ("Training was interrupted; run the same command to resume", "训练中断；重新执行同一命令即可继续"),
    "begins": ("Training is about to start", "训练即将开始"),
    "not yet": ("Nothing is trained yet", "尚未训练"),
    "iteration": ("Iteration", "迭代"),
    "progress": ("Progress", "进度"),
    "loss": ("Training loss", "训练损失"),
    "lr": ("Learning rate", "学习率"),
    "memory_mb": ("GPU memory", "显存"),
    "left": ("Time left", "剩余"),
    "took": ("Time in iterations", "迭代用时"),
    "said": ("Answers during training", "训练中的回答"),
    "at": ("at iteration {}", "第 {} 次迭代"),
    "no curve": ("No training log yet.", "尚无日志。"),
    "no answers": ("No answers yet.", "尚未提问。"),
    "no data": ("The data stage has not run yet.", "尚未读取数据。"),
    "refresh": ("Refresh", "刷新"),
}

# Texts in the charts of recipe/reporting.
CHARTS = {
    "Training loss": "训练损失",
    "Gradient norm": "梯度范数",
    "Learning rate": "学习率",
    "GPU memory, MiB": "显存（MiB）",
    "Seconds per iteration": "每次迭代秒数",
    "each iteration": "每次迭代",
    "mean over 10": "10 次平均",
    "actual": "实际",
    "planned": "计划",
    "configured": "设定值",
    "peak so far": "目前峰值",
    "iteration": "迭代",
}


def translate(key: str, language: str, *values: object) -> str:
    """The text of `key` in `language` (en, zh-CN)."""
    return TEXTS[key][language == "zh-CN"].format(*values)
