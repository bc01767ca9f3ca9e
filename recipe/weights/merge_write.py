"""Writes the shards of a planned merge: one thread per core, in blocks of rows that fit its cache.

Each block is read, changed in fp32, rounded once to the base's dtype and written to its place in the new shard. Memory
use does not depend on the model's size: a few blocks and the adapter matrices in use.
"""

import concurrent.futures
import hashlib
import json
import math
import mmap
import os
import shutil
import threading
from pathlib import Path
from typing import Any, Dict, List, Tuple

from recipe.core import tensor_files
from recipe.core.errors import RunFailed
from recipe.core.files import write_text
from recipe.core.hashing import digest
from recipe.core.tensor_files import Stored
from recipe.core.translation import _
from recipe.weights import lora
from recipe.weights.merge_plan import PROGRESS, MergePlan, Target, finished

BLOCK = 1 << 19  # weights per block: 2 MB in fp32, fits a core's cache
ROWS = 64  # minimum per block: with fewer, B·A takes 1.5 times as long per weight
GPU_BLOCK = 1 << 22  # on a GPU, the fixed cost of a copy outweighs its size
TASK = 1 << 25  # weights per task


def _is_intact(path: Path, entry: Dict[str, Any]) -> bool:
    return path.is_file() and path.stat().st_size == entry["bytes"] and digest(path) == entry["sha256"]


class _Aborted(Exception):
    """Another thread failed, or the user interrupted the merge."""


def write_shards(plan: MergePlan, part: Path, device: str = "cpu") -> Tuple[Dict[str, Any], int]:
    """Write the plan's shards into `part`, reusing finished ones; return (name → entry, number of reused shards).

    An entry holds sha256, bytes and, for each changed tensor, [weights changed, Σ(new − old)², Σ old²].
    """
    done = {name: entry for name, entry in finished(plan, part).items() if _is_intact(part / name, entry)}
    if not done:
        shutil.rmtree(str(part), ignore_errors=True)
    part.mkdir(parents=True, exist_ok=True)
    progress: Dict[str, Any] = {"key": plan.key, "shards": done}
    write_text(part / PROGRESS, json.dumps(progress))
    reused = len(done)
    _stream(plan, part, progress, device)
    return progress["shards"], reused


