"""Controls that can refute a model: what it draws when its input is another person's."""

import numpy as np
from numpy.typing import NDArray

from p2es.errors import DatasetError


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
