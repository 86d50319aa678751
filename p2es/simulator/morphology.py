"""What disease makes of a beat, as changes of the reference beat's Gaussians.

The recipes were fitted for this project to what text books draw (QRS 136 ms in right and 142 ms in left bundle branch
block, and so on); they are shapes, not physiology. A person's own gains, rotations and durations are applied after
them.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np

from p2es.simulator.catalogue import MORPHOLOGIES
from p2es.simulator.waves import NAMES, Group, Waves

WPW_P_LATER_S = 0.020
"""How much later P comes in WPW, relative to the QRS of the same heart without the accessory pathway."""
# Gaussians side by side whose sum is flat within 1 % from 65 to 215 ms: an ST segment's plateau.
_PLATEAU_S = np.arange(0.062, 0.230, 0.032)
_PLATEAU_WIDTH_S = 0.030


def _factors(waves: Waves, names: str, axis: int, factor: float) -> Waves:
    vector = waves.vector_mv.copy()
    for name in names.split():
        vector[axis, NAMES.index(name)] *= factor
    return replace(waves, vector_mv=vector)


def _rbbb(waves: Waves) -> Waves:
    late = Waves.of(Group.QRS, (0.064, 0.0155, -0.50, -0.05, -0.85))
    return waves + late + Waves.of(Group.T, (0.25, 0.045, 0.05, 0.0, 0.22))


def _lbbb(waves: Waves) -> Waves:
    vector = waves.vector_mv.copy()
    vector[:, NAMES.index("q")] = (0.10, 0.05, 0.15)
    dropped = np.isin(np.arange(waves.group.size), [NAMES.index(name) for name in ("R", "R2", "s", "T1", "T2")])
    slow = Waves.of(
        Group.QRS,
        (0.000, 0.014, 0.80, 0.50, 0.40),
        (0.036, 0.016, 1.00, 0.20, 0.90),
        (0.073, 0.0172, 0.25, 0.00, 0.35),
    )
    t = Waves.of(Group.T, (0.265, 0.055, -0.38, -0.10, -0.42))
    return replace(waves, vector_mv=vector).only(~dropped) + slow + t


def _lvh(waves: Waves) -> Waves:
    for names, axis, factor in (
        ("R R2", 0, 1.75),
        ("R2 s", 2, 1.8),
        ("R R2", 1, 0.8),
        ("T1 T2", 0, -0.45),
        ("T1 T2", 2, 1.2),
    ):
        waves = _factors(waves, names, axis, factor)
    width = waves.width_s.copy()
    width[[NAMES.index(name) for name in ("R", "R2", "s")]] *= 1.12
    return replace(waves, width_s=width)


def _rvh(waves: Waves) -> Waves:
    vector = waves.vector_mv.copy()
    r, r2, s = (NAMES.index(name) for name in ("R", "R2", "s"))
    # The reference beat's own scale is kept, so that small and large hearts stay small and large.
    vector[2, r2] *= -0.75 / 0.525
    vector[2, s] *= -0.35 / 0.676
    vector[0, [r, r2]] *= 0.45
    vector[0, s] *= 0.45 / 0.168
    return replace(waves, vector_mv=vector) + Waves.of(Group.T, (0.25, 0.045, 0.0, 0.0, 0.30))


def _wpw(waves: Waves) -> Waves:
    # The septum is not where activation begins: without its q, QRS goes on from the delta wave in one slur.
    waves = replace(waves, vector_mv=np.where(np.arange(waves.group.size) == NAMES.index("q"), 0.0, waves.vector_mv))
    return waves + Waves.of(Group.QRS, (-0.0425, 0.0205, 0.31, -0.11, 0.06))


def _long_qt(waves: Waves) -> Waves:
    inside = waves.group == Group.T
    return replace(
        waves,
        centre_s=np.where(inside, 1.40 * waves.centre_s, waves.centre_s),
        width_s=np.where(inside, 1.18 * waves.width_s, waves.width_s),
    )


def _plateau(x: float, y: float, z: float) -> Callable[[Waves], Waves]:
    share = (_PLATEAU_S[1] - _PLATEAU_S[0]) / (_PLATEAU_WIDTH_S * np.sqrt(2 * np.pi))
    rows = [(float(at), _PLATEAU_WIDTH_S, share * x, share * y, share * z) for at in _PLATEAU_S]
    return lambda waves: waves + Waves.of(Group.T, *rows)


def _low_voltage(waves: Waves) -> Waves:
    return replace(waves, vector_mv=0.4 * waves.vector_mv)


_RECIPES: dict[str, Callable[[Waves], Waves]] = {
    "lvh": _lvh,
    "rvh": _rvh,
    "lbbb": _lbbb,
    "rbbb": _rbbb,
    "wpw": _wpw,
    "st_elevation_anterior": _plateau(0.06, 0.0, -0.20),
    "st_elevation_inferior": _plateau(-0.08, 0.22, 0.08),
    # Away from the apex, as in subendocardial ischaemia: down in V4-V6, I and II, up in aVR and V1.
    "st_depression": _plateau(-0.19, -0.09, -0.03),
    "long_qt": _long_qt,
    "low_voltage": _low_voltage,
}


def altered(waves: Waves, morphologies: Iterable[str]) -> Waves:
    """Apply morphologies, in the order of `MORPHOLOGIES`, to a beat made of the waves of `waves.NAMES`."""
    names = set(morphologies)
    for name in MORPHOLOGIES:
        if name in names:
            waves = _RECIPES[name](waves)
    return waves
