"""The stage as a whole: what is measured, over any number of workers, of a model, a yardstick or a file."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from evaluated import simulated_dataset

from p2es.baselines.common import BaselineConfig
from p2es.baselines.regression import BeatRegression
from p2es.conditioning import Units
from p2es.demographics import Demographics, Sex
from p2es.errors import ConfigError, DatasetError, InputError
from p2es.evaluation.measure import ROW_SCHEMA
from p2es.leads import LEADS
from p2es.model import P2Es
from p2es.network import NetworkConfig
from p2es.segmenting import segment
from p2es.simulator import simulate_person
from p2es_platform import storage
from p2es_platform.dataset import Dataset, commit, write_part
from pipelines import evaluate, evaluate_command
from pipelines.demo import Teller
from pipelines.evaluate_args import EvaluateChoice
from pipelines.measuring import Drawing, _measured, _part, _spans, measure_all
from pipelines.recipes import YARDSTICKS, EvaluateConfig, ServeConfig, demo
from pipelines.trials import changed_people, fitted, read, yardstick_windows

PEOPLE = {"train": range(12), "test": range(100, 104)}


def recipe_of(**changes):
    config = EvaluateConfig(
        max_windows=4, samples=20, control_samples=2, bootstrap=50, counterfactual_windows=2, member_windows=4,
        bank_windows=24, yardsticks=("template", "regression"),
    )  # fmt: skip
    return dataclasses.replace(
        demo(),
        network=NetworkConfig(channels=(8, 8, 8), pulse_channels=16, condition=16),
        evaluate=dataclasses.replace(config, **changes),
        serve=ServeConfig(evaluations=1),
    )


@pytest.fixture(scope="module")
def dataset_url(tmp_path_factory):
    return simulated_dataset(str(tmp_path_factory.mktemp("data")), PEOPLE)


@pytest.fixture(scope="module")
def model_folder(dataset_url, tmp_path_factory):
    """An untrained model: it draws something finite that knows nothing of the pulse."""
    recipe, folder = recipe_of(), tmp_path_factory.mktemp("model")
    units = Units.fit(Dataset.open(dataset_url).store("train"))
    P2Es.start(recipe.network, recipe.diffusion, units).save(folder)
    return folder


@pytest.fixture(scope="module")
def plan(dataset_url):
    return evaluate._planned(Dataset.open(dataset_url), recipe_of(yardsticks=YARDSTICKS))


def evaluated(settings, dataset_url, candidate, **changes):
    if not isinstance(candidate, evaluate.Candidate):
        candidate = evaluate.of_model(candidate)
    return evaluate.run(
        recipe_of(**changes), settings, candidate=candidate, dataset_url=dataset_url, lineage={"run_id": "r1"}
    )


@pytest.fixture
def plain(monkeypatch):
    """A page without pictures, which take half of a small evaluation's time."""
    monkeypatch.setattr(evaluate, "_examples", lambda *_: [])
    monkeypatch.setattr(evaluate.charts, "draw", lambda *_: [])


def test_an_untrained_model_is_measured_and_found_deaf(settings, dataset_url, model_folder):
    result = evaluated(settings, dataset_url, model_folder, yardsticks=YARDSTICKS)
    passed = {goal["name"]: goal["passed"] for goal in result.report["goals"]}
    assert passed["finite"]
    assert passed["lead_laws"]
    assert passed["lineage"]
    assert passed["G22"], "the ruler was checked in this very run"
    assert not passed["follows_pulse"]
    assert not passed["G3"]
    assert result.report["verdict"]["refused"]
    assert not result.report["verdict"]["passed"]
    template = result.report["controls"]["template"]["r_f1_50ms_lag"]
    assert template["value"] > 0.9, "the yardstick does follow the pulse"
    shown = {
        "template", "regression", "mean_waveform", "retrieval", "oracle", "other_segment", "shuffled_ppg",
        "warped_ppg", "shuffled_demographics", "demographic_regression",
    }  # fmt: skip
    assert set(result.report["controls"]) == shown
    assert result.report["dataset"]["other_ecg"] == {"other_recording": 0, "other_segment": 4, "none": 0}
    assert set(result.report["ectopy"]) == shown - {"demographic_regression"} | {"model"}
    for name in ("feature_energy", "feature_coverage_90", "feature_width_90"):
        assert result.report["figures"][name]["value"] is not None, name
    data = result.report["dataset"]
    assert (data["people"], data["windows"], data["simulated"]) == (4, 4, True)
    assert result.report["model"]["sha256"]
    assert data["hash"] == Dataset.open(dataset_url).hash

    assert json.loads(storage.read_bytes(result.report_json)) == result.report
    folder = result.report_json.rpartition("/")[0]
    table = pq.read_table(f"{folder}/rows")
    assert table.schema.names == ROW_SCHEMA.names
    # Every trial's every window is a row or a refusal.
    counts = table["system"].value_counts().to_pylist()
    assert {row["values"]: row["counts"] for row in counts} == dict.fromkeys((*shown, "model", "members"), 4) | {
        f"counterfactual:{change}": 2 for change in ("base", "female", "male", "height+10", "bmi+5", "age+20")
    }
    page = storage.read_bytes(result.report_html).decode()
    pictures = list(Path(folder, "figures").glob("*.png"))
    assert page.count("data:image/png;base64,") == len(pictures) >= 15
    assert "SYNTHETIC" in page

    again = evaluated(settings, dataset_url, model_folder, yardsticks=YARDSTICKS)
    assert again.reused
    assert not result.reused
    assert again.report == result.report


