"""The tasks of an evaluation: read, draw and measure some windows of a trial, or describe a few recorded ones.

A task reads its windows itself and writes its rows itself, a file a task: neither it nor the driver ever holds more
than the windows of one task. Where a file lies its rows are not measured again.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from tqdm import tqdm

from p2es.demographics import Demographics
from p2es.errors import DatasetError, InputError
from p2es.evaluation.exchange import translation_of
from p2es.evaluation.measure import ROW_SCHEMA, describe, measure
from p2es.signals import pulse_rhythm
from p2es.translator import Translation, Translator
from p2es.windows import FS_HZ
from p2es_platform import storage
from p2es_platform.shards import open_parquet, read_columns
from p2es_platform.spread import spread
from pipelines.threads import one_thread
from pipelines.trials import Inputs, Trial, Windows, read

# Windows a call of the sampler. It decides the last bits of what is drawn, so it is the same for any number of workers.
_BATCH = 8
# A task has so many batches at most (128 windows: 12 MB of signals, 1.5 MB of rows), and there are this many tasks if
# the windows suffice: enough for any cluster, few enough for a folder. Of the number of windows alone, so that a run on
# more workers finds the files of one that was stopped.
_MOST_BATCHES = 16
_TASKS = 128
_DESCRIBED = 32
_READ = 256


@dataclass(frozen=True)
class Drawing:
    """How every translator draws.

    Attributes
    ----------
    translators : mapping
        By the name that trials use.
    evaluations, seed : int
    """

    translators: Mapping[str, Translator]
    evaluations: int
    seed: int


Draws = NDArray[np.float32]


@dataclass(frozen=True)
class _Part:
    """Some windows of a trial, their numbers in it, and what was drawn for them where that is there already."""

    place: str
    trial: Trial
    numbers: NDArray[np.int64]
    given: tuple[Draws | None, ...] | None = None


@dataclass(frozen=True)
class _Span:
    """Which windows of which trial a task measures, and where its rows go but for their number."""

    trial: Trial
    start: int
    stop: int
    place: str


@dataclass(frozen=True)
class Measured:
    """Rows of all trials, in files, and how many windows of each were refused."""

    files: tuple[str, ...]
    refused: Mapping[str, int]

    def rows(self) -> pa.Table:
        """Read all rows: some 12 kB each.

        Raises
        ------
        DatasetError
            When a file cannot be read.
        """
        return pa.concat_tables([ROW_SCHEMA.empty_table(), *(_read_rows(place) for place in self.files)])


def measure_all(
    trials: Sequence[Trial],
    drawing: Drawing,
    windows: Windows,
    folder: str,
    *,
    given: Mapping[str, Sequence[Draws | None]] | None = None,
    gpus: float = 0.0,
) -> Measured:
    """Draw and measure every trial, over Ray where it runs; the same rows for any number of workers.

    Parameters
    ----------
    trials : sequence of Trial
    drawing : Drawing
    windows : Windows
    folder : str
        Where the rows are written, and where those of an earlier run of the same trials are found. It is for these
        trials, this drawing and this dataset alone; files of others are removed.
    given : mapping, optional
        By system, what another system drew for each window, (sample, 12, 1280); None where it gave nothing.
    gpus : float
        Of each task.
    """
    spans = list(_spans(trials, folder))
    there = _finished(folder)
    counts = {k: there[span.place] for k, span in enumerate(spans) if span.place in there}
    missing = [k for k in range(len(spans)) if k not in counts]
    sizes = [span.stop - span.start for span in spans]
    with tqdm(total=sum(sizes), desc="evaluate", unit="window", disable=None) as bar:
        bar.update(sum(sizes[k] for k in counts))
        found = spread(
            _measured,
            (drawing, windows),
            ((_part(spans[k], given or {}),) for k in missing),
            done=lambda number: bar.update(sizes[missing[number]]),
            gpus=gpus,
        )
    counts |= dict(zip(missing, found, strict=True))
    files = tuple(_file(span.place, counts[k]) for k, span in enumerate(spans))
    refused = {trial.system: len(trial) for trial in trials}
    for k, span in enumerate(spans):
        refused[span.trial.system] -= counts[k]
    others = set(storage.listing(folder)) - set(map(_name, files))
    storage.remove_all(storage.join(folder, name) for name in others if name.endswith(".parquet"))
    return Measured(files, refused)


def describe_all(rows: NDArray[np.int64], windows: Windows, *, split: str, system: str) -> pa.Table:
    """Describe recorded windows of a split: the bank of an evaluation."""
    parts = [rows[k : k + _DESCRIBED] for k in range(0, len(rows), _DESCRIBED)]
    with tqdm(total=len(rows), desc="read training ECGs", unit="window", disable=None) as bar:
        found = spread(
            _described,
            (windows, split, system),
            ((part,) for part in parts),
            done=lambda k: bar.update(len(parts[k])),
        )
    return pa.concat_tables(found) if found else ROW_SCHEMA.empty_table()


def pulse_rates(trial: Trial, windows: Windows) -> NDArray[np.float64]:
    """Give the heart rate that the own pulse of each window of a trial tells, (n,) per minute."""
    parts = ((trial.split, trial.rows[start : start + _READ]) for start in range(0, len(trial), _READ))
    found = spread(_rates, windows, parts)
    return np.concatenate([np.zeros(0), *found])


def _spans(trials: Sequence[Trial], folder: str) -> Iterator[_Span]:
    batches = sum(-(-len(trial) // _BATCH) for trial in trials)
    step = _BATCH * min(_MOST_BATCHES, max(1, batches // _TASKS))
    number = 0
    for trial in trials:
        for start in range(0, len(trial), step):
            stop = min(start + step, len(trial))
            ids = trial.listed.window_id[start:stop].tolist()
            told = json.dumps([_versions(), trial.system, trial.by, trial.samples, start, ids]).encode()
            name = f"{number:06d}-{hashlib.sha256(told).hexdigest()[:12]}"
            yield _Span(trial, start, stop, storage.join(folder, name))
            number += 1


@cache
def _versions() -> list[str]:
    """Give the versions of what decides a figure: a run that is resumed with others measures anew."""
    return [version(name) for name in ("p2es", "numpy", "scipy", "torch", "sleepecg")]


def _finished(folder: str) -> dict[str, int]:
    """Give the rows that lie in a folder: place of each span, and how many; a file is there whole or not at all."""
    found = {}
    for name in storage.listing(folder):
        place, _, count = name.removesuffix(".parquet").rpartition("-")
        if name.endswith(".parquet") and count.isdecimal():
            found[storage.join(folder, place)] = int(count)
    return found


def _file(place: str, count: int) -> str:
    return f"{place}-{count}.parquet"


def _name(place: str) -> str:
    return place.rsplit("/", 1)[-1]


def _part(span: _Span, given: Mapping[str, Sequence[Draws | None]]) -> _Part:
    numbers = np.arange(span.start, span.stop)
    drawn = given.get(span.trial.system)
    mine = None if drawn is None else tuple(drawn[span.start : span.stop])
    return _Part(span.place, span.trial.take(numbers), numbers, mine)


def _described(shared: tuple[Windows, str, str], rows: NDArray[np.int64]) -> pa.Table:
    windows, split, system = shared
    store = windows.dataset.chosen(split, rows, channels=windows.channels)
    return describe(store.batch(np.arange(len(store))), system=system)


def _rates(windows: Windows, split: str, rows: NDArray[np.int64]) -> list[float]:
    store = windows.dataset.chosen(split, rows, channels=windows.channels)
    batch = store.batch(np.arange(len(store)))
    return [pulse_rhythm(ppg, mask, FS_HZ)[0] for ppg, mask in zip(batch.ppg, batch.ppg_mask, strict=True)]


def _measured(shared: tuple[Drawing, Windows], part: _Part) -> int:
    """Read the windows of a part, draw what is not there yet, measure what was not refused, write the rows, count."""
    drawing, windows = shared
    inputs = read(part.trial, windows)
    tables = []
    for start in range(0, len(part.trial), _BATCH):
        here = np.arange(start, min(start + _BATCH, len(part.trial)))
        tables.append(_rows_of(drawing, part, inputs.take(here), here))
    table = pa.concat_tables(tables)
    write_rows(table, _file(part.place, table.num_rows))
    return int(table.num_rows)


def write_rows(table: pa.Table, place: str) -> None:
    """Write rows as Parquet, whole or not at all."""
    sink = pa.BufferOutputStream()
    # No number occurs twice, and of 150 columns statistics are half the footer.
    pq.write_table(table, sink, compression="zstd", use_dictionary=False, write_statistics=False)
    storage.write_atomic(place, sink.getvalue().to_pybytes())


def _rows_of(drawing: Drawing, part: _Part, inputs: Inputs, here: NDArray[np.int64]) -> pa.Table:
    if part.given is None:
        with one_thread():
            drawn = draw(drawing, part.trial.take(here), inputs, part.numbers[here])
    else:
        given = [part.given[k] for k in here]
        drawn = [None if ecg is None else translation_of(ecg) for ecg in given]
    good = [k for k, translation in enumerate(drawn) if translation is not None]
    kept = [translation for translation in drawn if translation is not None]
    return measure(inputs.truth.take(good), kept, system=part.trial.system)


def _read_rows(place: str) -> pa.Table:
    try:
        # A list's values are named otherwise in Parquet.
        rows = read_columns(open_parquet(pa.BufferReader(storage.read_bytes(place)))).cast(ROW_SCHEMA)
    except FileNotFoundError as error:
        raise DatasetError(
            f"{place} was written and is not there: give all nodes one storage, a shared folder or a bucket"
        ) from error
    except (pa.ArrowException, OSError) as error:
        raise DatasetError(f"{place}, rows of an evaluation, cannot be read: remove it and run again") from error
    if not place.endswith(f"-{rows.num_rows}.parquet"):
        raise DatasetError(f"{place} holds {rows.num_rows} rows, not those its name tells: remove it and run again")
    return rows


def draw(drawing: Drawing, trial: Trial, inputs: Inputs, numbers: NDArray[np.int64]) -> list[Translation | None]:
    """Draw the windows of a trial; None where the PPG is refused.

    Parameters
    ----------
    drawing : Drawing
    trial : Trial
        The windows to draw.
    inputs : Inputs
        Of the same windows.
    numbers : array (n,)
        Their numbers in the whole trial, which give the seeds: the same window has the same noise in every control.
    """
    rows = np.arange(len(trial))
    try:
        return list(_drawn(drawing, trial, inputs, numbers))
    except InputError:
        # One poor window must not take its neighbours with it.
        return [_drawn_alone(drawing, trial, inputs, numbers, rows[k : k + 1]) for k in rows]


def _drawn(drawing: Drawing, trial: Trial, inputs: Inputs, numbers: NDArray[np.int64]) -> list[Translation]:
    more: dict[str, Any] = {} if inputs.enrolment is None else {"enrolment": inputs.enrolment}
    return drawing.translators[trial.by].sample(
        inputs.ppg,
        [Demographics.from_array(person) for person in trial.people],
        fs_hz=FS_HZ,
        samples=trial.samples,
        evaluations=drawing.evaluations,
        seeds=[drawing.seed * 1_000_000 + int(number) for number in numbers],
        **more,
    )


def _drawn_alone(
    drawing: Drawing, trial: Trial, inputs: Inputs, numbers: NDArray[np.int64], row: NDArray[np.int64]
) -> Translation | None:
    try:
        return _drawn(drawing, trial.take(row), inputs.take(row), numbers[row])[0]
    except InputError:
        return None
