"""One person's heart: the waves of each kind of beat, and how breathing moves them."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

from p2es.leads import N_INDEPENDENT
from p2es.simulator.morphology import WPW_P_LATER_S, altered
from p2es.simulator.people import Person, Subtype
from p2es.simulator.rhythm import BeatKind
from p2es.simulator.vector import DOWER, rotation, turned_to_axis
from p2es.simulator.waves import NORMAL, Floats, Group, Span, Waves

# A ventricular beat: QRS 146 ms, T against it (clinical notes, 7.5).
_VENTRICULAR = Waves.of(Group.QRS, (0.000, 0.021, 0.60, 1.00, 0.30), (0.044, 0.022, 0.65, 0.60, 1.05)) + Waves.of(
    Group.T, (0.29, 0.055, -0.45, -0.45, -0.40)
)
_EARLY_REPOLARISATION = Waves.of(Group.T, (0.100, 0.035, 0.06, 0.03, -0.06))
# Share of the energy beyond three principal components: they hold about 98 % of a healthy ECG. What no dipole explains
# lies in small waves of its own: in the large ones it passes for a dipole's, and the components hold 99.7 %.
_BEYOND = (0.007, 0.018)
_MOST_RESIDUAL = 0.30
_LOCAL = Waves.of(Group.QRS, *((at_s, 0.0085, 0.0, 0.0, 0.0) for at_s in (-0.014, -0.002, 0.010, 0.022, 0.034)))
_T_SHARE = 0.3
_AREA = float(np.linalg.norm(NORMAL.area(Group.QRS)))
# What a dipole can make in V1..V6: an orthonormal basis (6, 3).
_DIPOLAR = np.linalg.qr(DOWER[2:])[0]
# How alike neighbouring electrodes are, in electrodes.
_ALIKE = 1.2
_PLACEMENT = 0.17
"""Spread of the logarithm of the precordial voltages by where the electrodes sit on a day."""


@dataclass(frozen=True)
class Heart:
    """One person's beats on one day, at RR 1 s.

    Attributes
    ----------
    normal : Waves
        QRS and T of conducted and junctional beats.
    ventricular, escape : Waves
        QRS and T of premature and of escape beats.
    p, p_premature : Waves
        P wave from the sinus node and from elsewhere.
    lead_gain : array (8,)
        What the place of the electrodes does to each lead.
    sway_deg : array (3,)
        How far breathing turns the heart about x, y and z.
    breath_gain : float
        How much breathing changes the voltage.
    f_mv : array (3,)
        Size of f waves along x, y and z, should the atria fibrillate.
    f_hz : float
        Their frequency.
    onset_s : float
        Start of the QRS of a healthy beat: what PR and QT are counted from.
    p_later_s : float
        How much later than PR before that P comes.
    qrs : dict
        Span of the QRS of each kind of beat; `t`, `p_span` likewise.
    """

    normal: Waves
    ventricular: Waves
    escape: Waves
    p: Waves
    p_premature: Waves
    lead_gain: Floats
    sway_deg: Floats
    breath_gain: float
    f_mv: Floats
    f_hz: float
    onset_s: float
    p_later_s: float
    qrs: dict[BeatKind, Span]
    t: dict[BeatKind, Span]
    p_span: dict[bool, Span]

    def of(self, kind: BeatKind) -> Waves:
        """Give QRS and T of a kind of beat."""
        return {BeatKind.VENTRICULAR: self.ventricular, BeatKind.ESCAPE: self.escape}.get(kind, self.normal)


@dataclass(frozen=True)
class _Own:
    """What makes the reference beat a person's: turns, gains and stretches, found on the healthy beat."""

    turn: dict[Group, NDArray[np.float64]]
    gain: dict[Group, NDArray[np.float64]]
    stretch: dict[Group, float]
    p_shift_s: float
    onset_s: float

    def applied(self, waves: Waves) -> Waves:
        for group in Group:
            waves = waves.scaled(group, self.gain[group]).turned(group, self.turn[group])
        # QRS stretches about R, T about the start of QRS, P about its own start.
        before_s = NORMAL_SPANS[Group.QRS].onset_s
        waves = waves.stretched(Group.QRS, self.stretch[Group.QRS])
        waves = waves.shifted(Group.T, self.onset_s - before_s)
        waves = waves.stretched(Group.T, self.stretch[Group.T], self.onset_s)
        waves = waves.stretched(Group.P, self.stretch[Group.P], NORMAL_SPANS[Group.P].onset_s)
        return waves.shifted(Group.P, self.p_shift_s)


NORMAL_SPANS = {group: NORMAL.span(group) for group in Group}
"""Of the reference beat."""


