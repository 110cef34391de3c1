"""The explorer in JupyterLab: one image, several networks, an attack that is watched as it runs."""

import dataclasses
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent import futures
from html import escape

import altair as alt
import ipywidgets as widgets
import pandas as pd
import torch
from torch import nn

from advbook.charts.explorer import (
    BENCHMARKS,
    CLEAN,
    class_panel,
    pictures,
    probability_chart,
)
from advbook.studies.checks import check_choice
from advbook.studies.places import STUDIES, tables_folder
from advbook.studies.runs import load_run
from advbook.studies.samples import decode_png, read_samples
from advbook.studies.schema import Study, load_study
from advbook.studies.tables import read_data, read_tables
from advlib import metrics
from advlib.attacks.pgd import attack_mode, pgd_iterates
from advlib.data.batches import stream_seed
from advlib.labels import class_logits
from advlib.networks.device import default_device
from advlib.threat import ThreatModel

ATTACK = ("eps", "steps", "automatic", "step_size", "random_start", "start")  # one column


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

    Parameters
    ----------
    model : nn.Module
        Images in [0, 1] to K or K+M logits.
    x : float tensor (1, C, H, W) in [0, 1]
    label : int
        The true class.
    threat : ThreatModel
    num_classes : int
        K.
    seed : int
        Of the random start.

    Yields
    ------
    dict
        ``step`` (-1 for the clean image, 0 for the start), ``label``, ``probability`` of that class
        over the K class logits, ``other_class`` and ``other_probability`` of the strongest other
        class, ``predicted_class`` and ``predicted_probability``.
    float tensor (1, C, H, W)
        The image of that step; the last one is that of `advlib.attacks.pgd.pgd_attack`.
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


def class_errors(study: Study, source: str) -> pd.DataFrame:
    """Clean and PGD-40 error of every class and method, first seed.

    Returns
    -------
    DataFrame
        Columns method (its name), benchmark (in words), label, class_name, error (fraction) and
        rank among the classes; 1 has the lowest error.
    """
    wanted = [name for name in BENCHMARKS if name in study.benchmarks]
    parts = []
    for (benchmark, method, seed), table, _ in read_tables(study, source, wanted):
        if seed == study.seeds[0]:
            errors = metrics.class_error(table).reset_index(drop=True)
            errors["rank"] = errors.error.rank(method="min").astype(int)
            parts.append(errors.assign(method=study.names[method], benchmark=BENCHMARKS[benchmark]))
    names = read_data(tables_folder(study, source))["class_names"]
    whole = pd.concat(parts, ignore_index=True)
    return whole.assign(class_name=[names[label] for label in whole.label])


