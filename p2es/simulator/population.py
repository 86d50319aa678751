"""Populations: the settings that people share, and how common each rhythm and morphology is among them.

Shares are stated at 60 years and change by a factor a decade: rough figures in the order of what population studies
and outpatient clinics report, our choice and no estimate of any of them.
"""

from dataclasses import dataclass, replace

import numpy as np

from p2es.errors import InputError
from p2es.simulator import electrodes, sensor
from p2es.simulator.catalogue import MORPHOLOGIES, RHYTHMS, compatible
from p2es.simulator.electrodes import ElectrodeConditions
from p2es.simulator.sensor import SensorConditions

_REFERENCE_YEARS = 60.0


@dataclass(frozen=True)
class Prevalence:
    """How common something is.

    Attributes
    ----------
    share : float
        At 60 years, 0 to 1.
    per_decade : float
        Factor for each ten years more.
    """

    share: float
    per_decade: float = 1.0

    def at(self, age_years: float) -> float:
        """Give the share at an age, 0.9 at most."""
        return min(self.share * self.per_decade ** ((age_years - _REFERENCE_YEARS) / 10), 0.9)


@dataclass(frozen=True)
class Population:
    """Settings that the people of one population share.

    Attributes
    ----------
    name : str
    ages : tuple
        (years, density) knots of the distribution of ages, linear between.
    women_share : float
    body_mass_index : tuple
        Median (kg/m^2) and spread of the logarithm.
    rhythms, morphologies : tuple
        (name, Prevalence); a rhythm that is not drawn is sinus rhythm.
    qrs_shift_ms, qtcf_shift_ms : float
        Added to the mean.
    transition_deg : float
        Mean rotation of the heart about the vertical; positive moves the precordial transition leftwards.
    voltage, t_width : float
        Factors on all voltages and on the width of the T wave.
    wave_speed_shift_m_s : float
        Added to the speed of the pulse wave.
    reflection_shift : float
        Added to the amplitude of the reflected (diastolic) wave of the pulse.
    sensors : tuple of str
        Names in `p2es.simulator.sensor.SENSORS`.
    sensor_conditions : SensorConditions
    electrode_conditions : ElectrodeConditions
    """

    name: str
    ages: tuple[tuple[float, float], ...] = ((20.0, 1.0), (80.0, 1.0))
    women_share: float = 0.5
    body_mass_index: tuple[float, float] = (26.0, 0.15)
    rhythms: tuple[tuple[str, Prevalence], ...] = ()
    morphologies: tuple[tuple[str, Prevalence], ...] = ()
    qrs_shift_ms: float = 0.0
    qtcf_shift_ms: float = 0.0
    transition_deg: float = 0.0
    voltage: float = 1.0
    t_width: float = 1.0
    wave_speed_shift_m_s: float = 0.0
    reflection_shift: float = 0.0
    sensors: tuple[str, ...] = ("clip-a", "clip-b", "patient-monitor", "watch-a", "watch-b", "ring")
    sensor_conditions: SensorConditions = sensor.CLEAN
    electrode_conditions: ElectrodeConditions = electrodes.CLEAN


_AT_HOME = replace(sensor.CLEAN, motion=0.15, clock_drift_ppm=50.0, offset_s=0.010)
_ADULTS = ((18.0, 0.7), (30.0, 0.9), (50.0, 1.1), (65.0, 1.3), (78.0, 1.0), (92.0, 0.1))
_CLINIC_RHYTHMS = (
    ("atrial_fibrillation", Prevalence(0.05, 1.9)),
    ("premature_atrial", Prevalence(0.06, 1.3)),
    ("premature_ventricular", Prevalence(0.06, 1.2)),
    ("sinus_arrhythmia", Prevalence(0.04, 0.6)),
    ("sinus_tachycardia", Prevalence(0.05)),
    ("sinus_bradycardia", Prevalence(0.08)),
    ("av_block_1", Prevalence(0.04, 1.4)),
    ("av_block_2_wenckebach", Prevalence(0.004, 1.3)),
    ("av_block_2_mobitz", Prevalence(0.002, 1.4)),
    ("av_block_3", Prevalence(0.002, 1.4)),
)
_CLINIC_MORPHOLOGIES = (
    ("rbbb", Prevalence(0.035, 1.5)),
    ("lbbb", Prevalence(0.012, 1.6)),
    ("lvh", Prevalence(0.05, 1.4)),
    ("rvh", Prevalence(0.008)),
    ("wpw", Prevalence(0.002, 0.8)),
    ("long_qt", Prevalence(0.015)),
    ("st_elevation_anterior", Prevalence(0.006, 1.2)),
    ("st_elevation_inferior", Prevalence(0.006, 1.2)),
    ("st_depression", Prevalence(0.025, 1.4)),
    ("low_voltage", Prevalence(0.015, 1.2)),
)
_WARD_RHYTHMS = (
    *((name, Prevalence(2 * p.share, p.per_decade)) for name, p in _CLINIC_RHYTHMS[:3]),
    ("sinus_tachycardia", Prevalence(0.20)),
    *_CLINIC_RHYTHMS[5:],
)
_EVERY_SENSOR = tuple(name for name in sensor.SENSORS if name not in {"earlobe", "forehead", "band"})

