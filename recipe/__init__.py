"""Workbook in, fine-tuned InternLM2-chat-7B out. docs/en/architecture.md says which package does what.

The recipes that ship (*.toml) lie beside this file.
"""

import os

# Make CUDA number cards as nvidia-smi does, not fastest first, so that indices mean the same everywhere.
os.environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"

__version__ = "0.1.0"
