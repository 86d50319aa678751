"""The reverse process: a multi-scale temporal denoiser with a lead axis, then frequency deblurring.

Hidden states are (batch, lead, channel, token), held as (batch, lead * channel, token) so that grouped convolutions
keep the leads apart; only the affinity matrix mixes them. A dense network has no leads after its first convolution,
and an affinity of leads would mean nothing in it.

1. The temporal U-Net (three scales) sees z_t, the pulse, the person, the group and the roles of the leads, and
   predicts v = a_t eps - sigma_t b, whence the blurred clean signal b = a_t z_t - sigma_t v.
2. The deblurring head undoes the blur as a Wiener filter around a learned prior mean r:
   DCT(x) = g_t(k) DCT(b) + (1 - w_t(k)) DCT(r),  g = d/(d^2 + lambda),  w = d g,
   which is E[x | b] for x ~ N(r, S), b = d x + n, with lambda = var(n)/S: where the blur left a frequency it is
   divided back, where it erased it or noise drowned it the network's own expectation stands in.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from p2es.diffusion import BlurDiffusion, Coefficients, DiffusionConfig, dct, idct
from p2es.groups import N_FIELDS, Affinity, GroupFinder
from p2es.leads import N_INDEPENDENT, LeadRole
from p2es.windows import ECG_SAMPLES, MARGIN_SAMPLES

_LEADS = N_INDEPENDENT


@dataclass(frozen=True)
class NetworkConfig:
    """The denoiser."""

    channels: tuple[int, ...] = (16, 32, 32)
    """Channels a lead at each scale."""
    kernel: int = 5
    """Kernel of the temporal convolutions, tokens."""
    patch: int = 8
    """Samples a token."""
    pulse_channels: int = 48
    """Channels of the pulse encoder."""
    condition: int = 64
    """Width of the condition (time, person, group)."""
    prototypes: int = 8
    """Groups, each with its affinity."""
    ppg_channels: int = 1
    """PPG channels that are read."""
    deblur_bands: int = 16
    """Bands of the deblurring, evenly spaced in frequency."""


@dataclass(frozen=True)
class Condition:
    """What the network is told, besides z_t and t; all of one batch.

    Attributes
    ----------
    ppg : Tensor (batch, channel, 1536)
        Aligned; zero where the mask is False.
    ppg_mask : Tensor (batch, 1536)
        All False for a window without PPG.
    people : Tensor (batch, 8)
        Standardised demographics with 0 for unknown, then 1 for unknown.
    roles : Tensor (batch, 8)
        `LeadRole` of each independent lead.
    given : Tensor (batch, 8, 1280)
        The leads whose role is GIVEN, in lead units; zero elsewhere.
    """

    ppg: Tensor
    ppg_mask: Tensor
    people: Tensor
    roles: Tensor
    given: Tensor

    def repeat(self, n: int) -> "Condition":
        """Repeat each window n times, one after another."""
        return Condition(**{name: value.repeat_interleave(n, dim=0) for name, value in vars(self).items()})


@dataclass(frozen=True)
class Guide:
    """What of the condition does not depend on t, computed once a window.

    Attributes
    ----------
    pulse : tuple of Tensor (batch, pulse_channels, token)
        Features of the pulse at each scale.
    embedding : Tensor (batch, width)
        Unit vector of the person.
    logits : Tensor (batch, prototype)
        Of the soft group.
    person : Tensor (batch, condition)
        The part of the condition that tells person and group.
    affinity : Tensor (batch, 8, 8)
    """

    pulse: tuple[Tensor, ...]
    embedding: Tensor
    logits: Tensor
    person: Tensor
    affinity: Tensor


def lead_convolution(inputs: int, outputs: int, kernel: int = 1) -> nn.Conv1d:
    """Make a convolution over time that keeps the leads apart; channels are counted a lead."""
    return nn.Conv1d(_LEADS * inputs, _LEADS * outputs, kernel, padding=kernel // 2, groups=_LEADS)


def join_channels(*states: Tensor) -> Tensor:
    """Join hidden states (batch, lead * channel, token) along the channels of each lead."""
    batch, _, tokens = states[0].shape
    return torch.cat([h.view(batch, _LEADS, -1, tokens) for h in states], dim=2).view(batch, -1, tokens)


class PulseEncoder(nn.Module):
    """Dilated convolutions over the pulse; the margins are read, then cut off."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        width = config.pulse_channels
        self.margin = MARGIN_SAMPLES // config.patch
        self.patches = nn.Conv1d(config.ppg_channels + 1, width, config.patch, stride=config.patch)
        self.layers = nn.ModuleList(nn.Conv1d(width, width, 5, padding=2 * d, dilation=d) for d in (1, 2, 4, 8))
        self.null = nn.Parameter(torch.randn(width) * 0.1)

    def forward(self, ppg: Tensor, mask: Tensor) -> Tensor:
        """Encode (batch, channel, 1536) as (batch, pulse_channels, token); a missing pulse is a learned constant."""
        h = self.patches(torch.cat([ppg, mask[:, None].to(ppg.dtype)], dim=1))
        for layer in self.layers:
            h = h + layer(F.silu(h))
        h = h[..., self.margin : -self.margin]
        return torch.where(mask.any(dim=1)[:, None, None], h, self.null[:, None])


