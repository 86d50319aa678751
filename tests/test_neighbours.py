import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from p2es.batching import NeighbourGraph
from p2es.demographics import Demographics, DemographicScaler
from p2es.errors import DatasetError
from p2es.windows import Window
from p2es_platform import dataset
from p2es_platform.neighbours import check_against_scipy, clusters, k_nearest
from pipelines import group
from pipelines.recipes import GroupConfig, demo


def people(n: int, seed: int = 0, missing: float = 0.2):
    rng = np.random.default_rng(seed)
    sex = rng.integers(0, 2, n).astype(float)
    height = 175 - 12 * sex + rng.normal(0, 7, n)
    made = np.stack([rng.uniform(20, 90, n), sex, height, 0.5 * height - 10 + rng.normal(0, 10, n)], axis=1)
    made[rng.random(made.shape) < missing] = np.nan
    return made


def coordinates(demographics):
    scaler = DemographicScaler.fit(demographics)
    return scaler.index_coordinates(demographics), scaler.query_coordinates(demographics)


def brute(index, queries, k):
    squared = np.square(queries[:, None].astype(float) - index[None].astype(float)).sum(axis=-1)
    np.fill_diagonal(squared, np.inf)
    return np.sort(squared, axis=1)[:, :k]


@pytest.mark.parametrize(("n", "k", "shards"), [(2, 10, 2), (7, 10, 3), (300, 10, 1), (300, 10, 4), (50, 1, 7)])
def test_the_neighbours_are_the_nearest_others(local_ray, n, k, shards):
    index, queries = coordinates(people(n))
    rows, squared = k_nearest(index, queries, k, shards=shards)
    k = min(k, n - 1)
    assert rows.shape == squared.shape == (n, k)
    assert (rows != np.arange(n)[:, None]).all()
    assert all(len(set(row)) == k for row in rows.tolist())
    np.testing.assert_allclose(squared, brute(index, queries, k), rtol=1e-5, atol=1e-5)


def test_the_number_of_tasks_changes_nothing(local_ray):
    index, queries = coordinates(people(257, missing=0.5))
    first = k_nearest(index, queries, 8, shards=1)
    for shards in (2, 5, 400):
        again = k_nearest(index, queries, 8, shards=shards)
        assert np.array_equal(first[0], again[0])
        assert np.array_equal(first[1], again[1])


def test_a_person_of_whom_nothing_is_known_is_not_its_own_neighbour(local_ray):
    demographics = people(40, missing=0.0)
    demographics[:12] = np.nan  # their own place in the index lies far from their query
    index, queries = coordinates(demographics)
    rows, squared = k_nearest(index, queries, 5)
    assert (rows != np.arange(40)[:, None]).all()
    np.testing.assert_allclose(squared, brute(index, queries, 5), rtol=1e-5, atol=1e-5)


