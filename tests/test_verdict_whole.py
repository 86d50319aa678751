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
from pipelines.trials import fitted, read, yardstick_windows

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
def train(plan):
    return yardstick_windows(plan.windows, plan.train)


@pytest.fixture(scope="module")
def yardsticks(plan, train, tmp_path_factory):
    """Rows of what is measured beside the model: once for all systems of this file."""
    names = ("template", "mean_waveform", "regression")
    chosen = [trial for trial in plan.trials if trial.by in names]
    folder = str(tmp_path_factory.mktemp("rows"))
    return measure_all(chosen, Drawing(fitted(names, train), 1, 0), plan.windows, folder).rows()


@pytest.fixture(scope="module")
def bank(plan):
    return describe_all(np.arange(len(plan.train)), plan.windows, split="train", system="train")


@pytest.fixture(scope="module")
def judged(plan, yardsticks, bank, tmp_path_factory):
    """Evaluate a system as the stage does, with the yardsticks measured before."""

    def evaluated(translator):
        drawing = Drawing({"model": translator}, 1, 0)
        asked = [trial for trial in plan.trials if trial.by == "model"]
        measured = measure_all(asked, drawing, plan.windows, str(tmp_path_factory.mktemp("rows")))
        drawn = measured.rows()
        mine = drawn.filter(pc.equal(drawn["system"], "model"))
        rates = evaluate._rates_of(plan, mine)
        rows = pa.concat_tables([drawn, yardsticks, IntervalRegression().fit(bank).rows(mine, rates)])
        source = Source(
            recipe="demo", dataset_hash="d" * 64, split="test", simulated=True, model_sha256="m" * 64,
            model_name=translator.name, lineage={}, settings={}, refused=measured.refused, left_out=0,
        )  # fmt: skip
        return compose(rows, bank, source, mandatory=MANDATORY, bootstrap=200, seed=0)

    return evaluated


@pytest.fixture(scope="module")
def honest(train, judged):
    return judged(Fake().fit(train))


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


def test_the_known_absurdities_are_there_and_refused(train, judged, honest):
    """The mean waveform has the lowest RMSE of all; it and its like are refused all the same."""
    rmse = {name: value(figures, "rmse_mv_sample") for name, figures in honest["controls"].items()
            if figures["rmse_mv_sample"]["value"] is not None}  # fmt: skip
    assert rmse["mean_waveform"] < min(value(honest, "figures", "rmse_mv_sample"), rmse["template"])
    mean = judged(fitted(("mean_waveform",), train)["mean_waveform"])
    assert mean["verdict"]["refused"]
    assert not mean["verdict"]["passed"]
    assert "G5" not in mean["verdict"]["claims"]

    template = judged(fitted(("template",), train)["template"])
    assert value(template, "figures", "hr_error_bpm") <= 1.1 * value(honest, "figures", "hr_error_bpm")
    assert template["verdict"]["refused"]
    assert "demographics" in template["verdict"]["headline"]


@pytest.mark.parametrize(
    ("make", "said"),
    [(DeafToPulse, ["PPG"]), (DeafToPeople, ["demographics"]), (DeafToBoth, ["PPG", "demographics"])],
)
def test_who_does_not_listen_is_refused_by_name(train, judged, make, said):
    verdict = judged(make().fit(train))["verdict"]
    assert verdict["refused"]
    assert verdict["passed"] == ("PPG" not in said)
    for word in ("PPG", "demographics"):
        assert (word in verdict["headline"]) == (word in said), verdict


def test_who_copies_training_ecgs_is_caught(train, judged, honest):
    report = judged(Copier().fit(train))
    assert report["verdict"]["memorised"]
    assert not report["verdict"]["passed"]
    assert report["verdict"]["claims"] == []
    assert value(report, "memorisation", "nn_ratio") < 0.5 * value(honest, "memorisation", "nn_ratio")


def test_who_was_fed_the_recorded_ecg_is_stopped(plan, train, judged, honest):
    report = judged(Leaky(read(plan.trials[0], plan.windows).truth).fit(train))
    assert report["audit"]["raised"]
    assert report["verdict"]["stopped"]
    assert not report["verdict"]["passed"]
    assert report["verdict"]["claims"] == []
    assert not honest["audit"]["raised"]
