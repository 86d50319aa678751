"""The whole path, stage by stage: from an archive to an answer. Each stage reuses what is done."""

import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from p2es import plot
from p2es.demographics import Demographics
from p2es.errors import DatasetError
from p2es.windows import FS_HZ, Window, decode
from p2es_platform import registry
from p2es_platform.cluster import connect
from p2es_platform.dataset import Dataset
from p2es_platform.mlflow_client import without_credentials
from p2es_platform.settings import Settings
from pipelines import evaluate, group, ingest, promote, simulate, train
from pipelines.recipes import Recipe
from serve.client import Client

STAGES = ("simulate", "ingest", "group", "train", "evaluate", "promote", "serve", "where")


class Teller:
    """Says what each stage did, in one line, with its time."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self.write = write
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[Callable[[str], None]]:
        """Time a stage; what it says inside is printed with its number and seconds at its end."""
        said: list[str] = []
        started = time.monotonic()
        yield said.append
        self.seconds[name] = time.monotonic() - started
        number = STAGES.index(name) + 1
        self.write(f"[{number}/{len(STAGES)}] {name:9s} {'; '.join(said)}  ({self.seconds[name]:.0f} s)")


@dataclass(frozen=True)
class Prepared:
    """What training needs."""

    dataset_url: str
    groups_url: str


def prepare(recipe: Recipe, settings: Settings, teller: Teller) -> Prepared:
    """Simulate (where the recipe names no archive), ingest and group."""
    archive = recipe.ingest.archive
    if archive is None:
        with teller.stage("simulate") as say:
            people = simulate.run(recipe, settings)
            archive = people.folder
            say(f"{people.people} people as WFDB files{_again(people)}")
    with teller.stage("ingest") as say:
        data = ingest.run(recipe, settings, archive=archive, name=recipe.ingest.name)
        left_out = sum(data.quarantined.values())
        say(f"{data.windows} windows of {data.people} people, {left_out} quarantined{_again(data)}")
    with teller.stage("group") as say:
        groups = group.run(recipe, settings, data.url)
        say(f"{groups.neighbours} neighbours of {groups.people} people, {groups.clusters} clusters{_again(groups)}")
    return Prepared(data.url, groups.url)


def fit(
    recipe: Recipe, settings: Settings, ready: Prepared, teller: Teller, parent: train.Parent | None = None
) -> train.TrainResult:
    """Train on what is prepared, afresh or from a version."""
    with teller.stage("train") as say:
        trained = train.run(recipe, settings, dataset_url=ready.dataset_url, groups_url=ready.groups_url, parent=parent)
        start = "" if parent is None else f", from version {parent.version}"
        say(f"{trained.windows} windows seen by {recipe.resources.train_workers} workers{start}{_again(trained)}")
    return trained


def measure(
    recipe: Recipe, settings: Settings, ready: Prepared, trained: train.TrainResult, teller: Teller
) -> evaluate.EvaluateResult:
    """Evaluate on unseen people."""
    with teller.stage("evaluate") as say:
        found = evaluate.run(
            recipe,
            settings,
            candidate=evaluate.of_model(trained.folder),
            dataset_url=ready.dataset_url,
            lineage=trained.lineage,
        )
        say(_headline(found.report) + _again(found))
    verdict = found.report["verdict"]
    for line in (verdict["headline"], *verdict["refusals"]):
        teller.write(f"      verdict: {line}")
    return found


def release(
    settings: Settings,
    recipe: Recipe,
    trained: train.TrainResult,
    found: evaluate.EvaluateResult,
    teller: Teller,
) -> promote.PromoteResult:
    """Register the version and take it through the recipe's gate."""
    with teller.stage("promote") as say:
        result = promote.run(recipe, settings, trained=trained.folder, run_id=trained.run_id, report=found.report)
        passed = sum(check.passed for check in result.checks if check.mandatory)
        mandatory = sum(check.mandatory for check in result.checks)
        say(f"version {result.version}: {passed} of {mandatory} mandatory goals of the gate met; " + (
            "alias champion set" if result.passed else "NOT promoted"
        ))  # fmt: skip
    goals = [check for check in result.checks if not (check.passed or check.mandatory) and check.name != "verdict"]
    missed = [f"{check.name} ({check.measured})" for check in goals]
    teller.write(f"      release goals missed or not measured: {', '.join(missed) or 'none'}")
    return result


