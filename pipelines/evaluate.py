"""Measure a system on unseen people, beside the yardsticks and controls that could refute it.

The system is a model, a yardstick in its place, or another system's predictions. The PPG is taken as it is stored,
never aligned by the test ECG.
"""

import json
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from p2es import plot
from p2es.baselines.intervals import IntervalRegression
from p2es.errors import ConfigError, DatasetError
from p2es.evaluation import pictures as charts
from p2es.evaluation.delineator_check import delineator_check
from p2es.evaluation.exchange import Answers, translation_of
from p2es.evaluation.report import Picture, Source, compose, render_html
from p2es.model import P2Es, spread_over_people
from p2es.signals import pulse_rhythm
from p2es.simulator import VERSION as SIMULATOR_VERSION
from p2es.translator import Translation, Translator
from p2es.windows import FS_HZ, WindowBatch, WindowStore
from p2es_platform import storage
from p2es_platform.dataset import Dataset
from p2es_platform.registry import folder_sha256
from p2es_platform.settings import Settings
from pipelines import foreign
from pipelines.measuring import Drawing, Measured, describe_all, draw, measure_all
from pipelines.recipes import YARDSTICKS, Recipe, fingerprint
from pipelines.trials import MODEL, Trial, fitted, trials

SPLIT = "test"
BANK = "train"
# Part of the fingerprint: a change of what is measured must not reuse an old report.
_MEASURES = 3
_WORST = 3
_CHECKED_PEOPLE = 20


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
class Candidate:
    """What is evaluated: something that draws, or what another system drew.

    Attributes
    ----------
    name, sha256 : str
    translator : callable or None
        Makes the translator from the training windows.
    answers : Answers or None
    """

    name: str
    sha256: str
    translator: Callable[[WindowStore], Translator] | None = None
    answers: Answers | None = None


def of_model(folder: str | Path) -> Candidate:
    """Evaluate a trained model, as `P2Es.save` wrote it; ModelError when it cannot be read."""
    model = P2Es.load(Path(folder))
    return Candidate(model.name, folder_sha256(Path(folder)), translator=lambda _: model)


def of_yardstick(name: str) -> Candidate:
    """Evaluate a yardstick in the model's place; ConfigError when there is none of this name that draws by itself."""
    alone = [known for known in YARDSTICKS if known != "other_segment"]
    if name not in alone:
        raise ConfigError(f"there is no yardstick {name!r} that draws from a PPG: choose one of {', '.join(alone)}")
    return Candidate(name, fingerprint("yardstick", name), translator=lambda train: fitted((name,), train)[name])


def of_predictions(path: str | Path) -> Candidate:
    """Evaluate the predictions of another system; InputError when they cannot be read."""
    answers = foreign.read(Path(path))
    return Candidate(answers.name, answers.sha256, answers=answers)


def run(
    recipe: Recipe, settings: Settings, *, candidate: Candidate, dataset_url: str, lineage: Mapping[str, Any]
) -> EvaluateResult:
    """Evaluate, or reuse the report of the same system, data and configuration. Runs over Ray where it was started.

    Parameters
    ----------
    recipe : Recipe
    settings : Settings
    candidate : Candidate
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
        When no test window has both PPG and ECG, or one person has most of them, or the system refuses every window.
    InputError
        When predictions answer nothing that was asked, or something that was not.
    """
    dataset = Dataset.open(dataset_url)
    key = fingerprint(
        _MEASURES, recipe.name, recipe.evaluate, recipe.gate, recipe.serve.evaluations, dataset.hash, candidate.sha256
    )
    folder = settings.path("reports", key)
    report_json, report_html = f"{folder}/report.json", f"{folder}/report.html"
    if storage.exists(report_json):
        return EvaluateResult(json.loads(storage.read_bytes(report_json)), report_json, report_html, reused=True)
    plan = _planned(dataset, recipe)
    measured, drawing = _measured(candidate, plan, recipe)
    bank = describe_all(_bank_windows(plan.train, recipe), system=BANK)
    mine = measured.rows.filter(pc.equal(measured.rows["system"], MODEL))
    if not mine.num_rows:
        raise DatasetError("the PPG of every test window was refused: check the quality of the PPG")
    regression = IntervalRegression().fit(bank).rows(mine, _pulse_rates(plan.trials[0], mine))
    rows = pa.concat_tables([measured.rows, regression])
    source = Source(
        recipe=recipe.name,
        dataset_hash=dataset.hash,
        split=SPLIT,
        simulated=plan.simulated,
        model_sha256=candidate.sha256,
        model_name=candidate.name,
        lineage=lineage,
        settings=_settings_shown(recipe),
        refused=measured.refused,
        left_out=plan.left_out,
        versions=_versions(),
        hashes=_hashes(candidate, plan, bank),
        simulator=str(SIMULATOR_VERSION) if plan.simulated else "",
    )
    report = compose(
        rows,
        bank,
        source,
        mandatory=recipe.gate.mandatory,
        bootstrap=recipe.evaluate.bootstrap,
        seed=recipe.evaluate.seed,
        extra={"delineator_check": delineator_check(_CHECKED_PEOPLE, recipe.evaluate.seed)},
    )
    examples = _examples(plan.trials[0], mine, candidate, drawing, recipe)
    _write(folder, report, rows, [*examples, *charts.draw(report, rows)])
    return EvaluateResult(report, report_json, report_html, reused=False)


