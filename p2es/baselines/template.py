"""A beat for the person, pasted at the beats of the pulse: the strong yardstick.

The beat is a linear (ridge) regression of each training person's median beat on age, sex, height, weight and
RR interval. It is pasted one delay before each steepest rise of the pulse, the delay drawn from a regression
on age and height, as P2Es draws it. Each sample adds to the beat what the regression missed of one training
person, so that its spread over people is real. A prototype of this reached an F1 of .94 within 50 ms: what a
model claims must be claimed against this, not against a mean.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from p2es.baselines.common import (
    Arrays,
    BaselineConfig,
    Pulse,
    check_request,
    independent,
    lifted,
    read_arrays,
    read_pulse,
    refuse_more,
    training_windows,
    translation,
    write_arrays,
)
from p2es.delay import DelayLaw
from p2es.demographics import Demographics, DemographicScaler
from p2es.errors import DatasetError, InputError
from p2es.leads import N_INDEPENDENT
from p2es.signals import pulse_onsets, r_peaks
from p2es.translator import Translation
from p2es.windows import ECG_SAMPLES, FS_HZ, MARGIN_S, WINDOW_S, WindowBatch, WindowStore

# A beat owns the time from 0.35 RR before its R peak to 0.65 RR after it: the P wave is in front, the T wave
# behind, at any rate.
_SHARE_BEFORE = 0.35
_FADE_S = 0.08
_BEFORE, _AFTER = int(0.7 * FS_HZ), int(1.2 * FS_HZ)
_TIME_S = np.arange(-_BEFORE, _AFTER) / FS_HZ
_RR_LIMITS_S = (0.3, 1.7)
_RR_MEAN_S, _RR_SPREAD_S = 0.85, 0.15
_FEATURES = 6
_MIN_WINDOWS = 10
_MAX_RESIDUALS = 300

Floats = NDArray[np.float64]


@dataclass
class Template:
    """Regressed beat and drawn delay.

    Attributes
    ----------
    weights_mv : array (6, 8, time)
        Beat of the average person, and its change a standard deviation of age, sex, height, weight and RR.
    residuals_mv : array (person, 8, time)
        What the regression missed of training people.
    scaler : DemographicScaler
        Fills unknown fields by what the known ones imply.
    delay : DelayLaw
    """

    weights_mv: NDArray[np.float32] = field(
        default_factory=lambda: np.zeros((_FEATURES, N_INDEPENDENT, _TIME_S.size), np.float32)
    )
    residuals_mv: NDArray[np.float32] = field(
        default_factory=lambda: np.zeros((1, N_INDEPENDENT, _TIME_S.size), np.float32)
    )
    scaler: DemographicScaler = field(default_factory=lambda: DemographicScaler.fit(np.empty((0, 4))))
    delay: DelayLaw = field(default_factory=DelayLaw)
    name: str = "template"

    def fit(self, dataset: WindowStore, recipe: BaselineConfig) -> Self:
        """Regress beat and delay on the training people; see `Translator.fit`."""
        batch = training_windows(dataset, recipe)
        people, first = np.unique(batch.person, return_index=True)
        del people
        self.scaler = DemographicScaler.fit(batch.people[first])
        recordings = np.unique(batch.recording, return_index=True)[1]
        self.delay = DelayLaw.fit(*(getattr(batch, n)[recordings] for n in ("people", "delay_s", "delay_confidence")))
        beats, rr_s, mask, person = _beats_of_people(batch)
        features = self._features(batch.people[first][person], rr_s)
        self.weights_mv = _ridge(features, beats, mask)
        whole = np.flatnonzero(mask.all(axis=1))[:_MAX_RESIDUALS]
        if whole.size:
            fitted = np.tensordot(features[whole], self.weights_mv, axes=1)
            self.residuals_mv = (beats[whole] - fitted).astype(np.float32)
        return self

    def sample(
        self,
        ppg: NDArray[np.float32],
        demographics: Sequence[Demographics],
        *,
        fs_hz: float,
        known: NDArray[np.float32] | None = None,
        enrolment: NDArray[np.float32] | None = None,
        samples: int = 20,
        evaluations: int = 1,
        seeds: Sequence[int],
    ) -> list[Translation]:
        """Paste beats; see `Translator.sample`. `evaluations` has no meaning here."""
        refuse_more(self.name, known, enrolment)
        check_request(ppg, demographics, seeds, samples)
        results = []
        for window, person, seed in zip(ppg, demographics, seeds, strict=True):
            pulse = read_pulse(window, fs_hz)
            results.append(translation(self._draws(pulse, person.to_array(), seed, samples), pulse))
        return results

    def save(self, folder: Path) -> None:
        """Write `template.npz`."""
        plain = {"weights_mv": self.weights_mv, "residuals_mv": self.residuals_mv}
        plain |= {f"scaler_{key}": np.array(value) for key, value in vars(self.scaler).items()}
        plain |= {f"delay_{key}": np.array(value) for key, value in vars(self.delay).items()}
        write_arrays(folder, self.name, plain)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Undo `save`; ModelError when it is missing or corrupt."""
        a = read_arrays(folder, "template", _check)
        scaler = DemographicScaler(tuple(a["scaler_mean"].tolist()), tuple(map(tuple, a["scaler_covariance"].tolist())))
        age, height = a["delay_slopes_s"].astype(np.float64)
        law = DelayLaw(
            float(a["delay_intercept_s"].item()),
            (float(age), float(height)),
            float(a["delay_spread_s"].item()),
        )
        return cls(a["weights_mv"].astype(np.float32), a["residuals_mv"].astype(np.float32), scaler, law)

    def _features(self, people: Floats, rr_s: Floats) -> Floats:
        """Give (n, 6): 1, the standardised demographics, unknown ones as expected, and the RR interval."""
        filled, _ = self.scaler.complete(people)
        return np.column_stack([np.ones(len(people)), filled, (rr_s - _RR_MEAN_S) / _RR_SPREAD_S])

    def _draws(self, pulse: Pulse, person: Floats, seed: int, samples: int) -> NDArray[np.float32]:
        """Draw (samples, 12, 1280): each has a delay and a training person's residual of its own."""
        onsets_s = pulse_onsets(pulse.ppg[0], FS_HZ, pulse.mask)
        if onsets_s.size < 2:
            raise InputError("no pulse was found in the PPG: choose a stretch with less motion")
        rr_s = np.clip(np.diff(onsets_s), *_RR_LIMITS_S)
        features = self._features(person[None], np.array([np.median(rr_s)]))[0]
        beat = np.tensordot(features, self.weights_mv, axes=1)
        draws = np.empty((samples, N_INDEPENDENT, ECG_SAMPLES))
        for k in range(samples):
            generator = np.random.default_rng([seed, k])
            delay_s = self.delay.draw_s(person[None], generator.standard_normal(1))[0]
            residual = self.residuals_mv[generator.integers(len(self.residuals_mv))]
            draws[k] = _paste(beat + residual, onsets_s - MARGIN_S - delay_s, rr_s)
        return lifted(draws)