def _own(person: Person, base: Waves) -> _Own:
    """Find what gives a person's beat the axes, durations and intervals of `person`."""
    gain = {
        Group.P: np.full(3, person.gain * person.p_gain),
        Group.QRS: person.gain * np.array(person.qrs_gain),
        Group.T: np.full(3, person.gain * person.t_gain),
    }
    axes = {Group.P: person.p_axis_deg, Group.QRS: person.axis_deg, Group.T: person.t_axis_deg}
    # The whole heart turns about the vertical, so P and T go some of the way of QRS.
    about = {Group.P: 0.4, Group.QRS: 1.0, Group.T: 0.4}
    turn = {}
    for group in Group:
        # Turned back about the axis that points down, the heart shows its left side later along V1 to V6.
        upright = rotation(y_deg=-about[group] * person.transition_deg)
        area = upright @ (gain[group] * base.area(group))
        turn[group] = turned_to_axis(area, axes[group]) @ upright
    scaled = base
    for group in Group:
        scaled = scaled.scaled(group, gain[group]).turned(group, turn[group])
    span = {group: scaled.span(group) for group in Group}
    qrs = person.qrs_ms / 1000 / (span[Group.QRS].offset_s - span[Group.QRS].onset_s)
    onset_s = qrs * span[Group.QRS].onset_s
    before_s = NORMAL_SPANS[Group.QRS].onset_s
    t = person.qtcf_ms / 1000 / (span[Group.T].offset_s - before_s)
    p = person.p_ms / 1000 / (span[Group.P].offset_s - span[Group.P].onset_s)
    # P is stretched about the reference's onset; its own onset is then moved to PR before QRS.
    anchor_s = NORMAL_SPANS[Group.P].onset_s
    p_onset_s = anchor_s + (span[Group.P].onset_s - anchor_s) * p
    stretch = {Group.P: p, Group.QRS: qrs, Group.T: t}
    return _Own(turn, gain, stretch, onset_s - person.pr_ms / 1000 - p_onset_s, onset_s)


def _shaped(rng: np.random.Generator, waves: Waves, spread: float) -> Waves:
    return replace(waves, vector_mv=waves.vector_mv * np.exp(spread * rng.standard_normal(waves.vector_mv.shape)))


def build_heart(
    own: np.random.Generator,
    day: np.random.Generator,
    person: Person,
    morphologies: tuple[str, ...] = (),
    t_width: float = 1.0,
) -> Heart:
    """Build a person's heart: the traits of `person`, a shape that no demographics tell, and its diseases.

    Parameters
    ----------
    own, day : Generator
        Of the person, and of the day: the place of the electrodes.
    person : Person
    morphologies : tuple of str
        In `morphology.MORPHOLOGIES`, checked already.
    t_width : float
        Factor on the width of the T wave at an equal QT.
    """
    base = _shaped(own, NORMAL, 0.12)
    base = replace(base, width_s=np.where(base.group == Group.T, t_width * base.width_s, base.width_s))
    extra = _EARLY_REPOLARISATION if person.subtype is Subtype.EARLY_REPOLARISATION else Waves.of(Group.T)
    makes = _own(person, base)
    beyond = float(own.uniform(*_BEYOND))
    spots = own.standard_normal((6, _LOCAL.group.size + 1))
    ill = altered(base, morphologies)
    whole = makes.applied(ill + extra + _spread_over(ill))
    whole = replace(whole, residual_mv=_residual_size(base, beyond, spots) * _residual(whole, spots))
    ectopic = _ectopic(own, person, 1.15)
    escape = _ectopic(own, person, 0.8)
    premature_p = whole.part(Group.P).turned(Group.P, rotation(*own.uniform(-50, 50, 3)))
    sway = own.uniform(1.0, 4.0, 3)
    breath_gain = float(own.uniform(0.01, 0.03))
    f_mv = np.array([own.uniform(0.015, 0.045), own.uniform(0.015, 0.040), own.uniform(0.025, 0.070)])
    f_hz = float(own.uniform(4.5, 8.5))
    return _measured(
        Heart(
            normal=whole.only(whole.group != Group.P),
            ventricular=ectopic,
            escape=escape,
            p=whole.part(Group.P),
            p_premature=premature_p,
            lead_gain=_placement(day),
            sway_deg=sway,
            breath_gain=breath_gain,
            f_mv=f_mv * person.gain,
            f_hz=f_hz,
            onset_s=makes.onset_s,
            p_later_s=_p_later_s(morphologies),
            qrs={},
            t={},
            p_span={},
        )
    )


def _p_later_s(morphologies: tuple[str, ...]) -> float:
    return WPW_P_LATER_S if "wpw" in morphologies else 0.0


def reference_heart(morphologies: tuple[str, ...] = ()) -> Heart:
    """Give the reference beat as a heart, with morphologies: of no person, and it does not breathe."""
    waves = altered(NORMAL, morphologies)
    rest = waves.only(waves.group != Group.P)
    p = waves.part(Group.P)
    return _measured(
        Heart(
            normal=rest,
            ventricular=_VENTRICULAR,
            escape=_VENTRICULAR,
            p=p,
            p_premature=p,
            lead_gain=np.ones(N_INDEPENDENT),
            sway_deg=np.zeros(3),
            breath_gain=0.0,
            f_mv=np.array([0.030, 0.028, 0.048]),
            f_hz=6.0,
            onset_s=NORMAL_SPANS[Group.QRS].onset_s,
            p_later_s=_p_later_s(morphologies),
            qrs={},
            t={},
            p_span={},
        )
    )


