"""What a study costs on paper: passes, FLOPs, and the hours of GPUs that nobody has to own.

``python -m pipeline.cost`` counts the FLOPs of the networks in ``results/plan/networks.csv`` anew.
"""

import functools
from pathlib import Path

import pandas as pd

from advbook.studies.identity import recipe_for
from advbook.studies.places import ROOT
from advbook.studies.schema import Study, load_study
from advlib.files import replacing
from advlib.parquet import read_table
from advlib.recipes import RECIPES, Recipe

DEFAULT = "fashion_mnist_quick"  # its committed tables stand in for what a study has not shown yet
SIZES = {  # images of (training, test), where the data are not on this machine
    "digits": (1_297, 500),
    "fashion_mnist": (60_000, 10_000),
    "cifar10": (50_000, 10_000),
    "cifar100": (50_000, 10_000),
    "imagenet": (1_281_167, 50_000),
}
CONDITIONS = 75  # 15 corruptions at 5 severities


def images(study: Study) -> tuple[int, int, int]:
    """How many images are trained on, evaluated, and corrupted, at most.

    Those of a folder are not counted, so taken as many as ImageNet's.
    """
    train, test = SIZES.get(study.dataset, SIZES["imagenet"])
    train = min(train - study.holdout_images, study.train_images or train)
    if study.evaluation_split == "holdout":
        test = study.holdout_images
    test = min(test, study.test_images or test)
    return train, test, min(test, study.corruption_images or test)


def iterates(table: pd.DataFrame, steps: int) -> float:
    """Mean number of attack passes (forward and input gradient) for an image, of ``steps`` at most.

    By a prediction table with ``linf`` and ``steps_used``: an image broken after s steps took s + 1
    passes; one that was wrong from the start (nothing changed) is not attacked.
    """
    return float(((table.steps_used + 1).clip(upper=steps) * (table.linf > 0)).mean())


@functools.cache
def default_iterates() -> dict[str, float]:
    """`iterates` of the committed quick study under PGD-40: "standard" and "adversarial" training.

    How soon images break depends on data and ε, so this is an assumption wherever else it is used.
    """
    study = load_study(DEFAULT)
    found = {"standard": [], "adversarial": []}
    for method in study.methods:
        path = study.published / "predictions/pgd40" / f"{method}-seed0.parquet"
        table = read_table(path, columns=["linf", "steps_used"])
        found[training_kind(method)].append(iterates(table, study.threat("pgd40").steps))
    return {kind: sum(values) / len(values) for kind, values in found.items()}


def training_kind(method: str) -> str:
    """ "standard" or "adversarial"; a network trained elsewhere may be robust, which costs more."""
    return "adversarial" if RECIPES.get(method, RECIPES["adv"]).adversarial else "standard"


def measurable(study: Study, method: str) -> Recipe:
    """A recipe whose steps cost as much as the method's and that a probe can run.

    A method that looks at validation images or a helper network, or a file of the user's, is
    measured as the one that it builds on; `Recipe.passes` tells them apart.
    """
    recipe = recipe_for(study, method)
    alone = recipe.objective in ("standard", "trades", "n_fgsm")
    return recipe if alone or not recipe.base else study.recipes[recipe.base]


def kind_of_step(study: Study, method: str) -> str:
    """What decides how long a step of training takes: methods of one kind cost the same."""
    recipe = measurable(study, method)
    parts = ["adversarial" if recipe.adversarial else "clean"]
    parts += ["mixed"] * recipe.mix + ["with extra logits"] * recipe.extra_logits
    parts += [recipe.title] * (recipe.objective != "standard")
    return ", ".join(parts)