def _gate(before_s: float, after_s: float) -> Floats:
    """Give a beat's share of each point of `_TIME_S`; gates of neighbouring beats add up to 1."""
    rise = np.clip((_TIME_S + before_s) / _FADE_S + 0.5, 0.0, 1.0)
    fall = np.clip((after_s - _TIME_S) / _FADE_S + 0.5, 0.0, 1.0)
    return np.sin(np.pi / 2 * rise) ** 2 * np.sin(np.pi / 2 * fall) ** 2


def _edges_s(rr_s: Floats) -> tuple[Floats, Floats]:
    """Give how far each beat reaches back and forward; the first and the last as by the median interval."""
    usual = np.median(rr_s)
    before, after = np.append(usual, rr_s), np.append(rr_s, usual)
    return _SHARE_BEFORE * before, (1 - _SHARE_BEFORE) * after


def _paste(beat_mv: Floats, beats_s: Floats, rr_s: Floats) -> Floats:
    """Add a beat (8, time) at each time, each within its own share; gives (8, 1280)."""
    margin = _BEFORE + _AFTER
    ecg = np.zeros((len(beat_mv), ECG_SAMPLES + 2 * margin))
    for at_s, before_s, after_s in zip(beats_s, *_edges_s(rr_s), strict=True):
        start = round(at_s * FS_HZ) - _BEFORE + margin
        if 0 <= start <= ecg.shape[1] - _TIME_S.size:
            ecg[:, start : start + _TIME_S.size] += beat_mv * _gate(before_s, after_s)
    return ecg[:, margin : margin + ECG_SAMPLES]


