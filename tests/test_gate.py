import copy
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2es.errors import ConfigError, ModelError
from p2es.evaluation.goals import GOALS, judge
from p2es.evaluation.report import VERSION
from p2es_platform.gate import FOLLOWS_PULSE, decide

DEMO = ("finite", "lead_laws", "lineage", "follows_pulse")
SHA = "a" * 64


def report(**changes):
    made = {
        "format": "p2es-report",
        "version": VERSION,
        "recipe": "demo",
        "dataset": {"hash": "d" * 64, "split": "test", "people": 40, "windows": 160, "simulated": True},
        "model": {"sha256": SHA},
        "figures": {
            "finite_share": {"value": 1.0, "low": 1.0, "high": 1.0, "unit": "", "n": 160},
            "lead_law_uv": {"value": 0.01, "low": 0.01, "high": 0.02, "unit": "uV", "n": 160},
        },
        "controls": {},
        "contrasts": {FOLLOWS_PULSE: {"value": 0.40, "low": 0.35, "high": 0.45}},
        "audit": {"raised": False, "message": "no sign", "skills": {"pr_ms": {"value": 0.0, "low": -0.1, "high": 0.1}}},
        "verdict": {"stopped": False, "memorised": False},
    }
    return made | changes


def gate(of, mandatory=DEMO, **options):
    return decide(of, mandatory, judge(of), **options)


def contrast(value, low, high):
    return {FOLLOWS_PULSE: {"value": value, "low": low, "high": high}}


def test_a_good_report_passes_and_says_that_there_was_no_champion():
    found = gate(report(), sha256=SHA)
    assert found.passed
    assert not found.champion_compared
    assert "no champion" in found.note
    assert {check.name for check in found.checks} >= {goal.name for goal in GOALS}
    json.dumps(found.to_dict(), allow_nan=False)


@pytest.mark.parametrize("name", DEMO)
def test_each_mandatory_goal_can_stop_a_version(name):
    broken = report()
    if name == "finite":
        broken["figures"]["finite_share"]["value"] = 0.999
    elif name == "lead_laws":
        broken["figures"]["lead_law_uv"]["value"] = 2.0
    elif name == "lineage":
        broken["dataset"]["hash"] = ""
    else:
        broken["contrasts"] = contrast(0.1, -0.01, 0.2)
    assert gate(broken).missed == (name,)
    others = tuple(other for other in DEMO if other != name)
    assert gate(broken, others).passed


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("key", ["value", "low", "high"])
@pytest.mark.parametrize("part", ["figures", "contrasts"])
def test_a_figure_that_is_not_finite_is_refused_wherever_it_stands(bad, key, part):
    broken = report()
    broken[part]["some_figure"] = {"value": 1.0, "low": 0.0, "high": 2.0} | {key: bad}
    found = gate(broken)
    assert not found.passed
    assert found.missed == ("figures",)
    assert f"some_figure.{key}" in next(check.measured for check in found.checks if check.name == "figures")


def test_a_goal_that_claims_to_pass_on_an_infinite_figure_is_missed():
    rows = judge(report())
    for row in rows:
        row["measured"], row["passed"] = math.inf, True
    assert set(decide(report(), DEMO, rows).missed) == set(DEMO)


def test_a_goal_that_is_not_judged_is_missed_and_one_judged_twice_must_pass_twice():
    rows = judge(report())
    assert decide(report(), DEMO, [row for row in rows if row["name"] != "finite"]).missed == ("finite",)
    again = copy.deepcopy(next(row for row in rows if row["name"] == "finite")) | {"passed": False}
    assert not decide(report(), DEMO, [*rows, again]).passed
    assert not decide(report(), DEMO, [again, *rows]).passed


