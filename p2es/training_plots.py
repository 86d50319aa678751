"""Figures of a training: its curves, and what the model draws so far beside what was recorded. No pyplot."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from p2es.demographics import Demographics
from p2es.leads import LEADS
from p2es.model import MIN_PPG_QUALITY, P2Es, spread_over_people
from p2es.plot import FOOTER, GENERATED_COLOUR, PPG_COLOUR, RECORDED_COLOUR
from p2es.signals import ppg_quality
from p2es.windows import FS_HZ, MARGIN_SAMPLES, WindowBatch, WindowStore

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SHOWN_LEADS = ("II", "V2", "V5")
"""One limb lead, one precordial lead right of the septum and one left of it."""

_POINTS = 400
# Well above what is refused: a picture shall tell of the model, not of a poor pulse.
_GOOD_PPG = 2.5 * MIN_PPG_QUALITY
_WARN = "#b00020"
_GREY = "#8a8a8a"
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Curve:
    """A figure of a training over its steps.

    Attributes
    ----------
    step : array (point,)
        Rising.
    time_s : array (point,)
        When it was measured.
    value : array (point,)
        NaN where it was not finite.
    """

    step: Array
    time_s: Array
    value: Array


def learning_curves(curves: Mapping[str, Curve], title: str = "") -> "Figure":
    """Draw the loss and its terms, the learning rate, the norm of the gradient and the windows a second.

    A point is the mean of neighbouring steps, shaded from the least to the greatest of them. Steps that are not finite
    are counted in the title of their panel.

    Parameters
    ----------
    curves : mapping
        `loss_...` the terms, `learning_rate`, `grad_norm`, and `windows_per_s` or else `windows` (seen so far, of which
        the rate is made). What is not there is left out.
    title : str

    Returns
    -------
    matplotlib.figure.Figure
    """
    figure = _figure((10.0, 6.4))
    figure.subplots_adjust(wspace=0.18)
    figure.suptitle(title, fontsize=10, x=0.01, ha="left")
    losses = {name.removeprefix("loss_"): curve for name, curve in curves.items() if name.startswith("loss_")}
    # The sum first: it is what is minimised.
    ordered = dict(sorted(losses.items(), key=lambda item: (item[0] != "total", item[0])))
    rate = curves.get("windows_per_s") or (_rate(curves["windows"]) if "windows" in curves else None)
    panels = (
        ("loss", ordered, True),
        ("learning rate", _present(curves.get("learning_rate")), False),
        ("norm of the gradient", _present(curves.get("grad_norm")), True),
        ("windows a second", _present(rate), False),
    )
    for place, (label, shown, logarithmic) in enumerate(panels):
        _panel(figure.add_subplot(2, 2, place + 1), label, shown, logarithmic=logarithmic)
    return figure


def fixed_windows(store: WindowStore, count: int = 3) -> WindowBatch:
    """Choose windows to draw again and again: of different people, with the shown leads and a PPG that is accepted.

    Parameters
    ----------
    store : WindowStore
        Validation windows.
    count : int

    Returns
    -------
    WindowBatch
        At most `count` windows, the same ones for the same store; none where no window qualifies.
    """
    # A few times as many as are wanted, so that unusable ones cost nobody's place.
    batch = store.batch(spread_over_people(store.person, 8 * count))
    leads = [LEADS.index(lead) for lead in SHOWN_LEADS]
    good = [
        row
        for row in range(len(batch))
        if batch.lead_mask[row, leads].all() and ppg_quality(batch.ppg[row], batch.ppg_mask[row], FS_HZ) >= _GOOD_PPG
    ]
    _, first = np.unique(batch.person[good], return_index=True)
    return batch.take(np.array(good, np.int64)[np.sort(first)][:count])


def drawn_samples(model: P2Es, batch: WindowBatch, *, step: int, evaluations: int = 10) -> "Figure":
    """Draw one sample of each window and show it over the recording, with its PPG below.

    The model's modules are left in the mode they were in, and no global random state is used, so that a training that
    shows its samples goes on as one that does not.

    Parameters
    ----------
    model : P2Es
        As it is so far, with the averaged weights.
    batch : WindowBatch
        From `fixed_windows`: 1 to 4 windows.
    step : int
        Of the training, for the title.
    evaluations : int
        Network evaluations a sample.

    Returns
    -------
    matplotlib.figure.Figure
        A column a window.
    """
    people = [Demographics.from_array(row) for row in batch.people]
    was_training = model.denoiser.training
    model.denoiser.eval()
    try:
        with torch.inference_mode():
            drawn = model.sample(
                np.where(batch.ppg_mask[:, None], batch.ppg, np.nan).astype(np.float32),
                people, fs_hz=FS_HZ, samples=1, evaluations=evaluations, seeds=range(len(batch)),
            )  # fmt: skip
    finally:
        model.denoiser.train(was_training)
    return sample_figure(np.stack([translation.ecg_mv[0] for translation in drawn]), batch, step=step)


def sample_figure(drawn_mv: NDArray[np.floating], batch: WindowBatch, *, step: int) -> "Figure":
    """Show draws over recordings.

    Parameters
    ----------
    drawn_mv : array (window, 12, time)
    batch : WindowBatch
        The same windows.
    step : int

    Returns
    -------
    matplotlib.figure.Figure
    """
    rows, columns = len(SHOWN_LEADS) + 1, len(batch)
    figure = _figure((4.6 * columns, 1.5 * rows + 0.6))
    figure.suptitle(f"step {step}: drawn over recorded", fontsize=10, x=0.01, ha="left")
    figure.text(0.99, 0.985, FOOTER, ha="right", va="top", fontsize=8, weight="bold", color=_WARN)
    time_s = np.arange(drawn_mv.shape[-1]) / FS_HZ
    for column in range(columns):
        for row, lead in enumerate(SHOWN_LEADS):
            axes, k = figure.add_subplot(rows, columns, row * columns + column + 1), LEADS.index(lead)
            axes.plot(time_s, batch.ecg_mv[column, k], color=RECORDED_COLOUR, lw=0.8, label="recorded")
            axes.plot(time_s, drawn_mv[column, k], color=GENERATED_COLOUR, lw=0.8, label="drawn")
            _tidy(axes, f"{lead}, mV" if column == 0 else "")
            if row == column == 0:
                figure.legend(*axes.get_legend_handles_labels(), loc="upper center", fontsize=8, ncols=2, frameon=False)
        axes = figure.add_subplot(rows, columns, len(SHOWN_LEADS) * columns + column + 1)
        inside = slice(MARGIN_SAMPLES, MARGIN_SAMPLES + len(time_s))
        axes.plot(time_s, batch.ppg[column, 0, inside], color=PPG_COLOUR, lw=0.8)
        _tidy(axes, "PPG" if column == 0 else "")
        axes.set_xlabel("s", fontsize=8)
    return figure


def _figure(size: tuple[float, float]) -> "Figure":
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=100, facecolor="white")
    FigureCanvasAgg(figure)
    # By hand: a layout that is searched for takes half of the time of the whole picture.
    left, top = 0.6 / size[0], 0.6 / size[1]
    figure.subplots_adjust(left=left, right=1 - left / 3, bottom=0.45 / size[1], top=1 - top, hspace=0.3, wspace=0.12)
    return figure


def _tidy(axes: "Axes", label: str) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    # Those between the powers of ten of a logarithmic axis, too.
    axes.tick_params(which="both", labelsize=7)
    axes.margins(x=0)
    axes.set_ylabel(label, fontsize=8)


def _panel(axes: "Axes", label: str, curves: Mapping[str, Curve], *, logarithmic: bool) -> None:
    lost = 0
    for name, curve in curves.items():
        finite = np.isfinite(curve.value)
        lost += int(np.count_nonzero(~finite))
        # A logarithm cannot show 0: terms that have not begun (contrast of a single person) stay away.
        shown = finite & (curve.value > 0) if logarithmic else finite
        if not shown.any():
            continue
        step, low, mean, high = _thinned(curve.step[shown], curve.value[shown])
        first = name == next(iter(curves))
        (line,) = axes.plot(step, mean, lw=1.2 if first else 0.8, label=name)
        axes.fill_between(step, low, high, color=line.get_color(), alpha=0.18, lw=0)
    if logarithmic and axes.lines:
        axes.set_yscale("log")
    _tidy(axes, "")
    unfinished = f" ({lost} values not finite)" if lost else ""
    axes.set_title(label + unfinished, fontsize=8, loc="left", color=_WARN if lost else "black")
    axes.set_xlabel("step", fontsize=8)
    axes.grid(axis="y", color="#eeeeee", zorder=0)
    if len(curves) > 1:
        # Above the panel, where no curve is.
        axes.legend(fontsize=7, frameon=False, loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=len(curves))
    if not axes.lines:
        axes.text(
            0.5, 0.5, "nothing logged", ha="center", va="center", fontsize=8, color=_GREY, transform=axes.transAxes
        )


def _present(curve: Curve | None) -> dict[str, Curve]:
    return {} if curve is None else {"": curve}


def _rate(seen: Curve) -> Curve:
    """Make windows a second of windows seen; a pause for a restart counts as slow, as it was."""
    order = np.argsort(seen.step, kind="stable")
    step, time_s, value = seen.step[order], seen.time_s[order], seen.value[order]
    spent_s, more = np.diff(time_s), np.diff(value)
    usable = (spent_s > 0) & np.isfinite(more)
    return Curve(step[1:][usable], time_s[1:][usable], more[usable] / spent_s[usable])


def _thinned(step: Array, value: Array) -> tuple[Array, Array, Array, Array]:
    """Give step, least, mean and greatest value of at most 400 groups of neighbouring points."""
    groups: Sequence[Array] = np.array_split(np.argsort(step, kind="stable"), min(len(step), _POINTS))
    return (
        np.array([step[rows].mean() for rows in groups]),
        np.array([value[rows].min() for rows in groups]),
        np.array([value[rows].mean() for rows in groups]),
        np.array([value[rows].max() for rows in groups]),
    )
