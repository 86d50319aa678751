import numpy as np
import pytest
import scipy.fft
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from p2es.diffusion import BlurDiffusion, DiffusionConfig, dct, idct

PROCESS = BlurDiffusion()


@given(n=st.integers(2, 65))
@settings(max_examples=30, deadline=None)
def test_dct_is_scipys_orthonormal_one_and_idct_undoes_it(n):
    x = torch.from_numpy(np.random.default_rng(n).normal(size=(2, 3, n)))
    np.testing.assert_allclose(dct(x).numpy(), scipy.fft.dct(x.numpy(), norm="ortho"), atol=1e-12)
    np.testing.assert_allclose(idct(dct(x)).numpy(), x.numpy(), atol=1e-12)


def test_dct_made_under_inference_mode_can_still_be_trained_through():
    with torch.inference_mode():
        dct(torch.randn(1, 1, 37))
    x = torch.randn(1, 1, 37, requires_grad=True)
    dct(x).square().sum().backward()
    # Orthonormal: the energy, and so its gradient, is that of x itself.
    torch.testing.assert_close(x.grad, 2 * x.detach())


def test_noise_levels_keep_variance_and_follow_the_log_snr():
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    c = PROCESS.coefficients(t, 64)
    torch.testing.assert_close(c.a**2 + c.sigma**2, torch.ones(11, 1, 1, dtype=torch.float64))
    log_snr = 2 * torch.log(c.a / c.sigma).flatten()
    assert log_snr[0] == pytest.approx(10)
    assert log_snr[-1] == pytest.approx(-10)
    torch.testing.assert_close(PROCESS.time_of((c.sigma / c.a).flatten()), t)


def test_blur_leaves_what_the_table_of_cut_offs_says():
    # The gain falls to exp(-1/2) at fs / (2 pi sigma_B): 1.0 Hz for 20 samples at 128 Hz.
    gain = PROCESS.coefficients(torch.ones(1, dtype=torch.float64), 1280).gain[0, 0]
    frequency = torch.arange(1280) * 128 / (2 * 1280)
    cut = frequency[gain > np.exp(-0.5)].max()
    assert cut == pytest.approx(128 / (2 * np.pi * 20), abs=0.06)


def test_blur_is_a_gaussian_blur():
    x = torch.zeros(1, 1, 1280, dtype=torch.float64)
    x[..., 640] = 1
    t = torch.tensor([0.5], dtype=torch.float64)
    blurred = PROCESS.blur(x, t)[0, 0].numpy()
    width = 20 * np.sin(np.pi / 4) ** 2
    gaussian = np.exp(-0.5 * ((np.arange(1280) - 640) / width) ** 2) / (width * np.sqrt(2 * np.pi))
    # min_gain leaves a thousandth of the impulse itself.
    expected = 0.999 * gaussian + 0.001 * x[0, 0].numpy()
    np.testing.assert_allclose(blurred, expected, atol=1e-9)


@pytest.mark.parametrize(("s", "t"), [(0.2, 0.5), (0.5, 0.6), (0.05, 0.95)])
def test_posterior_agrees_with_bayes_by_monte_carlo(s, t):
    generator = torch.Generator().manual_seed(0)
    n, time = 200_000, 4
    x0 = torch.tensor([1.0, -0.5, 0.3, 2.0], dtype=torch.float64)
    at_s, at_t = (torch.tensor([value], dtype=torch.float64) for value in (s, t))
    cs, ct = PROCESS.coefficients(at_s, time), PROCESS.coefficients(at_t, time)
    u_s = cs.alpha * x0 + cs.sigma * torch.randn(n, 1, time, generator=generator, dtype=torch.float64)
    ratio = ct.alpha / cs.alpha
    noise = torch.randn(n, 1, time, generator=generator, dtype=torch.float64)
    u_t = ratio * u_s + (ct.sigma**2 - ratio**2 * cs.sigma**2).sqrt() * noise
    # The marginal of the chain is the one that diffuse() draws from.
    torch.testing.assert_close(u_t.mean(0), (ct.alpha * x0)[0], atol=0.02, rtol=0.02)
    torch.testing.assert_close(u_t.std(0), ct.sigma.expand(1, 1, time)[0], atol=0.02, rtol=0.02)
    mean, std = PROCESS.posterior(u_t, x0.expand(n, 1, time), at_t.expand(n), at_s.expand(n))
    residual = (u_s - mean) / std
    assert residual.mean().abs() < 0.01
    assert residual.std() == pytest.approx(1.0, abs=0.01)
    # Uncorrelated with u_t: nothing is left to be learned from it.
    assert abs(float((residual * (u_t - u_t.mean(0))).mean())) < 0.01


def test_without_blur_the_process_is_plain_variance_preserving_diffusion():
    plain = BlurDiffusion(DiffusionConfig(blur_samples=0.0))
    x = torch.randn(3, 8, 64, dtype=torch.float64)
    t = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    noise = torch.randn_like(x)
    c = plain.coefficients(t, 64)
    torch.testing.assert_close(plain.diffuse(x, t, noise), c.a * x + c.sigma * noise)


def test_loss_weight_is_one_over_what_a_gaussian_prior_leaves():
    generator = torch.Generator().manual_seed(1)
    spectrum = torch.linspace(4.0, 0.01, 32, dtype=torch.float64)
    u0 = spectrum.sqrt() * torch.randn(50_000, 1, 32, generator=generator, dtype=torch.float64)
    t = torch.tensor([0.6], dtype=torch.float64)
    c = PROCESS.coefficients(t, 32)
    u_t = c.alpha * u0 + c.sigma * torch.randn(u0.shape, generator=generator, dtype=torch.float64)
    wiener = spectrum * c.alpha / (spectrum * c.alpha**2 + c.sigma**2)
    left = (u0 - wiener * u_t).square().mean()
    assert float(PROCESS.loss_weight(t, spectrum)) == pytest.approx(1 / float(left), rel=0.02)
