"""Charts of what a study costs: its hours by the number of GPUs, and predicted times."""

import altair as alt
import pandas as pd

from advbook.charts.base import OTHER_COLOURS


def hours_by_gpus(table: pd.DataFrame) -> alt.Chart:
    """Hours of a study by number of GPUs; network, steps, data, efficiency and price by choice.

    Parameters
    ----------
    table : DataFrame
        A row for each network, gpu and n_gpus, hours at one times the data: pass_hours (one forward
        pass over all training images of a method), decode_hours (decoding them), evaluation_hours;
        clean and adversarial: how many methods are trained.
    """
    networks, gpus = table.network.unique().tolist(), table.gpu.unique().tolist()
    network = alt.selection_point(
        fields=["network"],
        bind=alt.binding_select(options=networks, name="Network "),
        value=[{"network": networks[0]}],
    )
    pick = alt.selection_point(fields=["gpu"], bind="legend")

    def slider(name, label, value, low, high, step):
        bound = alt.binding_range(min=low, max=high, step=step, name=f"{label} ")
        return alt.param(name=name, value=value, bind=bound)

    choices = [
        slider("attack_steps", "Attack steps in training", 10, 0, 40, 1),
        slider("data_tenfold", "Training images, × 10 to the power of", 0, 0, 3, 0.1),
        slider("efficiency_times", "Efficiency, × the GPU's own", 1, 0.25, 2, 0.05),
        alt.param(
            name="price",
            value=0,
            bind=alt.binding(input="number", name="Your price of a GPU-hour "),
        ),
    ]
    # Decoding goes on beside computing: the slower one counts.
    clean = "max(3 * datum.pass_hours / efficiency_times, datum.decode_hours)"
    attacked = (
        "max((2 * attack_steps + 3) * datum.pass_hours / efficiency_times, datum.decode_hours)"
    )
    hours = (
        f"pow(10, data_tenfold) * (datum.clean * {clean} + datum.adversarial * {attacked})"
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
        color=alt.Color(
            "gpu:N",
            title="GPU",
            sort=gpus,
            scale=alt.Scale(domain=gpus, range=OTHER_COLOURS),
            legend=alt.Legend(orient="top", columns=2, symbolType="stroke", symbolStrokeWidth=3),
        ),
        opacity=alt.condition(pick, alt.value(1), alt.value(0.12)),
        tooltip=[
            alt.Tooltip("gpu:N", title="GPU"),
            alt.Tooltip("n_gpus:Q", title="GPUs"),
            alt.Tooltip("hours:Q", title="Hours", format=",.1f"),
            alt.Tooltip("days:Q", title="Days", format=",.1f"),
            alt.Tooltip("gpu_hours:Q", title="GPU-hours", format=",.0f"),
            alt.Tooltip("cost:Q", title="At your price", format=",.0f"),
        ],
    )
    return lines.add_params(network, pick, *choices).properties(width="container", height=340)


def predicted_times(table: pd.DataFrame) -> alt.Chart:
    """Measured against predicted seconds of each job, with the lines of 30 % more and less.

    Parameters
    ----------
    table : DataFrame
        Columns job, kind, predicted and measured (seconds).
    """
    kinds = table.kind.unique().tolist()
    ends = [
        table[["predicted", "measured"]].min().min(),
        table[["predicted", "measured"]].max().max(),
    ]
    band = pd.DataFrame(
        [
            {"predicted": x, "measured": x * f, "line": str(f)}
            for f in (1 / 1.3, 1, 1.3)
            for x in ends
        ]
    )
    axes = {
        "x": alt.X("predicted:Q", title="Predicted (seconds)", scale=alt.Scale(type="log")),
        "y": alt.Y("measured:Q", title="Measured (seconds)", scale=alt.Scale(type="log")),
    }
    lines = (
        alt.Chart(band)
        .mark_line(color="#888888", strokeDash=[4, 4])
        .encode(**axes, detail="line:N")
    )
    legend = alt.Legend(orient="top", columns=4)
    points = (
        alt.Chart(table)
        .mark_point(filled=True, size=70, opacity=0.8)
        .encode(
            **axes,
            color=alt.Color(
                "kind:N",
                title="Job",
                sort=kinds,
                scale=alt.Scale(domain=kinds, range=OTHER_COLOURS),
                legend=legend,
            ),
            shape=alt.Shape(
                "kind:N", title="Job", sort=kinds, scale=alt.Scale(domain=kinds), legend=legend
            ),
            tooltip=[
                alt.Tooltip("job:N", title="Job"),
                alt.Tooltip("predicted:Q", title="Predicted", format=".1f"),
                alt.Tooltip("measured:Q", title="Measured", format=".1f"),
            ],
        )
    )
    return (lines + points).properties(width="container", height=320)
