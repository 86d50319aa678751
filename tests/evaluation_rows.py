"""Rows of `measure` for systems that were never run: people, what they draw, and how well, all by equation.

People follow the equations of the simulator's prior (intervals and axis from age, sex, height and weight). A sound
model knows the equation, not the person. One of kind `deaf` ignores the pulse, a `blind` one the demographics, one that
`copies` draws the ECGs of its training people, one that `leaks` knows the person's own intervals.
"""

import numpy as np
import pyarrow as pa

from p2es.evaluation.beat_kinds import KINDS
from p2es.evaluation.features import FEATURES, LEAD_FEATURES
from p2es.evaluation.measure import ROW_SCHEMA

SAMPLES = 20
ENCODING = 8 * 45
WAVES = np.sin(np.outer(np.arange(1, 7), np.linspace(0, 20, ENCODING)))
LISTS = [name for name in ROW_SCHEMA.names if pa.types.is_list(ROW_SCHEMA.field(name).type)]
NAN = float("nan")
NAMES = [feature.name for feature in FEATURES]
SPREAD = {"hr_bpm": 1.0, "p_ms": 8.0, "pr_ms": 22.5, "qrs_ms": 9.0, "qt_ms": 19.5, "qtcf_ms": 19.5,
          "p_axis_deg": 20.0, "qrs_axis_deg": 29.5, "t_axis_deg": 20.0, "transition": 0.8}  # fmt: skip
ERRORS = {"pr_error_ms": "pr_ms", "qrs_error_ms": "qrs_ms", "qtcf_error_ms": "qtcf_ms",
          "qrs_axis_error_deg": "qrs_axis_deg"}  # fmt: skip
CHANGES = ("base", "female", "male", "height+10", "bmi+5", "age+20")
# F1 within 50 ms, RR error, timing, RMSE of a sample and of the mean, correlation, beat RMSE.
SCORES = {
    "good": (0.985, 3.0, 5.0, 0.13, 0.095, 0.88, 0.12),
    # The mean waveform has the lowest RMSE of the mean, the template the lowest heart rate error: both are known.
    "deaf": (0.33, 95.0, 40.0, 0.27, 0.21, 0.15, 0.13),
    "warped": (0.96, 6.0, 7.0, 0.15, 0.11, 0.84, 0.13),
    "template": (0.99, 3.0, 6.0, 0.15, 0.15, 0.84, 0.15),
    "mean_waveform": (0.02, NAN, NAN, 0.18, 0.09, 0.02, 0.22),
    "other": (0.40, 60.0, 35.0, 0.25, 0.20, 0.20, 0.07),
}
YARDSTICKS = {"template": "template", "regression": "template", "mean_waveform": "mean_waveform",
              "retrieval": "deaf", "other_segment": "other", "oracle": "good"}  # fmt: skip


class People:
    """People of a split, and what their ECGs measure."""

    def __init__(self, rng, count, windows, prefix):
        self.count, self.prefix = count, prefix
        self.window = np.repeat(np.arange(count), windows)
        self.female = rng.integers(0, 2, count).astype(float)
        self.age = rng.uniform(20, 80, count)
        self.height = rng.normal(174, 7, count) - 13 * self.female
        self.weight = rng.normal(26, 4, count) * (self.height / 100) ** 2
        self.bpm = np.exp(rng.normal(np.log(66), 0.17, count))
        self.irregular = rng.random(count) < 0.4
        own = self.expected()
        noise = {name: rng.normal(0, SPREAD[name], count) for name in NAMES}
        noise["hr_bpm"] = noise["qt_ms"] = np.zeros(count)
        self.real = {name: own[name] + noise[name] for name in NAMES}
        self.real["qt_ms"] = self.real["qtcf_ms"] * (60 / self.bpm) ** (1 / 3)
        self.shape = rng.normal(0, 1, (count, 6))
        self.shape[:, 0] += 0.5 * self.female
        self.gain = np.exp(rng.normal(0, 0.2, count))

    def expected(self, female=None, height=None, bmi_more=0.0, age=None):
        """Give what the demographics alone say, features by name, each (person,)."""
        female = self.female if female is None else np.full(self.count, female)
        height = self.height if height is None else height
        age = self.age if age is None else age
        bmi = self.weight / (self.height / 100) ** 2 - 26 + bmi_more
        tall = height - (174 - 13 * self.female)
        qtcf = 396 + 11 * female + 0.15 * (age - 50)
        return {
            "hr_bpm": self.bpm,
            "p_ms": 110 + 0.4 * bmi,
            "pr_ms": 163 - 6 * female + 0.417 * tall + 0.48 * bmi + 0.25 * (age - 50),
            "qrs_ms": 92 - 6 * female + 0.206 * tall,
            "qt_ms": qtcf * (60 / self.bpm) ** (1 / 3),
            "qtcf_ms": qtcf,
            "p_axis_deg": 55 + 0 * bmi,
            "qrs_axis_deg": 30 + 4 * female - 0.6 * (age - 45) - 1.8 * bmi,
            "t_axis_deg": 40 - 0.2 * (age - 45),
            "transition": 3.5 + 0 * bmi,
        }


