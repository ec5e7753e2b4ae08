"""Safetensors files, read and written by the suite itself: eight bytes, a JSON header, the data.

Source: https://github.com/huggingface/safetensors, "Format".
"""

import json
import struct
from pathlib import Path

import numpy as np

from ..oracle.tolerance import dtype

NAMES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64",
    "BOOL": "bool",
}  # fmt: skip
TAGS = {name: tag for tag, name in NAMES.items()}


def write(
    path: Path, arrays: dict[str, np.ndarray], metadata: dict[str, str] | None = None
) -> None:
    """Write arrays in the order given."""
    header: dict = {} if metadata is None else {"__metadata__": metadata}
    end, data = 0, b""
    for name, array in arrays.items():
        data += np.ascontiguousarray(array).tobytes()
        entry = {"dtype": TAGS[array.dtype.name], "shape": list(array.shape)}
        header[name] = entry | {"data_offsets": [end, len(data)]}
        end = len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def read(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Return the arrays and the metadata of a file."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    metadata, arrays = header.pop("__metadata__", {}), {}
    for name, entry in header.items():
        first, last = entry["data_offsets"]
        numbers = np.frombuffer(data[first:last], dtype(NAMES[entry["dtype"]]))
        arrays[name] = numbers.reshape(entry["shape"])
    return arrays, metadata
