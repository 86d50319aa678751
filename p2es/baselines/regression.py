"""A beat for the person, pasted at the beats of the pulse: the strong yardstick.

The beat is a linear (ridge) regression of each training person's median beat on age, sex, height, weight, the interval
and the shape of the pulse (`pulse_shape`): all that the input holds, through the simplest model there is. It is pasted
one delay before each steepest rise of the pulse, the delay drawn from a regression on age and height, as P2Es draws
it. Each sample adds to the beat what the regression missed of one training person, so that its spread over people is
real. What a model claims must be claimed against this, not against a mean.
"""

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
    fit_delay,
    fit_scaler,
    law_arrays,
    law_from,
    lifted,
    onsets_of,
    read_arrays,
    read_pulse,
    refuse_more,
    scaler_arrays,
    scaler_from,
    training_pulse,
    training_windows,
    translation,
    write_arrays,
)
from p2es.baselines.pasting import RR_LIMITS_S, TIME_S, beats_of_people, paste
from p2es.baselines.pulse_shape import FEATURES, mean_pulse, pulse_features
from p2es.delay import DelayLaw
from p2es.demographics import Demographics, DemographicScaler
from p2es.leads import N_INDEPENDENT
from p2es.signals import pulse_onsets
from p2es.translator import Translation
from p2es.windows import ECG_SAMPLES, FS_HZ, MARGIN_S, WindowBatch, WindowStore

_RR_MEAN_S, _RR_SPREAD_S = 0.85, 0.15
_TERMS = 6 + len(FEATURES)
_MIN_PEOPLE = 10
_MAX_RESIDUALS = 300
# A person who fixes the regression alone has nothing left over; the correction for leverage stops here.
_LEAST_FREE = 0.1

Floats = NDArray[np.float64]


@dataclass
class BeatRegression:
    """Regressed beat, drawn residual and drawn delay.

    Attributes
    ----------
    weights_mv : array (10, 8, time)
        Beat of the average person, and its change a standard deviation of age, sex, height, weight, RR and each of
        `pulse_shape.FEATURES`.
    residuals_mv : array (person, 8, time)
        What the regression missed of training people, over ``sqrt(1 - h)`` of each one's leverage h: on the people it
        was fitted to a regression misses less than on others.
    scaler : DemographicScaler
        Fills unknown fields by what the known ones imply.
    pulse_scale : array (2, 4)
        Mean and standard deviation of the features of the pulse over training people.
    delay : DelayLaw
    """

    weights_mv: NDArray[np.float32] = field(
        default_factory=lambda: np.zeros((_TERMS, N_INDEPENDENT, TIME_S.size), np.float32)
    )
    residuals_mv: NDArray[np.float32] = field(
        default_factory=lambda: np.zeros((1, N_INDEPENDENT, TIME_S.size), np.float32)
    )
    scaler: DemographicScaler = field(default_factory=lambda: DemographicScaler.fit(np.empty((0, 4))))
    pulse_scale: Floats = field(default_factory=lambda: np.stack([np.zeros(len(FEATURES)), np.ones(len(FEATURES))]))
    delay: DelayLaw = field(default_factory=DelayLaw)
    name: str = "regression"

    def fit(self, dataset: WindowStore, recipe: BaselineConfig) -> Self:
        """Regress beat and delay on the training people; see `Translator.fit`."""
        batch = training_windows(dataset, recipe)
        self.scaler, self.delay = fit_scaler(batch), fit_delay(batch)
        beats, rr_s, mask, person = beats_of_people(batch)
        pulses = _pulses_of_people(batch)[person]
        known = pulses[~np.isnan(pulses).any(axis=1)]
        if len(known) >= _MIN_PEOPLE:
            self.pulse_scale = np.stack([known.mean(axis=0), np.maximum(known.std(axis=0), 1e-3)])
        people = batch.people[np.unique(batch.person, return_index=True)[1][person]]
        terms = self._terms(people, rr_s, pulses)
        self.weights_mv, leverage = _ridge(terms, beats, mask)
        whole = np.flatnonzero(mask.all(axis=1))[:_MAX_RESIDUALS]
        if whole.size:
            self.residuals_mv = _missed(terms[whole], beats[whole], self.weights_mv, leverage[whole])
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
        """Write `regression.npz`."""
        own = {name: getattr(self, name) for name in ("weights_mv", "residuals_mv", "pulse_scale")}
        write_arrays(folder, self.name, own | scaler_arrays(self.scaler) | law_arrays(self.delay))

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Undo `save`; ModelError when it is missing or corrupt."""
        a = read_arrays(folder, "regression", _check)
        weights, residuals = (a[name].astype(np.float32) for name in ("weights_mv", "residuals_mv"))
        return cls(weights, residuals, scaler_from(a), a["pulse_scale"].astype(np.float64), law_from(a))

    def _terms(self, people: Floats, rr_s: Floats, pulses: Floats) -> Floats:
        """Give (n, 10): 1, demographics, RR and features of the pulse, standardised, unknown ones as expected."""
        filled, _ = self.scaler.complete(people)
        shape = np.nan_to_num((pulses - self.pulse_scale[0]) / self.pulse_scale[1])
        # A pulse unlike any in training must not carry the line along with it.
        return np.column_stack(
            [np.ones(len(people)), filled, (rr_s - _RR_MEAN_S) / _RR_SPREAD_S, np.clip(shape, -4.0, 4.0)]
        )

    def _draws(self, pulse: Pulse, person: Floats, seed: int, samples: int) -> NDArray[np.float32]:
        """Draw (samples, 12, 1280): each has a delay and a training person's residual of its own."""
        onsets_s = onsets_of(pulse)
        rr_s = float(np.median(np.clip(np.diff(onsets_s), *RR_LIMITS_S)))
        shape = _features(pulse.ppg[0], pulse.mask, onsets_s)
        beat = np.tensordot(self._terms(person[None], np.array([rr_s]), shape[None])[0], self.weights_mv, axes=1)
        draws = np.empty((samples, N_INDEPENDENT, ECG_SAMPLES))
        for k in range(samples):
            generator = np.random.default_rng([seed, k])
            delay_s = self.delay.draw_s(person[None], generator.standard_normal(1))[0]
            residual = self.residuals_mv[generator.integers(len(self.residuals_mv))]
            draws[k] = paste(beat + residual, onsets_s - MARGIN_S - delay_s)
        return lifted(draws)