def _median_beat(ecg_mv: NDArray[np.float32], beats_s: Floats) -> tuple[Floats, float] | None:
    """Give the median of the gated beats of (8, 1280) and the median RR; None with too few beats."""
    rr_s = np.diff(beats_s)
    if rr_s.size < 2 or not _RR_LIMITS_S[0] <= np.median(rr_s) <= _RR_LIMITS_S[1]:
        return None
    padded = np.pad(ecg_mv, ((0, 0), (_BEFORE, _AFTER)))
    cuts = []
    for at_s, before_s, after_s in zip(beats_s, *_edges_s(np.clip(rr_s, *_RR_LIMITS_S)), strict=True):
        # A beat that is cut by the window's end would pull the median to zero there.
        if at_s - before_s >= 0 and at_s + after_s <= WINDOW_S:
            start = round(at_s * FS_HZ)
            cuts.append(padded[:, start : start + _TIME_S.size] * _gate(before_s, after_s))
    return (np.median(cuts, axis=0), float(np.median(rr_s))) if cuts else None


def _beats_of_people(batch: WindowBatch) -> tuple[Floats, Floats, NDArray[np.bool_], NDArray[np.intp]]:
    """Average each person's median beats.

    Returns
    -------
    beats : array (person, 8, time)
    rr_s : array (person,)
    mask : array (person, 8)
        Leads that any of the person's windows has.
    person : array (person,)
        Place among the sorted people of the batch; those without a usable beat are left out.
    """
    ecg, present = independent(batch)
    names, code = np.unique(batch.person, return_inverse=True)
    total = np.zeros((len(names), N_INDEPENDENT, _TIME_S.size))
    count, rr_total, windows = (
        np.zeros((len(names), N_INDEPENDENT)),
        np.zeros(len(names)),
        np.zeros(len(names)),
    )
    for k, who in enumerate(code):
        found = _median_beat(ecg[k], r_peaks(batch.ecg_mv[k], FS_HZ, batch.lead_mask[k]))
        if found is not None:
            total[who] += found[0] * present[k][:, None]
            count[who] += present[k]
            rr_total[who] += found[1]
            windows[who] += 1
    kept = np.flatnonzero(windows)
    if kept.size == 0:
        raise DatasetError("no training window has a heart beat that can be found: check the dataset's ECG")
    beats = total[kept] / np.maximum(count[kept], 1)[..., None]
    return beats, rr_total[kept] / windows[kept], count[kept] > 0, kept


def _ridge(features: Floats, beats: Floats, mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Regress beats (n, 8, time) on features (n, 6), each lead on the people who have it."""
    weights = np.zeros((_FEATURES, N_INDEPENDENT, _TIME_S.size))
    penalty = np.diag([0.0] + [1.0] * (_FEATURES - 1))
    for lead in range(N_INDEPENDENT):
        x, y = features[mask[:, lead]], beats[mask[:, lead], lead]
        if len(x) >= _MIN_WINDOWS:
            weights[:, lead] = np.linalg.solve(x.T @ x + penalty, x.T @ y)
        elif len(x):
            weights[0, lead] = y.mean(axis=0)
    return weights.astype(np.float32)


def _check(arrays: Arrays) -> None:
    needed = {"weights_mv", "residuals_mv", "scaler_mean", "scaler_covariance"}
    needed |= {f"delay_{f.name}" for f in dataclasses.fields(DelayLaw)}
    beat = (N_INDEPENDENT, _TIME_S.size)
    if needed - set(arrays) or arrays["weights_mv"].shape != (_FEATURES, *beat):
        raise ValueError("shape")
    if arrays["residuals_mv"].ndim != 3 or arrays["residuals_mv"].shape[1:] != beat:
        raise ValueError("shape")
