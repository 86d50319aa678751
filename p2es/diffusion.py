"""The forward process: blur in frequency, then noise in time; its posterior; the weight of the loss.

P2Es' abstract fixes the order (frequency-domain blurring, then temporal noise). The equations are our reading of it:
blurring diffusion (Hoogeboom & Salimans, arXiv 2209.05557) in one dimension. With u = DCT(x), orthonormal:

    q(u_t | u_0) = N(alpha_t(k) u_0, sigma_t^2),   alpha_t(k) = a_t d_t(k)
    d_t(k) = (1 - d_min) exp(-lambda_k tau_t) + d_min,   lambda_k = (pi k / N)^2
    tau_t = sigma_B(t)^2 / 2,   sigma_B(t) = sigma_Bmax sin^2(pi t / 2)
    log SNR(t) = -2 log tan(l_0 + t (l_1 - l_0)),   a_t^2 = sigmoid(log SNR),   sigma_t^2 = 1 - a_t^2

Shapes: x and u are (batch, lead, time); t is (batch,); per-frequency coefficients are (batch, 1, time).
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor


@dataclass(frozen=True)
class DiffusionConfig:
    """The forward process."""

    blur_samples: float = 20.0
    """Largest standard deviation of the blur, in samples at 128 Hz; 20 leaves about 1 Hz, what a pulse carries."""
    min_gain: float = 1e-3
    """Least gain of a blurred frequency (d_min)."""
    log_snr_max: float = 10.0
    """The log signal-to-noise ratio runs from this to minus this."""


@lru_cache(maxsize=16)
def _twiddle(n: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Phase factors and orthonormal scale of the DCT of length n."""
    # A tensor first made under inference mode could not be cached for training.
    with torch.inference_mode(False):
        k = torch.arange(n, dtype=torch.float64)
        phase = torch.exp(-0.5j * math.pi * k / n)
        scale = torch.full((n,), math.sqrt(2.0 / n), dtype=torch.float64)
        scale[0] = math.sqrt(1.0 / n)
        return phase.to(device), scale.to(device)


def dct(x: Tensor) -> Tensor:
    """Orthonormal DCT-II along the last axis, by one FFT of the same length (Makhoul 1980)."""
    n = x.shape[-1]
    phase, scale = _twiddle(n, x.device)
    folded = torch.cat([x[..., ::2], x[..., 1::2].flip(-1)], dim=-1)
    spectrum = torch.fft.fft(folded) * phase.to(torch.complex64 if x.dtype == torch.float32 else torch.complex128)
    return spectrum.real * scale.to(x.dtype)


def idct(u: Tensor) -> Tensor:
    """Inverse of `dct` (orthonormal DCT-III)."""
    n = u.shape[-1]
    phase, scale = _twiddle(n, u.device)
    # With c_k the unscaled DCT-II, the FFT of the folded signal is conj(phase) (c_k - i c_{n-k}), with c_n = 0.
    c = u / scale.to(u.dtype)
    mirrored = torch.cat([torch.zeros_like(c[..., :1]), c[..., 1:].flip(-1)], dim=-1)
    spectrum = torch.complex(c, -mirrored) * phase.conj().to(
        torch.complex64 if u.dtype == torch.float32 else torch.complex128
    )
    folded = torch.fft.ifft(spectrum).real
    x = torch.empty_like(u)
    half = (n + 1) // 2
    x[..., ::2] = folded[..., :half]
    x[..., 1::2] = folded[..., half:].flip(-1)
    return x


@dataclass(frozen=True)
class Coefficients:
    """The marginal at times t.

    Attributes
    ----------
    a, sigma : Tensor (batch, 1, 1)
        Signal and noise level.
    gain : Tensor (batch, 1, time)
        d_t(k), the blur in frequency.
    """

    a: Tensor
    sigma: Tensor
    gain: Tensor

    @property
    def alpha(self) -> Tensor:
        """a_t d_t(k), (batch, 1, time)."""
        return self.a * self.gain


