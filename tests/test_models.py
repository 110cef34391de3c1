import argparse
import dataclasses
import json
import urllib.error

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from advbook.studies.inputs import study_preprocessing
from advbook.studies.schema import make_study
from advlib.data.vision import torchvision
from advlib.labels import find_head, widen_head
from advlib.networks.build import (
    Normalize,
    build_model,
    pixel_std,
    preprocessing,
    weights_name,
)
from advlib.networks.device import autocast, resolve_dtype
from advlib.networks.weights import load_weights

timm = pytest.importorskip("timm")  # after torchvision, which advlib imports in its own way
RGB = {"mean": (0.5,) * 3, "std": (0.2,) * 3}
NET = "shufflenet_v2_x0_5"  # with batch norms and `fc`, like a ResNet; its files are small


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
    model = build("resnet18", **RGB, num_classes=7)
    assert model(torch.rand(1, 3, 64, 64)).shape == (1, 7)


@pytest.mark.parametrize(
    "name, package",
    [  # timm's convnext_atto is unknown to torchvision; resnet18 is known to both
        ("timm/convnext_atto", "timm"),
        ("convnext_atto", "timm"),
        ("timm/resnet18", "timm"),
        ("resnet18", "torchvision"),
    ],
)
def test_whose_network_a_name_means(name, package):
    model = build(name, **RGB, num_classes=7)
    assert type(model.net).__module__.startswith(package)
    assert model(torch.rand(1, 3, 64, 64)).shape == (1, 7)


