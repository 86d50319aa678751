"""Controls that can refute a model: what it draws when its input is another person's, or was."""

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from p2es.beats import pulse_onsets
from p2es.errors import DatasetError, InputError
from p2es.signals import zscore_ppg

# An interval this many times the usual, over missing samples, hides beats that were not found.
_HIDES = 1.5
# What keeps its own time when a pulse is stretched: so much before and after the steepest rise, and no more than these
# shares of an interval. Systole hardly changes with the rate, and joins of two slopes would move the rise.
_KEPT_S, _KEPT_SHARE = np.array([0.10, 0.30]), np.array([0.2, 0.5])

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]


def other_person(person: NDArray[np.str_], seed: int) -> NDArray[np.int64]:
    """Pair each window with a window of another person, each window being used once.

    People are put in a random order, their windows side by side, and the row is turned by the largest number
    of windows anybody has, so that nobody meets themselves.

    Parameters
    ----------
    person : array (window,)
    seed : int

    Returns
    -------
    array (window,)
        A permutation: the window whose PPG stands in.

    Raises
    ------
    DatasetError
        When one person has more than half of the windows, so that no such pairing exists.
    """
    _, code, count = np.unique(person, return_inverse=True, return_counts=True)
    turn = int(count.max(initial=0))
    if 2 * turn > len(person):
        raise DatasetError(
            "one person has more than half of the test windows, so PPG cannot be exchanged between people: "
            "add people to the dataset, or raise max_windows"
        )
    place = np.random.default_rng(seed).permutation(len(count))
    row = np.argsort(place[code], kind="stable")
    donor = np.empty(len(person), np.int64)
    donor[row] = np.roll(row, turn)
    return donor


def shuffled_demographics(people: Floats, person: NDArray[np.str_], seed: int) -> Floats:
    """Give each window the demographics of another person, whole rows: a person made of parts would be nobody.

    People are put in a random order and each gets those of the next, the same in all windows; so each person's are
    used once, however many windows one has.

    Parameters
    ----------
    people : array (window, 4)
        `Demographics.to_array`; NaN is unknown.
    person : array (window,)
    seed : int

    Returns
    -------
    array (window, 4)

    Raises
    ------
    DatasetError
        With fewer than two people.
    """
    _, first, code = np.unique(person, return_index=True, return_inverse=True)
    if len(first) < 2:
        raise DatasetError("demographics cannot be exchanged among fewer than two people: add people to the dataset")
    order = np.random.default_rng(seed).permutation(len(first))
    donor = np.empty(len(first), np.int64)
    donor[order] = np.roll(order, 1)
    return np.array(people[first[donor[code]]])


def warped_to_beats(
    donor_ppg: NDArray[np.floating], donor_mask: Mask, own_ppg: NDArray[np.floating], own_mask: Mask, fs_hz: float
) -> tuple[NDArray[np.float32], Mask] | None:
    """Put another person's pulses at the beats of a window: of the window itself, rate and rhythm are left alone.

    A donor's pulse is what lies between two steepest rises. They are taken in their order, again from the first after
    the last, and each is laid over one interval of the window: what is from 0.1 s before a rise to 0.3 s after it keeps
    its time (less in short intervals), the rest of diastole is stretched. It is taken less the straight line between
    its ends, so that joins meet at 0 and the donor's baseline is gone. Before the window's first rise and after its
    last the usual interval goes on; an interval of more than 1.5 times that over missing samples is parted.

    A model that draws as well from this as from the window's own pulse uses its beats and nothing of its shape.

    Parameters
    ----------
    donor_ppg, own_ppg : array (channel, time)
        Of as many channels; beats are those of the first. Upright, of any length.
    donor_mask, own_mask : array (time,)
        True where recorded.
    fs_hz : float

    Returns
    -------
    tuple or None
        PPG (channel, time), float32, as z-scored as stored PPG is, and its mask: the window's own. None when the window
        has fewer than two pulses, or the donor no pulse that was recorded whole: there is no such control then, and the
        window is to be left out.

    Raises
    ------
    InputError
        When the two do not have as many channels.
    """
    if donor_ppg.ndim != 2 or own_ppg.ndim != 2 or len(donor_ppg) != len(own_ppg):
        raise InputError(
            f"PPG of shapes {donor_ppg.shape} and {own_ppg.shape}: give (channel, time) of as many channels"
        )
    pulses = _whole_pulses(donor_ppg, donor_mask, fs_hz)
    edges = _edges(own_ppg, own_mask, fs_hz)
    if not pulses or edges.size < 2:
        return None
    at = np.arange(own_ppg.shape[1]) / fs_hz
    result = np.zeros(own_ppg.shape)
    for k, (start, stop) in enumerate(pairwise(edges)):
        inside = (at >= start) & (at < stop)
        if inside.any():
            result[:, inside] = _laid(*pulses[k % len(pulses)], at[inside] - start, stop - start)
    return zscore_ppg(result, own_mask), own_mask.copy()


def _laid(pulse: Floats, lasts_s: float, at_s: Floats, interval_s: float) -> Floats:
    """Give a pulse (channel, time) that lasts so long at times (n,) of an interval of another length."""
    before, after = np.minimum(_KEPT_S, _KEPT_SHARE * min(lasts_s, interval_s))
    there = np.interp(at_s, (0.0, after, interval_s - before, interval_s), (0.0, after, lasts_s - before, lasts_s))
    grid = np.linspace(0.0, lasts_s, pulse.shape[1])
    return np.stack([np.interp(there, grid, row) for row in pulse])


def _whole_pulses(ppg: NDArray[np.floating], mask: Mask, fs_hz: float) -> list[tuple[Floats, float]]:
    """Cut the pulses (channel, time) that were recorded whole, from rise to rise, ends at 0; with their length, s."""
    samples = np.where(mask, ppg, 0.0).astype(np.float64)
    rises = pulse_onsets(samples[0], fs_hz, mask) * fs_hz
    usual = np.median(np.diff(rises)) if rises.size >= 2 else 0.0
    found = []
    for start, stop in pairwise(rises):
        first, last = int(start), min(int(np.ceil(stop)), mask.size - 1)
        if mask[first : last + 1].all() and stop - start < _HIDES * usual:
            # Finer than the samples, as the ends lie between them.
            where = np.linspace(start, stop, 4 * (last - first))
            pulse = np.stack([np.interp(where, np.arange(mask.size), row) for row in samples])
            line = np.linspace(pulse[:, 0], pulse[:, -1], where.size, axis=1)
            found.append((pulse - line, float(stop - start) / fs_hz))
    return found


def _edges(ppg: NDArray[np.floating], mask: Mask, fs_hz: float) -> Floats:
    """Give the rises (beat,) of a window's pulses, carried on beyond both its ends; fewer than two when there are."""
    rises = pulse_onsets(np.where(mask, ppg[0], 0.0), fs_hz, mask)
    if rises.size < 2:
        return rises
    usual = float(np.median(np.diff(rises)))
    parts = []
    for start, stop in pairwise(rises):
        hidden = not mask[int(start * fs_hz) : int(np.ceil(stop * fs_hz))].all()
        count = round((stop - start) / usual) if hidden and stop - start > _HIDES * usual else 1
        parts.append(start + (stop - start) / count * np.arange(count))
    more = usual * np.arange(1, int(mask.size / fs_hz / usual) + 2)
    return np.concatenate([rises[0] - more[::-1], *parts, rises[-1:], rises[-1] + more])
