"""Other people of the simulator's own population, at the beats of the pulse: for simulated data only.

Each sample is a heart drawn from the very population that the data was simulated from, with this person's demographics,
its beat rendered at the pulse's rate and pasted at the beats of the pulse, the delay drawn. So it shows what a sampler
reaches that has learned the population and the demographics perfectly and takes beats and rate from the pulse.

What it is not: a bound. It reads nothing else of the pulse, whose shape tells a little of the person (`Subtype`) and
whose delay a little of the vessels; a model may use that and beat it. It is not the person: no sampler is. Its ECG is
clean: no noise, no breathing, every beat alike; ectopic beats and dropped beats are not rendered, and a heart that
would have them beats in sinus rhythm at every pulse. Compare distributions of features and scores of draws with it, not
the look of the noise.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
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
    law_arrays,
    law_from,
    lifted,
    onsets_of,
    read_arrays,
    read_pulse,
    refuse_more,
    training_windows,
    translation,
    write_arrays,
)
from p2es.baselines.pasting import RR_LIMITS_S, TIME_S
from p2es.delay import DelayLaw
from p2es.demographics import Demographics
from p2es.leads import N_INDEPENDENT
from p2es.signals import bandpass_ecg
from p2es.simulator.catalogue import check
from p2es.simulator.ecg import f_waves
from p2es.simulator.heart import Heart, build_heart
from p2es.simulator.people import PR_SLOPE, Person, draw_demographics, draw_person, on_a_day
from p2es.simulator.population import POPULATIONS, Population, draw_condition, population_named
from p2es.simulator.rhythm import BeatKind
from p2es.simulator.waves import Group
from p2es.translator import Translation
from p2es.windows import ECG_SAMPLES, FS_HZ, MARGIN_S, WindowStore

# Canvas around the window, for beats at its ends and for the 0.5 Hz edge of the band to settle.
_PAD_S = 3.0

# Share of windows of each rhythm whose pulse is called irregular (`pulse_rhythm`: neighbouring intervals differ by 10 %
# at the median): fibrillation nearly always; ectopic beats when every other one is (bigeminy, 15 %).
_IRREGULAR = {
    "atrial_fibrillation": 0.95,
    "premature_atrial": 0.15,
    "premature_ventricular": 0.15,
    "av_block_2_wenckebach": 0.5,
    "av_block_2_mobitz": 0.5,
}
_IRREGULAR_ELSE = 0.01
_TRIES = 200
_USUAL_BPM = (57.0, 101.0)
# First degree block, as `simulator.arrhythmia` makes it.
_BLOCK_LONGER_S, _BLOCK_LEAST_S = 0.070, 0.205
# How near to what is known (age, sex, height, weight) people of the population must be to stand in for what is not.
_NEAR = np.array([2.0, 0.1, 2.0, 4.0])
_POOL = 2000
_ADULTS_YEARS = (18.0, 100.0)

Floats = NDArray[np.float64]


@dataclass
class SimulatorOracle:
    """Draws from the simulator's population.

    Attributes
    ----------
    population : str
        The one the data was simulated from: a name in `simulator.POPULATIONS`.
    delay : DelayLaw
        The one thing that is learned: of training windows.
    """

    population: str = "healthy"
    delay: DelayLaw = field(default_factory=DelayLaw)
    name: str = "oracle"

    def __post_init__(self) -> None:
        population_named(self.population)

    def fit(self, dataset: WindowStore, recipe: BaselineConfig) -> Self:
        """Fit the delay; see `Translator.fit`."""
        self.delay = fit_delay(training_windows(dataset, recipe))
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
        """Draw people and paste their beats; see `Translator.sample`. `evaluations` has no meaning here."""
        refuse_more(self.name, known, enrolment)
        check_request(ppg, demographics, seeds, samples)
        results = []
        for window, person, seed in zip(ppg, demographics, seeds, strict=True):
            pulse = read_pulse(window, fs_hz)
            results.append(translation(self._draws(pulse, person.to_array(), seed, samples), pulse))
        return results

    def save(self, folder: Path) -> None:
        """Write `oracle.npz`."""
        write_arrays(folder, self.name, {"population": np.array(self.population), **law_arrays(self.delay)})

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Undo `save`; ModelError when it is missing or corrupt, or names a population that is not known."""
        arrays = read_arrays(folder, "oracle", _check)
        return cls(str(arrays["population"]), law_from(arrays))

    def _draws(self, pulse: Pulse, person: Floats, seed: int, samples: int) -> NDArray[np.float32]:
        onsets_s = onsets_of(pulse)
        draws = np.empty((samples, N_INDEPENDENT, ECG_SAMPLES))
        for k in range(samples):
            rng = np.random.default_rng([seed, k])
            delay_s = self.delay.draw_s(person[None], rng.standard_normal(1))[0]
            draws[k] = _drawn(rng, population_named(self.population), person, pulse.rhythm, onsets_s - delay_s)
        return lifted(draws)


