"""Measure a model on unseen people, beside the controls that could refute it.

Plain local torch in this version: the sampling is not spread over Ray. The PPG is taken as it is stored,
never aligned by the test ECG.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from tqdm import tqdm

from p2es import plot
from p2es.baselines.common import BaselineConfig
from p2es.baselines.mean_waveform import MeanWaveform
from p2es.baselines.template import Template
from p2es.demographics import Demographics
from p2es.errors import DatasetError, InputError
from p2es.evaluation.controls import other_person
from p2es.evaluation.measure import measure
from p2es.evaluation.pictures import Picture, draw
from p2es.evaluation.report import MODEL, Source, compose, render_html
from p2es.model import P2Es, spread_over_people
from p2es.translator import Translation, Translator
from p2es.windows import FS_HZ, WindowBatch, WindowStore
from p2es_platform import storage
from p2es_platform.dataset import Dataset
from p2es_platform.registry import folder_sha256
from p2es_platform.settings import Settings
from pipelines.recipes import Recipe, fingerprint
from pipelines.threads import all_cores

SPLIT = "test"
# Part of the fingerprint: a change of what is measured must not reuse an old report.
_MEASURES = 2
_BATCH = 8
# The shuffled control is judged on timing and on one sample; twenty would cost as much as the model itself.
_SHUFFLED_SAMPLES = 1


@dataclass(frozen=True)
class EvaluateResult:
    """What `run` gives.

    Attributes
    ----------
    report : dict
        See `p2es.evaluation.report.compose`.
    report_json, report_html : str
        Where they lie.
    reused : bool
        Whether the same model was measured the same way before.
    """

    report: dict[str, Any]
    report_json: str
    report_html: str
    reused: bool


@dataclass(frozen=True)
class System:
    """One thing to measure: a translator, the PPG it is given, and how often it draws."""

    name: str
    translator: Translator
    ppg: NDArray[np.float32]
    samples: int


def run(
    recipe: Recipe,
    settings: Settings,
    *,
    model_folder: str | Path,
    dataset_url: str,
    lineage: Mapping[str, Any],
) -> EvaluateResult:
    """Evaluate a model, or reuse the report of the same model, data and configuration.

    Parameters
    ----------
    recipe : Recipe
    settings : Settings
    model_folder : path
        As `P2Es.save` wrote it.
    dataset_url : str
        Its `test` split is measured on; the yardsticks are fitted on its `train` split.
    lineage : mapping
        Where the model comes from; printed in the report.

    Returns
    -------
    EvaluateResult

    Raises
    ------
    DatasetError
        When no test window has both PPG and ECG, or one person has most of them.
    ModelError
        When the model cannot be read.
    """
    dataset = Dataset.open(dataset_url)
    sha256 = folder_sha256(Path(model_folder))
    key = fingerprint(
        _MEASURES, recipe.name, recipe.evaluate, recipe.gate, recipe.serve.evaluations, dataset.hash, sha256
    )
    folder = settings.path("reports", key)
    report_json, report_html = f"{folder}/report.json", f"{folder}/report.html"
    if storage.exists(report_json):
        return EvaluateResult(json.loads(storage.read_bytes(report_json)), report_json, report_html, reused=True)
    model = P2Es.load(Path(model_folder))
    batch, left_out = _test_windows(dataset, recipe)
    systems = _systems(recipe, model, batch, dataset)
    with all_cores():
        rows, refused = _measure_all(systems, batch, recipe)
    source = Source(
        recipe=recipe.name,
        dataset_hash=dataset.hash,
        split=SPLIT,
        simulated=_all_simulated(dataset),
        model_sha256=sha256,
        model_name=model.name,
        lineage=lineage,
        settings=_settings_shown(recipe),
        refused=refused,
        left_out=left_out,
    )
    report = compose(
        rows,
        None,
        source,
        mandatory=recipe.gate.mandatory,
        bootstrap=recipe.evaluate.bootstrap,
        seed=recipe.evaluate.seed,
    )
    pictures = [*_examples(systems[0], batch, rows, recipe), *draw(report, rows)]
    _write(folder, report, rows, pictures)
    return EvaluateResult(report, report_json, report_html, reused=False)


def _test_windows(dataset: Dataset, recipe: Recipe) -> tuple[WindowBatch, int]:
    """Take test windows that have PPG and ECG, evenly over people; and count those that have not."""
    store: WindowStore = dataset.store(SPLIT, channels=recipe.network.ppg_channels)
    usable = np.flatnonzero(store.rest.lead_mask.any(axis=1) & store.rest.ppg_mask.any(axis=1))
    if usable.size == 0:
        raise DatasetError("no test window has both PPG and ECG: add such recordings, or raise ingest.test-share")
    chosen = usable[spread_over_people(store.person[usable], recipe.evaluate.max_windows)]
    return store.batch(chosen), len(store) - usable.size


def _systems(recipe: Recipe, model: P2Es, batch: WindowBatch, dataset: Dataset) -> list[System]:
    config = BaselineConfig()
    train: WindowStore = dataset.store("train", channels=1)
    yardsticks: tuple[Translator, ...] = (Template().fit(train, config), MeanWaveform().fit(train, config))
    # What was not recorded is NaN to a translator, zero in a batch.
    ppg = np.where(batch.ppg_mask[:, None], batch.ppg, np.float32(np.nan))
    samples = recipe.evaluate.samples
    others = ppg[other_person(batch.person, recipe.evaluate.seed)]
    return [
        System(MODEL, model, ppg, samples),
        System("template", yardsticks[0], ppg, samples),
        System("shuffled_ppg", model, others, _SHUFFLED_SAMPLES),
        System("mean_waveform", yardsticks[1], ppg, samples),
    ]


def _measure_all(systems: Sequence[System], batch: WindowBatch, recipe: Recipe) -> tuple[pa.Table, dict[str, int]]:
    """Measure every system; and count the windows each refused."""
    tables, refused = [], {}
    with tqdm(total=len(systems) * len(batch), desc="evaluate", unit="window", disable=None) as bar:
        for system in systems:
            kept = 0
            for rows, drawn in _translations(system, batch, recipe):
                good = [k for k, translation in enumerate(drawn) if translation is not None]
                found = [translation for translation in drawn if translation is not None]
                tables.append(measure(batch.take(rows[good]), found, system=system.name))
                kept += len(good)
                bar.update(len(rows))
            refused[system.name] = len(batch) - kept
    if refused[MODEL] == len(batch):
        raise DatasetError("the model refused the PPG of every test window: check the quality of the PPG")
    return pa.concat_tables(tables), refused


def _translations(
    system: System, batch: WindowBatch, recipe: Recipe
) -> Iterator[tuple[NDArray[np.int64], list[Translation | None]]]:
    """Translate a few windows at a time; None where the PPG is refused."""
    for start in range(0, len(batch), _BATCH):
        rows = np.arange(start, min(start + _BATCH, len(batch)))
        try:
            yield rows, list(_translate(system, batch, rows, recipe))
        except InputError:
            # One poor window must not take its neighbours with it.
            yield rows, [_translate_one(system, batch, row, recipe) for row in rows]


def _translate(system: System, batch: WindowBatch, rows: NDArray[np.int64], recipe: Recipe) -> list[Translation]:
    return system.translator.sample(
        system.ppg[rows],
        [Demographics.from_array(person) for person in batch.people[rows]],
        fs_hz=FS_HZ,
        samples=system.samples,
        evaluations=recipe.serve.evaluations,
        seeds=[recipe.evaluate.seed * 1_000_000 + int(row) for row in rows],
    )


def _translate_one(system: System, batch: WindowBatch, row: np.int64, recipe: Recipe) -> Translation | None:
    try:
        return _translate(system, batch, np.array([row]), recipe)[0]
    except InputError:
        return None


def _all_simulated(dataset: Dataset) -> bool:
    return all(pc.all(table["simulated"]).as_py() for table in dataset.read_windows(SPLIT, columns=["simulated"]))


def _settings_shown(recipe: Recipe) -> dict[str, Any]:
    config = recipe.evaluate
    return {
        "samples a window": config.samples,
        "samples a window with another person's PPG": _SHUFFLED_SAMPLES,
        "network evaluations a sample": recipe.serve.evaluations,
        "bootstrap draws over people": config.bootstrap,
        "seed": config.seed,
    }


def _examples(model: System, batch: WindowBatch, rows: pa.Table, recipe: Recipe) -> list[Picture]:
    """Draw the window of median error and one near the worst, chosen by rule and not by eye."""
    mine = rows.filter(pc.equal(rows["system"], MODEL))
    error = mine["rmse_mv_sample_lag"].to_numpy()
    ids = np.array(mine["window_id"].to_pylist())[np.argsort(error)]
    ids = ids[: max(int(np.isfinite(error).sum()), 1)]
    pictures = []
    for name, share in (("median", 0.5), ("poor", 0.95)):
        chosen = ids[int(share * (len(ids) - 1))]
        row = np.flatnonzero(batch.window_id == chosen)
        drawn = _translate(replace(model, samples=recipe.evaluate.samples), batch, row, recipe)[0]
        pictures += _paper(name, share, batch.take(row), drawn)
    return pictures


def _paper(name: str, share: float, window: WindowBatch, drawn: Translation) -> list[Picture]:
    recorded = np.where(window.lead_mask[0][:, None], window.ecg_mv[0], np.float32(np.nan))
    rank = f"the window at {share:.0%} of the error of one sample, from best to worst"
    inputs: dict[str, Any] = {"band_mv": drawn.band_mv, "ppg": window.ppg[0]}
    whole = plot.paper_ecg(
        drawn.ecg_mv[0], reference_mv=recorded, title=f"One sample and the recording: {rank}", **inputs
    )
    lead = plot.lead_comparison(drawn.ecg_mv[0], recorded, title=f"Lead II: {rank}", **inputs)
    return [
        Picture(f"ecg_{name}", f"One sample with the 90 % band, and the recording: {rank}.", plot.png(whole)),
        Picture(f"lead_ii_{name}", f"Lead II as recorded and as generated: {rank}.", plot.png(lead)),
    ]


def _write(folder: str, report: Mapping[str, Any], rows: pa.Table, pictures: Sequence[Picture]) -> None:
    """Write everything, report.json last: where it is, the rest is whole."""
    sink = pa.BufferOutputStream()
    pq.write_table(rows, sink, compression="zstd")
    storage.write_atomic(f"{folder}/rows.parquet", sink.getvalue().to_pybytes())
    for picture in pictures:
        storage.write_atomic(f"{folder}/figures/{picture.name}.png", picture.png)
    storage.write_atomic(f"{folder}/report.html", render_html(report, pictures).encode())
    # NaN is no JSON; a figure that is not defined must have become None by now.
    text = json.dumps(report, indent=1, allow_nan=False, default=str)
    storage.write_atomic(f"{folder}/report.json", text.encode())
