"""The report of a dataset: one HTML page that needs nothing else, with counts, distributions and example windows."""

import base64
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from p2es.files import write_whole
from p2es.leads import LEADS
from p2es.plot import FOOTER, RECORDED_FOOTER, png, window_ecg
from p2es.reasons import explain
from p2es.windows import WINDOW_S, Window, decode
from p2es_platform import versions
from p2es_platform.contents import LEAD_FIGURES, PPG_FIGURES, SURE_DELAY, Contents, Example, Histogram, gather
from p2es_platform.dataset import SPLITS, Dataset
from p2es_platform.settings import Settings

FEWEST_PEOPLE = 11
"""A smaller group of real people is not told (k-anonymity 11)."""
_SHOWN_DPI = 110
_FLAGS = {
    "amplitude": "the recording is 2.1 times the usual size or more, or 0.42 times or less",
    "gains_repaired": "the file's gains break the lead laws; converter steps are taken as microvolt",
}
_MISSING = {"age": "age_years", "height": "height_cm", "weight": "weight_kg"}
_KINDS = {
    "good": "good: every signal of quality 0.9 or more",
    "borderline": "borderline: a signal of quality 0.4 or less (0.2 is the least that is kept)",
    "flagged": "flagged: kept, and odd",
}


@dataclass(frozen=True)
class Bar:
    """A bar of a chart: its label, the number beside it, its length (0 to 1); `hidden` when the number is not told."""

    label: str
    text: str
    length: float
    hidden: bool = False
    title: str = ""


@dataclass(frozen=True)
class Chart:
    """Bars with a title; `note` stands below. Upright for figures on a scale, else lying."""

    title: str
    bars: Sequence[Bar]
    note: str = ""
    upright: bool = False
    unit: str = ""


def run(url: str, settings: Settings, out: Path | None = None, *, max_windows: int | None = None) -> Path:
    """Write the report of a dataset.

    Parameters
    ----------
    url : str
    settings : Settings
        Say where the page goes without `out`: into `reports` of the storage, or of the working folder when the
        storage is a bucket.
    out : Path, optional
        The page, or a folder for it.
    max_windows : int, optional
        Of a larger dataset, shards spread over it are looked at; the page says so.

    Returns
    -------
    Path
        Of the page.

    Raises
    ------
    DatasetError
        When there is no dataset, or it is damaged.
    """
    dataset = Dataset.open(url)
    contents = gather(dataset) if max_windows is None else gather(dataset, max_windows=max_windows)
    name = f"{url.rstrip('/').rsplit('/', 1)[-1]}-{dataset.version}.html"
    if out is None:
        out = settings.folder("reports", name) if settings.is_local else Path("reports", name)
    path = out / name if out.is_dir() or not out.suffix else out
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, render(dataset, contents).encode())
    return path


