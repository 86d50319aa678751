"""What `p2es tune` searches: read from words, put into a recipe."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2es.errors import ConfigError
from pipelines.recipes import TuneConfig, demo
from pipelines.search_space import as_options, axes, value_at, with_values


def test_the_default_search_fits_the_recipe():
    assert [axis.path for axis in axes(TuneConfig().search, demo())] == [
        "train.learning_rate",
        "train.objective.contrast_weight",
        "diffusion.blur_samples",
    ]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("train.learning-rat:log:1e-4:1e-2", "has no train.learning-rat"),
        ("train.learning-rate", "is not an axis"),
        ("train.learning-rate:log:1e-2:1e-4", "low below high"),
        ("train.learning-rate:log:0:1", "above 0"),
        ("train.learning-rate:gauss:0:1", "is not an axis"),
        ("train.learning-rate:log:a:b", "is not an axis"),
        ("train.learning-rate:int:1:4", "log or uniform"),
        ("train.batch:uniform:8:64", "by int"),
        ("train.precision:uniform:0:1", "not a number"),
        ("train.batch:choice:16", "nothing to choose"),
        ("train.batch:choice:16,many", "'many' cannot stand"),
        ("train.objective:choice:a,b", "part of the recipe"),
        ("train.compile:choice:yes,no", "True and False"),
        ("network.channels:choice:1,2", "only numbers"),
        ("", "has no"),
    ],
)
def test_a_mistake_is_one_line_that_says_what_to_write(text, says):
    with pytest.raises(ConfigError, match=says):
        axes([text], demo())


def test_nothing_or_the_same_twice_is_refused():
    with pytest.raises(ConfigError, match="nothing to search"):
        axes([], demo())
    with pytest.raises(ConfigError, match="twice"):
        axes(["train.batch:choice:16,32", "train.batch:int:16:32"], demo())


@given(rate=st.floats(1e-5, 1e-1), batch=st.integers(2, 512), weight=st.floats(0, 1))
def test_values_go_where_their_paths_say_and_nothing_else_changes(rate, batch, weight):
    values = {"train.learning_rate": rate, "train.batch": batch, "train.objective.contrast_weight": weight}
    changed = with_values(demo(), values)
    assert {path: value_at(changed, path) for path in values} == values
    back = with_values(changed, {path: value_at(demo(), path) for path in values})
    assert back == demo()


def test_numbers_that_depend_on_each_other_change_together():
    changed = with_values(demo(), {"group.clusters": 4, "network.prototypes": 4})
    assert changed.group.clusters == changed.network.prototypes == 4
    with pytest.raises(ConfigError, match="prototype"):
        with_values(demo(), {"group.clusters": 4})


@pytest.mark.parametrize("text", ["train.batch:int:16:18", "train.batch:choice:16,17,18"])
def test_what_is_drawn_lies_in_the_range_ends_included(text):
    domain = axes([text], demo())[0].domain()
    assert {domain.sample() for _ in range(200)} == {16, 17, 18}


def test_the_best_is_written_as_options_that_the_command_takes():
    from pipelines.cli import _parse

    values = {"train.learning_rate": 0.00123, "train.batch": 48, "train.precision": "bfloat16"}
    options = as_options(values)
    assert options == "--train.learning-rate 0.00123 --train.batch 48 --train.precision bfloat16"
    recipe = _parse("train", options.split()).recipe
    assert {path: value_at(recipe, path) for path in values} == values
