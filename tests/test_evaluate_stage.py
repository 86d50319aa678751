import dataclasses
import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from p2es.conditioning import Units
from p2es.errors import DatasetError, InputError
from p2es.evaluation.measure import ROW_SCHEMA
from p2es.model import P2Es
from p2es.network import NetworkConfig
from p2es.segmenting import segment
from p2es.simulator import simulate_person
from p2es_platform import storage
from p2es_platform.dataset import Dataset, commit, write_part
from pipelines import evaluate
from pipelines.recipes import EvaluateConfig, ServeConfig, demo

PEOPLE = {"train": range(12), "test": range(100, 104)}


def recipe_of(**changes):
    config = EvaluateConfig(max_windows=4, samples=20, bootstrap=50)
    return dataclasses.replace(
        demo(),
        network=NetworkConfig(channels=(8, 8, 8), pulse_channels=16, condition=16),
        evaluate=dataclasses.replace(config, **changes),
        serve=ServeConfig(evaluations=1),
    )


@pytest.fixture(scope="module")
def dataset_url(tmp_path_factory):
    url = str(tmp_path_factory.mktemp("data"))
    windows = [
        window
        for split, people in PEOPLE.items()
        for index in people
        for window in segment(
            simulate_person(0, index, 24.0), step_s=10.0, ids=lambda *parts: "-".join(parts), split=split
        ).windows
    ]
    commit(url, [write_part(url, "k", "simulated", {"all": "0"}, windows, [])], {})
    return url


@pytest.fixture(scope="module")
def model_folder(dataset_url, tmp_path_factory):
    """An untrained model: it draws something finite that knows nothing of the pulse."""
    recipe, folder = recipe_of(), tmp_path_factory.mktemp("model")
    units = Units.fit(Dataset.open(dataset_url).store("train"))
    P2Es.start(recipe.network, recipe.diffusion, units).save(folder)
    return folder


def evaluated(settings, dataset_url, model_folder, **changes):
    lineage = {"run_id": "r1"}
    return evaluate.run(
        recipe_of(**changes), settings, model_folder=model_folder, dataset_url=dataset_url, lineage=lineage
    )


def test_an_untrained_model_is_measured_and_found_deaf(settings, dataset_url, model_folder):
    result = evaluated(settings, dataset_url, model_folder)
    passed = {goal["name"]: goal["passed"] for goal in result.report["goals"]}
    assert passed["finite"]
    assert passed["lead_laws"]
    assert passed["lineage"]
    assert not passed["follows_pulse"]
    assert not passed["G3"]
    template = result.report["controls"]["template"]["r_f1_50ms_lag"]
    assert template["value"] > 0.9, "the yardstick does follow the pulse"
    data = result.report["dataset"]
    assert (data["people"], data["windows"], data["simulated"]) == (4, 4, True)
    assert result.report["model"]["sha256"]
    assert data["hash"] == Dataset.open(dataset_url).hash

    assert json.loads(storage.read_bytes(result.report_json)) == result.report
    folder = result.report_json.rpartition("/")[0]
    assert pq.read_schema(f"{folder}/rows.parquet").names == ROW_SCHEMA.names
    assert pq.read_table(f"{folder}/rows.parquet").num_rows == 4 * 4
    page = storage.read_bytes(result.report_html).decode()
    assert page.count("data:image/png;base64,") > 12
    assert "SYNTHETIC" in page

    again = evaluated(settings, dataset_url, model_folder)
    assert again.reused
    assert not result.reused
    assert again.report == result.report


def test_a_report_that_was_not_finished_is_made_again(settings, dataset_url, model_folder, monkeypatch):
    def fail(*_):
        raise DatasetError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(evaluate, "render_html", fail)
        with pytest.raises(DatasetError):
            evaluated(settings, dataset_url, model_folder, max_windows=2, bootstrap=10)
    result = evaluated(settings, dataset_url, model_folder, max_windows=2, bootstrap=10)
    assert not result.reused
    assert storage.exists(result.report_html)


def test_one_poor_window_is_refused_alone_and_counted(dataset_url, model_folder):
    recipe = recipe_of()
    batch, left_out = evaluate._test_windows(Dataset.open(dataset_url), recipe)
    assert left_out == 0
    systems = evaluate._systems(recipe, P2Es.load(model_folder), batch, Dataset.open(dataset_url))
    system = next(system for system in systems if system.name == "template")
    poor = system.ppg.copy()
    poor[1] = 0.0
    with pytest.raises(InputError):
        evaluate._translate(dataclasses.replace(system, ppg=poor), batch, np.arange(4), recipe)
    broken = [dataclasses.replace(system, name=evaluate.MODEL, ppg=poor), system]
    rows, refused = evaluate._measure_all(broken, batch, recipe)
    assert refused == {"model": 1, "template": 0}
    found = {system: set() for system in refused}
    for name, window in zip(rows["system"].to_pylist(), rows["window_id"].to_pylist(), strict=True):
        found[name].add(window)
    assert found["template"] - found["model"] == {batch.window_id[1]}


def test_the_shuffled_control_hears_another_person(dataset_url, model_folder):
    recipe = recipe_of()
    dataset = Dataset.open(dataset_url)
    batch, _ = evaluate._test_windows(dataset, recipe)
    systems = {s.name: s for s in evaluate._systems(recipe, P2Es.load(model_folder), batch, dataset)}
    own, other = systems["model"].ppg, systems["shuffled_ppg"].ppg
    for row in range(len(batch)):
        donors = [k for k in range(len(batch)) if np.array_equal(other[row], own[k], equal_nan=True)]
        assert [batch.person[k] != batch.person[row] for k in donors] == [True]


def test_a_dataset_without_test_windows_is_told(settings, dataset_url, model_folder, tmp_path):
    url = str(tmp_path / "none")
    windows = segment(simulate_person(0, 1, 12.0), step_s=10.0, ids=lambda *p: "-".join(p), split="train").windows
    commit(url, [write_part(url, "k", "simulated", {"one": "0"}, windows, [])], {})
    with pytest.raises(DatasetError) as caught:
        evaluated(settings, url, model_folder)
    assert "\n" not in str(caught.value)
