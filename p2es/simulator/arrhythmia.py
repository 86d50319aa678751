"""Rhythms other than the sinus node's own: premature beats, atrial fibrillation, blocks of conduction."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

from p2es.simulator.people import Person
from p2es.simulator.rhythm import LEAD_IN_S, LEAD_OUT_S, BeatKind, Floats, Rhythm, Sinus, conducted

# Wenckebach: what each conducted beat adds to PR, until one is dropped.
_WENCKEBACH_S = np.cumsum([0.0, 0.040, 0.020, 0.010, 0.010])
_BIGEMINY_SHARE = 0.15
# AV node in fibrillation (Corino 2011): share of the slow pathway, how much later the other recovers, what the
# refractory period takes of the interval before it, over which time conduction grows from never to always. The rest of
# the refractory period leaves a share of the mean interval to chance: a coefficient of variation of 0.25 to 0.30 at all
# rates, where the paper's 0.25 s gave 0.1 at 140 and 0.46 at 55 beats a minute.
_SLOW_SHARE, _FAST_LATER_S, _SLOW_RR, _SPREAD_S, _WAIT_SHARE, _SHORTEST_S = 0.6, 0.08, 0.15, 0.2, 0.38, 0.2


def draw(rng: np.random.Generator, person: Person, sinus: Sinus, name: str, duration_s: float) -> Rhythm:
    """Draw one of the rhythms of this module on the impulses of a sinus node."""
    if name == "atrial_fibrillation":
        return _fibrillation(rng, person, sinus, duration_s)
    if name == "premature_atrial":
        return _premature_atrial(rng, sinus, duration_s)
    if name == "premature_ventricular":
        return _premature_ventricular(rng, sinus, duration_s)
    if name == "av_block_1":
        return conducted(name, sinus, pr_s=np.maximum(sinus.pr_s + 0.070, 0.205))
    if name == "av_block_3":
        return _block_3(rng, sinus, duration_s)
    return _block_2(rng, sinus, name)


def _premature(rng: np.random.Generator, time_s: Floats, duration_s: float) -> NDArray[np.intp]:
    """Draw which beats are premature: 5 to 15 % of them, never two in a row, or every other one (bigeminy).

    One at least is inside the recording, or it would not be what it says.
    """
    n = time_s.size
    every_other, share = rng.random() < _BIGEMINY_SHARE, rng.uniform(0.05, 0.15)
    if every_other:
        return np.arange(3, n - 2, 2)
    kept: list[int] = []
    for k in np.flatnonzero(rng.random(n) < share):
        if 2 <= k < n - 2 and (not kept or k - kept[-1] >= 3):
            kept.append(int(k))
    room = min(0.5, duration_s / 4)
    inside = [k for k in range(2, n - 2) if room < time_s[k] < duration_s - room]
    if inside and not set(inside) & set(kept):
        middle = inside[len(inside) // 2]
        kept = sorted([k for k in kept if abs(k - middle) >= 3] + [middle])
    return np.array(kept, np.intp)


def _premature_atrial(rng: np.random.Generator, sinus: Sinus, duration_s: float) -> Rhythm:
    """Draw early beats from the atria, which set the sinus node back: the pause after them is not compensatory."""
    n = sinus.time_s.size
    which, coupling, reset, later = rng.spawn(4)
    early = _premature(which, sinus.time_s, duration_s)
    interval_s = np.diff(sinus.time_s)
    interval_s[early - 1] *= coupling.uniform(0.55, 0.80, early.size)
    interval_s[early] *= reset.uniform(1.02, 1.15, early.size)
    time_s = np.concatenate([sinus.time_s[:1], sinus.time_s[0] + np.cumsum(interval_s)])
    premature = np.isin(np.arange(n), early)
    # The node has not recovered: an early beat is conducted a little later.
    pr_s = sinus.pr_s + np.where(premature, later.uniform(0.0, 0.03, n), 0.0)
    kind = np.where(premature, BeatKind.ATRIAL, BeatKind.NORMAL).astype(np.int64)
    kept = time_s < duration_s + LEAD_OUT_S + sinus.mean_s
    fields = {"r_s": time_s, "p_s": time_s, "kind": kind, "pr_s": pr_s, "p_premature": premature}
    kept_fields = {name: values[kept] for name, values in fields.items()}
    return conducted("premature_atrial", sinus, p_beat=np.arange(kept.sum()), **kept_fields)


def _premature_ventricular(rng: np.random.Generator, sinus: Sinus, duration_s: float) -> Rhythm:
    """Draw early beats from a ventricle; the sinus beat that follows finds it refractory, and the pause compensates."""
    n = sinus.time_s.size
    usual = rng.uniform(0.48, 0.68)
    which, jitter = rng.spawn(2)
    blocked = _premature(which, sinus.time_s, duration_s)
    before_s = np.diff(sinus.time_s)[blocked - 1]
    # One focus keeps its coupling.
    coupling = usual + 0.02 * jitter.standard_normal(blocked.size)
    early_s = sinus.time_s[blocked - 1] + coupling * before_s
    goes_on = ~np.isin(np.arange(n), blocked)
    time_s = np.concatenate([sinus.time_s[goes_on], early_s])
    kind = np.repeat([BeatKind.NORMAL, BeatKind.VENTRICULAR], [goes_on.sum(), blocked.size]).astype(np.int64)
    order = np.argsort(time_s)
    beat_of = np.full(n, -1)
    beat_of[goes_on] = np.argsort(order)[: goes_on.sum()]
    return conducted("premature_ventricular", sinus, r_s=time_s[order], kind=kind[order], p_beat=beat_of)


def _block_2(rng: np.random.Generator, sinus: Sinus, name: str) -> Rhythm:
    """Let some P waves lead to no beat: after a PR that grows (Wenckebach), or out of an even one (Mobitz)."""
    n = sinus.time_s.size
    place, dropped = np.zeros(n, np.intp), np.zeros(n, bool)
    at = 0
    while at < n:
        length = int(rng.integers(3, 6))
        stop = min(at + length, n)
        place[at:stop] = np.arange(stop - at)
        dropped[at + length - 1 : stop] = True
        at += length
    longer_s = _WENCKEBACH_S[place] if name == "av_block_2_wenckebach" else 0.0
    pr_s = sinus.pr_s + longer_s
    r_s = (sinus.time_s + longer_s)[~dropped]
    beat_of = np.full(n, -1)
    beat_of[~dropped] = np.arange(r_s.size)
    kind = np.full(r_s.size, BeatKind.NORMAL, np.int64)
    return conducted(name, sinus, r_s=r_s, kind=kind, p_s=sinus.time_s + longer_s, pr_s=pr_s, p_beat=beat_of)


def _block_3(rng: np.random.Generator, sinus: Sinus, duration_s: float) -> Rhythm:
    """Let the atria beat for themselves, the ventricles by an escape rhythm of 35-45 bpm, narrow or wide."""
    mean_s = 60.0 / rng.uniform(35, 45)
    kind = BeatKind.JUNCTIONAL if rng.random() < 0.5 else BeatKind.ESCAPE
    start_s = LEAD_IN_S + mean_s * (1 + rng.uniform(0, 1))
    count = int(1.02 * (duration_s + LEAD_IN_S + LEAD_OUT_S) / mean_s) + 6
    r_s = np.cumsum(mean_s * (1 + 0.012 * rng.standard_normal(count))) - start_s
    r_s = r_s[r_s < duration_s + LEAD_OUT_S + mean_s]
    alone = np.full(sinus.time_s.size, -1)
    return conducted("av_block_3", sinus, r_s=r_s, kind=np.full(r_s.size, kind, np.int64), p_beat=alone)


def _mean_wait_s(arrivals_hz: float) -> float:
    """Give the mean time from the end of a refractory period to the impulse that is conducted."""
    # Conduction grows from never to always within the spread, so the hazard does.
    at = np.linspace(0.0, _SPREAD_S, 200)
    survives = np.exp(-arrivals_hz * at**2 / (2 * _SPREAD_S))
    return float(np.trapezoid(survives, at) + survives[-1] / arrivals_hz)


def _fibrillation(rng: np.random.Generator, person: Person, sinus: Sinus, duration_s: float) -> Rhythm:
    """Send random atrial impulses through an AV node of two pathways (Corino 2011): no interval like another."""
    # Ventricles are faster than in sinus rhythm, unless drugs slow them.
    mean_s = 60.0 / float(np.clip(1.25 * person.heart_rate_bpm * np.exp(0.15 * rng.standard_normal()), 55, 150))
    before_s = LEAD_IN_S + float(rng.uniform(0, mean_s))
    fixed_s = _SLOW_RR * mean_s + (1 - _SLOW_SHARE) * _FAST_LATER_S
    least_s = max(mean_s * (1 - _WAIT_SHARE) - fixed_s, _SHORTEST_S)
    arrivals_hz = brentq(lambda rate: _mean_wait_s(rate) - max(mean_s - fixed_s - least_s, 0.08), 0.05, 400.0)
    count = int(1.6 * (duration_s + LEAD_IN_S + LEAD_OUT_S) / mean_s) + 20
    waiting, pathway = rng.spawn(2)
    effort = waiting.exponential(size=count)
    early = arrivals_hz * _SPREAD_S / 2
    waits_s = np.where(
        effort < early,
        np.sqrt(2 * _SPREAD_S * effort / arrivals_hz),
        _SPREAD_S + (effort - early) / arrivals_hz,
    )
    own_s = least_s + np.where(pathway.random(count) < _SLOW_SHARE, 0.0, _FAST_LATER_S)
    interval_s = np.empty(count)
    last_s = mean_s
    for k in range(count):
        # The refractory period follows the interval before it.
        last_s = interval_s[k] = min(own_s[k] + _SLOW_RR * last_s + waits_s[k], 3.0)
    r_s = np.cumsum(interval_s) - before_s
    r_s = r_s[r_s < duration_s + LEAD_OUT_S]
    none = np.empty(0)
    rhythm = conducted("atrial_fibrillation", sinus, r_s=r_s, kind=np.full(r_s.size, BeatKind.NORMAL, np.int64))
    return replace(
        rhythm, p_s=none, pr_s=none, p_beat=none.astype(np.int64), p_premature=none.astype(bool), fibrillates=True
    )
