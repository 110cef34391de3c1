"""What the verdict page says: tables and sentences about the paper's claims and their verdicts."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from advbook.claims.claims import (
    ABSENT,
    ALIKE,
    CEILING,
    CLAIMS,
    FAILS,
    HEADLINES,
    HOLDS,
    OPEN,
    UNLIKE,
    VARIANTS,
    VERDICTS,
    at_the_edge,
    judge,
    needed,
    sides,
    size_excluded,
)
from advbook.studies.seeds import t_interval
from advbook.studies.tables import in_per_cent, per_cent
from advbook.text import all_as_typed, as_typed
from advlib import metrics
from advlib.recipes import RECIPES

EXCLUDED = "an effect of the paper's size is excluded"
OF_ONE_SEED = " (with one seed: in that training)"
PAPER = "the paper (ImageNet)"


def in_points(row) -> str:
    """A comparison: its value, the 95 % interval over images, and with several seeds over these.

    "0.33 [0.14, 0.53]; 3 seeds [0.23, 0.44]", in points.
    """
    words = in_per_cent(row)
    if row.n_seeds > 1:
        low, high = (per_cent(end) for end in t_interval(row.value, row.sd, row.n_seeds))
        words += f"; {row.n_seeds:.0f}\N{NO-BREAK SPACE}seeds [{low},\N{NO-BREAK SPACE}{high}]"
    return words


def measured_words(rows: pd.DataFrame, names: Mapping[str, str]) -> str:
    """What was measured for one claim, for a table's cell: in points, or as difference of ratios.

    Parameters
    ----------
    rows : DataFrame
        Those of `compare` for one study, variant and claim.
    names : mapping
        The methods' names by id, in Markdown.
    """
    if rows["absent"].any():
        return "–"
    if rows["part"].any():
        counts = judge(rows)
        return f"{counts.n_hold} of {counts.n_tests} as claimed, {counts.n_against} the other way"
    cells = []
    for row in rows.itertuples():
        which = f"{names[row.before]} → {names[row.after]}: " if len(rows) > 1 else ""
        raw = "" if pd.isna(row.raw) else f" (raw\N{NO-BREAK SPACE}{per_cent(row.raw)})"
        cells.append(f"{which}{in_points(row)}{raw}")
    return "<br>".join(cells)


def paper_words(rows: pd.DataFrame) -> str:
    """The paper's own figure for one claim, in points, or what it says without numbers."""
    claim = CLAIMS[rows["claim"].iloc[0]]
    return claim.printed or "; ".join(per_cent(value) for value in rows["paper"])


def share_words(rows: pd.DataFrame, verdict: str) -> str:
    """The measured difference as a share of the paper's, for a table's cell, with its interval.

    "–" where the paper prints no number, or the data say nothing of it. Below zero: the other
    direction. The paper's is its `advbook.claims.claims.published_expected`.

    Parameters
    ----------
    rows : DataFrame
        Those of `compare` for one study, variant and claim.
    verdict : str
    """
    if verdict in (ABSENT, CEILING) or rows["expected"].isna().any():
        return "–"
    cells = []
    for row in rows.itertuples():
        cell = f"{per_cent(row.value / row.expected, 0)} %"
        if pd.notna(row.low):
            ends = sorted((row.low / row.expected, row.high / row.expected))
            cell += f" [{per_cent(ends[0], 0)},\N{NO-BREAK SPACE}{per_cent(ends[1], 0)}]"
        cells.append(cell)
    return "; ".join(cells)


