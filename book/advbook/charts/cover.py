"""The picture on the book's cover."""

import altair as alt
import pandas as pd

from advbook.charts.base import ERROR_AXIS, method_colour, method_order, side_by_side


def class_lines(table: pd.DataFrame, description: str) -> alt.Chart:
    """Every class as a line from method to method, one panel a benchmark.

    Lines that fan out are classes that a method treats unequally. A dot is a class, a bar the mean
    over the classes, with its figure; names stand at the hardest and the easiest class.

    Parameters
    ----------
    table : DataFrame
        Columns method, benchmark, class_name, error (fraction).
    description : str
        The alternative text.
    """
    order = method_order(table.method)
    benchmarks = table.benchmark.drop_duplicates().tolist()
    n_classes = table.class_name.nunique()
    last = table[table.method == order[-1]]
    ends = last.groupby("benchmark", sort=False).error.agg(["idxmin", "idxmax", "min", "max"])
    ends = ends[ends["max"] > ends["min"]]  # where all classes are alike there is no hardest one
    named = table.index.isin(ends[["idxmin", "idxmax"]].to_numpy().ravel())
    table = table.assign(label=table.class_name.where(named, ""))
    over = alt.selection_point(fields=["class_name"], on="pointerover", empty=False)
    x = alt.X("method:N", sort=order, title=None, axis=alt.Axis(labelAngle=0, ticks=False))
    y = alt.Y(
        "error:Q",
        title="Error of a class (%)",
        axis=alt.Axis(**ERROR_AXIS, tickCount=5, gridOpacity=0.5),
    )
    tooltip = [
        alt.Tooltip("class_name:N", title="Class"),
        alt.Tooltip("method:N", title="Method"),
        alt.Tooltip("error:Q", title="Error", format=".2%"),
    ]
    few = n_classes <= 100
    base = alt.Chart().encode(x=x, y=y)
    lines = base.mark_line(color="#999999").encode(
        detail="class_name:N",
        opacity=alt.condition(over, alt.value(1), alt.value(0.45 if few else 0.04)),
        strokeWidth=alt.condition(over, alt.value(3), alt.value(1.2)),
        tooltip=tooltip,
    )
    dots = base.mark_circle(size=75 if few else 12, opacity=0.9 if few else 0.25).encode(
        color=method_colour(order, title=None).legend(None), tooltip=tooltip
    )
    means = base.encode(y=alt.Y("mean(error):Q"))
    bars = means.mark_tick(width=26, thickness=3, color="black", orient="horizontal")
    figures = means.mark_text(
        align="left", dx=16, fontSize=11, fontWeight="bold", color="black"
    ).encode(text=alt.Text("mean(error):Q", format=".1%"))
    names = base.mark_text(align="left", dx=9, fontSize=11, color="black").encode(text="label:N")
    layers = alt.layer(lines, dots, bars, figures, names, data=table).add_params(over)
    header = alt.Header(labelFontSize=14)
    chart = layers.properties(width=230, height=340).facet(
        alt.Facet("benchmark:N", sort=benchmarks, title=None, header=header), columns=1
    )
    # Each panel with axes of its own, so that it may stand beside the other or below it.
    chart = chart.resolve_axis(x="independent", y="independent")
    return side_by_side(chart, len(benchmarks)).properties(description=description)


def in_words(table: pd.DataFrame) -> str:
    """The picture as a sentence a panel, for those who cannot see it.

    Parameters
    ----------
    table : DataFrame
        As `class_lines` takes it.
    """
    sentences = []
    for benchmark, part in table.groupby("benchmark", sort=False):
        known = []
        for method in method_order(part.method):
            error = part[part.method == method].set_index("class_name").error
            known.append(
                f"{method} errs on {error.mean():.0%} on average, from {error.min():.0%} "
                f"({error.idxmin()}) to {error.max():.0%} ({error.idxmax()})"
            )
        sentences.append(f"{benchmark}: {'; '.join(known)}.")
    return "Errors of single classes by method. " + " ".join(sentences)
