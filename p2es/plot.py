"""ECG on paper: 25 mm/s, 10 mm/mV, drawn to scale, marked SYNTHETIC.

Every figure is one set of axes that spans it, in millimetres of paper, so that 1 mm of signal is 1 mm of grid
and, printed at the figure's size, 1 mm on paper. No pyplot: figures are plain objects, safe in threads and
servers.
"""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from p2es.files import write_whole
from p2es.leads import LEADS
from p2es.windows import FS_HZ, MARGIN_S, WINDOW_S

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MM_PER_S = 25.0
MM_PER_MV = 10.0
DPI = 150
FOOTER = "SYNTHETIC: not a recording. Not for diagnosis."
RECORDED_FOOTER = "Recorded. Not for diagnosis."

GENERATED_COLOUR = "#111111"
RECORDED_COLOUR = "#1f5fbf"
BAND_COLOUR = "#8a8a8a"
PPG_COLOUR = "#7a1f5c"
_MINOR, _MAJOR = "#f7d6d9", "#eda6ad"

_MARGIN_MM = 6.0
_HEADER_MM = 13.0
_FOOTER_MM = 9.0
# Room at the left for the calibration pulse: 5 mm wide, with a little baseline on either side.
_PULSE_MM = 12.0
_ROW_MM = 27.0
_PPG_MM = 16.0
_COLUMNS = 4
_PT_PER_MM = 72 / 25.4

Array = NDArray[np.floating]


def paper_ecg(
    ecg_mv: Array,
    *,
    band_mv: Array | None = None,
    reference_mv: Array | None = None,
    reference_name: str = "recorded",
    ppg: Array | None = None,
    title: str = "",
    footer: str = "",
    fs_hz: float = FS_HZ,
) -> "Figure":
    """Draw a 12-lead ECG as a paper recorder would: 3 rows of 4 x 2.5 s, and lead II for 10 s below.

    Parameters
    ----------
    ecg_mv : array (12, time)
        Ten seconds of what was generated; NaN is not drawn.
    band_mv : array (2, 12, time), optional
        Limits of the band, shaded.
    reference_mv : array (12, time), optional
        The recording, in another colour; NaN where a lead was not recorded.
    reference_name : str
        What the legend calls it.
    ppg : array (time,) or (channel, time), optional
        Twelve seconds, one before and one after the window, at `fs_hz`; the first channel is drawn below, at
        a height of its own.
    title, footer : str
        `footer` is added to the SYNTHETIC mark, which is always there.
    fs_hz : float

    Returns
    -------
    matplotlib.figure.Figure
        To scale at its size: 25 mm/s and 10 mm/mV.
    """
    rows = 4
    figure, axes, tops_mm = _paper([_ROW_MM] * rows + ([_PPG_MM] if ppg is not None else []), title, footer)
    _legend(axes, band_mv is not None, reference_name if reference_mv is not None else None)
    _twelve_leads(axes, tops_mm, (ecg_mv, band_mv, reference_mv), fs_hz)
    if ppg is not None:
        _pulse_wave(axes, tops_mm[rows], ppg, fs_hz)
    return figure


def window_ecg(
    ecg_mv: Array, *, simulated: bool, ppg: Array | None = None, title: str = "", footer: str = "", fs_hz: float = FS_HZ
) -> "Figure":
    """Draw a window of a dataset as a paper recorder would; only a simulated one is marked SYNTHETIC.

    Parameters
    ----------
    ecg_mv : array (12, time)
        NaN where a lead was not recorded: its place stays empty.
    simulated : bool
    ppg : array (time,) or (channel, time), optional
        As in `paper_ecg`.
    title, footer : str
    fs_hz : float

    Returns
    -------
    matplotlib.figure.Figure
    """
    heights_mm = [_ROW_MM] * 4 + ([_PPG_MM] if ppg is not None else [])
    figure, axes, tops_mm = _paper(heights_mm, title, footer, FOOTER if simulated else RECORDED_FOOTER)
    _twelve_leads(axes, tops_mm, (ecg_mv, None, None), fs_hz)
    if ppg is not None:
        _pulse_wave(axes, tops_mm[4], ppg, fs_hz)
    return figure