def _drawn(rng: np.random.Generator, settings: Population, known: Floats, pulse_rhythm: str, beats_s: Floats) -> Floats:
    """Draw one ECG (8, 1280) with R peaks at beats (beat,), seconds from the first sample of the PPG."""
    demographics = _completed(rng, settings, known)
    rhythm, shapes = _condition(rng, settings, demographics.age_years or 0.0, pulse_rhythm)
    person = on_a_day(rng, draw_person(rng, settings, demographics))
    heart = build_heart(rng, rng, person, shapes, settings.t_width)
    rr_s = float(np.median(np.clip(np.diff(beats_s), *RR_LIMITS_S)))
    beat = _beat(heart, rhythm, _pr_s(settings, person, rhythm, rr_s), rr_s)
    ecg = _laid(beat, beats_s - MARGIN_S, rr_s)
    if rhythm == "atrial_fibrillation":
        ecg += f_waves(rng, heart, ecg.shape[1], FS_HZ)
    pad = int(_PAD_S * FS_HZ)
    return np.asarray(bandpass_ecg(ecg, FS_HZ)[:, pad:-pad], np.float64)


def _pr_s(settings: Population, person: Person, rhythm: str, rr_s: float) -> float:
    """Give PR at the rate of the pulse: the person's own, since that is the rate the person is drawn for.

    Unless the node itself runs fast or slow, which it does in rhythms of some populations: PR then follows it.
    """
    usual = _USUAL_BPM[0] <= 60 / rr_s <= _USUAL_BPM[1]
    changes = any(name in ("sinus_tachycardia", "sinus_bradycardia") for name, _ in settings.rhythms)
    pr_s = person.pr_ms / 1000
    if changes and not usual:
        pr_s += PR_SLOPE * (rr_s - 60 / person.heart_rate_bpm)
    return max(pr_s + _BLOCK_LONGER_S, _BLOCK_LEAST_S) if rhythm == "av_block_1" else pr_s


def _beat(heart: Heart, rhythm: str, pr_s: float, rr_s: float) -> Floats:
    """Render the normal beat of a heart, (8, time) at `TIME_S`, as `simulator.ecg` does, at rest between breaths."""
    waves = heart.normal.stretched(Group.T, float(np.cbrt(rr_s)), heart.qrs[BeatKind.NORMAL].onset_s)
    if rhythm != "atrial_fibrillation":
        onset_s = heart.onset_s + heart.p_later_s - pr_s
        waves = waves + heart.p.shifted(Group.P, onset_s - heart.p_span[False].onset_s)
    return waves.signal(TIME_S, heart.lead_gain)


def _laid(beat: Floats, beats_s: Floats, rr_s: float) -> Floats:
    """Add a beat at each time, and as the median interval goes on to both ends of the padded canvas.

    Waves of neighbours add up, as in the simulator: nothing is cut.
    """
    canvas = np.zeros((len(beat), ECG_SAMPLES + 2 * int(_PAD_S * FS_HZ)))
    more = rr_s * np.arange(1, int(2 * _PAD_S / rr_s) + 1)
    for at_s in np.concatenate([beats_s[0] - more, beats_s, beats_s[-1] + more]):
        start = round((at_s + _PAD_S + TIME_S[0]) * FS_HZ)
        low, high = max(start, 0), min(start + TIME_S.size, canvas.shape[1])
        if low < high:
            canvas[:, low:high] += beat[:, low - start : high - start]
    return canvas


def _condition(
    rng: np.random.Generator, settings: Population, age_years: float, pulse_rhythm: str
) -> tuple[str, tuple[str, ...]]:
    """Draw rhythm and morphologies given whether the pulse is irregular: by rejection."""
    drawn = draw_condition(rng, settings, age_years)
    for _ in range(_TRIES if settings.rhythms and pulse_rhythm != "unknown" else 0):
        irregular = _IRREGULAR.get(drawn[0], _IRREGULAR_ELSE)
        if rng.random() < (irregular if pulse_rhythm == "irregular" else 1 - irregular):
            break
        drawn = draw_condition(rng, settings, age_years)
    return drawn[0], check(drawn[1], drawn[0])


@lru_cache(maxsize=8)
def _pool(population: str) -> Floats:
    """Give the demographics (2000, 4) of people of a population."""
    rng = np.random.default_rng(0)
    return np.stack([draw_demographics(rng, population_named(population)).to_array() for _ in range(_POOL)])


def _completed(rng: np.random.Generator, settings: Population, known: Floats) -> Demographics:
    """Draw what is not known of a person from people of the population who are like them in what is."""
    person, missing = known.copy(), np.isnan(known)
    if missing.any():
        pool = _pool(settings.name)
        apart = np.square((pool - known) / _NEAR)[:, ~missing].sum(axis=1)
        weight = np.exp(-0.5 * (apart - apart.min()))
        person[missing] = pool[rng.choice(len(pool), p=weight / weight.sum())][missing]
    person[0] = np.clip(person[0], *_ADULTS_YEARS)
    return Demographics.from_array(person)


def _check(arrays: Arrays) -> None:
    law_from(arrays)
    if str(arrays["population"]) not in POPULATIONS:
        raise ValueError("population")