@dataclass(frozen=True)
class BlurDiffusion:
    """The forward process and its posterior."""

    config: DiffusionConfig = DiffusionConfig()

    @property
    def _limits(self) -> tuple[float, float]:
        half = self.config.log_snr_max / 2
        return math.atan(math.exp(-half)), math.atan(math.exp(half))

    def coefficients(self, t: Tensor, time: int) -> Coefficients:
        """Give the marginal at t (batch,), computed in float64 and returned in t's dtype."""
        low, high = self._limits
        at = t.to(torch.float64)[:, None, None]
        angle = low + at * (high - low)
        blur = self.config.blur_samples * torch.sin(math.pi * at / 2) ** 2
        k = torch.arange(time, dtype=torch.float64, device=t.device)
        decay = torch.exp(-((math.pi * k / time) ** 2) * blur**2 / 2)
        gain = (1 - self.config.min_gain) * decay + self.config.min_gain
        # log SNR = -2 log tan(angle), so a = cos(angle) and sigma = sin(angle).
        return Coefficients(torch.cos(angle).to(t.dtype), torch.sin(angle).to(t.dtype), gain.to(t.dtype))

    def time_of(self, noise_ratio: Tensor) -> Tensor:
        """Give the t at which sigma_t / a_t has this value."""
        low, high = self._limits
        return ((torch.atan(noise_ratio.to(torch.float64)) - low) / (high - low)).clamp(0.0, 1.0)

    def blur(self, x: Tensor, t: Tensor) -> Tensor:
        """Blur x (batch, lead, time) as at t, without noise: DCT^-1(d_t DCT(x))."""
        return idct(self.coefficients(t, x.shape[-1]).gain * dct(x))

    def diffuse(self, x: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Draw z_t = a_t blur(x) + sigma_t noise; `noise` is standard normal, of x's shape."""
        c = self.coefficients(t, x.shape[-1])
        return c.a * idct(c.gain * dct(x)) + c.sigma * noise

    def posterior(self, u_t: Tensor, u_0: Tensor, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """Give mean and standard deviation of q(u_s | u_t, u_0) in frequency, for s < t.

        With alpha_ts = alpha_t / alpha_s and var_ts = sigma_t^2 - alpha_ts^2 sigma_s^2:
        1/var = 1/sigma_s^2 + alpha_ts^2/var_ts, mean = var (alpha_ts/var_ts u_t + alpha_s/sigma_s^2 u_0).

        Parameters
        ----------
        u_t, u_0 : Tensor (batch, lead, time)
        t, s : Tensor (batch,)

        Returns
        -------
        mean : Tensor (batch, lead, time)
        std : Tensor (batch, 1, time)
        """
        time = u_t.shape[-1]
        at, to = (self.coefficients(x.to(torch.float64), time) for x in (t, s))
        ratio = at.alpha / to.alpha
        var_s = (to.sigma**2).clamp_min(1e-8)
        var_ts = (at.sigma**2 - ratio**2 * to.sigma**2).clamp_min(1e-8)
        var = 1 / (1 / var_s + ratio**2 / var_ts)
        mean = (var * ratio / var_ts).to(u_t.dtype) * u_t + (var * to.alpha / var_s).to(u_t.dtype) * u_0
        return mean, var.sqrt().to(u_t.dtype)

    def loss_weight(self, t: Tensor, spectrum: Tensor) -> Tensor:
        """Give one over the error that a Gaussian prior alone would leave at t, so that every t counts alike.

        For a prior with power `spectrum` S(k) the posterior variance is S sigma^2 / (S alpha^2 + sigma^2); its mean
        over k, clamped at 1e-3, is divided out.

        Parameters
        ----------
        t : Tensor (batch,)
        spectrum : Tensor (time,)
            Mean power of the training windows at each DCT frequency.

        Returns
        -------
        Tensor (batch,)
        """
        c = self.coefficients(t.to(torch.float64), spectrum.shape[-1])
        power = spectrum.to(torch.float64)
        left = (power * c.sigma**2 / (power * c.alpha**2 + c.sigma**2)).mean(dim=(1, 2))
        return (1 / left.clamp_min(1e-3)).to(t.dtype)