class Background:
    """One job at a time in a thread of its own; a new one takes the place of the one before.

    Parameters
    ----------
    failed : callable
        Gets the exception of a job, in the thread.
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

    Parameters
    ----------
    study : str or Study
        An id, or a study that was read.
    source : {"committed", "fresh"}
        The published networks and images, or those of the reader's own run.
    methods : list of str, optional
        Those compared at first; None: Std, Adv and Adv⁺.
    image : str
        The file name of the first image; empty: the study's first one.
    delay : float
        Seconds without another change before an attack starts.

    Attributes
    ----------
    controls : dict of str to widget
        What the reader moves: study, source, label, number, eps, steps, …; and methods, a box with
        a check box each.
    steps : DataFrame
        What is drawn: rows of `attack_steps` with a column method; empty at first.
    background : Background
        ``background.wait()`` waits for the attack.

    Raises
    ------
    FileNotFoundError, ValueError
        For a study, method or image that there is not.
    """

    def __init__(
        self,
        study: Study | str = "fashion_mnist_quick",
        source: str = "committed",
        methods: list[str] | None = None,
        image: str = "",
        delay: float = 0.3,
    ):
        self.background = Background(self._failed)  # first: a failed widget is closed, too
        study = study if isinstance(study, Study) else load_study(study)
        for name in methods or []:
            check_choice("methods", name, tuple(study.methods))
        self.studies = {path.stem: None for path in sorted(STUDIES.glob("*.yaml"))}
        self.studies[study.study] = study
        read_samples(study, source)  # its error ends the cell; a later study's is shown
        self.preferred, self.delay = methods or ["std", "adv", "adv_plus"], delay
        self.networks, self.errors, self.marked = {}, {}, None
        self.samples, self.filling = None, False
        self.steps = pd.DataFrame()
        self.controls = _controls(list(self.studies), study.study, source)
        self.status = widgets.HTML()
        self.pictures = widgets.HTML(layout={"max_width": "100%", "overflow": "auto"})
        self.progress = widgets.IntProgress(description="Attack")
        self.cancel = widgets.Button(description="Cancel", icon="stop", disabled=True)
        alt.JupyterChart.enable_offline()
        self.probabilities, self.classes = (
            # As high as the chart, so that the page stands still while it is redrawn.
            alt.JupyterChart(
                None,
                embed_options={"renderer": "svg", "actions": False},
                layout={"min_height": f"{height}px", "overflow": "visible"},
            )
            for height in (350, 200)
        )
        c, wrap = self.controls, {"flex_flow": "row wrap", "overflow": "visible"}
        self.attack = widgets.VBox([c[key] for key in ATTACK])
        columns = (
            widgets.VBox([c[key] for key in ("study", "source", "label", "number")]),
            self.attack,
            widgets.VBox([c["label_source"], c["attack_logits"], c["loss"], c["methods"]]),
        )
        super().__init__(
            [
                widgets.HBox(columns, layout=wrap),
                widgets.HBox([self.progress, self.cancel]),
                self.status,
                widgets.HBox([self.pictures, self.probabilities], layout=wrap),
                self.classes,
            ]
        )
        self.cancel.on_click(lambda _: self.background.cancel())
        for name, control in c.items():
            chosen = self._choose_study if name in ("study", "source") else self._changed
            if name != "methods":
                control.observe(chosen, "value")
        self._choose_study()
        if image and self.samples is not None:
            self._choose_image(image)

    def close(self) -> None:
        """End the attack, and close the widgets."""
        self.background.cancel()
        self.background.thread.shutdown(wait=False)
        super().close()

    def _choose_study(self, _=None):
        """Offer the study's images and methods, at its own threat model."""
        c, self.samples = self.controls, None
        name, source = c["study"].value, c["source"].value
        self._end()
        try:
            self.studies[name] = self.study = self.studies[name] or load_study(name)
            samples = read_samples(self.study, source)
        except Exception as error:  # ipywidgets would write it to a log that nobody reads
            self.classes.chart = self.marked = None
            return self._failed(error)
        self.filling = True  # many changes, one attack
        names, threat = samples.attrs["class_names"], self.study.threat("pgd40")
        c["label"].options = [(names[label], int(label)) for label in samples.label.unique()]
        c["label"].value = int(samples.label.iloc[0])
        c["number"].max = c["number"].value = 1
        most = min(1.0, 4 * threat.eps) if threat.norm == "Linf" else 4 * threat.eps
        for key, least, value in (
            ("eps", 0.0, threat.eps),
            ("step_size", threat.eps / 100, threat.step),
        ):
            # New ones: a browser snaps the old value to new bounds and sends it back.
            c[key] = _slider(c[key].description, value, (least, most), threat.eps / 100)
            c[key].observe(self._changed, "value")
        self.attack.children = [c[key] for key in ATTACK]
        for key in ("steps", "random_start", "label_source", "attack_logits", "loss"):
            c[key].value = getattr(threat, key)
        c["automatic"].value, c["start"].value = threat.step_size is None, 0
        preferred = [m for m in self.preferred if m in self.study.methods]
        boxes = [
            widgets.Checkbox(
                method in (preferred or self.study.methods[:3]), description=title, indent=False
            )
            for method, title in self.study.names.items()
        ]
        for box in boxes:
            box.layout.width, box.layout.margin = "auto", "2px 16px 2px 0"
            box.observe(self._changed, "value")
        c["methods"].children = boxes
        self.samples, self.filling = samples, False
        self._changed()

    def _choose_image(self, name: str):
        found = self.samples[self.samples.file_name == name]
        if not len(found):
            known = ", ".join(self.samples.file_name.unique())
            raise ValueError(f"image is one of {known}; got {name!r}")
        label = int(found.label.iloc[0])
        of_class = self.samples[self.samples.label == label].file_name.unique()
        self.controls["label"].value = label
        self.controls["number"].value = list(of_class).index(name) + 1

    def _changed(self, _=None):
        """Whatever the reader moved: the attack starts anew."""
        if self.filling or self.samples is None:
            return
        c = self.controls
        try:
            images = self.samples[self.samples.label == c["label"].value]
            images = images.drop_duplicates("file_name")
            self.filling = True
            c["number"].max = len(images)
            for name, idle in (("step_size", "automatic"), ("start", "random_start")):
                needed = c[idle].value == (name == "start")
                c[name].layout.display = None if needed else "none"
            self.filling = False
            shown = images.iloc[c["number"].value - 1]
            name, label, pixels = shown.file_name, int(shown.label), decode_png(shown.image)
            same = ("eps", "steps", "random_start", "label_source", "attack_logits", "loss")
            threat = dataclasses.replace(
                self.study.threat("pgd40"),
                step_size=None if c["automatic"].value else c["step_size"].value,
                **{key: c[key].value for key in same},
            )
            titles = [box.description for box in c["methods"].children if box.value]
            methods = [method for method, title in self.study.names.items() if title in titles]
            seed = stream_seed(0, name, c["start"].value)  # 0: the start of the evaluation
            x = torch.tensor(pixels, device=default_device())[None] / 255
            names = self.samples.attrs["class_names"]
            job = self._attack(
                self.study, c["source"].value, name, names, methods, x, label, threat, seed
            )
        except Exception as error:
            self.filling = False
            self._end()
            self._failed(error)
        else:
            self.background.start(job, self.delay)

    def _attack(self, study, source, image, names, methods, x, label, threat, seed):
        """The job: attack the methods one after the other, and draw now and then."""
        rows, images, said = [], {}, []
        title = escape(f"{image}: {threat}")
        rounds = (threat.steps if threat.eps else 0) + 2
        self.progress.max, self.progress.value = len(methods) * rounds, 0
        self.cancel.disabled, self.status.value = False, title
        self._mark_class(study, source, label, said)
        due, state = 0.0, "Done." if methods else "Nothing is attacked: choose a method."
        try:
            for method in methods:
                try:
                    model, k = self._network(study, source, method, x.device)
                except FileNotFoundError as error:
                    said.append(str(error))
                    self.progress.max -= rounds
                    continue
                steps = attack_steps(model, x, label, threat, num_classes=k, seed=seed)
                for row, image in steps:
                    rows.append({"method": study.names[method], **row})
                    images[study.names[method]] = x, image
                    self.progress.value += 1
                    if time.monotonic() > due:
                        before = time.monotonic()
                        self._draw(rows, images, names, threat)
                        due = time.monotonic() + max(0.2, 3 * (time.monotonic() - before))
                    yield
        except GeneratorExit:
            name, step = study.names[method], row["step"]
            state = f"Cancelled {'before the attack' if step < 0 else f'at step {step}'} of {name}."
        self._draw(rows, images, names, threat)
        self.cancel.disabled = True
        said = "".join(f"<br><b>{escape(text)}</b>" for text in said)
        self.status.value = f"{title}. {state}{said}"

    def _network(self, study, source, method, device):
        key = study.study, source, method
        if key not in self.networks:
            model, run = load_run(study, method, study.seeds[0], source)
            self.networks[key] = model.to(device), run["num_classes"]
        return self.networks[key]

    def _mark_class(self, study, source, label, said):
        try:
            if (study.study, source) not in self.errors:
                self.errors[study.study, source] = class_errors(study, source)
        except (FileNotFoundError, ValueError) as error:
            said.append(f"No errors of classes: {error}")
            self.classes.chart = self.marked = None
            return
        if self.marked != (study.study, source, label):
            self.classes.chart = class_panel(self.errors[study.study, source], label)
            self.marked = study.study, source, label

    def _draw(self, rows, images, names, threat):
        self.steps = pd.DataFrame(rows)
        self.pictures.value = pictures(images, self.steps, names, threat) if rows else ""
        chart = probability_chart(self.steps, names, threat.steps) if rows else None
        self.probabilities.chart = chart

    def _end(self):
        """Wait until the running attack has written its last word."""
        self.background.cancel()
        self.background.wait()

    def _failed(self, error):
        self.cancel.disabled = True
        self._draw([], {}, [], None)  # nothing of what was shown before belongs to this
        said, where = str(error), ""
        if not isinstance(error, FileNotFoundError):  # which says what to run
            said = f"{type(error).__name__}: {error}"
            where = escape("".join(traceback.format_exception(error)))
            where = f"<details><summary>Where</summary><pre>{where}</pre></details>"
        self.status.value = f"<b>{escape(said)}</b>{where}"