def _features(ppg: NDArray[np.float32], mask: NDArray[np.bool_], onsets_s: Floats) -> Floats:
    """Give the features (4,) of a window's pulse; NaN when no pulse was recorded whole."""
    pulse = mean_pulse(ppg, mask, onsets_s) if onsets_s.size >= 2 else None
    return (
        np.full(len(FEATURES), np.nan) if pulse is None else pulse_features(pulse, float(np.median(np.diff(onsets_s))))
    )


def _pulses_of_people(batch: WindowBatch) -> Floats:
    """Average the features of the pulse over each person's windows, (person, 4); NaN where there is no pulse."""
    names, code = np.unique(batch.person, return_inverse=True)
    total, windows = np.zeros((len(names), len(FEATURES))), np.zeros(len(names))
    for row, who in enumerate(code):
        pulse = training_pulse(batch, row)
        if pulse is not None:
            found = _features(*pulse, pulse_onsets(pulse[0], FS_HZ, pulse[1]))
            if np.isfinite(found).all():
                total[who] += found
                windows[who] += 1
    return np.where(windows[:, None] > 0, total / np.maximum(windows, 1)[:, None], np.nan)


def _ridge(terms: Floats, beats: Floats, mask: NDArray[np.bool_]) -> tuple[NDArray[np.float32], Floats]:
    """Regress beats (n, 8, time) on terms (n, 10), each lead on the people who have it; give leverages (n, 8) too."""
    weights, leverage = np.zeros((_TERMS, N_INDEPENDENT, TIME_S.size)), np.zeros(mask.shape)
    penalty = np.diag([0.0] + [1.0] * (_TERMS - 1))
    for lead in range(N_INDEPENDENT):
        has = mask[:, lead]
        x, y = terms[has], beats[has, lead]
        if len(x) >= _MIN_PEOPLE:
            inverse = np.linalg.inv(x.T @ x + penalty)
            weights[:, lead] = inverse @ (x.T @ y)
            leverage[has, lead] = np.einsum("ni,ij,nj->n", x, inverse, x)
        elif len(x):
            weights[0, lead] = y.mean(axis=0)
            leverage[has, lead] = 1 / len(x)
    return weights.astype(np.float32), leverage


def _missed(terms: Floats, beats: Floats, weights: NDArray[np.float32], leverage: Floats) -> NDArray[np.float32]:
    """Give what a regression leaves of beats (n, 8, time), as wide as it is on people it was not fitted to."""
    free = np.sqrt(np.maximum(1.0 - leverage, _LEAST_FREE))
    return ((beats - np.tensordot(terms, weights, axes=1)) / free[..., None]).astype(np.float32)


def _check(arrays: Arrays) -> None:
    scaler_from(arrays)
    law_from(arrays)
    beat = (N_INDEPENDENT, TIME_S.size)
    if arrays["weights_mv"].shape != (_TERMS, *beat) or arrays["pulse_scale"].shape != (2, len(FEATURES)):
        raise ValueError("shape")
    if arrays["residuals_mv"].ndim != 3 or arrays["residuals_mv"].shape[1:] != beat or not len(arrays["residuals_mv"]):
        raise ValueError("shape")
