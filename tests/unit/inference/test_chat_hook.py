"""The questions asked during training: the text that XTuner's hook logs, all at once, without touching training."""

from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config, ConfigDict

from recipe.base_model import model_code
from recipe.core import imports

imports.load()

from peft import LoraConfig  # noqa: E402
from xtuner.engine.hooks import EvaluateChatHook  # noqa: E402
from xtuner.model import SupervisedFinetune  # noqa: E402

from recipe.inference.chat_hook import BatchChatHook  # noqa: E402
from support.tiny_model import TEXTS, make  # noqa: E402

QUESTIONS = [
    "总是焦虑，怎么办？",
    "怕开会发言",
    "我在医院工作3年了，睡不着，怎么办？",
    "想辞职",
    "和领导合不来，总是焦虑，怎么办？",
]
TEMPLATE = ConfigDict(SYSTEM="[SYS]{system}\n", INSTRUCTION="<|user|>{input}\n<|bot|>", STOP_WORDS=["天"])


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    make(folder, TEXTS)
    return folder


@pytest.fixture
def runner(place, tmp_path):
    torch.manual_seed(3)
    llm = model_code.load_model(place, torch_dtype=torch.float32)
    lora = LoraConfig(r=4, lora_alpha=16, lora_dropout=0.1, target_modules=["wqkv", "w1"], task_type="CAUSAL_LM")
    model = SupervisedFinetune(llm, lora).train()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_()
    logged = []
    (tmp_path / "vis_data").mkdir()
    return SimpleNamespace(
        model=model, cfg=Config(dict(lr=1)), logger=SimpleNamespace(info=logged.append), logged=logged, iter=0,
        log_dir=str(tmp_path), file=tmp_path / "vis_data" / "eval_outputs_iter_0.txt",
    )  # fmt: skip


def make_hook(kind, place, greedy=True, stop_words=()):
    hook = kind(
        dict(type=lambda: model_code.load_tokenizer(place)), QUESTIONS, system="教练", prompt_template=TEMPLATE,
        every_n_iters=2, max_new_tokens=12, stop_words=list(stop_words),
    )  # fmt: skip
    hook.decodes_on_cpu = True
    hook.gen_config.do_sample = not greedy
    return hook


def answers(runner, hook):
    runner.logged.clear()
    hook._generate_samples(runner, save_eval_output=True)
    return list(runner.logged), runner.file.read_text(encoding="utf-8")


def test_greedy_answers_are_logged_as_xtuner_logs_them(runner, place):
    whole = answers(runner, make_hook(EvaluateChatHook, place))
    assert whole == answers(runner, make_hook(BatchChatHook, place))
    assert len(whole[0]) == len(QUESTIONS)
    words = [text.strip()[-4:-2] for text in whole[0]]  # the answers' own
    stopped = answers(runner, make_hook(EvaluateChatHook, place, stop_words=words))
    assert stopped == answers(runner, make_hook(BatchChatHook, place, stop_words=words))
    assert stopped != whole


def test_training_goes_on_as_if_nothing_was_asked(runner, place):
    before = {name: value.clone() for name, value in runner.model.state_dict().items()}
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    make_hook(BatchChatHook, place, greedy=False)._generate_samples(runner, max_new_tokens=5)
    assert torch.equal(torch.rand(3), expected)
    assert runner.model.training
    after = runner.model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_a_request_to_stop_ends_the_answers(runner, place):
    hook = make_hook(BatchChatHook, place)
    hook.stop_criteria.append(lambda ids, scores, **_: True)
    hook._generate_samples(runner)
    lengths = {len(hook.tokenizer.encode(text)) for text in runner.logged}
    assert len(runner.logged) == len(QUESTIONS)
    assert max(lengths) < 60


@pytest.mark.parametrize("reason", ["differs", "memory", "family"])
def test_otherwise_the_questions_are_asked_one_after_the_other(runner, place, reason, monkeypatch):
    from recipe.inference import chat_hook

    asked = []
    monkeypatch.setattr(EvaluateChatHook, "_eval_language", lambda *given: asked.append(given))
    if reason == "family":
        monkeypatch.setattr(chat_hook.decoding, "obstacle", lambda _: "not InternLM2")
    else:
        error = torch.cuda.OutOfMemoryError("full")

        def fault(*_):
            if reason == "memory":
                raise error
            return "it differs"

        monkeypatch.setattr(chat_hook.decoding.Decoder, "fault", fault)
    make_hook(BatchChatHook, place)._generate_samples(runner)
    assert len(asked) == 1
