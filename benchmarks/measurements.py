"""What `speed.py` measures: each function here runs in a process of its own and returns rows."""

import dataclasses
import functools
import json
import resource
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from advbook.studies.identity import training_of
from advbook.studies.runs import load_run
from advbook.studies.schema import make_study
from advlib.attacks.autoattack import COMPONENTS, autoattack
from advlib.attacks.folding import folding
from advlib.attacks.worst_case import evaluate_attack
from advlib.data.sets import Images
from advlib.networks.build import build_model
from advlib.networks.device import autocast, resolve_dtype
from advlib.objectives import OBJECTIVES, Networks, Step
from advlib.recipes import RECIPES

DOCUMENTED, TUNED = "as documented", "tuned"
DOCUMENTED_BATCH = 128
SPARED = "tuned, clean mistakes left out"
KILOBYTES = 1024 if sys.platform == "darwin" else 1  # the unit of getrusage's ru_maxrss
COPIES = """
    copy clone to _to_copy contiguous cat stack index index_put index_select gather fill zero zeros
    zeros_like empty empty_like empty_strided as_strided view reshape _unsafe_view expand permute
    transpose t slice select split detach alias resize new_zeros nonzero _local_scalar_dense item
""".split()
ELEMENTWISE = """
    add sub rsub mul div neg abs sign sgn sqrt pow exp clamp clamp_min clamp_max minimum maximum
    relu threshold threshold_backward hardtanh gelu silu where eq ne lt le gt ge bitwise_and
    bitwise_or bitwise_not logical_and logical_or logical_not uniform rand random normal
    _foreach_add _foreach_mul _fused_sgd
""".split()
GROUPS = {  # operators by name, the first that fits
    "convolution": lambda name: "conv" in name,
    "normalisation": lambda name: "_norm" in name,
    "copies and casts": lambda name: name in COPIES,
    "elementwise": lambda name: name in ELEMENTWISE,
}


class Bench:
    """What a measurement needs: the study's networks and the images, read once."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
        self.study = make_study(self.settings["study"])
        self.device = torch.device(self.settings["device"])
        self.classes = list(self.settings["class_names"])
        self.threat = self.study.threat("pgd40")
        if self.settings["steps"] != self.threat.steps:
            self.threat = dataclasses.replace(self.threat, steps=self.settings["steps"])

    def model(self, name: str) -> nn.Module:
        model, _ = load_run(self.study, name, self.study.seeds[0])
        return model.to(self.device).eval()

    @functools.cached_property
    def tensors(self) -> dict[str, torch.Tensor]:
        return load_file(self.folder / "images.safetensors")

    def images(self, split: str = "test", part: slice = slice(None)) -> Images:
        pixels, labels = (self.tensors[f"{split}.{k}"][part] for k in ("pixels", "labels"))
        return make_images(pixels, labels, self.classes)

    def batch(self, split: str = "test", part: slice = slice(None)):
        """Images (N, C, H, W) in [0, 1] and labels, on the device."""
        pixels, labels = (self.tensors[f"{split}.{k}"][part] for k in ("pixels", "labels"))
        return pixels.to(self.device).float() / 255, labels.to(self.device)


def make_images(pixels, labels, classes) -> Images:
    names = [f"image-{i:06d}" for i in range(len(labels))]
    return Images(
        title="benchmark",
        source="",
        labels=labels,
        file_names=names,
        class_names=classes,
        pixels=pixels,
    )


def timed(function, device: torch.device):
    """Seconds that a call takes, all the device's work included, and its result."""
    synchronise(device)
    before = time.perf_counter()
    result = function()
    synchronise(device)
    return time.perf_counter() - before, result


def synchronise(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def start_memory(device: torch.device) -> float:
    """Forget the peak so far; the MB in use."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device) / 2**20
    if sys.platform == "linux":
        Path("/proc/self/clear_refs").write_text("5")
        return _resident("VmRSS")
    return peak_memory(device)


def peak_memory(device: torch.device) -> float:
    """Peak MB: of a GPU's tensors, or of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if sys.platform == "linux":  # getrusage's peak there begins with that of the parent
        return _resident("VmHWM")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / KILOBYTES / 1024


def _resident(key: str) -> float:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) / 1024


