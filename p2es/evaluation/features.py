"""The clinical features of an ECG by name, label and unit."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Feature:
    """One scalar feature of a window.

    Attributes
    ----------
    name : str
        What follows `real_`, `drawn_`, `median_` and `draws_` in the row table.
    label, unit : str
    circular : bool
        An angle in degrees: differences are wrapped to (-180, 180].
    """

    name: str
    label: str
    unit: str
    circular: bool = False


FEATURES = (
    Feature("hr_bpm", "Heart rate", "bpm"),
    Feature("p_ms", "P duration", "ms"),
    Feature("pr_ms", "PR interval", "ms"),
    Feature("qrs_ms", "QRS duration", "ms"),
    Feature("qt_ms", "QT interval", "ms"),
    Feature("qtcf_ms", "QTcF", "ms"),
    Feature("p_axis_deg", "P axis", "°", circular=True),
    Feature("qrs_axis_deg", "QRS axis", "°", circular=True),
    Feature("t_axis_deg", "T axis", "°", circular=True),
    Feature("transition", "R transition", "leads"),
)

LEAD_FEATURES = ("p_mv", "r_mv", "s_mv", "t_mv", "st_filtered_mv", "t_polarity")
