import base64
import copy
import functools
import json
import re
from xml.etree import ElementTree

import evaluation_rows
import numpy as np
import pytest

from p2es.evaluation import charts, pictures
from p2es.evaluation.definitions import DEFINITIONS, SECTIONS
from p2es.evaluation.delineator_check import LUDB_MEASURED, delineator_check
from p2es.evaluation.goals import GOALS
from p2es.evaluation.metrics import BY_NAME, METRICS
from p2es.evaluation.page import number, show, span
from p2es.evaluation.pictures import Picture
from p2es.evaluation.report import Source, compose, plain, render_html, write_html
from p2es.evaluation.verdict import verdict

MANDATORY = ("finite", "lead_laws", "lineage", "follows_pulse")
NUMBERED = [f"G{k}" for k in range(1, 24)]
# Only the controls that the verdict reads, so that many models can be judged.
BAD = {
    "mean waveform": {"kind": "mean_waveform", "shuffled": "mean_waveform", "blind": True, "yardsticks": ("template",)},
    "template": {"kind": "template", "blind": True, "yardsticks": ("mean_waveform",)},
    "deaf": {"kind": "deaf"},
    "rate without pulse": {"shuffled": "good"},
    "blind": {"blind": True},
    "deaf and blind": {"kind": "deaf", "blind": True},
    "copies": {"copies": True},
    "leaks": {"leaks": True},
    "no controls": {"controls": False},
}


def source_of(**changes):
    made = {
        "recipe": "demo", "dataset_hash": "d" * 64, "split": "test", "simulated": True, "model_sha256": "a" * 64,
        "model_name": "p2es", "lineage": {"run_id": "r1"}, "settings": {"samples": 20}, "refused": {"model": 1},
        "left_out": 3, "versions": {"numpy": "2.3.1"}, "hashes": {"bank": "b" * 64}, "simulator": "7",
    }  # fmt: skip
    return Source(**made | changes)


def composed(rows, bank, **changes):
    return compose(rows, bank, source_of(**changes), mandatory=MANDATORY, bootstrap=100, seed=0)


@functools.cache
def model(name):
    """Give the rows and the report of a model, sound or bad."""
    options = {"people": 16, "yardsticks": ()} | (BAD | {"sound": {"yardsticks": ("template", "regression")}})[name]
    rows, bank = evaluation_rows.build(**options)
    return rows, composed(rows, bank)


@pytest.fixture(scope="module")
def sound():
    return model("sound")


def test_a_sound_model_is_not_refused_and_may_claim_what_it_meets(sound):
    found = sound[1]["verdict"]
    assert (found["passed"], found["stopped"], found["memorised"], found["refused"]) == (True, False, False, False)
    assert found["refusals"] == found["reasons"] == []
    met = {goal["name"] for goal in sound[1]["goals"] if goal["passed"]}
    assert set(found["claims"]) == met
    assert {"follows_pulse", "uses_demographics", "G2", "G3", "G4", "G5", "G23"} <= met


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("mean waveform", ["does not follow the PPG", "does not use demographics"]),
        ("template", ["does not use demographics"]),
        ("deaf", ["does not follow the PPG"]),
        ("rate without pulse", ["does not follow the PPG"]),
        ("blind", ["does not use demographics"]),
        ("deaf and blind", ["does not follow the PPG", "does not use demographics"]),
        ("copies", ["trained on"]),
        ("leaks", ["look for"]),
        ("no controls", ["not shown that it follows the PPG", "not shown that it uses demographics"]),
    ],
)
def test_the_verdict_refuses_by_name(name, said):
    found = model(name)[1]["verdict"]
    assert found["refused"]
    assert len(found["refusals"]) == len(said)
    for text, refusal in zip(said, found["refusals"], strict=True):
        assert text in refusal
    assert found["headline"].startswith(("Refused", "Stopped"))


def test_the_mean_waveform_wins_rmse_and_may_claim_nothing_by_it():
    report = model("mean waveform")[1]
    mean, template = report["figures"]["rmse_mv_mean"], report["controls"]["template"]["rmse_mv_mean"]
    assert mean["high"] < template["low"]
    assert set(report["verdict"]["claims"]) == {"finite", "lead_laws", "lineage", "G1"}
    assert not report["verdict"]["passed"]


