"""A faster training step for InternLM2 with LoRA: XTuner's model class with a step of its own (`finetune.Finetune`).

The rendered config names the class; trainer, checkpoints, adapter format and evaluation stay XTuner's. The step
computes in the base model's dtype (bf16), uses causal attention without a mask, fuses LoRA with the frozen weight, and
computes the loss in pieces that never hold all logits. On a GPU it uses liger-kernel, Triton and a CUDA graph; on a CPU
the same functions are plain PyTorch (2.0 and newer).
"""
