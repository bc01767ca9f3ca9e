"""The fast way through InternLM2: XTuner's model class with a training step of its own (`finetune.Finetune`).

The rendered config names the class; trainer, checkpoints, adapter format and evaluation stay XTuner's. Reckoned in
the base's own type (bf16), attention causal without a mask, LoRA and a frozen weight in one function, the loss in
pieces that never hold all logits, and on a GPU kernels of liger-kernel and Triton, and a CUDA graph. Same function on a
CPU, in plain PyTorch from 2.0 on.
"""