def of_systems(plan, *names):
    return [trial for trial in plan.trials if trial.system in names]


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_workers_change_nothing(plan, model_folder, local_ray, tmp_path):
    """Files over four workers and one after the other are the same to the bit."""
    import ray

    assert ray.is_initialized()
    drawing = Drawing({"model": P2Es.load(model_folder)}, 1, 0)
    chosen = of_systems(plan, "model", "shuffled_ppg")
    found = measure_all(chosen, drawing, plan.windows, str(tmp_path / "spread"))
    for span in _spans(chosen, str(tmp_path / "alone")):
        _measured((drawing, plan.windows), _part(span, {}))
    assert contents(tmp_path / "spread") == contents(tmp_path / "alone")
    assert found.rows().schema.equals(ROW_SCHEMA)
    assert found.rows()["system"].to_pylist() == ["model"] * 4 + ["shuffled_ppg"] * 4


def test_a_stopped_evaluation_goes_on_where_it_was(plan, tmp_path):
    """Of two trials one file is lost and one is of something else: that alone is made again, and goes."""
    drawing = Drawing(fitted(("template",), yardstick_windows(plan.windows, plan.train)), 1, 0)
    chosen = [dataclasses.replace(trial, samples=2) for trial in of_systems(plan, "template")]
    chosen.append(dataclasses.replace(chosen[0], system="again"))
    first = measure_all(chosen, drawing, plan.windows, str(tmp_path))
    before = contents(tmp_path)
    lost, kept = (Path(place) for place in first.files)
    written = kept.stat().st_mtime_ns
    lost.rename(tmp_path / "000000-ffffffffffff-4.parquet")
    second = measure_all(chosen, drawing, plan.windows, str(tmp_path))
    assert second == first
    assert contents(tmp_path) == before
    assert kept.stat().st_mtime_ns == written


def test_rows_that_cannot_be_read_are_told(plan, tmp_path):
    drawing = Drawing(fitted(("mean_waveform",), yardstick_windows(plan.windows, plan.train)), 1, 0)
    chosen = [dataclasses.replace(trial, samples=1) for trial in of_systems(plan, "mean_waveform")]
    found = measure_all(chosen, drawing, plan.windows, str(tmp_path))
    Path(found.files[0]).write_bytes(b"PAR1 cut short")
    with pytest.raises(DatasetError, match="remove it and run again"):
        found.rows()
    Path(found.files[0]).unlink()
    with pytest.raises(DatasetError, match="give all nodes one storage"):
        found.rows()


def test_a_task_has_many_windows_where_there_are_many(plan):
    """128 tasks as soon as there are windows for them, then tasks of up to 16 batches; every window is in one."""
    (trial,) = of_systems(plan, "template")
    for count, size in ((100, 8), (2000, 8), (2048, 16), (9000, 64), (100_000, 128)):
        spans = list(_spans([trial.take(np.arange(count) % 4)], "rows"))
        assert {span.stop - span.start for span in spans[:-1]} == {size}
        assert [span.start for span in spans[1:]] == [span.stop for span in spans[:-1]]
        assert (spans[0].start, spans[-1].stop) == (0, count)
        assert len({span.place for span in spans}) == len(spans)


