"""Writes the shards of a planned merge: one thread a core, blocks of rows that fit its cache.

A block is read, changed in fp32, rounded once to the base's type and written to its place in the new shard. Memory
holds a few blocks and the adapter's matrices being used, whatever the size of the model.
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
from recipe.weights import lora
from recipe.weights.merge_plan import PROGRESS, Plan, Target, finished

BLOCK = 1 << 19  # weights of a block: 2 MB in fp32, small enough for a core's cache, large enough for many cores
ROWS = 64  # of a block at least: with fewer, B·A takes half as long again a weight
GPU_BLOCK = 1 << 22  # there each copy to and fro costs more than what it carries
TASK = 1 << 25  # weights that a thread takes at once


def _is_whole(path: Path, entry: Dict[str, Any]) -> bool:
    return path.is_file() and path.stat().st_size == entry["bytes"] and digest(path) == entry["sha256"]


class _Stopped(Exception):
    """Another thread has failed, or the user has stopped the run."""


def write_shards(plan: Plan, part: Path, device: str = "cpu") -> Tuple[Dict[str, Any], int]:
    """Write the plan's shards into `part`, going on from those that are there; return (name → entry, how many were).

    An entry holds sha256, bytes, and for each changed tensor [weights changed, Σ(new − old)², Σ old²].
    """
    done = {name: entry for name, entry in finished(plan, part).items() if _is_whole(part / name, entry)}
    if not done:
        shutil.rmtree(str(part), ignore_errors=True)
    part.mkdir(parents=True, exist_ok=True)
    progress = {"key": plan.key, "shards": done}
    write_text(part / PROGRESS, json.dumps(progress))
    reused = len(done)
    _stream(plan, part, progress, device)
    return progress["shards"], reused


def _stream(plan: Plan, part: Path, progress: Dict[str, Any], device: str) -> None:
    """Write the shards that are not in `progress`; each is entered there, with its sha256, when it is whole."""
    threads = len(os.sched_getaffinity(0))
    # Shards at once: who writes to a file waits for whoever else does. They end one after the other all the same.
    beside = max(1, threads // 2)
    stop, lock = threading.Event(), threading.Lock()
    workers = concurrent.futures.ThreadPoolExecutor(threads)
    finishers = concurrent.futures.ThreadPoolExecutor(beside)  # they wait and hash
    jobs: List[Tuple[float, int, int, Any]] = []  # when it is its turn, shard, last byte written, what to call
    try:
        left = [shard for shard in range(plan.shards) if plan.name(shard) not in progress["shards"]]
        for number, shard in enumerate(left):
            targets = plan.of(shard)
            path = part / f"{plan.name(shard)}.part"
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
                    jobs.append((number / beside + end / size, shard, end, call))
        work: Dict[int, List[Any]] = {shard: [] for shard in left}
        for _, shard, end, call in sorted(jobs, key=lambda job: job[0]):
            work[shard].append((call[0], end, workers.submit(_task, *call)))
        ends = [finishers.submit(_finish, plan, shard, work[shard], part, progress, lock, stop) for shard in left]
        import torch  # only now: it takes 2 s, in which what no adapter changes is copied

        before = torch.get_num_threads()
        errors = [error for error in (end.exception() for end in ends) if error is not None]
        if errors:
            raise next((error for error in errors if not isinstance(error, _Stopped)), errors[0])
    except BaseException:
        stop.set()
        raise
    finally:
        finishers.shutdown()
        workers.shutdown()
    torch.set_num_threads(before)  # the workers had set their own


def _tasks(source: Stored) -> List[Tuple[int, int]]:
    if not source.shape or source.stride is not None:
        return [(0, 0)]  # at once
    return list(tensor_files.pieces(source, TASK * tensor_files.SIZES[source.dtype]))


def _task(
    target: Target, first: int, last: int, path: Path, start: int, device: str, stop: threading.Event
) -> Tuple[int, float, float]:
    """Write rows first … last-1 of a tensor whose data begin at byte `start` of the new file.

    Returns (weights that differ from the base, sum of their squared differences, sum of the base's squares).
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
        while at < end:  # from page cache to page cache
            if stop.is_set():
                raise _Stopped
            sent = os.sendfile(files[1], files[0], source.offset + at, min(16 << 20, end - at))
            if not sent:
                raise tensor_files.Damaged(f"{source.path} ends in the middle of {target.name}")
            at += sent
        return 0, 0.0, 0.0


def _change(
    target: Target, first: int, last: int, old_file: int, new_file: int, start: int, device: str, stop: threading.Event
) -> Tuple[int, float, float]:
    import torch

    torch.set_num_threads(1)  # in this thread: each core has a block of its own
    source = target.source
    applied = lora.Applied(target.parts, first, last, device)
    columns = max(1, tensor_files.count(source.shape[1:]))
    rows = min(last - first, max(ROWS, (BLOCK if device == "cpu" else GPU_BLOCK) // columns))
    raw = torch.empty((rows, *source.shape[1:]), dtype=getattr(torch, source.dtype))
    old, new = (torch.empty(raw.shape, dtype=torch.float32, device=device) for _ in range(2))
    buffer = tensor_files.as_bytes(raw)
    changed, difference, size = 0, 0.0, 0.0
    for row in range(first, last, rows):
        if stop.is_set():
            raise _Stopped
        if last - row < rows:
            raw, old, new = (tensor[: last - row] for tensor in (raw, old, new))
            buffer = tensor_files.as_bytes(raw)
        at = row * source.row_bytes
        tensor_files.read_into(old_file, buffer, source.offset + at)
        held = raw.to(device)  # on the CPU itself
        old.copy_(held)
        held.copy_(applied(old, row, new))  # the one rounding
        raw.copy_(held)
        tensor_files.write_from(new_file, buffer, start + at)
        new.copy_(held).sub_(old)
        difference += float(torch.dot(new.view(-1), new.view(-1)))
        size += float(torch.dot(old.view(-1), old.view(-1)))
        changed += int(new.ne_(0).sum())  # exact up to 2^24, and five times as fast as counting
    if not math.isfinite(difference):
        raise RunFailed(
            f"{target.name}: base + adapter holds values that {source.dtype} cannot: the adapter is broken."
        )
    return changed, difference, size


def _finish(
    plan: Plan, shard: int, work: List[Any], part: Path, progress: Dict[str, Any], lock: Any, stop: threading.Event
) -> None:
    """Hash a shard while its tasks write it, give it its form and name, and enter it into the progress."""
    name = plan.name(shard)
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
            with lock:  # one at a time: the disk was asked for no more than one shard twice
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
    """A safetensors file as torch.save writes it; through a mapping, so that memory does not hold the shard."""
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