def _stream(plan: MergePlan, part: Path, progress: Dict[str, Any], device: str) -> None:
    """Write the shards that are missing from `progress` and record each there when it is complete."""
    threads = len(os.sched_getaffinity(0))
    # Writers of one file block each other, so several shards are written at once, staggered.
    concurrent_shards = max(1, threads // 2)
    stop, lock = threading.Event(), threading.Lock()
    workers = concurrent.futures.ThreadPoolExecutor(threads)
    finishers = concurrent.futures.ThreadPoolExecutor(concurrent_shards)  # they wait and hash
    jobs: List[Tuple[float, int, int, Any]] = []  # order, shard, end of the written bytes, arguments of _task
    try:
        left = [shard for shard in range(plan.shards) if plan.shard_name(shard) not in progress["shards"]]
        for number, shard in enumerate(left):
            targets = plan.targets_of(shard)
            path = part / f"{plan.shard_name(shard)}.part"
            entries = {t.name: (t.source.dtype, t.source.shape, t.offset) for t in targets}
            header = tensor_files.safetensors_header(entries, {"format": "pt"})
            size = len(header) + sum(t.source.nbytes for t in targets)
            with path.open("wb") as stream:
                stream.write(header)
                stream.truncate(size)
            for target in targets:
                start = len(header) + target.offset
                for first, last in _tasks(target.source):
                    end = start + (last * target.source.row_bytes if last else target.source.nbytes)
                    call = (target, first, last, path, start, device, stop)
                    jobs.append((number / concurrent_shards + end / size, shard, end, call))
        work: Dict[int, List[Any]] = {shard: [] for shard in left}
        for _order, shard, end, call in sorted(jobs, key=lambda job: job[0]):
            work[shard].append((call[0], end, workers.submit(_task, *call)))
        ends = [finishers.submit(_finish, plan, shard, work[shard], part, progress, lock, stop) for shard in left]
        import torch  # takes 2 s, in which the workers already copy unchanged tensors

        before = torch.get_num_threads()
        errors = [error for error in (end.exception() for end in ends) if error is not None]
        if errors:
            raise next((error for error in errors if not isinstance(error, _Aborted)), errors[0])
    except BaseException:
        stop.set()
        raise
    finally:
        finishers.shutdown()
        workers.shutdown()
    torch.set_num_threads(before)  # the workers changed it


def _tasks(source: Stored) -> List[Tuple[int, int]]:
    if not source.shape or source.stride is not None:
        return [(0, 0)]  # in one piece
    return list(tensor_files.pieces(source, TASK * tensor_files.SIZES[source.dtype]))


def _task(
    target: Target, first: int, last: int, path: Path, start: int, device: str, stop: threading.Event
) -> Tuple[int, float, float]:
    """Write rows first … last-1 of a tensor whose data starts at byte `start` of the new file.

    Returns (weights that differ from the base, Σ(new − old)², Σ old²).
    """
    source = target.source
    with source.path.open("rb", buffering=0) as old_file, path.open("r+b", buffering=0) as new_file:
        files = old_file.fileno(), new_file.fileno()
        if target.parts:
            return _change(target, first, last, *files, start, device, stop)
        if not last:
            tensor_files.write_from(files[1], tensor_files.as_bytes(source.read()), start)
            return 0, 0.0, 0.0
        at, end = first * source.row_bytes, last * source.row_bytes
        new_file.seek(start + at)
        while at < end:  # copied within the page cache
            if stop.is_set():
                raise _Aborted
            sent = os.sendfile(files[1], files[0], source.offset + at, min(16 << 20, end - at))
            if not sent:
                raise tensor_files.Damaged(
                    _("{file} is truncated: it ends within {weight}", file=source.path, weight=target.name)
                )
            at += sent
        return 0, 0.0, 0.0


def _change(
    target: Target, first: int, last: int, old_file: int, new_file: int, start: int, device: str, stop: threading.Event
) -> Tuple[int, float, float]:
    import torch

    torch.set_num_threads(1)  # per thread: every core works on its own block
    source = target.source
    change = lora.LoadedChange(target.parts, first, last, device)
    columns = max(1, tensor_files.count(source.shape[1:]))
    rows = min(last - first, max(ROWS, (BLOCK if device == "cpu" else GPU_BLOCK) // columns))
    raw = torch.empty((rows, *source.shape[1:]), dtype=getattr(torch, source.dtype))
    old, new = (torch.empty(raw.shape, dtype=torch.float32, device=device) for _number in range(2))
    buffer = tensor_files.as_bytes(raw)
    changed, difference, size = 0, 0.0, 0.0
    for row in range(first, last, rows):
        if stop.is_set():
            raise _Aborted
        if last - row < rows:
            raw, old, new = (tensor[: last - row] for tensor in (raw, old, new))
            buffer = tensor_files.as_bytes(raw)
        at = row * source.row_bytes
        tensor_files.read_into(old_file, buffer, source.offset + at)
        rounded = raw.to(device)  # the same tensor on the CPU
        old.copy_(rounded)
        rounded.copy_(change(old, row, new))  # the only rounding
        raw.copy_(rounded)
        tensor_files.write_from(new_file, buffer, start + at)
        new.copy_(rounded).sub_(old)
        difference += float(torch.dot(new.view(-1), new.view(-1)))
        size += float(torch.dot(old.view(-1), old.view(-1)))
        changed += int(new.ne_(0).sum())  # exact up to 2^24, five times as fast as count_nonzero
    if not math.isfinite(difference):
        raise RunFailed(
            _(
                "{weight}: base + adapter overflows {dtype}. Train again with a lower train.lr.",
                weight=target.name,
                dtype=source.dtype,
            )
        )
    return changed, difference, size


def _finish(
    plan: MergePlan, shard: int, work: List[Any], part: Path, progress: Dict[str, Any], lock: Any, stop: threading.Event
) -> None:
    """Hash a shard while its tasks write it, convert and rename it, and record it in the progress file."""
    name = plan.shard_name(shard)
    path = part / f"{name}.part"
    buffer = memoryview(bytearray(1 << 20))
    sums: Dict[str, List[float]] = {}
    try:
        hashed = hashlib.sha256()
        with path.open("rb", buffering=0) as stream:
            for target, end, task in work:
                found = task.result()
                if target.parts:
                    before = sums.get(target.name, (0, 0.0, 0.0))
                    sums[target.name] = [one + other for one, other in zip(before, found)]
                while stream.tell() < end:
                    hashed.update(buffer[: stream.readinto(buffer[: end - stream.tell()])])
        if not plan.safe:
            with lock:  # one at a time: the disk check allows for one duplicate shard
                path = _as_bin(path)
        sha256 = hashed.hexdigest() if plan.safe else digest(path)
        entry = {"sha256": sha256, "bytes": path.stat().st_size, "sums": sums}
        os.replace(str(path), str(part / name))
        with lock:
            progress["shards"][name] = entry
            write_text(part / PROGRESS, json.dumps(progress))
    except BaseException:
        stop.set()
        raise


def _as_bin(path: Path) -> Path:
    """Rewrite a safetensors file with torch.save; memory-mapped, so the shard is not loaded into memory."""
    import torch

    place = path.with_suffix(".bin.part")
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY) as mapped:
        state = {
            name: torch.frombuffer(
                mapped, dtype=getattr(torch, tensor.dtype), count=tensor.numel, offset=tensor.offset
            ).view(tensor.shape)
            for name, tensor in tensor_files.safetensors(path)[0].items()
        }
        torch.save(state, str(place))
        del state
    path.unlink()
    return place
