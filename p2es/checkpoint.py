"""Everything a training needs to go on as if it had never stopped, on disk."""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from p2es.errors import ModelError

COMMIT = "commit.json"
_TENSORS, _SCALARS = "state.safetensors", "state.json"


@dataclass
class TrainingState:
    """The state of a training after a step.

    What is random is drawn from the seed, the step and the rank, and the order of the windows from the seed and the
    windows seen (`batching.EpochPlan`), so these numbers are the state of the generators and of the sampler; the
    learning rate follows from the progress.

    Attributes
    ----------
    step, windows : int
        Steps and windows so far, all ranks together.
    elapsed_s : float
        What a time budget has been used of.
    recent_losses : list of float
        Mean losses at the last looks, by which an exploding one is known.
    tensors : dict of Tensor
        `model.`, `average.` and `optimizer.` by parameter.
    about : mapping
        Whose state it is: seed, world size, run.
    """

    step: int = 0
    windows: int = 0
    elapsed_s: float = 0.0
    recent_losses: list[float] = field(default_factory=list)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)

    def save(self, folder: Path) -> None:
        """Write tensors, then numbers, then `commit.json` with the SHA-256 of both: without it nothing is believed."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file({k: v.detach().cpu().contiguous() for k, v in self.tensors.items()}, folder / _TENSORS)
        scalars = {k: v for k, v in vars(self).items() if k != "tensors"}
        (folder / _SCALARS).write_text(json.dumps(scalars, default=dict))
        digests = {name: _sha256(folder / name) for name in (_TENSORS, _SCALARS)}
        with (folder / COMMIT).open("w") as file:
            json.dump({"sha256": digests}, file)
            file.flush()
            os.fsync(file.fileno())

    @classmethod
    def load(cls, folder: Path) -> "TrainingState":
        """Undo `save`.

        Raises
        ------
        ModelError
            When a file is missing, torn or not the one that was committed.
        """
        try:
            committed = json.loads((folder / COMMIT).read_text())["sha256"]
            for name in (_TENSORS, _SCALARS):
                if _sha256(folder / name) != committed[name]:
                    raise ModelError(f"the checkpoint {folder.name} is not whole ({name} differs): use an older one")
            scalars = json.loads((folder / _SCALARS).read_text())
            return cls(**scalars, tensors=load_file(folder / _TENSORS))
        except (OSError, ValueError, TypeError, KeyError, SafetensorError) as error:
            raise ModelError(
                f"the checkpoint {folder.name} is not whole ({type(error).__name__}): use an older one"
            ) from error


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
