"""The figures of a report: what each is called, its unit, how it is averaged and which way is better."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Metric:
    """One figure.

    Attributes
    ----------
    name : str
        Its column in the rows of `measure`, and its key in the report.
    label : str
        What a reader sees.
    unit : str
        Empty for a share or a correlation.
    better : str
        `higher`, `lower`, `neither` (read it beside another), or a number to be met (0.9 for a 90 % band).
    statistic : str
        Over people: `mean` or `median` of each person's mean over windows; `max` is over all windows.
    """

    name: str
    label: str
    unit: str = ""
    better: Literal["higher", "lower", "neither"] | float = "lower"
    statistic: Literal["mean", "median", "max"] = "mean"


METRICS = (
    Metric("r_f1_50ms", "R peaks found within 50 ms (F1)", better="higher"),
    Metric("r_f1_150ms", "R peaks found within 150 ms (F1)", better="higher"),
    Metric("r_f1_50ms_lag", "R peaks within 50 ms after one constant lag (F1)", better="higher"),
    Metric("r_f1_150ms_lag", "R peaks within 150 ms after one constant lag (F1)", better="higher"),
    Metric("r_timing_ms_lag", "R timing error after one constant lag, median", "ms"),
    Metric("lag_abs_ms", "The constant lag itself, size", "ms"),
    Metric("rr_error_ms", "RR interval error, mean absolute", "ms"),
    Metric("hr_error_bpm", "Heart rate error, mean absolute", "bpm"),
    Metric("rmse_mv_sample", "RMSE of one sample", "mV"),
    Metric("rmse_mv_sample_lag", "RMSE of one sample after one constant lag", "mV"),
    Metric("rmse_mv_mean", "RMSE of the mean of the samples", "mV"),
    Metric("correlation_sample", "Correlation of one sample", better="higher"),
    Metric(
        "correlation_sample_lag",
        "Correlation of one sample after one constant lag",
        better="higher",
        statistic="median",
    ),
    Metric("correlation_mean", "Correlation of the mean of the samples", better="higher"),
    Metric("crps_mv", "CRPS of the samples", "mV"),
    Metric("coverage_90", "Inside the 90 % band", better=0.9),
    Metric("coverage_90_lag", "Inside the 90 % band after one constant lag", better=0.9),
    Metric("band_width_mv", "Width of the 90 % band", "mV", better="neither"),
    Metric("spread_mv", "Standard deviation of the samples", "mV", better="neither"),
    Metric("lead_law_uv", "Largest breach of the lead laws", "µV", statistic="max"),
    Metric("finite_share", "Windows without NaN or infinity", better="higher"),
)

BY_NAME = {metric.name: metric for metric in METRICS}
