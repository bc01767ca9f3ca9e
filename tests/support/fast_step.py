"""A tiny model as XTuner trains it and as the fast step does, with the same weights."""

import copy

import torch

from recipe.base_model.tiny.configuration_internlm2 import InternLM2Config
from recipe.base_model.tiny.modeling_internlm2 import InternLM2ForCausalLM
from recipe.core import imports

imports.load()

from peft import LoraConfig  # noqa: E402
from xtuner.model import SupervisedFinetune  # noqa: E402

from recipe.training.fast.finetune import Finetune  # noqa: E402

TARGETS = ["wqkv", "wo", "w1", "w2", "w3"]


def models(dropout=0.0, **more):
    """(stock, fast): the same frozen weights and the same LoRA, no entry of it zero."""
    sizes = dict(vocab_size=300, hidden_size=64, intermediate_size=112, num_hidden_layers=3)
    llm = InternLM2ForCausalLM(InternLM2Config(**sizes, num_attention_heads=8, num_key_value_heads=2))
    with torch.no_grad():
        for one in llm.parameters():
            one.copy_(1 + torch.randn_like(one) / 5 if one.dim() == 1 else torch.randn_like(one) / one.shape[-1] ** 0.5)
    made = [
        kind(copy.deepcopy(llm), LoraConfig(r=8, lora_alpha=16, lora_dropout=dropout, target_modules=TARGETS), **words)
        for kind, words in ((SupervisedFinetune, {}), (Finetune, more))
    ]
    with torch.no_grad():
        for a, b in zip(*(trained(one).values() for one in made)):
            b.copy_(a.copy_(torch.randn_like(a) / 8))
    return [one.train() for one in made]


def trained(model):
    return {name: one for name, one in model.named_parameters() if one.requires_grad}


def batch(rows=3, tokens=40, padded=False):
    """Questions not learned; padded as XTuner's collate function pads."""
    ids = torch.randint(3, 300, (rows, tokens))
    labels = ids.clone()
    for row in range(rows):
        labels[row, : int(torch.randint(1, tokens // 2, ()))] = -100
        if padded and row:
            end = int(torch.randint(tokens // 2, tokens, ()))
            ids[row, end:], labels[row, end:] = 0, -100
    return dict(input_ids=ids, attention_mask=ids.ne(0), labels=labels)


def loss_and_gradients(model, data):
    for one in model.parameters():
        one.grad = None
    loss = model(data, mode="loss")["loss"]
    loss.backward()
    return loss.detach(), {name: one.grad for name, one in trained(model).items()}