def overview(
    comparisons: pd.DataFrame,
    judged: pd.DataFrame,
    studies: Mapping,
    variant: str,
    beside: Mapping[tuple[str, str], str],
) -> pd.DataFrame:
    """The table for a reader in a hurry: a row for each claim under one variant, a column a study.

    Parameters
    ----------
    comparisons, judged : DataFrame
        As of `compare` and `verdicts`, of one or more studies.
    studies : mapping
        id -> advbook.studies.schema.Study.
    variant : str
        A key of `VARIANTS`.
    beside : mapping
        (study, claim) -> Markdown that follows what was measured.

    Returns
    -------
    DataFrame
        claim, the paper (in points), and by the title of each study, in Markdown: the verdict with
        a link to the chapter that shows it, what was measured (in points), and how much that is of
        the paper's, and whether the intervals leave out an effect of that size.
    """
    verdict = judged.set_index(["claim", "study", "variant"]).verdict
    rows = []
    for name, claim in CLAIMS.items():
        chosen = comparisons[(comparisons.claim == name) & (comparisons.variant == variant)]
        printed = paper_words(chosen[chosen.study == next(iter(studies))])
        row = {"the paper's claim": claim.title, "the paper (points)": printed}
        for study_id, study in studies.items():
            part = chosen[chosen.study == study_id]
            found = verdict[name, study_id, variant]
            lines = [found]
            if found != ABSENT:
                one = ", one seed" if (part.n_seeds == 1).any() and "one" not in found else ""
                lines = [f"**[{found}]({study_id}/{claim.chapter}.ipynb)**{one}"]
                lines.append(measured_words(part, all_as_typed(study.names | study.ablation_names)))
            if (share := share_words(part, found)) != "–":
                lines.append(f"share {share}" + ", *100 % excluded*" * size_excluded(part))
            if more := beside.get((study_id, name)):
                lines.append(more)
            row[as_typed(study.title)] = "<br>".join(lines)
        rows.append(row)
    return pd.DataFrame(rows)


def over_training_seeds(comparisons: pd.DataFrame, studies: Mapping) -> pd.DataFrame:
    """How the differences of single comparisons spread over the seeds, where there are several.

    Returns
    -------
    DataFrame
        claim, then by the title of each study with several seeds: the SD over the seeds in points,
        and in how many of them the difference has the paper's sign. Empty if every study has one.
    """
    rows = comparisons[comparisons.part == ""]
    rows = rows[~rows.duplicated(["study", "variant", "claim"], keep=False) & (rows.n_seeds > 1)]
    found = {}
    for row in rows.itertuples():
        words = f"{in_points(row)}; SD\N{NO-BREAK SPACE}{per_cent(row.sd)}; "
        words += f"as claimed in {row.n_agree:.0f} of {row.n_seeds:.0f}"
        title = CLAIMS[row.claim].title
        if row.variant != next(iter(VARIANTS)):
            title += f" ({row.variant})"
        found.setdefault(title, {})[as_typed(studies[row.study].title)] = words
    table = pd.DataFrame.from_dict(found, orient="index").fillna("–")
    return table.rename_axis("the paper's claim").reset_index()


def undecided(comparisons: pd.DataFrame, judged: pd.DataFrame, studies: Mapping) -> list[str]:
    """Why claims were not measured or cannot be tested, each reason once (Markdown bullets)."""
    reasons, told = {}, set()
    by_variant = judged.groupby(["study", "variant"]).verdict
    whole = {key for key, found in by_variant if (found == ABSENT).all()}
    for row in judged[judged.verdict.isin([ABSENT, CEILING])].itertuples():
        key = ["study", "variant", "claim"]
        rows = comparisons[(comparisons[key] == [row.study, row.variant, row.claim]).all(axis=1)]
        why = row.why if row.verdict == ABSENT else at_the_edge(rows)
        title = _lower(CLAIMS[row.claim].title)
        if (row.study, row.variant) in whole:  # one line, not one a claim
            title, why = "every claim", rows["absent"].iloc[0]
            if (row.study, row.variant) in told:
                continue
        elif (row.study, row.claim, why) in told:  # of the variant before
            continue
        told |= {(row.study, row.variant), (row.study, row.claim, why)}
        asked = reasons.setdefault((row.verdict, row.variant, why), {})
        asked.setdefault(as_typed(studies[row.study].title), []).append(title)
    lines = []
    for (verdict, variant, why), asked in reasons.items():
        alike = {}  # the claims -> the studies in which this is so of all of them
        for study, titles in asked.items():
            alike.setdefault(tuple(titles), []).append(study)
        for titles, where in alike.items():
            where = ", ".join([*where, *[variant] * (variant != next(iter(VARIANTS)))])
            lines.append(
                f"* *{verdict}* ({where}): {'; '.join(titles)}. {why[0].upper()}{why[1:]}."
            )
    return lines