def write_requests(recipe: Recipe, *, dataset_url: str, path: Path) -> int:
    """Write what another system is asked under this recipe; give the number of requests.

    Raises
    ------
    DatasetError
        As of `run`.
    """
    plan = _planned(Dataset.open(dataset_url), recipe)
    return foreign.write(_asked(plan), path, recipe.evaluate.seed)


@dataclass(frozen=True)
class _Plan:
    """The trials over one dataset, the model's own first."""

    trials: tuple[Trial, ...]
    train: WindowStore
    simulated: bool
    left_out: int


def _planned(dataset: Dataset, recipe: Recipe) -> _Plan:
    """Choose test windows that have PPG and ECG, evenly over people, and count those that have not."""
    store: WindowStore = dataset.store(SPLIT, channels=recipe.network.ppg_channels)
    train: WindowStore = dataset.store("train", channels=recipe.network.ppg_channels)
    usable = np.flatnonzero(store.rest.lead_mask.any(axis=1) & store.rest.ppg_mask.any(axis=1))
    if usable.size == 0:
        raise DatasetError("no test window has both PPG and ECG: add such recordings, or raise ingest.test-share")
    chosen = store.batch(usable[spread_over_people(store.person[usable], recipe.evaluate.max_windows)])
    simulated = all(pc.all(table["simulated"]).as_py() for table in dataset.read_windows(SPLIT, columns=["simulated"]))
    made = tuple(trials(chosen, store, train, recipe.evaluate, simulated=simulated))
    return _Plan(made, train, simulated, len(store) - usable.size)


def _asked(plan: _Plan) -> list[Trial]:
    """Give the trials that are put to the system itself."""
    return [trial for trial in plan.trials if trial.by == MODEL]


def _measured(candidate: Candidate, plan: _Plan, recipe: Recipe) -> tuple[Measured, Drawing]:
    """Measure the candidate, the yardsticks and the controls."""
    others = tuple(dict.fromkeys(trial.by for trial in plan.trials if trial.by != MODEL))
    translators = fitted(others, plan.train)
    if candidate.translator is not None:
        translators[MODEL] = candidate.translator(plan.train)
    drawing = Drawing(translators, recipe.serve.evaluations, recipe.evaluate.seed)
    gpus = recipe.evaluate.gpus_per_task
    if candidate.answers is None:
        return measure_all(plan.trials, drawing, gpus=gpus), drawing
    answered = foreign.measure_answers(candidate.answers, _asked(plan), recipe.evaluate.seed)
    rest = measure_all([trial for trial in plan.trials if trial.by != MODEL], drawing)
    return Measured(pa.concat_tables([answered.rows, rest.rows]), answered.refused | rest.refused), drawing


def _bank_windows(train: WindowStore, recipe: Recipe) -> WindowBatch:
    usable = np.flatnonzero(train.rest.lead_mask.any(axis=1))
    return train.batch(usable[spread_over_people(train.person[usable], recipe.evaluate.bank_windows)])


