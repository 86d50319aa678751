"""The same heart twice: windows that are there already under another record are left out, or stop the run."""

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from p2es.errors import DatasetError
from p2es_platform import twins
from p2es_platform.parts import Part, rewrite_part, windows_of

_DIGEST = np.dtype([("low", "<u8"), ("high", "<u8")])


def without_twins(
    url: str, new: Sequence[Part], old: Sequence[Part], policy: Literal["leave_out", "fail"]
) -> list[Part]:
    """Give the new parts without windows that are copies of others.

    A copy is a window of another record with the same stored samples (`duplicate`), or, in another split, with nearly
    the same (`near_duplicate`): resampled, with another gain, cut elsewhere, with noise added. What the dataset had
    before stays; of two new ones the first by window id stays. Exact copies are always left out: they are one window.
    Of a person with a near copy in another split all new windows go: the heart is the same in the rest.

    Parameters
    ----------
    url : str
    new, old : sequence of Part
        Written by this run; of the version before.
    policy : str
        What to do with near copies: leave them out, or `fail`.

    Raises
    ------
    DatasetError
        With `fail`, naming both people by their hashed ids.
    """
    parts = _without(url, new, _copies(url, new, old))
    leaks = [twin for twin in twins.find(url, parts, old) if twin.leaks]
    if leaks and policy == "fail":
        first = leaks[0]
        raise DatasetError(
            f"person {first.person[:12]} ({first.split}) has the signals of {first.other_person[:12]} "
            f"({first.other_split}), likeness {first.likeness:.3f}, and {len(leaks) - 1} more: give them one person, "
            "take one out of the archive, or ingest with --ingest.twins leave_out"
        )
    dropped = twins.to_leave_out(url, parts, leaks)
    return [rewrite_part(url, part, dropped[part.key]) if part.key in dropped else part for part in parts]


def _without(url: str, parts: Sequence[Part], dropped: Mapping[str, str]) -> list[Part]:
    """Make those parts anew that hold a window to leave out; `dropped` gives the reason by window id."""
    if not dropped:
        return list(parts)
    result = []
    for part in parts:
        mine = {
            name: dropped[name]
            for _, table in windows_of(url, [part], ["window_id"])
            for name in table["window_id"].to_pylist()
            if name in dropped
        }
        result.append(rewrite_part(url, part, mine) if mine else part)
    return result


def _contents(url: str, parts: Sequence[Part]) -> NDArray[np.void]:
    """Give the digests of all windows, 16 bytes each: a hundred million windows are 1.6 GB."""
    found = [
        np.frombuffer(b"".join(table["content"].to_pylist()), _DIGEST)
        for _, table in windows_of(url, parts, ["content"])
    ]
    return np.concatenate(found) if found else np.empty(0, _DIGEST)


def _copies(url: str, new: Sequence[Part], old: Sequence[Part]) -> dict[str, str]:
    """Find the new windows whose stored samples another record has too: window id to reason."""
    digests, counts = np.unique(np.concatenate([_contents(url, new), _contents(url, old)]), return_counts=True)
    repeated = {digest.tobytes() for digest in digests[counts > 1]}
    if not repeated:
        return {}
    first: dict[bytes, str] = {}
    columns = ["window_id", "recording", "content"]
    for _, table in windows_of(url, old, columns):
        for row in table.to_pylist():
            if row["content"] in repeated:
                first.setdefault(row["content"], row["recording"])
    mine = sorted(
        (row["window_id"], row["recording"], row["content"])
        for _, table in windows_of(url, new, columns)
        for row in table.to_pylist()
        if row["content"] in repeated
    )
    # A record may repeat itself (a calibration, a simulation); that tells nothing of another person.
    return {name: "duplicate" for name, recording, content in mine if first.setdefault(content, recording) != recording}
