"""Beats as sums of Gaussians, whose marks are known from their formula: the oracle of the delineator's tests.

The tables are those of reference/clinical.md, 7.3 to 7.5; nothing here comes from the simulator. A wave begins and ends
where the spatial magnitude of the 8 leads, of that wave alone, crosses 5 % of its largest.
"""

from dataclasses import dataclass, replace

import numpy as np
from scipy.special import expit

from p2es.leads import lift

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
# Kind; centre and width in s; X (left), Y (down), Z (back) in mV.
NORMAL = [
    ("P", -0.160, 0.018, 0.066, 0.074, 0.022),
    ("P", -0.128, 0.018, -0.003, -0.001, -0.045),
    ("Q", -0.022, 0.008, -0.090, 0.163, -0.283),
    ("Q", -0.002, 0.0095, 0.875, 0.392, -0.085),
    ("Q", 0.010, 0.011, 0.579, 0.356, 0.525),
    ("Q", 0.030, 0.0105, -0.168, -0.063, 0.676),
    ("T", 0.215, 0.060, 0.298, 0.151, -0.153),
    ("T", 0.262, 0.032, 0.041, -0.039, -0.138),
]
LBBB = [
    ("Q", -0.022, 0.008, 0.10, 0.05, 0.15),
    ("Q", 0.0, 0.014, 0.80, 0.50, 0.40),
    ("Q", 0.036, 0.016, 1.00, 0.20, 0.90),
    ("Q", 0.064, 0.012, 0.25, 0.0, 0.35),
    ("T", 0.265, 0.055, -0.38, -0.10, -0.42),
]
EXTRA = {
    "rbbb": [("Q", 0.058, 0.014, -0.50, -0.05, -0.85), ("T", 0.25, 0.045, 0.05, 0.0, 0.22)],
    "rvh": [("T", 0.25, 0.045, 0.0, 0.0, 0.30)],
    "wpw": [("Q", -0.045, 0.016, 0.16, -0.10, 0.12)],
}
PLATEAUS = {"ste_anterior": (0.06, 0, -0.20), "ste_inferior": (-0.08, 0.22, 0.08), "st_depression": (-0.024, 0, 0.08)}
MORPHOLOGIES = ("normal", "rbbb", "lbbb", "lvh", "rvh", *PLATEAUS, "long_qt", "avb1", "wpw", "low_voltage", "af")


@dataclass(frozen=True)
class Heart:
    """One beat: waves of a kind with centre and width (wave,) in s and amplitudes (8, wave) in mV; RR in s."""

    kind: np.ndarray
    centre: np.ndarray
    width: np.ndarray
    leads_mv: np.ndarray
    plateau_mv: np.ndarray
    plateau_s: tuple[float, float]
    rr_s: float

    def wave(self, kinds, time_s):
        """Give the waves of these kinds as (8, time)."""
        chosen = np.isin(self.kind, list(kinds))
        z = (time_s - self.centre[chosen, None]) / self.width[chosen, None]
        result = self.leads_mv[:, chosen] @ np.exp(-0.5 * z * z)
        if "T" in kinds and self.plateau_mv.any():
            start, end = self.plateau_s
            shape = expit((time_s - start) / 0.005) * expit((end - time_s) / 0.014)
            result = result + self.plateau_mv[:, None] * shape
        return result

    def marks(self):
        """Give {kind: (onset, offset)} in s from R, of the Gaussians alone; a kind that is not there is left out."""
        time_s = np.arange(-0.6, 0.9, 1e-4)
        found = {}
        for kind in "PQT":
            size = np.linalg.norm(replace(self, plateau_mv=np.zeros(8)).wave(kind, time_s), axis=0)
            if size.max() > 0:
                inside = np.flatnonzero(size >= 0.05 * size.max())
                found[kind] = (time_s[inside[0]], time_s[inside[-1]])
        return found

    def intervals_ms(self):
        """Give PR, QRS and QT; PR is NaN without P."""
        marks = self.marks()
        (on, off), p_on = marks["Q"], marks.get("P", (np.nan,))[0]
        return 1e3 * np.array([on - p_on, off - on, marks["T"][1] - on])


def _vectors(morphology):
    rows = [*NORMAL[:2], *LBBB] if morphology == "lbbb" else [*NORMAL, *EXTRA.get(morphology, [])]
    kind = np.array([row[0] for row in rows])
    table = np.array([row[1:] for row in rows], float)
    centre, width, vector = table[:, 0].copy(), table[:, 1].copy(), table[:, 2:].T.copy()
    if morphology == "lvh":
        vector[0, 3:5] *= 1.75
        vector[2, 4:6] *= 1.8
        vector[1, 3:5] *= 0.8
        vector[0, 6:] *= -0.45
        vector[2, 6:] *= 1.2
        width[3:6] *= 1.12
    if morphology == "rvh":
        vector[2, 4:6] = -0.75, -0.35
        vector[0, 3:5] *= 0.45
        vector[0, 5] = -0.45
    if morphology == "low_voltage":
        vector *= 0.4
    if morphology == "af":
        vector[:, kind == "P"] = 0.0
    return kind, centre, width, vector