def test_the_template_wins_heart_rate_and_is_refused_all_the_same():
    report = model("template")[1]
    assert {"G2", "follows_pulse"} <= set(report["verdict"]["claims"])
    assert report["verdict"]["refused"]
    # Its recipe asks only for what a template can do: so it passes the gate, and says on its page what it is not.
    assert report["verdict"]["passed"]
    assert not verdict(report, [*MANDATORY, "uses_demographics"])["passed"]


def test_nothing_of_what_a_ppg_cannot_tell_is_claimed_without_demographics():
    report = model("blind")[1]
    met = {goal["name"] for goal in report["goals"] if goal["passed"]}
    prior = {goal.name for goal in GOALS if "uses_demographics" in goal.rests_on}
    assert met & prior, "some are met without any use of demographics"
    assert not prior & set(report["verdict"]["claims"])


@pytest.mark.parametrize(("name", "sign"), [("leaks", "stopped"), ("copies", "memorised")])
def test_a_leak_or_a_copy_passes_no_recipe_and_claims_nothing(name, sign):
    report = model(name)[1]
    found = report["verdict"]
    assert found[sign]
    assert not found["passed"]
    assert found["claims"] == []
    assert found["reasons"][0] == found["refusals"][0]
    assert not verdict(report, ["finite"])["passed"]
    page = render_html(report, [])
    assert page.index(found["headline"]) < page.index('id="goals"')


def test_only_the_right_models_are_called_leaks_or_copies():
    for name in ("sound", *BAD):
        found = model(name)[1]["verdict"]
        assert (found["stopped"], found["memorised"]) == (name == "leaks", name == "copies"), name


def test_predictions_without_controls_are_refused_as_not_shown():
    report = model("no controls")[1]
    status = {goal["name"]: goal["status"] for goal in report["goals"]}
    assert status["follows_pulse"] == status["uses_demographics"] == status["G23"] == "not measured"
    assert "not shown" in report["verdict"]["headline"]
    assert set(report["controls"]) == {"demographic_regression"}
    assert {"counterfactual", "membership"} <= set(report["not_measured"])
    without = dict(report, audit={}, memorisation={})
    assert any("leaks" in text for text in verdict(without)["refusals"])


def test_the_verdict_is_computed_from_figures_and_changes_nothing(sound):
    report = copy.deepcopy(model("leaks")[1])
    report["verdict"] = sound[1]["verdict"]
    report["goals"] = sound[1]["goals"]
    before = copy.deepcopy(report)
    assert verdict(report)["stopped"]
    assert report == before


def test_an_empty_report_is_refused_and_passes_nothing():
    found = verdict({})
    assert (found["passed"], found["refused"], found["claims"]) == (False, True, [])


def test_internal_systems_are_in_no_table(sound):
    rows, report = sound
    there = set(rows["system"].to_pylist())
    assert {"members", "counterfactual:base"} <= there
    shown = {"model", "shuffled_ppg", "warped_ppg", "shuffled_demographics", "template", "regression",
             "demographic_regression"}  # fmt: skip
    assert {"model", *report["controls"]} == shown
    for part in ("agreement", "morphology", "rhythm", "calibration", "realism"):
        assert set(report[part]) <= shown
    for text in (json.dumps(report["contrasts"]), render_html(report, [])):
        assert "counterfactual:" not in text
        assert "members -" not in text


@pytest.mark.parametrize("name", ["sound", "mean waveform", "no controls"])
def test_the_report_is_plain_json(name):
    report = model(name)[1]
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_what_json_does_not_know_becomes_plain():
    made = plain(
        {"a": np.float64("nan"), 1: np.arange(2), "b": (np.inf, np.int64(3), True, None, "x"), "c": {"d": np.nan}}
    )
    assert made == {"a": None, "1": [0, 1], "b": [None, 3, True, None, "x"], "c": {"d": None}}


def test_the_report_does_not_depend_on_the_order_of_rows():
    rows, bank = evaluation_rows.build(people=12, yardsticks=())
    order = np.random.default_rng(1).permutation(rows.num_rows)
    one, other = composed(rows, None), composed(rows.take(order), None)
    assert [(g["name"], g["status"]) for g in one["goals"]] == [(g["name"], g["status"]) for g in other["goals"]]
    for name, figure in one["figures"].items():
        for key, value in figure.items():
            assert other["figures"][name][key] == (
                pytest.approx(value, rel=1e-9) if isinstance(value, float) else value
            )
    assert bank.num_rows == 24
    assert one["realism"] == one["memorisation"] == {}
    assert "training windows" in one["not_measured"]["realism"]


