"""Another system under the same evaluation: which requests it is asked, and its answers as rows."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa

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
    tables, refused, known = [], {}, set()
    for trial in trials:
        names = [request_id(trial.system, str(window), seed) for window in trial.truth.window_id]
        if trial.system == MODEL:
            # The simple way: answers by the windows' own ids, without controls.
            names = [
                name if name in answers.ecg_mv else str(window)
                for name, window in zip(names, trial.truth.window_id, strict=True)
            ]
        known |= set(names)
        drawn = [answers.ecg_mv.get(name) for name in names]
        if all(ecg is None for ecg in drawn):
            continue
        narrowed = replace(trial, truth=replace(trial.truth, lead_mask=trial.truth.lead_mask & answers.leads))
        rows = np.flatnonzero(narrowed.truth.lead_mask.any(axis=1))
        translations = [None if drawn[k] is None else translation_of(drawn[k]) for k in rows]
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