def average(people):
    """Give what somebody says who knows nothing of the person, and the rate."""
    known = people.expected()
    mean = {name: np.full(people.count, known[name].mean()) for name in NAMES}
    return mean | {"hr_bpm": people.bpm}


def row(people, k, system):
    """Start the row of a window with what was recorded."""
    person = people.window[k]
    made = dict.fromkeys(ROW_SCHEMA.names) | {name: [] for name in LISTS}
    made |= {"window_id": f"{people.prefix}{k}", "person": f"{people.prefix}p{person}", "system": system}
    made |= {"age_years": people.age[person], "female": people.female[person]}
    made |= {"height_cm": people.height[person], "weight_kg": people.weight[person]}
    made |= {f"real_{name}": people.real[name][person] for name in NAMES}
    made["rhythm"] = "irregular" if people.irregular[person] else "regular"
    made |= {f"real_{name}": on_leads(name, people.gain[person]) for name in LEAD_FEATURES}
    made["real_encoding"] = encoding(people.shape[person], k)
    made["real_wave"] = wave(people.bpm[person], people.gain[person], k)
    return made


def on_leads(name, gain):
    level = {"p_mv": 0.1, "r_mv": 1.0, "s_mv": -0.4, "t_mv": 0.3, "st_filtered_mv": 0.01, "t_polarity": 1.0}[name]
    if name == "t_polarity":
        return [level] * 12
    return (level * gain * (0.6 + 0.07 * np.arange(12))).tolist()


def encoding(shape, seed):
    noise = np.random.default_rng([seed, 7]).normal(0, 0.05, ENCODING)
    return (np.sin(np.linspace(0, 50, ENCODING)) + 0.3 * shape @ WAVES + noise).astype(np.float32)


def wave(bpm, gain, seed):
    rng = np.random.default_rng([seed, 8])
    phase = (np.arange(640) / 64 - rng.uniform(0.2, 1.0)) % (60 / bpm) - 0.2
    shapes = ((0.0, 0.02, 1.0), (-0.16, 0.03, 0.12), (0.26, 0.06, 0.3))
    made = sum(a * np.exp(-((phase - c) ** 2) / (2 * s**2)) for c, s, a in shapes)
    # Noise enough that two people of one rate are no duplicates.
    return (gain * made + rng.normal(0, 0.03, 640)).astype(np.float32)


def scored(rng, kind, blind=False):
    """Draw the metrics of a window from what its kind scores."""
    f1, rr, timing, rmse, mean, r, beat = SCORES[kind]
    vary = rng.uniform(0.9, 1.1)
    low = 1 - (1 - f1) * vary
    crps = {"good": 0.056, "warped": 0.062, "template": 0.085}.get(kind, 0.11)
    return {
        "r_f1_50ms": low * 0.3, "r_f1_150ms": low * 0.7, "r_f1_50ms_lag": low, "r_f1_150ms_lag": min(1, low + 0.02),
        "r_sensitivity_50ms_lag": low, "r_predictivity_50ms_lag": low, "rr_error_ms": rr * vary,
        "r_timing_ms_lag": timing * vary, "lag_abs_ms": 80.0 * vary,
        "hr_error_bpm": {"template": 0.4, "mean_waveform": 40.0}.get(kind, rr / 5) * vary,
        "rmse_mv_sample": rmse * 1.4 * vary, "rmse_mv_sample_lag": rmse * vary, "rmse_mv_mean": mean * vary,
        "beat_rmse_mv_sample": beat * vary, "correlation_sample": r * 0.4, "correlation_sample_lag": r,
        "correlation_mean": r * 0.6, "crps_mv": crps * vary, "coverage_50": 0.5, "coverage_80": 0.8,
        "coverage_90": 0.9 + 0.02 * rng.normal(), "band_width_mv": 0.3, "spread_mv": 0.1, "lead_law_uv": 0.1,
        "feature_crps": (0.62 if blind else 0.56) * vary, "feature_energy": (0.76 if blind else 0.69) * vary,
        "feature_coverage_90": 0.9 + 0.02 * rng.normal(), "feature_width_90": 3.3 * vary,
        "finite_share": 1.0, "dipolarity_percent": 97.0,
        "dipolarity_real_percent": 97.5, "t_polarity_agreement_sample": 0.97, "einthoven_rms_uv": 0.01,
        "st_filtered_error_mv_sample": 0.02, "transition_error_leads_sample": 0.4,
    }  # fmt: skip


def beats_of(people, k, kind):
    """Count premature beats: two in each window of every third person, drawn so by whoever hears the pulse."""
    real = 2.0 if people.window[k] % 3 == 0 else 0.0
    hears = kind in ("good", "warped", "template")
    counts = [real, real, real, real] if hears else [real, 0.0, 1.0, 0.0]
    made = {f"{of}_counts{lag}": [0.0] * 4 for of in KINDS for lag in ("", "_lag")}
    return made | {f"premature_counts{lag}": counts for lag in ("", "_lag")}