class Block(nn.Module):
    """One residual block: convolutions in time, pulse, condition, a mean over time, and the affinity over leads."""

    def __init__(self, inputs: int, outputs: int, config: NetworkConfig) -> None:
        super().__init__()
        self.outputs = outputs
        self.norm_in = nn.GroupNorm(_LEADS, _LEADS * inputs)
        self.conv_in = lead_convolution(inputs, outputs, config.kernel)
        self.pulse = nn.Conv1d(config.pulse_channels, outputs, 1)
        self.film = nn.Linear(config.condition, 2 * _LEADS * outputs)
        self.norm_out = nn.GroupNorm(_LEADS, _LEADS * outputs)
        self.conv_out = lead_convolution(outputs, outputs, config.kernel)
        # The mean over time lets one beat's shape agree with the next; without it F1 fell .941 -> .934 (prototype.md).
        self.whole = lead_convolution(outputs, outputs)
        self.mix = nn.Conv1d(outputs, outputs, 1)
        self.skip = lead_convolution(inputs, outputs) if inputs != outputs else nn.Identity()

    def forward(self, h: Tensor, pulse: Tensor, condition: Tensor, affinity: Tensor) -> Tensor:
        """Map (batch, lead * inputs, token) to (batch, lead * outputs, token)."""
        scale, shift = self.film(condition)[..., None].chunk(2, dim=1)
        x = self.conv_in(F.silu(self.norm_in(h)))
        x = x.unflatten(1, (_LEADS, -1)) + self.pulse(pulse)[:, None]
        x = F.silu(torch.addcmul(shift, self.norm_out(x.flatten(1, 2)), 1 + scale))
        x = self.conv_out(x)
        x = x + self.whole(F.silu(x.mean(dim=-1, keepdim=True)))
        return self.skip(h) + x + self._over_leads(x, affinity)

    def _over_leads(self, x: Tensor, affinity: Tensor) -> Tensor:
        """Let leads speak to each other: A (h W), the channel mix W shared by all leads."""
        tokens = x.shape[-1]
        mixed = self.mix(x.reshape(-1, self.outputs, tokens))
        return torch.bmm(affinity.to(mixed.dtype), mixed.view(-1, _LEADS, self.outputs * tokens)).view(x.shape)


