"""The heart's electric vector as a sum of Gaussians, projected to 12 leads.

Each wave k of a beat is a Gaussian in time with an amplitude along x (left), y (down) and z (back), in mV
(three-dipole model: Sameni 2007, Clifford 2010; the parameters are our own). Dower's matrix projects the
vector to the 8 independent leads and the lead laws lift those to 12, so the laws hold exactly. A body is not
quite a dipole: the precordial leads get a person's own component of 2-4 % of their energy on top.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from p2es.leads import N_INDEPENDENT, lift
from p2es.simulator.people import Person, Population
from p2es.simulator.rhythm import Rhythm

WAVES = ("P1", "P2", "q", "R", "R2", "s", "T1", "T2")
_IS_P = np.array([True, True, False, False, False, False, False, False])
_IS_T = np.array([False, False, False, False, False, False, True, True])
_IS_QRS = ~(_IS_P | _IS_T)

# Seconds from R, at RR 1 s.
_CENTRE_S = np.array([-0.160, -0.128, -0.022, -0.002, 0.010, 0.030, 0.215, 0.262])
_WIDTH_S = np.array([0.018, 0.018, 0.008, 0.0095, 0.011, 0.0105, 0.060, 0.032])
_VECTOR_MV = np.array(
    [
        [0.066, -0.003, -0.090, 0.875, 0.579, -0.168, 0.298, 0.041],
        [0.074, -0.001, 0.163, 0.392, 0.356, -0.063, 0.151, -0.039],
        [0.022, -0.045, -0.283, -0.085, 0.525, 0.676, -0.153, -0.138],
    ]
)
# What these parameters measure: the person's targets are met by scaling from here.
_QRS_MS, _PR_MS, _QT_MS = 88.0, 168.0, 396.0
_QRS_ONSET_S = -0.045

# Dower: rows I, II, V1..V6; columns x, y, z.
DOWER = np.array(
    [
        [0.632, -0.235, 0.059],
        [0.235, 1.066, -0.132],
        [-0.515, 0.157, -0.917],
        [0.044, 0.164, -1.387],
        [0.882, 0.098, -1.277],
        [1.213, 0.127, -0.601],
        [1.125, 0.127, -0.086],
        [0.831, 0.076, 0.230],
    ]
)
# Rotation about z (degrees) that gives a frontal QRS axis (degrees), measured on this model.
_AXIS_DEG = (-10.0, 11.0, 34.0, 53.0, 67.0, 77.0)
_ROTATION_DEG = (-30.0, -20.0, -10.0, 0.0, 10.0, 20.0)

_BEFORE_S, _AFTER_S = 0.36, 0.62
# PR and QT follow the interval: PR by this slope, QT by the cube root (Fridericia).
_PR_SLOPE = 0.054


@dataclass(frozen=True)
class Heart:
    """One person's beat at RR 1 s.

    Attributes
    ----------
    centre_s, width_s : array (8,)
        The waves of `WAVES`.
    vector_mv : array (3, 8)
        Amplitudes along x, y, z.
    residual_mv : array (8 leads, 8 waves)
        What the dipole does not explain, zero in I and II.
    sway_deg : tuple
        How far breathing turns the heart about x, y and z.
    breath_gain : float
        How much breathing changes the voltage.
    """

    centre_s: NDArray[np.float64]
    width_s: NDArray[np.float64]
    vector_mv: NDArray[np.float64]
    residual_mv: NDArray[np.float64]
    sway_deg: NDArray[np.float64]
    breath_gain: float


def _rotations(
    x_deg: NDArray[np.float64], y_deg: NDArray[np.float64], z_deg: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Give (n, 3, 3) rotations about x, then y, then z."""
    result = np.broadcast_to(np.eye(3), (len(x_deg), 3, 3))
    for axis, degrees in enumerate((x_deg, y_deg, z_deg)):
        cos, sin = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
        turn = np.zeros((len(degrees), 3, 3))
        first, second = (axis + 1) % 3, (axis + 2) % 3
        turn[:, axis, axis] = 1.0
        turn[:, first, first] = turn[:, second, second] = cos
        turn[:, first, second], turn[:, second, first] = -sin, sin
        result = turn @ result
    return result


def _rotation(x_deg: float, y_deg: float, z_deg: float) -> NDArray[np.float64]:
    return _rotations(np.array([x_deg]), np.array([y_deg]), np.array([z_deg]))[0]


def axis_rotation_deg(axis_deg: float) -> float:
    """Give the rotation about z that turns the model's frontal QRS axis to `axis_deg`."""
    if axis_deg < _AXIS_DEG[0]:
        return max(_ROTATION_DEG[0] + (axis_deg - _AXIS_DEG[0]) / 2.1, -55.0)
    if axis_deg > _AXIS_DEG[-1]:
        return min(_ROTATION_DEG[-1] + (axis_deg - _AXIS_DEG[-1]) / 0.9, 45.0)
    return float(np.interp(axis_deg, _AXIS_DEG, _ROTATION_DEG))