def make_peer(library: str, attack: str, model: nn.Module, threat):
    """A peer's attack under our threat model: (x, y) to attacked images.

    APGD chooses its own step sizes and always starts at random.
    """
    device = next(model.parameters()).device
    common = {"steps": threat.steps, "random_start": threat.random_start}
    if library == "torchattacks":
        import torchattacks

        if attack == "APGD":
            return torchattacks.APGD(model, norm="Linf", eps=threat.eps, steps=threat.steps)
        return torchattacks.PGD(model, eps=threat.eps, alpha=threat.step, **common)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # its import of SciPy
        import foolbox

    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device=device)
    found = getattr(foolbox.attacks, attack)(abs_stepsize=threat.step, **common)
    return lambda x, y: found(wrapped, x, y, epsilons=threat.eps)[1]


def prepare_peer(model: nn.Module, tuned: bool) -> torch.memory_format:
    """Tuned: channels-last and frozen. Else as a network is after loading."""
    layout = torch.channels_last if tuned else torch.contiguous_format
    model.to(memory_format=layout)
    model.requires_grad_(not tuned)
    return layout


def run_peer(attack, x, y, layout, batch_size: int, dtype: torch.dtype) -> torch.Tensor:
    x = x.contiguous(memory_format=layout)
    found = []
    for images, labels in zip(x.split(batch_size), y.split(batch_size), strict=True):
        with autocast(x.device, dtype):
            found.append(attack(images, labels).detach())
    return torch.cat(found)


def run_ours(bench: Bench, model, images: Images, threat, job: dict, num_classes=None):
    """`evaluate_attack` as its documentation uses it; a batch size of None is chosen by itself."""
    return evaluate_attack(
        model,
        images,
        threat,
        num_classes=num_classes or len(bench.classes),
        batch_size=job["batch_size"],
        device=bench.device,
        dtype=job["dtype"],
    )


@torch.no_grad()
def judge(model: nn.Module, x: torch.Tensor, x_adv: torch.Tensor, y: torch.Tensor, eps: float):
    """Which attacked images are misclassified, in float32; they must lie in the ball and in [0, 1].

    Raises
    ------
    ValueError
        If an image does not: its error is no error under this threat model.
    """
    linf = float((x_adv - x).abs().max())
    low, high = float(x_adv.min()), float(x_adv.max())
    if not (linf <= eps * (1 + 1e-5) and low >= 0 and high <= 1):
        raise ValueError(
            f"attacked images are within {eps:g} of the image and in [0, 1]; got {linf:g}, "
            f"[{low:g}, {high:g}]"
        )
    batches = zip(x_adv.float().split(128), y.split(128), strict=True)
    return torch.cat([model(images).argmax(1) != labels for images, labels in batches]), linf


def measure_probe(bench: Bench, job: dict) -> list[dict]:
    """Images a second at several batch sizes, every image to the end of a few steps."""
    steps = bench.settings["probe_steps"]
    threat = dataclasses.replace(bench.threat, steps=steps, success="last")
    model = bench.model(job["models"][0])
    if job["library"] != "advlib":
        layout = prepare_peer(model, tuned=True)
        attack = make_peer(job["library"], job["attack"], model, threat)
    part = bench.settings["images"] // bench.settings["repeats"]
    # Those that divide the images of a repeat, so that no batch is smaller than the others.
    sizes = [size for size in bench.settings["batch_sizes"] if part % size == 0]
    rows = []
    for dtype in job["dtypes"]:
        for size in sizes:
            x, y = bench.batch(part=slice(size))
            if job["library"] == "advlib":
                own = {"batch_size": size, "dtype": dtype}
                images = bench.images(part=slice(size))
                call = functools.partial(run_ours, bench, model, images, threat, own)
            else:
                precision = resolve_dtype(dtype, bench.device)
                call = functools.partial(run_peer, attack, x, y, layout, size, precision)
            try:
                call()  # the first call of a shape prepares it
                seconds = min(timed(call, bench.device)[0] for _ in range(2))
            except RuntimeError as error:  # no memory for a larger one, or no such kernel
                print(f"{job['name']}, {dtype}, batches of {size}: {str(error).splitlines()[0]}")
                break
            rows.append({"dtype": dtype, "batch_size": size, "images_per_second": size / seconds})
    return rows


