import dataclasses

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2es.demographics import Demographics, Sex
from p2es.errors import DatasetError
from p2es.leads import LEADS, law_residuals, lift
from p2es.windows import (
    ECG_SAMPLES,
    FS_HZ,
    PPG_SAMPLES,
    WINDOW_SCHEMA,
    Window,
    WindowStore,
    check_schema,
    collate,
    decode,
    encode,
    shift_earlier,
)


def smooth(rng, rows, time, scale):
    t = np.arange(time) / FS_HZ
    tones = rng.uniform(0.5, 20, (rows, 5, 1)), rng.uniform(0, 6, (rows, 5, 1)), rng.standard_normal((rows, 5, 1))
    return (scale * (tones[2] * np.sin(2 * np.pi * tones[0] * t + tones[1])).sum(axis=1)).astype(np.float32)


def window(names=LEADS, channels=1, seed=0, law_error_mv=0.0, **changes):
    rng = np.random.default_rng(seed)
    ecg = lift(smooth(rng, 8, ECG_SAMPLES, 0.5))
    ecg[2] += np.float32(law_error_mv)
    mask = np.isin(LEADS, names)
    ppg_mask = np.ones(PPG_SAMPLES, bool)
    ppg_mask[:100] = False
    values = {
        "window_id": f"w{seed}", "person": "p", "recording": "r", "source": "s", "split": "train", "start_s": 1.0,
        "ecg": np.where(mask[:, None], ecg, 0).astype(np.float32), "lead_mask": mask,
        "ppg": smooth(rng, channels, PPG_SAMPLES, 1.0), "ppg_mask": ppg_mask,
        "ppg_channels": tuple(f"c{k}" for k in range(channels)),
        "demographics": Demographics(53.0, Sex.FEMALE, None, 70.0), "delay_s": 0.35, "delay_confidence": 0.5,
        "ppg_quality": 0.75, "lead_quality": np.where(mask, 0.5, np.nan).astype(np.float32),
        "r_peaks_s": np.array([0.25, 1.25], np.float32), "rhythm": "sinus", "enrolment": "w9",
        "delay_iqr_s": 0.015, "heart_rate_bpm": 71.5, "flags": ("amplitude:V2", "gains_repaired"),
        "fingerprint": b"\x00\x01\xff",
        **{f"ppg_{name}": 0.1 * k for k, name in enumerate(("flat", "clipped", "wrapped", "missing", "noise"), 1)},
        **{f"lead_{name}": np.where(mask, 0.1 * k, np.nan).astype(np.float32)
           for k, name in enumerate(("flat", "clipped", "wrapped", "missing", "noise"), 1)},
    }  # fmt: skip
    return Window(**{**values, **changes})


def same(a, b, tolerance):
    for field in dataclasses.fields(Window):
        x, y = getattr(a, field.name), getattr(b, field.name)
        if isinstance(x, np.ndarray) and x.dtype == np.float32:
            np.testing.assert_allclose(x, y, atol=tolerance, err_msg=field.name)
        elif isinstance(x, np.ndarray):
            np.testing.assert_array_equal(x, y, err_msg=field.name)
        elif isinstance(x, float):
            assert x == pytest.approx(y, abs=1e-6), field.name
        else:
            assert x == y, field.name


@given(
    names=st.sets(st.sampled_from(LEADS), min_size=1).filter(lambda s: len(s & set(LEADS[:6])) in (0, 1, 6)),
    channels=st.integers(1, 3),
    seed=st.integers(0, 1000),
)
@settings(max_examples=25, deadline=None)
def test_a_window_comes_back_from_arrow(names, channels, seed):
    before = window(tuple(names), channels, seed)
    (after,) = decode(encode([before]))
    size = max(np.abs(before.ecg).max(), np.abs(before.ppg).max())
    same(before, after, size / 32767)


def test_twelve_leads_are_stored_as_eight_and_the_laws_hold_after():
    table = encode([window()])
    assert len(table["ecg"][0].as_py()) == 8 * ECG_SAMPLES * 2
    (after,) = decode(table)
    assert np.abs(law_residuals(after.ecg)).max() < 1e-6