LOOK = {"style": {"description_width": "80px"}, "layout": {"width": "285px"}}


def _slider(description: str, value=0.0, bounds=(0.0, 1.0), step=0.1) -> widgets.FloatSlider:
    return widgets.FloatSlider(
        value, min=bounds[0], max=bounds[1], step=step,
        description=description, readout_format=".4f", **LOOK,
    )  # fmt: skip


def _controls(studies: list[str], study: str, source: str) -> dict[str, widgets.Widget]:
    """What the reader moves, before a study fills it."""
    sources = [("published", "committed"), ("of your own run", "fresh")]
    logits = [("of the K classes", "class"), ("all K+M", "all")]
    labels = [("the true label", "true"), ("the predicted label", "predicted")]
    losses = ["cross_entropy", "margin", "dlr"]
    return {
        "study": widgets.Dropdown(options=studies, value=study, description="Study", **LOOK),
        "source": widgets.Dropdown(options=sources, value=source, description="Networks", **LOOK),
        "label": widgets.Dropdown(description="Class", **LOOK),
        "number": widgets.IntSlider(1, 1, 1, description="Image", **LOOK),
        "eps": _slider("ε"),
        "steps": widgets.IntSlider(40, 1, 100, description="Steps", **LOOK),
        "automatic": widgets.Checkbox(True, description="Step 2.5·ε/min(steps, 10)", **LOOK),
        "step_size": _slider("Step size"),
        "random_start": widgets.Checkbox(True, description="Random start", **LOOK),
        "start": widgets.IntSlider(0, 0, 9, description="Start", **LOOK),
        "label_source": widgets.Dropdown(options=labels, description="Leaves", **LOOK),
        "attack_logits": widgets.Dropdown(options=logits, description="Logits", **LOOK),
        "loss": widgets.Dropdown(options=losses, description="Climbs", **LOOK),
        "methods": widgets.HBox(
            layout={"flex_flow": "row wrap", "overflow": "visible", "width": "285px"}
        ),
    }
