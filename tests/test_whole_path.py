"""The whole path on a handful of people: every stage real, each result found again by the next run."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from p2es.model import P2Es
from p2es.network import NetworkConfig
from p2es.training import TrainConfig
from p2es_platform.dataset import Dataset
from p2es_platform.registry import Registry
from pipelines import demo, promote, train, translate
from pipelines.recipes import EvaluateConfig, GateConfig, GroupConfig, Recipe, ServeConfig, SimulateConfig

pytestmark = [
    # The whole path in one fixture, on two cores that another worker of pytest uses too.
    pytest.mark.timeout(900),
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray"),
    pytest.mark.filterwarnings("ignore::FutureWarning:ray"),
]

TINY = Recipe(
    name="tiny",
    simulate=SimulateConfig(people=40, duration_s=32.5),
    group=GroupConfig(neighbours=4, clusters=3),
    network=NetworkConfig(channels=(8, 8), pulse_channels=8, condition=16, prototypes=3),
    train=TrainConfig(windows=480, batch=16, checkpoint_windows=160),
    evaluate=EvaluateConfig(
        max_windows=4,
        calibration_windows=4,
        bootstrap=50,
        control_samples=2,
        counterfactual_windows=2,
        member_windows=4,
        bank_windows=40,
        yardsticks=("template", "regression"),
    ),
    serve=ServeConfig(evaluations=2, max_replicas=1),
)


@dataclasses.dataclass
class Walked:
    settings: object
    said: list
    ready: object
    trained: object
    found: object


@pytest.fixture(scope="module")
def walked(local_ray, tmp_path_factory):
    from p2es_platform.settings import Settings

    storage = tmp_path_factory.mktemp("storage")
    settings = Settings(storage=str(storage), secret="a secret of the tests", ray_address=None)
    said: list[str] = []
    teller = demo.Teller(said.append)
    ready = demo.prepare(TINY, settings, teller)
    trained = demo.fit(TINY, settings, ready, teller)
    found = demo.measure(TINY, settings, ready, trained, teller)
    return Walked(settings, said, ready, trained, found)


def test_every_stage_says_what_it_did(walked):
    assert [line.split()[1] for line in walked.said if line.startswith("[")][:5] == list(demo.STAGES[:5])


def test_no_person_is_in_two_splits_and_no_file_differs_from_the_manifest(walked):
    Dataset.open(walked.ready.dataset_url).verify()


def test_the_model_names_where_it_comes_from(walked):
    folder = Path(walked.trained.folder)
    lineage = json.loads((folder / "lineage.json").read_text())
    assert lineage["dataset_hash"] == Dataset.open(walked.ready.dataset_url).hash
    config = json.loads((folder / "config.json").read_text())
    assert config["provenance"]["trained_on_simulated_people_only"] is True
    assert config["band"]["calibrated_on"] > 0
    assert walked.trained.windows >= TINY.train.windows


def test_training_is_one_mlflow_run_with_its_losses_and_the_model(walked):
    import mlflow

    client = mlflow.MlflowClient(walked.settings.tracking_uri)
    runs = client.search_runs([client.get_experiment_by_name("p2es").experiment_id])
    assert [run.info.run_id for run in runs] == [walked.trained.run_id]
    assert runs[0].info.status == "FINISHED"
    assert {"loss_wave", "loss_slope", "loss_contrast", "loss_prototype"} <= set(runs[0].data.metrics)
    artifacts = {item.path for item in client.list_artifacts(walked.trained.run_id)}
    assert {"model", "recipe.json", "curves.png", "samples"} <= artifacts
    assert client.list_artifacts(walked.trained.run_id, "samples")
    tags = runs[0].data.tags
    assert tags["p2es.dataset_hash"] == Dataset.open(walked.ready.dataset_url).hash
    assert tags["p2es.groups"] == walked.ready.groups_url.rsplit("/", 1)[-1]
    contexts = {tag.value for used in runs[0].inputs.dataset_inputs for tag in used.tags}
    assert contexts == {"training", "validation"}


def test_the_report_holds_the_controls_beside_the_model(walked):
    report = walked.found.report
    assert {"template", "regression", "shuffled_ppg", "shuffled_demographics"} <= set(report["controls"])
    assert report["figures"]["lead_law_uv"]["value"] <= 1.0
    assert report["figures"]["finite_share"]["value"] == 1.0
    page = Path(walked.found.report_html).read_text()
    assert "SYNTHETIC" in page


def test_a_second_run_reuses_everything(walked):
    again = demo.Teller(lambda line: None)
    ready = demo.prepare(TINY, walked.settings, again)
    assert ready == walked.ready
    trained = demo.fit(TINY, walked.settings, ready, again)
    assert trained.reused
    assert trained.sha256 == walked.trained.sha256
    assert demo.measure(TINY, walked.settings, ready, trained, again).reused


def test_the_gate_keeps_out_what_does_not_follow_the_pulse_and_the_endpoint_serves_what_passes(walked):
    strict = dataclasses.replace(TINY, gate=GateConfig(("finite", "G3")))
    arguments = {"trained": walked.trained.folder, "run_id": walked.trained.run_id, "report": walked.found.report}
    refused = promote.run(strict, walked.settings, **arguments)
    assert not refused.passed
    assert Registry(walked.settings).champion() is None
    lenient = dataclasses.replace(TINY, gate=GateConfig(("finite", "lead_laws", "lineage")))
    passed = promote.run(lenient, walked.settings, **arguments)
    assert passed.passed
    assert Registry(walked.settings).resolve("champion").version == passed.version
    picture = demo.answer(TINY, walked.settings, walked.ready, demo.Teller(walked.said.append))
    assert picture.stat().st_size > 20_000


def test_a_dataset_is_translated_as_a_ray_data_job(walked):
    import pyarrow.parquet as pq

    options = translate.TranslateOptions(samples=2, evaluations=1)
    done = translate.dataset(walked.ready.dataset_url, walked.trained.folder, "1", walked.settings, options)
    table = pq.read_table(done.folder)
    assert table.num_rows == done.windows > 0
    assert len(set(table["window_id"].to_pylist())) == table.num_rows
    ecg = np.array(table["ecg_mv"][0].as_py()).reshape(12, 1280)
    np.testing.assert_allclose(ecg[2], ecg[1] - ecg[0], atol=1e-3)


@pytest.mark.slow
def test_a_version_goes_on_with_other_peoples_data(walked):
    """Fine-tuning: network, weights and scales of the version, the delay and the band of the new people."""
    registered = Registry(walked.settings).resolve("champion")
    parent = train.Parent(str(registered.folder), registered.version, registered.sha256)
    other = dataclasses.replace(
        TINY,
        name="other",
        simulate=SimulateConfig(people=30, duration_s=32.5, seed=9),
        network=NetworkConfig(),
        group=GroupConfig(neighbours=3),
        train=dataclasses.replace(TINY.train, windows=96, learning_rate=1e-4, regression_share=0.0),
    )
    recipe = train.of_parent(other, parent)
    assert recipe.network == TINY.network
    teller = demo.Teller(lambda line: None)
    tuned = demo.fit(recipe, walked.settings, demo.prepare(recipe, walked.settings, teller), teller, parent)
    assert tuned.lineage["parent"] == registered.version
    assert tuned.lineage["dataset_hash"] != walked.trained.lineage["dataset_hash"]
    before, after = (P2Es.load(Path(folder)) for folder in (registered.folder, tuned.folder))
    assert after.units.lead_scale_mv == before.units.lead_scale_mv
    assert after.units.spectrum == before.units.spectrum
    assert after.units.delay != before.units.delay, "measured on the new people"
    assert after.band != before.band
    moved = [
        float((a - b).abs().max())
        for (_, a), (_, b) in zip(
            after.denoiser.state_dict().items(), before.denoiser.state_dict().items(), strict=True
        )
    ]
    assert 0 < max(moved) < 0.1, "it goes on from the version's weights"