def render(dataset: Dataset, contents: Contents) -> str:
    """Render the page: style and pictures are inside, nothing is fetched and no script runs."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    text = resources.files(__package__).joinpath("dataset_report.html.jinja").read_text(encoding="utf-8")
    private = contents.simulated < contents.windows
    return environment.from_string(text).render(
        name=dataset.url.rstrip("/").rsplit("/", 1)[-1],
        manifest=dataset.manifest,
        mark=_mark(contents),
        contents=contents,
        tiles=_tiles(dataset, contents),
        splits=SPLITS,
        sources=sorted({source for source, _ in contents.groups}),
        leads=_lead_rows(contents),
        lead_figures=LEAD_FIGURES,
        ppg_means={name.removeprefix("ppg_"): _share(contents.ppg_means[name]) for name in PPG_FIGURES},
        signal_charts=_signal_charts(contents),
        people_charts=_people_charts(contents, private=private),
        private=private,
        fewest=FEWEST_PEOPLE,
        flags=[(flag, count, _flag(flag)) for flag, count in _ranked(contents.flags)],
        accounts=_accounts(dataset),
        versions=_versions(dataset),
        pictures=_pictures(dataset, contents.examples),
    )


def _mark(contents: Contents) -> str:
    if contents.windows and contents.simulated == contents.windows:
        return "SYNTHETIC: every person in this dataset was simulated."
    return "Partly SYNTHETIC: some of these people were simulated." if contents.simulated else ""


def _tiles(dataset: Dataset, contents: Contents) -> list[tuple[str, str]]:
    size = sum(shard.bytes for shard in dataset.shards())
    windows = int(dataset.manifest["windows"])
    return [
        ("windows", f"{windows:,}"),
        ("hours, overlaps counted", f"{windows * WINDOW_S / 3600:,.1f}"),
        ("people", f"{sum(dataset.manifest['people'].values()):,}"),
        ("recordings" + (" looked at" if contents.sampled else ""), f"{sum(contents.recordings.values()):,}"),
        ("records in the archive", f"{dataset.manifest['records']:,}"),
        (f"MB, {size / max(windows, 1) / 1e3:.1f} kB a window", f"{size / 1e6:,.1f}"),
    ]


def _ranked(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def _flag(flag: str) -> str:
    name, _, signal = flag.partition(":")
    if name == "amplitude" and signal:
        return f"lead {signal} is off its usual size by a factor of five"
    return _FLAGS.get(name) or explain(name)


def _share(value: float) -> str:
    return "–" if not np.isfinite(value) else f"{value:.3f}"


def _lead_rows(contents: Contents) -> list[tuple[str, int, int, float, float, list[str]]]:
    """Give for each lead: name, windows recorded and completed, both as shares of all, means of its figures."""
    total = max(contents.windows, 1)
    return [
        (
            lead,
            int(contents.leads_recorded[k]),
            int(contents.leads_completed[k]),
            float(contents.leads_recorded[k]) / total,
            float(contents.leads_completed[k]) / total,
            [_share(float(contents.lead_means[name][k])) for name in LEAD_FIGURES],
        )
        for k, lead in enumerate(LEADS)
    ]


def _signal_charts(contents: Contents) -> list[Chart]:
    found = contents.histograms
    kinds = {"both": "ECG and PPG", "ecg": "ECG alone", "ppg": "PPG alone"}
    sure, unsure = found["delay_sure"], found["delay_unsure"]
    return [
        _lying("What windows hold", {kinds[kind]: contents.kinds[kind] for kind in kinds}),
        _upright("Quality of the PPG", found["ppg_quality"], "windows; 0 is noise, 1 clean"),
        _upright("Quality of the leads", found["lead_quality"], "recorded leads of windows; 0 is noise, 1 clean"),
        _upright("Heart rate, bpm", found["heart_rate_bpm"], "windows"),
        _upright("Delay from R peak to pulse, s", sure, f"recordings, confidence {SURE_DELAY} or more"),
        _upright("The same where it is unsure, s", unsure, f"recordings, confidence under {SURE_DELAY}, or no delay"),
    ]


def _people_charts(contents: Contents, *, private: bool) -> list[Chart]:
    """Draw what is known of people; groups that are too small are hidden where people are real."""
    found = contents.histograms
    charts = [
        _upright("Age, years", found["age_years"], "people; the last bar is 90 and over", private=private),
        _lying("Sex", {sex: contents.sex[sex] for sex in ("female", "male", "unknown")}, private=private),
        _upright("Height, cm", found["height_cm"], "people", private=private),
        _upright("Weight, kg", found["weight_kg"], "people", private=private),
    ]
    total = sum(contents.sex.values())
    missing = {name: found[key].missing for name, key in _MISSING.items()}
    missing = {"age": missing["age"], "sex": contents.sex["unknown"], **missing}
    told = {name: not private or not any(hidden([count, total - count])) for name, count in missing.items()}
    bars = [
        Bar(name, f"{count / max(total, 1):.0%}", count / max(total, 1))
        if told[name]
        else Bar(name, "nearly none" if count < total / 2 else "nearly all", 0.08, hidden=True)
        for name, count in missing.items()
    ]
    return [*charts, Chart("Not known", bars, "share of people")]


def hidden(counts: Sequence[int], fewest: int = FEWEST_PEOPLE) -> list[bool]:
    """Tell which counts of people are too small to be told.

    Where one alone is hidden, the total would give it away: the next smallest goes with it.

    Parameters
    ----------
    counts : sequence of int
    fewest : int
        The smallest count that is told; 0 always is.
    """
    small = [0 < count < fewest for count in counts]
    others = [k for k, count in enumerate(counts) if count and not small[k]]
    if sum(small) == 1 and others:
        small[min(others, key=lambda k: counts[k])] = True
    return small


def _lying(title: str, counts: Mapping[str, int], *, private: bool = False) -> Chart:
    return Chart(title, _bars(list(counts), list(counts.values()), private=private))


def _upright(title: str, found: Histogram, note: str, *, private: bool = False) -> Chart:
    labels = [f"{edge:g}" for edge in np.round(found.edges[:-1], 6)]
    told = not (private and any(hidden([found.missing, found.total])))
    if found.missing and told:
        note = f"{note}; {found.missing:,} unknown"
    bars = _bars(labels, found.counts.tolist(), private=private)
    ends = [f"{low:g} to {high:g}" for low, high in zip(found.edges[:-1], found.edges[1:], strict=True)]
    titled = [Bar(bar.label, bar.text, bar.length, bar.hidden, end) for bar, end in zip(bars, ends, strict=True)]
    return Chart(title, titled if found.total else [], note, upright=True)


def _bars(labels: Sequence[str], counts: Sequence[int], *, private: bool) -> list[Bar]:
    small = hidden(counts) if private else [False] * len(counts)
    largest = max((count for count, hide in zip(counts, small, strict=True) if not hide), default=0)
    # A hidden bar's length says nothing.
    return [
        Bar(label, f"<{FEWEST_PEOPLE}" if 0 < count < FEWEST_PEOPLE else "not told", 0.08, hidden=True)
        if hide
        else Bar(label, f"{count:,}", count / max(largest, 1))
        for label, count, hide in zip(labels, counts, small, strict=True)
    ]


@dataclass(frozen=True)
class _Accounts:
    """What became of all that was tried."""

    candidates: int
    kept: int
    rejected: int
    rows: list[tuple[str, str, int, str]]
    notes: list[tuple[str, int, str]]
    charts: list[Chart]

    @property
    def exact(self) -> bool:
        """Whether windows and rejected windows are all that was tried."""
        return self.candidates == self.kept + self.rejected


def _accounts(dataset: Dataset) -> _Accounts:
    table = dataset.quarantine()
    counts = _by_reason(table)
    rejected = sum(count for (what, _), count in counts.items() if what == "window")
    rows = [(what, reason, count, explain(reason)) for (what, reason), count in counts.items()]
    notes: Counter[str] = Counter()
    for part in dataset.manifest["parts"]:
        notes.update(part["notes"])
    kinds = sorted({what for what, _ in counts}, key=lambda what: (what != "window", what))
    charts = [
        _lying(
            "Changed and kept" if what == "change" else f"{what.capitalize()}s left out",
            {reason: n for (kind, reason), n in counts.items() if kind == what},
        )
        for what in kinds
    ]
    return _Accounts(
        candidates=int(dataset.manifest["candidates"]),
        kept=int(dataset.manifest["windows"]),
        rejected=rejected,
        rows=rows,
        notes=[(reason, count, explain(reason)) for reason, count in _ranked(notes)],
        charts=charts,
    )


def _by_reason(table: pa.Table) -> dict[tuple[str, str], int]:
    """Sum the quarantine table by what and reason, the most frequent first."""
    counts: Counter[tuple[str, str]] = Counter()
    columns = (table[name].to_pylist() for name in ("what", "reason", "count"))
    for what, reason, count in zip(*columns, strict=True):
        counts[what, reason] += count
    return dict(sorted(counts.items(), key=lambda item: (item[0][0], -item[1], item[0][1])))


def _versions(dataset: Dataset) -> list[Mapping[str, Any]]:
    """Give number, windows, people and hash of the versions, the newest first; removed ones by what is kept."""
    found = {body["number"]: {**body, "removed": True} for body in versions.remembered(dataset.url)}
    for number in versions.numbers(dataset.url):
        found[number] = {**versions.read(dataset.url, number), "removed": False}
    return [found[number] for number in sorted(found, reverse=True)]


def _pictures(dataset: Dataset, examples: Iterable[Example]) -> list[tuple[str, str, str]]:
    """Draw examples: (kind, caption, PNG in base64)."""
    return [(_KINDS[example.kind], *_picture(_window(dataset, example))) for example in examples]


def _window(dataset: Dataset, example: Example) -> Window:
    return decode(dataset.read(example.shard).slice(example.row, 1))[0]


def _picture(window: Window) -> tuple[str, str]:
    ecg = np.full((len(LEADS), 1280), np.nan, np.float32) if window.ecg is None else window.ecg.copy()
    ecg[~window.lead_mask] = np.nan
    ppg = None
    if window.ppg is not None and window.ppg_mask is not None:
        ppg = np.where(window.ppg_mask, window.ppg, np.nan)
    caption = _caption(window)
    figure = window_ecg(ecg, simulated=window.simulated, ppg=ppg, title=f"{window.source}, {window.split}")
    mark = FOOTER if window.simulated else RECORDED_FOOTER
    return caption, base64.b64encode(png(figure, _SHOWN_DPI, mark=mark)).decode()


def _caption(window: Window) -> str:
    """Say what the signals are worth; nothing of the person."""
    said = ["SYNTHETIC" if window.simulated else "recorded"]
    if window.heart_rate_bpm is not None:
        said.append(f"{window.heart_rate_bpm:.0f} bpm")
    if window.ppg_quality is not None:
        said.append(f"PPG quality {window.ppg_quality:.2f}")
    if window.lead_quality is not None and np.isfinite(window.lead_quality).any():
        low, high = np.nanmin(window.lead_quality), np.nanmax(window.lead_quality)
        said.append(f"lead quality {low:.2f} to {high:.2f}")
    if window.delay_s is not None and np.isfinite(window.delay_s):
        said.append(f"delay {window.delay_s:.3f} s (confidence {window.delay_confidence or 0:.2f})")
    if window.flags:
        said.append(f"flags: {', '.join(window.flags)}")
    return "; ".join(said)
