"""Data whose best denoiser is known in closed form, in every parametrisation."""

import torch

from legato.diffusion import Denoiser, NoiseSchedule, scaled_linear


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=generator(seed))


def flow_schedule(steps=1000):
    sigma = torch.arange(1, steps + 1, dtype=torch.float64) / steps
    return NoiseSchedule(1 - sigma, sigma, "flow", name="flow")


def schedule_for(prediction):
    return flow_schedule() if prediction == "flow" else scaled_linear(prediction=prediction)


def ideal(schedule, posterior_mean):
    """The denoiser that gives `posterior_mean(x, alpha, sigma)`, through what the schedule says that a network predicts."""

    def model(x, t):
        alpha, sigma = schedule.at(t, x)
        x0 = posterior_mean(x, alpha, sigma)
        if schedule.prediction == "sample":
            return x0
        noise = (x - alpha * x0) / sigma
        return {"epsilon": noise, "v_prediction": alpha * noise - sigma * x0, "flow": noise - x0}[schedule.prediction]

    return Denoiser(model, schedule)


class Mixture:
    """Gaussians with means [K, D], covariances [K, D, D] and equal weights."""

    def __init__(self, means, covariances):
        self.means, self.covariances = means, covariances

    def __call__(self, x, alpha, sigma):
        return self.posterior(x, alpha, sigma)[0]

    def posterior(self, x, alpha, sigma):
        """Mean [B, D] and covariance [B, D, D] of x0 given x."""
        a, s = alpha[:, :, None], sigma[:, :, None]
        identity = torch.eye(x.shape[1], dtype=x.dtype)
        logs, means, covariances = [], [], []
        for m, c in zip(self.means, self.covariances, strict=True):
            total = a**2 * c + s**2 * identity
            gain = a * c @ torch.linalg.inv(total)
            away = (x - alpha * m)[:, :, None]
            means.append(m + (gain @ away)[:, :, 0])
            covariances.append(c - a * gain @ c)
            logs.append(-0.5 * (away.mT @ torch.linalg.solve(total, away))[:, 0, 0] - 0.5 * torch.logdet(total))
        weights = torch.stack(logs, 1).softmax(1)
        all_means = torch.stack(means, 1)
        mean = (weights[:, :, None] * all_means).sum(1)
        within = (weights[:, :, None, None] * torch.stack(covariances, 1)).sum(1)
        gaps = all_means - mean[:, None]
        return mean, within + torch.einsum("bk,bki,bkj->bij", weights, gaps, gaps)


def mixture(dims=5, count=3):
    half = randn(count, dims, dims, seed=1) / dims**0.5
    return Mixture(randn(count, dims), half @ half.mT + 0.1 * torch.eye(dims, dtype=torch.float64))