def test_figures_that_are_not_of_the_rows_are_kept_beside_them():
    rows, _ = evaluation_rows.build(people=4, controls=False)
    made = {"as_made": {name: {"sd_ms": 2.0} for name in ("pr_ms", "qrs_ms", "qt_ms")}}
    check = made | {"beat_by_beat": made, "least_f1": 0.999}
    options = {"mandatory": MANDATORY, "bootstrap": 20, "seed": 0}
    for people, found in ((True, "met"), (False, "not measured")):
        report = compose(rows, None, source_of(simulated=people), **options, extra={"delineator_check": check})
        assert next(goal["status"] for goal in report["goals"] if goal["name"] == "G22") == found


def test_the_page_shows_the_ruler_in_every_beat_and_what_was_measured_on_ludb():
    rows, _ = evaluation_rows.build(people=4, controls=False)
    check = delineator_check(3, seed=2)
    options = {"mandatory": MANDATORY, "bootstrap": 20, "seed": 0}
    report = compose(rows, None, source_of(simulated=True), **options, extra={"delineator_check": check})
    goal = next(goal for goal in report["goals"] if goal["name"] == "G22")
    assert goal["status"] == "met"
    assert sum("every beat" in condition["label"] for condition in goal["conditions"]) == 3
    page = render_html(report, [])
    part = page[page.index('id="ruler"') : page.index('id="morphology"')]
    every = check["beat_by_beat"]["as_made"]["qt_ms"]
    assert f"{every['marked'] - every['cut']} beats" in part
    assert f"{number(every['low_ms'])} to {number(every['high_ms'])}" in part
    assert f"{LUDB_MEASURED['beats']} beats" in part
    assert "12.7" in part, "what CSE allows for the end of P"
    assert "Not measured." not in part
    bare = render_html(compose(rows, None, source_of(simulated=True), **options), [])
    part = bare[bare.index('id="ruler"') : bare.index('id="morphology"')]
    assert "Not measured." in part


def test_every_metric_has_one_definition_and_one_place():
    assert set(DEFINITIONS) == set(BY_NAME)
    placed = [name for _, names in SECTIONS for name in names]
    assert sorted(placed) == sorted(BY_NAME)


@pytest.fixture(scope="module")
def page(sound):
    rows, report = sound
    drawn = pictures.draw(report, rows)
    return drawn, render_html(report, drawn)


def test_the_page_needs_no_network_and_is_well_formed(page):
    drawn, text = page
    root = ElementTree.fromstring(text)
    assert not re.search(r"https?://|//[a-z]|<script|<link|@import|url\(", re.sub(r'"data:[^"]*"', "", text))
    images = list(root.iter("img"))
    assert sorted(base64.b64decode(image.get("src").split(",")[1]) for image in images) == sorted(p.png for p in drawn)
    assert root.find("head/meta[@name='viewport']") is not None


def test_the_page_can_be_read_by_a_screen_reader(page):
    root = ElementTree.fromstring(page[1])
    assert root.get("lang") == "en"
    assert all(len(image.get("alt")) > 20 for image in root.iter("img"))
    assert all(cell.get("scope") in ("row", "col") for cell in root.iter("th"))
    for table in root.iter("table"):
        assert next(table.iter("th"), None) is not None
    names = [element.get("id") for element in root.iter() if element.get("id")]
    assert len(names) == len(set(names))
    for link in root.iter("a"):
        assert link.get("href").removeprefix("#") in names


def test_the_verdict_comes_first_and_every_goal_and_figure_is_there(sound, page):
    text = page[1]
    assert text.index("SYNTHETIC") < text.index(sound[1]["verdict"]["headline"]) < text.index('id="goals"')
    for name in NUMBERED:
        assert f"<strong>{name}</strong>" in text
    for metric in METRICS:
        assert metric.label in text
    for part in ("Controls that bite", "What a PPG cannot tell", "What was not measured", "numpy", "b" * 64, "d" * 64):
        assert text.rindex(part) > text.index('id="goals"')


