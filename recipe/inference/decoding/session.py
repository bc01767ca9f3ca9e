"""Keys and values of fixed size for a number of rows, and the CUDA graph that computes their next token."""

from typing import Any, List, Optional

import torch

from recipe.inference.decoding import operations
from recipe.training.fast import kernels

MIN_CAPACITY = 256  # tokens of a row; larger ones are powers of two


def capacity_for(tokens: int, most: int) -> int:
    """The length bucket for rows of `tokens` tokens; `most`: the model's positions."""
    capacity = MIN_CAPACITY
    while capacity < tokens:
        capacity *= 2
    return min(capacity, most)


class Session:
    """Row i's next token is at `positions[i]`: its rotary position, its place in the cache, and the last key seen."""

    def __init__(self, network: Any, batch: int, capacity: int, recorded: bool) -> None:
        self.network, self.batch, self.capacity, self.recorded = network, batch, capacity, recorded
        shape = (batch, network.layers[0].kv_heads, capacity, network.layers[0].size)
        # Zeros: what is masked is multiplied by 0, and 0 times what was in the memory may be NaN.
        self.keys = [network.zeros(*shape) for _ in network.layers]
        self.values = [network.zeros(*shape) for _ in network.layers]
        self.positions = torch.zeros(batch, dtype=torch.long, device=network.device)
        self.cos, self.sin = network.angles(capacity)
        self.x = network.zeros(batch, network.embedding.weight.shape[1])
        self.graph: Optional[Any] = None
        self.logits = torch.empty(0)

    def read(self, prompts: List[List[int]]) -> torch.Tensor:
        """Fill the cache with the prompts; returns the logits of each row's first new token (batch, vocabulary)."""
        lengths = [len(prompt) for prompt in prompts]
        longest = max(lengths)
        ids = torch.tensor([prompt + [0] * (longest - len(prompt)) for prompt in prompts], device=self.network.device)
        x, cos, sin = self.network.embedding(ids), self.cos[:longest], self.sin[:longest]
        for layer, keys, values in zip(self.network.layers, self.keys, self.values):
            x = layer.read(x, cos, sin, keys, values)
        self.positions.copy_(torch.tensor(lengths))
        last = x[torch.arange(self.batch, device=x.device), self.positions - 1]
        return self.network.output(kernels.rms_norm(last, self.network.norm)).float()

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """Append a token to each row; returns the logits of the next (a replay writes into the same memory)."""
        self.x.copy_(self.network.embedding(tokens))
        if self.recorded and self.graph is None:
            self._record()
        if self.graph is None:
            self._compute()
        else:
            self.graph.replay()
        return self.logits

    def _compute(self) -> None:
        x, y = self.x.clone(), None
        for layer, keys, values in zip(self.network.layers, self.keys, self.values):
            x, y = layer.step(x, y, self.cos, self.sin, self.positions, keys, values)
        _, h = operations.add_norm(x, y, self.network.norm)
        self.logits = self.network.output(h).float()
        self.positions.add_(1)

    def _record(self) -> None:
        """Record `_compute`. The run before compiles its kernels; what it writes, the first replay writes again."""
        positions = self.positions.clone()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            self._compute()
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._compute()
        self.positions.copy_(positions)
        self.graph = graph
