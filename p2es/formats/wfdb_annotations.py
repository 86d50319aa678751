"""Beats in WFDB annotation files, in the MIT format of annot(5).

wfdb is the oracle of the tests and not used here: it parses the record's header each time (8 ms a file, here 0.05 ms).
"""

import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from p2es.errors import RecordError

MAX_BYTES = 4 * 2**20
"""Two weeks of beats."""
# Codes of N L R a V F J A S E j / Q B ? e n f r (ecgcodes.h).
_BEATS = frozenset([*range(1, 14), 25, 30, 34, 35, 38, 41])
_SKIP, _NUM, _CHN, _AUX = 59, 60, 62, 63
_RATE = re.compile(rb"## time resolution: (\d{1,9}(?:\.\d{1,9})?)")


def read_beats(path: Path) -> tuple[NDArray[np.int64], float | None]:
    """Read the times of the beats.

    Parameters
    ----------
    path : Path

    Returns
    -------
    times : array (beat,)
        In ticks: the file's own, else the record's frames; ascending.
    rate_hz : float or None
        Ticks a second where the file tells them.

    Raises
    ------
    RecordError
        When the file is cut or no annotation file.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 2)
    except OSError as error:
        raise RecordError(f"{path.name} cannot be read ({type(error).__name__})", "annotations") from error
    if len(data) > MAX_BYTES or len(data) < 2:
        raise RecordError(f"{path.name} has {len(data)} bytes: no annotation file has", "annotations")
    found = _RATE.search(data, 0, 200)
    rate_hz = float(found.group(1)) if found else None
    return np.sort(np.array(_times(data, path.name), np.int64)), rate_hz or None


def _times(data: bytes, name: str) -> list[int]:
    """Walk through the words of 16 bits: a code of 6, and ticks since the last annotation or a length, of 10."""
    words = np.frombuffer(data, "<u2", len(data) // 2).tolist()
    times, now, at = [], 0, 0
    while at < len(words) and words[at]:
        code, value = words[at] >> 10, words[at] & 0x3FF
        at += 1
        if code == _SKIP:
            if at + 2 > len(words):
                raise RecordError(f"{name} is cut short: fetch it again", "annotations")
            ticks = words[at] << 16 | words[at + 1]
            now += ticks - (1 << 32) if ticks >> 31 else ticks
            at += 2
        elif code == _AUX:
            at += (value + 1) // 2
        elif not _NUM <= code <= _CHN:
            now += value
            if code in _BEATS and now >= 0:
                times.append(now)
    return times
