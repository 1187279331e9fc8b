"""The gradient of a run against autograd through all of its steps, closed forms and a finite difference, in float64."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from legato.bench.distillation_peers import naive_unrolling
from legato.distillation import DSA, FlatModel, Match, mid_points, unrolled_grad
from legato.errors import LegatoValueError

CLASSES, IMAGES = 3, 6


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def network(seed=0, channels=4):
    torch.manual_seed(seed)
    layers = nn.Conv2d(1, channels, 3, padding=1), nn.GroupNorm(channels, channels), nn.ReLU(), nn.AvgPool2d(2)
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(4 * channels, CLASSES)).double()


def problem(steps, *, soft=False, augment=False, mid=False):
    """All arguments of `unrolled_grad`, and its naive twin's."""
    flat, numbers = FlatModel(network()), generator(1)
    images = torch.randn(IMAGES, 1, 4, 4, dtype=torch.float64, generator=numbers)
    labels = torch.arange(IMAGES) % CLASSES
    if soft:
        labels = F.one_hot(labels, CLASSES).double().add(0.1).requires_grad_()
    batches = [torch.randint(IMAGES, (4,), generator=numbers) for _ in range(steps)]  # with rows that come again
    theta0 = flat.weights()
    targets = [theta0 + 0.1 * torch.randn(flat.size, dtype=torch.float64, generator=numbers) for _ in range(3)]
    outer = {steps: Match(targets[0], theta0)}
    if mid:
        outer |= {s: Match(targets[j], theta0, beta) for s, (j, beta) in mid_points(steps, 3, "adaptive").items()}
    loss, dsa = flat.cross_entropy(), DSA()
    draws = [dsa.draw(4, numbers) for _ in batches]

    def augmented(theta, x, y, part):
        return loss(theta, dsa(x, draws[part.step].rows(part.start, len(x))), y, part)

    return (augmented if augment else loss), theta0, images, labels, batches, outer


def assert_same(found, want, rtol=1e-10):
    for name in ("loss", "images_grad", "labels_grad", "alpha_grad", "theta_end"):
        ours, theirs = getattr(found, name), getattr(want, name)
        assert (ours is None) == (theirs is None)
        if ours is not None:
            assert float((ours - theirs).norm()) <= rtol * float(theirs.norm()), name


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize(
    ("steps", "extras"),
    [(1, {}), (3, {"soft": True}), (10, {"mid": True}), (12, {"soft": True, "augment": True, "mid": True})],
)
def test_it_is_autograd_through_all_steps(steps, extras, momentum):
    arguments = problem(steps, **extras)
    options = {"alpha": 0.3, "momentum": momentum}
    want = naive_unrolling(*arguments, **options)
    found = unrolled_grad(*arguments, **options)
    assert_same(found, want)
    assert found.losses.keys() == want.losses.keys() == arguments[5].keys()
    assert_same(unrolled_grad(*arguments, **options, micro_batch=3), want)
    for every in (1, 3, 50):
        assert_same(unrolled_grad(*arguments, **options, keep_every=every), want)


def test_each_step_may_have_its_own_size():
    arguments = problem(5, mid=True)
    rates = torch.linspace(0.1, 0.5, 5, dtype=torch.float64)
    found = unrolled_grad(*arguments, alpha=rates, momentum=0.5)
    assert found.alpha_grad.shape == (5,)
    assert_same(found, naive_unrolling(*arguments, alpha=rates, momentum=0.5))
    same = unrolled_grad(*arguments, alpha=torch.full((5,), 0.2), momentum=0.5)
    assert float(same.alpha_grad.sum()) == pytest.approx(
        float(unrolled_grad(*arguments, alpha=0.2, momentum=0.5).alpha_grad)
    )


def test_one_step_is_the_closed_form_with_its_factor_two():
    """TESLA's formula: dL/dX = -2 alpha r' (dg/dX) / D with r = theta_1 - target; exact for one step alone."""
    step_loss, theta0, images, labels, batches, outer = problem(1)
    found = unrolled_grad(step_loss, theta0, images, labels, batches, outer, alpha=0.3)
    match = outer[1]
    residual = found.theta_end - match.target
    x, theta = images[batches[0]].requires_grad_(), theta0.clone().requires_grad_()
    (g,) = torch.autograd.grad(
        F.cross_entropy(FlatModel(network())(theta, x), labels[batches[0]]), theta, create_graph=True
    )
    (pulled,) = torch.autograd.grad(g, x, -2 * 0.3 * residual / match.distance(theta0))
    want = torch.zeros_like(images).index_add(0, batches[0], pulled)
    torch.testing.assert_close(found.images_grad, want, rtol=1e-10, atol=0)
    assert float(found.alpha_grad) == pytest.approx(
        float(-2 * residual @ g.detach() / match.distance(theta0)), rel=1e-10
    )


def test_a_linear_model_by_hand():
    """theta' = theta - alpha x (theta x - y) for the loss (theta x - y)^2 / 2, and L = (theta' - target)^2."""
    theta, x, y, alpha, target = 0.7, 1.3, 0.4, 0.2, 0.1
    scalars = (torch.tensor([value], dtype=torch.float64) for value in (theta, x, y))
    weights, images, labels = scalars
    found = unrolled_grad(
        lambda w, a, b, part: 0.5 * (w * a - b).square().mean(), weights, images, labels.requires_grad_(), [torch.tensor([0])],
        {1: lambda w: (w - target).square().sum()}, alpha=alpha,
    )  # fmt: skip
    residual = theta * x - y
    after = theta - alpha * x * residual
    pull = 2 * (after - target)
    assert float(found.images_grad) == pytest.approx(-pull * alpha * (residual + x * theta), rel=1e-12)
    assert float(found.labels_grad) == pytest.approx(pull * alpha * x, rel=1e-12)
    assert float(found.alpha_grad) == pytest.approx(-pull * x * residual, rel=1e-12)


