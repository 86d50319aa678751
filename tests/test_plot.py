import subprocess
import sys

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from p2es import plot
from p2es.windows import ECG_SAMPLES, FS_HZ, MARGIN_S, PPG_SAMPLES

PIXELS_PER_MM = plot.DPI / 25.4


def pixels(figure, colour, tolerance=60):
    """Where a colour stands in the rendered figure, (row, column) from the top left."""
    figure.canvas.draw()
    image = np.asarray(figure.canvas.buffer_rgba())[..., :3].astype(int)
    wanted = np.round(np.array(to_rgb(colour)) * 255).astype(int)
    # By default half-covered pixels at a line's edge count; the grid and black text never do.
    return np.argwhere(np.abs(image - wanted).max(axis=2) <= tolerance)


def silent():
    return np.full((12, ECG_SAMPLES), np.nan, np.float32)


def texts(figure):
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def step(start_s, stop_s, height_mv):
    ecg = np.zeros((12, ECG_SAMPLES), np.float32)
    ecg[:, round(start_s * FS_HZ) : round(stop_s * FS_HZ)] = height_mv
    return ecg


def rhythm_strip_mm(figure, colour=plot.RECORDED_COLOUR):
    """Where a trace stands in the lowest row, where lead II runs for ten seconds; finely rendered, in mm."""
    figure.set_dpi(400)
    found = pixels(figure, colour) / (400 / 25.4)
    return found[found[:, 0] > figure.get_size_inches()[1] * 25.4 - (9 + 27)]


@pytest.mark.parametrize("height_mv", [0.5, 1.0])
def test_a_millivolt_is_ten_millimetres_and_a_second_twenty_five(height_mv):
    figure = plot.paper_ecg(silent(), reference_mv=step(1.0, 9.0, height_mv))
    found = rhythm_strip_mm(figure)
    # Centre to centre of a line 0.3 mm wide.
    assert np.ptp(found[:, 0]) - 0.3 == pytest.approx(10 * height_mv, abs=0.16)
    roof = found[found[:, 0] < found[:, 0].min() + 0.2]
    # One sample, 0.2 mm, is the slope of the step.
    assert np.ptp(roof[:, 1]) - 0.3 == pytest.approx(25 * 8.0, abs=0.3)


def test_the_calibration_pulse_is_as_tall_as_a_millivolt():
    figure = plot.paper_ecg(silent())
    found = rhythm_strip_mm(figure, plot.GENERATED_COLOUR)
    left = found[found[:, 1] < 16]
    assert np.ptp(left[:, 0]) - 0.3 == pytest.approx(10.0, abs=0.16)
    roof = left[left[:, 0] < left[:, 0].min() + 0.2]
    assert np.ptp(roof[:, 1]) - 0.3 == pytest.approx(5.0, abs=0.16)


def test_grid_lines_are_a_millimetre_apart():
    figure = plot.paper_ecg(silent())
    figure.canvas.draw()
    image = np.asarray(figure.canvas.buffer_rgba())[..., 2].astype(float)
    column = image[:, int(40 * PIXELS_PER_MM) : int(60 * PIXELS_PER_MM)].mean(axis=1)
    inner = column[int(20 * PIXELS_PER_MM) : int(90 * PIXELS_PER_MM)]
    power = np.abs(np.fft.rfft(inner - inner.mean()))
    cycles_per_mm = np.fft.rfftfreq(inner.size, 1 / PIXELS_PER_MM)
    assert cycles_per_mm[np.argmax(power)] % 0.2 == pytest.approx(0.0, abs=0.02) or cycles_per_mm[
        np.argmax(power)
    ] == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize("with_all", [False, True])
def test_every_figure_is_marked_and_every_lead_named(with_all):
    rng = np.random.default_rng(0)
    ecg = rng.normal(0, 0.1, (12, ECG_SAMPLES)).astype(np.float32)
    extra = {}
    if with_all:
        extra = {
            "band_mv": np.stack([ecg - 0.2, ecg + 0.2]),
            "reference_mv": ecg,
            "ppg": np.zeros(PPG_SAMPLES),
        }
    figure = plot.paper_ecg(ecg, title="A title", footer="seed 3", **extra)
    found = texts(figure)
    assert plot.FOOTER in found
    assert {"A title", "seed 3"} <= set(found)
    for lead in ("I", "III", "aVR", "aVF", "V1", "V6"):
        assert found.count(lead) == 1
    assert found.count("II") == 2
    assert ("recorded" in found) == with_all
    assert plot.FOOTER in texts(plot.lead_comparison(ecg, ecg, **{k: v for k, v in extra.items() if "ref" not in k}))
    assert plot.FOOTER.encode() in plot.png(figure)


def test_each_lead_is_drawn_in_its_own_place():
    blank = plot.paper_ecg(silent())
    before = len(pixels(blank, plot.RECORDED_COLOUR))
    places = {}
    for lead in range(12):
        reference = silent()
        reference[lead] = 0.0
        found = pixels(plot.paper_ecg(silent(), reference_mv=reference), plot.RECORDED_COLOUR)
        found = found[found[:, 0] > 15 * PIXELS_PER_MM]
        places[lead] = tuple(np.round(found[found[:, 0] == found[:, 0].min()].mean(axis=0) / PIXELS_PER_MM))
    assert before == 0
    assert len(set(places.values())) == 12
    rows = [places[lead][0] for lead in range(12)]
    assert rows[0] == rows[3] == rows[6] == rows[9] < rows[1] < rows[2]
    columns = [places[lead][1] for lead in range(12)]
    assert columns[0] < columns[3] < columns[6] < columns[9]


def test_what_was_not_recorded_is_not_drawn():
    assert len(rhythm_strip_mm(plot.paper_ecg(silent(), reference_mv=silent()))) == 0


def test_the_pulse_wave_stands_under_its_own_time():
    ppg = np.zeros((2, PPG_SAMPLES))
    ppg[0, round((MARGIN_S + 4.0) * FS_HZ)] = 1.0
    found = pixels(plot.paper_ecg(silent(), ppg=ppg), plot.PPG_COLOUR, 12)
    tip = found[found[:, 0] == found[:, 0].min()][:, 1].mean() / PIXELS_PER_MM
    assert tip == pytest.approx(6 + 12 + 25 * 4.0, abs=0.3)


def test_a_pulse_wave_without_a_sample_is_left_out():
    figure = plot.paper_ecg(silent(), ppg=np.full(PPG_SAMPLES, np.nan))
    assert len(pixels(figure, plot.PPG_COLOUR, 12)) == 0


def test_the_same_figure_gives_the_same_bytes():
    ecg = step(2.0, 3.0, 0.7)
    assert plot.png(plot.paper_ecg(ecg)) == plot.png(plot.paper_ecg(ecg))


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "ecg.png"
    plot.save(plot.paper_ecg(silent()), path)
    before = path.read_bytes()

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="No space"):
        plot.save(plot.paper_ecg(step(1.0, 2.0, 1.0)), path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["ecg.png"]


def test_nothing_heavy_is_imported_and_no_window_is_opened():
    code = "import sys, p2es.plot; assert not any(name.startswith('matplotlib') for name in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert isinstance(plot.paper_ecg(silent()), Figure)
    assert "matplotlib.pyplot" not in sys.modules
