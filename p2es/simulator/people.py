"""Simulated people: demographics, and the traits that depend on them and on nothing that is known.

The traits follow linear equations in sex, age, height and body mass index whose coefficients are cohort means
(ELSA-Brasil for sex, Circulation A&E 2017 for height, PONS for body mass index, Mason 2007 for levels and spreads).
Each has a residual spread, so demographics explain part of a trait only, as in life. On top come `Subtype` and
`interaction`, which no linear regression in the demographics can give: they are our own choice, made so that grouping
people can be worth something, and they leave the means of the published traits alone.
"""

from dataclasses import dataclass, replace
from enum import StrEnum
from math import exp, log, sqrt, tanh

import numpy as np

from p2es.demographics import Demographics, Sex
from p2es.errors import InputError
from p2es.simulator.population import Population

PR_SLOPE = 0.054
"""PR follows the interval by this slope (PQ/RR)."""
# Mean and spread of height, cm; men and women differ, and the old are shorter.
_HEIGHT_CM = {Sex.FEMALE: (161.0, 6.5), Sex.MALE: (174.0, 7.0)}
_SHORTER_CM_A_YEAR = 0.07
_SHRINKS_FROM_YEARS = 50.0
# Body mass index is highest near 60 years.
_BMI_RISE, _BMI_PEAK_YEARS, _BMI_SPAN_YEARS = 0.06, 60.0, 35.0


class Subtype(StrEnum):
    """A latent kind of heart and vessels, of which age, sex, height and weight tell the odds only."""

    USUAL = "usual"
    EARLY_REPOLARISATION = "early_repolarisation"
    """Tall T and a raised J point; young men. Elastic arteries."""
    FLAT_T = "flat_t"
    """Low, turned T; older heavy women. Stiff arteries."""
    ROTATED = "rotated"
    """Late transition and deep S; tall and thin. Little reflection of the pulse."""


@dataclass(frozen=True)
class Person:
    """One person: what is written in the record, and the truth behind the signals.

    Attributes
    ----------
    demographics : Demographics
        Complete and exact; `recorded_demographics` gives what an archive would hold.
    subtype : Subtype
    heart_rate_bpm : float
        In sinus rhythm.
    p_ms, pr_ms, qrs_ms, qtcf_ms : float
        P duration, PR and QRS duration, and QT corrected by Fridericia's formula, of the healthy heart.
    axis_deg, p_axis_deg, t_axis_deg : float
        Frontal axes.
    transition_deg : float
        Rotation of the heart about the vertical; positive moves the precordial transition leftwards.
    gain : float
        Factor on all voltages.
    qrs_gain : tuple
        Factors on QRS voltages along x (left), y (down), z (back).
    p_gain, t_gain : float
        Factors on P and T voltages.
    rsa_s : float
        Respiratory sinus arrhythmia, depth from trough to peak.
    pep_s, ptt_s : float
        Pre-ejection period and pulse transit time to the finger (foot of the pulse).
    pulse_age_years : float
        Age as the shape of the pulse shows it.
    """

    demographics: Demographics
    subtype: Subtype
    heart_rate_bpm: float
    p_ms: float
    pr_ms: float
    qrs_ms: float
    qtcf_ms: float
    axis_deg: float
    p_axis_deg: float
    t_axis_deg: float
    transition_deg: float
    gain: float
    qrs_gain: tuple[float, float, float]
    p_gain: float
    t_gain: float
    rsa_s: float
    pep_s: float
    ptt_s: float
    pulse_age_years: float

    def pr_s(self, rr_s: float) -> float:
        """Give the PR interval at a mean interval between beats: `PR_SLOPE` from that of the person's own rate."""
        return self.pr_ms / 1000 + PR_SLOPE * (rr_s - 60 / self.heart_rate_bpm)


def draw_demographics(rng: np.random.Generator, population: Population) -> Demographics:
    """Draw age, sex, height and weight; taller when young, heavier towards 60."""
    years, density = np.array(population.ages).T
    edges = np.concatenate([[0.0], np.cumsum(np.diff(years) * (density[1:] + density[:-1]) / 2)])
    grid = np.linspace(years[0], years[-1], 400)
    share = np.interp(grid, years, edges / edges[-1])
    age = float(np.interp(rng.random(), share, grid))
    sex = Sex.FEMALE if rng.random() < population.women_share else Sex.MALE
    mean, spread = _HEIGHT_CM[sex]
    shorter = _SHORTER_CM_A_YEAR * max(age - _SHRINKS_FROM_YEARS, 0.0)
    height = float(np.clip(rng.normal(mean - shorter, spread), 140.0, 205.0))
    median, spread = population.body_mass_index
    usual = log(median) + _BMI_RISE * (0.5 - ((age - _BMI_PEAK_YEARS) / _BMI_SPAN_YEARS) ** 2)
    index = float(np.clip(rng.lognormal(usual, spread), 17.0, 48.0))
    return Demographics(age, sex, height, index * (height / 100) ** 2)