def expected_iterates(study: Study, attack: str, method: str, seed: int) -> tuple[float, str]:
    """`iterates` of one attack on one network, and what it rests on."""
    threat = study.threat(attack)
    most = threat.steps * threat.n_restarts
    if threat.success != "any" or threat.label_source != "true":
        return most, "every image takes every step"
    name = Path("predictions") / attack / f"{method}-seed{seed}.parquet"
    for folder in (study.runs, study.published):
        if (folder / name).is_file():
            table = read_table(folder / name, columns=["linf", "steps_used"])
            return iterates(table, threat.steps), f"steps of {folder.name}'s own table"
    assumed = default_iterates()[training_kind(method)] * most / 40
    return min(most, max(assumed, 1)), f"assumed: {training_kind(method)} training, as {DEFAULT}"


def network_cost(name: str, image_size: int, *, channels: int = 3, num_classes: int = 1000) -> dict:
    """FLOPs and memory of a network for one image of so many px, counted without computing.

    Returns ``parameters``; ``forward_gflop`` and ``attack_gflop`` (forward and input gradient) in
    10⁹ FLOPs, a multiplication and an addition being 2; ``activations_mb``, what a training step
    keeps in float32 (about half in bfloat16). A training step is taken as three forward passes:
    torch's counter overstates the weight gradients of grouped convolutions.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from advlib.networks.build import build_model

    with torch.device("meta"):
        values = (0.5,) * channels
        model = build_model(name, num_classes=num_classes, mean=values, std=values).train()
        # Two images, for batch norm refuses a single value a channel.
        x = torch.rand(2, channels, image_size, image_size)
    kept = {}
    weights = {p.untyped_storage()._cdata for p in model.parameters()}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = (storage, storage.nbytes())
        return tensor

    def gflop(work) -> float:
        with FlopCounterMode(display=False) as counter:
            work()
        return counter.get_total_flops() / len(x) / 1e9

    def attack():
        model.requires_grad_(False)
        model(x.clone().requires_grad_(True)).sum().backward()

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logits = model(x)
    costs = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "forward_gflop": gflop(lambda: model(x)),
        "activations_mb": sum(size for _, size in kept.values()) / len(logits) / 1e6,
    }
    return costs | {"attack_gflop": gflop(attack)}


def compute_hours(
    passes: float,
    *,
    forward_gflop: float,
    tflops: float,
    efficiency: float,
    n_gpus: int = 1,
    scaling: float = 1.0,
) -> float:
    """Hours that so many forward passes take.

    .. math:: h = \\frac{\\text{passes} \\cdot \\text{FLOPs of one}}
              {3600 \\cdot \\text{peak FLOP/s} \\cdot \\text{efficiency} \\cdot n \\cdot
              \\text{scaling}}

    The passes are images times forward passes for each (`advlib.recipes.Recipe.passes`), and
    ``forward_gflop`` is in 10⁹ FLOPs for one image. ``tflops`` is the peak of one GPU in 10¹²
    FLOP/s: dense, in the type that is computed in; ``efficiency`` the share of it that is reached,
    in (0, 1]; ``scaling`` the throughput of n GPUs by n times that of one, in (0, 1]; one GPU has
    no loss. Raises ValueError for a value out of range, naming it.
    """
    _positive(tflops=tflops, n_gpus=n_gpus)
    for name, value in (("efficiency", efficiency), ("scaling", scaling)):
        if not 0 < value <= 1:
            raise ValueError(f"{name} is in (0, 1], got {value}")
    flops = tflops * 1e12 * efficiency * n_gpus * (scaling if n_gpus > 1 else 1)
    return passes * forward_gflop * 1e9 / flops / 3600


def _positive(**values: float) -> None:
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"{name} is positive, got {value}")


def default_efficiency(tflops: float, bandwidth_gb_s: float, flop_per_byte: float = 30.0) -> float:
    """The share of its peak that a GPU reaches where its memory sets the pace.

    The roofline of Williams et al. (2009): a computation that does so many FLOPs for each byte it
    moves runs at most at :math:`\\text{FLOP/byte} \\cdot \\text{bytes/s}`. NVIDIA's published
    mixed-precision training of ResNet-50 reaches 33 FLOP for each byte that a V100 can move and 30
    on an A100; networks of large matrix products, such as transformers, reach more. The peak is in
    10¹² FLOP/s, the bandwidth of the GPU's memory in 10⁹ bytes a second.
    """
    return min(1.0, flop_per_byte * bandwidth_gb_s / 1e3 / tflops)


def on_paper(
    study: Study,
    *,
    float32_slowdown: float = 3.0,
    decoded_per_core: float = 100.0,
    cores_per_gpu: float = 8.0,
    data_factor: float = 1.0,
    n_gpus: int = 1,
    **gpu: float,
) -> pd.DataFrame:
    """The hours of a study on GPUs that nobody has to own: every assumption is an argument.

    How soon attacked images break is taken from the quick study (`default_iterates`). Clean images,
    and each attack's verdict, are computed in float32, ``float32_slowdown`` times slower. A CPU
    core decodes ``decoded_per_core`` images a second, and each GPU has ``cores_per_gpu`` of them.
    There are ``data_factor`` times the training images. The number of GPUs and what is said of one
    are as in `compute_hours`.

    Returns one row per job: rule, job, images, passes (forward, for each image), compute_hours,
    decode_hours, hours (the larger: decoding goes on beside computing), gpu_hours. Raises
    ValueError for a value out of range.
    """
    cores = {"decoded_per_core": decoded_per_core, "cores_per_gpu": cores_per_gpu}
    _positive(float32_slowdown=float32_slowdown, data_factor=data_factor, **cores)
    train, test, corrupted = images(study)
    runs, rows = len(study.seeds), []
    for method in study.methods:
        epochs = study.pretrain_epochs if method == "pretrained" else study.epochs
        if method in study.trained and epochs:
            passes = recipe_for(study, method).passes(study.train_steps)
            rows.append(("train", method, train * data_factor * epochs * runs, passes, 0))
    rows.append(("evaluate_clean", "all methods", test, 0, len(study.methods) * runs))
    for attack in study.attacks:
        threat = study.threat(attack)
        for method in study.methods:
            mean = most = threat.steps * threat.n_restarts
            if threat.success == "any" and threat.label_source == "true":
                mean = min(most, default_iterates()[training_kind(method)])
            rows.append(("evaluate_attack", f"{attack}, {method}", test * runs, 2 * mean, 2))
    if study.corruptions != "none":
        n = CONDITIONS * corrupted
        rows.append(("evaluate_corruptions", "all methods", n, 0, len(study.methods) * runs))
    table = pd.DataFrame(rows, columns=["rule", "job", "images", "passes", "float32_passes"])
    equal = table.passes + float32_slowdown * table.float32_passes
    hours = [compute_hours(n, n_gpus=n_gpus, **gpu) for n in table.images * equal]
    table["passes"] += table.pop("float32_passes")
    table["compute_hours"] = hours
    table["decode_hours"] = table.images / (decoded_per_core * cores_per_gpu * n_gpus) / 3600
    table["hours"] = table[["compute_hours", "decode_hours"]].max(axis=1)
    return table.assign(gpu_hours=table.hours * n_gpus)


def in_words(seconds: float) -> str:
    """A time as people say it: "40 s", "12 min", "7.5 h", "31 days"."""
    for limit, unit, name in ((90, 1, "s"), (5400, 60, "min"), (172_800, 3600, "h")):
        if seconds < limit:
            value = seconds / unit
            return f"{value:.1f} {name}" if value < 10 else f"{value:.0f} {name}"
    return f"{seconds / 86_400:,.0f} days" if seconds > 864_000 else f"{seconds / 86_400:.1f} days"


def save(table: pd.DataFrame, path: Path) -> Path:
    """Write a table as CSV, whole or not at all, numbers to four digits."""
    with replacing(path) as partial:
        table.to_csv(partial, index=False, float_format="%.4g")
    return path


if __name__ == "__main__":
    path = ROOT / "results/plan/networks.csv"
    known = pd.read_csv(path)[["network", "image_size"]].to_dict("records")
    found = [
        row | network_cost(*row.values(), num_classes=1000 if row["image_size"] == 224 else 10)
        for row in known
    ]
    print(save(pd.DataFrame(found), path))
