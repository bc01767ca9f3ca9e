"""Lets the tutorial's own commands run where there is no GPU. Python imports this by itself from PYTHONPATH.

Only what asks for the card is answered: CUDA calls of torch and DeepSpeed go to the CPU, NCCL becomes gloo, weights
stay 32 bits wide and unquantized (no 4-bit or 16-bit arithmetic on this CPU). Everything else (XTuner's command
line, its trainer under DeepSpeed ZeRO-2, checkpoint, conversion, merge) is what the commands themselves start.
"""

import importlib.abc
import importlib.machinery
import os
import sys


def torch_cuda(module):
    module.set_device = lambda device: None
    module.current_device = lambda: 0
    module.is_bf16_supported = lambda: False
    module.synchronize = module.reset_peak_memory_stats = lambda *words: None
    module.max_memory_allocated = module.memory_allocated = lambda *words: 0


def torch_module(module):
    module.Tensor.cuda = module.nn.Module.cuda = lambda self, *words, **more: self


def torch_distributed(module):
    """gloo for NCCL; the two operations on whole tensors that ZeRO uses and PyTorch 2.0's gloo does not have."""
    begin = module.init_process_group

    def init_process_group(backend="gloo", *words, **more):
        return begin("gloo", *words, **more)

    def all_gather_into_tensor(output_tensor, input_tensor, group=None, async_op=False):
        parts = list(output_tensor.detach().view(-1).chunk(module.get_world_size(group)))
        return module.all_gather(parts, input_tensor.reshape(-1), group=group, async_op=async_op)

    def reduce_scatter_tensor(output, input, op=module.ReduceOp.SUM, group=None, async_op=False):
        whole = input.clone()
        module.all_reduce(whole, op=op, group=group)
        part = whole.view(-1).chunk(module.get_world_size(group))[module.get_rank(group)]
        output.copy_(part.view(output.shape))
        return Done() if async_op else None

    class Done:
        wait = is_completed = staticmethod(lambda *words: True)

    module.init_process_group = init_process_group
    module.all_gather_into_tensor = module._all_gather_base = all_gather_into_tensor
    module.reduce_scatter_tensor = module._reduce_scatter_base = reduce_scatter_tensor


def torch_parallel(module):
    kind = module.DistributedDataParallel
    begin = kind.__init__
    kind.__init__ = lambda self, *words, device_ids=None, **more: begin(self, *words, **more)


def mmengine_strategy(module):
    parse = module.DeepSpeedStrategy._parse_config

    def _parse_config(self, config):
        # By default half a billion numbers are averaged in every iteration: two seconds each without a card.
        parsed = parse(self, config)
        parsed["zero_optimization"]["reduce_bucket_size"] = 1_000_000
        return parsed

    module.DeepSpeedStrategy._parse_config = _parse_config


def mmengine_preprocessor(module):
    module.BaseDataPreprocessor.cuda = lambda self, *words, **more: self


def deepspeed_accelerator(module):
    kind = module.CUDA_Accelerator
    kind.device_name = lambda self, index=None: "cpu"
    kind.current_device_name = lambda self: "cpu"
    kind.communication_backend_name = lambda self: "gloo"
    kind.device_count = lambda self: int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    kind.is_available = lambda self: True
    kind.pin_memory = lambda self, tensor, align_bytes=1: tensor
    kind.is_synchronized_device = lambda self: True  # DeepSpeed's own words for a processor without streams
    kind.Stream = property(lambda self: lambda: None)
    kind.current_stream = lambda self, device_index=None: None
    for width in ("Byte", "Int", "Long", "Half", "BFloat16", "Float", "Double"):
        setattr(kind, f"{width}Tensor", property(lambda self, name=f"{width}Tensor": getattr(module.torch, name)))


def transformers_models(module):
    kind = module.PreTrainedModel
    load = kind.from_pretrained.__func__

    def from_pretrained(cls, *words, quantization_config=None, device_map=None, torch_dtype=None, **more):
        return load(cls, *words, torch_dtype=module.torch.float32, **more)

    kind.from_pretrained = classmethod(from_pretrained)


PATCHES = {
    "torch.cuda": torch_cuda,
    "torch": torch_module,
    "torch.distributed.distributed_c10d": torch_distributed,
    "torch.nn.parallel.distributed": torch_parallel,
    "mmengine._strategy.deepspeed": mmengine_strategy,
    "mmengine.model.base_model.data_preprocessor": mmengine_preprocessor,
    "deepspeed.accelerator.cuda_accelerator": deepspeed_accelerator,
    "accelerator.cuda_accelerator": deepspeed_accelerator,
    "transformers.modeling_utils": transformers_models,
}


class Finder(importlib.abc.MetaPathFinder):
    """Applies a patch as soon as its module was imported."""

    def find_spec(self, name, path, target=None):
        if name not in PATCHES:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is None or spec.loader is None:
            return None
        run = spec.loader.exec_module

        def exec_module(module):
            run(module)
            PATCHES[name](module)

        spec.loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, Finder())