def effects(comparisons: pd.DataFrame, studies: Mapping) -> pd.DataFrame:
    """The differences measured here for which the paper prints numbers, both, each once.

    Returns
    -------
    DataFrame
        study (its title), effect ("Adv → Adv⁺: clean error"), series (the variants, then the
        paper), value, low, high (fractions), claimed ("lower", "higher"). The paper's is its
        `published_expected` in that study, and has no interval; where that is another
        under the second variant, it is a series of its own.
    """
    titles = {"clean": "clean", "real": "ReaL", "pgd40": "PGD-40"}
    originals = {new: old for names in VARIANTS.values() for old, new in names.items()}
    table = comparisons[comparisons.paper.notna()].copy()
    pairs = [
        " → ".join(RECIPES[originals.get(m, m)].title for m in pair)
        for pair in zip(table.before, table.after, strict=True)
    ]
    what = [
        f"{titles[claim.benchmark]} {'SD' if claim.statistic == 'sd' else 'error'}"
        if claim.benchmark in titles
        else "mCE"
        for claim in table.claim.map(CLAIMS)
    ]
    table["effect"] = [f"{pair}: {words}" for pair, words in zip(pairs, what, strict=True)]
    table["claimed"] = table.sign.map({-1: "lower", 1: "higher"})
    table["study"] = table.study.map(lambda name: studies[name].title)
    table["series"] = table.variant
    order = {effect: i for i, effect in enumerate(dict.fromkeys(table.effect))}
    ours = table[table.absent == ""].drop_duplicates(["study", "effect", "series"])
    theirs = ours.assign(value=ours.expected).drop_duplicates(["study", "effect", "value"])
    again = theirs.duplicated(["study", "effect"])
    theirs["series"] = np.where(again, f"{PAPER}, for " + theirs.variant, PAPER)
    theirs[["low", "high"]] = np.nan
    both = pd.concat([ours, theirs], ignore_index=True)
    both = both.sort_values("effect", key=lambda names: names.map(order), kind="stable")
    return both[["study", "effect", "series", "value", "low", "high", "claimed"]]


def findings(comparisons: pd.DataFrame, judged: pd.DataFrame, studies: Mapping) -> list[str]:
    """The page in short: the headlines, and how many claims have which verdict.

    Parameters
    ----------
    comparisons, judged, studies
        As for `overview`.
    """
    by_study = judged[judged.variant == next(iter(VARIANTS))].groupby("study", sort=False).verdict
    found = {study: counted(part) for study, part in by_study if (part != ABSENT).any()}
    totals = f"Of {len(CLAIMS)} claims:{_each(found, studies)}"
    return [*headlines(comparisons, judged, studies), totals]


def headlines(comparisons: pd.DataFrame, judged: pd.DataFrame, studies: Mapping) -> list[str]:
    """A sentence for each of `HEADLINES`: what label augmentation does to it, and in the paper."""
    default, lines = next(iter(VARIANTS)), []
    for name, title in HEADLINES.items():
        parts = {}
        for (study_id, known), rows in _rows(comparisons, default).items():
            if known != name:
                continue
            row, verdict = rows.iloc[0], _verdict(judged, study_id, name, default)
            parts[study_id] = f"*{verdict}*, {in_points(row)} points"
            if verdict in (HOLDS, ALIKE):
                parts[study_id] += f", {share_words(rows, verdict)} of the paper's size"
            if size_excluded(rows):
                one = " in this training" * bool((rows.n_seeds == 1).all())
                parts[study_id] += f", {EXCLUDED}{one}"
        own = comparisons[comparisons.claim == name].paper.iloc[0]
        lines.append(
            f"{title} from Adv to Adv⁺ (the paper: {per_cent(own)} points):{_each(parts, studies)}"
        )
    return lines