@given(st.sets(st.sampled_from([goal.name for goal in GOALS]), min_size=1))
def test_asking_for_more_never_lets_a_version_through(names):
    fewer = tuple(sorted(names))[: max(1, len(names) // 2)]
    if gate(report(), tuple(names)).passed:
        assert gate(report(), fewer).passed


def test_only_a_literal_true_passes():
    rows = [row | {"passed": "yes"} for row in judge(report())]
    assert set(decide(report(), DEMO, rows).missed) == set(DEMO)


def test_a_report_of_another_model_is_refused():
    assert gate(report(), sha256="b" * 64).missed == ("model",)
    assert gate(report(model={"sha256": SHA}), ("finite",), sha256=SHA).passed
    assert "model" in gate(report(model={}), ("finite",), sha256=SHA).missed


def test_a_gate_that_asks_for_an_unknown_goal_or_for_nothing_cannot_run():
    with pytest.raises(ConfigError, match="'G99', which is no goal"):
        gate(report(), ("finite", "G99"))
    with pytest.raises(ConfigError, match="asks for nothing"):
        gate(report(), ())


@pytest.mark.parametrize("broken", [{}, {"format": "p2es-report", "version": 1}, {"verdict": None}, {"figures": None}])
def test_what_is_no_report_is_refused(broken):
    made = report() | broken if broken else {}
    with pytest.raises(ModelError, match="p2es evaluate"):
        decide(made, DEMO, [])


@pytest.mark.parametrize(
    ("ours", "theirs", "passed"),
    [
        ((0.40, 0.35, 0.45), 0.30, True),
        ((0.40, 0.35, 0.45), 0.45, True),  # worse, within its own interval
        ((0.40, 0.35, 0.45), 0.46, False),
    ],
)
def test_a_version_may_be_worse_than_the_champion_only_within_its_interval(ours, theirs, passed):
    champion = report(model={"sha256": "c" * 64}, contrasts=contrast(theirs, theirs - 0.05, theirs + 0.05))
    found = gate(report(contrasts=contrast(*ours)), champion=champion)
    assert found.champion_compared
    assert found.passed == passed
    assert found.missed == (() if passed else ("champion",))


def test_a_champion_measured_on_other_windows_is_not_compared():
    better = contrast(0.9, 0.85, 0.95)
    others = {"hash": "e" * 64, "split": "test", "people": 40, "windows": 160, "simulated": True}
    champion = report(model={"sha256": "c" * 64}, contrasts=better, dataset=others)
    found = gate(report(), champion=champion)
    assert (found.passed, found.champion_compared) == (True, False)
    assert "other windows" in found.note
    same = gate(report(), champion=report(contrasts=better))
    assert (same.passed, same.champion_compared) == (True, False)


def test_the_decision_leaves_its_arguments_as_they_are():
    given_report, rows = report(), judge(report())
    before = copy.deepcopy((given_report, rows))
    decide(given_report, DEMO, rows, sha256=SHA, champion=given_report)
    assert (given_report, rows) == before


STOPS = {
    "stopped": {"audit": {"raised": True, "message": "leakage suspected: look for shared people", "skills": {}}},
    "memorised": {"memorisation": {"duplicates": 3, "duplicates_real": 0}},
}


@pytest.mark.parametrize("name", STOPS)
def test_a_leak_or_memorised_ecgs_pass_no_gate(name):
    broken = report(**STOPS[name])
    for mandatory in (DEMO, ("finite",)):
        found = gate(broken, mandatory)
        assert not found.passed
        assert found.missed == (name,)
    (check,) = [check for check in found.checks if check.name == name]
    assert ("look for shared people" if name == "stopped" else "training ECGs drawn again 3") in check.measured


@pytest.mark.parametrize("name", STOPS)
@pytest.mark.parametrize("told", [True, None, "no", 0])
def test_a_verdict_that_does_not_clear_a_version_stops_it_whatever_the_figures_say(name, told):
    clear = report()["verdict"]
    assert gate(report(verdict=clear | {name: told})).missed == (name,)
    assert gate(report(verdict={k: v for k, v in clear.items() if k != name})).missed == (name,)


@pytest.mark.parametrize("name", STOPS)
def test_a_verdict_that_clears_what_the_figures_stop_is_not_believed(name):
    assert gate(report(**STOPS[name], verdict={"stopped": False, "memorised": False, "passed": True})).missed == (name,)


def test_what_the_verdict_refuses_is_noted_and_left_to_the_recipe():
    found = gate(report())
    (check,) = [check for check in found.checks if check.name == "verdict"]
    assert found.passed
    assert not check.passed
    assert not check.mandatory
    assert "demographics" in check.measured
    assert gate(report(), (*DEMO, "uses_demographics")).missed == ("uses_demographics",)


@pytest.mark.parametrize("path", [("fairness", "sex", "gaps", "x"), ("controls", "template", "x"), ("extra", "x")])
def test_a_figure_that_is_not_finite_is_found_in_every_part(path):
    broken = report()
    part = broken
    for key in path[:-1]:
        part = part.setdefault(key, {})
    part[path[-1]] = {"value": math.nan, "loa": [0.0, 1.0]}
    assert gate(broken).missed == ("figures",)
    part[path[-1]] = {"value": 1.0, "loa": [0.0, math.inf]}
    assert gate(broken).missed == ("figures",)


def test_an_old_champion_is_not_compared():
    found = gate(report(), champion=report(version=1, model={"sha256": "c" * 64}, contrasts=contrast(0.9, 0.85, 0.95)))
    assert (found.passed, found.champion_compared) == (True, False)
    assert "version 1" in found.note
