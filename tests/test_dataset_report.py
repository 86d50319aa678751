import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

import p2es
from p2es.demographics import Demographics, Sex
from p2es.errors import DatasetError
from p2es.leads import LEADS
from p2es.plot import FOOTER, RECORDED_FOOTER, window_ecg
from p2es.reasons import REASONS, explain
from p2es.segmenting import segment
from p2es.simulator import simulate_person
from p2es.windows import WINDOW_SCHEMA
from p2es_platform.contents import _COLUMNS, Histogram, gather
from p2es_platform.dataset import SPLITS, Dataset, commit
from p2es_platform.parts import PartWriter
from pipelines import dataset_report
from pipelines.dataset_report import FEWEST_PEOPLE, hidden

CANARY = "Florence Nightingale"


def ids(*parts):
    return "-".join(parts)


@pytest.fixture(scope="module")
def people():
    """Windows of each of nine people, three in a split."""
    return [
        list(segment(simulate_person(8, index, 24.0), step_s=10.0, ids=ids, split=SPLITS[index % 3]).windows)
        for index in range(9)
    ]


def dataset_of(url, windows, *, left_out=(), candidates=None, notes=None):
    with PartWriter(url, "aa", "tests", rows=4) as writer:
        writer.add(windows)
        for reason, what, count in left_out:
            row = {"record": CANARY, "source": "tests", "what": what, "reason": reason, "detail": CANARY}
            writer.leave_out({**row, "count": count, "person": None})
        rejected = sum(count for _, what, count in left_out if what == "window")
        candidates = len(windows) + rejected if candidates is None else candidates
        part = writer.finish({"record": "00" * 32}, candidates, notes)
    return commit(url, [part], {"source": "tests", "step_s": 10.0})


def real(windows):
    return [replace(window, simulated=False) for window in windows]


def flat(people):
    return [window for windows in people for window in windows]


