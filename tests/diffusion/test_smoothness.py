"""The variation against closed forms, and the penalty against the official code's numbers."""

import copy
import math

import pytest
import torch
from known import Mixture, generator, ideal, mixture, randn, schedule_for
from torch import nn

from legato.diffusion import (
    Denoiser,
    DenoisingObjective,
    NoiseSchedule,
    SmoothnessRegularizer,
    class_condition,
    gaussian_variation,
    running_level,
    scaled_linear,
    unit_directions,
    variation,
    variation_norms,
    variation_penalty,
    variation_profile,
)
from legato.errors import LegatoValueError

PREDICTIONS = ["epsilon", "v_prediction", "sample", "flow"]


def sample(rows=4, dims=5, t=500):
    x0, noise = randn(rows, dims, seed=5), randn(rows, dims, seed=6)
    return x0, noise, torch.full((rows,), t), unit_directions(x0, generator(7))


@pytest.mark.parametrize("t", [5, 200, 500, 900])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_v_is_alpha_times_the_posterior_covariance(prediction, t):
    """Tweedie's second-order identity: v = alpha |Cov(x0 | x_t) u|, in every parametrisation, and without the weighting for xt."""
    schedule, data = schedule_for(prediction), mixture()
    x0, noise, level, u = sample(t=t)
    alpha, sigma = schedule.at(level, x0)
    covariance = data.posterior(schedule.noisy(x0, noise, level), alpha, sigma)[1]
    want = alpha[:, 0] * (covariance @ u[:, :, None])[:, :, 0].norm(dim=1)
    told = ideal(schedule, data)
    norms = variation_norms(told, x0, noise, level, u)
    torch.testing.assert_close(norms, want, rtol=1e-9, atol=0)
    per_xt = variation_norms(told, x0, noise, level, u, weighting="xt")
    torch.testing.assert_close(per_xt * sigma[:, 0] ** 2, want, rtol=1e-9, atol=0)
    torch.testing.assert_close(variation_norms(told, x0, noise, level, u, estimator="fd"), want, rtol=0.05, atol=1e-4)


def test_two_points_have_the_hyperbolic_secant():
    m = randn(1, 6, seed=3)
    schedule = scaled_linear()
    x0, noise, t, u = sample(dims=6, t=300)
    tiny = 1e-13 * torch.eye(6, dtype=torch.float64)  # the mixture of two points, as narrow as its formula bears
    norms = variation_norms(ideal(schedule, Mixture(torch.cat([m, -m]), torch.stack([tiny, tiny]))), x0, noise, t, u)
    alpha, sigma = (part[:, 0] for part in schedule.at(t, x0))
    along = (schedule.noisy(x0, noise, t) * m).sum(1)
    want = alpha / torch.cosh(alpha * along / sigma**2) ** 2 * (u * m).sum(1).abs() * m.norm()
    torch.testing.assert_close(norms, want, rtol=1e-8, atol=1e-10)

    def tanh(x, alpha, sigma):
        return m * torch.tanh(alpha * (x * m).sum(1, keepdim=True) / sigma**2)

    torch.testing.assert_close(variation_norms(ideal(schedule, tanh), x0, noise, t, u), want, rtol=1e-12, atol=0)


def test_a_linear_prediction_has_the_norm_of_its_rows_and_no_penalty_iff_they_are_equal():
    matrix = randn(5, 5, seed=9)
    x0, noise, t, u = sample()
    schedule = scaled_linear()
    linear = ideal(schedule, lambda x, alpha, sigma: (x / sigma) @ matrix.T)  # J with respect to the noise is M
    sigma = schedule.at(t, x0)[1][:, 0]
    norms = variation_norms(linear, x0, noise, t, u)
    torch.testing.assert_close(norms, sigma * (u @ matrix).norm(dim=1), rtol=1e-9, atol=0)
    assert variation_penalty(norms, norms.mean()) > 1e-4
    same = variation_norms(ideal(schedule, lambda x, alpha, sigma: 3 * x / sigma), x0, noise, t, u)
    assert variation_penalty(same, same.mean()) < 1e-20