def measure_evaluation(bench: Bench, job: dict) -> list[dict]:
    """One attack of the test images: seconds, which images it breaks, the peak memory."""
    peer = job["library"] != "advlib"
    rows = []
    for name in job["models"]:
        model = bench.model(name)
        start = start_memory(bench.device)
        measure = _evaluate_peer if peer else _evaluate_ours
        seconds, peak, wrong, linf = measure(bench, job, model)
        rows.append(
            {
                "model": name,
                "images": len(wrong),
                "seconds": seconds,
                "linf": linf,
                "peak_memory_mb": peak - start,
                "first_image": job["first"],
                "wrong": np.flatnonzero(wrong).tolist(),
            }
        )
    # The second network, of the same shapes, finds memory that the first has left.
    peak = max(row["peak_memory_mb"] for row in rows)
    return [row | {"peak_memory_mb": peak} for row in rows]


def _evaluate_ours(bench, job, model):
    images = bench.images(part=slice(job["first"], job["last"]))
    threat = dataclasses.replace(bench.threat, success=job["success"])
    few = images.subset(range(min(job["batch_size"] or 128, len(images))))
    run_ours(bench, model, few, dataclasses.replace(threat, steps=1), job)  # warms up
    seconds, table = timed(lambda: run_ours(bench, model, images, threat, job), bench.device)
    peak = peak_memory(bench.device)
    if table.linf.max() > threat.eps * (1 + 1e-5):
        raise ValueError(f"an image has moved by {table.linf.max():g}, more than {threat.eps:g}")
    wrong = (table.label != table.predicted_class).to_numpy()
    return seconds, peak, wrong, float(table.linf.max())


def _evaluate_peer(bench, job, model):
    tuned = job["setting"] != DOCUMENTED
    layout = prepare_peer(model, tuned)
    attack = make_peer(job["library"], job["attack"], model, bench.threat)
    x, y = bench.batch(part=slice(job["first"], job["last"]))
    size, dtype = job["batch_size"], resolve_dtype(job["dtype"], bench.device)
    short = make_peer(
        job["library"], job["attack"], model, dataclasses.replace(bench.threat, steps=1)
    )
    run_peer(short, x[:size], y[:size], layout, size, dtype)  # warms up
    torch.manual_seed(job["repeat"])

    def attacked():
        if job["setting"] != SPARED:
            return run_peer(attack, x, y, layout, size, dtype)
        with torch.no_grad():
            right = torch.cat([model(part).argmax(1) for part in x.split(size)]) == y
        found = x.clone()
        found[right] = run_peer(attack, x[right], y[right], layout, size, dtype)
        return found

    seconds, x_adv = timed(attacked, bench.device)
    peak = peak_memory(bench.device)
    wrong, linf = judge(model, x, x_adv, y, bench.threat.eps)
    return seconds, peak, wrong.cpu().numpy(), linf


def measure_autoattack(bench: Bench, job: dict) -> list[dict]:
    """The standard AutoAttack: seconds of each component, and how many images it breaks.

    Beside the clock's, the processor's seconds, which other work on the machine changes little.
    """
    rows = []
    for name in job["models"]:
        model = bench.model(name)
        measure = _autoattack_of_ours if job["library"] == "advlib" else _autoattack_of_peers
        x, y = bench.batch(part=slice(bench.settings["autoattack"]["images"]))
        right = torch.cat([model(part).argmax(1) for part in x.split(128)]) == y
        known = {"model": name, "network": bench.study.model, "images": len(x)}
        known["clean_mistakes"] = int((~right).sum())
        # Each list: component, images attacked, images broken, seconds, processor's seconds.
        for component, attacked, broken, *seconds in measure(bench, job, model, x, y, right):
            found = {"component": component, "attacked": attacked, "broken": broken}
            found |= {"seconds": seconds[0], "cpu_seconds": seconds[1]}
            rows.append(known | found)
    return rows