class Page(HTMLParser):
    """Text, tags and addresses of a page; fails on what is not balanced."""

    def __init__(self, html):
        super().__init__()
        self.text, self.tags, self.addresses, self.open = "", set(), [], []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.addresses += [value for name, value in attributes if name in ("src", "href", "xlink:href")]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.add(tag)
        self.addresses += [value for name, value in attributes if name in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    @property
    def words(self):
        return " ".join(self.text.split())


def page_of(url, settings, tmp_path, **options):
    path = dataset_report.run(url, settings, tmp_path / "page.html", **options)
    html = path.read_text(encoding="utf-8")
    return html, Page(html)


def test_the_page_is_whole_needs_nothing_else_and_names_nobody(people, settings, tmp_path):
    url = str(tmp_path / "data")
    left_out = [("no_signal", "record", 2), ("ppg_poor", "window", 3)]
    dataset_of(url, real(flat(people)), left_out=left_out, notes={"ppg_flat": 4})
    html, page = page_of(url, settings, tmp_path)
    assert "script" not in page.tags
    assert "link" not in page.tags
    assert all(address.startswith("data:image/png;base64,") for address in page.addresses)
    assert page.addresses
    assert not re.search(r"url\((?!#)|@import|https?://", html)
    assert CANARY not in html
    names = {w.person for w in flat(people)} | {w.recording for w in flat(people)} | {w.window_id for w in flat(people)}
    assert not any(name in html for name in names)
    assert "prefers-color-scheme: dark" in html
    assert "@media print" in html


def test_counts_agree_with_what_was_written(people, settings, tmp_path):
    url = str(tmp_path / "data")
    windows = real(flat(people))
    windows[0] = replace(windows[0], flags=("amplitude:V2", "gains_repaired"))
    dataset_of(url, windows, left_out=[("ppg_poor", "window", 3), ("no_signal", "record", 2)], notes={"ppg_flat": 4})
    found = gather(Dataset.open(url))
    assert found.windows == found.all_windows == len(windows)
    for split in SPLITS:
        mine = [w for w in windows if w.split == split]
        assert found.groups["tests", split] == len(mine)
        assert found.people["tests", split] == len({w.person for w in mine})
        assert found.recordings["tests", split] == len({w.recording for w in mine})
    assert found.flags == {"amplitude:V2": 1, "gains_repaired": 1}
    rates = [w.heart_rate_bpm for w in windows]
    assert found.histograms["heart_rate_bpm"].total == len(rates)
    assert found.histograms["age_years"].total + found.histograms["age_years"].missing == len(people)
    quality = np.mean([w.ppg_quality for w in windows])
    assert found.ppg_means["ppg_quality"] == pytest.approx(quality, abs=1e-6)
    _, page = page_of(url, settings, tmp_path)
    assert f"{len(windows) + 3} windows tried = {len(windows)} kept + 3 left out." in page.words
    for text in (explain("ppg_poor"), explain("no_signal"), explain("ppg_flat"), "lead V2 is off its usual size"):
        assert text in page.words


def test_sums_that_do_not_agree_are_said(people, settings, tmp_path):
    url = str(tmp_path / "data")
    windows = real(people[0])
    dataset_of(url, windows, candidates=len(windows) + 5)
    _, page = page_of(url, settings, tmp_path)
    assert "the sums do not agree" in page.words


def test_recorded_and_completed_leads_are_told_apart(people, tmp_path):
    window = people[0][0]
    quality = window.lead_quality.copy()
    quality[[2, 3, 4, 5]] = np.nan
    dataset_of(str(tmp_path), [replace(window, lead_quality=quality)])
    found = gather(Dataset.open(str(tmp_path)))
    assert dict(zip(LEADS, found.leads_recorded.tolist(), strict=True)) == {
        lead: int(lead not in ("III", "aVR", "aVL", "aVF")) for lead in LEADS
    }
    np.testing.assert_array_equal(found.leads_recorded + found.leads_completed, 1)
    assert np.isnan(found.lead_means["quality"][2])


def test_sex_and_age_are_counted_by_people_and_not_by_windows(people, tmp_path):
    women, men = Demographics(30.0, Sex.FEMALE, 165.0, 60.0), Demographics(90.0, Sex.MALE, None, None)
    windows = [replace(w, demographics=women) for w in people[0] + people[1]]
    windows += [replace(w, demographics=men) for w in people[2]]
    windows += [replace(w, demographics=Demographics()) for w in people[3]]
    dataset_of(str(tmp_path), windows)
    found = gather(Dataset.open(str(tmp_path)))
    assert found.sex == {"female": 2, "male": 1, "unknown": 1}
    ages = found.histograms["age_years"]
    assert (ages.total, ages.missing) == (3, 1)
    assert ages.counts[-1] == 1
    assert (found.histograms["height_cm"].total, found.histograms["height_cm"].missing) == (2, 2)


def test_simulated_is_called_synthetic_and_recorded_is_not(people, settings, tmp_path):
    windows = flat(people)
    pages = {}
    for name, kept in (("all", windows), ("none", real(windows)), ("some", windows[:4] + real(windows[4:]))):
        dataset_of(str(tmp_path / name), kept)
        (tmp_path / f"{name}-page").mkdir()
        pages[name] = page_of(str(tmp_path / name), settings, tmp_path / f"{name}-page")[1].words
    assert "SYNTHETIC: every person in this dataset was simulated." in pages["all"]
    assert "SYNTHETIC" not in pages["none"]
    assert "Partly SYNTHETIC" in pages["some"]


@pytest.mark.parametrize("simulated", [True, False])
def test_a_drawn_window_is_marked_for_what_it_is(people, simulated):
    window = people[0][0]
    figure = window_ecg(window.ecg, simulated=simulated, ppg=window.ppg)
    texts = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert (FOOTER in texts, RECORDED_FOOTER in texts) == (simulated, not simulated)
    assert "generated" not in texts


def test_small_groups_of_real_people_are_not_told(people, settings, tmp_path):
    # Twelve women of 30 and one man of 90, and nobody's height but his.
    many = [replace(w, person=f"woman-{k}", recording=f"r{k}", window_id=f"w{k}", split="train",
                    demographics=Demographics(30.0, Sex.FEMALE, None, None))
            for k, w in enumerate((people[0] * 12)[:12])]  # fmt: skip
    him = replace(people[1][0], split="train", demographics=Demographics(90.0, Sex.MALE, 201.0, None))
    for name, windows in (("real", real([*many, him])), ("simulated", [*many, him])):
        dataset_of(str(tmp_path / name), windows)
        found = gather(Dataset.open(str(tmp_path / name)))
        charts = {c.title: c for c in dataset_report._people_charts(found, private=name == "real")}
        sexes = {bar.label: bar.text for bar in charts["Sex"].bars}
        height = {bar.text for bar in charts["Height, cm"].bars} - {"0"}
        unknown = {bar.label: bar.text for bar in charts["Not known"].bars}
        if name == "real":
            # Twelve is told of nobody either: thirteen less twelve is him.
            assert sexes == {"female": "not told", "male": "<11", "unknown": "0"}
            assert height == {"<11"}
            assert unknown["height"] == "nearly all"
            assert "unknown" not in charts["Height, cm"].note
        else:
            assert sexes == {"female": "12", "male": "1", "unknown": "0"}
            assert unknown["height"] == "92%"


@given(st.lists(st.integers(0, 200), min_size=1, max_size=12))
def test_what_is_hidden_cannot_be_had_back_from_the_total(counts):
    small = hidden(counts)
    for count, hide in zip(counts, small, strict=True):
        assert hide or count == 0 or count >= FEWEST_PEOPLE
        assert not (hide and count == 0)
    others = [count for count in counts if count >= FEWEST_PEOPLE]
    assert sum(small) != 1 or not others


@given(st.lists(st.one_of(st.floats(-1e6, 1e6), st.just(float("nan"))), max_size=50))
def test_a_histogram_counts_every_value_once(values):
    found = Histogram.named("weight_kg")
    found.add(np.array(values, float))
    assert found.total + found.missing == len(values)
    assert found.missing == sum(np.isnan(values))


def test_a_large_dataset_is_sampled_by_shards_and_says_so(people, settings, tmp_path):
    url = str(tmp_path / "data")
    windows = flat(people)
    dataset = dataset_of(url, windows)
    found = gather(dataset, max_windows=8)
    assert found.sampled
    assert 0 < found.windows <= 8
    assert found.all_windows == len(windows)
    _, page = page_of(url, settings, tmp_path, max_windows=8)
    assert f"{found.windows} of {len(windows)} windows" in page.words


def test_the_same_dataset_gives_the_same_page(people, settings, tmp_path):
    windows = flat(people)
    windows[3] = replace(windows[3], flags=("amplitude",))
    dataset_of(str(tmp_path / "data"), windows)
    first, page = page_of(str(tmp_path / "data"), settings, tmp_path)
    assert page_of(str(tmp_path / "data"), settings, tmp_path)[0] == first
    assert "flagged: kept, and odd" in page.words
    assert "flags: amplitude" in page.words


def test_windows_without_ecg_or_without_ppg_are_drawn_and_counted(people, settings, tmp_path):
    window = people[0][0]
    nothing = np.full(12, np.nan, np.float32)
    names = ("ppg", "ppg_mask", *(name for name in vars(window) if name.startswith("ppg_") and name != "ppg_channels"))
    no_ppg = replace(window, ppg_channels=(), **dict.fromkeys(names), flags=("amplitude",))
    no_ecg = replace(window, window_id="x", ecg=None, lead_mask=np.zeros(12, bool), lead_quality=nothing,
                     flags=("amplitude:V1",), delay_s=None, heart_rate_bpm=None)  # fmt: skip
    url = str(tmp_path / "data")
    dataset_of(url, [no_ppg, no_ecg])
    found = gather(Dataset.open(url))
    assert (found.kinds["ecg"], found.kinds["ppg"], found.kinds["both"]) == (1, 1, 0)
    assert found.histograms["heart_rate_bpm"].missing == 1
    assert len(found.examples) == 2
    page_of(url, settings, tmp_path)


def test_where_the_page_goes(people, settings, tmp_path):
    url = str(tmp_path / "mine")
    dataset_of(url, people[0])
    assert dataset_report.run(url, settings) == settings.folder("reports", "mine-1.html")
    (tmp_path / "folder").mkdir()
    assert dataset_report.run(url, settings, tmp_path / "folder") == tmp_path / "folder" / "mine-1.html"
    assert dataset_report.run(url, settings, tmp_path / "new" / "page.html").is_file()


def test_no_dataset_is_one_line(settings, tmp_path):
    with pytest.raises(DatasetError, match="there is no dataset"):
        dataset_report.run(str(tmp_path / "none"), settings)


def test_markup_in_what_the_archive_said_stays_text(people, settings, tmp_path):
    url = str(tmp_path / "data")
    window = replace(people[0][0], flags=("<script>alert(1)</script>",))
    dataset_of(url, [window], left_out=[("<b>odd</b>", "record", 1)])
    html, page = page_of(url, settings, tmp_path)
    assert "script" not in page.tags
    assert "<b>odd" not in html


def test_every_reason_of_the_readers_is_in_plain_words():
    source = "".join(path.read_text() for path in Path(p2es.__file__).parent.rglob("*.py"))
    said = set(re.findall(r'RecordError\([^()]*(?:\([^()]*\)[^()]*)*,\s*"([a-z_]+)"\s*,?\s*\)', source))
    assert len(said) > 10
    assert said <= set(REASONS)
    assert all(len(text) < 90 and not text.endswith(".") for text in REASONS.values())


def test_the_schema_has_what_is_counted(people, tmp_path):
    assert set(_COLUMNS) <= set(WINDOW_SCHEMA.names)
    assert WINDOW_SCHEMA.field("flags").type == pa.list_(pa.string())