def test_the_gaussian_curve_and_its_summit():
    schedule = scaled_linear()
    curve = gaussian_variation(schedule)
    assert float(curve.max()) == pytest.approx(2 / (3 * math.sqrt(3)), abs=1e-5)
    assert float(schedule.alpha[curve.argmax()] ** 2) == pytest.approx(1 / 3, abs=2e-3)
    data = Mixture(torch.zeros(1, 5, dtype=torch.float64), 0.25 * torch.eye(5, dtype=torch.float64)[None])
    x0, *_ = sample()
    found = variation_profile(ideal(schedule, data), x0, (10, 400, 990), generator())
    torch.testing.assert_close(found.mean, gaussian_variation(schedule, 0.25)[[10, 400, 990]], rtol=1e-9, atol=0)
    assert found.spread == pytest.approx(float(found.norms.std(correction=0)))


def test_the_schedule_is_stable_diffusions():
    signal = scaled_linear().alpha ** 2
    torch.testing.assert_close(
        signal[[0, 500, 999]], torch.tensor([0.99915, 0.276333, 0.0046601], dtype=torch.float64), rtol=2e-6, atol=0
    )


def network(symmetric=False):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 5)).double()

    def gradient_field(x, t):
        """Of a potential: its Jacobian is symmetric."""
        return torch.sigmoid(model[0](x)) @ model[0].weight

    return model, Denoiser(gradient_field if symmetric else lambda x, t: model(x), scaled_linear())


def test_backward_forward_and_finite_difference_agree_where_the_jacobian_is_symmetric():
    _, told = network(symmetric=True)
    x0, noise, t, u = sample(t=400)
    exact = variation_norms(told, x0, noise, t, u)
    sigma = told.schedule.at(t, x0)[1]

    def clean(noise):
        return told.clean(told.schedule.noisy(x0, noise, t), t)

    forward = torch.func.jvp(clean, (noise,), (u,))[1]
    torch.testing.assert_close(sigma[:, 0] * forward.norm(dim=1), exact, rtol=1e-10, atol=0)
    torch.testing.assert_close(variation_norms(told, x0, noise, t, u, estimator="fd"), exact, rtol=1e-3, atol=0)


@pytest.mark.parametrize("weighting", ["paper", "xt"])
def test_the_gradient_of_the_norms_is_right(weighting):
    model, told = network()
    x0, noise, t, u = sample(rows=2)
    weights = [p.detach().clone().requires_grad_(True) for p in model.parameters()]
    names = [name for name, _ in model.named_parameters()]

    def norms(*values):
        state = dict(zip(names, values, strict=True))
        functional = told.with_model(lambda x, t: torch.func.functional_call(model, state, (x,)))
        return variation_norms(functional, x0, noise, t, u, weighting=weighting)

    assert torch.autograd.gradcheck(norms, weights)


def test_finite_difference_gradients_are_near_the_exact_ones():
    model, told = network(symmetric=True)
    x0, noise, t, u = sample(rows=32, t=400)
    found = []
    for estimator in ("exact", "fd"):
        norms = variation_norms(told, x0, noise, t, u, estimator=estimator)
        found.append(
            torch.cat(
                [g.flatten() for g in torch.autograd.grad(variation_penalty(norms, 0.2), list(model[0].parameters()))]
            )
        )
    assert float((found[0] - found[1]).norm()) < 2e-3 * float(found[0].norm())


def test_the_output_that_comes_along_is_that_of_a_plain_pass():
    _, told = network()
    x0, noise, t, u = sample()
    plain = told.output(told.schedule.noisy(x0, noise, t), t)
    assert torch.equal(variation(told, x0, noise, t, u).output, plain)
    torch.testing.assert_close(variation(told, x0, noise, t, u, estimator="fd").output, plain, rtol=1e-13, atol=1e-15)


