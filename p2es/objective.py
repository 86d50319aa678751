"""What is minimised: denoising of the observed leads, sharpness, contrast of people, clusters."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from p2es.groups import contrastive_loss, prototype_loss
from p2es.leads import INDEPENDENT_INDEX, LIFT, LeadRole
from p2es.network import Condition, Denoiser


@dataclass(frozen=True)
class ObjectiveConfig:
    """Weights of the terms, and what is hidden from the network in training."""

    slope_weight: float = 0.1
    """Weight of the error of the first difference, which keeps the QRS sharp."""
    contrast_weight: float = 0.05
    """Weight of the contrast between demographic neighbours and others."""
    prototype_weight: float = 0.05
    """Weight of the cross entropy between soft group and cluster."""
    contrast_temperature: float = 0.1
    hide_ppg: float = 0.1
    """Share of windows trained without their PPG: the prior, and what guidance needs."""
    hide_people: float = 0.1
    """Share of windows trained without demographics."""
    give_leads: float = 0.15
    """Share of windows that show one or two of their leads, in the patterns of bedside archives."""


# Lead sets that archives really hold beside a PPG: II; II and V5 (theatre); I and II; V1, V2 or V5 alone.
_PATTERNS = ((1,), (1, 6), (0, 1), (2,), (3,), (6,))


class Objective(nn.Module):
    """The losses of one batch. A module, so that distributed data parallel sees one forward call.

    With e = (lift(x) - ecg) / scale on observed leads, w_t from `BlurDiffusion.loss_weight`:
    L = mean w_t e^2 + slope mean w_t (de/dn)^2 / 2 + contrast InfoNCE + prototype CE.
    The factor 1/2 makes the slope of white noise count as much as its value.
    """

    lift: Tensor
    spectrum: Tensor

    def __init__(self, denoiser: Denoiser, config: ObjectiveConfig, lead_scale_mv: Tensor, spectrum: Tensor) -> None:
        super().__init__()
        self.denoiser, self.config = denoiser, config
        scale = lead_scale_mv.to(torch.float32)
        # Lifts leads in their own units to 12 leads in theirs: diag(1/s12) B diag(s8).
        lift = torch.tensor(LIFT, dtype=torch.float32) * scale[INDEPENDENT_INDEX] / scale[:, None]
        self.register_buffer("lift", lift, persistent=False)
        self.register_buffer("spectrum", spectrum.to(torch.float32), persistent=False)

    def forward(self, batch: Mapping[str, Tensor], t: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Give the terms of the loss.

        Parameters
        ----------
        batch : mapping
            `Units.training_tensors`, with `positive`, `same` (batch, batch) and `cluster` (batch,).
        t : Tensor (batch,)
        generator : torch.Generator
            Draws noise and what is hidden.

        Returns
        -------
        dict of Tensor ()
            `total` and each weighted term: `wave`, `slope`, `contrast`, `prototype`.
        """
        condition = self.hide(batch, generator)
        x = batch["x"]
        noise = torch.randn(x.shape, generator=generator).to(x)
        z = self.denoiser.diffusion.diffuse(x, t, noise)
        # An absent lead has no signal to blur: its row is noise alone, as it will be when sampling starts.
        z = torch.where(batch["present"][..., None], z, noise)
        guide = self.denoiser.guide(condition)
        estimate = self.denoiser(z, t, condition, guide)
        # Half precision is for the network: errors a thousandth of the wave would drown in it.
        with torch.autocast(x.device.type, enabled=False):
            terms = self._terms(estimate.float(), guide.embedding.float(), guide.logits.float(), batch, t)
            return {"total": torch.stack(list(terms.values())).sum(), **terms}

    def _terms(
        self, estimate: Tensor, embedding: Tensor, logits: Tensor, batch: Mapping[str, Tensor], t: Tensor
    ) -> dict[str, Tensor]:
        c = self.config
        wave, slope = self.errors(estimate, batch, t)
        contrast = contrastive_loss(embedding, batch["positive"], batch["same"], c.contrast_temperature)
        return {
            "wave": wave,
            "slope": c.slope_weight * slope,
            "contrast": c.contrast_weight * contrast,
            "prototype": c.prototype_weight * prototype_loss(logits, batch["cluster"]),
        }

    def unhidden_errors(self, batch: Mapping[str, Tensor], t: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Give `errors` with nothing hidden and no lead given: what validation measures."""
        x, present = batch["x"], batch["present"]
        z = torch.where(present[..., None], self.denoiser.diffusion.diffuse(x, t, noise), noise)
        roles = torch.where(present, int(LeadRole.TARGET), int(LeadRole.ABSENT))
        condition = Condition(
            ppg=torch.where(batch["ppg_mask"][:, None], batch["ppg"], 0.0),
            ppg_mask=batch["ppg_mask"],
            people=batch["people"],
            roles=roles,
            given=torch.zeros_like(x),
        )
        return self.errors(self.denoiser(z, t, condition), batch, t)

    def errors(self, estimate: Tensor, batch: Mapping[str, Tensor], t: Tensor) -> tuple[Tensor, Tensor]:
        """Give the weighted squared error of value and slope on the observed leads of the lifted estimate."""
        mask = batch["lead_mask"].to(estimate.dtype)
        error = (torch.matmul(self.lift, estimate) - batch["ecg"]) * mask[..., None]
        weight = self.denoiser.diffusion.loss_weight(t, self.spectrum)
        leads = mask.sum(dim=1).clamp_min(1.0)
        value = error.square().mean(dim=-1).sum(dim=1) / leads
        slope = error.diff(dim=-1).square().mean(dim=-1).sum(dim=1) / (2 * leads)
        return (weight * value).mean(), (weight * slope).mean()

    def hide(self, batch: Mapping[str, Tensor], generator: torch.Generator) -> Condition:
        """Hide PPG, demographics and leads at random, and show a few leads."""
        x, present = batch["x"], batch["present"]
        n, device = x.shape[0], x.device

        def chosen(share: float) -> Tensor:
            return (torch.rand(n, generator=generator) < share).to(device)

        ppg_mask = batch["ppg_mask"] & ~chosen(self.config.hide_ppg)[:, None]
        unknown = torch.cat([torch.zeros_like(batch["people"][:, :4]), torch.ones_like(batch["people"][:, :4])], 1)
        people = torch.where(chosen(self.config.hide_people)[:, None], unknown, batch["people"])
        pick = torch.randint(len(_PATTERNS), (n,), generator=generator)
        shown = torch.zeros((n, x.shape[1]), dtype=torch.bool)
        for row, pattern in enumerate(pick.tolist()):
            shown[row, list(_PATTERNS[pattern])] = True
        given = shown.to(device) & present & chosen(self.config.give_leads)[:, None]
        roles = torch.where(
            given, int(LeadRole.GIVEN), torch.where(present, int(LeadRole.TARGET), int(LeadRole.ABSENT))
        )
        return Condition(
            ppg=torch.where(ppg_mask[:, None], batch["ppg"], 0.0),
            ppg_mask=ppg_mask,
            people=people,
            roles=roles,
            given=torch.where(given[..., None], x, 0.0),
        )
