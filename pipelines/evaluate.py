"""Measure a system on unseen people, beside the yardsticks and controls that could refute it.

The system is a model, a yardstick in its place, or another system's predictions. The PPG is taken as it is stored,
never aligned by the test ECG. The driver knows which windows there are and reads none but those that yardsticks are
fitted to; tasks read theirs and write their rows (`measuring`), and a run that was stopped finds those. To sum up, all
rows are read at once.
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
from numpy.typing import NDArray

from p2es import plot
from p2es.baselines.intervals import IntervalRegression
from p2es.errors import ConfigError, DatasetError
from p2es.evaluation import pictures as charts
from p2es.evaluation.delineator_check import delineator_check
from p2es.evaluation.exchange import Answers, translation_of
from p2es.evaluation.report import Picture, Source, compose, render_html
from p2es.model import P2Es, spread_over_people
from p2es.simulator import VERSION as SIMULATOR_VERSION
from p2es.tables import WindowList
from p2es.translator import Translation, Translator
from p2es.windows import WindowBatch, WindowStore
from p2es_platform import storage
from p2es_platform.dataset import Dataset
from p2es_platform.registry import folder_sha256
from p2es_platform.settings import Settings
from pipelines import foreign
from pipelines.measuring import Drawing, Measured, describe_all, draw, measure_all, pulse_rates, write_rows
from pipelines.recipes import YARDSTICKS, Recipe, fingerprint
from pipelines.trials import MODEL, TEST, TRAIN, Inputs, Trial, Windows, fitted, read, trials, yardstick_windows

# Part of the fingerprint: a change of what is measured, or of the files of rows, must not reuse what is there.
_MEASURES = 4
ROWS = "rows"
"""Folder of a report's rows: Parquet files, one table together."""
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
    answers = foreign.read_file(Path(path))
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
        _MEASURES, recipe.name, recipe.evaluate, recipe.gate, recipe.serve.evaluations, recipe.network.ppg_channels,
        dataset.hash, candidate.sha256,
    )  # fmt: skip
    folder = settings.path("reports", key)
    report_json, report_html = f"{folder}/report.json", f"{folder}/report.html"
    if storage.exists(report_json):
        return EvaluateResult(json.loads(storage.read_bytes(report_json)), report_json, report_html, reused=True)
    plan = _planned(dataset, recipe)
    drawing = _drawing(candidate, plan, recipe)
    measured = _measured(candidate, plan, drawing, recipe, f"{folder}/{ROWS}")
    bank = describe_all(plan.bank, plan.windows, split=TRAIN, system=TRAIN)
    rows = measured.rows()
    mine = rows.filter(pc.equal(rows["system"], MODEL))
    if not mine.num_rows:
        raise DatasetError("the PPG of every test window was refused: check the quality of the PPG")
    regression = IntervalRegression().fit(bank).rows(mine, _rates_of(plan, mine))
    rows = pa.concat_tables([rows, regression])
    source = Source(
        recipe=recipe.name,
        dataset_hash=dataset.hash,
        split=TEST,
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
    examples = _examples(plan, mine, candidate, drawing)
    _write(folder, report, regression, [*examples, *charts.draw(report, rows)])
    return EvaluateResult(report, report_json, report_html, reused=False)


def write_requests(recipe: Recipe, *, dataset_url: str, path: Path) -> int:
    """Write what another system is asked under this recipe; give the number of requests.

    Raises
    ------
    DatasetError
        As of `run`.
    """
    plan = _planned(Dataset.open(dataset_url), recipe)
    return foreign.write(_asked(plan), plan.windows, path, recipe.evaluate.seed)


@dataclass(frozen=True)
class _Plan:
    """The trials over one dataset, the model's own first; and which training windows are described."""

    trials: tuple[Trial, ...]
    windows: Windows
    train: WindowList
    bank: NDArray[np.int64]
    simulated: bool
    left_out: int


def _planned(dataset: Dataset, recipe: Recipe) -> _Plan:
    """Choose test windows that have PPG and ECG, evenly over people, and count those that have not."""
    config, test, train = recipe.evaluate, dataset.listed(TEST), dataset.listed(TRAIN)
    usable = np.flatnonzero(test.lead_mask.any(axis=1) & test.has_ppg)
    if usable.size == 0:
        raise DatasetError("no test window has both PPG and ECG: add such recordings, or raise ingest.test-share")
    rows = usable[spread_over_people(test.person[usable], config.max_windows)]
    simulated = all(pc.all(table["simulated"]).as_py() for table in dataset.read_windows(TEST, columns=["simulated"]))
    made = tuple(trials(rows, test, train, config, simulated=simulated))
    known = np.flatnonzero(train.lead_mask.any(axis=1))
    bank = known[spread_over_people(train.person[known], config.bank_windows)]
    windows = Windows(dataset, recipe.network.ppg_channels)
    return _Plan(made, windows, train, bank, simulated, len(test) - usable.size)


def _asked(plan: _Plan) -> list[Trial]:
    """Give the trials that are put to the system itself."""
    return [trial for trial in plan.trials if trial.by == MODEL]


def _drawing(candidate: Candidate, plan: _Plan, recipe: Recipe) -> Drawing:
    """Fit the yardsticks, and put the candidate beside them."""
    others = tuple(dict.fromkeys(trial.by for trial in plan.trials if trial.by != MODEL))
    train = yardstick_windows(plan.windows, plan.train)
    translators = fitted(others, train)
    if candidate.translator is not None:
        translators[MODEL] = candidate.translator(train)
    return Drawing(translators, recipe.serve.evaluations, recipe.evaluate.seed)


def _measured(candidate: Candidate, plan: _Plan, drawing: Drawing, recipe: Recipe, folder: str) -> Measured:
    """Measure the candidate, the yardsticks and the controls."""
    if candidate.answers is None:
        return measure_all(plan.trials, drawing, plan.windows, folder, gpus=recipe.evaluate.gpus_per_task)
    answered, given = foreign.matched(candidate.answers, _asked(plan), recipe.evaluate.seed)
    rest = [trial for trial in plan.trials if trial.by != MODEL]
    return measure_all([*answered, *rest], drawing, plan.windows, folder, given=given)


def _rates_of(plan: _Plan, rows: pa.Table) -> NDArray[np.float64]:
    """Give the heart rate that the pulse of each row's window tells."""
    whole = plan.trials[0]
    numbers = {str(window): k for k, window in enumerate(whole.listed.window_id)}
    chosen = np.array([numbers[window] for window in rows["window_id"].to_pylist()], np.int64)
    return pulse_rates(whole, plan.windows)[chosen]


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
        "test windows": fingerprint(sorted(plan.trials[0].listed.window_id.tolist())),
        "training windows described": fingerprint(sorted(bank["window_id"].to_pylist())),
        "training split": fingerprint(sorted(plan.train.window_id.tolist())),
    }
    return found | ({} if candidate.answers is None else {"predictions": candidate.answers.sha256})


