"""The report of an evaluation: one JSON that gates read, one HTML page that people read."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from p2es.evaluation.agreement import agreement
from p2es.evaluation.audit import REGRESSION, leakage_audit
from p2es.evaluation.calibration import calibration
from p2es.evaluation.columns import MODEL, comparable, of_system
from p2es.evaluation.counterfactual import PREFIX, counterfactual
from p2es.evaluation.ectopy import TITLES, ectopy_agreement
from p2es.evaluation.fairness import OPPORTUNITIES, fairness
from p2es.evaluation.goals import judge
from p2es.evaluation.memorisation import memorisation
from p2es.evaluation.morphology import morphology
from p2es.evaluation.page import Picture, render_html
from p2es.evaluation.realism import realism
from p2es.evaluation.rhythm import rhythm_agreement
from p2es.evaluation.summary import summarise
from p2es.evaluation.systems import OTHER_ECGS
from p2es.evaluation.verdict import verdict
from p2es.files import write_whole
from p2es.plot import FOOTER

__all__ = ["FORMAT", "MODEL", "VERSION", "Picture", "Source", "compose", "render_html", "write_html"]

FORMAT = "p2es-report"
VERSION = 3
GROUPED = (
    "r_f1_50ms_lag",
    "r_f1_150ms_lag",
    "hr_error_bpm",
    "rr_error_ms",
    "rmse_mv_mean",
    "beat_rmse_mv_sample",
    "coverage_90",
    "feature_crps",
)
"""Metrics that are given by group of people."""


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
    versions : mapping
        Of what measured: Python, libraries, this package and its commit.
    hashes : mapping
        Of what was measured on beside the dataset: predictions, the bank, the yardsticks' training windows.
    simulator : str
        Version of the simulator that made the test people; empty for recorded ones.
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
    versions: Mapping[str, str] = field(default_factory=dict)
    hashes: Mapping[str, str] = field(default_factory=dict)
    simulator: str = ""


def compose(
    rows: pa.Table,
    bank: pa.Table | None,
    source: Source,
    *,
    mandatory: Sequence[str],
    bootstrap: int,
    seed: int,
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Turn rows of `measure` into the report.

    Parameters
    ----------
    rows : pyarrow.Table
        Of the system `model`, of its yardsticks and controls, and of the internal systems (`members`,
        `counterfactual:*`), which serve a computation and are in no table.
    bank : pyarrow.Table or None
        `describe` of training windows; without it nothing is said of realism and memorised ECGs.
    source : Source
    mandatory : sequence of str
        Names of the goals the recipe asks for.
    bootstrap, seed : int
        Draws over people, and their seed.
    extra : mapping, optional
        Figures that are not of these rows, such as `delineator_check`.

    Returns
    -------
    dict
        `format`, `version`, `synthetic`, `recipe`, `dataset`, `model`, `lineage`, `settings`, `versions`, `hashes`;
        `figures` (of the model), `controls` (the same of every other system), `contrasts`; the parts `agreement`,
        `morphology`, `rhythm`, `ectopy`, `calibration`, `realism`, `memorisation`, `fairness`, `counterfactual`,
        `audit`, empty where what they need is not there, with the reason in `not_measured`; `extra`, `mandatory`,
        `goals`, `verdict`. Plain JSON, None where a figure is not defined.
    """
    shown = rows.filter(pc.is_in(rows["system"], value_set=pa.array(comparable(rows), pa.string())))
    summary = summarise(shown, model=MODEL, bootstrap=bootstrap, seed=seed)
    mine = shown.filter(pc.equal(shown["system"], MODEL))
    parts, not_measured = _parts(rows, bank, bootstrap, seed)
    report: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "synthetic": FOOTER,
        **_told(source, mine, shown),
        "figures": summary.figures[MODEL],
        "controls": {name: figures for name, figures in summary.figures.items() if name != MODEL},
        "contrasts": summary.contrasts,
        **parts,
        "not_measured": not_measured,
        "extra": dict(extra or {}),
        "mandatory": list(mandatory),
    }
    report = plain(report)
    report["goals"] = judge(report)
    report["verdict"] = verdict(report)
    return report


