"""Whether what is drawn could pass for recorded, as a population: Fréchet distances, KID, C2ST, precision and recall.

Realism is no skill: a generator that ignores its input can be perfect here. Recorded and drawn are always as many, and
distances are never within a person: a drawn ECG that is near to its own recording is faithful, which other figures
tell. Windows squared is what distances and kernels cost, windows the rest.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from p2es.evaluation.bootstrap import Figure, People, each_system, mean_figure, packed
from p2es.evaluation.columns import strings, vectors
from p2es.evaluation.encoding import Space, dimensions, encodings, feature_columns, in_both
from p2es.evaluation.ranking import auc

Array = NDArray[np.float64]

NEIGHBOURS = 5
FOLDS = 5
LEAST_WINDOWS = 20
"""Fewer windows give no figure."""
_HALVES = 5
# What only the drawn do has no spread in the recorded; it must count for much, not for everything.
_LEAST_SPREAD = 0.01
_UNITLESS = ""


@dataclass(frozen=True)
class _Pairs:
    """Recorded and drawn of the same windows of one system."""

    real: Array
    drawn: Array
    real_features: Array
    drawn_features: Array
    real_wave: Array
    drawn_wave: Array
    person: NDArray[np.str_]
    people: People


@dataclass(frozen=True)
class _Bank:
    """Recorded windows of training people."""

    encoding: Array
    features: Array
    wave: Array
    person: NDArray[np.str_]


def realism(rows: pa.Table, bank: pa.Table, *, bootstrap: int, seed: int) -> dict[str, dict[str, Any]]:
    """Hold sample 0 of each system against the recordings, as two populations.

    Beats are those of `real_encoding` and `drawn_encoding`, in mV, with the scalar features beside them (angles as sine
    and cosine), every column divided by its SD in the bank. What either of a window's two ECGs lacks is left out
    of both and takes the bank's mean.

    Parameters
    ----------
    rows : pyarrow.Table
        The row table; systems with fewer than 20 drawn windows are left out.
    bank : pyarrow.Table
        `describe` of training windows, of other people.
    bootstrap, seed : int

    Returns
    -------
    dict
        System to:

        - `frechet_waveform`, `frechet_feature` : see `frechet`; of 10 s of one lead as recorded (mV squared), and of
          beats and features, whitened. None without a bank of 20 windows
        - `kid` : Figure; see `kernel_distance`
        - `c2st_auroc` : Figure; see `c2st`
        - `precision`, `recall`, `density`, `coverage` : Figures; see `neighbourhoods`
        - `n` : people; `windows`
    """
    known = _Bank(
        encodings(bank, "real"), feature_columns(bank, "real"), vectors(bank, "real_wave"), strings(bank, "person")
    )
    result: dict[str, dict[str, Any]] = {}
    for name, mine, whose in each_system(rows, bootstrap=bootstrap, seed=seed):
        pairs = _pairs(mine, whose)
        if pairs is not None:
            result[name] = _realism(pairs, known, seed)
    return result


def _pairs(rows: pa.Table, people: People) -> _Pairs | None:
    """Give the windows of which something was drawn; None where they are too few."""
    drawn, wave = encodings(rows, "drawn"), vectors(rows, "drawn_wave")
    real, real_wave = encodings(rows, "real"), vectors(rows, "real_wave")
    kept = np.asarray(np.isfinite(drawn).any(axis=1) & np.isfinite(real).any(axis=1))
    for part in (wave, real_wave):
        kept &= np.isfinite(part).all(axis=1) & (part.shape[1] > 0)
    if kept.sum() < LEAST_WINDOWS or drawn.shape[1] != real.shape[1]:
        return None
    real, drawn = in_both(real[kept], drawn[kept])
    features = in_both(feature_columns(rows, "real")[kept], feature_columns(rows, "drawn")[kept])
    person = strings(rows, "person")[kept]
    return _Pairs(real, drawn, *features, real_wave[kept], wave[kept], person, people.rows(kept))


def _realism(pairs: _Pairs, bank: _Bank, seed: int) -> dict[str, Any]:
    real = np.concatenate([pairs.real, pairs.real_features], axis=1)
    drawn = np.concatenate([pairs.drawn, pairs.drawn_features], axis=1)
    known = np.concatenate([bank.encoding, bank.features], axis=1) if len(bank.person) else real[:0]
    # Without a bank the recordings themselves are the reference.
    space = Space.of(known if len(known) >= LEAST_WINDOWS else real, dimensions(len(real)))
    x, y = space.project(real), space.project(drawn)
    # Columns are standardised, so their number is the usual square of a length, whatever the components keep of it.
    scale = float(real.shape[1])
    whole = np.isfinite(bank.wave).all(axis=1) & (bank.wave.shape[1] == pairs.real_wave.shape[1])
    waves = (pairs.real_wave, pairs.drawn_wave, bank.wave[whole] if whole.any() else pairs.real_wave[:0])
    return {
        "frechet_waveform": _relative(*waves, pairs.person, bank.person[whole], np.asarray, seed, whiten=False),
        "frechet_feature": _relative(
            real, drawn, known, pairs.person, bank.person, space.standardised, seed, whiten=True
        ),
        "kid": kernel_distance(x, y, pairs.people, scale=scale),
        "c2st_auroc": c2st(x, y, pairs.real_features, pairs.drawn_features, pairs.people, seed=seed),
        **neighbourhoods(x, y, pairs.people),
        "n": len(np.unique(pairs.person)),
        "windows": len(real),
    }


def frechet(one: Array, other: Array) -> float:
    """Give the Fréchet distance of two Gaussians with the means and covariances of two sets of rows.

    ``|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2))`` (Dowson and Landau 1982), in the square of the rows' unit. The
    trace of the root is that of ``(S1^(1/2) S2 S1^(1/2))^(1/2)``, which is symmetric.

    Parameters
    ----------
    one, other : array (row, dimension)
        At least two rows.
    """
    shift = one.mean(axis=0) - other.mean(axis=0)
    s1, s2 = (np.atleast_2d(np.cov(part, rowvar=False)) for part in (one, other))
    level, vectors = np.linalg.eigh(s1)
    root = (vectors * np.sqrt(np.maximum(level, 0.0))) @ vectors.T
    cross = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ s2 @ root), 0.0)).sum()
    return float(shift @ shift + np.trace(s1) + np.trace(s2) - 2 * cross)


def _relative(
    real: Array,
    drawn: Array,
    bank: Array,
    person: NDArray[np.str_],
    bank_person: NDArray[np.str_],
    fill: Callable[[Array], Array],
    seed: int,
    *,
    whiten: bool,
) -> dict[str, Any] | None:
    """Give the Fréchet distance of drawn to recorded beside that of as many other people's recordings to them.

    A Fréchet distance of few rows is too large, by an amount that depends on their number, their dimension and their
    law; two sets of recordings, as many, in as many dimensions, show by how much. So the ratio is what tells. It has no
    interval: a bootstrap draw repeats rows, which adds to the bias that the ratio is there to take away. Drawn and
    recorded share their pulses, which the bank does not, so a perfect system is a little below 1.

    The dimensions are principal components of all rows together, one for each 10 windows, at most 64; a space of the
    recordings alone would be blind to what only the drawn do. What either of two windows lacks is left out of both,
    also where a test window and one of the bank meet. Whitened, each component is divided by its SD over the recorded;
    else a handful rules. On one made-up law, where the ratio should be 1, its SD was .19 for waves and .13 for features
    (.61 if not whitened) with 200 windows, .12 and .10 with 400: a ratio of 1.5 tells little of 100 windows.

    Returns
    -------
    dict or None
        `value`, `real_half` (mean of five choices of bank windows, one a person as far as they go), `relative`, `n`
        (windows on each side), `dimensions`; None where there are fewer than 20 bank windows.
    """
    n = min(len(real), len(bank))
    if n < LEAST_WINDOWS:
        return None
    rng = np.random.default_rng(seed)
    chosen = _spread(person, n, rng)
    everything = fill(np.concatenate([real, drawn, bank]))
    _, vectors = np.linalg.eigh(np.cov(everything, rowvar=False))
    axes = vectors[:, ::-1][:, : dimensions(n)]
    if whiten:
        spread = (fill(np.concatenate([real, bank])) @ axes).std(axis=0)
        axes = axes / np.maximum(spread, _LEAST_SPREAD * spread.max() + 1e-12)
    real, drawn = real[chosen], drawn[chosen]
    value = frechet(fill(drawn) @ axes, fill(real) @ axes)
    others = (in_both(bank[_spread(bank_person, n, rng)], real) for _ in range(_HALVES))
    half = float(np.mean([frechet(fill(other) @ axes, fill(ours) @ axes) for other, ours in others]))
    relative = value / half if half > 0 else None
    return {"value": value, "real_half": half, "relative": relative, "n": n, "dimensions": axes.shape[1]}


def _spread(person: NDArray[np.str_], n: int, rng: np.random.Generator) -> NDArray[np.intp]:
    """Choose n rows at random, one of each person before a second of any."""
    shuffled = rng.permutation(len(person))
    code = np.unique(person, return_inverse=True)[1][shuffled]
    order = np.argsort(code, kind="stable")
    start = np.searchsorted(code[order], code[order], side="left")
    turn = np.empty(len(person), np.intp)
    turn[order] = np.arange(len(person)) - start
    return np.asarray(shuffled[np.argsort(turn, kind="stable")[:n]])


def kernel_distance(real: Array, drawn: Array, people: People, *, scale: float) -> Figure:
    """Give the kernel inception distance: the squared MMD with a cubic kernel, unbiased, so 0 for one law.

    ``k(x, y) = (x . y / scale + 1)^3`` (Binkowski et al. 2018, with the number of dimensions as scale, for features of
    unit variance). All three means are over pairs of different people.

    Parameters
    ----------
    real, drawn : array (row, dimension)
        Of the same windows.
    people : People
    scale : float
        The usual ``|x|^2``, from other rows than these: from them it would bring a bias back.
    """
    n = people.number
    sums, pairs = np.zeros((n, n)), np.zeros((n, n))
    terms = ((real, real, 1.0), (drawn, drawn, 1.0), (real, drawn, -1.0), (drawn, real, -1.0))
    kernel = sum(sign * (one @ other.T / scale + 1) ** 3 for one, other, sign in terms)
    np.add.at(sums, (people.code[:, None], people.code[None]), kernel)
    np.add.at(pairs, (people.code[:, None], people.code[None]), 1.0)
    np.fill_diagonal(sums, 0.0)
    np.fill_diagonal(pairs, 0.0)
    everyone = np.concatenate([np.ones((1, n)), people.counts])
    with np.errstate(invalid="ignore", divide="ignore"):
        result = ((everyone @ sums) * everyone).sum(axis=1) / ((everyone @ pairs) * everyone).sum(axis=1)
    return packed(float(result[0]), result[1:], _UNITLESS, len(np.unique(people.code)))


def c2st(
    real: Array, drawn: Array, real_features: Array, drawn_features: Array, people: People, *, seed: int
) -> Figure:
    """Give the AUROC of a classifier that tells drawn from recorded, on people it has not seen (Lopez-Paz 2017).

    Boosted trees (scikit-learn's `HistGradientBoostingClassifier`) on beats and features, five folds by person with
    a window's recorded and drawn ECG in the same one. 0.5: it cannot tell; 1: always. The interval is over people with
    the classifiers as they are, and so holds nothing of how they would differ with other training people: of 50 sets of
    one law it held 0.5 in 43.

    Parameters
    ----------
    real, drawn : array (row, dimension)
        Of the same windows.
    real_features, drawn_features : array (row, feature)
        NaN is allowed.
    people : People
    seed : int

    Returns
    -------
    Figure
        None where there are fewer than two people.
    """
    n = len(np.unique(people.code))
    if n < 2:
        return packed(np.nan, np.zeros(0), _UNITLESS, n)
    columns = np.concatenate(
        [np.concatenate([real, real_features], axis=1), np.concatenate([drawn, drawn_features], axis=1)]
    )
    label = np.repeat([0, 1], len(real))
    both = People(np.tile(people.code, 2), people.counts)
    score = _held_out(columns, label, both.code, min(FOLDS, n), seed)
    value, draws = auc(score, label == 1, both)
    return packed(value, draws, _UNITLESS, n)


def _held_out(columns: Array, label: NDArray[np.intp], group: NDArray[np.intp], folds: int, seed: int) -> Array:
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.model_selection import GroupKFold

    score = np.full(len(label), np.nan)
    for train, test in GroupKFold(folds, shuffle=True, random_state=seed).split(columns, label, group):
        # Small trees and few: with some hundred windows larger ones learn the people.
        trees = HistGradientBoostingClassifier(
            max_iter=40, max_leaf_nodes=6, min_samples_leaf=10, early_stopping=False, max_bins=32, random_state=seed
        )
        # A column without two values to split between is an error to scikit-learn 1.9.
        used = [k for k, column in enumerate(columns[train].T) if len(np.unique(column[np.isfinite(column)])) > 1]
        trees.fit(columns[np.ix_(train, used)], label[train])
        score[test] = trees.decision_function(columns[np.ix_(test, used)])
    return score


def neighbourhoods(real: Array, drawn: Array, people: People) -> dict[str, Figure]:
    """Give precision, recall, density and coverage with k = 5 neighbours.

    The ball of a row reaches to its 5th neighbour among its own kind. Precision: share of the drawn in the ball of
    some recorded; recall: share of the recorded in the ball of some drawn (Kynkäänniemi 2019). Density: balls of
    recorded that hold a drawn, over 5; coverage: share of the recorded whose ball holds a drawn (Naeem 2020), which
    is 1 - 2^-5 at most, about, for the right law. Unlike theirs, only rows of different people are neighbours.

    Parameters
    ----------
    real, drawn : array (row, dimension)
        Of the same windows.
    people : People

    Returns
    -------
    dict of Figure
        None where nobody has 5 rows of others about.
    """
    from sklearn.metrics import pairwise_distances

    same = people.code[:, None] == people.code[None]
    among_real, among_drawn, across = (
        np.where(same, np.inf, pairwise_distances(one, other))
        for one, other in ((real, real), (drawn, drawn), (real, drawn))
    )
    if len(real) <= NEIGHBOURS or not (np.isfinite(among_real).sum(axis=1) >= NEIGHBOURS).all():
        return {
            name: packed(np.nan, np.zeros(0), _UNITLESS, 0) for name in ("precision", "recall", "density", "coverage")
        }
    real_reach, drawn_reach = (
        np.partition(part, NEIGHBOURS - 1, axis=1)[:, NEIGHBOURS - 1] for part in (among_real, among_drawn)
    )
    # A system that always draws the same has balls of no size, which still hold their own centre.
    in_real, in_drawn = across <= real_reach[:, None], across <= drawn_reach[None]
    shares = {
        "precision": in_real.any(axis=0),
        "recall": in_drawn.any(axis=1),
        "density": in_real.sum(axis=0) / NEIGHBOURS,
        "coverage": in_real.any(axis=1),
    }
    return {name: mean_figure(part.astype(np.float64), people, _UNITLESS) for name, part in shares.items()}
