"""Another system under the same evaluation: which requests it is asked, and its answers as rows."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from p2es.demographics import Demographics
from p2es.errors import InputError
from p2es.evaluation.exchange import Answers, Request, read_answers, request_id, translation_of, write_requests
from pipelines.measuring import Measured, measure_given
from pipelines.trials import MODEL, Trial


def write(trials: Sequence[Trial], path: Path, seed: int) -> int:
    """Write what the trials of the model and its controls ask; give the number of requests."""
    requests = [
        Request(
            request_id(trial.system, str(trial.truth.window_id[k]), seed),
            trial.ppg[k, 0],
            Demographics.from_array(trial.people[k]),
            trial.samples,
            seed * 1_000_000 + k,
        )
        for trial in trials
        for k in range(len(trial))
    ]
    return write_requests(requests, path)


def read(path: Path) -> Answers:
    """Read the answers of another system; see `exchange.read_answers`."""
    return read_answers(path)


def measure_answers(answers: Answers, trials: Sequence[Trial], seed: int) -> Measured:
    """Measure the answers of another system for each trial it answered.

    Raises
    ------
    InputError
        When it answers nothing that was asked, or something that was not.
    """
    tables: list[pa.Table] = []
    refused: dict[str, int] = {}
    known: set[str] = set()
    for trial in trials:
        names = [_name(answers, trial, k, seed) for k in range(len(trial))]
        known |= set(names)
        drawn = [answers.ecg_mv.get(name) for name in names]
        if all(ecg is None for ecg in drawn):
            continue
        narrowed = replace(trial, truth=replace(trial.truth, lead_mask=trial.truth.lead_mask & answers.leads))
        rows = np.flatnonzero(narrowed.truth.lead_mask.any(axis=1))
        given = [drawn[k] for k in rows]
        translations = [None if ecg is None else translation_of(ecg) for ecg in given]
        table = measure_given(narrowed.take(rows), translations)
        tables.append(table)
        refused[trial.system] = len(trial) - table.num_rows
    strange = sorted(set(answers.ecg_mv) - known)
    if strange:
        raise InputError(
            f"{answers.name} answers {strange[0]!r}, which was not asked ({len(strange)} such): give the requests of "
            "this dataset, recipe and seed"
        )
    if MODEL not in refused:
        raise InputError(f"{answers.name} answers no window of the test split")
    return Measured(pa.concat_tables(tables), refused)


def answer_of(answers: Answers, trial: Trial, number: int, seed: int) -> NDArray[np.float32] | None:
    """Give what was answered for a window of a trial, (sample, 12, 1280)."""
    return answers.ecg_mv.get(_name(answers, trial, number, seed))


def _name(answers: Answers, trial: Trial, number: int, seed: int) -> str:
    """Give the name an answer goes by; the model's own windows may also be answered by their ids, without controls."""
    window = str(trial.truth.window_id[number])
    name = request_id(trial.system, window, seed)
    return window if trial.system == MODEL and name not in answers.ecg_mv else name