def _measured(heart: Heart) -> Heart:
    """Fill in where the waves of each kind of beat begin and end."""
    kinds = (BeatKind.NORMAL, BeatKind.VENTRICULAR, BeatKind.ESCAPE)
    qrs = {kind: heart.of(kind).span(Group.QRS, heart.lead_gain) for kind in kinds}
    t = {kind: heart.of(kind).span(Group.T, heart.lead_gain) for kind in kinds}
    for spans in (qrs, t):
        spans[BeatKind.ATRIAL] = spans[BeatKind.JUNCTIONAL] = spans[BeatKind.NORMAL]
    p = {early: waves.span(Group.P, heart.lead_gain) for early, waves in ((False, heart.p), (True, heart.p_premature))}
    return replace(heart, qrs=qrs, t=t, p_span=p)


def _ectopic(rng: np.random.Generator, person: Person, size: float) -> Waves:
    """Give the beat of a focus of the person's own in a ventricle."""
    turn = rotation(*rng.normal(0.0, 25.0, 3))
    gain = size * person.gain * float(np.exp(0.1 * rng.standard_normal()))
    waves = _VENTRICULAR
    for group in (Group.QRS, Group.T):
        waves = waves.scaled(group, gain).turned(group, turn)
    longer = float(np.exp(0.06 * rng.standard_normal()))
    onset_s = _VENTRICULAR.span(Group.QRS).onset_s
    return waves.stretched(Group.QRS, longer).stretched(Group.T, person.qtcf_ms / 396, onset_s)


def _spread_over(waves: Waves) -> Waves:
    """Give `_LOCAL` over the QRS of a beat: a wide QRS is slow, and so are its notches."""
    usual, span = NORMAL_SPANS[Group.QRS], waves.span(Group.QRS)
    wider = (span.offset_s - span.onset_s) / (usual.offset_s - usual.onset_s)
    moved = _LOCAL.shifted(Group.QRS, span.onset_s - usual.onset_s)
    return moved.stretched(Group.QRS, wider, span.onset_s)


def _smooth_over_electrodes(draws: Floats) -> Floats:
    """Make draws (6, n) alike in neighbouring precordial electrodes, each of unit spread."""
    spots = np.arange(6)
    alike = np.exp(-0.5 * ((spots[:, None] - spots) / _ALIKE) ** 2)
    return np.linalg.cholesky(alike + 1e-9 * np.eye(6)) @ draws


def _placement(day: np.random.Generator) -> Floats:
    gain = np.ones(N_INDEPENDENT)
    gain[2:] = np.exp(_PLACEMENT * _smooth_over_electrodes(day.standard_normal((6, 1)))[:, 0])
    return gain


def _residual(waves: Waves, draws: Floats) -> Floats:
    """Give the shape (8, wave) of what no dipole makes in V1..V6.

    It lies in the waves of `_LOCAL`, which are the beat's last, and in T, and is as large as the beat is.

    Parameters
    ----------
    waves : Waves
    draws : array (6, 6)
        Standard normal: of each wave of `_LOCAL`, and of T.
    """
    own = draws - _DIPOLAR @ (_DIPOLAR.T @ draws)
    shape = np.zeros((N_INDEPENDENT, waves.group.size))
    local = slice(-_LOCAL.group.size, None)
    shape[2:, local] = own[:, : _LOCAL.group.size] * np.linalg.norm(waves.area(Group.QRS)) / _AREA
    t = waves.group == Group.T
    shape[2:, t] = own[:, -1:] * _T_SHARE * np.linalg.norm(waves.vector_mv[:, t], axis=0)
    return shape


def _residual_size(base: Waves, beyond: float, draws: Floats) -> float:
    """Find the size of the residual that leaves a share of the energy beyond three principal components.

    It is found on the beat before demographics shape it, so that a counterfactual twin has the same; `_MOST_RESIDUAL`
    of the precordial energy is the most.
    """
    time_s = np.arange(-0.10, 0.60, 0.004)
    waves = base + _LOCAL
    dipole = waves.signal(time_s)
    alone = replace(waves, vector_mv=np.zeros_like(waves.vector_mv), residual_mv=_residual(waves, draws))
    extra = alone.signal(time_s)

    def too_much(size: float) -> float:
        energy = np.linalg.eigvalsh((dipole + size * extra) @ (dipole + size * extra).T)
        return float(energy[:-3].sum() / energy.sum()) - beyond

    most = float(np.sqrt(_MOST_RESIDUAL * np.square(dipole[2:]).sum() / np.square(extra).sum()))
    return brentq(too_much, 0.0, most, xtol=1e-4 * most) if too_much(most) > 0 else most
