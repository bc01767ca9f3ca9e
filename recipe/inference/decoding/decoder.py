"""Answers of a loaded InternLM2."""

from collections import OrderedDict
from typing import Any, Callable, List, Optional, Sequence, Tuple

import torch

from recipe.inference.decoding.check import find_fault
from recipe.inference.decoding.network import Network, obstacle
from recipe.inference.decoding.sampling import Sampler, Settings, is_supported
from recipe.inference.decoding.session import Session, capacity_for

__all__ = ["Decoder", "obstacle"]

KEPT_SESSIONS = 2  # shapes whose cache and recording are kept

IsComplete = Callable[[int, List[int]], bool]


class Decoder:
    """Views the model's weights; of LoRA's it has a copy in the dtype of the computation.

    `record`: whether to use CUDA graphs where the card and the weights allow it.
    """

    def __init__(self, model: Any, record: bool = True) -> None:
        self.network, self.record = Network(model), record
        self._fault: Optional[str] = None
        self.sessions: OrderedDict[Tuple[Any, ...], Session] = OrderedDict()

    def accepts(self, prompts: Sequence[List[int]], limit: int, settings: Settings) -> bool:
        """Whether prompts and answers fit the model's positions, and the settings are supported."""
        fits = max(map(len, prompts)) + limit <= self.network.most
        return fits and is_supported(settings, self.network.causal_lm.generation_config)

    def fault(self, prompts: Sequence[List[int]]) -> str:
        """Why transformers should answer instead; "" if nothing was found. Compared once, with the first prompts."""
        if self._fault is None:
            self._fault = find_fault(self, [list(prompt) for prompt in prompts])
        return self._fault

    def session(self, batch: int, tokens: int) -> Session:
        """The session for rows of at most `tokens` tokens."""
        network = self.network
        key = (batch, capacity_for(tokens, network.most), network.has_lora())
        if key not in self.sessions:
            while len(self.sessions) >= KEPT_SESSIONS:
                self.sessions.popitem(last=False)
            self.sessions[key] = Session(network, *key[:2], recorded=self.record and network.can_record(batch))
        self.sessions.move_to_end(key)
        return self.sessions[key]

    def generate(
        self, prompts: Sequence[List[int]], limit: int, stop_tokens: Sequence[int], pad: int = 0,
        settings: Optional[Settings] = None, streamer: Any = None,
        is_complete: Optional[IsComplete] = None,
    ) -> List[List[int]]:  # fmt: skip
        """The new tokens of each prompt: at most `limit`, up to and including a stop token.

        `settings` and `streamer`: as for `generate`; `is_complete`: whether a row, by its number and its new tokens, is
        complete without a stop token.
        """
        with torch.no_grad(), torch.autocast(self.network.device.type, enabled=False):
            loop = _Loop(self, [list(prompt) for prompt in prompts], limit, pad, settings or {"do_sample": False})
            return loop.run(frozenset(stop_tokens), streamer, is_complete)


class _Loop:
    """One call of `generate`."""

    def __init__(self, decoder: Decoder, prompts: List[List[int]], limit: int, pad: int, settings: Settings) -> None:
        device, self.longest = decoder.network.device, max(map(len, prompts))
        # Padded on the left, as `generate` shows it to the processors and the streamer.
        padded = [[pad] * (self.longest - len(prompt)) + prompt for prompt in prompts]
        self.ids = torch.full((len(prompts), self.longest + limit), pad, dtype=torch.long)
        self.ids[:, : self.longest] = torch.tensor(padded)
        self.ids = self.ids.to(device)
        self.prompts, self.limit, self.pad = prompts, limit, pad
        self.sampler = Sampler(decoder.network.causal_lm, settings, self.ids[:, : self.longest])
        self.session = decoder.session(len(prompts), self.longest + limit)
        self.received = torch.empty(len(prompts), dtype=torch.long, pin_memory=device.type == "cuda")
        self.copied = torch.cuda.Event() if device.type == "cuda" else None

    def run(self, stop_tokens: Any, streamer: Any, is_complete: Optional[IsComplete]) -> List[List[int]]:
        if streamer is not None:
            streamer.put(self.ids[:, : self.longest].cpu())
        logits = self.session.read(self.prompts)
        rows: List[List[int]] = [[] for _ in self.prompts]
        active = set(range(len(rows)))
        for number in range(self.limit):
            chosen, logits = self._next(number, logits, active)
            if streamer is not None:
                streamer.put(torch.tensor([token if row in active else self.pad for row, token in enumerate(chosen)]))
            for row in sorted(active):
                rows[row].append(chosen[row])
                if chosen[row] in stop_tokens or (is_complete is not None and is_complete(row, rows[row])):
                    active.discard(row)
            if not active:
                break
        if streamer is not None:
            streamer.end()
        return rows

    def _next(self, number: int, logits: torch.Tensor, active: Any) -> Tuple[List[int], torch.Tensor]:
        """The next token of each row, and the logits of the one after: the card computes them while Python looks at
        this token. After the last one there is nothing to compute.
        """
        at = self.longest + number
        tokens = self.sampler.choose(self.ids[:, :at], logits)
        if len(active) < len(self.prompts):
            ended = [row for row in range(len(self.prompts)) if row not in active]
            tokens[ended] = self.pad
        self.ids[:, at] = tokens
        self.received.copy_(tokens, non_blocking=True)
        if self.copied is not None:
            self.copied.record()
        if number + 1 < self.limit:
            logits = self.session.step(tokens)
        if self.copied is not None:
            self.copied.synchronize()
        return self.received.tolist(), logits