def _examples(plan: _Plan, mine: pa.Table, candidate: Candidate, drawing: Drawing) -> list[Picture]:
    """Draw the window of median error and the worst ones, chosen by rule and not by eye."""
    error = mine["rmse_mv_sample_lag"].to_numpy()
    finite = np.flatnonzero(np.isfinite(error))
    order = finite[np.argsort(error[finite], kind="stable")]
    if order.size == 0:
        return []
    chosen = {"ecg": order[len(order) // 2]}
    chosen |= {f"worst_{k + 1}": row for k, row in enumerate(order[::-1][:_WORST])}
    ids, trial = mine["window_id"].to_pylist(), plan.trials[0]
    pictures = []
    for name, row in chosen.items():
        number = np.flatnonzero(trial.listed.window_id == ids[row])
        inputs = read(trial.take(number), plan.windows)
        drawn = _drawn_again(trial, number, inputs, candidate, drawing)
        if drawn is not None:
            pictures += _paper(name, float(error[row]), inputs.truth, drawn)
    return pictures


def _drawn_again(
    trial: Trial, number: NDArray[np.int64], inputs: Inputs, candidate: Candidate, drawing: Drawing
) -> Translation | None:
    if candidate.answers is None:
        return draw(drawing, trial.take(number), inputs, number)[0]
    found = foreign.answer_of(candidate.answers, trial, int(number[0]), drawing.seed)
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


def _write(folder: str, report: Mapping[str, Any], regression: pa.Table, pictures: Sequence[Picture]) -> None:
    """Write everything that is not there yet, report.json last: where it is, the rest is whole."""
    write_rows(regression, f"{folder}/{ROWS}/regression.parquet")
    for picture in pictures:
        storage.write_atomic(f"{folder}/figures/{picture.name}.png", picture.png)
    storage.write_atomic(f"{folder}/report.html", render_html(report, pictures).encode())
    # NaN is no JSON; a figure that is not defined must have become None by now.
    text = json.dumps(report, indent=1, allow_nan=False, default=str)
    storage.write_atomic(f"{folder}/report.json", text.encode())