def draw_heart(rng: np.random.Generator, person: Person, population: Population) -> Heart:
    """Draw a person's beat: the traits of `person`, and a shape of its own that no demographics tell."""
    normal = rng.standard_normal
    stretch = person.qrs_ms / _QRS_MS
    centre, width = _CENTRE_S.copy(), _WIDTH_S.copy()
    centre[_IS_QRS] *= stretch
    width[_IS_QRS] *= stretch
    # QRS onset moves with its stretch: P and T keep PR and QT measured from there.
    onset_s = _QRS_ONSET_S * stretch
    centre[_IS_P] += onset_s - _QRS_ONSET_S - (person.pr_ms - _PR_MS) / 1000
    longer = (person.qtcf_ms / 1000 + onset_s) / (_QT_MS / 1000 + _QRS_ONSET_S)
    centre[_IS_T] *= longer
    width[_IS_T] *= longer * population.t_width
    vector = _VECTOR_MV * np.exp(0.12 * normal(_VECTOR_MV.shape))
    vector[:, _IS_QRS] *= np.array(person.qrs_gain)[:, None]
    vector[:, _IS_T] *= person.t_gain
    vector[:, _IS_P] *= np.exp(0.2 * normal())
    turn = axis_rotation_deg(person.axis_deg)
    vector[:, _IS_QRS] = _rotation(0.0, person.transition_deg, turn) @ vector[:, _IS_QRS]
    # P and T turn less than QRS: the spread of their axes is about half (ELSA-Brasil).
    small = _rotation(0.0, 0.4 * person.transition_deg, 0.4 * turn + 6 * normal())
    vector[:, ~_IS_QRS] = small @ vector[:, ~_IS_QRS]
    vector *= person.gain
    residual = _draw_residual(rng, DOWER @ vector, centre, width)
    return Heart(centre, width, vector, residual, rng.uniform(1.0, 4.0, 3), float(rng.uniform(0.01, 0.03)))


def _draw_residual(
    rng: np.random.Generator,
    dipole_mv: NDArray[np.float64],
    centre_s: NDArray[np.float64],
    width_s: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Draw (8, 8) amplitudes on V1..V6, alike in neighbouring leads, with 2-4 % of the precordial energy."""
    spots = np.arange(6)
    alike = np.exp(-0.5 * ((spots[:, None] - spots) / 1.2) ** 2)
    shape = np.zeros((N_INDEPENDENT, len(WAVES)))
    shape[2:] = np.linalg.cholesky(alike + 1e-9 * np.eye(6)) @ rng.standard_normal((6, len(WAVES)))
    shape[2:] *= np.abs(dipole_mv[2:]).mean(axis=0)
    time_s = np.arange(-_BEFORE_S, _AFTER_S, 0.002)
    waves = _waves(time_s[None], centre_s[None], width_s[None])[0]
    energy, own = np.square(dipole_mv[2:] @ waves).sum(), np.square(shape[2:] @ waves).sum()
    return shape * np.sqrt(rng.uniform(0.02, 0.04) * energy / own)


def _waves(
    time_s: NDArray[np.float64], centre_s: NDArray[np.float64], width_s: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Give (beat, wave, time) unit Gaussians at times (beat, time), with (beat, wave) centres and widths."""
    z = (time_s[:, None, :] - centre_s[:, :, None]) / width_s[:, :, None]
    return np.exp(-0.5 * z * z)


def heart_ecg(heart: Heart, rhythm: Rhythm, duration_s: float, fs_hz: float) -> NDArray[np.float64]:
    """Give the noise-free 12-lead ECG, (12, time), in mV; the lead laws hold to rounding."""
    r, rr = rhythm.r_peaks_s, rhythm.rr_s
    n = round(duration_s * fs_hz)
    offsets = np.arange(-round(_BEFORE_S * fs_hz), round(_AFTER_S * fs_hz))
    first = np.round(r * fs_hz).astype(np.int64)
    time_s = (first[:, None] + offsets) / fs_hz - r[:, None]
    centre, width = _beat_waves(heart, rr)
    amplitude = _beat_amplitudes(heart, rhythm)
    beats = amplitude @ _waves(time_s, centre, width)
    padding = offsets.size
    leads = np.zeros((N_INDEPENDENT, n + 2 * padding))
    for start, beat in zip(first + offsets[0] + padding, beats, strict=True):
        if 0 <= start <= n + padding:
            leads[:, start : start + padding] += beat
    return lift(leads[:, padding : padding + n])


def _beat_waves(heart: Heart, rr_s: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Give centres and widths (beat, wave) at each beat's interval."""
    # Repolarisation follows the rate over several beats, not one.
    smooth = np.array(rr_s)
    for k in range(1, smooth.size):
        smooth[k] = 0.8 * smooth[k - 1] + 0.2 * rr_s[k]
    centre = np.tile(heart.centre_s, (rr_s.size, 1))
    width = np.tile(heart.width_s, (rr_s.size, 1))
    centre[:, _IS_T] *= np.cbrt(smooth)[:, None]
    width[:, _IS_T] *= np.cbrt(smooth)[:, None]
    centre[:, _IS_P] -= _PR_SLOPE * (rr_s - rr_s.mean())[:, None]
    return centre, width


def _beat_amplitudes(heart: Heart, rhythm: Rhythm) -> NDArray[np.float64]:
    """Give (beat, 8 leads, wave) amplitudes in mV, turned and scaled by breathing."""
    breath = rhythm.breath(rhythm.r_peaks_s)
    turns = _rotations(*(degrees * breath for degrees in heart.sway_deg))
    dipole = DOWER @ turns @ heart.vector_mv
    return (dipole + heart.residual_mv) * (1 + heart.breath_gain * breath)[:, None, None]