def _told(source: Source, mine: pa.Table, shown: pa.Table) -> dict[str, Any]:
    """Say what was measured, and on whom."""
    return {
        "recipe": source.recipe,
        "dataset": {
            "hash": source.dataset_hash,
            "split": source.split,
            "people": len(set(mine["person"].to_pylist())),
            "windows": mine.num_rows,
            "simulated": source.simulated,
            "simulator": source.simulator,
            "left_out": source.left_out,
            "refused": dict(source.refused),
            "other_ecg": _other_ecg(mine, shown),
        },
        "model": {"sha256": source.model_sha256, "name": source.model_name},
        "lineage": dict(source.lineage),
        "settings": dict(source.settings),
        "versions": dict(source.versions),
        "hashes": dict(source.hashes),
    }


def _other_ecg(mine: pa.Table, shown: pa.Table) -> dict[str, int]:
    """Count the windows whose floor is another recording, the same one, or none; empty where there is no floor."""
    there = set(mine["window_id"].to_pylist())
    windows = {name: there & set(of_system(shown, name)["window_id"].to_pylist()) for name in OTHER_ECGS}
    if not any(windows.values()):
        return {}
    counts = {name: len(found) for name, found in windows.items()}
    return counts | {"none": len(there.difference(*windows.values()))}


def _parts(rows: pa.Table, bank: pa.Table | None, bootstrap: int, seed: int) -> tuple[dict[str, Any], dict[str, str]]:
    """Compute the parts of the report; and say why each that is empty is."""
    options: dict[str, Any] = {"bootstrap": bootstrap, "seed": seed}
    there = set(rows["system"].to_pylist())
    no_bank = "" if bank is not None and bank.num_rows else "no training windows were given to compare with"
    members = rows.filter(pc.equal(rows["system"], "members"))
    changed = any(name.startswith(PREFIX) for name in there)
    plan: dict[str, tuple[str, Callable[[], Any]]] = {
        "agreement": ("", lambda: agreement(rows, **options)),
        "morphology": ("", lambda: morphology(rows, **options)),
        "rhythm": ("", lambda: rhythm_agreement(rows, **options)),
        "ectopy": ("", lambda: ectopy_agreement(rows, **options)),
        "calibration": ("", lambda: calibration(rows, **options)),
        "realism": (no_bank, lambda: realism(rows, bank, **options)),
        "memorisation": (no_bank, lambda: memorisation(rows, bank, members if members.num_rows else None, **options)),
        "fairness": ("", lambda: fairness(rows, metrics=GROUPED, **options)),
        "counterfactual": (
            "" if changed else "nothing was drawn with a changed demographic",
            lambda: counterfactual(rows, **options),
        ),
        "audit": (
            "" if REGRESSION in there else "there is no regression on demographics to compare with",
            lambda: leakage_audit(rows, **options),
        ),
    }
    empty: dict[str, Any] = {"counterfactual": []}
    parts = {name: empty.get(name, {}) if reason else make() for name, (reason, make) in plan.items()}
    reasons = {name: reason for name, (reason, _) in plan.items() if reason}
    reasons |= _nothing_to_find(parts)
    if not no_bank and not members.num_rows:
        reasons["membership"] = "nothing was drawn for people of the training set"
    return parts, reasons


def _nothing_to_find(parts: Mapping[str, Any]) -> dict[str, str]:
    """Say of which beats no recording holds any, and which findings too few people have to compare groups."""
    kinds = parts["ectopy"].get(MODEL, {})
    reasons = {
        TITLES[kind].lower(): "nothing to find, no recording holds one" for kind, of in kinds.items() if not of["beats"]
    }
    missing = [
        title
        for finding, title in OPPORTUNITIES.items()
        if all(group["opportunity"][finding]["gap"]["value"] is None for group in parts["fairness"].values())
    ]
    if missing:
        reasons["equal opportunity"] = f"too few people in any two groups have it ({'; '.join(missing).lower()})"
    return reasons


def plain(value: Any) -> Any:
    """Turn a value into plain JSON: texts, numbers, lists and mappings; None for NaN and infinity."""
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, str | bool | int) else str(value)


def write_html(report: Mapping[str, Any], pictures: Sequence[Picture], path: Path) -> None:
    """Write `render_html` to a file, whole or not at all."""
    write_whole(path, render_html(report, pictures).encode())
