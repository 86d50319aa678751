"""The arguments of `p2es person` and `p2es gallery`, apart from their work: the command line must start fast."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro


@dataclass(frozen=True)
class PersonArgs:
    """Whom to simulate. Age, sex, height or weight make the counterfactual twin: all else is kept."""

    index: tyro.conf.Positional[int]
    """Number of the person in the population."""
    seed: int = 0
    population: str = "healthy"
    """healthy, clinic, ward, stress or other."""
    day: int = 0
    """Another day of the same person."""
    rhythm: str | None = None
    """Instead of the one that the population draws: sinus, atrial_fibrillation, av_block_3, ..."""
    morphology: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Instead of those that the population draws: rbbb, lvh, ...; give it again for another, or `none`."""
    age: str | None = None
    """Age in years."""
    sex: str | None = None
    """F or M; give the twin a height too, effects of sex are those between people of equal height for their sex."""
    height_cm: float | None = None
    weight_kg: float | None = None
    seconds: float = 14.0
    """Length of the recording; the ten with most to see are drawn."""
    noise: bool = True
    """Noise of electrodes and faults of sensors."""
    out: Path = Path("person.png")
    """Where the picture goes."""
    wfdb: Path | None = None
    """Folder for the recording as WFDB, with its annotations."""


@dataclass(frozen=True)
class GalleryArgs:
    """Where the pictures go; the page that shows them lies beside the folder."""

    folder: tyro.conf.Positional[Path] = Path("docs/gallery")
    only: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Draw these pictures only, by name, and leave the page alone."""
