"""Where tensors lie in files of safetensors and of torch.save: found without loading them, read piece by piece.

PyTorch 2.0 loads a whole file of torch.save into memory, optimizer state and all, and imports whatever library its
pickle names; here nothing of the pickle is run, and what is not a tensor or a plain container becomes a `Foreign`.
"""

import dataclasses
import json
import os
import pickle
import re
import struct
import zipfile
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Tuple

from recipe.core.translation import _, listed

# safetensors' names of types → PyTorch's, and bytes of one value
TYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32",
    "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
}  # fmt: skip
SHORT = {name: short for short, name in TYPES.items()}
SIZES = {name: int(re.sub(r"\D", "", name.split("_")[0]) or 8) // 8 for name in TYPES.values()}
# PyTorch's classes of storage, as pickles name them
STORAGES = {
    "DoubleStorage": "float64", "FloatStorage": "float32", "HalfStorage": "float16", "BFloat16Storage": "bfloat16",
    "LongStorage": "int64", "IntStorage": "int32", "ShortStorage": "int16", "CharStorage": "int8",
    "ByteStorage": "uint8", "BoolStorage": "bool",
}  # fmt: skip


class Damaged(ValueError):
    """A file is cut short or not of the expected kind; the text names it and the numbers."""


def count(shape: Tuple[int, ...]) -> int:
    """Values in a tensor of this shape."""
    total = 1
    for size in shape:
        total *= size
    return total


@dataclasses.dataclass(frozen=True)
class Stored:
    """A tensor at byte `offset` of `path`; `dtype` is PyTorch's name. `stride` is None if the values lie in order."""

    path: Path
    offset: int
    dtype: str
    shape: Tuple[int, ...]
    stride: Optional[Tuple[int, ...]] = None

    @property
    def numel(self) -> int:
        return count(self.shape)

    @property
    def nbytes(self) -> int:
        return self.numel * SIZES[self.dtype]

    @property
    def row_bytes(self) -> int:
        """Bytes of one step along the first dimension."""
        return count(self.shape[1:]) * SIZES[self.dtype]

    def read(self, first: int = 0, last: Optional[int] = None) -> Any:
        """The tensor, or its rows first … last-1, as a tensor of its own in memory."""
        import torch

        if self.stride is not None:
            span = 1 + sum((size - 1) * step for size, step in zip(self.shape, self.stride))
            flat = dataclasses.replace(self, shape=(span,), stride=None).read()
            return torch.as_strided(flat, self.shape, self.stride)[first:last].contiguous()
        shape = self.shape
        if shape:
            last = shape[0] if last is None else last
            shape = (last - first, *shape[1:])
        found = torch.empty(shape, dtype=getattr(torch, self.dtype))
        with self.path.open("rb", buffering=0) as stream:
            read_into(stream.fileno(), as_bytes(found), self.offset + first * self.row_bytes)
        return found


def as_bytes(tensor: Any) -> memoryview:
    """The memory of a contiguous tensor."""
    import torch

    return memoryview(tensor.reshape(-1).view(torch.uint8).numpy())


def read_into(file: int, buffer: memoryview, offset: int) -> None:
    """Fill `buffer` from byte `offset` of an open file. Raises Damaged if the file ends before."""
    done = 0
    while done < len(buffer):
        got = os.preadv(file, [buffer[done:]], offset + done)
        if not got:
            raise Damaged(
                _(
                    "the file ends at byte {end:,}, {missing:,} bytes early",
                    end=offset + done,
                    missing=len(buffer) - done,
                )
            )
        done += got


def write_from(file: int, buffer: memoryview, offset: int) -> None:
    """Write all of `buffer` at byte `offset` of an open file."""
    done = 0
    while done < len(buffer):
        done += os.pwrite(file, buffer[done:], offset + done)


def tensors(path: Path) -> Dict[str, Stored]:
    """name → tensor of a .safetensors file or of a state dict saved by torch.save. Raises Damaged."""
    if path.suffix == ".safetensors":
        return safetensors(path)[0]
    found = torch_file(path)
    found = found.get("state_dict", found) if isinstance(found, dict) else {}
    return {name: value for name, value in found.items() if isinstance(value, Stored)}


def safetensors(path: Path) -> Tuple[Dict[str, Stored], Dict[str, str]]:
    """({name: tensor}, metadata) of a .safetensors file. Raises Damaged unless its size is what its header tells."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        start = stream.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        if 8 + length > size:
            raise Damaged(
                _(
                    "{file} is not a complete safetensors file: {size:,} bytes cannot hold its header",
                    file=path,
                    size=size,
                )
            )
        try:
            header = json.loads(stream.read(length).decode("utf-8"))
            metadata = header.pop("__metadata__", {})
            found = {
                name: Stored(path, 8 + length + entry["data_offsets"][0], TYPES[entry["dtype"]], tuple(entry["shape"]))
                for name, entry in header.items()
            }
            end = 8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)
        except (ValueError, KeyError, TypeError, AttributeError):
            raise Damaged(_("{file} is not a complete safetensors file: its header cannot be read", file=path))
    if end != size:
        raise Damaged(
            _(
                "{file} is cut short or damaged: its header describes {described:,} bytes, but it has {size:,}",
                file=path,
                described=end,
                size=size,
            )
        )
    return found, metadata


def safetensors_header(entries: Dict[str, Tuple[str, Tuple[int, ...], int]], metadata: Dict[str, str]) -> bytes:
    """The beginning of a .safetensors file for {name: (dtype, shape, offset in the data)}; a multiple of 8 bytes."""
    header: Dict[str, Any] = {"__metadata__": metadata}
    for name, (dtype, shape, offset) in entries.items():
        end = offset + count(shape) * SIZES[dtype]
        header[name] = {"dtype": SHORT[dtype], "shape": list(shape), "data_offsets": [offset, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def save_safetensors(path: Path, found: Dict[str, Any], metadata: Dict[str, str]) -> None:
    """Write {name: contiguous tensor} in this order. The same tensors make the same bytes: safetensors' own writer
    leaves the order of `metadata` to chance.
    """
    entries, offset = {}, 0
    for name, tensor in found.items():
        entries[name] = (str(tensor.dtype).replace("torch.", ""), tuple(tensor.shape), offset)
        offset += tensor.numel() * tensor.element_size()
    with path.open("wb") as stream:
        stream.write(safetensors_header(entries, metadata))
        for tensor in found.values():
            stream.write(as_bytes(tensor))


def torch_file(path: Path) -> Any:
    """What torch.save wrote, with every tensor as a `Stored`. Raises Damaged."""
    try:
        with zipfile.ZipFile(str(path)) as archive, path.open("rb") as stream:
            name = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
            places = _places(archive, stream.fileno(), name[: -len("data.pkl")] + "data/")
            return _Reader(archive.open(name), path, places).load()
    except (zipfile.BadZipFile, StopIteration, EOFError, pickle.UnpicklingError, KeyError, struct.error) as error:
        raise Damaged(
            _(
                "{file} ({size:,} bytes) is not a complete torch.save file ({error}); it is cut short, or older than "
                "PyTorch 1.6",
                file=path,
                size=path.stat().st_size,
                error=f"{type(error).__name__}: {error}",
            )
        )


def _places(archive: zipfile.ZipFile, file: int, prefix: str) -> Dict[str, int]:
    """key → byte at which the storage's data begins. Storages are not compressed."""
    found = {}
    for item in archive.infolist():
        if item.filename.startswith(prefix):
            name, extra = struct.unpack("<HH", os.pread(file, 4, item.header_offset + 26))
            found[item.filename[len(prefix) :]] = item.header_offset + 30 + name + extra
    return found


class Foreign:
    """An object of a class that is not loaded; `args` is what it was to be made with."""

    def __init__(self, *args: Any, **_more: Any) -> None:
        self.args = args

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, value: Any) -> None:
        pass

    def extend(self, values: Any) -> None:
        pass


