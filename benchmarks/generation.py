"""Answers by transformers' `generate` and by our decoder, on a GPU: python benchmarks/generation.py [PART …]

  kernels   our Triton kernels beside PyTorch's operations: differences and microseconds
  bf16      InternLM2-7B with random weights in bf16: tokens/s, alone and three at a time, in turn; memory; agreement
  nf4       the same in NF4 with LoRA of rank 64, not merged

Nothing is downloaded. Every result is a line of JSON. --tiny tries all parts with a tiny model on a CPU. A part that
fails says why, and the next one begins.
"""

import argparse
import contextlib
import gc
import io
import json
import statistics
import sys
import time
import traceback
from pathlib import Path
from typing import Any, Callable, Dict, List

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from recipe.inference.decoding import Decoder, obstacle, operations
from recipe.training import bench
from recipe.training.fast import kernels, nf4
from recipe.xtuner.config_edits import LINEARS

GOALS = {"bf16": (150, 4), "nf4": (100, 8)}  # tokens/s of a single answer, and times `generate`
CHECKED = 64  # tokens whose logits are compared
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def say(part: str, **found: Any) -> None:
    print(json.dumps({"part": part, **found}), flush=True)


@contextlib.contextmanager
def reporting(part: str) -> Any:
    """Says why what is inside failed, and goes on."""
    try:
        yield
    except Exception as error:
        say(part, error=f"{type(error).__name__}: {error}"[:600], where=traceback.format_exc()[-1200:])


def clear() -> None:
    gc.collect()
    if DEVICE == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def now() -> float:
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def peak_mib() -> int:
    return round(torch.cuda.max_memory_allocated() / 2**20) if DEVICE == "cuda" else 0


def microseconds(work: Callable[[], Any]) -> float:
    """Of one call, without Python's share."""
    if DEVICE == "cuda":
        return round(1e6 * bench.graph_seconds(work, 50), 2)
    return round(1e6 * bench.median_seconds(work, 3), 2)


def apart(got: torch.Tensor, wanted: torch.Tensor) -> float:
    """Norm of the difference over the norm."""
    return round(float((got.float() - wanted.float()).norm() / wanted.float().norm()), 6)