def test_a_pixel_by_finite_differences():
    step_loss, theta0, images, labels, batches, outer = problem(8, mid=True)
    options = {"alpha": 0.3, "momentum": 0.9}
    found = unrolled_grad(step_loss, theta0, images, labels, batches, outer, **options)
    row, h = int(batches[0][0]), 1e-5
    ends = []
    for sign in (1, -1):
        moved = images.clone()
        moved[row, 0, 1, 2] += sign * h
        ends.append(float(unrolled_grad(step_loss, theta0, moved, labels, batches, outer, **options).loss))
    assert float(found.images_grad[row, 0, 1, 2]) == pytest.approx((ends[0] - ends[1]) / (2 * h), rel=1e-6)


def test_without_a_step_size_the_loss_is_one_for_each_match():
    step_loss, theta0, images, labels, batches, outer = problem(9, mid=True)
    found = unrolled_grad(step_loss, theta0, images, labels, batches, outer, alpha=0.0)
    assert float(found.loss) == pytest.approx(1 + 1 / 3 + 2 / 3, rel=1e-12)
    assert not found.images_grad.any()
    assert torch.equal(found.theta_end, theta0)


def test_at_its_own_end_everything_is_zero():
    step_loss, theta0, images, labels, batches, outer = problem(6)
    end = unrolled_grad(step_loss, theta0, images, labels, batches, outer, alpha=0.3).theta_end
    found = unrolled_grad(step_loss, theta0, images, labels, batches, {6: Match(end, theta0)}, alpha=0.3)
    assert float(found.loss) == 0 == float(found.alpha_grad)
    assert not found.images_grad.any()


def test_a_factor_of_the_loss_is_a_factor_of_the_step_size():
    """AST's balanced loss; the step size that is learned is the one without the factor, so its gradient gains it."""
    step_loss, *others = problem(7, mid=True)
    on_loss = unrolled_grad(lambda *a: 1.7 * step_loss(*a), *others, alpha=0.3, momentum=0.9)
    on_rate = unrolled_grad(step_loss, *others, alpha=1.7 * 0.3, momentum=0.9)
    torch.testing.assert_close(on_loss.images_grad, on_rate.images_grad, rtol=1e-10, atol=1e-14)
    assert float(on_loss.alpha_grad) == pytest.approx(1.7 * float(on_rate.alpha_grad), rel=1e-10)


def test_the_order_of_hidden_channels_does_not_matter():
    """Permuting them in the start and the target together is a symmetry of the network."""
    step_loss, theta0, images, labels, batches, outer = problem(5)
    flat, order = FlatModel(network()), torch.tensor([2, 0, 3, 1])

    def permuted(theta):
        named = flat.named(theta.clone())
        for name, weights in named.items():
            if name == "5.weight":
                weights.copy_(weights.view(CLASSES, 4, 4)[:, order].reshape(CLASSES, 16))
            elif name != "5.bias":
                weights.copy_(weights[order].clone())
        return torch.cat([weights.reshape(-1) for weights in named.values()])

    found = unrolled_grad(step_loss, theta0, images, labels, batches, outer, alpha=0.3)
    start = permuted(theta0)
    assert not torch.equal(start, theta0)
    match = Match(permuted(outer[5].target), start)
    other = unrolled_grad(step_loss, start, images, labels, batches, {5: match}, alpha=0.3)
    torch.testing.assert_close(other.images_grad, found.images_grad, rtol=1e-9, atol=1e-14)
    assert float(other.loss) == pytest.approx(float(found.loss), rel=1e-10)


def test_nothing_that_was_given_is_changed_and_the_caller_may_be_in_no_grad():
    step_loss, theta0, images, labels, batches, outer = problem(4)
    before = theta0.clone(), images.clone()
    with torch.no_grad():
        found = unrolled_grad(step_loss, theta0, images, labels, batches, outer, alpha=0.3)
    assert found.images_grad.any()
    assert torch.equal(theta0, before[0]) and torch.equal(images, before[1])
    assert not any(t.requires_grad for t in (found.loss, found.images_grad, found.alpha_grad, found.theta_end))


def test_float32_is_as_good_as_float32_can_be():
    arguments = problem(10)
    _, theta0, images, labels, batches, outer = arguments
    match = outer[10]
    single = FlatModel(network().float()).cross_entropy(), theta0.float(), images.float(), labels, batches
    found = unrolled_grad(*single, {10: Match(match.target.float(), theta0.float())}, alpha=0.3)
    want = unrolled_grad(*arguments, alpha=0.3)
    assert float((found.images_grad - want.images_grad).norm() / want.images_grad.norm()) < 1e-5


def test_wrong_arguments_say_what_is_wrong():
    step_loss, theta0, images, labels, batches, outer = problem(2)

    def call(*, start=theta0, x=images, rows=batches, losses=outer, **options):
        return unrolled_grad(step_loss, start, x, labels, rows, losses, **{"alpha": 0.1, **options})

    for name, options in {
        "theta0: expected floating point weights of shape": {"start": theta0[None]},
        "images: expected floating point": {"x": images.long()},
        "batches: expected at least one": {"rows": []},
        "batches: expected at least one int64": {"rows": [batches[0].int()]},
        r"outer: expected losses after steps in 1 .. 2; got \[3\]": {"losses": {3: outer[2]}},
        "outer": {"losses": {}},
        "alpha": {"alpha": torch.zeros(3)},
        "momentum": {"momentum": 1.0},
        "micro_batch": {"micro_batch": 0},
        "keep_every": {"keep_every": 0},
    }.items():
        with pytest.raises(LegatoValueError, match=name):
            call(**options)
