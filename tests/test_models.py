import pytest
import torch
from safetensors.torch import save_file

from advlib.models import Normalize, autocast, build_model, load_weights, pixel_std, resolve_dtype


def build(name="cifar_resnet8", **changes):
    return build_model(
        name, **({"num_classes": 10, "mean": (0.3,), "std": (0.4,), "seed": 0} | changes)
    )


@pytest.mark.parametrize(
    "name, parameters",
    [  # counted by hand from He et al. (2016), Sec. 4.2, with 1x1 projections and one channel
        ("cifar_resnet8", 77850 - 288),
        ("cifar_resnet20", 272186 + 2 * 144 - 288 + 0),
    ],
)
def test_parameters_of_the_residual_networks(name, parameters):
    count = sum(p.numel() for p in build(name).parameters())
    assert count == pytest.approx(parameters, rel=0.02)


@pytest.mark.parametrize("side", [8, 28, 32, 64])
def test_small_images_of_any_side(side):
    assert build()(torch.rand(2, 1, side, side)).shape == (2, 10)


def test_the_stem_halves_the_image():
    sizes = []
    model = build("cifar_resnet8_w32_s2")
    model.net[0].register_forward_hook(lambda m, i, o: sizes.append(o.shape))
    model(torch.rand(1, 1, 28, 28))
    assert sizes == [(1, 32, 14, 14)]


def test_torchvision_by_name():
    model = build("resnet18", mean=(0.5,) * 3, std=(0.2,) * 3, num_classes=7)
    assert model(torch.rand(1, 3, 64, 64)).shape == (1, 7)


@pytest.mark.parametrize(
    "name, said", [("resnet1000", "unknown model 'resnet1000'"), ("cifar_resnet9", "depth 6n")]
)
def test_unknown_names(name, said):
    with pytest.raises(ValueError, match=said):
        build(name)


def test_seed_decides_the_weights_and_leaves_the_global_generator():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, second, other = build(), build(), build(seed=1)
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(first.net[0].weight, second.net[0].weight)
    assert not torch.equal(first.net[0].weight, other.net[0].weight)


def test_normalisation_is_inside():
    layer = Normalize((0.5, 0.2), (0.25, 0.1))
    x = torch.rand(3, 2, 4, 4)
    expected = torch.stack([(x[:, 0] - 0.5) / 0.25, (x[:, 1] - 0.2) / 0.1], 1)
    torch.testing.assert_close(layer(x), expected)
    assert pixel_std(build()).item() == pytest.approx(0.4)


def test_weights_of_this_project_and_of_a_bare_network(tmp_path):
    model, x = build(), torch.rand(2, 1, 8, 8)
    save_file(
        {f"model.{k}": v for k, v in model.state_dict().items()}, tmp_path / "ours.safetensors"
    )
    save_file(model.net.state_dict(), tmp_path / "bare.safetensors")
    for name in ("ours", "bare"):
        again = build(seed=1, weights=str(tmp_path / f"{name}.safetensors"))
        torch.testing.assert_close(again(x), model(x))


def test_weights_that_do_not_fit(tmp_path):
    save_file(build(num_classes=7).net.state_dict(), tmp_path / "seven.safetensors")
    with pytest.raises(ValueError, match="do not fit"):
        load_weights(build(), tmp_path / "seven.safetensors")


def test_dtype_by_machine():
    assert resolve_dtype("float32", "cpu") == torch.float32
    native = torch.cpu.get_capabilities().get("avx512_bf16")
    assert resolve_dtype("auto", "cpu") == (torch.bfloat16 if native else torch.float32)
    with autocast("cpu", torch.bfloat16):
        assert (torch.rand(2, 2) @ torch.rand(2, 2)).dtype == torch.bfloat16