@pytest.mark.parametrize(
    "name, said",
    [
        ("resnet1000", "unknown model 'resnet1000'.*the nearest are .*resnet10"),
        ("timm/tf_efficientnet_lte0", "the nearest are tf_efficientnet_lite0"),
        ("timm/swin_t", "unknown model 'timm/swin_t'"),  # torchvision's alone
        ("cifar_resnet9", "depth 6n"),
        ("resnet18", "3 channels, the data have 1"),
    ],
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


@pytest.fixture(scope="module")
def trained():
    """Weights that are not a fresh network's, also in the running means."""
    model = build(NET, **RGB).train()
    with torch.no_grad():
        model(torch.rand(4, 3, 32, 32))
    return model.eval()


def ours(model):
    return {f"model.{k}": v for k, v in model.state_dict().items()}


def parallel(model):
    return {f"module.{k}": v for k, v in model.net.state_dict().items()}


def without_counters(model):
    """As torch before 0.4.1 wrote it."""
    return {k: v for k, v in model.net.state_dict().items() if "num_batches" not in k}


@pytest.mark.parametrize(
    "name, content",
    [
        ("bare.safetensors", lambda m: m.net.state_dict()),
        ("ours.safetensors", lambda m: {**ours(m), "momentum.0000": torch.zeros(3)}),
        ("bare.pt", lambda m: m.net.state_dict()),
        ("ours.pt", lambda m: m.state_dict()),
        ("old.pth", without_counters),
        ("data_parallel.pth", lambda m: {"epoch": 3, "state_dict": parallel(m)}),
        ("example.pth.tar", lambda m: {"arch": "resnet18", "state_dict": parallel(m)}),
        (  # torchvision's and timm's training scripts keep their arguments
            "script.pth",
            lambda m: {"model": m.net.state_dict(), "args": argparse.Namespace(lr=0.1)},
        ),
        ("tutorial.pt", lambda m: {"model_state_dict": m.net.state_dict(), "loss": 1.5}),
        (
            "compiled.pt",
            lambda m: {f"_orig_mod.{k}": v for k, v in m.net.state_dict().items()},
        ),
    ],
)
def test_weights_files_of_every_make(trained, tmp_path, name, content):
    path, x = tmp_path / name, torch.rand(2, 3, 32, 32)
    save = save_file if name.endswith("safetensors") else torch.save
    save(content(trained), path)
    other = {} if "ours" in name else RGB  # ours brings its own normalisation
    again = build(NET, **{"mean": (0.1,) * 3, "std": (0.9,) * 3} | other, weights=str(path))
    assert torch.equal(again.cpu()(x), trained(x))


def under(prefix, state, **more):
    return {prefix + k: v for k, v in state.items()} | more


MEAN, STD = torch.full((3, 1, 1), 0.5), torch.full((3, 1, 1), 0.2)
OWN = {"normalize.mean": MEAN[None], "normalize.std": STD[None]}


@pytest.mark.parametrize(
    "content",
    [
        lambda s: under("model.", s, **OWN),  # RobustBench's
        lambda s: under("1.", s, **{"0.mean": MEAN[:, 0, 0], "0.std": STD}),
        lambda s: {  # Madry's: twice the same
            "model": under("module.model.", s)
            | under("module.attacker.model.", s)
            | {"module.normalizer.new_mean": MEAN, "module.normalizer.new_std": STD}
        },
        lambda s: under("module.", s, n_averaged=torch.tensor(3)),
        lambda s: {"net": s, "acc": np.float64(93.1), "best": np.float32(1)},
        lambda s: {"model": "resnet18", "net": s, "loss": {"weight": torch.ones(10)}},
        lambda s: {"model": s, "model_ema": under("module.", s)},
    ],
)
def test_layouts_of_other_projects(trained, tmp_path, content):
    path, x = tmp_path / "w.pt", torch.rand(2, 3, 32, 32)
    content = content(trained.net.state_dict())
    torch.save(content, path)
    held = any(k.endswith(("mean", "new_mean")) and "running" not in k for k in content)
    held |= "module.normalizer.new_mean" in content.get("model", ())
    other = {"mean": (0.1,) * 3, "std": (0.9,) * 3} if held else RGB
    assert torch.equal(build(NET, **other, weights=str(path))(x), trained(x))


def test_two_networks_in_one_file_are_not_chosen_from(trained, tmp_path):
    state = trained.net.state_dict()
    ema = {k: v + 1 if v.is_floating_point() else v for k, v in state.items()}
    torch.save(under("model.", state) | under("ema.", ema), tmp_path / "w.pt")
    with pytest.raises(ValueError, match="several networks, under 'model.', 'ema.': save the"):
        build(NET, **RGB, weights=str(tmp_path / "w.pt"))


def test_weights_that_are_not_finite(trained, tmp_path):
    state, path = trained.net.state_dict(), tmp_path / "w.pt"
    for name, values in (
        ("fc.bias", state["fc.bias"] * float("nan")),
        ("conv1.1.running_var", -state["conv1.1.running_var"]),
    ):
        torch.save({**state, name: values}, path)
        with pytest.raises(ValueError, match=f"w.pt .*{name} holds values .* not finite or"):
            build(NET, **RGB, weights=str(path))


class Bomb:
    """A pickle of it creates a file when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_code_in_a_weights_file_is_never_run(tmp_path):
    for name, content in (("a", Bomb(tmp_path / "ran")), ("b", build().net)):
        path = tmp_path / f"{name}.pt"
        torch.save({"model": build().net.state_dict(), "more": content}, path)
        with pytest.raises(ValueError, match=r"never unpickled.*torch.save\(model.state_dict\(\)"):
            build(weights=str(path))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "name, content, said",
    [
        ("a.pt", {"epoch": 3, "optimizer": {}}, "holds dict epoch, optimizer; expected a state"),
        ("a.pt", [torch.zeros(2)], "holds list"),
        ("a.pth", b"<html>404</html>", "no whole file of tensors"),
        ("a.pth", b"", "no whole file of tensors"),
        ("a.pt", b"just some text\n", "no whole file of tensors"),
        ("a.pt", {0: torch.zeros(2)}, "holds dict 0; expected a state dict"),
        ("a.safetensors", b"short", "no whole file of tensors"),
    ],
)
def test_other_files_say_what_they_hold(tmp_path, name, content, said):
    path = tmp_path / name
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(ValueError, match=f"{name} .*{said}"):
        build(weights=str(path))


def test_a_missing_weights_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="no weights file .*gone.pt"):
        build(weights=str(tmp_path / "gone.pt"))


def test_weights_that_do_not_fit_name_a_few_tensors(tmp_path, trained):
    save_file(trained.net.state_dict(), tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="do not fit") as caught:
        build(weights=str(tmp_path / "a.safetensors"))
    message = str(caught.value)
    assert 'Missing key(s) in state_dict: "net.0.weight", "net.1.weight"' in message
    assert len(message) < 500 + len(str(tmp_path))
    state = trained.net.state_dict()
    state["conv1.0.weight"] = torch.zeros(24, 1, 3, 3)
    torch.save(state, tmp_path / "b.pt")
    with pytest.raises(ValueError, match=r"size mismatch for net.conv1.0.weight"):
        build(NET, **RGB, weights=str(tmp_path / "b.pt"))


def test_a_file_for_other_classes(tmp_path, trained):
    path = tmp_path / "ten.pt"
    torch.save(trained.net.state_dict(), path)
    with pytest.raises(ValueError, match="ten.pt are for 10 classes, the data have 7: set pretr"):
        build(NET, **RGB, num_classes=7, weights=str(path))
    fresh = build(NET, **RGB, num_classes=7, seed=3)
    model = build(NET, **RGB, num_classes=7, seed=3, weights=str(path), new_head=True)
    assert torch.equal(model.net.conv1[0].weight, trained.net.conv1[0].weight)
    assert torch.equal(model.net.fc.weight, fresh.net.fc.weight)


def test_load_weights_leaves_no_head_behind(tmp_path):
    save_file(build(num_classes=7).net.state_dict(), tmp_path / "seven.safetensors")
    with pytest.raises(ValueError, match=r"do not fit.*size mismatch"):
        load_weights(build(), tmp_path / "seven.safetensors")


def test_a_network_whose_checkpoint_wants_a_version_number(tmp_path):
    net = torchvision.models.get_model("mnasnet0_5", weights=None)
    torch.save(net.state_dict(), tmp_path / "a.pt")
    model = build("mnasnet0_5", **RGB, num_classes=1000, weights=str(tmp_path / "a.pt"))
    assert torch.equal(model.net.layers[0].weight, net.layers[0].weight)


# --- published weights, by name; every download here is a stand-in ----------------------------


@pytest.fixture
def published(monkeypatch):
    """torchvision finds a ResNet-18 for 1,000 classes."""
    state = torchvision.models.resnet18().state_dict()
    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", lambda *a, **k: state)
    return state


def test_published_weights(published):
    model = build("resnet18", **RGB, num_classes=1000, weights="DEFAULT")
    assert torch.equal(model.net.fc.weight, published["fc.weight"])
    with pytest.raises(ValueError, match="for 1000 classes, the data have 7: set pretrain_epochs"):
        build("resnet18", **RGB, num_classes=7, weights="DEFAULT")
    model = build("resnet18", **RGB, num_classes=7, weights="IMAGENET1K_V1", new_head=True)
    assert torch.equal(model.net.conv1.weight, published["conv1.weight"])
    assert model.net.fc.out_features == 7


@pytest.mark.parametrize(
    "name, weights, said",
    [
        ("resnet18", "IMAGENET1K_V2", "expected one of IMAGENET1K_V1, DEFAULT or a file ending"),
        ("resnet18", "mine.ckpt", "file ending in .safetensors, .pt, .pth"),
        ("timm/resnet18", "a9_in1k", r"there are no weights 'a9_in1k' of resnet18: .* a1_in1k,"),
        ("timm/test_resnet_nothing", "DEFAULT", "unknown model"),
    ],
)
def test_unknown_weights_list_the_known_ones(name, weights, said):
    with pytest.raises(ValueError, match=said):
        build(name, **RGB, num_classes=1000, weights=weights)


def test_the_small_networks_have_no_published_weights():
    with pytest.raises(ValueError, match="no weights 'DEFAULT' of cifar_resnet8"):
        build(weights="DEFAULT")


def test_without_a_network_the_error_says_what_to_do(monkeypatch):
    def unreachable(*arguments, **keywords):
        raise urllib.error.URLError("name resolution")

    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", unreachable)
    monkeypatch.setattr(timm, "create_model", unreachable)
    for name in ("resnet18", "timm/resnet18"):
        with pytest.raises(OSError, match="1.* of resnet18 could not be downloaded.*local fi"):
            build(name, **RGB, num_classes=1000, weights="DEFAULT")


# --- how images are prepared ------------------------------------------------------------------

IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
HALF = ([0.5] * 3, [0.5] * 3)


@pytest.mark.parametrize(
    "name, weights, expected",
    [  # as documented: pytorch.org/vision/stable/models, and timm's results/model_metadata
        ("resnet50", "IMAGENET1K_V1", (*IMAGENET, 256, 224, "bilinear")),
        ("resnet50", "IMAGENET1K_V2", (*IMAGENET, 232, 224, "bilinear")),
        ("resnet50", "DEFAULT", (*IMAGENET, 232, 224, "bilinear")),
        ("resnet50", "ResNet50_Weights.IMAGENET1K_V1", (*IMAGENET, 256, 224, "bilinear")),
        ("swin_t", "DEFAULT", (*IMAGENET, 232, 224, "bicubic")),
        ("vit_b_16", "IMAGENET1K_SWAG_E2E_V1", (*IMAGENET, 384, 384, "bicubic")),
        ("timm/tf_efficientnet_lite0", "DEFAULT", (*HALF, 256, 224, "bicubic")),
        ("tf_efficientnet_lite0", "in1k", (*HALF, 256, 224, "bicubic")),
        ("tf_efficientnet_lite0", "mine/weights.pt", (*HALF, 256, 224, "bicubic")),
        ("timm/resnet50", "a1_in1k", (*IMAGENET, 235, 224, "bicubic")),
        ("timm/resnet50", "tv_in1k", (*IMAGENET, 256, 224, "bilinear")),
        ("resnet50", "mine/weights.pt", (None,) * 5),
        ("resnet50", None, (None,) * 5),
        ("timm/resnet50", None, (None,) * 5),
        ("cifar_resnet8", "mine/weights.safetensors", (None,) * 5),
    ],
)
def test_preprocessing_by_the_weights_name(name, weights, expected):
    keys = ("mean", "std", "resize", "image_size", "interpolation")
    found = preprocessing(name, weights)
    assert found == dict(zip(keys, expected, strict=True))
    assert json.loads(json.dumps(found)) == found


def test_preprocessing_agrees_with_timms_own_pipeline():
    for name in ("tf_efficientnet_lite0", "convnext_atto", "vit_tiny_patch16_224"):
        config = timm.data.resolve_data_config(
            pretrained_cfg=timm.get_pretrained_cfg(name).to_dict()
        )
        resize, crop, *_, normalize = timm.data.create_transform(**config).transforms
        found = preprocessing(name, "DEFAULT")
        assert found["resize"] == resize.size
        assert [found["image_size"]] * 2 == list(crop.size)
        assert found["interpolation"] == resize.interpolation.value
        assert found["mean"] == pytest.approx(normalize.mean.tolist())


def test_default_weights_are_known_by_their_lasting_name():
    assert weights_name("resnet50", "DEFAULT") == "IMAGENET1K_V2"
    assert weights_name("timm/resnet18", "DEFAULT") == "resnet18.a1_in1k"


@pytest.fixture
def study():
    given = {"study": "s", "dataset": "imagenet", "model": "resnet50", "weights": "DEFAULT"}
    return make_study(given)


def test_a_studys_own_preprocessing_wins(study):
    mine = {"mean": [0.1] * 3, "std": [0.2] * 3, "resize": 300, "interpolation": "bicubic"}
    assert study_preprocessing(dataclasses.replace(study, **mine)) == {**mine, "image_size": 224}
    plain = dataclasses.replace(study, weights=None, pretrain_epochs=1)
    assert set(study_preprocessing(plain).values()) == {None}


def test_another_crop_keeps_the_weights_ratio(study):
    found = study_preprocessing(dataclasses.replace(study, image_size=112))
    assert (found["resize"], found["image_size"]) == (116, 112)


def test_small_data_sets_keep_their_size_but_take_the_weights_normalisation(study):
    small = dataclasses.replace(study, dataset="cifar10", pretrain_epochs=1)
    found = study_preprocessing(small)
    assert found.pop("mean") == IMAGENET[0] and found.pop("std") == IMAGENET[1]
    assert set(found.values()) == {None}


def test_brought_checkpoints_take_their_architectures_preprocessing(study):
    change = {"weights": None, "checkpoints": {"mine": "a.pt"}, "methods": ["mine"]}
    brought = dataclasses.replace(study, model="timm/tf_efficientnet_lite0", **change)
    assert study_preprocessing(brought) == preprocessing("timm/tf_efficientnet_lite0", "in1k")


def test_squashed_images_are_not_offered_silently(study):
    name = next(n for n in timm.list_models() if timm.get_pretrained_cfg(n).crop_mode == "squash")
    squashed = dataclasses.replace(study, model=f"timm/{name}")
    with pytest.raises(ValueError, match="squashes or pads .* set resize"):
        study_preprocessing(squashed)
    assert study_preprocessing(dataclasses.replace(squashed, resize=500))["resize"] == 500


# --- the head ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        *("timm/tf_efficientnet_lite0", "timm/resnet18", "timm/vit_tiny_patch16_224"),
        *("timm/convnext_atto", "timm/mobilenetv3_small_050", "timm/caformer_s18"),
        *(
            "resnet18",
            "efficientnet_b0",
            "convnext_tiny",
            "vit_b_32",
            "swin_t",
            "shufflenet_v2_x0_5",
        ),
    ],
)
def test_a_wider_head_keeps_the_class_logits_of_every_family(name):
    model = build(name, **RGB, num_classes=7)
    weight, bias = (p.clone() for p in find_head(model)[1].parameters())
    widen_head(model, 2)
    head = find_head(model)[1]
    assert torch.equal(head.weight[:7], weight) and torch.equal(head.bias[:7], bias)
    fixed = any(part in name for part in ("vit", "swin"))
    side = 224 if fixed else 64
    with torch.no_grad():
        assert model(torch.rand(1, 3, side, side)).shape == (1, 9)


@pytest.mark.parametrize(
    "name",
    [  # a convolution as head; the same of timm's; two heads; two heads in one module
        *("squeezenet1_1", "timm/resnetv2_18d", "timm/deit_tiny_distilled_patch16_224"),
        "timm/repvit_m1",
    ],
)
def test_networks_without_one_linear_head_are_refused(name):
    with pytest.raises(ValueError, match="does not end in one linear layer"):
        widen_head(build(name, **RGB, num_classes=7), 1)


def test_dtype_by_machine():
    assert resolve_dtype("float32", "cpu") == torch.float32
    with pytest.raises(ValueError, match="dtype is one of auto, float32, bfloat16, got .float16."):
        resolve_dtype("float16", "cpu")
    native = torch.cpu.get_capabilities().get("avx512_bf16")
    assert resolve_dtype("auto", "cpu") == (torch.bfloat16 if native else torch.float32)
    with autocast("cpu", torch.bfloat16):
        assert (torch.rand(2, 2) @ torch.rand(2, 2)).dtype == torch.bfloat16