def test_the_running_level_and_the_penalty_of_the_official_code():
    """Its penalty keeps the graph of the updated mean: loss, mean and gradient of v = (0.2, 0.4) from a = 0."""
    norms = torch.tensor([0.2, 0.4], dtype=torch.float64, requires_grad=True)
    level = running_level(torch.zeros((), dtype=torch.float64), norms)
    loss = variation_penalty(norms, level)
    assert level.item() == pytest.approx(0.003)
    assert loss.item() == pytest.approx(0.098209)
    torch.testing.assert_close(
        torch.autograd.grad(loss, norms)[0], torch.tensor([0.19403, 0.39403], dtype=torch.float64)
    )


def test_ours_takes_no_gradient_through_the_level_and_begins_at_the_first_mean():
    model, told = network()
    x0, noise, t, _ = sample()
    term = SmoothnessRegularizer(2.0, seed=3)
    loss, _ = term(told, x0, noise, t)
    norms = variation_norms(told, x0, noise, t, unit_directions(x0, generator(3)))
    assert loss.item() == pytest.approx(2 * norms.var(correction=0).item())
    want = torch.autograd.grad(2 * variation_penalty(norms, norms.mean().detach()), next(iter(model.parameters())))[0]
    torch.testing.assert_close(torch.autograd.grad(loss, next(iter(model.parameters())))[0], want)
    cold = SmoothnessRegularizer(warm=False, seed=3)
    cold(told, x0, noise, t)
    assert float(cold.level) == pytest.approx(0.01 * norms.mean().item())
    assert cold.stats == pytest.approx({"variation": norms.mean().item(), "level": float(cold.level)})


def test_a_lazy_term_acts_in_each_kth_call_k_times_as_strong():
    _, told = network()
    x0, noise, t, _ = sample()
    one, lazy = SmoothnessRegularizer(seed=1), SmoothnessRegularizer(seed=1, every=3)
    values = [lazy(told, x0, noise, t)[0].item() for _ in range(4)]
    assert values[0] == pytest.approx(3 * one(told, x0, noise, t)[0].item())
    assert values[1:3] == [0, 0]
    assert values[3] > 0


def test_a_share_of_the_rows_is_the_penalty_of_those_rows_beside_the_base_loss_of_all():
    model, x0, y = unet_like(), randn(8, 5).float(), torch.arange(8) % 3
    plain = DenoisingObjective(scaled_linear(), class_condition(3), seed=4).loss(model, (x0, y, y), 0)
    for estimator in ("exact", "fd"):
        term = SmoothnessRegularizer(1.0, share=0.5, estimator=estimator)
        whole = DenoisingObjective(scaled_linear(), class_condition(3), term, seed=4).loss(model, (x0, y, y), 0)
        assert term._norms.shape == (4,)
        torch.testing.assert_close(whole, plain + variation_penalty(term._norms, term.level.float()), rtol=1e-5, atol=0)
    noise, t, term = randn(8, 5, seed=2).float(), torch.arange(8) * 100, SmoothnessRegularizer(share=0.5, seed=9)
    term(Denoiser(model, scaled_linear()), x0, noise, t, {"class_labels": y})
    u = unit_directions(x0[:4], generator(9))
    want = variation_norms(
        Denoiser(model, scaled_linear()), x0[:4], noise[:4], t[:4], u, condition={"class_labels": y[:4]}
    )
    torch.testing.assert_close(term._norms, want)


def test_directions_have_unit_length_and_come_from_the_generator_alone():
    state = torch.get_rng_state()
    u = unit_directions(torch.zeros(3, 2, 4), generator(1))
    torch.testing.assert_close(u.flatten(1).norm(dim=1), torch.ones(3))
    assert torch.equal(u, unit_directions(torch.zeros(3, 2, 4), generator(1)))
    assert torch.equal(torch.get_rng_state(), state)


def unet_like():
    torch.manual_seed(1)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.inside, self.embed = nn.Linear(5, 5), nn.Embedding(4, 5)

        def forward(self, x, t, class_labels):
            return self.inside(torch.tanh(x + self.embed(class_labels) + t[:, None] / 1000))

    return Net()


