"""The tasks of an evaluation: draw and measure a few windows of a trial, or describe a few recorded ones."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from tqdm import tqdm

from p2es.demographics import Demographics
from p2es.errors import InputError
from p2es.evaluation.measure import ROW_SCHEMA, describe, measure
from p2es.translator import Translation, Translator
from p2es.windows import FS_HZ, WindowBatch
from p2es_platform.spread import spread
from pipelines.threads import one_thread
from pipelines.trials import Trial

# Windows a call of the sampler. It decides the last bits of what is drawn, so it is the same for any number of workers.
_BATCH = 8


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


@dataclass(frozen=True)
class _Piece:
    """Some windows of a trial, their numbers in it, and what was drawn for them where that is there already."""

    trial: Trial
    numbers: NDArray[np.int64]
    drawn: tuple[Translation | None, ...] | None = None


@dataclass
class Measured:
    """Rows of all trials, and how many windows of each were refused."""

    rows: pa.Table
    refused: dict[str, int] = field(default_factory=dict)


def measure_all(trials: Sequence[Trial], drawing: Drawing, *, gpus: float = 0.0) -> Measured:
    """Draw and measure every trial, over Ray where it runs; the same rows for any number of workers.

    Parameters
    ----------
    trials : sequence of Trial
    drawing : Drawing
    gpus : float
        Of each task.
    """
    pieces = [piece for trial in trials for piece in _pieces(trial)]
    with tqdm(total=sum(len(trial) for trial in trials), desc="evaluate", unit="window", disable=None) as bar:
        found = spread(
            _measured,
            drawing,
            ((piece,) for piece in pieces),
            done=lambda k: bar.update(len(pieces[k].numbers)),
            gpus=gpus,
        )
    refused = {trial.system: len(trial) for trial in trials}
    for piece, table in zip(pieces, found, strict=True):
        refused[piece.trial.system] -= table.num_rows
    return Measured(pa.concat_tables(found) if found else ROW_SCHEMA.empty_table(), refused)


def describe_all(batch: WindowBatch, *, system: str) -> pa.Table:
    """Describe recorded windows: the bank of an evaluation."""
    numbers = [np.arange(k, min(k + 32, len(batch))) for k in range(0, len(batch), 32)]
    with tqdm(total=len(batch), desc="read training ECGs", unit="window", disable=None) as bar:
        found = spread(
            _described, system, ((batch.take(rows),) for rows in numbers), done=lambda k: bar.update(len(numbers[k]))
        )
    return pa.concat_tables(found) if found else ROW_SCHEMA.empty_table()


def measure_given(trial: Trial, drawn: Sequence[Translation | None]) -> pa.Table:
    """Measure what another system drew for the windows of a trial; None where it gave nothing."""
    pieces = [_Piece(piece.trial, piece.numbers, tuple(drawn[k] for k in piece.numbers)) for piece in _pieces(trial)]
    with tqdm(total=len(trial), desc=f"measure {trial.system}", unit="window", disable=None) as bar:
        found = spread(
            _measured, None, ((piece,) for piece in pieces), done=lambda k: bar.update(len(pieces[k].numbers))
        )
    return pa.concat_tables(found)


def _pieces(trial: Trial) -> Iterator[_Piece]:
    for start in range(0, len(trial), _BATCH):
        numbers = np.arange(start, min(start + _BATCH, len(trial)))
        yield _Piece(trial.take(numbers), numbers)


def _described(system: str, batch: WindowBatch) -> pa.Table:
    return describe(batch, system=system)


def _measured(drawing: Drawing | None, piece: _Piece) -> pa.Table:
    """Draw what is not there yet, and measure what was not refused."""
    trial, drawn = piece.trial, piece.drawn
    if drawn is None:
        assert drawing is not None
        with one_thread():
            drawn = tuple(draw(drawing, trial, piece.numbers))
    good = [k for k, translation in enumerate(drawn) if translation is not None]
    kept = [translation for translation in drawn if translation is not None]
    return measure(trial.truth.take(good), kept, system=trial.system)


def draw(drawing: Drawing, trial: Trial, numbers: NDArray[np.int64]) -> list[Translation | None]:
    """Draw the windows of a trial; None where the PPG is refused.

    Parameters
    ----------
    drawing : Drawing
    trial : Trial
        The windows to draw.
    numbers : array (n,)
        Their numbers in the whole trial, which give the seeds: the same window has the same noise in every control.
    """
    rows = np.arange(len(trial))
    try:
        return list(_drawn(drawing, trial, numbers))
    except InputError:
        # One poor window must not take its neighbours with it.
        return [_drawn_alone(drawing, trial.take(rows[k : k + 1]), numbers[k : k + 1]) for k in rows]


def _drawn(drawing: Drawing, trial: Trial, numbers: NDArray[np.int64]) -> list[Translation]:
    more: dict[str, Any] = {} if trial.enrolment is None else {"enrolment": trial.enrolment}
    return drawing.translators[trial.by].sample(
        trial.ppg,
        [Demographics.from_array(person) for person in trial.people],
        fs_hz=FS_HZ,
        samples=trial.samples,
        evaluations=drawing.evaluations,
        seeds=[drawing.seed * 1_000_000 + int(number) for number in numbers],
        **more,
    )


def _drawn_alone(drawing: Drawing, trial: Trial, numbers: NDArray[np.int64]) -> Translation | None:
    try:
        return _drawn(drawing, trial, numbers)[0]
    except InputError:
        return None