def _autoattack_of_ours(bench, job, model, x, y, right):
    strength = {k: v for k, v in bench.settings["autoattack"].items() if k != "images"}
    images = bench.images(part=slice(len(x)))
    known = {"num_classes": len(bench.classes), "device": bench.device, "dtype": job["dtype"]}
    clock, spent = _Clock(bench.device), {}

    def progress(component, n):
        before = spent.get(component, (0, 0, 0))
        spent[component] = tuple(map(sum, zip(before, (n, *clock.lap()), strict=True)))

    table = autoattack(model, images, bench.threat, progress=progress, **strength, **known)
    for component, (attacked, *seconds) in spent.items():
        yield component, attacked, int((table.broken_by == component).sum()), *seconds


def _autoattack_of_peers(bench, job, model, x, y, right):
    """torchattacks' components in the standard order, each on what those before it left."""
    import torchattacks

    tuned = job["setting"] != DOCUMENTED
    layout, how = prepare_peer(model, tuned), bench.settings["autoattack"]
    model = nn.Sequential(model, _Float32())
    known, classes = {"norm": "Linf", "eps": bench.threat.eps}, how["targets"] + 1
    attacks = {
        "apgd_ce": torchattacks.APGD(model, steps=how["steps"], **known),
        "apgd_t": torchattacks.APGDT(model, steps=how["steps"], n_classes=classes, **known),
        "fab_t": torchattacks.FAB(
            model, steps=how["steps"], multi_targeted=True, n_classes=classes, **known
        ),
        "square": torchattacks.Square(
            model, n_queries=how["queries"], resc_schedule=False, **known
        ),
    }
    standing, clock = right.clone(), _Clock(bench.device)
    for component in COMPONENTS:
        rows = torch.nonzero(standing).flatten()
        if not len(rows):
            break
        # In bfloat16 FAB and Square find far less; FAB takes no channels-last images.
        precision = job["dtype"] if component.startswith("apgd") else "float32"
        given = layout if component != "fab_t" else torch.contiguous_format
        precision = resolve_dtype(precision, bench.device)
        attack = attacks[component]
        x_adv = run_peer(attack, x[rows], y[rows], given, DOCUMENTED_BATCH, precision)
        seconds = clock.lap()
        standing[rows] = ~judge(model, x[rows], x_adv, y[rows], bench.threat.eps)[0]
        yield component, len(rows), len(rows) - int(standing.sum()), *seconds
        clock.lap()


class _Float32(nn.Module):
    """Logits as torchattacks wants them: its APGD fails on bfloat16."""

    def forward(self, logits):
        return logits.float()


class _Clock:
    """Seconds since the last lap, all the device's work included, and those of the processor."""

    def __init__(self, device):
        self.device = device
        self.lap()

    def lap(self) -> tuple[float, float]:
        synchronise(self.device)
        now = time.perf_counter(), time.process_time()
        since = [a - b for a, b in zip(now, getattr(self, "last", now), strict=True)]
        self.last = now
        return tuple(since)


def measure_training(bench: Bench, job: dict) -> list[dict]:
    """Steps of adversarial training: attack, forward, backward, and the optimiser."""
    model = bench.model(job["models"][0])
    start = start_memory(bench.device)
    size = bench.study.batch_size
    x, y = bench.batch("train")
    step = training_step(bench, job, model)
    step(x[:size], y[:size])  # warms up

    def epoch():
        for images, labels in zip(x.split(size), y.split(size), strict=True):
            step(images, labels)

    seconds, _ = timed(epoch, bench.device)
    row = {"model": job["models"][0], "batch_size": size, "images": len(x), "seconds": seconds}
    return [row | {"peak_memory_mb": peak_memory(bench.device) - start}]


def training_step(bench: Bench, job: dict, model: nn.Module):
    """A step of Adv on a batch, by the project's own loss or with a peer's attack."""
    study, dtype = bench.study, resolve_dtype(job["dtype"], bench.device)
    peer, tuned = job["library"] != "advlib", job["setting"] != DOCUMENTED
    layout = torch.channels_last if tuned else torch.contiguous_format
    model.to(memory_format=layout).train().requires_grad_(True)
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=1e-3,
        momentum=study.momentum,
        weight_decay=study.weight_decay,
        fused=bench.device.type == "cuda",
    )
    own = _own_loss(bench, model, dtype)
    loss_of = _peer_loss(study, job, model, tuned, dtype) if peer else own

    def step(x, y):
        x = x.contiguous(memory_format=layout)
        loss = loss_of(x, y)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