@pytest.mark.parametrize("error_mv", [0.05, -0.4])
def test_leads_that_break_the_laws_are_all_kept_as_recorded(error_mv):
    before = window(law_error_mv=error_mv)
    (after,) = decode(encode([before]))
    np.testing.assert_allclose(after.ecg, before.ecg, atol=np.abs(before.ecg).max() / 32767)
    assert np.abs(law_residuals(after.ecg)[0]).mean() == pytest.approx(abs(error_mv), rel=0.01)


def test_a_record_that_has_only_lead_iii_keeps_only_that():
    (after,) = decode(encode([window(("III",))]))
    assert after.lead_mask.tolist() == [name == "III" for name in LEADS]
    assert np.abs(after.ecg).max(axis=1).nonzero()[0].tolist() == [2]


def test_windows_without_ecg_or_without_ppg_come_back():
    ppg_only = window((), ecg=None, lead_quality=None, r_peaks_s=None, rhythm=None, enrolment=None)
    ecg_only = window(ppg=None, ppg_mask=None, ppg_channels=(), delay_s=None, delay_confidence=None, ppg_quality=None)
    unknown = window(demographics=Demographics())
    for before, after in zip([ppg_only, ecg_only, unknown], decode(encode([ppg_only, ecg_only, unknown])), strict=True):
        same(before, after, 1e-3)


def test_gain_changes_the_window_and_not_the_relative_error():
    before = window()
    loud = dataclasses.replace(before, ecg=before.ecg * np.float32(40))
    (quiet_after,), (loud_after,) = decode(encode([before])), decode(encode([loud]))
    np.testing.assert_allclose(loud_after.ecg, quiet_after.ecg * 40, atol=2 * 40 * np.abs(before.ecg).max() / 32767)


def test_a_flat_window_is_no_division_by_zero():
    before = window(ecg=np.zeros((12, ECG_SAMPLES), np.float32))
    (after,) = decode(encode([before]))
    assert not after.ecg.any()


def test_a_table_of_another_schema_is_refused_in_one_line():
    other = encode([window()]).replace_schema_metadata({"p2es_window_schema": "99"})
    with pytest.raises(DatasetError, match="99") as refusal:
        decode(other)
    assert "\n" not in str(refusal.value)
    with pytest.raises(DatasetError, match="none"):
        check_schema(pa.schema([]))


def test_encoding_is_the_same_bytes_every_time():
    assert encode([window()]).equals(encode([window()]))
    assert encode([window()]).schema.equals(WINDOW_SCHEMA, check_metadata=True)


def test_collated_windows_are_zero_where_nothing_is_known():
    ecg_only = window(("II",), ppg=None, ppg_mask=None, ppg_channels=())
    ppg_only = window((), channels=2, ecg=None)
    batch = collate([ecg_only, ppg_only], channels=2)
    assert not batch.ppg[0].any()
    assert not batch.ppg_mask[0].any()
    assert not batch.ecg_mv[1].any()
    assert not batch.lead_mask[1].any()
    assert not batch.ppg[1][:, ~ppg_only.ppg_mask].any()
    np.testing.assert_array_equal(batch.ppg[1][:, ppg_only.ppg_mask], ppg_only.ppg[:, ppg_only.ppg_mask])
    np.testing.assert_array_equal(batch.ecg_mv[0, 1], ecg_only.ecg[1])


def test_channels_are_cut_and_filled_to_what_is_asked():
    three = window(channels=3)
    np.testing.assert_array_equal(collate([three], 2).ppg[0], collate([three], 4).ppg[0, :2])
    assert not collate([three], 4).ppg[0, 3].any()


def test_a_store_gives_back_any_windows_in_any_order():
    windows = [window(seed=k, person=f"p{k}") for k in range(7)]
    whole = collate(windows)
    store = WindowStore.from_batches(collate(windows[k : k + 3]) for k in (0, 3, 6))
    rows = [6, 0, 3, 3]
    batch = store.batch(rows)
    np.testing.assert_allclose(batch.ecg_mv, whole.ecg_mv[rows], atol=np.abs(whole.ecg_mv).max() / 32767)
    np.testing.assert_allclose(batch.ppg, whole.ppg[rows], atol=np.abs(whole.ppg).max() / 32767)
    assert batch.person.tolist() == ["p6", "p0", "p3", "p3"]
    np.testing.assert_array_equal(batch.people, whole.people[rows])
    assert len(store) == 7


