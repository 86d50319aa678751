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
from p2es.errors import DatasetError
from p2es.evaluation.controls import other_person, shuffled_demographics, warped_to_beats
from p2es.evaluation.systems import OTHER_ECGS
from p2es.model import spread_over_people
from p2es.tables import WindowList
from p2es.translator import Translator
from p2es.windows import FS_HZ, WindowBatch, WindowStore
from p2es_platform.dataset import Dataset
from pipelines.recipes import EvaluateConfig

MODEL = "model"
MEMBERS = "members"
COUNTERFACTUAL = "counterfactual:"
TEST = "test"
TRAIN = "train"

_AGE, _SEX, _HEIGHT, _WEIGHT = (FIELDS.index(name) for name in ("age_years", "sex", "height_cm", "weight_kg"))
# The published differences hold for people of equal height for their sex (reference/clinical.md 9).
_TALLER_MEN_CM = 13.0
_OLDEST = 95.0


@dataclass(frozen=True)
class Windows:
    """Where windows are read from: a dataset, and how many PPG channels of it."""

    dataset: Dataset
    channels: int = 1


@dataclass(frozen=True)
class Trial:
    """One system over one list of windows: which they are and what is changed, some 0.5 kB a window, without signals.

    Attributes
    ----------
    system : str
        What the rows are filed under.
    by : str
        Key of the translator that draws.
    split : str
    rows : array (n,)
        The windows, by their place in the split.
    listed : WindowList
        The same n windows; what is scored of each is its `lead_mask`.
    people : array (n, 4)
        What the translator is told of the person.
    samples : int
        Draws a window.
    donor : array (n,) or None
        Windows of the split whose PPG is given instead of its own.
    warped : bool
        Whether the donor's pulse is warped to the window's own beats.
    earlier : array (n,) or None
        Windows of the split whose ECG is given as enrolment.
    """

    system: str
    by: str
    split: str
    rows: NDArray[np.int64]
    listed: WindowList
    people: NDArray[np.float64]
    samples: int
    donor: NDArray[np.int64] | None = None
    warped: bool = False
    earlier: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, numbers: NDArray[np.int64]) -> "Trial":
        """Choose windows."""
        donor, earlier = (None if of is None else of[numbers] for of in (self.donor, self.earlier))
        return replace(
            self, rows=self.rows[numbers], listed=self.listed.take(numbers), people=self.people[numbers],
            donor=donor, earlier=earlier,
        )  # fmt: skip


@dataclass(frozen=True)
class Inputs:
    """The signals of a trial's windows, read; some 90 kB a window.

    Attributes
    ----------
    truth : WindowBatch
        n windows with their recorded ECG.
    ppg : array (n, channel, 1536)
        What the translator is given; NaN where nothing was recorded.
    enrolment : array (n, 12, 1280) or None
    """

    truth: WindowBatch
    ppg: NDArray[np.float32]
    enrolment: NDArray[np.float32] | None = None

    def take(self, numbers: NDArray[np.int64]) -> "Inputs":
        """Choose windows."""
        earlier = None if self.enrolment is None else self.enrolment[numbers]
        return Inputs(self.truth.take(numbers), self.ppg[numbers], earlier)


def read(trial: Trial, windows: Windows) -> Inputs:
    """Read the windows of a trial, those whose pulse stands in, and the earlier ECGs, and make its inputs of them."""
    wanted = [rows for rows in (trial.rows, trial.donor, trial.earlier) if rows is not None]
    kept = np.unique(np.concatenate(wanted))
    store = windows.dataset.chosen(trial.split, kept, channels=windows.channels)

    def at(rows: NDArray[np.int64]) -> WindowBatch:
        return store.batch(np.searchsorted(kept, rows))

    truth, enrolment = at(trial.rows), None
    ppg = given_ppg(truth)
    if trial.donor is not None:
        donor = at(trial.donor)
        ppg = warped_ppg(truth, donor) if trial.warped else given_ppg(donor)
    if trial.earlier is not None:
        earlier = at(trial.earlier)
        enrolment = np.where(earlier.lead_mask[..., None], earlier.ecg_mv, np.float32(np.nan))
    return Inputs(replace(truth, lead_mask=truth.lead_mask & trial.listed.lead_mask), ppg, enrolment)


def given_ppg(batch: WindowBatch) -> NDArray[np.float32]:
    """Give the PPG as a translator takes it: what was not recorded is NaN there, zero in a batch."""
    return np.where(batch.ppg_mask[:, None], batch.ppg, np.float32(np.nan))