def _own_loss(bench, model, dtype):
    """The project's own loss of Adv."""
    training, attacked = training_of(bench.study, "adv"), []
    objective = OBJECTIVES["standard"](RECIPES["adv"], training, bench.images(part=slice(1)))

    def loss_of(x, y):
        if not attacked:
            attacked.append(folding(model, x[:2]))  # as `advlib.train.fit` does
        networks = Networks(model, training, len(bench.classes), dtype, None, *attacked)
        return objective(Step(x, y, None, None, networks))[0]

    return loss_of


def _peer_loss(study, job, model, tuned, dtype):
    """The loss on a peer's attacked images; tuned: parameters are frozen while it attacks."""
    attack = make_peer(job["library"], job["attack"], model, study.train_threat)

    def loss_of(images, labels):
        with autocast(images.device, dtype):
            model.eval().requires_grad_(not tuned)
            x_adv = attack(images, labels)
            model.train().requires_grad_(True)
            return F.cross_entropy(model(x_adv).float(), labels)

    return loss_of


def measure_convolution(bench: Bench, job: dict) -> list[dict]:
    """GFLOP/s of the network's convolutions, each alone: forward and both backward passes."""
    model = bench.model(job["models"][0])
    x, _ = bench.batch(part=slice(1))
    layers, seen = {}, []
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda m, i, o: seen.append((m, i[0].shape, o.shape)))
    model(x)
    for module, shape, output in seen:  # equal layers are timed once
        key = (module.weight.shape, shape, module.stride, module.padding, module.groups)
        layers.setdefault(key, [module, shape, output, 0])[3] += 1
    rows = []
    for dtype in job["dtypes"]:
        for size in bench.settings["batch_sizes"]:
            for number, (module, shape, output, count) in enumerate(layers.values()):
                flops = 2 * size * module.weight[0].numel() * output[1:].numel()
                for direction, call in _convolutions(bench, module, shape, output, size, dtype):
                    seconds = _fastest(call, bench.device, bench.settings["conv_seconds"])
                    rows.append(
                        {
                            "dtype": dtype,
                            "batch_size": size,
                            "layer": number + 1,
                            "shape": "x".join(map(str, module.weight.shape)),
                            "input": "x".join(map(str, shape[1:])),
                            "count": count,
                            "direction": direction,
                            "gflop": flops / 1e9,
                            "seconds": seconds,
                        }
                    )
    return rows


def _convolutions(bench, module, shape, output, size, dtype):
    """The three passes of one layer on random values, channels-last."""
    options = {"dtype": resolve_dtype(dtype, bench.device), "device": bench.device}
    last = {"memory_format": torch.channels_last}
    x = torch.randn(size, *shape[1:], **options).contiguous(**last)
    gradient = torch.randn(size, *output[1:], **options).contiguous(**last)
    weight = module.weight.detach().to(**options).contiguous(**last)
    settings = [*map(list, (module.stride, module.padding, module.dilation))]

    def backward(mask):
        return torch.ops.aten.convolution_backward(
            gradient, x, weight, None, *settings, False, [0, 0], module.groups, mask
        )

    yield "forward", lambda: F.conv2d(x, weight, None, *settings, module.groups)
    yield "input gradient", lambda: backward([True, False, False])
    yield "weight gradient", lambda: backward([False, True, False])


@torch.no_grad()
def _fastest(call, device, budget: float) -> float:
    """The least seconds of a call, of as many as fit the budget, and at least three."""
    call()
    found = []
    while len(found) < 3 or sum(found) < budget:
        found.append(timed(call, device)[0])
    return min(found)


