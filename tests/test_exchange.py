"""What another system is asked, and what it answers: round trips, and every way a file can be wrong."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from p2es.demographics import Demographics, Sex
from p2es.errors import InputError
from p2es.evaluation.exchange import Request, read_answers, request_id, translation_of, write_requests
from p2es.leads import LEADS, law_residuals, lift
from p2es.windows import ECG_SAMPLES, FS_HZ

RNG = np.random.default_rng(5)


def smooth_ecg(*shape):
    """Sums of slow sines: exact at any rate."""
    time_s = np.arange(ECG_SAMPLES) / FS_HZ
    waves = [RNG.normal(size=(*shape, 1)) * np.sin(2 * np.pi * f * time_s + p) for f, p in ((1.0, 0.3), (7.0, 1.0))]
    return lift(sum(waves))


def write_npz(path, ecg, *, ids=None, leads=LEADS, fs_hz=FS_HZ, **changes):
    arrays = {"request": np.array(ids or [f"r{k}" for k in range(len(ecg))]), "ecg_mv": ecg.astype(np.float32)}
    arrays |= {"leads": np.array(leads), "fs_hz": np.array(fs_hz)}
    arrays |= changes
    np.savez(path, **{name: value for name, value in arrays.items() if value is not None})
    return path


def write_parquet(path, ecg, *, leads=LEADS, fs_hz=FS_HZ, ids=None, metadata=None, drop=()):
    rows = [
        {"request": (ids or [f"r{j}" for j in range(len(ecg))])[k], "fs_hz": fs_hz}
        | {lead: ecg[k, n].tolist() for n, lead in enumerate(leads)}
        for k in range(len(ecg))
    ]
    table = pa.Table.from_pylist(rows).drop_columns(list(drop))
    pq.write_table(table.replace_schema_metadata(metadata), path)
    return path


def test_both_formats_give_the_same_ecg(tmp_path):
    ecg = smooth_ecg(3, 8)
    one = read_answers(write_npz(tmp_path / "a.npz", ecg))
    other = read_answers(write_parquet(tmp_path / "a.parquet", ecg.astype(np.float32)))
    assert one.leads.all()
    assert set(one.ecg_mv) == {"r0", "r1", "r2"}
    for name in one.ecg_mv:
        np.testing.assert_array_equal(one.ecg_mv[name], other.ecg_mv[name])
        np.testing.assert_allclose(one.ecg_mv[name][0], ecg[int(name[1:])], atol=1e-6)
    assert one.sha256 != other.sha256


def test_several_draws_come_as_an_axis_or_as_rows(tmp_path):
    ecg = smooth_ecg(2, 4, 8)
    one = read_answers(write_npz(tmp_path / "a.npz", ecg))
    flat = ecg.reshape(8, 12, -1).astype(np.float32)
    other = read_answers(write_parquet(tmp_path / "a.parquet", flat, ids=["r0"] * 4 + ["r1"] * 4))
    for name in ("r0", "r1"):
        assert one.ecg_mv[name].shape == (4, 12, ECG_SAMPLES)
        np.testing.assert_array_equal(one.ecg_mv[name], other.ecg_mv[name])


@pytest.mark.parametrize("fs_hz", [100.0, 250.0, 360.0, 500.0, 1000.0])
def test_any_rate_comes_to_128_hz(tmp_path, fs_hz):
    def wave(rate):
        return np.sin(2 * np.pi * 3.0 * np.arange(round(10 * rate)) / rate + 0.4)

    ecg = np.broadcast_to(wave(fs_hz), (1, 1, round(10 * fs_hz)))
    found = read_answers(write_npz(tmp_path / "a.npz", ecg, leads=["V5"], fs_hz=fs_hz)).ecg_mv["r0"][0]
    middle = slice(128, -128)
    np.testing.assert_allclose(found[LEADS.index("V5")][middle], wave(FS_HZ)[middle], atol=2e-3)


def test_limb_leads_are_completed_and_the_rest_is_marked_absent(tmp_path):
    ecg = smooth_ecg(1, 8)[:, [0, 2]]
    found = read_answers(write_npz(tmp_path / "a.npz", ecg, leads=["i", "LEAD III"]))
    assert found.leads.tolist() == [True] * 6 + [False] * 6
    drawn = found.ecg_mv["r0"][0].astype(np.float64)
    assert np.abs(law_residuals(drawn)).max() < 1e-6
    np.testing.assert_allclose(drawn[1], ecg[0, 0] + ecg[0, 1], atol=1e-6)


def test_a_single_lead_breaks_no_law(tmp_path):
    found = read_answers(write_npz(tmp_path / "a.npz", smooth_ecg(1, 8)[:, [1]], leads=["II"]))
    assert found.leads.tolist() == [lead == "II" for lead in LEADS]
    assert np.abs(law_residuals(found.ecg_mv["r0"][0].astype(np.float64))).max() < 1e-6


def test_what_is_not_finite_stays_visible(tmp_path):
    ecg = smooth_ecg(2, 8)
    ecg[1, 3, 100] = np.nan
    found = read_answers(write_npz(tmp_path / "a.npz", ecg))
    assert np.isfinite(found.ecg_mv["r0"]).all()
    assert np.isnan(found.ecg_mv["r1"]).all()


def test_twenty_draws_have_a_band_and_nineteen_have_none():
    draws = smooth_ecg(20, 8).astype(np.float32)
    assert translation_of(draws).band_mv.shape == (2, 12, ECG_SAMPLES)
    assert translation_of(draws[:19]).band_mv is None
    assert translation_of(np.full_like(draws, np.nan)).band_mv is None


GOOD = smooth_ecg(1, 8)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"ecg": GOOD[..., :1000]}, "are not 10 s"),
        ({"ecg": GOOD * 1000}, "is it in microvolt"),
        ({"ecg": GOOD, "leads": [*LEADS[:11], "V9"]}, "no lead of the twelve"),
        ({"ecg": GOOD, "leads": [*LEADS[:11], "II"]}, "the same lead twice"),
        ({"ecg": GOOD[:, :5]}, "12 leads"),
        ({"ecg": GOOD, "fs_hz": 0.0}, "between 50 and 5000"),
        ({"ecg": GOOD, "fs_hz": np.nan}, "between 50 and 5000"),
        ({"ecg": GOOD, "request": None}, "says not what it answers"),
        ({"ecg": GOOD, "fs_hz_array": None}, "no array 'fs_hz'"),
        ({"ecg": GOOD[:0]}, "holds no prediction"),
    ],
)
def test_a_wrong_npz_is_told_in_one_line(tmp_path, changes, said):
    changes = dict(changes)
    ecg = changes.pop("ecg")
    if "fs_hz_array" in changes:
        changes["fs_hz"] = changes.pop("fs_hz_array")
        path = tmp_path / "a.npz"
        np.savez(path, request=np.array(["r0"]), ecg_mv=ecg.astype(np.float32), leads=np.array(LEADS))
    else:
        path = write_npz(tmp_path / "a.npz", ecg, **changes)
    with pytest.raises(InputError, match=said) as raised:
        read_answers(path)
    assert "\n" not in str(raised.value)


def test_a_wrong_parquet_is_told_in_one_line(tmp_path):
    ecg = GOOD.astype(np.float32)
    with pytest.raises(InputError, match="does not say its rate"):
        read_answers(write_parquet(tmp_path / "a.parquet", ecg, drop=["fs_hz"]))
    stored = write_parquet(tmp_path / "b.parquet", ecg, drop=["fs_hz"], metadata={"fs_hz": "128"})
    assert set(read_answers(stored).ecg_mv) == {"r0"}
    with pytest.raises(InputError, match="no column with the name of a lead"):
        read_answers(write_parquet(tmp_path / "c.parquet", ecg, drop=LEADS))
    (tmp_path / "d.csv").write_text("request,I\n")
    with pytest.raises(InputError, match="neither Parquet nor npz"):
        read_answers(tmp_path / "d.csv")
    with pytest.raises(InputError, match="cannot be read"):
        read_answers(tmp_path / "missing.npz")


@pytest.mark.parametrize("name", ["a.npz", "a.parquet"])
def test_a_cut_file_ends_in_one_line(tmp_path, name):
    write = write_npz if name.endswith("npz") else write_parquet
    whole = write(tmp_path / name, GOOD.astype(np.float32)).read_bytes()
    for share in (0.02, 0.3, 0.9):
        path = tmp_path / f"{share}-{name}"
        path.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(InputError):
            read_answers(path)


def test_no_object_is_unpickled(tmp_path):
    np.savez(tmp_path / "a.npz", request=np.array([{"a": 1}], dtype=object), ecg_mv=GOOD, leads=LEADS, fs_hz=128.0)
    with pytest.raises(InputError, match="no npz that can be read"):
        read_answers(tmp_path / "a.npz")


def test_requests_hide_what_they_are(tmp_path):
    person = Demographics(age_years=50, sex=Sex.FEMALE)
    systems = ("model", "shuffled_ppg")
    requests = [
        Request(request_id(system, f"w{k}", 0), np.full(1536, np.float32(k)), person, 4, k)
        for system in systems
        for k in range(5)
    ]
    assert write_requests(requests, tmp_path / "r.parquet") == 10
    table = pq.read_table(tmp_path / "r.parquet")
    assert table.num_rows == 10
    assert not any(system.encode() in (tmp_path / "r.parquet").read_bytes() for system in systems)
    names = table["request"].to_pylist()
    assert names == sorted(names) == sorted({one.request for one in requests})
    by_name = {one.request: one for one in requests}
    for row in table.to_pylist():
        assert row["ppg"] == by_name[row["request"]].ppg.tolist()
        assert (row["age_years"], row["sex"], row["height_cm"]) == (50.0, "F", None)
    assert request_id("model", "w0", 0) != request_id("model", "w0", 1) != request_id("shuffled_ppg", "w0", 1)
