"""A search over a recipe with Ray Tune, on a handful of people."""

import dataclasses
import json
import math
from pathlib import Path

import pytest

from p2es_platform.settings import Settings
from p2es_platform.tracking import connect
from pipelines import demo, tune
from pipelines.recipes import TuneConfig

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray"),
    pytest.mark.filterwarnings("ignore::FutureWarning:ray"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore:The `RAY_AIR:UserWarning"),
]


@pytest.fixture(scope="module")
def searched(local_ray, tmp_path_factory):
    from test_whole_path import TINY

    settings = Settings(storage=str(tmp_path_factory.mktemp("storage")), secret="a secret of the tests")
    ready = demo.prepare(TINY, settings, demo.Teller(lambda line: None))
    config = TuneConfig(
        search=("train.learning-rate:choice:1e-5,3e-3,1e30",), trials=5, windows=288, validation_windows=8, seed=0
    )
    urls = {"dataset_url": ready.dataset_url, "groups_url": ready.groups_url}
    return TINY, settings, config, urls, tune.run(TINY, config, settings, **urls)


def test_the_best_trial_comes_first_and_one_that_diverged_last(searched):
    *_, found = searched
    assert len(found.trials) == 5
    losses = [trial.loss for trial in found.trials]
    rates = [trial.values["train.learning_rate"] for trial in found.trials]
    assert set(rates) == {1e-5, 3e-3, 1e30}, "the seed draws each of them"
    assert all(math.isinf(loss) == (rate == 1e30) for loss, rate in zip(losses, rates, strict=True))
    assert rates[-1] == 1e30
    whole = [trial for trial in found.trials if trial.windows == 288 and math.isfinite(trial.loss)]
    assert found.trials[0].loss == min(trial.loss for trial in whole)
    assert len(set(losses)) > 2, "trials differ"


def test_each_trial_is_a_child_run_with_its_losses(searched):
    _, settings, _, _, found = searched
    client = connect(settings.tracking_uri)
    parent = client.get_run(found.run_id)
    assert parent.info.status == "FINISHED"
    assert parent.data.metrics["validation_loss"] == found.trials[0].loss
    children = client.search_runs([parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{found.run_id}'")
    assert {run.info.run_id for run in children} == {trial.run_id for trial in found.trials}
    for run in children:
        trial = next(trial for trial in found.trials if trial.run_id == run.info.run_id)
        assert run.info.status == ("FINISHED" if math.isfinite(trial.loss) else "FAILED")
        assert float(run.data.params["train.learning_rate"]) == trial.values["train.learning_rate"]
        if math.isfinite(trial.loss):
            history = client.get_metric_history(run.info.run_id, "validation_loss")
            assert history[-1].value == trial.loss
            assert [m.step for m in history] == sorted({m.step for m in history})


def test_a_search_that_is_done_is_found_again(searched):
    recipe, settings, config, urls, found = searched
    again = tune.run(recipe, config, settings, **urls)
    assert again == found
    stored = json.loads((Path(found.folder) / "trials.json").read_text())
    assert [trial["run_id"] for trial in stored] == [trial.run_id for trial in found.trials]


def test_another_search_is_another(searched):
    recipe, settings, config, urls, found = searched
    other = tune.run(
        recipe, dataclasses.replace(config, trials=1, search=("train.batch:choice:8,16",)), settings, **urls
    )
    assert other.run_id != found.run_id
    assert len(other.trials) == 1