def room(comparisons: pd.DataFrame, studies: Mapping) -> str:
    """How far the PGD-40 error could fall at most, and how much of it Adv⁺ reaches.

    Empty where no study has both errors, or where PGD-40 costs Adv nothing.
    """
    rows = comparisons[
        (comparisons.claim == "pgd40") & (comparisons.variant == next(iter(VARIANTS)))
    ]
    parts = {
        row.study: f"{per_cent(row.room)} points, of which {per_cent(row.value / row.room, 0)} %"
        for row in rows[rows.room < 0].itertuples()
    }
    if not parts:
        return ""
    own = rows.iloc[0]
    return (
        "Were Adv⁺ immune to PGD-40, its error there would be its clean error. From Adv that is "
        f"{per_cent(own.paper_room)} points in the paper, of which Adv⁺ reaches "
        f"{per_cent(own.paper / own.paper_room, 0)} %: the paper's size. Here:\n"
        f"{_each(parts, studies)}"
    )


def conclusion(comparisons: pd.DataFrame, judged: pd.DataFrame, studies: Mapping) -> list[str]:
    """What was found: every claim under its verdict, and in which studies (Markdown).

    Parameters
    ----------
    comparisons, judged, studies
        As for `overview`.
    """
    default, mixed = VARIANTS
    by_claim = judged.set_index(["variant", "claim", "study"]).verdict
    lines = []
    for verdict in VERDICTS:
        groups = {}  # the studies with this verdict -> the claims
        for name, claim in CLAIMS.items():
            where = tuple(s for s in studies if by_claim[default, name, s] == verdict)
            if where:
                groups.setdefault(where, []).append(_lower(claim.title))
        if len(studies) == 1:
            lines += [f"* *{verdict}*: {'; '.join(titles)}." for titles in groups.values()]
            continue
        lines += [f"* *{verdict}*"] * bool(groups)
        for where, titles in sorted(groups.items(), key=lambda group: -len(group[0])):
            lines.append(f"  * {_named(where, studies)}: {'; '.join(titles)}.")
    out = {}  # the studies whose intervals leave out the paper's size -> the claims
    rows = _rows(comparisons, default)
    for name, claim in CLAIMS.items():
        where = tuple(s for s in studies if (s, name) in rows and size_excluded(rows[s, name]))
        if where:
            out.setdefault(where, []).append(_lower(claim.title))
    if out:
        one = any((rows[key].n_seeds == 1).all() for key in rows if size_excluded(rows[key]))
        lines.append(f"* *{EXCLUDED}*, whichever sign it has{OF_ONE_SEED * one}")
        for where, titles in sorted(out.items(), key=lambda group: -len(group[0])):
            lines.append(f"  * {_named(where, studies)}: {'; '.join(titles)}.")
    for study_id, study in studies.items():
        known = by_claim[mixed].unstack()[study_id]
        moved = [
            f"{_lower(CLAIMS[name].title)} (*{known[name]}*)"
            for name in CLAIMS
            if known[name] != ABSENT
            and _side(known[name]) != _side(by_claim[default, name, study_id])
        ]
        if (known != ABSENT).any():
            lines.append(
                f"* otherwise with {mixed}, {as_typed(study.title)}: {'; '.join(moved) or 'none'}."
            )
    return lines


def _named(where: tuple[str, ...], studies: Mapping) -> str:
    return (
        "every study"
        if len(where) == len(studies) > 1
        else ", ".join(as_typed(studies[s].title) for s in where)
    )


def _rows(comparisons: pd.DataFrame, variant: str) -> dict[tuple[str, str], pd.DataFrame]:
    """(study, claim) -> its comparisons, if all of them were measured."""
    chosen = comparisons[comparisons.variant == variant].groupby(["study", "claim"], sort=False)
    return {key: rows for key, rows in chosen if (rows.absent == "").all()}


def _verdict(judged: pd.DataFrame, study: str, claim: str, variant: str) -> str:
    return judged.set_index(["study", "claim", "variant"]).verdict[study, claim, variant]


def _side(verdict: str) -> str:
    """A verdict, whether of one training or of several."""
    return {ALIKE: HOLDS, UNLIKE: FAILS}.get(verdict, verdict)


