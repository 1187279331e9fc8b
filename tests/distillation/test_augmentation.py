"""DSA: each operation at draws whose result is known, the published ranges, and the same draw twice."""

import pytest
import torch

from legato.distillation import DSA
from legato.distillation.augmentation import OPERATIONS, Draw
from legato.errors import LegatoValueError


def numbers(seed=0):
    return torch.Generator().manual_seed(seed)


def images(rows=2, channels=3, side=8):
    return torch.randn(rows, channels, side, side, dtype=torch.float64, generator=numbers())


def put(operation, x, *uniform, **options):
    draw = Draw(operation, torch.tensor([uniform], dtype=torch.float64).expand(len(x), 3))
    return DSA(**options)(x, draw)


def test_draws_that_change_nothing():
    x = images()
    middle = 1e-12 + 0.5
    torch.testing.assert_close(put("rotate", x, 0.5, 0, 0), x)
    torch.testing.assert_close(put("crop", x, middle, middle, 0), x)
    torch.testing.assert_close(put("color", x, 0.5, 0.5, 0.5), x)
    same = (1 - 1 / 1.2) / (1.2 - 1 / 1.2)
    torch.testing.assert_close(put("scale", x, same, same, 0), x)
    assert torch.equal(put("flip", x, 0.6, 0, 0), x)


def test_what_each_operation_does():
    x = images()
    assert torch.equal(put("flip", x, 0.4, 0, 0), x.flip(3))
    up = put("crop", x, 0.9999, 0.5, 0, crop=0.25)  # two lines up: what comes in from below is zero
    assert torch.equal(up[:, :, :6], x[:, :, 2:])
    assert not up[:, :, 6:].any()
    left_out = put("cutout", x, 0.5, 0.5, 0)
    assert int((left_out[0, 0] == 0).sum()) == 16
    assert torch.equal(left_out[:, :, :2], x[:, :, :2])
    brighter = put("color", x, 1.0, 0.5, 0.5)
    torch.testing.assert_close(brighter, x + 0.5)
    grey = put("color", x, 0.5, 0.0, 0.5)
    torch.testing.assert_close(grey, x.mean(1, keepdim=True).expand_as(x))
    quarter = put("rotate", x, 1.0, 0, 0, rotate=90.0)
    torch.testing.assert_close(quarter, x.rot90(1, (2, 3)))  # anticlockwise
    larger = put("scale", x, 0.0, 0.0, 0, scale=2.0)  # read at half the distance from the centre
    assert float(larger[0, 0, 2:6, 2:6].mean()) != pytest.approx(float(x[0, 0, 2:6, 2:6].mean()), abs=1e-6)
    torch.testing.assert_close(larger[:, :, 3:5, 3:5].mean((2, 3)), x[:, :, 3:5, 3:5].mean((2, 3)))


@pytest.mark.parametrize("operation", OPERATIONS)
def test_the_same_draw_is_the_same_map_and_it_is_differentiable(operation):
    x, dsa = images(3), DSA((operation,))
    draw = dsa.draw(3, numbers(1))
    assert draw.operation == operation
    assert torch.equal(dsa(x, draw), dsa(x, draw))
    together = torch.cat([dsa(x[:1], draw.rows(0, 1)), dsa(x[1:], draw.rows(1, 2))])
    torch.testing.assert_close(together, dsa(x, draw), rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradcheck(lambda z: dsa(z, draw), x[:, :, :4, :4].clone().requires_grad_())


def test_operations_and_their_numbers_are_uniform():
    generator, dsa = numbers(), DSA()
    draws = [dsa.draw(50, generator) for _ in range(600)]
    counts = [sum(d.operation == name for d in draws) for name in OPERATIONS]
    assert min(counts) > 70 and max(counts) < 135
    uniform = torch.cat([d.uniform for d in draws])
    assert uniform.min() >= 0 and uniform.max() < 1
    assert float(uniform.mean()) == pytest.approx(0.5, abs=0.01)
    assert torch.equal(dsa.draw(4, numbers(3)).uniform, dsa.draw(4, numbers(3)).uniform)


def test_a_square_may_be_cut_out_anywhere_and_no_shift_is_too_far():
    draws = torch.rand(4000, 3, generator=numbers())
    x = torch.ones(4000, 1, 8, 8)
    hidden = 1 - DSA()(x, Draw("cutout", draws)).mean(0)[0]
    assert hidden.min() > 0.05
    for side in (8, 7):
        moved = DSA()(torch.ones(4000, 1, side, side), Draw("crop", draws))
        assert not (moved[:, :, 1:-1, 1:-1] == 0).any()
        assert (moved == 0).any()


def test_wrong_arguments_say_what_is_wrong():
    with pytest.raises(LegatoValueError, match="Did you mean 'rotate'"):
        DSA(("rotat",))
    with pytest.raises(LegatoValueError, match="operations: expected some of"):
        DSA(())
    draw = DSA().draw(2, numbers())
    for wrong in (torch.zeros(2, 5), torch.zeros(3, 1, 4, 4)):
        with pytest.raises(LegatoValueError, match=r"images: expected \[2, C, H, W\]"):
            DSA()(wrong, draw)
