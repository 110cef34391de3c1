"""What the attacks of the battery break, and how that differs between two networks."""

import pandas as pd
import scipy

from advlib import metrics


def interval(count: int, n: int) -> tuple[float, float]:
    """Clopper and Pearson's 95 % interval of a share.

    Exact, where `advlib.metrics` takes Wilson's: most tests find none or a few images, and there
    Wilson's interval misses the true share more often than its 5 %.
    """
    return tuple(map(float, scipy.stats.binomtest(count, n).proportion_ci(method="exact")))


def broken_images(table: pd.DataFrame) -> pd.DataFrame:
    """Which condition breaks which image (True): one row per image, one column per attack.

    From a prediction table with ``attack``, of one network. Images that are wrong in the condition
    "clean" count as broken everywhere.
    """
    broken = table.assign(wrong=table.label != table.predicted_class)
    broken = broken.pivot(index="file_name", columns="attack", values="wrong")
    return broken.apply(lambda column: column | broken["clean"])


def attack_errors(table: pd.DataFrame) -> pd.DataFrame:
    """The error in each condition: attack, n_images, value, low, high (exact 95 % interval).

    From a table as in `broken_images`. Each value is a lower bound on the worst case at its ε.
    """
    broken = broken_images(table)
    rows = []
    for attack in table.attack.drop_duplicates():
        count, n = int(broken[attack].sum()), len(broken)
        rows.append((attack, n, count / n, *interval(count, n)))
    return pd.DataFrame(rows, columns=["attack", "n_images", "value", "low", "high"])


def change_rows(table: pd.DataFrame, before: str, after: str, n_resamples: int) -> pd.DataFrame:
    """What one network errs more than another on the same images, under PGD-40 and AutoAttack.

    The table is one as in `broken_images`, of several networks, with a column method; before and
    after are methods. Returns rows of a result table, fractions, with the condition "pgd40", or
    "square", at which AutoAttack's errors stand; none of an attack that was not run.
    """
    wrong = {}
    for method in (before, after):
        part = table[table.method == method]
        images = part[part.attack == "clean"][[*metrics.IMAGE_COLUMNS]]
        broken = broken_images(part).loc[images.file_name]
        for attack in {"pgd40", "square"} & set(broken):
            wrong[method, attack] = images.assign(correct=~broken[attack].to_numpy())
    rows = []
    for attack in ("pgd40", "square"):
        if {(before, attack), (after, attack)} <= set(wrong):
            ends = wrong[after, attack], "error", wrong[before, attack]
            rows.append((attack, *metrics.bootstrap(*ends, n_resamples=n_resamples)))
    found = pd.DataFrame(rows, columns=["condition", "value", "low", "high"])
    return found.assign(method=after, statistic=f"error less that of {before}")