def _gate(x: float, width: float) -> float:
    """Give 0 far below 0 and 1 far above."""
    return 0.5 * (1 + tanh(x / width))


def subtype_odds(demographics: Demographics) -> dict[Subtype, float]:
    """Give the probability of each subtype: products of gates in age, sex, height and body mass index."""
    age, female, height, bmi = _complete(demographics)
    taller = (height - _HEIGHT_CM[Sex.FEMALE if female else Sex.MALE][0]) / 7.0
    odds = {
        Subtype.EARLY_REPOLARISATION: 0.02 + 0.55 * (1 - female) * _gate(38 - age, 5),
        Subtype.FLAT_T: 0.02 + 0.60 * female * _gate(age - 55, 6) * _gate(bmi - 26, 1.5),
        Subtype.ROTATED: 0.02 + 0.60 * _gate(taller - 0.5, 0.5) * _gate(24.5 - bmi, 1.0) * _gate(age - 35, 5),
    }
    return {Subtype.USUAL: 1 - sum(odds.values()), **odds}


def interaction(demographics: Demographics) -> float:
    """Give -1 to 1: the product of age and body mass index about their means, with no linear part of either."""
    age, _, _, bmi = _complete(demographics)
    return tanh((age - 50) / 12) * tanh((bmi - 26) / 3)


def _complete(demographics: Demographics) -> tuple[float, float, float, float]:
    """Give age, 1 for women, height and body mass index."""
    age, sex, height, bmi = (
        demographics.age_years,
        demographics.sex,
        demographics.height_cm,
        demographics.body_mass_index,
    )
    if age is None or sex is None or height is None or bmi is None:
        raise InputError("a simulated person needs age, sex, height and weight: give all four")
    return age, float(sex is Sex.FEMALE), height, bmi


# What changes from day to day in one person; the spread between people is the rest of the published total.
_DAY_RATE, _DAY_PR_MS, _DAY_QRS_MS, _DAY_QTCF_MS, _DAY_AXIS_DEG, _DAY_GAIN = 0.06, 6.0, 2.0, 8.0, 6.0, 0.08


def _rest(total: float, day: float) -> float:
    return sqrt(total**2 - day**2)


def draw_person(rng: np.random.Generator, population: Population, demographics: Demographics) -> Person:
    """Draw the traits of a person of complete demographics.

    Two people drawn from equal generators differ by the effect of their demographics only: a counterfactual.

    Raises
    ------
    InputError
        When a field of the demographics is missing.
    """
    age, female, height, bmi = _complete(demographics)
    taller = height - _HEIGHT_CM[Sex.FEMALE if female else Sex.MALE][0]
    normal = rng.standard_normal
    odds = subtype_odds(demographics)
    subtype = list(odds)[int(np.searchsorted(np.cumsum(list(odds.values())), rng.random() * (1 - 1e-9)))]
    both = interaction(demographics)

    rate = log(66 + 3 * female) + _rest(0.178, _DAY_RATE) * normal()
    pr = 163 - 6 * female + 0.417 * taller + 0.48 * (bmi - 26) + 0.25 * (age - 50) + _rest(22.5, _DAY_PR_MS) * normal()
    qrs = 92 - 6 * female + 0.206 * taller + _rest(9.0, _DAY_QRS_MS) * normal() + population.qrs_shift_ms
    qtcf = 396 + 11 * female + 0.15 * (age - 50) + _rest(19.5, _DAY_QTCF_MS) * normal() + population.qtcf_shift_ms
    axis_mean = 30 + 4 * female - 0.6 * (age - 45) - 1.8 * (bmi - 26)
    axis_own = _rest(28.5, _DAY_AXIS_DEG) * normal()
    gain = exp(-0.003 * (age - 40) - 0.012 * (bmi - 26) + _rest(0.20, _DAY_GAIN) * normal())
    # With what the subtypes add, women's T is 20 % lower and falls by half a point a year from 39 (Simonson).
    t_gain = (0.90 - 0.105 * female - 0.0012 * max(age - 39, 0.0)) * exp(0.15 * normal())
    speed_m_s = 7 + 0.05 * (age - 25) + population.wave_speed_shift_m_s
    person = Person(
        demographics=demographics,
        subtype=subtype,
        heart_rate_bpm=float(np.exp(np.clip(rate, log(42), log(112)))),
        p_ms=float(np.clip(112 - 4 * female + 0.38 * (bmi - 26) + 9 * normal(), 80, 145)),
        pr_ms=float(np.clip(pr, 100, 235)),
        qrs_ms=float(np.clip(qrs, 62, 120)),
        qtcf_ms=float(np.clip(qtcf, 335, 475)),
        axis_deg=float(np.clip(axis_mean + axis_own, -75, 120)),
        p_axis_deg=float(54 + 3 * female + 14 * normal()),
        t_axis_deg=float(39 + 6 * female + 0.3 * axis_own + 12 * normal()),
        transition_deg=float(population.transition_deg + 8 * both + 8 * normal()),
        gain=float(population.voltage * gain),
        # Voltage falls with age in men more than in women, along the z axis most (Simonson; our size).
        qrs_gain=(
            exp(-0.15 * female),
            exp(-0.05 * female),
            exp(-0.30 * female - 0.004 * (age - 50) * (1 - female)),
        ),
        # The reference beat's P is 0.09 mV in lead II; people's is 0.11 in the mean.
        p_gain=float(1.2 * exp(0.2 * normal())),
        t_gain=float(t_gain),
        rsa_s=float(0.060 * np.exp(-0.026 * (age - 20) + 0.3 * normal())),
        pep_s=float(np.clip(0.057 + 0.012 * normal(), 0.025, 0.1)),
        ptt_s=float(0.5 * height / 100 / speed_m_s * np.exp(0.06 * normal())),
        # With the subtypes, women's pulse is 12 years older than men's.
        pulse_age_years=float(age + (4.6 if female else -4.6) + 5 * normal()),
    )
    return _with_subtype(person)


