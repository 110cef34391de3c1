"""Make the tables of this folder from public ones, which are not part of this project.

    git clone https://github.com/modestyachts/imagenet-testbed
    git clone https://github.com/facebookresearch/imagenetx
    python results/imagenet_models/from_public.py imagenet-testbed imagenetx

The README beside this file says what the columns are.
"""

import re
import sys
from pathlib import Path

import pandas as pd

from advlib import metrics
from advlib.data.annotations import IMAGENET_X_FACTORS, imagenet_x, real_label_sets
from advlib.importing import read_predictions

HERE = Path(__file__).parent
X = "results/val/top_factor/imagenet_testbed"
# How a network was trained, by its name in the testbed: the first pattern that is found.
TRAINING = {
    # Left out: no network, not for all classes, or a hundred stages of one training.
    r"lstsq|one_nn|random_forests|_[0-9]+_classes_|resnet18_\d+k_": "",
    r"resnet101_\d_epochs": "stopped early",
    r"subsample_1_of_": "fewer images",
    r"smoothing_adversarial": "adversarial, with noise",
    r"facebook_adv_trained|linf_eps|l2_eps|adv-train-free": "adversarial",
    r"randomized_smoothing_noise_0\.00": "clean",
    r"randomized_smoothing": "noise",
    r"_aws|SIN|augmix|deepaugment|rotation-|cutmix|mixup|cutout|advprop|lpf": "other augmentation",
    r"instagram|swsl|noisystudent|jft|tencent|11k|21k|BiT-M|FixResNeXt|vit_|clip": "more images",
    r"ssl|simclr|simsiam|swav|vtab": "self-supervised",
}
# Networks of one origin, which differ less than others do; any other is a family by itself.
FAMILIES = {
    r"subsample_1_of_": "ResNet-50, fewer images",
    r"resnet101_\d_epochs": "ResNet-101, stopped early",
    r"_aws$": "ResNet-50, trained on corruptions",
    r"efficientnet": "EfficientNet",
    r"BiT-M": "BiT",
    r"Fix": "FixRes",
    r"instagram": "Instagram",
    r"_s?w?ssl$": "semi-supervised",
    r"lpf": "anti-aliased",
    r"rotation-(standard|random|worst|nocrop)": "ResNet-18, rotation",
    r"vtab": "VTAB",
    r"simclr|simsiam|swav": "self-supervised",
    r"clip": "CLIP",
    r"vit_": "ViT",
    r"vgg": "VGG",
    r"densenet": "DenseNet",
    r"dpn": "DPN",
    r"senet|^se_": "SE",
    r"SIN": "stylised images",
    r"augmix|deepaugment|cutmix|mixup|cutout": "ResNet, augmentation",
    r"smoothing": "randomised smoothing",
    r"facebook_adv": "Facebook",
    r"resnet50_l(inf|2)_eps": "MadryLab",
    r"alexnet|squeezenet": "AlexNet, SqueezeNet",
    r"mobilenet|mnasnet|shufflenet": "mobile",
    r"inception|nasnet|polynet|xception": "Inception, NASNet",
    r"^(resnet|resnext|wide_resnet|fbresnet|cafferesnet|google_resnet)": "ResNet",
}


def named(name: str, patterns: dict[str, str], otherwise: str) -> str:
    return next((word for text, word in patterns.items() if re.search(text, name)), otherwise)


def networks(testbed: Path) -> pd.DataFrame:
    """One row per network: validation and corruptions, both of the testbed (MIT)."""
    table = pd.read_csv(testbed / "robustness_top1s.csv", index_col="model")
    table = table[[named(name, TRAINING, "clean") != "" for name in table.index]]
    conditions = [f"imagenet-c.{c}.{s}_on-disk" for c in metrics.CORRUPTIONS for s in range(1, 6)]
    found = pd.DataFrame(
        {
            "training": [named(name, TRAINING, "clean") for name in table.index],
            "family": [named(name, FAMILIES, name) for name in table.index],
            "clean_accuracy": table["val"] / 100,
            # Without a mean where a condition is missing.
            "corruption_accuracy": table[conditions].mean(axis=1, skipna=False) / 100,
            "pgd_accuracy": table["pgd.linf.eps2"] / 100,
        },
        index=table.index,
    )
    named_ones = found.training.str.startswith("adversarial") | (found.index == "resnet50")
    few = table.loc[named_ones | (found.training == "fewer images"), conditions].stack() / 100
    few = few.rename("accuracy").reset_index()
    few[["corruption", "severity"]] = few.level_1.str.extract(r"imagenet-c\.(\w+)\.(\d)_on-disk")
    few = few[["model", "corruption", "severity", "accuracy"]]
    few.round(6).to_csv(HERE / "conditions.csv", index=False)
    return found


def classes(imagenetx: Path, kept: pd.Index) -> None:
    """Accuracies on the annotated images (CC BY-NC 4.0)."""
    columns = ["average", "worst_100_classes", *IMAGENET_X_FACTORS]
    for judged, file in {"label": "class", "real": "real_class"}.items():
        table = pd.read_csv(imagenetx / X / file / "accuracies_per_factor.csv", index_col="model")
        table.loc[table.index.intersection(kept), columns].round(6).to_csv(HERE / f"{judged}.csv")
    groups = pd.read_csv(imagenetx / X / "class" / "accuracies_per_factor_metaclass.csv")
    groups = groups[groups.model.isin(kept)].pivot(index="model", columns="metaclass")["average"]
    groups.round(6).to_csv(HERE / "groups.csv")


def public_predictions(imagenetx: Path) -> None:
    """Class-wise figures of four networks, from their predictions on all validation images."""
    parts, sets, factors = [], real_label_sets(), imagenet_x()
    for path in sorted((imagenetx / "model_predictions/base").glob("*.csv")):
        table = read_predictions(path, "imagenet")
        ways = {"label": table}
        ways |= {f"real, {u}": metrics.multilabel_table(table, sets, u) for u in ("drop", "error")}
        for judged, one in ways.items():
            found = pd.concat(
                [metrics.class_summary(one), pd.Series({"error": metrics.error(one)})]
            )
            parts.append(found.rename_axis("statistic").rename("value").reset_index())
            parts[-1].insert(0, "judged", judged)
            parts[-1].insert(0, "model", path.stem)
        ratios = metrics.error_ratio(table, factors).set_axis(["statistic", "value"], axis=1)
        parts.append(ratios.assign(model=path.stem, judged="factor"))
    table = pd.concat(parts)[["model", "judged", "statistic", "value"]]
    table.round(6).to_csv(HERE / "predictions.csv", index=False)


if __name__ == "__main__":
    testbed, imagenetx = map(Path, sys.argv[1:])
    found = networks(testbed)
    found.round(6).to_csv(HERE / "networks.csv")
    classes(imagenetx, found.index)
    public_predictions(imagenetx)