def drawn(rng, people, k, centre, spread, *, gain=None, source=None):
    """Draw features of a window around a centre, by name (person,), and what follows from them."""
    person = people.window[k]
    draws = {name: centre[name][person] + spread * SPREAD[name] * rng.normal(size=SAMPLES) for name in NAMES}
    gain = np.exp(rng.normal(0, 0.2)) if gain is None else gain
    made = {f"draws_{name}": values.tolist() for name, values in draws.items()}
    made |= {f"drawn_{name}": values[0] for name, values in draws.items()}
    made |= {f"median_{name}": float(np.sort(values)[9:11].mean()) for name, values in draws.items()}
    for metric, name in ERRORS.items():
        away = {of: abs(made[f"{of}_{name}"] - people.real[name][person]) for of in ("median", "drawn")}
        made |= {metric: away["median"], f"{metric}_sample": away["drawn"]}
    for name in LEAD_FEATURES:
        made |= {f"{of}_{name}": on_leads(name, gain) for of in ("drawn", "median")}
    made["drawn_rhythm"] = "irregular" if people.irregular[person] else "regular"
    if source is None:
        made["drawn_encoding"] = encoding(rng.normal(0, 1, 6), 10_000 + k)
        made["drawn_wave"] = wave(people.bpm[person], gain, 10_000 + k)
    else:
        made |= {name.replace("real", "drawn"): source[k][name] for name in ("real_encoding", "real_wave")}
    made["offsets_ms"] = rng.normal(0, 6, 8).tolist()
    made["correlation_lead"] = np.clip(rng.normal(0.8, 0.05, 12), -1, 1).tolist()
    made["rank_counts"] = rng.multinomial(1280, np.full(SAMPLES + 1, 1 / (SAMPLES + 1))).astype(float).tolist()
    return made


def system_rows(rng, people, system, kind, centre, *, spread=1.0, source=None, blind=False, gain=None):
    """Give the rows of a system; it draws the windows of `source` again where that is given."""
    rows = []
    for k in range(len(people.window)):
        made = row(people, k, system) | scored(rng, kind, blind) | beats_of(people, k, kind)
        rows.append(made | drawn(rng, people, k, centre, spread, gain=gain, source=source))
    return rows


def changed(people, change, blind):
    if blind:
        return average(people)
    return {
        "base": people.expected(), "female": people.expected(female=1.0), "male": people.expected(female=0.0),
        "height+10": people.expected(height=people.height + 10), "bmi+5": people.expected(bmi_more=5.0),
        "age+20": people.expected(age=people.age + 20),
    }[change]  # fmt: skip


def build(
    *,
    people=60,
    windows=2,
    seed=0,
    kind="good",
    shuffled="deaf",
    blind=False,
    copies=False,
    leaks=False,
    controls=True,
    yardsticks=tuple(YARDSTICKS),
):
    """Give the row table and the bank of one evaluation.

    The model scores as `kind`, and as `shuffled` with another person's PPG. Without `controls` only its own rows and
    those of `demographic_regression` are there, as for predictions of another system.
    """
    rng = np.random.default_rng(seed)
    test, train = People(rng, people, windows, "t"), People(rng, people, windows, "b")
    bank = [row(train, k, "train") for k in range(len(train.window))]
    known = average(test) if blind else test.expected()
    near = {name: test.real[name] for name in NAMES} if leaks else known
    source = bank if copies else None
    rows = system_rows(rng, test, "model", kind, near, spread=0.1 if leaks else 1.0, source=source, blind=blind)
    rows += feature_only(rng, test)
    if controls:
        rows += control_rows(rng, test, train, kind, shuffled, blind, source)
        for system in yardsticks:
            scores = YARDSTICKS[system]
            rows += system_rows(rng, test, system, scores, average(test), spread=0.02, blind=True, gain=1.0)
    return table(rows), table(bank)


def feature_only(rng, people):
    """Give the rows of the regression on demographics, which draws no ECG."""
    rows = []
    for k in range(len(people.window)):
        person, made = people.window[k], row(people, k, "demographic_regression")
        made |= {f"median_{name}": value[person] for name, value in people.expected().items()}
        made |= {metric: abs(made[f"median_{f}"] - people.real[f][person]) for metric, f in ERRORS.items()}
        rows.append(made)
    return rows


def control_rows(rng, test, train, kind, shuffled, blind, source):
    rows = system_rows(rng, test, "shuffled_ppg", shuffled, test.expected())
    rows += system_rows(rng, test, "warped_ppg", shuffled if kind != "good" else "warped", test.expected())
    rows += system_rows(rng, test, "shuffled_demographics", kind, average(test), blind=True)
    for change in CHANGES:
        seeded = np.random.default_rng(5)
        rows += system_rows(seeded, test, f"counterfactual:{change}", kind, changed(test, change, blind))
    rows += system_rows(rng, train, "members", kind, train.expected(), source=source)
    return rows


def table(rows):
    return pa.Table.from_pylist(rows, schema=ROW_SCHEMA)
