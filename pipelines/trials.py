"""What an evaluation runs: the model, the yardsticks, and the controls that are the model with another input."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from p2es.baselines.common import BaselineConfig
from p2es.baselines.mean_waveform import MeanWaveform
from p2es.baselines.oracle import SimulatorOracle
from p2es.baselines.other_segment import OtherSegment
from p2es.baselines.regression import BeatRegression
from p2es.baselines.retrieval import Retrieval
from p2es.baselines.template import Template
from p2es.demographics import FIELDS
from p2es.evaluation.controls import other_person, shuffled_demographics, warped_to_beats
from p2es.evaluation.systems import OTHER_ECGS
from p2es.model import spread_over_people
from p2es.translator import Translator
from p2es.windows import FS_HZ, WindowBatch, WindowStore
from pipelines.recipes import EvaluateConfig

MODEL = "model"
MEMBERS = "members"
COUNTERFACTUAL = "counterfactual:"

_AGE, _SEX, _HEIGHT, _WEIGHT = (FIELDS.index(name) for name in ("age_years", "sex", "height_cm", "weight_kg"))
# The published differences hold for people of equal height for their sex (reference/clinical.md 9).
_TALLER_MEN_CM = 13.0
_OLDEST = 95.0


@dataclass(frozen=True)
class Trial:
    """One system over one list of windows.

    Attributes
    ----------
    system : str
        What the rows are filed under.
    by : str
        Key of the translator that draws.
    truth : WindowBatch
        n windows with their recorded ECG.
    ppg : array (n, channel, 1536)
        What the translator is given; NaN where nothing was recorded.
    people : array (n, 4)
        What the translator is told of the person.
    enrolment : array (n, 12, 1280) or None
    samples : int
        Draws a window.
    """

    system: str
    by: str
    truth: WindowBatch
    ppg: NDArray[np.float32]
    people: NDArray[np.float64]
    samples: int
    enrolment: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.truth)

    def take(self, rows: NDArray[np.int64]) -> "Trial":
        """Choose windows."""
        earlier = None if self.enrolment is None else self.enrolment[rows]
        return replace(
            self, truth=self.truth.take(rows), ppg=self.ppg[rows], people=self.people[rows], enrolment=earlier
        )


def given_ppg(batch: WindowBatch) -> NDArray[np.float32]:
    """Give the PPG as a translator takes it: what was not recorded is NaN there, zero in a batch."""
    return np.where(batch.ppg_mask[:, None], batch.ppg, np.float32(np.nan))


def fitted(names: tuple[str, ...], train: WindowStore) -> dict[str, Translator]:
    """Fit the yardsticks of these names to the training windows."""
    makers: dict[str, type[Translator]] = {
        "template": Template,
        "regression": BeatRegression,
        "mean_waveform": MeanWaveform,
        "retrieval": Retrieval,
        "oracle": SimulatorOracle,
        "other_segment": OtherSegment,
    }
    return {name: makers[name]().fit(train, BaselineConfig()) for name in names}


def trials(
    batch: WindowBatch, store: WindowStore, train: WindowStore, config: EvaluateConfig, *, simulated: bool
) -> Iterator[Trial]:
    """Give the model's own trial, the yardsticks, and the controls.

    Parameters
    ----------
    batch : WindowBatch
        The test windows.
    store, train : WindowStore
        All windows of the test and of the train split.
    config : EvaluateConfig
    simulated : bool
        Whether all people are simulated: only then the oracle knows their law.
    """
    whole = Trial(MODEL, MODEL, batch, given_ppg(batch), batch.people, config.samples)
    yield whole
    for name in config.yardsticks:
        if name == "other_segment":
            yield from _other_ecgs(whole, store)
        elif simulated or name != "oracle":
            yield replace(whole, system=name, by=name)
    yield from controls(whole, config)
    yield from _counterfactuals(whole, config)
    yield _members(train, config)


def controls(whole: Trial, config: EvaluateConfig) -> Iterator[Trial]:
    """Give the model with another person's pulse, the same pulse at this window's beats, another's demographics."""
    few = replace(whole, samples=config.control_samples)
    donor = other_person(whole.truth.person, config.seed)
    yield replace(few, system="shuffled_ppg", ppg=whole.ppg[donor])
    warped = _warped(whole.truth, donor)
    yield replace(few, system="warped_ppg", ppg=warped)
    people = shuffled_demographics(whole.people, whole.truth.person, config.seed)
    yield replace(few, system="shuffled_demographics", people=people)