def test_twins_are_told_apart_from_the_person_itself(local_ray):
    demographics = np.repeat(people(6, missing=0.0), 5, axis=0)
    index, queries = coordinates(demographics)
    rows, squared = k_nearest(index, queries, 4)
    np.testing.assert_allclose(squared, 0, atol=1e-6)
    assert (rows // 5 == np.arange(30)[:, None] // 5).all()
    assert (rows != np.arange(30)[:, None]).all()


def test_the_graph_is_the_one_that_scipy_gives_without_ray(local_ray):
    demographics = people(200)
    rows, _ = k_nearest(*coordinates(demographics), 10, shards=2)
    exact = NeighbourGraph.exact([str(k) for k in range(200)], demographics, 10, 8)
    agree = [len(set(a) & set(b)) / 10 for a, b in zip(rows.tolist(), exact.neighbours.tolist(), strict=True)]
    assert np.mean(agree) > 0.99  # people at the same distance may be swapped


def test_one_person_has_no_neighbours():
    index, queries = coordinates(people(1))
    with pytest.raises(DatasetError, match="at least 2 people"):
        k_nearest(index, queries, 10)


def test_the_check_sees_wrong_neighbours_and_wrong_distances(local_ray):
    index, queries = coordinates(people(120))
    rows, squared = k_nearest(index, queries, 6)
    assert check_against_scipy(index, queries, rows, squared)["people"] == 120
    wrong = rows.copy()
    wrong[3, 5] = next(k for k in range(120) if k != 3 and k not in rows[3])
    with pytest.raises(RuntimeError, match="differ"):
        check_against_scipy(index, queries, wrong, squared)
    with pytest.raises(RuntimeError, match="differ"):
        check_against_scipy(index, queries, rows, squared * 1.01)
    own = rows.copy()
    own[7, 0] = 7
    with pytest.raises(RuntimeError, match="own neighbour"):
        check_against_scipy(index, queries, own, squared)


def test_each_person_is_in_the_cluster_of_the_nearest_centroid():
    _, queries = coordinates(people(400))
    centroids, labels = clusters(queries, 8, seed=3)
    assert set(labels) == set(range(8))
    squared = np.square(queries[:, None] - centroids[None]).sum(axis=-1)
    np.testing.assert_allclose(squared[np.arange(400), labels], squared.min(axis=1), rtol=1e-5, atol=1e-6)
    spread = np.square(queries - queries.mean(axis=0)).sum(axis=1).mean()
    assert squared.min(axis=1).mean() < 0.6 * spread


def test_the_seed_decides_the_clusters():
    _, queries = coordinates(people(400))
    first, labels = clusters(queries, 8, seed=3)
    again, same = clusters(queries, 8, seed=3)
    other, _ = clusters(queries, 8, seed=4)
    assert np.array_equal(first, again)
    assert np.array_equal(labels, same)
    assert not np.array_equal(first, other)


def test_there_are_no_more_clusters_than_people():
    _, queries = coordinates(people(3, missing=0.0))
    centroids, labels = clusters(queries, 8)
    assert centroids.shape == (3, 5)
    assert sorted(labels) == [0, 1, 2]


def stored(url: str, demographics, split_of=lambda k: "train", part: str = "a") -> dataset.Dataset:
    rng = np.random.default_rng(0)
    windows = [
        Window(
            window_id=f"{part}-{k}-{copy}",
            person=f"{part}-{k:03d}",
            recording=f"{part}-{k}",
            source="simulated",
            split=split_of(k),
            start_s=10.0 * copy,
            ecg=rng.normal(size=(12, 1280)).astype(np.float32),
            lead_mask=np.ones(12, bool),
            ppg=None,
            ppg_mask=None,
            demographics=Demographics.from_array(row),
        )
        for k, row in enumerate(demographics)
        for copy in range(2)
    ]
    made = dataset.write_part(url, part, "simulated", {part: part}, windows, [])
    return dataset.commit(url, [made], {})


def with_group(**changes):
    return dataclasses.replace(demo(), group=GroupConfig(**{"neighbours": 5} | changes))


@pytest.fixture
def whole_years():
    return np.round(people(60), 0)


def test_groups_come_back_as_they_were_found(local_ray, settings, tmp_path, whole_years):
    made = stored(str(tmp_path / "set"), whole_years)
    result = group.run(with_group(), settings, made.url)
    assert (result.people, result.neighbours, result.clusters, result.reused) == (60, 5, 8, False)
    found = group.load(result.url)
    expected = group.find([f"a-{k:03d}" for k in range(60)], whole_years, with_group())
    for field in dataclasses.fields(group.Groups):
        np.testing.assert_array_equal(getattr(found, field.name), getattr(expected, field.name))
    graph = found.graph()
    assert list(graph.rows_of(np.array(["a-007", "nobody"]))) == [7, -1]
    json.dumps(json.loads(Path(result.url).read_text()), allow_nan=False)


def test_only_training_people_are_grouped(local_ray, settings, tmp_path, whole_years):
    splits = ("train", "train", "validation", "test")
    made = stored(str(tmp_path / "set"), whole_years, lambda k: splits[k % 4])
    found = group.load(group.run(with_group(), settings, made.url).url)
    trained_on = [k for k in range(60) if splits[k % 4] == "train"]
    assert found.people == tuple(f"a-{k:03d}" for k in trained_on)
    # Other people must not move the scaler either: the same training people alone give the same.
    alone = DemographicScaler.fit(whole_years[trained_on])
    assert found.scaler == alone


def test_the_same_data_and_settings_are_grouped_once(local_ray, settings, tmp_path, whole_years):
    made = stored(str(tmp_path / "set"), whole_years)
    first = group.run(with_group(), settings, made.url)
    assert group.run(with_group(query_shards=3), settings, made.url) == dataclasses.replace(first, reused=True)
    assert group.run(with_group(neighbours=6), settings, made.url).url != first.url
    older = stored(str(tmp_path / "other"), np.where(whole_years > 30, whole_years + 1, whole_years))
    assert Path(group.run(with_group(), settings, older.url).url).name != Path(first.url).name


@pytest.mark.parametrize("fault", ["table", "torn", "no table", "other version"])
def test_spoilt_groups_are_refused_in_one_line(local_ray, settings, tmp_path, whole_years, fault):
    url = group.run(with_group(), settings, stored(str(tmp_path / "set"), whole_years).url).url
    head, table = Path(url), Path(url).with_suffix(".parquet")
    if fault == "table":
        raw = bytearray(table.read_bytes())
        raw[len(raw) // 2] ^= 1
        table.write_bytes(bytes(raw))
    elif fault == "torn":
        head.write_bytes(head.read_bytes()[:50])
    elif fault == "no table":
        table.unlink()
    else:
        head.write_text(head.read_text().replace('"version": 1', '"version": 2'))
    with pytest.raises(DatasetError, match="p2es group") as caught:
        group.load(url)
    assert "\n" not in str(caught.value)


def test_a_kill_between_the_two_files_leaves_nothing_that_looks_whole(
    local_ray, settings, tmp_path, whole_years, monkeypatch
):
    made = stored(str(tmp_path / "set"), whole_years)
    write = group.storage.write_atomic

    def killed_before_json(url, data):
        if url.endswith(".json"):
            raise KeyboardInterrupt
        write(url, data)

    monkeypatch.setattr(group.storage, "write_atomic", killed_before_json)
    with pytest.raises(KeyboardInterrupt):
        group.run(with_group(), settings, made.url)
    monkeypatch.undo()
    again = group.run(with_group(), settings, made.url)
    assert not again.reused
    assert len(group.load(again.url).people) == 60


def test_groups_of_nothing_say_what_to_do(settings, tmp_path):
    with pytest.raises(DatasetError, match="p2es ingest"):
        group.run(demo(), settings, str(tmp_path / "nowhere"))
    with pytest.raises(DatasetError, match="p2es group"):
        group.load(str(tmp_path / "nothing.json"))
