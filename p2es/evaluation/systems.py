"""The systems of an evaluation: what each is called on a page, and what it can refute."""

from dataclasses import dataclass
from typing import Literal

from p2es.evaluation.columns import MODEL


@dataclass(frozen=True)
class System:
    """One system that is measured.

    Attributes
    ----------
    name : str
        Value of `system` in the rows of `measure`.
    title : str
        What a reader sees.
    kind : str
        `model`; `yardstick`, which draws on its own; `control`, the model with another input.
    says : str
        What it tells, in one sentence.
    colour : str
        Of its marks in the charts.
    """

    name: str
    title: str
    kind: Literal["model", "yardstick", "control"]
    says: str
    colour: str


SYSTEMS = (
    System(MODEL, "model", "model", "The model that is judged.", "#1f5fbf"),
    System(
        "shuffled_ppg",
        "model, another person's PPG",
        "control",
        "The model hears another person's pulse. What it still scores, it scores without listening.",
        "#c65a11",
    ),
    System(
        "warped_ppg",
        "model, another's pulse at these beats",
        "control",
        "The model hears another person's pulse, warped to the beats of this window. What it still scores is rate "
        "and rhythm alone; what it loses against its own input, it had from the shape of the pulse.",
        "#d89a2b",
    ),
    System(
        "shuffled_demographics",
        "model, another person's demographics",
        "control",
        "The model is told another person's age, sex, height and weight. What it does not lose, it does not owe to "
        "them.",
        "#b0508f",
    ),
    System(
        "mean_waveform",
        "mean waveform",
        "yardstick",
        "One line for everybody, without any input. It often has the lowest RMSE: a low RMSE alone proves nothing.",
        "#8a8a8a",
    ),
    System(
        "template",
        "template at pulse beats",
        "yardstick",
        "The population's mean beat wherever the pulse says there is one. It often has the lowest heart rate error, "
        "and a high correlation: neither proves that an ECG was reconstructed.",
        "#2a8a57",
    ),
    System(
        "regression",
        "linear regression",
        "yardstick",
        "A median beat regressed on pulse features and demographics. A network must earn its cost against it.",
        "#4aa3a2",
    ),
    System(
        "demographic_regression",
        "demographics and heart rate alone",
        "yardstick",
        "Intervals and axis regressed on age, sex, height, weight and heart rate. A pulse tells next to nothing more "
        "of them; being much better than this is a sign of a leak.",
        "#6b5fb5",
    ),
    System(
        "retrieval",
        "nearest training window",
        "yardstick",
        "The ECG of the training person whose pulse and demographics are nearest: a perfect ECG, of somebody else.",
        "#a0783c",
    ),
    System(
        "other_recording",
        "the person's ECG of another recording",
        "yardstick",
        "A real ECG of the same person from another recording, another day in simulated archives: how alike two "
        "recordings of one person are. Nothing drawn from a pulse should be nearer.",
        "#333333",
    ),
    System(
        "other_segment",
        "the person's ECG, same recording",
        "yardstick",
        "A real ECG of the same person from the same recording, where there is no other: minutes apart, with the same "
        "electrodes. Two days differ more, so this floor is too low.",
        "#5f5f5f",
    ),
    System(
        "oracle",
        "simulator's oracle",
        "yardstick",
        "Draws from the simulator's own law of people with this pulse: the best there is, on simulated people only.",
        "#111111",
    ),
)

OTHER_ECGS = ("other_recording", "other_segment")
"""The floor: another ECG of the person, of another recording where there is one. A window is in one of them."""

_BY_NAME = {system.name: system for system in SYSTEMS}
_OTHER_COLOUR = "#666666"


def title_of(name: str) -> str:
    """Give the name a reader sees."""
    return _BY_NAME[name].title if name in _BY_NAME else name.replace("_", " ")


def colour_of(name: str) -> str:
    """Give the colour of a system's marks."""
    return _BY_NAME[name].colour if name in _BY_NAME else _OTHER_COLOUR


def is_control(name: str) -> bool:
    """Whether a system is the model with another input."""
    return name in _BY_NAME and _BY_NAME[name].kind == "control"


def order_of(name: str) -> tuple[int, str]:
    """Give the place of a system in tables: in the order of `SYSTEMS`, then by name."""
    known = list(_BY_NAME)
    return (known.index(name) if name in _BY_NAME else len(known), name)
