"""Another system under the same evaluation: which requests it is asked, and which of its answers is to which.

Its answers are held in memory as they were read, all of them: 61 kB a draw of twelve leads.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from p2es.demographics import Demographics
from p2es.errors import InputError
from p2es.evaluation.exchange import Answers, Request, read_answers, request_id, write_requests
from pipelines.trials import MODEL, Trial, Windows, read

# Windows read at a time.
_READ = 256

Given = dict[str, list[NDArray[np.float32] | None]]


def write(trials: Sequence[Trial], windows: Windows, path: Path, seed: int) -> int:
    """Write what the trials of the model and its controls ask; give the number of requests.

    They are mixed, so all are held in memory: some 7 kB each.
    """
    return write_requests((request for trial in trials for request in _requests(trial, windows, seed)), path)


def _requests(trial: Trial, windows: Windows, seed: int) -> Iterator[Request]:
    for start in range(0, len(trial), _READ):
        part = trial.take(np.arange(start, min(start + _READ, len(trial))))
        ppg = read(part, windows).ppg
        for k in range(len(part)):
            name = request_id(part.system, str(part.listed.window_id[k]), seed)
            person = Demographics.from_array(part.people[k])
            yield Request(name, ppg[k, 0].copy(), person, part.samples, seed * 1_000_000 + start + k)


def read_file(path: Path) -> Answers:
    """Read the answers of another system; see `exchange.read_answers`."""
    return read_answers(path)


def matched(answers: Answers, trials: Sequence[Trial], seed: int) -> tuple[list[Trial], Given]:
    """Give the trials that another system answered, with the leads it draws, and its answers to each window of them.

    Raises
    ------
    InputError
        When it answers nothing that was asked, or something that was not.
    """
    found: list[Trial] = []
    given: Given = {}
    known: set[str] = set()
    for trial in trials:
        names = [_name(answers, trial, k, seed) for k in range(len(trial))]
        known |= set(names)
        drawn = [answers.ecg_mv.get(name) for name in names]
        if any(ecg is not None for ecg in drawn):
            narrowed = _narrowed(trial, answers)
            found.append(narrowed)
            some = np.asarray(narrowed.listed.lead_mask.any(axis=1))
            # Where no lead is in both there is nothing to score.
            given[trial.system] = [ecg if scored else None for ecg, scored in zip(drawn, some, strict=True)]
    strange = sorted(set(answers.ecg_mv) - known)
    if strange:
        raise InputError(
            f"{answers.name} answers {strange[0]!r}, which was not asked ({len(strange)} such): give the requests of "
            "this dataset, recipe and seed"
        )
    if MODEL not in given:
        raise InputError(f"{answers.name} answers no window of the test split")
    return found, given


def _narrowed(trial: Trial, answers: Answers) -> Trial:
    """Score the leads alone that are drawn."""
    return replace(trial, listed=replace(trial.listed, lead_mask=trial.listed.lead_mask & answers.leads))


def answer_of(answers: Answers, trial: Trial, number: int, seed: int) -> NDArray[np.float32] | None:
    """Give what was answered for a window of a trial, (sample, 12, 1280)."""
    return answers.ecg_mv.get(_name(answers, trial, number, seed))


def _name(answers: Answers, trial: Trial, number: int, seed: int) -> str:
    """Give the name an answer goes by; the model's own windows may also be answered by their ids, without controls."""
    window = str(trial.listed.window_id[number])
    name = request_id(trial.system, window, seed)
    return window if trial.system == MODEL and name not in answers.ecg_mv else name