def stepped(objective, steps=3):
    model = unet_like()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x0, y = randn(8, 5).float(), torch.arange(8) % 3
    losses = []
    for step in range(steps):
        optimizer.zero_grad()
        loss = objective.loss(model, (x0, y, y), step)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, model.state_dict()


def test_weight_zero_is_the_plain_step_bit_for_bit():
    plain = stepped(DenoisingObjective(scaled_linear(), class_condition(3), seed=4))
    zero = stepped(DenoisingObjective(scaled_linear(), class_condition(3), SmoothnessRegularizer(0.0), seed=4))
    assert plain[0] == zero[0]
    assert all(torch.equal(plain[1][name], zero[1][name]) for name in plain[1])
    other = stepped(DenoisingObjective(scaled_linear(), class_condition(3), SmoothnessRegularizer(1.0), seed=4))
    assert other[0][0] > plain[0][0]


@pytest.mark.parametrize("estimator", ["exact", "fd"])
def test_descending_the_term_evens_the_variation_out(estimator):
    model, x0, noise = unet_like(), randn(64, 5).float(), randn(64, 5, seed=2).float()
    about, t = {"class_labels": torch.arange(64) % 3}, torch.linspace(100, 999, 64).long()
    told, term = Denoiser(model, scaled_linear(prediction="sample")), SmoothnessRegularizer(estimator=estimator)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)

    def unevenness():
        norms = variation_norms(told, x0, noise, t, unit_directions(x0, generator(5)), condition=about)
        return float(norms.detach().std() / norms.detach().mean())

    before = unevenness()
    for _ in range(150):
        optimizer.zero_grad()
        term(told, x0, noise, t, about)[0].backward()
        optimizer.step()
    assert unevenness() < 0.9 * before


def test_the_base_loss_under_the_term_is_the_plain_one():
    model, x0, y = unet_like(), randn(8, 5).float(), torch.arange(8) % 3
    plain = DenoisingObjective(scaled_linear(), class_condition(3), seed=4).loss(model, (x0, y, y), 0)
    term = SmoothnessRegularizer(1.0)
    whole = DenoisingObjective(scaled_linear(), class_condition(3), term, seed=4).loss(model, (x0, y, y), 0)
    alone = variation_penalty(term._norms, term.level.float())
    torch.testing.assert_close(whole, plain + alone, rtol=1e-6, atol=0)


def test_a_restored_objective_goes_on_bit_for_bit():
    whole = DenoisingObjective(scaled_linear(), class_condition(3), SmoothnessRegularizer(every=2), seed=4)
    model, x0, y = unet_like(), randn(8, 5).float(), torch.arange(8) % 3
    for step in range(3):
        whole.loss(model, (x0, y, y), step)
    state = copy.deepcopy(whole.state_dict())
    want = [whole.loss(model, (x0, y, y), step).item() for step in (3, 4)]
    again = DenoisingObjective(scaled_linear(), class_condition(3), SmoothnessRegularizer(every=2), seed=77)
    again.load_state_dict(state)
    assert [again.loss(model, (x0, y, y), step).item() for step in (3, 4)] == want


def test_autocast_leaves_the_term_in_float32():
    model, x0, y = unet_like(), randn(8, 5).float(), torch.arange(8) % 3
    terms = [SmoothnessRegularizer(1.0), SmoothnessRegularizer(1.0)]
    objectives = [DenoisingObjective(scaled_linear(), class_condition(3), term, seed=4) for term in terms]
    full = objectives[0].loss(model, (x0, y, y), 0)
    with torch.autocast("cpu", torch.bfloat16):
        half = objectives[1].loss(model, (x0, y, y), 0)
    assert terms[0].stats == terms[1].stats
    assert 0 < abs(full.item() - half.item()) < 0.02 * full.item()


