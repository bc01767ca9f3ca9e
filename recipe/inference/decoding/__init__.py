"""InternLM2's answers, token by token, faster than transformers' `generate` and with the same tokens (`Decoder`).

Keys and values lie in tensors of fixed size, so that all kernels of a token are one CUDA graph, recorded once per batch
size and length. LoRA is applied without merging, and 4-bit weights are multiplied as they are. The prompt, layers and
dequantization are those of the fast training step (recipe/training/fast). On a CPU the same code runs without a graph.
"""

from recipe.inference.decoding.decoder import Decoder, obstacle

__all__ = ["Decoder", "obstacle"]