@pytest.mark.slow
def test_predictions_get_the_report_of_the_system_that_made_them(plain, settings, dataset_url, tmp_path):
    """A yardstick that answers the requests as another system would has the figures it has as a candidate."""
    direct = evaluated(settings, dataset_url, evaluate.of_yardstick("regression")).report
    asked = tmp_path / "requests.parquet"
    count = evaluate.write_requests(recipe_of(), dataset_url=dataset_url, path=asked)
    # Four windows with their own and three other inputs, two with six sets of demographics, four training windows.
    assert count == 4 * 4 + 2 * 6 + 4
    yardstick = BeatRegression().fit(Dataset.open(dataset_url).store("train", channels=1), BaselineConfig())
    answers = answered(yardstick, pq.read_table(asked).to_pylist())
    np.savez(tmp_path / "answers.npz", **answers)
    found = evaluated(settings, dataset_url, evaluate.of_predictions(tmp_path / "answers.npz")).report
    for name, figure in direct["figures"].items():
        # One seed is drawn for a file, another for a trial's own number: the same, by the requests.
        assert found["figures"][name]["value"] == pytest.approx(figure["value"], rel=1e-4, abs=1e-4), name
    assert set(found["controls"]) == set(direct["controls"])
    assert found["verdict"]["headline"] == direct["verdict"]["headline"]
    assert found["hashes"]["predictions"]


def answered(translator, rows):
    """Answer requests as another system would: it sees the file alone."""
    ecg = [
        translator.sample(
            np.array(row["ppg"], np.float32)[None, None],
            [Demographics(row["age_years"], None if row["sex"] is None else Sex(row["sex"]), row["height_cm"],
                          row["weight_kg"])],
            fs_hz=128.0, samples=row["samples"], seeds=[row["seed"]],
        )[0].ecg_mv
        for row in rows
    ]  # fmt: skip
    most = max(len(draws) for draws in ecg)
    ids = [row["request"] for row, draws in zip(rows, ecg, strict=True) for _ in draws]
    assert most == 20
    return {
        "request": np.array(ids), "ecg_mv": np.concatenate(ecg), "leads": np.array(LEADS), "fs_hz": np.array(128.0),
    }  # fmt: skip


def test_predictions_without_controls_show_nothing(plain, settings, dataset_url, plan, tmp_path):
    truth = read(plan.trials[0], plan.windows).truth
    ecg = {"window_id": truth.window_id, "ecg_mv": truth.ecg_mv, "leads": np.array(LEADS), "fs_hz": np.array(128.0)}
    np.savez(tmp_path / "p.npz", **ecg)
    report = evaluated(settings, dataset_url, evaluate.of_predictions(tmp_path / "p.npz")).report
    assert report["figures"]["rmse_mv_sample"]["value"] == 0.0
    assert report["verdict"]["refused"]
    assert report["verdict"]["claims"] == [] or "follows_pulse" not in report["verdict"]["claims"]
    assert not report["verdict"]["passed"]


def test_predictions_of_one_lead_are_measured_on_that_lead(plain, settings, dataset_url, plan, tmp_path):
    truth = read(plan.trials[0], plan.windows).truth
    one = truth.ecg_mv[:, [1]] * 0.5
    np.savez(tmp_path / "p.npz", window_id=truth.window_id, ecg_mv=one, leads=np.array(["II"]), fs_hz=np.array(128.0))
    figures = evaluated(settings, dataset_url, evaluate.of_predictions(tmp_path / "p.npz")).report["figures"]
    assert figures["correlation_sample"]["value"] == pytest.approx(1.0, abs=1e-6)
    expected = np.sqrt(np.mean((one[:, 0].astype(np.float64)) ** 2, axis=-1)).mean()
    assert figures["rmse_mv_sample"]["value"] == pytest.approx(expected, rel=1e-4)