def test_refusals_and_missed_mandatory_goals_stand_before_the_goals():
    report = copy.deepcopy(model("deaf and blind")[1])
    top = render_html(report, []).split('id="goals"')[0]
    for text in (*report["verdict"]["refusals"], "Gate of the recipe: not passed", "follows_pulse, which is missed"):
        assert text.replace("'", "&#39;") in top
    report["verdict"] = verdict(report, ["finite"])
    assert "Gate of the recipe: passed" in render_html(report, [])


def test_the_page_says_which_premature_beats_were_drawn_and_where_there_is_nothing_to_find(sound):
    report = sound[1]
    found = report["ectopy"]["model"]["premature"]
    assert found["beats"] > 0
    assert (found["sensitivity"]["value"], found["f1"]["value"]) == (1.0, 1.0)
    assert report["ectopy"]["shuffled_ppg"]["premature"]["sensitivity"]["value"] == 0.0
    assert "demographic_regression" not in report["ectopy"]
    assert report["not_measured"]["pauses"] == "nothing to find, no recording holds one"
    assert "premature beats" not in report["not_measured"]
    text = render_html(report, [])
    assert f"Premature beats: {found['beats']} recorded in {found['windows']} windows of {found['n']} people" in text
    assert "Pauses: nothing to find" in text
    without = copy.deepcopy(report) | {"ectopy": {}}
    assert "Premature beats and pauses" not in render_html(without, [])


def test_the_page_says_where_equal_opportunity_was_not_measured(sound):
    report = copy.deepcopy(sound[1])
    assert "too few people in any two groups have it" in report["not_measured"]["equal opportunity"]
    part = render_html(report, []).split("Equal opportunity</h3>")[1].split("</table>")[0]
    assert part.count("not measured") == 8, "two findings in four groups"
    result = report["fairness"]["sex"]["opportunity"]["irregular_found"]
    result |= {"note": "", "gap": {"value": 0.25, "low": 0.125, "high": 0.5, "unit": "", "n": 60}}
    part = render_html(report, []).split("Equal opportunity</h3>")[1].split("</table>")[0]
    assert part.count("not measured") == 7
    assert "0.250" in part
    assert "[0.125, 0.500]" in part


def test_the_report_counts_of_which_recording_the_floor_is(sound):
    rows, bank = evaluation_rows.build(people=12, yardsticks=("other_segment",))
    system, window = (np.array(rows[name].to_pylist()) for name in ("system", "window_id"))
    mine = system == "other_segment"
    elsewhere = mine & np.isin(window, [f"t{k}" for k in range(0, 24, 3)])
    system = np.where(elsewhere, "other_recording", system)
    kept = rows.set_column(rows.column_names.index("system"), "system", [system.tolist()])
    kept = kept.filter((~(mine & (window == "t1"))).tolist())
    report = composed(kept, bank)
    assert report["dataset"]["other_ecg"] == {"other_recording": 8, "other_segment": 15, "none": 1}
    text = " ".join(render_html(report, []).split())
    assert "is of another recording in 8 windows, of the same one in 15; 1 have neither" in text
    assert sound[1]["dataset"]["other_ecg"] == {}
    assert "have neither" not in render_html(sound[1], [])


def test_the_page_says_how_much_of_the_gain_is_rate_and_rhythm_alone(sound):
    report = copy.deepcopy(sound[1])
    of = {"model": report["figures"], **report["controls"]}
    for system, f1 in (("model", 0.9), ("warped_ppg", 0.7), ("shuffled_ppg", 0.4)):
        of[system]["r_f1_50ms_lag"] = {"value": f1, "low": None, "high": None}
        of[system]["rmse_mv_sample_lag"] = of[system]["beat_rmse_mv_sample"] = {"value": 0.2, "low": None, "high": None}
    told = re.search(r"Rate and rhythm alone are [^<]*", render_html(report, [])).group()
    assert told.endswith(f"{BY_NAME['r_f1_50ms_lag'].label} 60 %.")
    assert "RMSE" not in told, "no share of a gain of nothing"