def _warped(batch: WindowBatch, donor: NDArray[np.int64]) -> NDArray[np.float32]:
    """Warp each donor's pulse to the window's beats; all NaN (refused, and counted) where beats are too few."""
    ppg = np.full(batch.ppg.shape, np.nan, np.float32)
    for row, other in enumerate(donor):
        found = warped_to_beats(batch.ppg[other], batch.ppg_mask[other], batch.ppg[row], batch.ppg_mask[row], FS_HZ)
        if found is not None:
            ppg[row] = np.where(found[1], found[0], np.float32(np.nan))
    return ppg


def _other_ecgs(whole: Trial, store: WindowStore) -> Iterator[Trial]:
    """Give each window another ECG of the person: of another recording, or where there is none of the same one.

    Two trials, as two recordings, in simulated archives two days, differ more than two minutes of one. Of several
    windows with the wanted leads the one that is farthest in the store is taken.
    """
    by_person: dict[str, list[int]] = {}
    for row in np.flatnonzero(store.rest.lead_mask.any(axis=1)):
        by_person.setdefault(str(store.person[row]), []).append(int(row))
    place = {str(name): row for row, name in enumerate(store.rest.window_id)}
    recording = store.rest.recording
    chosen: dict[str, list[tuple[int, int]]] = {name: [] for name in OTHER_ECGS}
    for k, (name, person) in enumerate(zip(whole.truth.window_id, whole.truth.person, strict=True)):
        here, wanted = place[str(name)], whole.truth.lead_mask[k]
        rows = [row for row in by_person.get(str(person), []) if row != here]
        good = [row for row in rows if store.rest.lead_mask[row][wanted].all()]
        elsewhere = [row for row in good if recording[row] != recording[here]]
        if good:
            farthest = max(elsewhere or good, key=lambda row: (abs(row - here), -row))
            chosen[OTHER_ECGS[0] if elsewhere else OTHER_ECGS[1]].append((k, farthest))
    for system, pairs in chosen.items():
        if pairs:
            numbers, others = np.array(pairs).T
            earlier = store.batch(others)
            ecg = np.where(earlier.lead_mask[..., None], earlier.ecg_mv, np.float32(np.nan))
            yield replace(whole.take(numbers), system=system, by="other_segment", enrolment=ecg, samples=1)


def _counterfactuals(whole: Trial, config: EvaluateConfig) -> Iterator[Trial]:
    """Give the model the same PPG and seeds with one demographic changed; people whose fields are all known, to 75."""
    known = np.isfinite(whole.people).all(axis=1)
    rows = np.flatnonzero(known & (np.nan_to_num(whole.people[:, _AGE]) <= _OLDEST - 20))
    rows = rows[spread_over_people(whole.truth.person[rows], config.counterfactual_windows)]
    if rows.size == 0:
        return
    base = replace(whole.take(rows), samples=config.control_samples)
    for name, people in changed_people(base.people).items():
        yield replace(base, system=f"{COUNTERFACTUAL}{name}", people=people)


def changed_people(people: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """Give (n, 4) demographics with one thing changed, by the change's name; `base` is the people as they are.

    As the published effects do, `female` and `male` keep the height relative to the sex and the body mass index,
    `height+10` keeps the body mass index, and `bmi+5` the height.
    """
    result = {"base": people.copy()}
    for name, code in (("female", 1.0), ("male", 0.0)):
        person = people.copy()
        person[:, _HEIGHT] += _TALLER_MEN_CM * (people[:, _SEX] - code)
        person[:, _WEIGHT] *= (person[:, _HEIGHT] / people[:, _HEIGHT]) ** 2
        person[:, _SEX] = code
        result[name] = person
    taller = people.copy()
    taller[:, _HEIGHT] += 10.0
    taller[:, _WEIGHT] *= (taller[:, _HEIGHT] / people[:, _HEIGHT]) ** 2
    heavier = people.copy()
    heavier[:, _WEIGHT] += 5.0 * (people[:, _HEIGHT] / 100) ** 2
    older = people.copy()
    older[:, _AGE] += 20.0
    return result | {"height+10": taller, "bmi+5": heavier, "age+20": older}


def _members(train: WindowStore, config: EvaluateConfig) -> Trial:
    """Give the model one draw of windows it was trained on: its error must not tell them from others."""
    usable = np.flatnonzero(train.rest.lead_mask.any(axis=1) & train.rest.ppg_mask.any(axis=1))
    batch = train.batch(usable[spread_over_people(train.person[usable], config.member_windows)])
    return Trial(MEMBERS, MODEL, batch, given_ppg(batch), batch.people, 1)
