"""The report of an evaluation: one JSON that gates read, one HTML page that people read."""

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import pyarrow as pa

from p2es.evaluation.charts import name_of
from p2es.evaluation.goals import judge
from p2es.evaluation.metrics import METRICS
from p2es.evaluation.summary import summarise
from p2es.files import write_whole
from p2es.plot import FOOTER

FORMAT = "p2es-report"
VERSION = 1
MODEL = "model"


@dataclass(frozen=True)
class Source:
    """What the figures of a report are of.

    Attributes
    ----------
    recipe : str
    dataset_hash, split : str
    simulated : bool
        Whether every test window was simulated: then nothing is shown for real people.
    model_sha256, model_name : str
    lineage : mapping
        Run, commit, recipe fingerprint: whatever tells where the model comes from.
    settings : mapping
        Samples, evaluations, seed, bootstrap.
    refused : mapping of system to number
        Windows a system would not translate, such as poor PPG; they are in no figure.
    left_out : int
        Test windows without PPG or ECG.
    """

    recipe: str
    dataset_hash: str
    split: str
    simulated: bool
    model_sha256: str
    model_name: str
    lineage: Mapping[str, Any]
    settings: Mapping[str, Any]
    refused: Mapping[str, int]
    left_out: int


@dataclass(frozen=True)
class Picture:
    """A figure of the page: PNG bytes, its name and what it shows."""

    name: str
    caption: str
    png: bytes


def compose(rows: pa.Table, source: Source, *, mandatory: Sequence[str], bootstrap: int, seed: int) -> dict[str, Any]:
    """Turn rows of `measure` into the report.

    Parameters
    ----------
    rows : pyarrow.Table
        Of the system `model` and of its controls.
    source : Source
    mandatory : sequence of str
        Names of the goals the recipe asks for.
    bootstrap, seed : int
        See `summary.summarise`.

    Returns
    -------
    dict
        `format`, `version`, `recipe`, `dataset`, `model`, `lineage`, `settings`, `figures` (of the model),
        `controls`, `contrasts`, `goals`, `mandatory`, `synthetic`; plain JSON, None where a figure is not
        defined.
    """
    summary = summarise(rows, model=MODEL, bootstrap=bootstrap, seed=seed)
    mine = rows.filter(pa.compute.equal(rows["system"], MODEL))
    report: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "synthetic": FOOTER,
        "recipe": source.recipe,
        "dataset": {
            "hash": source.dataset_hash,
            "split": source.split,
            "people": len(set(mine["person"].to_pylist())),
            "windows": mine.num_rows,
            "simulated": source.simulated,
            "left_out": source.left_out,
            "refused": dict(source.refused),
        },
        "model": {"sha256": source.model_sha256, "name": source.model_name},
        "lineage": dict(source.lineage),
        "settings": dict(source.settings),
        "figures": summary.figures[MODEL],
        "controls": {name: figures for name, figures in summary.figures.items() if name != MODEL},
        "contrasts": summary.contrasts,
        "mandatory": list(mandatory),
    }
    report["goals"] = judge(report)
    return report


def render_html(report: Mapping[str, Any], pictures: Sequence[Picture]) -> str:
    """Render one page that needs nothing else: style and pictures are inside.

    Parameters
    ----------
    report : mapping
        From `compose`.
    pictures : sequence of Picture

    Returns
    -------
    str
    """
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"figure": _show, "number": _number}
    text = resources.files(__package__).joinpath("report.html.jinja").read_text(encoding="utf-8")
    systems = {MODEL: report["figures"]} | dict(report["controls"])
    met = {goal["name"] for goal in report["goals"] if goal["passed"]}
    return environment.from_string(text).render(
        report=report,
        metrics=[asdict(metric) for metric in METRICS],
        systems={name: {"title": name_of(name), "figures": figures} for name, figures in systems.items()},
        pictures=[(p.name, p.caption, base64.b64encode(p.png).decode()) for p in pictures],
        missed_mandatory=[name for name in report["mandatory"] if name not in met],
        met=met,
    )


def write_html(report: Mapping[str, Any], pictures: Sequence[Picture], path: Path) -> None:
    """Write `render_html` to a file, whole or not at all."""
    write_whole(path, render_html(report, pictures).encode())


def _number(value: float | None) -> str:
    """Show a number with three digits that matter; a dash where there is none."""
    if value is None or not math.isfinite(value):
        return "–"
    if value != 0 and abs(value) < 1e-3:
        return f"{value:.1e}"
    digits = 3 if abs(value) < 10 else 1
    return f"{value:.{digits}f}"


def _show(figure: Mapping[str, Any]) -> str:
    """Show a figure with its interval."""
    value, low, high = (figure[key] for key in ("value", "low", "high"))
    if value is None or low is None or high is None or low == high:
        return _number(value)
    return f"{_number(value)} [{_number(low)}, {_number(high)}]"