def warped_ppg(batch: WindowBatch, donor: WindowBatch) -> NDArray[np.float32]:
    """Warp each donor's pulse to the window's beats; all NaN (refused, and counted) where beats are too few."""
    ppg = np.full(batch.ppg.shape, np.nan, np.float32)
    for row in range(len(batch)):
        found = warped_to_beats(donor.ppg[row], donor.ppg_mask[row], batch.ppg[row], batch.ppg_mask[row], FS_HZ)
        if found is not None:
            ppg[row] = np.where(found[1], found[0], np.float32(np.nan))
    return ppg


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


def yardstick_windows(windows: Windows, train: WindowList) -> WindowStore:
    """Read the training windows that yardsticks are fitted to: what `common.training_windows` chooses of all.

    Raises
    ------
    DatasetError
        When no training window has an ECG.
    """
    rows = np.flatnonzero(train.lead_mask.any(axis=1))
    if rows.size == 0:
        raise DatasetError("no training window has an ECG: a yardstick cannot be fitted to this dataset")
    chosen = rows[spread_over_people(train.person[rows], BaselineConfig().max_windows)]
    return windows.dataset.chosen(TRAIN, chosen, channels=windows.channels)


def trials(
    rows: NDArray[np.int64], test: WindowList, train: WindowList, config: EvaluateConfig, *, simulated: bool
) -> Iterator[Trial]:
    """Give the model's own trial, the yardsticks, and the controls.

    Parameters
    ----------
    rows : array (n,)
        The test windows that are measured, by their place in the split.
    test, train : WindowList
        All windows of the test and of the train split.
    config : EvaluateConfig
    simulated : bool
        Whether all people are simulated: only then the oracle knows their law.
    """
    listed = test.take(rows)
    whole = Trial(MODEL, MODEL, TEST, rows, listed, listed.people, config.samples)
    yield whole
    for name in config.yardsticks:
        if name == "other_segment":
            yield from _other_ecgs(whole, test)
        elif simulated or name != "oracle":
            yield replace(whole, system=name, by=name)
    yield from controls(whole, config)
    yield from _counterfactuals(whole, config)
    yield _members(train, config)


def controls(whole: Trial, config: EvaluateConfig) -> Iterator[Trial]:
    """Give the model with another person's pulse, the same pulse at this window's beats, another's demographics."""
    few = replace(whole, samples=config.control_samples)
    donor = whole.rows[other_person(whole.listed.person, config.seed)]
    yield replace(few, system="shuffled_ppg", donor=donor)
    yield replace(few, system="warped_ppg", donor=donor, warped=True)
    people = shuffled_demographics(whole.people, whole.listed.person, config.seed)
    yield replace(few, system="shuffled_demographics", people=people)


def _other_ecgs(whole: Trial, test: WindowList) -> Iterator[Trial]:
    """Give each window another ECG of the person: of another recording, or where there is none of the same one.

    Two trials, as two recordings, in simulated archives two days, differ more than two minutes of one. Of several
    windows with the wanted leads the one that is farthest in the split is taken.
    """
    by_person: dict[str, list[int]] = {}
    for row in np.flatnonzero(test.lead_mask.any(axis=1)):
        by_person.setdefault(str(test.person[row]), []).append(int(row))
    chosen: dict[str, list[tuple[int, int]]] = {name: [] for name in OTHER_ECGS}
    for k, here in enumerate(whole.rows.tolist()):
        wanted = test.lead_mask[here]
        rows = [row for row in by_person.get(str(test.person[here]), []) if row != here]
        good = [row for row in rows if test.lead_mask[row][wanted].all()]
        elsewhere = [row for row in good if test.recording[row] != test.recording[here]]
        if good:
            farthest = max(elsewhere or good, key=lambda row: (abs(row - here), -row))
            chosen[OTHER_ECGS[0] if elsewhere else OTHER_ECGS[1]].append((k, farthest))
    for system, pairs in chosen.items():
        if pairs:
            numbers, others = np.array(pairs).T
            yield replace(whole.take(numbers), system=system, by="other_segment", earlier=others, samples=1)


def _counterfactuals(whole: Trial, config: EvaluateConfig) -> Iterator[Trial]:
    """Give the model the same PPG and seeds with one demographic changed; people whose fields are all known, to 75."""
    known = np.isfinite(whole.people).all(axis=1)
    rows = np.flatnonzero(known & (np.nan_to_num(whole.people[:, _AGE]) <= _OLDEST - 20))
    rows = rows[spread_over_people(whole.listed.person[rows], config.counterfactual_windows)]
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


def _members(train: WindowList, config: EvaluateConfig) -> Trial:
    """Give the model one draw of windows it was trained on: its error must not tell them from others."""
    usable = np.flatnonzero(train.lead_mask.any(axis=1) & train.has_ppg)
    rows = usable[spread_over_people(train.person[usable], config.member_windows)]
    listed = train.take(rows)
    return Trial(MEMBERS, MODEL, TRAIN, rows, listed, listed.people, 1)
