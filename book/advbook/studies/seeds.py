"""Several training seeds: how a figure spreads over them, which no interval over images says."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from advbook.studies.tables import per_cent
from advlib.metrics import over_seeds, t_interval


def with_spread(mean: float, sd: float, n_seeds: int | None = None) -> str:
    """Fractions in per cent or points: "12.34 ± 0.56", the mean alone where there is no SD.

    With `n_seeds`, the interval of `t_interval` follows: "12.34 ± 0.56 [10.95, 13.73]".
    """
    spread = "" if pd.isna(sd) else f"\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}{per_cent(sd)}"
    if n_seeds is not None and pd.notna(sd):
        low, high = (per_cent(end) for end in t_interval(mean, sd, n_seeds))
        spread += f" [{low},\N{NO-BREAK SPACE}{high}]"
    return per_cent(mean) + spread


def in_each_seed(differences: Sequence[float]) -> str:
    """Differences in points, one a training seed: "in the 3 seeds +0.30, +0.32, +0.38 points".

    Where their signs differ, it ends with ": the sign is not settled". Empty for one seed.
    """
    values = np.asarray(differences, float)
    if len(values) < 2:
        return ""
    said = f"in the {len(values)} seeds {', '.join(per_cent(v, sign='+') for v in values)} points"
    torn = values.min() < 0 < values.max()
    return said + ": the sign is not settled" * bool(torn)


def seeds_words(n_seeds: int, table: str) -> str:
    """What stands before a `seeds_table` with this label, or, with one seed, in its place."""
    if n_seeds == 1:
        return (
            "Another {term}`seed` gives other weights. There is one here, and nothing on this page "
            "covers the chance of training."
        )
    return (
        f"Another {{term}}`seed` gives other weights. {{numref}}`{table}` gives mean ± SD over the "
        f"{n_seeds} seeds that were trained."
    )


def seeds_table(
    rows: pd.DataFrame, by: Sequence[str], across: str, titles: Mapping[str, str]
) -> pd.DataFrame:
    """The "Over seeds" table of a chapter: cells "mean ± SD", and the number of seeds.

    Parameters
    ----------
    rows : DataFrame
        Columns ``by``, ``across``, seed, value (a fraction).
    by : sequence of str
        What makes a row.
    across : str
        The column whose values become columns.
    titles : mapping
        The titles of these columns by value, in their order; other values are left out.

    Returns
    -------
    DataFrame
        Columns ``by``, the titles, seeds.
    """
    over = over_seeds(rows[rows[across].isin(titles)], [*by, across])
    cells = [with_spread(*pair) for pair in zip(over["mean"], over["sd"], strict=True)]
    wide = over.assign(cell=cells).pivot(index=list(by), columns=across, values="cell")
    wide = wide.reindex(columns=list(titles)).rename(columns=titles)
    wide["seeds"] = over.groupby(list(by), observed=True).n_seeds.min()
    order = pd.MultiIndex.from_frame(over[list(by)].drop_duplicates())
    wide = wide.loc[order if len(by) > 1 else order.get_level_values(0)]
    return wide.rename_axis(None, axis=1).reset_index()