def test_a_store_of_nothing_is_refused():
    with pytest.raises(DatasetError, match="no windows"):
        WindowStore.from_batches([])


def test_shifting_by_whole_samples_is_exact():
    rng = np.random.default_rng(0)
    ppg = rng.standard_normal((2, 1, 300)).astype(np.float32)
    mask = np.ones((2, 300), bool)
    shifted, after = shift_earlier(ppg, mask, np.array([10, 37]) / FS_HZ)
    np.testing.assert_allclose(shifted[0, 0, :289], ppg[0, 0, 10:299], atol=1e-6)
    np.testing.assert_allclose(shifted[1, 0, :262], ppg[1, 0, 37:299], atol=1e-6)
    assert after.sum(axis=1).tolist() == [289, 262]
    assert not shifted[~after[:, None]].any()


def test_shifting_by_part_of_a_sample_moves_a_sine_by_that_time():
    t = np.arange(1280) / FS_HZ
    delays = np.array([0.0, 0.1234, 0.3, 0.555])
    sine = np.sin(2 * np.pi * 1.2 * t).astype(np.float32)
    shifted, mask = shift_earlier(np.tile(sine, (4, 1, 1)), np.ones((4, 1280), bool), delays)
    for row, good, delay in zip(shifted[:, 0], mask, delays, strict=True):
        np.testing.assert_allclose(row[good], np.sin(2 * np.pi * 1.2 * (t + delay))[good], atol=1e-3)


def test_alignment_undoes_the_delay_and_leaves_an_unknown_one_alone():
    known, unknown = window(seed=1), window(seed=1, delay_s=None)
    batch = collate([known, unknown])
    aligned = batch.aligned()
    undelayed, _ = shift_earlier(batch.ppg[:1], batch.ppg_mask[:1], np.array([0.35]))
    np.testing.assert_allclose(aligned.ppg[0], undelayed[0], atol=1e-6)
    inside = aligned.ppg_mask[1]
    np.testing.assert_array_equal(aligned.ppg[1][:, inside], batch.ppg[1][:, inside])
    assert inside.sum() >= batch.ppg_mask[1].sum() - 1


def content(*windows):
    return encode(windows)["content"].to_pylist()


def test_equal_signals_have_equal_content_whatever_record_they_are_from():
    one = window()
    other = dataclasses.replace(
        one, window_id="x", person="q", recording="t", source="u", start_s=77.0, demographics=Demographics(),
        delay_s=None, flags=(), fingerprint=None, ppg_channels=("red",),
    )  # fmt: skip
    first, second = content(one, other)
    assert first == second
    assert len(first) == 16


@pytest.mark.parametrize("part", ["a sample", "gain", "a lead", "no ppg", "mask", "no ecg"])
def test_other_signals_have_other_content(part):
    one = window()
    ecg, mask, ppg_mask = one.ecg.copy(), one.lead_mask.copy(), one.ppg_mask.copy()
    if part == "a sample":
        ecg[8, 700] += np.float32(0.002)
    elif part == "gain":
        ecg *= np.float32(2)
    elif part == "a lead":
        ecg[11], mask[11] = 0, False
    ppg_mask[-1] = part != "mask"
    other = dataclasses.replace(one, ecg=ecg, lead_mask=mask, ppg_mask=ppg_mask)
    if part == "no ppg":
        other = dataclasses.replace(other, ppg=None, ppg_mask=None, ppg_channels=())
    elif part == "no ecg":
        other = dataclasses.replace(other, ecg=None)
    assert len(set(content(one, other))) == 2


def test_content_survives_a_round_trip():
    table = encode([window(), window(("III", "V5"), seed=3)])
    assert encode(decode(table))["content"].equals(table["content"])


def test_a_table_of_the_first_schema_is_refused_in_one_line():
    old = encode([window()]).drop_columns(["flags", "content"]).replace_schema_metadata({"p2es_window_schema": "1"})
    with pytest.raises(DatasetError, match="schema 1, this p2es reads 2: ingest it again"):
        decode(old)