def _pulse_rates(trial: Trial, rows: pa.Table) -> NDArray[np.float64]:
    """Give the heart rate that the pulse of each row's window tells."""
    numbers = {str(window): k for k, window in enumerate(trial.truth.window_id)}
    batch = trial.truth.take([numbers[window] for window in rows["window_id"].to_pylist()])
    return np.array([pulse_rhythm(ppg, mask, FS_HZ)[0] for ppg, mask in zip(batch.ppg, batch.ppg_mask, strict=True)])


def _settings_shown(recipe: Recipe) -> dict[str, Any]:
    config = recipe.evaluate
    return {
        "samples a window": config.samples,
        "samples a window of the controls": config.control_samples,
        "windows with one demographic changed": config.counterfactual_windows,
        "training windows drawn once": config.member_windows,
        "training windows described": config.bank_windows,
        "network evaluations a sample": recipe.serve.evaluations,
        "bootstrap draws over people": config.bootstrap,
        "seed": config.seed,
    }


def _versions() -> dict[str, str]:
    """Say what measured, so that a figure can be made again."""
    packages = ("p2es", "torch", "numpy", "scipy", "scikit-learn", "ray")
    return {"python": platform.python_version()} | {name: metadata.version(name) for name in packages}


def _hashes(candidate: Candidate, plan: _Plan, bank: pa.Table) -> dict[str, str]:
    """Name the windows that were measured on, and those that yardsticks and comparisons know."""
    found = {
        "test windows": fingerprint(sorted(plan.trials[0].truth.window_id.tolist())),
        "training windows described": fingerprint(sorted(bank["window_id"].to_pylist())),
        "training split": fingerprint(sorted(plan.train.rest.window_id.tolist())),
    }
    return found | ({} if candidate.answers is None else {"predictions": candidate.answers.sha256})


def _examples(trial: Trial, mine: pa.Table, candidate: Candidate, drawing: Drawing, recipe: Recipe) -> list[Picture]:
    """Draw the window of median error and the worst ones, chosen by rule and not by eye."""
    error = mine["rmse_mv_sample_lag"].to_numpy()
    finite = np.flatnonzero(np.isfinite(error))
    order = finite[np.argsort(error[finite], kind="stable")]
    if order.size == 0:
        return []
    chosen = {"ecg": order[len(order) // 2]}
    chosen |= {f"worst_{k + 1}": row for k, row in enumerate(order[::-1][:_WORST])}
    ids = mine["window_id"].to_pylist()
    pictures = []
    for name, row in chosen.items():
        number = np.flatnonzero(trial.truth.window_id == ids[row])
        drawn = _drawn_again(trial, number, candidate, drawing, recipe)
        if drawn is not None:
            pictures += _paper(name, float(error[row]), trial.truth.take(number), drawn)
    return pictures


def _drawn_again(
    trial: Trial, number: Any, candidate: Candidate, drawing: Drawing, recipe: Recipe
) -> Translation | None:
    if candidate.answers is None:
        return draw(drawing, trial.take(number), number)[0]
    found = foreign.answer_of(candidate.answers, trial, int(number[0]), recipe.evaluate.seed)
    return None if found is None else translation_of(found)


def _paper(name: str, error_mv: float, window: WindowBatch, drawn: Translation) -> list[Picture]:
    recorded = np.where(window.lead_mask[0][:, None], window.ecg_mv[0], np.float32(np.nan))
    which = "the window of median error" if name == "ecg" else f"worst case {name.removeprefix('worst_')}"
    rank = f"{which}, {error_mv:.2f} mV"
    inputs: dict[str, Any] = {"band_mv": drawn.band_mv, "ppg": window.ppg[0]}
    whole = plot.paper_ecg(
        drawn.ecg_mv[0], reference_mv=recorded, title=f"One sample and the recording: {rank}", **inputs
    )
    lead = plot.lead_comparison(drawn.ecg_mv[0], recorded, title=f"Lead II: {rank}", **inputs)
    return [
        Picture(name, f"One sample with the 90 % band, and the recording: {rank}.", plot.png(whole)),
        Picture(f"{name}_lead_ii", f"Lead II as recorded and as generated: {rank}.", plot.png(lead)),
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
