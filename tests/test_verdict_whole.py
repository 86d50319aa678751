"""The whole evaluation of systems whose faults are known: the honest is let through, the deaf and the cheats are not.

Each is the simulator's own oracle, spoilt in one way, on people it has not seen.
"""

import dataclasses

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from evaluated import Copier, DeafToBoth, DeafToPeople, DeafToPulse, Fake, Leaky, simulated_dataset

from p2es.baselines.intervals import IntervalRegression
from p2es.evaluation.report import Source, compose
from p2es_platform.dataset import Dataset
from pipelines import evaluate
from pipelines.measuring import Drawing, describe_all, measure_all
from pipelines.recipes import EvaluateConfig, demo
from pipelines.trials import fitted

pytestmark = pytest.mark.slow

MANDATORY = ("finite", "lead_laws", "lineage", "follows_pulse")


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    url = simulated_dataset(str(tmp_path_factory.mktemp("data")), {"train": range(60), "test": range(100, 136)})
    config = EvaluateConfig(
        max_windows=36, bootstrap=200, counterfactual_windows=24, member_windows=36, bank_windows=120
    )
    return evaluate._planned(Dataset.open(url), dataclasses.replace(demo(), evaluate=config))


@pytest.fixture(scope="module")
def yardsticks(plan):
    """Rows of what is measured beside the model: once for all systems of this file."""
    names = ("template", "mean_waveform", "regression")
    drawing = Drawing(fitted(names, plan.train), 1, 0)
    return measure_all([trial for trial in plan.trials if trial.by in names], drawing).rows


@pytest.fixture(scope="module")
def bank(plan):
    return describe_all(plan.train.batch(np.arange(len(plan.train))), system="train")


@pytest.fixture(scope="module")
def judged(plan, yardsticks, bank):
    """Evaluate a system as the stage does, with the yardsticks measured before."""

    def evaluated(translator):
        drawing = Drawing({"model": translator}, 1, 0)
        measured = measure_all([trial for trial in plan.trials if trial.by == "model"], drawing)
        mine = measured.rows.filter(pc.equal(measured.rows["system"], "model"))
        rates = evaluate._pulse_rates(plan.trials[0], mine)
        rows = pa.concat_tables([measured.rows, yardsticks, IntervalRegression().fit(bank).rows(mine, rates)])
        source = Source(
            recipe="demo", dataset_hash="d" * 64, split="test", simulated=True, model_sha256="m" * 64,
            model_name=translator.name, lineage={}, settings={}, refused=measured.refused, left_out=0,
        )  # fmt: skip
        return compose(rows, bank, source, mandatory=MANDATORY, bootstrap=200, seed=0)

    return evaluated


@pytest.fixture(scope="module")
def honest(plan, judged):
    return judged(Fake().fit(plan.train))


def value(report, *path):
    for name in path:
        report = report[name]
    return report["value"]


def test_an_honest_system_is_let_through(honest):
    verdict = honest["verdict"]
    assert verdict["passed"], verdict
    assert not verdict["stopped"]
    assert not verdict["memorised"]
    assert not verdict["refused"], verdict["refusals"]
    assert {"follows_pulse", "uses_demographics", "G3"} <= set(verdict["claims"])


def test_the_known_absurdities_are_there_and_refused(plan, judged, honest):
    """The mean waveform has the lowest RMSE of all; it and its like are refused all the same."""
    rmse = {name: value(figures, "rmse_mv_sample") for name, figures in honest["controls"].items()
            if figures["rmse_mv_sample"]["value"] is not None}  # fmt: skip
    assert rmse["mean_waveform"] < min(value(honest, "figures", "rmse_mv_sample"), rmse["template"])
    mean = judged(fitted(("mean_waveform",), plan.train)["mean_waveform"])
    assert mean["verdict"]["refused"]
    assert not mean["verdict"]["passed"]
    assert "G5" not in mean["verdict"]["claims"]

    template = judged(fitted(("template",), plan.train)["template"])
    assert value(template, "figures", "hr_error_bpm") <= 1.1 * value(honest, "figures", "hr_error_bpm")
    assert template["verdict"]["refused"]
    assert "demographics" in template["verdict"]["headline"]


@pytest.mark.parametrize(
    ("make", "said"),
    [(DeafToPulse, ["PPG"]), (DeafToPeople, ["demographics"]), (DeafToBoth, ["PPG", "demographics"])],
)
def test_who_does_not_listen_is_refused_by_name(plan, judged, make, said):
    verdict = judged(make().fit(plan.train))["verdict"]
    assert verdict["refused"]
    assert verdict["passed"] == ("PPG" not in said)
    for word in ("PPG", "demographics"):
        assert (word in verdict["headline"]) == (word in said), verdict


def test_who_copies_training_ecgs_is_caught(plan, judged, honest):
    report = judged(Copier().fit(plan.train))
    assert report["verdict"]["memorised"]
    assert not report["verdict"]["passed"]
    assert report["verdict"]["claims"] == []
    assert value(report, "memorisation", "nn_ratio") < 0.5 * value(honest, "memorisation", "nn_ratio")


def test_who_was_fed_the_recorded_ecg_is_stopped(plan, judged, honest):
    report = judged(Leaky(plan.trials[0].truth).fit(plan.train))
    assert report["audit"]["raised"]
    assert report["verdict"]["stopped"]
    assert not report["verdict"]["passed"]
    assert report["verdict"]["claims"] == []
    assert not honest["audit"]["raised"]
