"""Every loss against float64 golden values, in value and gradient."""

import math

import pytest
import torch
from conftest import GOLDEN, golden_input

from ssl_zoo.methods.simclr import nt_xent

CASES = {"nt_xent_tau0.1": 0.1, "nt_xent_tau0.5": 0.5}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_nt_xent_value_and_gradient(name, dtype, rtol):
    case = GOLDEN["cases"][name]
    inputs = {k: golden_input(k).to(dtype).requires_grad_() for k in case["inputs"]}
    loss = nt_xent(*inputs.values(), CASES[name])
    assert loss.dtype == dtype
    assert float(loss) == pytest.approx(case["value"], rel=rtol)
    assert float(loss) != pytest.approx(case["official_tf_value"], rel=0.1)
    loss.backward()
    for key, wanted in case["grad"].items():
        grad_tol = 1e-6 if dtype == torch.float64 else 1e-4
        assert float(inputs[key].grad.norm()) == pytest.approx(wanted["norm"], rel=grad_tol)
        assert float(inputs[key].grad.flatten()[0]) == pytest.approx(wanted["first"], rel=10 * grad_tol)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_nt_xent_is_finite_in_half_precision_with_a_zero_row(dtype):
    z1, z2 = ((100 * torch.randn(8, 8192, generator=torch.Generator().manual_seed(s))).to(dtype) for s in (1, 2))
    z1[0] = 0
    z1.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = nt_xent(z1, z2, 0.07)
    loss.backward()
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss)
    assert torch.isfinite(z1.grad).all()
    assert float(loss) == pytest.approx(float(nt_xent(z1.float(), z2.float(), 0.07)), rel=1e-2)


def test_nt_xent_ignores_autocast():
    z1, z2 = (golden_input(k).float() for k in ("z1", "z2"))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert float(nt_xent(z1, z2, 0.1)) == pytest.approx(GOLDEN["cases"]["nt_xent_tau0.1"]["value"], rel=1e-5)


def test_nt_xent_at_random_projections():
    """ln(2N - 1) + 1 / (2 tau^2 D) for independent directions."""
    g = torch.Generator().manual_seed(0)
    z1, z2 = torch.randn(256, 128, generator=g), torch.randn(256, 128, generator=g)
    assert float(nt_xent(z1, z2, 0.1)) == pytest.approx(math.log(511) + 1 / (2 * 0.01 * 128), abs=0.1)
