import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2es.errors import DatasetError
from p2es.tables import COLUMNS, LISTED, batch_of, list_of
from p2es.windows import collate, decode, encode


def changed(window, leads, ppg, known):
    """A window with fewer leads, another number of PPG channels, or without what is optional."""
    mask = np.zeros(12, bool)
    mask[list(leads)] = True
    changes = {"ecg": np.where(mask[:, None], window.ecg, 0).astype(np.float32) if leads else None, "lead_mask": mask}
    if ppg == 0:
        changes |= {"ppg": None, "ppg_mask": None, "ppg_channels": ()}
    elif ppg > 1:
        holes = window.ppg_mask.copy()
        holes[100:200] = False
        channels = np.concatenate([window.ppg[:1] * (k + 1) for k in range(ppg)]).astype(np.float32)
        changes |= {"ppg": channels, "ppg_mask": holes, "ppg_channels": tuple(f"c{k}" for k in range(ppg))}
    if not known:
        changes |= {"delay_s": None, "delay_confidence": None, "demographics": type(window.demographics)()}
    return dataclasses.replace(window, **changes)


cases = st.lists(
    st.tuples(st.integers(0, 11), st.sets(st.integers(0, 11)), st.integers(0, 3), st.booleans()), min_size=1, max_size=8
)


@settings(deadline=None)
@given(cases, st.integers(1, 2))
def test_a_table_becomes_the_same_arrays_as_its_windows_one_by_one(twelve_windows, cases, channels):
    table = encode([changed(twelve_windows[k], leads, ppg, known) for k, leads, ppg, known in cases])
    expected = collate(decode(table), channels)
    for found in (batch_of(table, channels), batch_of(table.select(COLUMNS), channels)):
        for name, values in vars(expected).items():
            got = getattr(found, name)
            assert got.dtype == values.dtype, name
            np.testing.assert_array_equal(got, values) if name != "ecg_mv" else np.testing.assert_allclose(
                got, values, atol=1e-6
            )


@settings(deadline=None)
@given(cases, st.integers(0, 8))
def test_a_list_of_windows_says_what_their_arrays_say(twelve_windows, cases, at):
    """Without a signal being read, and in two tables as in one."""
    table = encode([changed(twelve_windows[k], leads, ppg, known) for k, leads, ppg, known in cases])
    expected, listed = batch_of(table), table.select(LISTED)
    parts = [part for part in (listed.slice(0, at), listed.slice(at)) if part.num_rows]
    for found in (list_of([listed]), list_of(parts)):
        assert len(found) == table.num_rows
        for name in ("window_id", "person", "recording", "people", "lead_mask"):
            np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
        np.testing.assert_array_equal(found.has_ppg, expected.ppg_mask.any(axis=1))
    np.testing.assert_array_equal(list_of([listed]).take(np.array([0])).people, expected.people[:1])


def test_a_slice_of_a_table_is_read_as_its_rows(twelve_windows):
    table = encode(twelve_windows)
    whole, part = batch_of(table), batch_of(table.slice(3, 4))
    np.testing.assert_array_equal(part.ecg_mv, whole.ecg_mv[3:7])
    np.testing.assert_array_equal(part.window_id, whole.window_id[3:7])


def test_another_schema_is_refused(twelve_windows):
    with pytest.raises(DatasetError):
        batch_of(encode(twelve_windows).replace_schema_metadata({"p2es_window_schema": "99"}))
    with pytest.raises(DatasetError):
        list_of([encode(twelve_windows).replace_schema_metadata({"p2es_window_schema": "99"})])
