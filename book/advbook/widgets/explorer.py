"""The explorer in JupyterLab: one image, several networks, an attack that is watched as it runs."""

import dataclasses
import functools
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from html import escape

import altair as alt
import ipywidgets as widgets
import pandas as pd
import torch
from torch import nn

from advbook.charts.explorer import CLEAN, pictures, probability_chart
from advbook.studies.checks import check_choice
from advbook.studies.places import tables_folder
from advbook.studies.runs import load_run
from advbook.studies.samples import decode_png, read_samples
from advbook.studies.schema import Study, load_study
from advbook.studies.tables import read_data
from advlib.attacks.pgd import attack_mode, pgd_iterates
from advlib.data.batches import stream_seed
from advlib.labels import class_logits
from advlib.networks.device import default_device
from advlib.threat import ThreatModel

LOOK = {"style": {"description_width": "80px"}, "layout": {"width": "285px"}}
FIELDS = ("eps", "steps", "random_start", "label_source", "attack_logits", "loss")  # of a threat


def attack_steps(
    model: nn.Module,
    x: torch.Tensor,
    label: int,
    threat: ThreatModel,
    *,
    num_classes: int,
    seed: int = 0,
) -> Iterator[tuple[dict, torch.Tensor]]:
    """Attack one image, and say after each step what the network sees.

    Arguments are those of `advlib.attacks.pgd.pgd_attack`, for one image x (1, C, H, W) and its
    `label`; the `seed` is that of the random start. Each step yields a dict and the image:
    ``step`` (-1 for the clean image, 0 for the start), ``label``, ``probability`` of that class
    over the K class logits, ``other_class`` and ``other_probability`` of the strongest other class,
    ``predicted_class`` and ``predicted_probability``.
    """

    @torch.no_grad()
    def seen(image):
        probabilities = class_logits(model(image), num_classes).float().softmax(1)[0].cpu()
        best = probabilities.topk(2)
        other = int(best.indices[int(best.indices[0] == label)])
        return {
            "label": label,
            "probability": float(probabilities[label]),
            "other_class": other,
            "other_probability": float(probabilities[other]),
            "predicted_class": int(best.indices[0]),
            "predicted_probability": float(best.values[0]),
        }

    with attack_mode(model, "eval"):
        clean = seen(x)
    yield {"step": CLEAN, **clean}, x
    y, generator = torch.tensor([label], device=x.device), torch.Generator().manual_seed(seed)
    iterates = pgd_iterates(model, x, y, threat, num_classes=num_classes, generator=generator)
    for step, x_adv in enumerate(iterates):
        yield {"step": step, **seen(x_adv)}, x_adv


class Background:
    """One job at a time in a thread of its own; a new one takes the place of the one before.

    `failed` gets the exception of a job, in the thread.
    """

    def __init__(self, failed: Callable[[Exception], None]):
        self.failed, self.stop = failed, threading.Event()
        # One thread: a job begins when the one before has ended, and no two share a network.
        self.thread, self.running = futures.ThreadPoolExecutor(max_workers=1), None

    def start(self, job: Iterator, delay: float = 0.0) -> None:
        """Run through `job` after `delay` seconds, unless another one starts before."""
        self.cancel()
        self.stop = threading.Event()
        self.running = self.thread.submit(self._run, job, delay, self.stop)

    def cancel(self) -> None:
        """Let the job end where it yields next."""
        self.stop.set()

    def wait(self) -> None:
        """Until no job runs."""
        while self.running is not None and not self.running.done():
            futures.wait([self.running])

    def _run(self, job, delay, stop):
        try:
            if not stop.wait(delay):
                for _ in job:
                    if stop.is_set():
                        job.close()  # the job sees a GeneratorExit
        except Exception as error:
            self.failed(error)


