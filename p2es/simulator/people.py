"""Simulated people: demographics, and the traits that depend on them and on nothing that is known.

The traits follow linear equations in sex, age, height and body mass index whose coefficients are cohort means
(ELSA-Brasil for sex, Circulation A&E 2017 for height, PONS for body mass index, Mason for levels and
spreads). Each has a residual spread, so demographics explain part of a trait only, as in life.
"""

from dataclasses import dataclass, replace

import numpy as np

from p2es.demographics import Demographics, Sex
from p2es.errors import InputError


@dataclass(frozen=True)
class Population:
    """Settings that the people of one population share.

    Attributes
    ----------
    name : str
    age_years : tuple
        Youngest and oldest, uniform between.
    body_mass_index : tuple
        Median (kg/m^2) and spread of the logarithm.
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
    devices : tuple of str
        Names in `p2es.simulator.device.DEVICES`.
    motion_share : float
        Share of recordings with bursts of motion.
    """

    name: str
    age_years: tuple[float, float] = (20.0, 80.0)
    body_mass_index: tuple[float, float] = (26.0, 0.15)
    qrs_shift_ms: float = 0.0
    qtcf_shift_ms: float = 0.0
    transition_deg: float = 0.0
    voltage: float = 1.0
    t_width: float = 1.0
    wave_speed_shift_m_s: float = 0.0
    reflection_shift: float = 0.0
    devices: tuple[str, ...] = ("clip-a", "clip-b", "patient-monitor", "watch-a", "watch-b", "ring")
    motion_share: float = 0.15


POPULATIONS = {
    "healthy": Population("healthy"),
    # Never trained on: other hearts, pulses and devices, to see what does not carry over.
    "other": Population(
        "other",
        age_years=(35.0, 88.0),
        body_mass_index=(29.0, 0.18),
        qrs_shift_ms=8.0,
        qtcf_shift_ms=12.0,
        transition_deg=12.0,
        voltage=0.85,
        t_width=1.15,
        wave_speed_shift_m_s=1.0,
        reflection_shift=-0.12,
        devices=("earlobe", "forehead", "band"),
        motion_share=0.3,
    ),
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


@dataclass(frozen=True)
class Person:
    """One person: what is written in the record, and the truth behind the signals.

    Attributes
    ----------
    demographics : Demographics
        Complete and exact; `recorded_demographics` gives what an archive would hold.
    heart_rate_bpm : float
    pr_ms, qrs_ms, qtcf_ms : float
        PR and QRS duration, and QT corrected by Fridericia's formula.
    axis_deg : float
        Frontal QRS axis.
    transition_deg : float
        Rotation of the heart about the vertical.
    gain : float
        Factor on all voltages.
    qrs_gain : tuple
        Factors on QRS voltages along x (left), y (down), z (back).
    t_gain : float
        Factor on T voltages.
    rsa_s : float
        Respiratory sinus arrhythmia, depth from trough to peak.
    pep_s, ptt_s : float
        Pre-ejection period and pulse transit time to the finger (foot of the pulse).
    pulse_age_years : float
        Age as the shape of the pulse shows it.
    """

    demographics: Demographics
    heart_rate_bpm: float
    pr_ms: float
    qrs_ms: float
    qtcf_ms: float
    axis_deg: float
    transition_deg: float
    gain: float
    qrs_gain: tuple[float, float, float]
    t_gain: float
    rsa_s: float
    pep_s: float
    ptt_s: float
    pulse_age_years: float


# Mean and spread of height, cm.
_HEIGHT_CM = {Sex.FEMALE: (161.0, 6.5), Sex.MALE: (174.0, 7.0)}


def draw_demographics(rng: np.random.Generator, population: Population) -> Demographics:
    """Draw age, sex, height and weight."""
    age = rng.uniform(*population.age_years)
    sex = Sex.FEMALE if rng.random() < 0.5 else Sex.MALE
    height = float(np.clip(rng.normal(*_HEIGHT_CM[sex]), 140.0, 205.0))
    median, spread = population.body_mass_index
    index = float(np.clip(rng.lognormal(np.log(median), spread), 17.0, 48.0))
    return Demographics(float(age), sex, height, index * (height / 100) ** 2)


def draw_person(rng: np.random.Generator, population: Population, demographics: Demographics) -> Person:
    """Draw the traits of a person of complete demographics.

    Two people drawn from equal generators differ by the effect of their demographics only: a counterfactual.

    Raises
    ------
    InputError
        When a field of the demographics is missing.
    """
    age, female, height = (
        demographics.age_years,
        float(demographics.sex is Sex.FEMALE),
        demographics.height_cm,
    )
    bmi = demographics.body_mass_index
    if age is None or demographics.sex is None or height is None or bmi is None:
        raise InputError("a simulated person needs age, sex, height and weight: give all four")
    taller = height - _HEIGHT_CM[demographics.sex][0]
    normal = rng.standard_normal
    heart_rate = np.exp(np.log(66 + 3 * female) + 0.17 * normal())
    pr = 163 - 6 * female + 0.417 * taller + 0.48 * (bmi - 26) + 0.25 * (age - 50) + 22.5 * normal()
    qrs = 92 - 6 * female + 0.206 * taller + 9 * normal() + population.qrs_shift_ms
    qtcf = 396 + 11 * female + 0.15 * (age - 50) + 19.5 * normal() + population.qtcf_shift_ms
    axis = 30 + 4 * female - 0.6 * (age - 45) - 1.8 * (bmi - 26) + 29.5 * normal()
    gain = population.voltage * np.exp(-0.003 * (age - 40) - 0.012 * (bmi - 26) + 0.20 * normal())
    t_gain = (1 - 0.20 * female - 0.005 * max(age - 39, 0.0)) * np.exp(0.15 * normal())
    speed_m_s = 7 + 0.05 * (age - 25) + population.wave_speed_shift_m_s
    return Person(
        demographics=demographics,
        heart_rate_bpm=float(np.clip(heart_rate, 42, 110)),
        pr_ms=float(np.clip(pr, 105, 230)),
        qrs_ms=float(np.clip(qrs, 66, 118)),
        qtcf_ms=float(np.clip(qtcf, 345, 465)),
        axis_deg=float(np.clip(axis, -45, 100)),
        transition_deg=float(population.transition_deg + 8 * normal()),
        gain=float(gain),
        qrs_gain=(np.exp(-0.15 * female), np.exp(-0.05 * female), np.exp(-0.30 * female)),
        t_gain=float(t_gain),
        rsa_s=float(0.060 * np.exp(-0.026 * (age - 20) + 0.3 * normal())),
        pep_s=float(np.clip(0.057 + 0.012 * normal(), 0.025, 0.1)),
        ptt_s=float(0.5 * height / 100 / speed_m_s * np.exp(0.06 * normal())),
        pulse_age_years=float(age + (6 if female else -6) + 5 * normal()),
    )


def recorded_demographics(rng: np.random.Generator, demographics: Demographics) -> Demographics:
    """Give what an archive would hold: whole numbers, and now and then a field that nobody asked for."""
    age, height, weight = demographics.age_years, demographics.height_cm, demographics.weight_kg
    assert age is not None
    assert height is not None
    assert weight is not None
    recorded = Demographics(float(int(age)), demographics.sex, float(round(height)), float(round(weight)))
    # Height and weight go missing together in archives; age seldom does.
    if rng.random() < 0.08:
        recorded = replace(recorded, height_cm=None, weight_kg=None)
    return replace(recorded, age_years=None) if rng.random() < 0.02 else recorded