def _with_subtype(person: Person) -> Person:
    """Give a person the voltages, rotation and pulse of the subtype; the shape of T is the heart's (`heart.py`)."""
    if person.subtype is Subtype.EARLY_REPOLARISATION:
        return replace(person, t_gain=1.35 * person.t_gain, pulse_age_years=person.pulse_age_years - 10)
    if person.subtype is Subtype.FLAT_T:
        return replace(
            person,
            t_gain=0.55 * person.t_gain,
            t_axis_deg=person.t_axis_deg - 20,
            pulse_age_years=person.pulse_age_years + 10,
        )
    if person.subtype is Subtype.ROTATED:
        return replace(person, transition_deg=person.transition_deg + 18, ptt_s=1.06 * person.ptt_s)
    return person


def on_a_day(rng: np.random.Generator, person: Person) -> Person:
    """Give the person as they are on one day.

    The spreads follow repeated recordings: heart rate within 5.5 bpm (MESA), axis about 6 degrees; those of the
    intervals are our choice. R in V5 varies by about 20 %, most of it by where the electrodes sit (`heart.py`).
    """
    normal = rng.standard_normal
    return replace(
        person,
        heart_rate_bpm=person.heart_rate_bpm * exp(_DAY_RATE * normal()),
        pr_ms=person.pr_ms + _DAY_PR_MS * normal(),
        qrs_ms=person.qrs_ms + _DAY_QRS_MS * normal(),
        qtcf_ms=person.qtcf_ms + _DAY_QTCF_MS * normal(),
        axis_deg=person.axis_deg + _DAY_AXIS_DEG * normal(),
        transition_deg=person.transition_deg + 4 * normal(),
        gain=person.gain * exp(_DAY_GAIN * normal()),
        t_gain=person.t_gain * exp(0.06 * normal()),
        pep_s=max(person.pep_s + 0.004 * normal(), 0.02),
        ptt_s=person.ptt_s * exp(0.04 * normal()),
        pulse_age_years=person.pulse_age_years + 2 * normal(),
    )


def recorded_demographics(rng: np.random.Generator, demographics: Demographics) -> Demographics:
    """Give what an archive would hold: whole numbers, and now and then a field that nobody asked for."""
    age, _, height, _ = _complete(demographics)
    weight = demographics.weight_kg
    assert weight is not None
    recorded = Demographics(float(int(age)), demographics.sex, float(round(height)), float(round(weight)))
    # Height and weight go missing together in archives; age seldom does.
    if rng.random() < 0.08:
        recorded = replace(recorded, height_cm=None, weight_kg=None)
    return replace(recorded, age_years=None) if rng.random() < 0.02 else recorded
