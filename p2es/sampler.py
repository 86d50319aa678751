"""Few-step sampling, with one seed a window: a draw does not depend on what else is in the batch."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from p2es.diffusion import dct, idct
from p2es.leads import LeadRole
from p2es.network import Condition, Denoiser
from p2es.windows import ECG_BAND_HZ, FS_HZ


@dataclass(frozen=True)
class SamplerConfig:
    """Where sampling starts and ends, and how it steps."""

    start_ratio: float = 100.0
    """sigma/a at the start. From 10, 30, 100: F1 .921, .934, .945 (shared/reference/prototype.md)."""
    end_ratio: float = 0.02
    """sigma/a of the last evaluation. Ending at .05 left noise at 30-40 Hz that the ECGs do not have."""
    rho: float = 5.0
    """Bend of the grid (Karras et al. 2022, equation 5): more steps at little noise."""
    stochastic: bool = True
    """Step by the posterior, with noise; False steps deterministically (DDIM)."""
    guidance: float = 1.0
    """Weight of the condition; 1 samples the learned distribution, more sharpens it and spoils the bands."""


def draw_generator(seed: int, draw: int) -> torch.Generator:
    """Give the random generator of one draw of one window; on the CPU, so that every device draws the same."""
    digest = hashlib.sha256(f"{seed}:{draw}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def noise_grid(evaluations: int, config: SamplerConfig) -> Tensor:
    """Give sigma/a at each evaluation, falling: (s^(1/rho) + i/(n-1) (e^(1/rho) - s^(1/rho)))^rho."""
    start, end = config.start_ratio ** (1 / config.rho), config.end_ratio ** (1 / config.rho)
    steps = torch.linspace(0.0, 1.0, evaluations, dtype=torch.float64) if evaluations > 1 else torch.zeros(1)
    return (start + steps * (end - start)) ** config.rho


def _normal(generators: Sequence[torch.Generator], shape: torch.Size, like: Tensor) -> Tensor:
    return torch.stack([torch.randn(shape, generator=g) for g in generators]).to(like)


def within_band(x: Tensor) -> Tensor:
    """Cut what lies above the band of the training ECGs: there the draws hold the sampler's noise and nothing else."""
    u = dct(x)
    frequency_hz = torch.arange(u.shape[-1], device=u.device) * FS_HZ / (2 * u.shape[-1])
    return idct(torch.where(frequency_hz <= ECG_BAND_HZ[1], u, 0.0))


class _Guided:
    """The denoiser with its guides computed once, classifier-free guidance and given leads put back."""

    def __init__(self, denoiser: Denoiser, condition: Condition, guidance: float) -> None:
        self.denoiser, self.condition, self.guidance = denoiser, condition, guidance
        self.guide = denoiser.guide(condition)
        self.given = (condition.roles == LeadRole.GIVEN)[..., None]
        if guidance != 1.0:
            self.null = Condition(
                ppg=torch.zeros_like(condition.ppg),
                ppg_mask=torch.zeros_like(condition.ppg_mask),
                people=torch.cat(
                    [torch.zeros_like(condition.people[:, :4]), torch.ones_like(condition.people[:, :4])], 1
                ),
                roles=condition.roles,
                given=condition.given,
            )
            self.null_guide = denoiser.guide(self.null)

    def __call__(self, z: Tensor, t: Tensor) -> Tensor:
        x = self.denoiser(z, t, self.condition, self.guide)
        if self.guidance != 1.0:
            x = torch.lerp(self.denoiser(z, t, self.null, self.null_guide), x, self.guidance)
        return torch.where(self.given, self.condition.given, x)


@torch.inference_mode()
def draw(
    denoiser: Denoiser,
    condition: Condition,
    generators: Sequence[torch.Generator],
    evaluations: int,
    config: SamplerConfig = SamplerConfig(),
) -> Iterator[Tensor]:
    """Sample, yielding the estimate of the clean ECG after each evaluation; the last one is the draw.

    From u_t ~ N(0, sigma_t^2) at the start, each step draws u_s from the posterior q(u_s | u_t, DCT(x)) of
    `BlurDiffusion.posterior`, or, deterministically, u_s = alpha_s u_0 + sigma_s eps.

    Parameters
    ----------
    denoiser : Denoiser
    condition : Condition
        Of `len(generators)` windows.
    generators : sequence of torch.Generator
        One a window (`draw_generator`).
    evaluations : int
        Network evaluations, at least 1.

    Yields
    ------
    Tensor (batch, 8, time)
        In lead units.
    """
    diffusion, guided = denoiser.diffusion, _Guided(denoiser, condition, config.guidance)
    shape = condition.given.shape[1:]
    batch = len(generators)
    grid = diffusion.time_of(noise_grid(evaluations, config)).to(condition.given)
    times = [at.expand(batch) for at in grid]
    u = diffusion.coefficients(times[0], shape[-1]).sigma * _normal(generators, shape, condition.given)
    for step, t in enumerate(times):
        x = guided(idct(u), t)
        last = step + 1 == len(times)
        yield torch.where(guided.given, x, within_band(x)) if last else x
        if last:
            return
        u_0, s = dct(x), times[step + 1]
        if config.stochastic:
            mean, std = diffusion.posterior(u, u_0, t, s)
            u = mean + std * _normal(generators, shape, u)
        else:
            now, then = (diffusion.coefficients(at, shape[-1]) for at in (t, s))
            u = then.alpha * u_0 + then.sigma / now.sigma * (u - now.alpha * u_0)