class TemporalUNet(nn.Module):
    """The multi-scale part: down through the scales, and up again with skips."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        widths = config.channels
        self.patch = config.patch
        # z_t and the given leads, side by side in each lead.
        self.read = nn.Conv1d(2 * _LEADS, _LEADS * widths[0], config.patch, stride=config.patch, groups=_LEADS)
        self.role = nn.Embedding(len(LeadRole), widths[0])
        before = (widths[0], *widths[:-1])
        self.down = nn.ModuleList(Block(i, o, config) for i, o in zip(before, widths, strict=True))
        self.middle = Block(widths[-1], widths[-1], config)
        after = (widths[-1], *widths[:0:-1])
        self.narrow = nn.ModuleList(lead_convolution(i, o) for i, o in zip(after, widths[::-1], strict=True))
        self.up = nn.ModuleList(Block(o, o, config) for o in widths[::-1])
        # Patches overlap by half, so that no seam shows between them.
        self.write = nn.ConvTranspose1d(
            _LEADS * widths[0],
            _LEADS * 2,
            2 * config.patch,
            stride=config.patch,
            padding=config.patch // 2,
            groups=_LEADS,
        )

    def forward(self, z: Tensor, condition: Condition, guide: Guide, told: Tensor) -> tuple[Tensor, Tensor]:
        """Give v and the prior mean r, each (batch, 8, time)."""
        batch, _, time = z.shape
        h = self.read(join_channels(z, condition.given))
        h = h + self.role(condition.roles).reshape(batch, -1, 1)
        skips = []
        for scale, block in enumerate(self.down):
            h = block(h, guide.pulse[scale], told, guide.affinity)
            skips.append(h)
            if scale < len(self.down) - 1:
                h = F.avg_pool1d(h, 2)
        h = self.middle(h, guide.pulse[-1], told, guide.affinity)
        for scale, narrow, block in zip(reversed(range(len(skips))), self.narrow, self.up, strict=True):
            h = narrow(h)
            if h.shape[-1] != skips[scale].shape[-1]:
                h = h.repeat_interleave(2, dim=-1)
            h = block(h + skips[scale], guide.pulse[scale], told, guide.affinity)
        v, prior = self.write(F.silu(h)).float().view(batch, _LEADS, 2, time).unbind(dim=2)
        return v, prior


class Deblur(nn.Module):
    """The frequency part: a Wiener filter.

    lambda_t(k) = c_k (sigma_t / a_t)^2 / S(k): the noise of z_t / a_t over the power S of the training windows, times
    the share c_k of it that the temporal part leaves, learned in bands. A lambda of one learned constant a band, which
    does not know t, amplified noise at 30-40 Hz to 11 times the power that is there.
    """

    spectrum: Tensor

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.log_share = nn.Parameter(torch.full((config.deblur_bands,), math.log(0.1)))
        self.register_buffer("spectrum", torch.ones(ECG_SAMPLES))

    def forward(self, blurred: Tensor, prior: Tensor, c: Coefficients) -> Tensor:
        """Undo the blur of `blurred` around `prior`, both (batch, 8, time)."""
        share = F.interpolate(self.log_share[None, None], size=c.gain.shape[-1], mode="linear").exp()
        ratio = share * (c.sigma / c.a) ** 2 / self.spectrum
        wiener = c.gain / (c.gain**2 + ratio)
        return idct(wiener * dct(blurred) + (1 - c.gain * wiener) * dct(prior))


class Denoiser(nn.Module):
    """The whole reverse network: x given z_t."""

    def __init__(self, config: NetworkConfig, diffusion: DiffusionConfig) -> None:
        super().__init__()
        self.config = config
        self.diffusion = BlurDiffusion(diffusion)
        width = config.condition
        self.pulse = PulseEncoder(config)
        self.groups = GroupFinder(config.prototypes, config.pulse_channels)
        self.people = nn.Sequential(nn.Linear(2 * N_FIELDS, width), nn.SiLU(), nn.Linear(width, width))
        self.group = nn.Linear(config.prototypes, width, bias=False)
        self.time = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.affinity = Affinity(config.prototypes, width)
        self.unet = TemporalUNet(config)
        self.deblur = Deblur(config)

    def guide(self, condition: Condition) -> Guide:
        """Compute what does not depend on t."""
        pulse = self.pulse(condition.ppg, condition.ppg_mask)
        embedding = self.groups.embed(condition.people, pulse.mean(dim=-1))
        logits = self.groups.logits(embedding)
        weights = logits.softmax(dim=-1)
        person = self.people(condition.people) + self.group(weights)
        scales = [pulse]
        for _ in self.config.channels[1:]:
            scales.append(F.avg_pool1d(scales[-1], 2))
        affinity = self.affinity(weights, person, condition.roles)
        return Guide(tuple(scales), embedding, logits, person, affinity)

    def forward(self, z: Tensor, t: Tensor, condition: Condition, guide: Guide | None = None) -> Tensor:
        """Estimate the clean ECG.

        Parameters
        ----------
        z : Tensor (batch, 8, time)
            In lead units (millivolt over the lead's fixed scale).
        t : Tensor (batch,)
        condition : Condition
        guide : Guide, optional
            `self.guide(condition)`, when it is already known.

        Returns
        -------
        Tensor (batch, 8, time)
        """
        guide = self.guide(condition) if guide is None else guide
        c = self.diffusion.coefficients(t, z.shape[-1])
        told = F.silu(self.time(self._time_features(c.a, c.sigma)) + guide.person)
        v, prior = self.unet(z, condition, guide, told)
        return self.deblur(c.a * z - c.sigma * v, prior, c)

    def _time_features(self, a: Tensor, sigma: Tensor) -> Tensor:
        """Give sines and cosines of the log noise ratio, (batch, condition)."""
        half = self.config.condition // 2
        rate = torch.exp(torch.linspace(math.log(0.1), math.log(10.0), half, device=a.device, dtype=a.dtype))
        angle = torch.log(sigma / a).flatten()[:, None] * rate
        return torch.cat([angle.sin(), angle.cos()], dim=-1)