class _Dict(dict):
    """A state dict is an OrderedDict with an attribute."""


class _Reader(pickle.Unpickler):
    def __init__(self, stream: Any, path: Path, places: Dict[str, int]) -> None:
        super().__init__(stream)
        self.path, self.places = path, places

    def persistent_load(self, pid: Any) -> Tuple[str, int]:
        kind, key = pid[1:3]
        return kind, self.places[str(key)]

    def find_class(self, module: str, name: str) -> Any:
        if module in ("torch", "torch.storage") and name in STORAGES:
            return STORAGES[name]
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return self._tensor
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return lambda data, *_rest: data
        if (module, name) in (("collections", "OrderedDict"), ("builtins", "dict")):
            return _Dict
        if (module, name) == ("torch", "Size"):
            return tuple
        return Foreign

    def _tensor(self, storage: Tuple[str, int], start: int, shape: Any, stride: Any, *_rest: Any) -> Any:
        kind, offset = storage
        if not isinstance(kind, str):
            return Foreign()
        shape, stride = tuple(shape), tuple(stride)
        plain, step = True, 1
        for size, given in zip(reversed(shape), reversed(stride)):
            plain = plain and (size == 1 or given == step)
            step *= size
        return Stored(self.path, offset + start * SIZES[kind], kind, shape, None if plain else stride)


def pieces(tensor: Stored, size: int) -> Iterator[Tuple[int, int]]:
    """(first, last) of runs of rows of about `size` bytes each, at least one row."""
    rows = tensor.shape[0]
    step = max(1, size // max(1, tensor.row_bytes))
    for first in range(0, rows, step):
        yield first, min(rows, first + step)


def listing(names: List[str], shown: int = 3) -> str:
    """The first few names and how many more there are."""
    first = listed(names[:shown])
    return _("{names} and {more} more", names=first, more=len(names) - shown) if len(names) > shown else first
