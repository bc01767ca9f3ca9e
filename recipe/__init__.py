"""Workbook in, fine-tuned InternLM2-chat-7B out: one module per stage, in the order data flows.

data → plan → config → model → train → adapter → merge → eval → chat, export. `pipeline` runs stages in order, `stages`
holds what surrounds every one of them (skip when unchanged, atomic outputs, timing, manifest), `settings`
reads the recipe files (*.toml beside this file), `errors` says how a failure is told.
"""

import os

# CUDA counts cards as nvidia-smi does, not the fastest first: so indices mean the same everywhere.
os.environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"

__version__ = "0.1.0"