def pass_flops(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> dict[str, float]:
    """GFLOP an image of an attack step (forward and input gradient) and of a training pass."""
    counted = {}
    for what in ("attack step", "training pass"):
        attack = what == "attack step"
        model.requires_grad_(not attack)
        with FlopCounterMode(display=False) as counter:
            loss = F.cross_entropy(model(x.clone().requires_grad_(attack)), y)
            loss.backward()
        counted[what] = counter.get_total_flops() / len(x) / 1e9
    model.zero_grad()
    return counted


def measure_profile(bench: Bench, job: dict) -> list[dict]:
    """Seconds by group of operators: an attack of every image to the end, and a training step."""
    from torch.profiler import ProfilerActivity, profile

    activities = [ProfilerActivity.CPU]
    activities += [ProfilerActivity.CUDA] if bench.device.type == "cuda" else []
    rows = []
    for what in ("attack", "training"):
        model = bench.model(job["models"][0])
        if what == "attack":
            call = _profiled_attack(bench, model, job)
        else:
            batch = bench.batch("train", slice(bench.study.batch_size))
            call = functools.partial(training_step(bench, job, model), *batch)
        call()
        with profile(activities=activities) as profiler:
            wall, _ = timed(call, bench.device)
        seconds = by_group(profiler.key_averages(), bench.device)
        # What no operator accounts for: Python, and on a GPU the gaps between kernels.
        seconds["between operators"] = max(0.0, wall - sum(seconds.values()))
        total = sum(seconds.values())
        rows += [
            {"what": what, "group": group, "seconds": s, "share": s / total}
            for group, s in seconds.items()
        ]
    return rows


def _profiled_attack(bench, model, job):
    images = bench.images(part=slice(4 * job["batch_size"]))
    threat = dataclasses.replace(bench.threat, steps=min(10, bench.threat.steps), success="last")
    return lambda: run_ours(bench, model, images, threat, job)


def by_group(events, device: torch.device) -> dict[str, float]:
    """Seconds of the operators themselves, without those that they call, by group."""
    seconds = dict.fromkeys([*GROUPS, "other operators"], 0.0)
    for event in events:
        if event.device_type != torch.autograd.DeviceType.CPU:
            continue  # a kernel: its time is the operator's as well
        cuda = device.type == "cuda"
        spent = event.self_device_time_total if cuda else event.self_cpu_time_total
        seconds[group_of(event.key)] += spent / 1e6
    return seconds


def group_of(operator: str) -> str:
    name = operator.rpartition("::")[2].removesuffix("_")
    return next((group for group, fits in GROUPS.items() if fits(name)), "other operators")


def measure_growth(bench: Bench, job: dict) -> list[dict]:
    """Seconds of an attack against its steps, the images' size, the classes and the images."""
    what, rows = job["what"], []
    threat = dataclasses.replace(
        bench.threat,
        steps=min(10, bench.threat.steps),
        success="any" if "stopping" in what else "last",
    )
    model = bench.model(job["models"][0])
    for value in job["values"]:
        attack, network, classes = threat, model, None
        images = bench.images(part=slice(bench.settings["growth_images"]))
        if what.startswith("steps"):
            attack = dataclasses.replace(threat, steps=value)
        elif what == "image size":
            images = resized(images, value)
        elif what == "classes":
            network, images, classes = with_classes(bench, value), labelled(images, value), value
        else:
            images = bench.images(part=slice(value))
        call = functools.partial(run_ours, bench, network, images, attack, job, classes)
        call()
        for repeat in range(bench.settings["growth_repeats"]):
            seconds, _ = timed(call, bench.device)
            found = {"what": what, "value": value, "steps": attack.steps, "repeat": repeat}
            rows.append(found | {"images": len(images), "seconds": seconds})
    return rows


def resized(images: Images, side: int) -> Images:
    pixels = F.interpolate(images.pixels.float(), size=(side, side), mode="bilinear")
    pixels = pixels.round().clamp(0, 255).to(torch.uint8)
    return make_images(pixels, images.labels, images.class_names)


def labelled(images: Images, classes: int) -> Images:
    """The same images under labels of so many classes."""
    labels = torch.arange(len(images)) % classes
    return make_images(images.pixels, labels, [f"class {i}" for i in range(classes)])


def with_classes(bench: Bench, classes: int) -> nn.Module:
    """The study's network, untrained, with a head for so many classes."""
    channels = bench.tensors["test.pixels"].shape[1]
    return build_model(
        bench.study.model, num_classes=classes, mean=(0.5,) * channels, std=(0.25,) * channels
    )


MEASURES = {
    "probe": measure_probe,
    "evaluation": measure_evaluation,
    "autoattack": measure_autoattack,
    "training": measure_training,
    "convolution": measure_convolution,
    "profile": measure_profile,
    "growth": measure_growth,
}