class Measurement:
    """The parts, on a model of these sizes."""

    def __init__(self, given: Any) -> None:
        self.sizes = dict(bench.SHAPES_TINY if given.tiny else bench.SHAPES_7B)
        self.sizes["max_position_embeddings"] = 2048 if given.tiny else 32768
        self.dtype = torch.float32 if DEVICE == "cpu" else torch.bfloat16
        self.tokens, self.repeats, self.batch = (8 if given.tiny else given.tokens), given.repeats, 3

    def draw(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, device=DEVICE, dtype=self.dtype)

    # Kernels

    def kernels(self) -> None:
        for work in (self._small_kernels, self._products, self._four_bit_products):
            with reporting("kernels"):
                work()
        clear()

    def _small_kernels(self) -> None:
        sizes = self.sizes
        hidden, heads, groups = sizes["hidden_size"], sizes["num_attention_heads"], sizes["num_key_value_heads"]
        size, capacity = hidden // heads, 512
        norm = torch.nn.Module()
        norm.weight, norm.variance_epsilon = self.draw(hidden), 1e-5
        for rows in (1, self.batch):
            x, y, fused = self.draw(rows, hidden), self.draw(rows, hidden), self.draw(rows, (heads + 2 * groups) * size)
            cos, sin = self.draw(capacity, size // 2).repeat(1, 2), self.draw(capacity, size // 2).repeat(1, 2)
            caches = [self.draw(rows, groups, capacity, size) for _ in range(2)]
            positions = torch.tensor([capacity // 2 + 77 * row for row in range(rows)], device=DEVICE)
            results, seconds = {}, {}
            compiles = operations._compiles(torch.device(DEVICE, 0) if DEVICE == "cuda" else torch.device("cpu"))
            for way in ("ours", "torch"):
                operations._compiles = (lambda *_: False) if way == "torch" else lambda *_: compiles  # noqa: B023
                copies, sums = [one.clone() for one in caches], x.clone()  # changed in place, many times
                summed, normed = operations.add_norm(x.clone(), y, norm)
                query = operations.rotate(fused, cos, sin, positions, *copies).contiguous()
                mixed = operations.attend(query, *copies, positions)
                results[way] = [summed, normed, query, *copies, mixed]
                seconds[way] = [
                    microseconds(lambda: operations.add_norm(sums, y, norm)),  # noqa: B023
                    microseconds(lambda: operations.rotate(fused, cos, sin, positions, *copies)),  # noqa: B023
                    microseconds(lambda: operations.attend(query, *copies, positions)),  # noqa: B023
                ]
            operations._compiles = lambda *_: compiles  # noqa: B023
            names = ("sum", "norm", "query", "keys", "values", "attention")
            differ = {name: apart(a, b) for name, a, b in zip(names, results["ours"], results["torch"])}
            say("kernels", rows=rows, triton=compiles, differ=differ, add_norm_rotate_attend_us=seconds)
            gate = self.draw(rows, sizes["intermediate_size"])
            say("kernels", rows=rows, swiglu_us=microseconds(lambda: kernels.swiglu(gate, gate)))  # noqa: B023

    def _matrices(self) -> Dict[str, Any]:
        return dict(zip(("wqkv", "wo", "w1", "w3", "w2"), bench.matrix_shapes(self.sizes)))

    def _products(self) -> None:
        shapes = {**self._matrices(), "output": (self.sizes["vocab_size"], self.sizes["hidden_size"])}
        shapes.pop("w3")
        for name, (out, inner) in shapes.items():
            weight = self.draw(out, inner)
            weights = [weight, *(weight.clone() for _ in range(0 if DEVICE == "cpu" else 3))]  # more than the L2 cache

            def product(rows: int) -> float:
                x = self.draw(rows, inner)  # noqa: B023

                def work() -> None:
                    for one in weights:  # noqa: B023
                        torch.nn.functional.linear(x, one)

                return microseconds(work) / len(weights)  # noqa: B023

            found = {rows: product(rows) for rows in (1, self.batch)}
            rate = round(weight.numel() * weight.element_size() / found[1] / 1e6, 3)
            say("kernels", matrix=name, shape=[out, inner], linear_us=found, terabytes_per_second=rate)

    def _four_bit_products(self) -> None:
        """bitsandbytes' product with LoRA's share; for more rows the dequantized weight's."""
        if DEVICE == "cpu":
            say("kernels", nf4="needs a GPU")
            return
        for name, (out, inner) in self._matrices().items():
            if name == "w3":
                continue
            made = [  # four of them, more than the L2 cache holds
                bench._quantize(
                    torch.nn.Linear(inner, out, device="meta"), self.draw(out, inner) * inner**-0.5, self.dtype
                )
                for _ in range(4)
            ]
            weight, b = made[0].weight, self.draw(out, 64) * 0.02
            whole = nf4.dequantize(weight, torch.float32)
            for rows in (1, self.batch, 8, 16, 17):
                x, low = self.draw(rows, inner), self.draw(rows, 64)
                wanted = x.float() @ whole.t() + 0.5 * low.float() @ b.float().t()

                def work() -> None:
                    for one in made:  # noqa: B023
                        operations.nf4_product(x, one.weight, (low, b, 0.5))  # noqa: B023

                with reporting(f"kernels: {name}, nf4"), torch.no_grad():
                    got = operations.nf4_product(x, weight, (low, b, 0.5))
                    say("kernels", matrix=f"{name}, nf4", rows=rows, differ=apart(got, wanted),
                        us=round(microseconds(work) / 4, 2))  # fmt: skip

    # Models

    def build(self, part: str) -> Any:
        torch.manual_seed(1)
        model = bench.build_llm(self.sizes, DEVICE, self.dtype, four_bits=part == "nf4")
        if part == "nf4":
            from peft import LoraConfig, get_peft_model

            lora = LoraConfig(
                r=64, lora_alpha=16, lora_dropout=0.0, target_modules=list(LINEARS), task_type="CAUSAL_LM"
            )
            with contextlib.redirect_stdout(io.StringIO()):
                model = get_peft_model(model, lora)
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    torch.nn.init.normal_(parameter, std=0.01)
        model.generation_config.eos_token_id = None
        return model.eval()

    def prompts(self, count: int) -> List[List[int]]:
        draw = torch.Generator().manual_seed(count)
        lengths = [60, 45, 77, 30][:count]
        return [torch.randint(5, self.sizes["vocab_size"], (length,), generator=draw).tolist() for length in lengths]

    def model(self, part: str) -> None:
        clear()
        began = now()
        model = self.build(part)
        say(part, built_seconds=round(now() - began, 1), memory_mib=peak_mib(), obstacle=obstacle(model))
        decoder = Decoder(model)
        with reporting(part):
            began = now()
            say(part, fault=decoder.fault(self.prompts(self.batch)), seconds_to_check=round(now() - began, 2))
        for check in (self.agreement, self.greedy):
            with reporting(part):
                check(part, model, decoder)
        for count, tokens in ((1, self.tokens), (self.batch, max(1, self.tokens // 2))):
            with reporting(part):
                self.speed(part, model, decoder, count, tokens)
        for more in (self.others, self.breakdown):
            with reporting(part):
                more(part, model, decoder)
        del model, decoder
        clear()

    def agreement(self, part: str, model: Any, decoder: Any) -> None:
        """Logits of the same tokens by one forward pass of transformers, and by our steps with and without a graph."""
        ids = self.prompts(1)[0]
        checked = min(CHECKED, len(ids) - 4)
        with torch.no_grad():
            wanted = model(input_ids=torch.tensor([ids], device=DEVICE)).logits[0, -checked - 1 :].float()
        rows = {}
        for record in (True, False):
            decoder.record = record
            decoder.sessions.clear()
            session, found = decoder.session(1, len(ids) + 8), []
            with torch.no_grad():
                found.append(session.read([ids[: len(ids) - checked]])[0].clone())
                for token in ids[len(ids) - checked :]:
                    found.append(session.step(torch.tensor([token], device=DEVICE))[0].clone())
            rows[record] = torch.stack(found)
            say(
                part, check="logits of the same tokens", graph=session.graph is not None, tokens=len(found),
                prompt_differs=apart(rows[record][:1], wanted[:1]), steps_differ=apart(rows[record][1:], wanted[1:]),
                same_argmax=round(float((rows[record].argmax(-1) == wanted.argmax(-1)).float().mean()), 4),
                largest=round(float((rows[record] - wanted).abs().max()), 4),
                spread=round(float(wanted.std()), 4),
            )  # fmt: skip
        say(part, check="graph beside no graph", differ=apart(rows[True], rows[False]))
        decoder.record = True
        decoder.sessions.clear()

    def greedy(self, part: str, model: Any, decoder: Any) -> None:
        """Greedy tokens: how many before the first difference, and how close the two best logits were there."""
        prompts = self.prompts(self.batch)
        ours = decoder.generate(prompts, 32, [])
        theirs = self.generate(model, prompts, 32)
        for number, (a, b) in enumerate(zip(ours, theirs)):
            same = next((at for at in range(len(a)) if a[at] != b[at]), len(a))
            gap = None
            if same < len(a):
                with torch.no_grad():
                    ids = torch.tensor([prompts[number] + b[:same]], device=DEVICE)
                    best = model(input_ids=ids).logits[0, -1].float().topk(2).values
                gap = round(float(best[0] - best[1]), 5)
            say(part, check="greedy tokens", row=number, same=same, of=len(a), gap_of_the_best_two=gap)

    def generate(self, model: Any, prompts: List[List[int]], tokens: int) -> List[List[int]]:
        longest = max(map(len, prompts))
        ids = torch.tensor([[0] * (longest - len(one)) + one for one in prompts], device=DEVICE)
        mask = torch.tensor([[0] * (longest - len(one)) + [1] * len(one) for one in prompts], device=DEVICE)
        with torch.inference_mode():
            out = model.generate(
                input_ids=ids, attention_mask=mask, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False,
                pad_token_id=0,
            )  # fmt: skip
        return [row[longest:] for row in out.tolist()]

    def speed(self, part: str, model: Any, decoder: Any, count: int, tokens: int) -> None:
        prompts = self.prompts(count)
        ways = {
            "ours": lambda: decoder.generate(prompts, tokens, []),
            "generate": lambda: self.generate(model, prompts, tokens),
        }
        decoder.generate(prompts, min(4, tokens), [])  # compiles
        decoder.sessions.clear()
        began = now()
        decoder.generate(prompts, min(4, tokens), [])
        first = now() - began
        self.generate(model, prompts, min(4, tokens))
        rates: Dict[str, List[float]] = {name: [] for name in ways}
        peaks: Dict[str, int] = {}
        for _ in range(self.repeats):
            for name, work in ways.items():
                clear()
                began = now()
                answers = work()
                rates[name].append(sum(map(len, answers)) / (now() - began))
                peaks[name] = peak_mib()
        found = {
            name: dict(median=round(statistics.median(some), 1), least=round(min(some), 1), peak_mib=peaks[name])
            for name, some in rates.items()
        }
        ratio = round(found["ours"]["median"] / found["generate"]["median"], 2)
        goal = {}
        if count == 1 and DEVICE == "cuda":
            least, times = GOALS[part]
            goal = {"goal": [least, times], "met": found["ours"]["median"] >= least and ratio >= times}
        say(part, rows=count, tokens=tokens, tokens_per_second=found, ratio=ratio,
            seconds_to_record_and_4_tokens=round(first, 3), **goal)  # fmt: skip

    def others(self, part: str, model: Any, decoder: Any) -> None:
        """Our decoder otherwise: sampled, without a graph, a batch of eight, and the time to read a prompt."""
        prompt = self.prompts(1)
        sampling = {"do_sample": True, "temperature": 0.8, "top_p": 0.8, "top_k": 0}
        few = max(1, self.tokens // 3)

        def rate(prompts: List[List[int]], settings: Any) -> float:
            decoder.generate(prompts, 4, [], settings=settings)
            began = now()
            decoder.generate(prompts, few, [], settings=settings)
            return round(len(prompts) * few / (now() - began), 1)

        say(part, sampled=rate(prompt, sampling))
        for rows in (1, self.batch, 8):
            with reporting(part):
                say(part, rows=rows, tokens_per_second=rate(prompt * rows, None), recorded=self._has_graph(decoder))
        decoder.record = False
        decoder.sessions.clear()
        say(part, without_graph=rate(prompt, None))
        decoder.record = True
        decoder.sessions.clear()
        for length in (60, 1000):
            ids = [(prompt[0] * 20)[:length]]
            session = decoder.session(1, length + 8)
            with torch.no_grad():
                session.read(ids)
                began = now()
                session.read(ids)
            say(part, prompt=length, seconds_to_read=round(now() - began, 4))

    def _has_graph(self, decoder: Any) -> bool:
        return next(reversed(decoder.sessions.values())).graph is not None

    def breakdown(self, part: str, model: Any, decoder: Any) -> None:
        """The kernels of one token, by time."""
        prompts = self.prompts(1)
        decoder.generate(prompts, 8, [])
        session = decoder.session(1, len(prompts[0]) + 8)
        token = torch.tensor([5], device=DEVICE)
        steps = 5
        with torch.no_grad():
            began = now()
            for _ in range(steps):
                session.step(token)
            took = (now() - began) / steps
            activity = torch.profiler.ProfilerActivity
            with torch.profiler.profile(activities=[activity.CPU, *([activity.CUDA] * (DEVICE == "cuda"))]) as profile:
                for _ in range(steps):
                    session.step(token)
                now()
        found = profile.key_averages()
        name = "self_device_time_total" if hasattr(found[0], "self_device_time_total") else "self_cuda_time_total"
        if DEVICE == "cpu":
            name = "self_cpu_time_total"
        rows = sorted(found, key=lambda one: -getattr(one, name))[:16]
        say(part, step_ms=round(1e3 * took, 3), kernels_of_a_token=[
            [one.key[:60], round(getattr(one, name) / steps), one.count // steps] for one in rows
        ])  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help="kernels, bf16, nf4 (default: all)")
    parser.add_argument("--tiny", action="store_true", help="a tiny model on a CPU, to try the script")
    parser.add_argument("--tokens", type=int, default=300, help="of a single answer (default 300)")
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    card = torch.cuda.get_device_name() if DEVICE == "cuda" else "CPU"
    about = dict(card=card, torch=torch.__version__, has_kernel=nf4.HAS_KERNEL)
    if DEVICE == "cuda":
        about.update(free_mib=round(torch.cuda.mem_get_info()[0] / 2**20), compiler=operations.compiler.fault())
    say("machine", **about)
    if DEVICE == "cpu" and not given.tiny:
        parser.exit(3, "This needs an NVIDIA GPU; --tiny tries the script on a CPU.\n")
    measurement = Measurement(given)
    for part in given.parts or ("kernels", "bf16", "nf4"):
        began = now()
        with reporting(part):
            measurement.kernels() if part == "kernels" else measurement.model(part)
        say(part, seconds=round(now() - began, 1))


if __name__ == "__main__":
    main()