def test_wrong_arguments_say_what_is_wrong():
    _, told = network()
    x0, noise, t, u = sample()
    for wrong, words in (
        ({"estimator": "exakt"}, "Did you mean 'exact'"),
        ({"weighting": "papers"}, "Did you mean 'paper'"),
    ):
        with pytest.raises(LegatoValueError, match=words):
            variation_norms(told, x0, noise, t, u, **wrong)
        with pytest.raises(LegatoValueError, match=words):
            SmoothnessRegularizer(**wrong)
    with pytest.raises(LegatoValueError, match=r"noise: expected the shape of x0, \[4, 5\]"):
        variation_norms(told, x0, noise[:2], t, u)
    with pytest.raises(LegatoValueError, match="t: expected int64"):
        variation_norms(told, x0, noise, t.double(), u)
    for wrong in ({"lam": -1.0}, {"lam": math.nan}, {"every": 0}, {"share": 0.0}, {"decay": 0.0}):
        with pytest.raises(LegatoValueError, match=next(iter(wrong))):
            SmoothnessRegularizer(**wrong)
    with pytest.raises(LegatoValueError, match="drop"):
        class_condition(3, drop=1.0)
    with pytest.raises(LegatoValueError, match="variance"):
        gaussian_variation(scaled_linear(), 0.0)
    with pytest.raises(LegatoValueError, match="timesteps"):
        variation_profile(told, x0, (), generator())


def test_a_prediction_without_the_noise_is_named():
    x0, noise, t, u = sample()
    frozen = Denoiser(torch.no_grad()(lambda x, t: x * 2), scaled_linear())
    with pytest.raises(LegatoValueError, match="x0_hat that depends on the noise"):
        variation_norms(frozen, x0, noise, t, u)
    weight = torch.ones((), dtype=torch.float64, requires_grad=True)
    constant = Denoiser(lambda x, t: weight * torch.ones_like(x), scaled_linear(prediction="sample"))
    with pytest.raises(LegatoValueError, match="x0_hat that depends on the noise"):
        variation_norms(constant, x0, noise, t, u)


def test_half_precision_and_dropout_are_refused_where_they_spoil_the_derivative():
    x0, noise, t, u = sample()
    half = Denoiser(nn.Linear(5, 5).to(torch.bfloat16), scaled_linear())
    half = half.with_model(lambda x, t, inside=half.model: inside(x))
    args = [part.to(torch.bfloat16) for part in (x0, noise)]
    for estimator in ("exact", "fd"):
        with pytest.raises(LegatoValueError, match="float32 or float64"):
            variation_norms(half, *args, t, u.to(torch.bfloat16), estimator=estimator)

    class Dropping(nn.Module):
        def __init__(self):
            super().__init__()
            self.drop = nn.Dropout(0.1)

        def forward(self, x, t):
            return self.drop(x)

    told = Denoiser(Dropping(), scaled_linear())
    with pytest.raises(LegatoValueError, match="1 layers with dropout"):
        variation_norms(told, x0, noise, t, u, estimator="fd")
    told.model.eval()
    assert variation_norms(told, x0, noise, t, u, estimator="fd").isfinite().all()


def test_norms_that_are_not_finite_name_the_timestep():
    def model(x, t):
        return torch.where((t == 700)[:, None], torch.nan, 1.0) * x**2

    x0, noise, _, _ = sample()
    term = SmoothnessRegularizer()
    with pytest.raises(LegatoValueError, match="1 of 4 that are not, the first at t = 700"):
        term(Denoiser(model, scaled_linear()), x0, noise, torch.tensor([1, 700, 3, 4]))


def test_no_signal_at_the_end_is_refused_for_epsilon_alone():
    alpha = torch.linspace(1, 0, 5, dtype=torch.float64)
    sigma = (1 - alpha**2).sqrt()
    with pytest.raises(LegatoValueError, match=r"own divides by alpha.*zero terminal.*v_prediction"):
        NoiseSchedule(alpha, sigma, name="own")
    assert len(NoiseSchedule(alpha, sigma, "v_prediction")) == 5
    with pytest.raises(LegatoValueError, match="Did you mean 'epsilon'"):
        NoiseSchedule(alpha, sigma, "epsilom")
    with pytest.raises(LegatoValueError, match="equal lengths"):
        NoiseSchedule(alpha, sigma[:3])