def answer(recipe: Recipe, settings: Settings, ready: Prepared, teller: Teller) -> Path:
    """Start the endpoint, ask it as a client would, and draw the answer."""
    from pipelines import serve

    with teller.stage("serve") as say:
        champion = registry.Registry(settings).resolve("champion")
        window = _unseen_window(ready.dataset_url)
        with serve.start(
            settings,
            folder=str(champion.folder),
            version=champion.version,
            sha256=champion.sha256,
            port=0,
            options=recipe.serve,
        ) as endpoint:
            client = Client(endpoint.url, token=endpoint.token)
            reply = client.translate(_ppg(window), fs_hz=FS_HZ, seed=0, **_person(window.demographics))
        assert reply.ecg_mv is not None
        path = settings.folder("translations", "demo", "ecg.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        who = "simulated person" if window.simulated else "person"
        title = f"Unseen {who}, {_describe(window.demographics)}: drawn by p2es version {champion.version}"
        figure = plot.paper_ecg(
            reply.ecg_mv,
            band_mv=reply.band_mv,
            reference_mv=window.ecg,
            reference_name="simulated truth" if window.simulated else "recorded",
            ppg=window.ppg,
            title=title,
        )
        plot.save(figure, path)
        say(f"12 leads with a 90 % band over HTTP, heart rate {reply.heart_rate_bpm:.0f} bpm")
    return path


def run(recipe: Recipe, settings: Settings, write: Callable[[str], None]) -> bool:
    """Run every stage, end every process that was started, and tell whether the version passed the gate."""
    teller = Teller(write)
    began = time.monotonic()
    with connect(settings, local_cpus=recipe.resources.local_cpus, object_store_mb=recipe.resources.object_store_mb):
        ready = prepare(recipe, settings, teller)
        trained = fit(recipe, settings, ready, teller)
        found = measure(recipe, settings, ready, trained, teller)
        released = release(settings, recipe, trained, found, teller)
        picture = answer(recipe, settings, ready, teller) if released.passed else None
    _where(settings, ready, trained, found, released, picture, write)
    write(f"done in {time.monotonic() - began:.0f} s; every process it started has ended")
    return released.passed


def _where(
    settings: Settings,
    ready: Prepared,
    trained: train.TrainResult,
    found: evaluate.EvaluateResult,
    released: promote.PromoteResult,
    picture: Path | None,
    write: Callable[[str], None],
) -> None:
    rows = [
        ("dataset", ready.dataset_url),
        ("model", trained.folder),
        ("report", found.report_html),
        ("ECG of the endpoint", str(picture) if picture else "none: the version was not promoted"),
        ("MLflow", without_credentials(settings.tracking_uri)),
    ]
    write(f"[8/8] where     everything lies in {settings.root}")
    for name, place in rows:
        write(f"      {name:20s} {place}")
    write("      look further with")
    uri = without_credentials(settings.tracking_uri)
    here = "" if shutil.which("p2es") else f"{Path(sys.executable).parent}/"
    for command in (
        f"{here}p2es models                                   # versions and who was champion when",
        f"{here}p2es serve --version {released.version}                         # the endpoint, with its page",
        f"{here}p2es translate path/to/record.hea --age 53    # your own PPG",
        f"{here}mlflow ui --backend-store-uri {uri}   # losses and parameters",
    ):
        write(f"        {command}")


def _again(result: Any) -> str:
    return " (reused)" if result.reused else ""


def _headline(report: dict[str, Any]) -> str:
    name = "r_f1_50ms_lag"
    model = report["figures"][name]
    shuffled = report["controls"]["shuffled_ppg"][name]
    return (
        f"R-peak F1 at 50 ms {model['value']:.3f} [{model['low']:.3f}, {model['high']:.3f}], "
        f"with shuffled PPG {shuffled['value']:.3f}, on {report['dataset']['people']} unseen people"
    )


def _unseen_window(dataset_url: str) -> Window:
    """Give the first test window that has a PPG and all 12 leads."""
    for table in Dataset.open(dataset_url).read_windows("test"):
        for window in decode(table):
            if window.ppg is not None and window.ecg is not None and window.lead_mask.all():
                return window
    raise DatasetError("no test window has a PPG and all 12 leads: nothing can be shown; see `p2es translate`")


def _ppg(window: Window) -> NDArray[np.float32]:
    """Give the twelve seconds a client would send: (time,), NaN where nothing was recorded."""
    assert window.ppg is not None
    assert window.ppg_mask is not None
    return np.where(window.ppg_mask, window.ppg[0], np.nan).astype(np.float32)


def _person(person: Demographics) -> dict[str, Any]:
    return {
        "age_years": person.age_years,
        "sex": None if person.sex is None else person.sex.value,
        "height_cm": person.height_cm,
        "weight_kg": person.weight_kg,
    }


def _describe(person: Demographics) -> str:
    values = person.to_array()
    return (
        "unknown"
        if np.isnan(values).all()
        else f"{values[0]:.0f} y, {person.sex}, {values[2]:.0f} cm, {values[3]:.0f} kg"
    )