def default_heart(morphology="normal", rr_s=1.0):
    """Give the beat of the tables themselves."""
    kind, centre, width, vector = _vectors(morphology)
    plateau = DOWER @ np.array(PLATEAUS.get(morphology, (0.0, 0.0, 0.0)))
    return Heart(kind, centre, width, DOWER @ vector, plateau, (0.045, 0.240), rr_s)


def _turned(vector, z_deg, y_deg):
    z, y = np.deg2rad([z_deg, y_deg])
    about_z = np.array([[np.cos(z), -np.sin(z), 0], [np.sin(z), np.cos(z), 0], [0, 0, 1]])
    about_y = np.array([[np.cos(y), 0, np.sin(y)], [0, 1, 0], [-np.sin(y), 0, np.cos(y)]])
    return about_z @ about_y @ vector


def draw_heart(rng, morphology="normal"):
    """Draw a person: QRS x 0.75-1.3, PR 110-230, QTcF 350-450, 48-150 a minute, axis about -40 to 95.

    Only beats whose P begins after the T before has ended: the others have no marks to be seen.
    """
    low, high = (0.85, 1.15) if morphology in ("rbbb", "lbbb", "wpw") else (0.75, 1.3)
    delay = {"avb1": 0.07, "wpw": -0.02}.get(morphology, 0.0)
    slower = 1.4 if morphology == "long_qt" else 1.0
    while True:
        stretch, rr_s, qtc_s = rng.uniform(low, high), 60 / rng.uniform(48, 150), rng.uniform(0.35, 0.45)
        pr_s = rng.uniform(0.14 if morphology == "wpw" else 0.11, 0.20 if morphology == "avb1" else 0.23)
        longer = (qtc_s - 0.045 * stretch) / 0.351 * rr_s ** (1 / 3)
        if rr_s - 0.045 * stretch - pr_s - delay > 0.37 * longer * slower:
            break
    kind, centre, width, vector = _vectors(morphology)
    p, q, t = (kind == k for k in "PQT")
    centre[q], width[q] = stretch * centre[q], stretch * width[q]
    centre[p] += -0.045 * (stretch - 1) - (pr_s - 0.168) - delay
    centre[t] *= longer * slower
    width[t] *= longer * (1.15 if morphology == "long_qt" else 1.0)
    vector *= np.exp(0.12 * rng.standard_normal(vector.shape)) * np.exp(0.22 * rng.standard_normal())
    vector[:, p] *= np.exp(0.2 * rng.standard_normal())
    vector[:, t] *= rng.uniform(0.7, 1.2)
    turn, tilt = rng.uniform(-45, 40), rng.uniform(-25, 25)
    vector[:, q] = _turned(vector[:, q], turn, tilt)
    vector[:, ~q] = _turned(vector[:, ~q], 0.4 * turn + 6 * rng.standard_normal(), 0.4 * tilt)
    leads = DOWER @ vector
    # A body is not quite a dipole: neighbouring precordial leads have something of their own.
    own = np.convolve(rng.standard_normal(8), [0.5, 1, 0.5], "valid")[:, None] * rng.standard_normal(kind.size)
    leads[2:] += 0.1 * own * np.abs(leads[2:]).mean(axis=0)
    plateau = DOWER @ np.array(PLATEAUS.get(morphology, (0.0, 0.0, 0.0)))
    return Heart(kind, centre, width, leads, plateau, (0.045 * stretch, 0.240 * longer), rr_s)


def record(heart, rng, fs_hz=500.0, duration_s=10.0, noise_mv=0.01, drift_mv=0.03, irregular=0.03, f_wave_mv=0.0):
    """Give an ECG (12, time) with this beat, white noise, drift, offsets and f waves; and its R peaks in s."""
    time_s = np.arange(round(duration_s * fs_hz)) / fs_hz
    intervals = heart.rr_s * np.maximum(1 + irregular * rng.standard_normal(round(duration_s * 4) + 8), 0.6)
    r = np.cumsum(intervals) - (1 + rng.uniform()) * heart.rr_s
    r = r[r < duration_s + 1]
    ecg = np.zeros((8, time_s.size))
    for peak in r:
        near = slice(max(round((peak - 0.7) * fs_hz), 0), max(round((peak + 1.2) * fs_hz), 0))
        ecg[:, near] += heart.wave("PQT", time_s[near] - peak)
    if f_wave_mv:
        phase = 2 * np.pi * rng.uniform(4, 9) * time_s + 1.25 * np.sin(2 * np.pi * 0.2 * time_s)
        saw = np.array([[sum(2 / (i * np.pi) * np.sin(i * s * phase) for i in (1, 2, 3))] for s in (0.95, 1, 1.05)])
        ecg += DOWER @ (f_wave_mv * np.array([[1], [1], [1.6]]) * saw[:, 0])
    wander = np.sin(2 * np.pi * rng.uniform(0.15, 0.35) * time_s + rng.uniform(0, 6))
    ecg += drift_mv * rng.standard_normal((8, 1)) * wander + rng.uniform(-0.3, 0.3, (8, 1))
    ecg += noise_mv * rng.standard_normal(ecg.shape)
    return lift(ecg), r[(r > 0.05) & (r < duration_s - 0.05)]