POPULATIONS = {
    population.name: population
    for population in (
        # One rhythm and healthy hearts: what the demo trains on.
        Population("healthy", sensor_conditions=_AT_HOME),
        Population(
            "clinic",
            ages=_ADULTS,
            women_share=0.52,
            body_mass_index=(26.5, 0.17),
            rhythms=_CLINIC_RHYTHMS,
            morphologies=_CLINIC_MORPHOLOGIES,
            sensors=("clip-a", "clip-b", "patient-monitor", "watch-a", "watch-b", "ring"),
            sensor_conditions=sensor.USUAL,
            electrode_conditions=electrodes.USUAL,
        ),
        Population(
            "ward",
            ages=((18.0, 0.3), (40.0, 0.6), (60.0, 1.2), (75.0, 1.5), (92.0, 0.4)),
            women_share=0.45,
            body_mass_index=(26.5, 0.20),
            rhythms=_WARD_RHYTHMS,
            morphologies=tuple((name, Prevalence(1.6 * p.share, p.per_decade)) for name, p in _CLINIC_MORPHOLOGIES),
            sensors=("patient-monitor", "clip-a", "clip-b"),
            sensor_conditions=sensor.WARD,
            electrode_conditions=electrodes.WARD,
        ),
        # Everything at once, for tests of what must survive it; nobody's case mix.
        Population(
            "stress",
            ages=_ADULTS,
            body_mass_index=(27.0, 0.22),
            rhythms=tuple((name, Prevalence(0.9 / (len(RHYTHMS) - 1))) for name in RHYTHMS if name != "sinus"),
            morphologies=tuple((name, Prevalence(0.08)) for name in MORPHOLOGIES),
            sensors=_EVERY_SENSOR,
            sensor_conditions=sensor.STRESS,
            electrode_conditions=electrodes.STRESS,
        ),
        # Never trained on: other hearts, pulses and devices, to see what does not carry over.
        Population(
            "other",
            ages=((35.0, 1.0), (88.0, 1.0)),
            body_mass_index=(29.0, 0.18),
            qrs_shift_ms=8.0,
            qtcf_shift_ms=12.0,
            transition_deg=12.0,
            voltage=0.85,
            t_width=1.15,
            wave_speed_shift_m_s=1.0,
            reflection_shift=-0.12,
            sensors=("earlobe", "forehead", "band"),
            sensor_conditions=sensor.USUAL,
            electrode_conditions=electrodes.USUAL,
        ),
    )
}


def population_named(name: str) -> Population:
    """Give a population by name.

    Raises
    ------
    InputError
        When there is none of that name.
    """
    if name not in POPULATIONS:
        raise InputError(f"there is no population {name!r}: choose one of {', '.join(POPULATIONS)}")
    return POPULATIONS[name]


def draw_condition(rng: np.random.Generator, population: Population, age_years: float) -> tuple[str, tuple[str, ...]]:
    """Draw a rhythm and morphologies that physiology allows together; a later one that does not fit is left out."""
    shares = np.array([prevalence.at(age_years) for _, prevalence in population.rhythms])
    # One draw whatever the population has, so that adding a rhythm does not shift what follows.
    at = rng.random()
    edges = np.cumsum(shares / max(float(shares.sum()), 1.0)) if shares.size else shares
    chosen = int(np.searchsorted(edges, at, side="right"))
    rhythm = population.rhythms[chosen][0] if chosen < shares.size else "sinus"
    kept: list[str] = []
    for (name, prevalence), drawn in zip(
        population.morphologies, rng.random(len(population.morphologies)), strict=True
    ):
        if drawn < prevalence.at(age_years) and compatible([*kept, name], rhythm):
            kept.append(name)
    return rhythm, tuple(kept)