def _each(parts: Mapping[str, str], studies: Mapping) -> str:
    """One part a study, with its title and on a line of its own if there are several."""
    if len(studies) == 1 or not parts:
        return f" {next(iter(parts.values()), 'not measured here')}."
    return "".join(f"\n  * {as_typed(studies[s].title)}: {words}." for s, words in parts.items())


def _lower(title: str) -> str:
    """A title within a sentence; the names of methods keep their capitals."""
    return title[0].lower() + title[1:] if title.startswith(("Label", "Adversarial")) else title


def counted(found: pd.Series) -> str:
    """How many of these verdicts there are of each kind, in words."""
    n = {v: int((found == v).sum()) for v in VERDICTS}
    if n[ALIKE] + n[UNLIKE] and not n[HOLDS] + n[FAILS]:
        words = f"{n[ALIKE]} {'is' if n[ALIKE] == 1 else 'are'} as claimed in its one training"
        words += f", {n[UNLIKE]} the other way"
    else:
        words = f"{n[HOLDS]} {'holds' if n[HOLDS] == 1 else 'hold'} in sign"
        words += f", {n[FAILS]} {'does' if n[FAILS] == 1 else 'do'} not hold"
        words += f", {n[ALIKE]} as claimed in one training" if n[ALIKE] else ""
        words += f", {n[UNLIKE]} the other way in one training" if n[UNLIKE] else ""
    words += f", {n[OPEN]} {'is' if n[OPEN] == 1 else 'are'} not resolved"
    words += f", {n[CEILING]} cannot be tested (ceiling)" if n[CEILING] else ""
    known = f", {n[ABSENT]} {'was' if n[ABSENT] == 1 else 'were'} not measured"
    return words + (known if n[ABSENT] else "")


def by_corruption(comparisons: pd.DataFrame, studies: Mapping) -> pd.DataFrame:
    """On how many corruptions the second method errs less or more: the counts behind `judge`.

    Returns
    -------
    DataFrame
        study, methods, corruptions, errs less, errs more, open (by the 95 % intervals, as
        `sides`), and the first two again by the intervals that decide ("–" where
        nothing is judged).
    """
    rows = []
    chosen = comparisons[comparisons.part.isin(metrics.CORRUPTIONS) & (comparisons.absent == "")]
    keys = ["study", "before", "after", "claim", "sign"]
    for (study_id, before, after, claim, sign), part in chosen.groupby(keys, sort=False):
        n, study = len(part), studies[study_id]
        if sign:
            m = needed(claim, n)
            ways = sign * sides(part), sign * sides(part, (n - m + 1, m))
            few = {13: "the thirteen that the claim is about", 75: "all 15 × 5 severities"}[n]
        else:
            ways = sides(part), None
            few = "JPEG and pixelate, not judged"
        less, more = ([(way == end).sum() for way in ways if way is not None] for end in (-1, 1))
        row = {"study": study.title, "methods": f"{study.names[before]} → {study.names[after]}"}
        row |= {"corruptions": few, "errs less": less[0], "errs more": more[0]}
        row |= {"open": n - less[0] - more[0]}
        row["less, more when widened"] = f"{less[1]}, {more[1]}" if sign else "–"
        rows.append(row)
    return pd.DataFrame(rows)


def multiplicity(comparisons: pd.DataFrame, judged: pd.DataFrame) -> str:
    """How many verdicts and intervals the page holds, and what chance alone does to as many."""
    n = int((judged.verdict != ABSENT).sum())
    known = comparisons[comparisons.low.notna()]
    of = [(CLAIMS[name].benchmark, CLAIMS[name].statistic) for name in known.claim]
    # Two claims share a comparison.
    what = ["study", "of", "before", "after", "part", "severity"]
    intervals = len(known.assign(of=of).drop_duplicates(what))
    return (
        f"The page gives {n} verdicts from {intervals} intervals over images, each at an "
        "uncorrected 95 %. Were the networks of each comparison equally good on all images, about "
        f"{0.05 * intervals:.0f} of them would leave out zero. Networks that differ by the chance "
        "of training alone are not: theirs leave it out far more often, which is why seeds count."
    )
