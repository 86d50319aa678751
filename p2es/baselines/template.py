"""One beat for everybody, pasted at the beats of the pulse: what the field calls the template.

The beat is the mean over training people of each person's median beat, aligned at R. It knows neither the person nor
the rate. It stands one delay before each steepest rise of the pulse, the delay being the one expected of a person of
that age and height.

It is a point prediction: every sample is the same ECG, and its band is fitted. A drawn delay would add the spread of
the delay law to every timing error and gain nothing but a wider band, so that a model would look better than it is
beside it; the yardstick that draws is `regression`. Read it for timing and heart rate, which it gets from the pulse
with no model at all (a prototype reached an F1 of .94 within 50 ms of the R peaks), and as the constant in morphology:
its shape varies with nothing.
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
    check_request,
    fit_delay,
    law_arrays,
    law_from,
    lifted,
    onsets_of,
    read_arrays,
    read_pulse,
    refuse_more,
    training_pulse,
    training_windows,
    write_arrays,
)
from p2es.baselines.pasting import TIME_S, beats_of_people, paste
from p2es.delay import DelayLaw
from p2es.demographics import Demographics
from p2es.leads import N_INDEPENDENT, N_LEADS
from p2es.signals import pulse_onsets
from p2es.translator import BAND, MIN_BAND_SAMPLES, Translation
from p2es.windows import FS_HZ, MARGIN_S, WindowBatch, WindowStore

# Deviations are pooled over time; every eighth sample (16 Hz) tells their quantiles.
_STRIDE = 8

Floats = NDArray[np.float64]


@dataclass
class Template:
    """The population's mean beat at the beats of the pulse.

    Attributes
    ----------
    beat_mv : array (8, time)
        Mean over training people, at `pasting.TIME_S`.
    limits_mv : array (2, 12)
        The 5 % and 95 % quantiles of what each lead of the training windows is off the template, pooled over time.
        NaN, and then there is no band, when no training window has a lead and a pulse.
    delay : DelayLaw
        Its mean is used.
    """

    beat_mv: NDArray[np.float32] = field(default_factory=lambda: np.zeros((N_INDEPENDENT, TIME_S.size), np.float32))
    limits_mv: NDArray[np.float32] = field(default_factory=lambda: np.full((2, N_LEADS), np.nan, np.float32))
    delay: DelayLaw = field(default_factory=DelayLaw)
    name: str = "template"

    def fit(self, dataset: WindowStore, recipe: BaselineConfig) -> Self:
        """Average the beats of the training people and fit the delay; see `Translator.fit`."""
        batch = training_windows(dataset, recipe)
        self.delay = fit_delay(batch)
        beats, _, mask, _ = beats_of_people(batch)
        self.beat_mv = (beats.sum(axis=0) / np.maximum(mask.sum(axis=0), 1)[:, None]).astype(np.float32)
        self.limits_mv = self._limits(batch)
        return self

    def sample(
        self,
        ppg: NDArray[np.float32],
        demographics: Sequence[Demographics],
        *,
        fs_hz: float,
        known: NDArray[np.float32] | None = None,
        enrolment: NDArray[np.float32] | None = None,
        samples: int = 1,
        evaluations: int = 1,
        seeds: Sequence[int],
    ) -> list[Translation]:
        """Paste the beat, the same in every sample; see `Translator.sample`. `evaluations` has no meaning here."""
        refuse_more(self.name, known, enrolment)
        check_request(ppg, demographics, seeds, samples)
        results = []
        for window, person in zip(ppg, demographics, strict=True):
            pulse = read_pulse(window, fs_hz)
            ecg = self._pasted(onsets_of(pulse), person.to_array())
            told = samples >= MIN_BAND_SAMPLES and bool(np.isfinite(self.limits_mv).all())
            band = ecg + self.limits_mv[..., None] if told else None
            draws = np.repeat(ecg[None], samples, axis=0)
            results.append(Translation(draws, ecg, band, pulse.quality, pulse.rhythm, pulse.heart_rate_bpm))
        return results

    def save(self, folder: Path) -> None:
        """Write `template.npz`."""
        write_arrays(
            folder, self.name, {"beat_mv": self.beat_mv, "limits_mv": self.limits_mv, **law_arrays(self.delay)}
        )

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Undo `save`; ModelError when it is missing or corrupt."""
        a = read_arrays(folder, "template", _check)
        return cls(a["beat_mv"].astype(np.float32), a["limits_mv"].astype(np.float32), law_from(a))

    def _pasted(self, onsets_s: Floats, person: Floats) -> NDArray[np.float32]:
        delay_s = self.delay.mean_s(person[None])[0]
        return lifted(paste(self.beat_mv.astype(np.float64), onsets_s - MARGIN_S - delay_s))

    def _limits(self, batch: WindowBatch) -> NDArray[np.float32]:
        off: list[list[NDArray[np.float32]]] = [[] for _ in range(N_LEADS)]
        for row in range(len(batch)):
            pulse = training_pulse(batch, row)
            onsets_s = np.empty(0) if pulse is None else pulse_onsets(pulse[0], FS_HZ, pulse[1])
            if onsets_s.size >= 2:
                apart = (batch.ecg_mv[row] - self._pasted(onsets_s, batch.people[row]))[:, ::_STRIDE]
                for lead in np.flatnonzero(batch.lead_mask[row]):
                    off[lead].append(apart[lead])
        if not any(off):
            return np.full((2, N_LEADS), np.nan, np.float32)
        # Of a lead that nobody has, nothing is known: its template is a flat line, and so is its band.
        limits = [np.quantile(np.concatenate(lead), BAND) if lead else np.zeros(2) for lead in off]
        return np.stack(limits, axis=1).astype(np.float32)


def _check(arrays: Arrays) -> None:
    law_from(arrays)
    if arrays["beat_mv"].shape != (N_INDEPENDENT, TIME_S.size) or arrays["limits_mv"].shape != (2, N_LEADS):
        raise ValueError("shape")