class Explorer(widgets.VBox):
    """The widgets: whatever is chosen, the attack starts anew in a thread and is drawn as it runs.

    The study is an id, or one that was read; ``source`` says "committed" for the published networks
    and images, "fresh" for those of the reader's own run. ``methods`` and ``image``, a file name,
    are shown at first; without an image it is the study's first one. ``delay`` is how many seconds
    pass without another change before an attack starts.

    ``controls`` are the widgets that the reader moves, by name: image, methods, eps, … ``steps`` is
    what is drawn: rows of `attack_steps` with a column method; empty at first.
    """

    def __init__(
        self,
        study: Study | str = "fashion_mnist_quick",
        source: str = "committed",
        methods: Sequence[str] = ("std", "adv", "adv_plus"),
        image: str = "",
        delay: float = 0.3,
    ):
        self.background = Background(self._failed)  # first: a failed widget is closed, too
        self.study = study if isinstance(study, Study) else load_study(study)
        for name in methods:
            check_choice("methods", name, tuple(self.study.methods))
        self.samples, self.delay = read_samples(self.study, source), delay
        self.names = read_data(tables_folder(self.study, source))["class_names"]
        each = zip(self.samples.file_name, self.samples.label, strict=True)
        images = {file_name: f"{self.names[label]}, {file_name}" for file_name, label in each}
        image = image or next(iter(images))
        check_choice("image", image, tuple(images))
        seed, self.steps = self.study.seeds[0], pd.DataFrame()
        self.network = functools.cache(lambda name: load_run(self.study, name, seed, source))
        self.status = widgets.HTML()
        self.pictures = widgets.HTML(layout={"max_width": "100%", "overflow": "auto"})
        self.progress = widgets.IntProgress(description="Attack")
        self.cancel = widgets.Button(description="Cancel", icon="stop", disabled=True)
        self.cancel.on_click(lambda _: self.background.cancel())
        alt.JupyterChart.enable_offline()
        self.probabilities = alt.JupyterChart(
            None,
            embed_options={"renderer": "svg", "actions": False},
            # As high as the chart, so that the page stands still while it is redrawn.
            layout={"min_height": "350px", "overflow": "visible"},
        )
        columns = _controls(self.study, images, methods, image)
        self.controls = {name: one for column in columns for name, one in column.items()}
        wrap = {"flex_flow": "row wrap", "overflow": "visible"}
        super().__init__(
            [
                widgets.HBox([widgets.VBox([*c.values()]) for c in columns], layout=wrap),
                widgets.HBox([self.progress, self.cancel]),
                self.status,
                widgets.HBox([self.pictures, self.probabilities], layout=wrap),
            ]
        )
        for control in self.controls.values():
            control.observe(self._changed, "value")
        self._changed()

    def close(self) -> None:
        """End the attack, and close the widgets."""
        self.background.cancel()
        self.background.thread.shutdown(wait=False)
        super().close()

    def _changed(self, _=None):
        """Whatever the reader moved: the attack starts anew."""
        chosen = {name: control.value for name, control in self.controls.items()}
        threat = dataclasses.replace(
            self.study.threat("pgd40"),
            step_size=chosen["step_size"] or None,
            **{key: chosen[key] for key in FIELDS},
        )
        self.background.start(self._attack(chosen, threat), self.delay)

    def _attack(self, chosen, threat):
        """The job: attack the methods one after the other, and draw now and then."""
        rows, images, methods, due = [], {}, chosen["methods"], 0.0
        state = "Done." if methods else "Nothing is attacked: choose a method."
        title = escape(f"{chosen['image']}: {threat}")
        self.progress.max = len(methods) * ((threat.steps if threat.eps else 0) + 2)
        self.progress.value, self.cancel.disabled, self.status.value = 0, False, title
        shown = self.samples[self.samples.file_name == chosen["image"]].iloc[0]
        x = torch.tensor(decode_png(shown.image), device=default_device())[None] / 255
        seed = stream_seed(0, shown.file_name, chosen["start"])  # 0: the start of the evaluation
        try:
            for method in methods:
                (model, run), name = self.network(method), self.study.names[method]
                given = {"num_classes": run["num_classes"], "seed": seed}
                steps = attack_steps(model.to(x.device), x, int(shown.label), threat, **given)
                for row, image in steps:
                    rows.append({"method": name, **row})
                    images[name] = x, image
                    self.progress.value += 1
                    if time.monotonic() > due:
                        self._draw(rows, images, threat)
                        due = time.monotonic() + 0.5
                    yield
        except GeneratorExit:
            state = f"Cancelled at step {row['step']} of {name}."
        self._draw(rows, images, threat)
        self.cancel.disabled, self.status.value = True, f"{title}. {state}"

    def _draw(self, rows, images, threat):
        self.steps, chart, html = pd.DataFrame(rows), None, ""
        if rows:
            chart = probability_chart(self.steps, self.names, threat.steps)
            html = pictures(images, self.steps, self.names, threat)
        self.pictures.value, self.probabilities.chart = html, chart

    def _failed(self, error):
        """Say what went wrong, and show nothing of what was there before."""
        self.cancel.disabled = True
        self._draw([], {}, None)
        self.status.value = f"<b>{escape(f'{type(error).__name__}: {error}')}</b>"
        if not isinstance(error, FileNotFoundError):  # which says what to run
            where = escape("".join(traceback.format_exception(error)))
            self.status.value += f"<details><summary>Where</summary><pre>{where}</pre></details>"


def _drop_down(description: str, options: list, value) -> widgets.Dropdown:
    return widgets.Dropdown(options=options, value=value, description=description, **LOOK)


def _controls(study: Study, images: dict, methods: Sequence[str], image: str) -> tuple:
    """What the reader moves, in three columns of widgets by name, at the study's own PGD-40.

    A step size of 0 is the usual one, 2.5·ε/min(steps, 10).
    """
    threat = study.threat("pgd40")
    known = [(title, method) for method, title in study.names.items()]
    logits = [("of the K classes", "class"), ("all K+M", "all")]
    labels = [("the true label", "true"), ("the predicted label", "predicted")]
    most = min(1.0, 4 * threat.eps) if threat.norm == "Linf" else 4 * threat.eps
    fine = {"max": most, "step": threat.eps / 100, "readout_format": ".4f"} | LOOK
    seen = {
        "image": _drop_down("Image", [(title, name) for name, title in images.items()], image),
        "methods": widgets.SelectMultiple(
            options=known, value=methods, rows=len(known), description="Methods", **LOOK
        ),
    }
    attack = {
        "eps": widgets.FloatSlider(threat.eps, description="ε", **fine),
        "steps": widgets.IntSlider(threat.steps, 1, 100, description="Steps", **LOOK),
        "step_size": widgets.FloatSlider(threat.step_size or 0.0, description="Step size", **fine),
        "random_start": widgets.Checkbox(threat.random_start, description="Random start", **LOOK),
        "start": widgets.IntSlider(0, 0, 9, description="Start", **LOOK),
    }
    others = {
        "label_source": _drop_down("Leaves", labels, threat.label_source),
        "attack_logits": _drop_down("Logits", logits, threat.attack_logits),
        "loss": _drop_down("Climbs", ["cross_entropy", "margin", "dlr"], threat.loss),
    }
    return seen, attack, others