def test_predictions_of_another_dataset_are_told(settings, dataset_url, tmp_path):
    ecg = np.zeros((1, 12, 1280), np.float32)
    np.savez(tmp_path / "p.npz", window_id=np.array(["w"]), ecg_mv=ecg, leads=np.array(LEADS), fs_hz=np.array(128.0))
    with pytest.raises(InputError, match="was not asked") as caught:
        evaluated(settings, dataset_url, evaluate.of_predictions(tmp_path / "p.npz"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["other_segment", "nothing"])
def test_what_cannot_draw_from_a_ppg_is_told(name):
    with pytest.raises(ConfigError, match="choose one of template"):
        evaluate.of_yardstick(name)


@pytest.mark.slow
def test_a_report_that_was_not_finished_is_made_again(plain, settings, dataset_url, model_folder, monkeypatch):
    def fail(*_):
        raise DatasetError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(evaluate, "render_html", fail)
        with pytest.raises(DatasetError):
            evaluated(settings, dataset_url, model_folder, max_windows=2, bootstrap=10)
    result = evaluated(settings, dataset_url, model_folder, max_windows=2, bootstrap=10)
    assert not result.reused
    assert storage.exists(result.report_html)


def test_one_poor_window_is_refused_alone_and_counted(tmp_path):
    """Of four test windows one has a PPG that says nothing: it alone is missing, and no other window changes."""
    people = {"train": range(6), "test": range(100, 104)}
    seeing = simulated_dataset(str(tmp_path / "good"), people, spoilt=())
    blind = simulated_dataset(str(tmp_path / "poor"), people, spoilt=(101,))
    rows = {}
    for url in (seeing, blind):
        plan = evaluate._planned(Dataset.open(url), recipe_of(samples=2))
        drawing = Drawing(fitted(("template",), yardstick_windows(plan.windows, plan.train)), 1, 0)
        found = measure_all(of_systems(plan, "template"), drawing, plan.windows, f"{url}-rows")
        rows[url] = found.rows()
        assert found.refused == {"template": int(url == blind)}
    lost = [k for k, name in enumerate(rows[seeing]["window_id"].to_pylist())
            if name not in rows[blind]["window_id"].to_pylist()]  # fmt: skip
    assert len(lost) == 1
    kept = [k for k in range(4) if k not in lost]
    # As text, where NaN is like NaN.
    assert repr(rows[seeing].take(kept).to_pylist()) == repr(rows[blind].to_pylist())


def test_the_controls_hear_or_are_told_of_another_person(plan):
    by_name = {trial.system: trial for trial in plan.trials}
    inputs = {name: read(by_name[name], plan.windows) for name in ("model", "shuffled_ppg", "shuffled_demographics")}
    person = by_name["model"].listed.person
    given = {
        "shuffled_ppg": [inputs[name].ppg for name in ("model", "shuffled_ppg")],
        "shuffled_demographics": [by_name[name].people for name in ("model", "shuffled_demographics")],
    }
    for system, (own, other) in given.items():
        for row in range(4):
            donors = [k for k in range(4) if np.array_equal(other[row], own[k], equal_nan=True)]
            assert [person[k] != person[row] for k in donors] == [True], system
    np.testing.assert_array_equal(inputs["shuffled_demographics"].ppg, inputs["model"].ppg)
    np.testing.assert_array_equal(by_name["warped_ppg"].people, by_name["model"].people)
    for name in ("shuffled_ppg", "shuffled_demographics"):
        np.testing.assert_array_equal(inputs[name].truth.ecg_mv, inputs["model"].truth.ecg_mv)


def test_the_other_segment_is_of_the_same_person_and_another_window(plan):
    (trial,) = of_systems(plan, "other_segment")
    inputs = read(trial, plan.windows)
    assert len(trial) == 4
    same = [np.array_equal(inputs.enrolment[k], inputs.truth.ecg_mv[k]) for k in range(4)]
    assert not any(same)
    assert not of_systems(plan, "other_recording"), "nobody has a second recording"


def test_the_floor_is_of_another_day_where_there_is_one(tmp_path):
    """Two of four test people have a second day: theirs is the floor of another recording, the others' of the same."""
    url = str(tmp_path / "days")
    windows = [
        window
        for split, people, days in (("train", range(4), 1), ("test", range(100, 102), 2), ("test", range(102, 104), 1))
        for person in people
        for day in range(days)
        for window in segment(
            simulate_person(0, person, 34.0, day=day), step_s=10.0, ids=lambda *parts: "-".join(parts), split=split
        ).windows
    ]
    # Days lie between each other, so that the farthest window is often one of the same day.
    windows.sort(key=lambda window: (window.person, window.start_s))
    commit(url, [write_part(url, "k", "simulated", {"all": "0"}, windows, [])], {})
    recipe = recipe_of(yardsticks=("other_segment",), max_windows=8, samples=1, counterfactual_windows=0)
    dataset = Dataset.open(url)
    made = evaluate._planned(dataset, recipe)
    store = dataset.store("test", channels=1)
    of_ecg = {store.batch([row]).ecg_mv[0].tobytes(): row for row in range(len(store))}
    by_name = {trial.system: trial for trial in made.trials}
    seen = {}
    for name in ("other_recording", "other_segment"):
        trial = by_name[name]
        assert trial.by == "other_segment"
        inputs = read(trial, made.windows)
        for k, ecg in enumerate(inputs.enrolment):
            row = of_ecg[ecg.tobytes()]
            assert store.person[row] == inputs.truth.person[k]
            assert (store.rest.recording[row] != inputs.truth.recording[k]) == (name == "other_recording")
            assert store.rest.window_id[row] != inputs.truth.window_id[k]
        seen[name] = set(trial.listed.window_id.tolist())
    assert seen["other_recording"] | seen["other_segment"] == set(by_name["model"].listed.window_id.tolist())
    assert not seen["other_recording"] & seen["other_segment"]
    assert len(set(by_name["other_recording"].listed.person.tolist())) == 2


def test_one_thing_changes_in_a_counterfactual():
    people = np.array([[40.0, 0.0, 180.0, 80.0], [60.0, 1.0, 165.0, 70.0]])
    changed = changed_people(people)
    bmi = {name: rows[:, 3] / (rows[:, 2] / 100) ** 2 for name, rows in changed.items()}
    np.testing.assert_array_equal(changed["base"], people)
    np.testing.assert_allclose(changed["female"][:, 1], 1.0)
    np.testing.assert_allclose(changed["female"][0, 2] - 180.0, changed["male"][1, 2] * -1 + 165.0)
    np.testing.assert_array_equal(changed["female"][1], people[1])
    np.testing.assert_array_equal(changed["male"][0], people[0])
    for name in ("female", "male", "height+10"):
        np.testing.assert_allclose(bmi[name], bmi["base"])
    np.testing.assert_allclose(bmi["bmi+5"] - bmi["base"], 5.0)
    np.testing.assert_allclose(changed["height+10"][:, 2] - people[:, 2], 10.0)
    np.testing.assert_allclose(changed["age+20"][:, 0] - people[:, 0], 20.0)


def test_a_dataset_without_test_windows_is_told(settings, dataset_url, model_folder, tmp_path):
    url = str(tmp_path / "none")
    windows = segment(simulate_person(0, 1, 12.0), step_s=10.0, ids=lambda *p: "-".join(p), split="train").windows
    commit(url, [write_part(url, "k", "simulated", {"one": "0"}, windows, [])], {})
    with pytest.raises(DatasetError) as caught:
        evaluated(settings, url, model_folder)
    assert "\n" not in str(caught.value)


def test_the_command_takes_one_question(settings, tmp_path):
    choice = EvaluateChoice(system="template", predictions=tmp_path / "p.npz")
    with pytest.raises(ConfigError, match="ask one at a time"):
        evaluate_command.run(recipe_of(), choice, settings, Teller(print))


def test_the_command_answers_for_any_dataset(plain, settings, dataset_url, tmp_path, monkeypatch):
    """Requests first, then the verdict in words, a copy of the report, and exit status 0; from any folder."""
    said = []
    monkeypatch.chdir(Path(dataset_url).parent)
    here = f"./{Path(dataset_url).name}"
    asked = EvaluateChoice(dataset=here, requests=tmp_path / "ask.parquet")
    assert evaluate_command.run(recipe_of(), asked, settings, Teller(said.append)) == 0
    assert said[0].startswith("32 requests in")
    judged = EvaluateChoice(dataset=dataset_url, system="template", out=tmp_path / "out")
    assert evaluate_command.run(recipe_of(), judged, settings, Teller(said.append)) == 0
    assert said[1].startswith("Refused")
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["model"]["name"] == "template"
    assert (tmp_path / "out" / "report.html").read_text().startswith("<!DOCTYPE html>")