def test_pictures_stand_where_their_names_say(sound):
    names = ("worst_1", "ecg_median", "lead_ii_poor", "bland_altman_median", "something")
    text = render_html(sound[1], [Picture(name, f"caption of {name}", b"png") for name in names])
    place = {name: text.index(f'id="{name}"') for name in names}
    heading = {part: text.index(f'id="{part}"') for part in ("cases", "intervals", "morphology", "limits")}
    assert heading["cases"] < place["worst_1"] < place["ecg_median"] < place["lead_ii_poor"] < heading["intervals"]
    assert heading["intervals"] < place["bland_altman_median"] < heading["morphology"] < place["something"]
    assert place["something"] < heading["limits"]
    assert "Worst cases" in text
    assert "Worst cases" not in render_html(sound[1], [])


def test_names_from_outside_cannot_become_markup(sound):
    report = dict(sound[1], lineage={"run": "<b>x</b>"})
    text = render_html(report, [Picture('a"><script>', "<i>", b"")])
    assert "<b>x</b>" not in text
    assert "<script" not in text
    assert "&lt;b&gt;x" in text


def test_what_a_figure_lacks_is_a_dash():
    assert show(None) == show({"value": None, "low": None, "high": None}) == "–"
    assert show({"value": 0.5, "low": None, "high": None}) == "0.500 [–]"
    assert show({"value": 0.5, "low": 0.25, "high": 0.75}) == "0.500 [0.250, 0.750]"
    assert span({"value": 1.5, "low": 1.5, "high": 1.5}) == ""
    assert [number(x) for x in (None, float("nan"), 12.34, 1.234, 0.1234, 0.00012, 3, 0.0)] == [
        "–", "–", "12.3", "1.23", "0.123", "1e-04", "3", "0",
    ]  # fmt: skip


def test_the_page_is_written_whole(sound, tmp_path):
    write_html(sound[1], [], tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text() == render_html(sound[1], [])
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_every_chart_is_drawn_where_there_are_figures_and_only_there(page):
    names = {picture.name for picture in page[0]}
    assert {"systems", "bland_altman_median", "bland_altman_sample", "reliability", "pit", "groups", "spectra",
            "amplitudes", "counterfactual", "timing", "ranks", "beats", "leads"} == names  # fmt: skip
    rows, report = model("no controls")
    assert names - set(pictures.wanted(report, rows)) == {"counterfactual"}


def dots(axes):
    """Give the values that a chart marks, by height on the page."""
    return {round(float(line.get_ydata()[0]), 6): float(line.get_xdata()[0]) for line in axes.get_lines()
            if line.get_marker() == "o"}  # fmt: skip


def test_systems_are_drawn_at_their_figures(sound):
    report = sound[1]
    figures = {"model": report["figures"]} | report["controls"]
    figure = charts.systems(figures, ("rmse_mv_mean", "hr_error_bpm"))
    values = [figures[name]["rmse_mv_mean"]["value"] for name in figures]
    drawn = dots(figure.axes[0])
    assert sorted(drawn.values()) == pytest.approx(sorted(value for value in values if value is not None))
    assert drawn[0] == pytest.approx(report["figures"]["rmse_mv_mean"]["value"]), "the model stands at the top"


def test_bland_altman_draws_each_window_and_its_limits(sound):
    rows, report = sound
    figure = charts.bland_altman(rows, report["agreement"], "median")
    axes = figure.axes[0]
    (points,) = [line for line in axes.get_lines() if line.get_marker() == "o"]
    mine = [row for row in rows.to_pylist() if row["system"] == "model"]
    apart = [row["median_pr_ms"] - row["real_pr_ms"] for row in mine]
    np.testing.assert_allclose(points.get_ydata(), apart)
    levels = sorted(line.get_ydata()[0] for line in axes.get_lines() if line.get_marker() != "o")
    found = report["agreement"]["model"]["median"]["pr_ms"]
    assert levels == pytest.approx(sorted([found["bias"]["value"], *found["loa"]]))


def test_counterfactuals_are_drawn_as_shares_of_the_published_effect(sound):
    effects = sound[1]["counterfactual"]
    drawn = dots(charts.counterfactuals(effects).axes[0])
    shares = [e["found"]["value"] / e["published"] for e in effects if e["published"]]
    assert [drawn[-float(k)] for k in range(len(shares))] == pytest.approx(shares)
