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
    Metric("r_sensitivity_50ms_lag", "R peaks that were found, within 50 ms after one constant lag", better="higher"),
    Metric(
        "r_predictivity_50ms_lag", "Drawn R peaks that are real, within 50 ms after one constant lag", better="higher"
    ),
    Metric("r_timing_ms_lag", "R timing error after one constant lag, median", "ms"),
    Metric("lag_abs_ms", "The constant lag itself, size", "ms"),
    Metric("rr_error_ms", "RR interval error, mean absolute", "ms"),
    Metric("hr_error_bpm", "Heart rate error, mean absolute", "bpm"),
    Metric("hr_error_percent", "Heart rate error, mean absolute", "%"),
    Metric("sdnn_error_percent", "SDNN error, relative", "%", statistic="median"),
    Metric("rmssd_error_percent", "RMSSD error, relative", "%", statistic="median"),
    Metric("rmse_mv_sample", "RMSE of one sample", "mV"),
    Metric("rmse_mv_sample_lag", "RMSE of one sample after one constant lag", "mV"),
    Metric("rmse_mv_mean", "RMSE of the mean of the samples", "mV"),
    Metric("beat_rmse_mv_sample", "RMSE of the median beats, R on R, of one sample", "mV"),
    Metric("mae_mv_sample", "Mean absolute error of one sample", "mV"),
    Metric("prd_percent_sample", "PRD of one sample, mean removed", "%"),
    Metric("correlation_sample", "Correlation of one sample", better="higher"),
    Metric(
        "correlation_sample_lag",
        "Correlation of one sample after one constant lag",
        better="higher",
        statistic="median",
    ),
    Metric("correlation_mean", "Correlation of the mean of the samples", better="higher"),
    Metric("dtw_mv_sample", "DTW within 150 ms of one sample, a step of the path (lead II)", "mV"),
    Metric("frechet_curve_mv_sample", "Discrete Fréchet distance of the curves of one sample (lead II)", "mV"),
    Metric("ssim_sample", "SSIM of one sample (0.2 s, L = 2 mV)", better="higher"),
    Metric("log_spectral_distance_db_sample", "Log-spectral distance of one sample, 0.5-40 Hz", "dB"),
    Metric("pr_error_ms", "PR error, median of the samples", "ms"),
    Metric("qrs_error_ms", "QRS duration error, median of the samples", "ms"),
    Metric("qtcf_error_ms", "QTcF error, median of the samples", "ms"),
    Metric("qrs_axis_error_deg", "QRS axis error, median of the samples", "°"),
    Metric("pr_error_ms_sample", "PR error, one sample", "ms"),
    Metric("qrs_error_ms_sample", "QRS duration error, one sample", "ms"),
    Metric("qtcf_error_ms_sample", "QTcF error, one sample", "ms"),
    Metric("qrs_axis_error_deg_sample", "QRS axis error, one sample", "°"),
    Metric("st_filtered_error_mv_sample", "ST level error of one sample, in 0.5-40 Hz, median lead", "mV"),
    Metric("t_polarity_agreement_sample", "T polarity of one sample right (I, II, V4 to V6)", better="higher"),
    Metric("transition_error_leads_sample", "R transition error of one sample", "leads"),
    Metric("drawn_failures_sample", "Features of the recording that cannot be measured in one sample"),
    Metric("feature_crps", "CRPS of clinical features, mean in SD between people", "SD"),
    Metric("feature_energy", "Energy score of clinical features together, a feature, in SD between people", "SD"),
    Metric("feature_coverage_90", "Clinical features inside the 90 % of the samples", better=0.9),
    Metric("feature_width_90", "Width of the 90 % of clinical features, in SD between people", "SD", better="neither"),
    Metric("crps_mv", "CRPS of the samples", "mV"),
    Metric("coverage_50", "Inside the central 50 % of the samples", better=0.5),
    Metric("coverage_80", "Inside the central 80 % of the samples", better=0.8),
    Metric("coverage_90", "Inside the 90 % band", better=0.9),
    Metric("coverage_90_lag", "Inside the 90 % band after one constant lag", better=0.9),
    Metric("band_width_mv", "Width of the 90 % band", "mV", better="neither"),
    Metric("spread_mv", "Standard deviation of the samples", "mV", better="neither"),
    Metric("dipolarity_percent", "Energy of one sample in three components of 8 leads", "%", better="neither"),
    Metric("dipolarity_real_percent", "Energy of the recording in three components of 8 leads", "%", better="neither"),
    Metric("lead_law_uv", "Largest breach of the lead laws", "µV", statistic="max"),
    Metric("einthoven_rms_uv", "Breach of the lead laws, RMS", "µV"),
    Metric("finite_share", "Windows without NaN or infinity", better="higher"),
)

BY_NAME = {metric.name: metric for metric in METRICS}
