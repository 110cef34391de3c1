"""The chart of what a study costs: its hours by the number of GPUs."""

import altair as alt
import pandas as pd

from advbook.charts.base import drop_down, pick, tips, told_apart


def hours_by_gpus(table: pd.DataFrame) -> alt.Chart:
    """Hours of a study by number of GPUs; network, steps, data, efficiency and price by choice.

    Parameters
    ----------
    table : DataFrame
        A row for each network, gpu and n_gpus, hours at one times the data: pass_hours (one forward
        pass over all training images of a method), decode_hours (decoding them), evaluation_hours;
        clean and adversarial: how many methods are trained.
    """
    network = drop_down("network", table.network.unique().tolist())
    picked, opacity = pick("gpu", 0.12)
    gpus = told_apart("gpu", "GPU", table.gpu.unique().tolist(), columns=2, symbol="stroke")

    def slider(name, label, value, low, high, step):
        bound = alt.binding_range(min=low, max=high, step=step, name=f"{label} ")
        return alt.param(name=name, value=value, bind=bound)

    times = alt.binding_select(options=[1, 10, 100, 1000], name="Training images, × ")
    choices = [
        slider("attack_steps", "Attack steps in training", 10, 0, 40, 1),
        alt.param(name="data_times", value=1, bind=times),
        slider("efficiency_times", "Efficiency, × the GPU's own", 1, 0.25, 2, 0.05),
        alt.param(
            name="price",
            value=0,
            bind=alt.binding(input="number", name="Your price of a GPU-hour "),
        ),
    ]
    # Decoding goes on beside computing: the slower one counts.
    one_pass = "datum.pass_hours / efficiency_times"
    clean = f"max(3 * {one_pass}, datum.decode_hours)"
    attacked = f"max((2 * attack_steps + 3) * {one_pass}, datum.decode_hours)"
    hours = (
        f"data_times * (datum.clean * {clean} + datum.adversarial * {attacked})"
        " + datum.evaluation_hours / efficiency_times"
    )
    base = (
        alt.Chart(table)
        .transform_filter(network)
        .transform_calculate(hours=hours)
        .transform_calculate(days="datum.hours / 24", gpu_hours="datum.hours * datum.n_gpus")
        .transform_calculate(cost="datum.gpu_hours * price")
    )
    powers = sorted(table.n_gpus.unique().tolist())
    lines = base.mark_line(strokeWidth=2, point=alt.OverlayMarkDef(size=45)).encode(
        x=alt.X(
            "n_gpus:Q", title="GPUs", scale=alt.Scale(type="log", base=2), axis={"values": powers}
        ),
        y=alt.Y(
            "hours:Q",
            title="Time (hours)",
            scale=alt.Scale(type="log"),
            axis=alt.Axis(format=",", tickCount=6),
        ),
        color=gpus["color"],
        opacity=opacity,
        tooltip=tips(gpu="GPU", n_gpus="GPUs")
        + tips(",.1f", hours="Hours", days="Days")
        + tips(",.0f", gpu_hours="GPU-hours", cost="At your price"),
    )
    return lines.add_params(network, picked, *choices).properties(width="container", height=340)
