"""Whether recorded limb leads belong together (Einthoven, Goldberger), and what would mend them.

Each limb lead is a combination of I and II, so three or more of them over-determine the two: what the best I and II
leave unexplained is the misfit. Swapped arms keep the laws; swapped names, and leads that were each scaled on their
own (the headers of LUDB), break them, by combinations of the leads themselves. Converters of their own add noise,
which is like nothing in the leads and does no harm while it is small.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from p2es.leads import LEADS, LIFT

MAX_SHARE = 0.1
"""Limb leads off the lead laws by more than this share of their size (RMS) are refused.

112 real records of five sources are off by at most 0.6 % (0.15 to 0.6 uV: their steps), but each from a device that
computes four limb leads of two; of 80 LUDB records, whose gains normalise each lead on its own, all by more than
10 %."""
NOISE_MV, NOISE_SHARE = 0.03, 0.5
"""What leads may be off by noise of their own: so much, and so much of their size (RMS).

An electrocardiograph may add 30 uV peak to peak (ANSI/AAMI EC11), about 5 uV RMS; of 20 uV RMS in each of six leads
the misfit is 21 uV at most. More is refused, whatever it is."""
REPAIRED_SHARE = 0.02
"""Converter steps must obey the laws to this share before they are taken in place of wrong gains (LUDB: 0.6 %)."""
FLOOR_MV = 0.01
"""What coarse quantisation can do to the sum of three leads is no break of the laws."""

Floats = NDArray[np.floating]


def floor_mv(gains: Sequence[float | None]) -> float:
    """Give the misfit (mV) that leads of these converter steps a millivolt may have: half a step, 1.7 times its RMS."""
    steps = [1.0 / gain for gain in gains if gain]
    return max(FLOOR_MV, 0.5 * max(steps, default=0.0))


@lru_cache(maxsize=64)
def _unexplained(names: tuple[str, ...]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Give (lead, lead): leads to what no I and II explain; and (lead,): the share of a lead's own error in it."""
    rows = LIFT[[LEADS.index(name) for name in names], :2]
    matrix = np.eye(len(names)) - rows @ np.linalg.pinv(rows)
    return matrix, np.sqrt(np.diag(matrix))


def misfit(names: Sequence[str], ecg: Floats) -> tuple[Floats, Floats]:
    """Measure how far limb leads are from the lead laws.

    Parameters
    ----------
    names : sequence of str
        Three limb leads or more.
    ecg : array (lead, ..., time)
        Without NaN.

    Returns
    -------
    misfit, size : array (...,)
        RMS of what the lead laws leave unexplained in the worst lead, as a multiple of the share of a lead's own noise
        that is left in it; RMS of the leads. In the unit of `ecg`. Of an error in one lead, 0.33 (II beside I and
        aVL) to 0.82 shows.
    """
    matrix, own = _unexplained(tuple(names))
    left = np.tensordot(matrix, ecg, axes=1)
    shape = (-1, *(1,) * (ecg.ndim - 2))
    gaps = np.sqrt(np.mean(np.square(left), axis=-1)) / own.reshape(shape)
    return gaps.max(axis=0), np.sqrt(np.mean(np.square(ecg), axis=(0, -1)))


def broken(names: Sequence[str], ecg: Floats, share: float = MAX_SHARE, floor: float = FLOOR_MV) -> NDArray[np.bool_]:
    """Tell where (...,) limb leads (lead, ..., time) break the lead laws; never with fewer than three."""
    return broken_or_noisy(names, ecg, share, floor)[0]


def broken_or_noisy(
    names: Sequence[str], ecg: Floats, share: float = MAX_SHARE, floor: float = FLOOR_MV
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Tell where (...,) limb leads break the lead laws, and where they are off by no more than noise of their own.

    Parameters
    ----------
    names : sequence of str
    ecg : array (lead, ..., time)
        Millivolt, without NaN.
    share, floor : float
        Leads break the laws when their misfit is beyond this share of their size, and this many millivolt. Such a
        misfit is noise when no more than that of it follows the leads, and it is within the limits of noise.
    """
    if len(names) < 3:
        nowhere = np.zeros(ecg.shape[1:-1], bool)
        return nowhere, nowhere.copy()
    gap, size = misfit(names, ecg)
    limit = np.maximum(share * size, floor)
    off = np.asarray(gap > limit)
    noisy = np.array(off & (gap <= np.minimum(np.maximum(NOISE_MV, floor), NOISE_SHARE * size)))
    for at in np.argwhere(noisy):
        noisy[tuple(at)] = _following(names, ecg[(slice(None), *at)]) <= limit[tuple(at)]
    return off & ~noisy, noisy


def _following(names: Sequence[str], ecg: Floats) -> float:
    """Give how much (RMS) of the worst lead's misfit follows the leads (lead, time) or their slopes.

    A wrong gain or name leaves a combination of I and II, a shift in time one of their slopes too. Noise leaves none:
    of 20 uV RMS in each lead of 108 real records at most 3 uV follow, of what gains, exchanged leads or a shift of one
    sample leave 96 % or more.
    """
    matrix, own = _unexplained(tuple(names))
    left = (matrix @ ecg) / own[:, None]
    worst = left[int(np.argmax(np.square(left).sum(axis=1)))]
    rows = LIFT[[LEADS.index(name) for name in names], :2]
    best = np.linalg.pinv(rows) @ ecg
    causes = np.concatenate([best, np.gradient(best, axis=1)]).T
    fit = causes @ np.linalg.lstsq(causes, worst, rcond=None)[0]
    return float(np.sqrt(np.mean(np.square(fit))))


def what_would_mend(names: Sequence[str], ecg: Floats) -> str | None:
    """Name the one exchange of two leads, or the one inversion, after which they obey; None when not exactly one.

    Parameters
    ----------
    names : sequence of str
        Limb leads. Three of them obey under several changes, so that it takes four.
    ecg : array (lead, block, time)
        Stretches of them; a change must mend the median stretch.
    """
    mends = [text for text, changed in _changes(names, ecg) if not _mostly_broken(names, changed)]
    return mends[0] if len(mends) == 1 else None


def _mostly_broken(names: Sequence[str], ecg: Floats) -> bool:
    return bool(np.median(broken(names, ecg)) > 0.0)


def _changes(names: Sequence[str], ecg: Floats) -> Iterator[tuple[str, Floats]]:
    for a, b in combinations(range(len(names)), 2):
        order = list(range(len(names)))
        order[a], order[b] = b, a
        yield f"{names[a]} and {names[b]} seem to be exchanged", ecg[order]
    for a in range(len(names)):
        signs = np.ones((len(names), *(1,) * (ecg.ndim - 1)))
        signs[a] = -1.0
        yield f"{names[a]} seems to be inverted", ecg * signs
