"""The binary forms of a request and of an answer: about three times the requests a second of JSON.

A PPG comes as a `.npy` file, which numpy alone can write. An answer goes out as an Arrow stream, which
carries the SYNTHETIC mark, the units and the model's version with the signals; `.npy` has no place for them.
"""

import io
import json
import math
from collections.abc import Mapping
from tokenize import TokenError
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from p2es.leads import LEADS, N_LEADS
from serve.schema import PARTS, MalformedBodyError, TranslateResponse, check_ppg

JSON = "application/json"
NPY = "application/x-npy"
ARROW = "application/vnd.apache.arrow.stream"

# What numpy raises on damaged headers, found by fuzzing; the warning is of headers that Python 2 wrote.
_HEADER_FAULTS = (
    ValueError,
    SyntaxError,
    TypeError,
    EOFError,
    TokenError,
    RecursionError,
    MemoryError,
    UserWarning,
)
_NPY_DTYPES = ("<f4", "<f8", "<i2", "<i4")


def write_npy(ppg: NDArray[np.floating]) -> bytes:
    """Write a PPG as the body of a request."""
    buffer = io.BytesIO()
    np.save(buffer, np.asarray(ppg, dtype="<f4"), allow_pickle=False)
    return buffer.getvalue()


def read_npy(body: bytes) -> NDArray[np.float32]:
    """Read the PPG of a request, (channel, time).

    The header is checked against the length of the body before anything is allocated, so that a header that
    promises a terabyte costs nothing. Objects (pickles) are refused.

    Raises
    ------
    MalformedBodyError
        When it is not a `.npy` file of numbers in one or two dimensions.
    """
    buffer = io.BytesIO(body)
    try:
        version = np.lib.format.read_magic(buffer)
        if version != (1, 0):
            raise ValueError("version")
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(buffer, max_header_size=1024)
    except _HEADER_FAULTS:
        raise MalformedBodyError("the body is not a .npy file of version 1.0: write it with numpy.save") from None
    if dtype.str not in _NPY_DTYPES or len(shape) not in (1, 2) or fortran:
        raise MalformedBodyError(f"the .npy file must hold one or two dimensions of {', '.join(_NPY_DTYPES)}, C order")
    data = body[buffer.tell() :]
    if min(shape) < 0 or math.prod(shape) * dtype.itemsize != len(data):
        raise MalformedBodyError("the .npy file is cut off or longer than its header says: write it again")
    samples = np.frombuffer(data, dtype).reshape(shape)
    try:
        return check_ppg(samples)
    except ValueError as error:
        raise MalformedBodyError(str(error)) from None


def write_json(head: TranslateResponse, signals: Mapping[str, NDArray[np.float32]]) -> bytes:
    """Write an answer as JSON, its signals rounded to 0.01 microvolt."""
    rounded = {name: np.round(np.asarray(rows, np.float64), 5).tolist() for name, rows in signals.items()}
    return head.model_copy(update=rounded).model_dump_json().encode()


def write_arrow(head: TranslateResponse, signals: Mapping[str, NDArray[np.float32]]) -> bytes:
    """Write an answer as an Arrow stream: a row a lead, a column a signal, the rest in the schema's metadata.

    Parameters
    ----------
    head : TranslateResponse
        Everything but the signals.
    signals : mapping
        `ecg_mv` and `median_mv` (12, time), `band_mv` (2, 12, time); any may be left out.
    """
    columns: dict[str, Any] = {"lead": pa.array(head.leads)}
    for name, rows in signals.items():
        parts = {name: rows} if rows.ndim == 2 else {"band_low_mv": rows[0], "band_high_mv": rows[1]}
        for column, values in parts.items():
            flat = pa.array(np.ascontiguousarray(values, np.float32).reshape(-1))
            columns[column] = pa.FixedSizeListArray.from_arrays(flat, values.shape[-1])
    rest = head.model_dump_json(exclude={*PARTS, "leads"})
    table = pa.table(columns).replace_schema_metadata({"p2es": rest, "synthetic": "true"})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    return sink.getvalue().to_pybytes()


def read_arrow(body: bytes) -> tuple[dict[str, NDArray[np.float32]], dict[str, Any]]:
    """Undo `write_arrow`.

    Returns
    -------
    signals : dict
        `ecg_mv` and `median_mv` (12, time), `band_mv` (2, 12, time), millivolt, order of `LEADS`; what was
        not asked for is not there.
    rest : dict
        The other fields of the answer.

    Raises
    ------
    MalformedBodyError
        When it is not such a stream.
    """
    try:
        with pa.ipc.open_stream(body) as stream:
            table = stream.read_all()
        rest = json.loads(table.schema.metadata[b"p2es"])
    except (pa.ArrowInvalid, KeyError, TypeError, ValueError):
        raise MalformedBodyError("the answer is not an Arrow stream of p2es") from None
    if tuple(table.column("lead").to_pylist()) != LEADS:
        raise MalformedBodyError("the answer does not hold the 12 leads in their order")
    columns = {
        name: np.stack(table.column(name).to_numpy(zero_copy_only=False)).astype(np.float32).reshape(N_LEADS, -1)
        for name in table.column_names
        if name != "lead"
    }
    if "band_low_mv" in columns:
        columns["band_mv"] = np.stack([columns.pop("band_low_mv"), columns.pop("band_high_mv")])
    return columns, rest