def lead_comparison(
    generated_mv: Array,
    recorded_mv: Array,
    *,
    band_mv: Array | None = None,
    ppg: Array | None = None,
    lead: str = "II",
    title: str = "",
    footer: str = "",
    fs_hz: float = FS_HZ,
) -> "Figure":
    """Draw one lead as recorded above the same lead as generated, on the same paper.

    Parameters
    ----------
    generated_mv, recorded_mv : array (12, time)
    band_mv : array (2, 12, time), optional
    ppg : array (time,) or (channel, time), optional
    lead : str
    title, footer, fs_hz
        As in `paper_ecg`.

    Returns
    -------
    matplotlib.figure.Figure
    """
    figure, axes, tops_mm = _paper([_ROW_MM] * 2 + ([_PPG_MM] if ppg is not None else []), title, footer)
    _legend(axes, band_mv is not None, "recorded")
    whole, k = slice(0, generated_mv.shape[-1]), LEADS.index(lead)
    _strip(axes, f"{lead} recorded", tops_mm[0], k, whole, (None, None, recorded_mv), fs_hz)
    _strip(axes, f"{lead} generated", tops_mm[1], k, whole, (generated_mv, band_mv, None), fs_hz)
    for top_mm in tops_mm[:2]:
        _calibration(axes, top_mm)
    if ppg is not None:
        _pulse_wave(axes, tops_mm[2], ppg, fs_hz)
    return figure


def png(figure: "Figure", dpi: float | None = None, *, mark: str = FOOTER, colours: int | None = None) -> bytes:
    """Render as PNG, marked SYNTHETIC in its metadata unless told else; the same figure gives the same bytes.

    Parameters
    ----------
    figure : Figure
    dpi : float, optional
    mark : str
    colours : int, optional
        Keep so many: a third of the bytes.
    """
    buffer = io.BytesIO()
    about = {"Software": "p2es", "Comment": mark}
    figure.savefig(buffer, format="png", dpi=dpi or figure.dpi, metadata=about)
    return buffer.getvalue() if colours is None else _of_few_colours(buffer, colours, about)


def _of_few_colours(buffer: io.BytesIO, colours: int, about: Mapping[str, str]) -> bytes:
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    told = PngInfo()
    for name, text in about.items():
        told.add_text(name, text)
    small = io.BytesIO()
    few = Image.open(buffer).convert("RGB").quantize(colours, dither=Image.Dither.NONE)
    few.save(small, "PNG", optimize=True, pnginfo=told)
    return small.getvalue()


def save(figure: "Figure", path: Path) -> None:
    """Write as PNG, whole or not at all."""
    write_whole(path, png(figure))


def _x_mm(time_s: Array | float) -> NDArray[np.float64]:
    return _MARGIN_MM + _PULSE_MM + MM_PER_S * np.asarray(time_s, np.float64)


def _twelve_leads(
    axes: "Axes", tops_mm: Sequence[float], signals: tuple[Array, Array | None, Array | None], fs_hz: float
) -> None:
    """Draw 3 rows of 4 x 2.5 s and lead II below, of a trace, its band and its reference."""
    for k, name in enumerate(LEADS):
        column, row = divmod(k, 3)
        start_s = column * WINDOW_S / _COLUMNS
        part = slice(round(start_s * fs_hz), round((start_s + WINDOW_S / _COLUMNS) * fs_hz))
        _strip(axes, name, tops_mm[row], k, part, signals, fs_hz)
        if column:
            x_mm, middle = float(_x_mm(start_s)), tops_mm[row] - _ROW_MM / 2
            axes.plot([x_mm, x_mm], [middle - 2, middle + 2], color=GENERATED_COLOUR, lw=0.5)
    _strip(axes, "II", tops_mm[3], LEADS.index("II"), slice(0, signals[0].shape[-1]), signals, fs_hz)
    for top_mm in tops_mm[:4]:
        _calibration(axes, top_mm)


