"""People with a known truth: 12-lead ECG and PPG that are SYNTHETIC, from demographics to samples.

Sinus rhythm in structurally normal hearts only: no arrhythmia and no disease. A model trained on these people
has seen neither.
"""

import math

import numpy as np
from numpy.typing import NDArray

from p2es.errors import InputError
from p2es.leads import LEADS, lift
from p2es.recording import Recording, Signal, SignalKind
from p2es.simulator.device import Device, draw_device, electrode_noise, sense_pulse
from p2es.simulator.heart import draw_heart, heart_ecg
from p2es.simulator.people import (
    POPULATIONS,
    Person,
    draw_demographics,
    draw_person,
    population_named,
    recorded_demographics,
)
from p2es.simulator.pulse import draw_pulse, pulse_times, pulse_wave, steepest_rises
from p2es.simulator.rhythm import Rhythm, draw_rhythm

__all__ = ["ECG_FS_HZ", "POPULATIONS", "PPG_FS_HZ", "VERSION", "simulate_person"]

VERSION = 2
"""Goes up with every change of what is simulated, so that an older archive is not taken for a new one."""
ECG_FS_HZ = 250.0
PPG_FS_HZ = 250.0

_PARTS = ("demographics", "person", "rhythm", "heart", "pulse", "device", "ecg noise", "ppg noise", "record")
_MIN_DURATION_S, _MAX_DURATION_S = 1.0, 86_400.0


def _generators(seed: int, index: int, population: str) -> dict[str, np.random.Generator]:
    """Give one generator a part, so that a longer recording leaves the rest of a person alone."""
    root = np.random.SeedSequence([seed, list(POPULATIONS).index(population), index])
    return {part: np.random.default_rng(s) for part, s in zip(_PARTS, root.spawn(len(_PARTS)), strict=True)}


def simulate_person(seed: int, index: int, duration_s: float, population: str = "healthy") -> Recording:
    """Simulate one recording of one person.

    Parameters
    ----------
    seed, index : int
        Not negative. The same pair gives the same samples, in whatever order or process people are made.
    duration_s : float
        1 s to a day.
    population : str
        A name in `POPULATIONS`; `other` has settings that are kept out of training.

    Returns
    -------
    Recording
        12 leads in mV at 250 Hz, one PPG ("Pleth") at the same rate, and the R peaks. `provenance` holds the
        truth: `delay_s` (R peak to steepest rise, median over the beats), rate, intervals, axis and device.

    Raises
    ------
    InputError
        For a negative seed or index, an impossible duration, or an unknown population.
    """
    if seed < 0 or index < 0:
        raise InputError(f"seed {seed} and person {index} must not be negative: give 0 or more")
    if not _MIN_DURATION_S <= duration_s <= _MAX_DURATION_S:
        raise InputError(f"a duration of {duration_s:g} s cannot be simulated: give 1 s to 86400 s")
    settings = population_named(population)
    rng = _generators(seed, index, population)
    person = draw_person(rng["person"], settings, draw_demographics(rng["demographics"], settings))
    rhythm = draw_rhythm(rng["rhythm"], person, duration_s)
    device = draw_device(rng["device"], settings.devices, settings.motion_share)

    ecg = heart_ecg(draw_heart(rng["heart"], person, settings), rhythm, duration_s, ECG_FS_HZ)
    ecg += lift(electrode_noise(rng["ecg noise"], rhythm, ecg.shape[1], ECG_FS_HZ))

    pulse = draw_pulse(rng["pulse"], person, settings)
    starts_s = pulse_times(rng["pulse"], person, pulse, rhythm) + device.delay_s
    wave = pulse_wave(pulse, rhythm, starts_s, duration_s, PPG_FS_HZ)
    ppg = sense_pulse(rng["ppg noise"], device, wave, rhythm, PPG_FS_HZ)

    delays_s = steepest_rises(pulse, starts_s, rhythm.rr_s) - rhythm.r_peaks_s
    inside = (rhythm.r_peaks_s >= 0) & (rhythm.r_peaks_s < duration_s)
    name = f"{index:06d}" if population == "healthy" else f"{population}-{index:06d}"
    return Recording(
        record=f"record-{name}",
        source="simulated",
        person=f"person-{name}",
        signals=_signals(ecg, ppg),
        demographics=recorded_demographics(rng["record"], person.demographics),
        r_peaks_s=rhythm.r_peaks_s[inside],
        simulated=True,
        provenance={
            "seed": seed,
            "population": population,
            **_truth(person, rhythm, device, delays_s[inside]),
        },
    )


def _signals(ecg_mv: NDArray[np.float64], ppg: NDArray[np.float64]) -> tuple[Signal, ...]:
    leads = [
        Signal(name, SignalKind.ECG, row, ECG_FS_HZ, "mV", lead=name) for name, row in zip(LEADS, ecg_mv, strict=True)
    ]
    return (*leads, Signal("Pleth", SignalKind.PPG, ppg, PPG_FS_HZ, "NU"))


def _truth(person: Person, rhythm: Rhythm, device: Device, delays_s: NDArray[np.float64]) -> dict[str, float | str]:
    rr_s = float(rhythm.rr_s.mean())
    return {
        "delay_s": float(np.median(delays_s)) if delays_s.size else math.nan,
        "heart_rate_bpm": 60 / rr_s,
        "pr_ms": person.pr_ms,
        "qrs_ms": person.qrs_ms,
        "qtcf_ms": person.qtcf_ms,
        "qt_ms": person.qtcf_ms * rr_s ** (1 / 3),
        "axis_deg": person.axis_deg,
        "pulse_age_years": person.pulse_age_years,
        "device": device.name,
        "snr_db": device.snr_db,
        "motion": str(device.motion).lower(),
    }