def _paper(
    heights_mm: Sequence[float], title: str, footer: str, mark: str = FOOTER
) -> "tuple[Figure, Axes, list[float]]":
    """Give a figure with a grid for rows of these heights, its axes in millimetres, and each row's top."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # Whole multiples of 5 mm, so that the grid ends on a heavy line.
    grid_height = 5 * np.ceil(sum(heights_mm) / 5)
    grid_width = 5 * np.ceil((_PULSE_MM + MM_PER_S * WINDOW_S) / 5)
    width, height = grid_width + 2 * _MARGIN_MM, grid_height + _HEADER_MM + _FOOTER_MM
    figure = Figure(figsize=(width / 25.4, height / 25.4), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(0, height), autoscale_on=False)
    axes.set_axis_off()
    left, top = _MARGIN_MM, _FOOTER_MM + grid_height
    _grid(axes, left, _FOOTER_MM, grid_width, grid_height)
    axes.text(left, top + _HEADER_MM / 2 + 2.5, title, weight="bold", va="center", fontsize=9)
    axes.text(left, top + 2.0, "25 mm/s   10 mm/mV   0.5-40 Hz", va="bottom", fontsize=7, color="#555555")
    colour = "#b00020" if mark == FOOTER else "#555555"
    axes.text(left, _FOOTER_MM / 2, mark, weight="bold", va="center", color=colour, fontsize=9)
    axes.text(width - left, _FOOTER_MM / 2, footer, ha="right", va="center", fontsize=7, color="#555555")
    return figure, axes, [float(x) for x in top - np.cumsum([0.0, *heights_mm[:-1]])]


def _grid(axes: "Axes", left: float, bottom: float, width: float, height: float) -> None:
    from matplotlib.collections import LineCollection

    for step, colour, thickness in ((1, _MINOR, 0.35), (5, _MAJOR, 0.7)):
        upright = [[(left + x, bottom), (left + x, bottom + height)] for x in np.arange(0, width + 0.5, step)]
        level = [[(left, bottom + y), (left + width, bottom + y)] for y in np.arange(0, height + 0.5, step)]
        axes.add_collection(LineCollection(upright + level, colors=colour, linewidths=thickness, zorder=0))


def _legend(axes: "Axes", band: bool, reference: str | None) -> None:
    entries = [("generated", GENERATED_COLOUR)]
    entries += [("90 % band", BAND_COLOUR)] if band else []
    entries += [(reference, RECORDED_COLOUR)] if reference else []
    right, y_mm = axes.get_xlim()[1] - _MARGIN_MM, axes.get_ylim()[1] - _HEADER_MM / 2
    for place, (label, colour) in enumerate(reversed(entries)):
        x_mm = right - 26 * place
        axes.plot([x_mm - 24, x_mm - 19], [y_mm, y_mm], color=colour, lw=2 if label != "90 % band" else 5)
        axes.text(x_mm - 18, y_mm, label, va="center", fontsize=7, color="#333333")


def _strip(
    axes: "Axes",
    label: str,
    top_mm: float,
    lead: int,
    part: slice,
    signals: tuple[Array | None, Array | None, Array | None],
    fs_hz: float,
) -> None:
    """Draw a part of one lead: band, recording, generated, back to front; the row's middle is 0 mV."""
    ecg_mv, band_mv, reference_mv = signals
    zero_mm = top_mm - _ROW_MM / 2
    x_mm = _x_mm(np.arange(part.start, part.stop) / fs_hz)
    if band_mv is not None:
        low, high = zero_mm + MM_PER_MV * np.asarray(band_mv)[:, lead, part]
        axes.fill_between(x_mm, low, high, color=BAND_COLOUR, alpha=0.28, lw=0, zorder=2)
    # A trace thinner than 0.25 mm looks like a plotter's; a real stylus draws about 0.3.
    thickness = 0.3 * _PT_PER_MM
    if reference_mv is not None:
        y_mm = zero_mm + MM_PER_MV * reference_mv[lead, part]
        axes.plot(x_mm, y_mm, color=RECORDED_COLOUR, lw=thickness, zorder=3, solid_joinstyle="round")
    if ecg_mv is not None:
        y_mm = zero_mm + MM_PER_MV * ecg_mv[lead, part]
        axes.plot(x_mm, y_mm, color=GENERATED_COLOUR, lw=thickness, zorder=4, solid_joinstyle="round")
    at_mm = float(x_mm[0]) + 1.0
    axes.text(at_mm, top_mm - 2.0, label, va="top", weight="bold", fontsize=8, zorder=5)


def _calibration(axes: "Axes", top_mm: float) -> None:
    """Draw the pulse of 1 mV and 0.2 s that shows the scale."""
    left, zero_mm = _MARGIN_MM + 3.0, top_mm - _ROW_MM / 2
    x_mm = left + np.array([0.0, 1.0, 1.0, 6.0, 6.0, 7.0])
    y_mm = zero_mm + MM_PER_MV * np.array([0.0, 0.0, 1.0, 1.0, 0.0, 0.0])
    axes.plot(x_mm, y_mm, color=GENERATED_COLOUR, lw=0.3 * _PT_PER_MM, zorder=4, solid_joinstyle="miter")


def _pulse_wave(axes: "Axes", top_mm: float, ppg: Array, fs_hz: float) -> None:
    """Draw the PPG of the window's ten seconds, its full swing over most of its row."""
    start = round(MARGIN_S * fs_hz)
    shown = np.atleast_2d(np.asarray(ppg, np.float64))[0, start : start + round(WINDOW_S * fs_hz)]
    finite = shown[np.isfinite(shown)]
    if finite.size == 0:
        return
    low, swing = float(finite.min()), max(float(np.ptp(finite)), 1e-12)
    y_mm = top_mm - _PPG_MM + 2.0 + (_PPG_MM - 5.0) * (shown - low) / swing
    x_mm = _x_mm(np.arange(shown.size) / fs_hz)
    axes.plot(x_mm, y_mm, color=PPG_COLOUR, lw=0.3 * _PT_PER_MM, zorder=4)
    axes.text(_MARGIN_MM + _PULSE_MM + 1.0, top_mm - 1.0, "PPG", va="top", weight="bold", fontsize=8, zorder=5)
