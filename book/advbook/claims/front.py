"""The book as a whole: its studies, their headline errors, the answer, and what was not run."""

import shlex
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from advbook.claims import claims
from advbook.claims.verdict import EXCLUDED, OF_ONE_SEED, counted, in_points
from advbook.studies.places import ROOT, STUDIES, tables_folder
from advbook.studies.results import titled
from advbook.studies.schema import Study, load_study
from advbook.studies.seeds import over_seeds, with_spread
from advbook.studies.tables import audit_paths, in_per_cent, per_cent, table_paths
from advbook.studies.views import condition_of
from advbook.text import as_typed, one_line
from advlib.predictions import read_facts

HEADLINE = {"clean": "Clean", "corruptions": "mCE", "pgd40": "PGD-40"}
PARTS = {  # of a study, as `book` is given them, and what pages call them
    "study": "training, evaluation and their chapters",
    "ablations": "controls and ablations",
    "ledger": "how much depends on the threat model",
    "battery": "is it really robust",
}


def book_studies(book: Mapping[str, Mapping]) -> dict[str, tuple[Study, dict]]:
    """The studies of the book by id, and the tables that each part of them shows.

    Parameters
    ----------
    book : mapping
        Study file -> {part of `PARTS`: "fresh", "committed" or None}. Null means: not run.
    """
    found = {}
    for file, sources in book.items():
        study = titled(load_study(file), sources.get("study"))
        found[study.study] = study, dict(sources)
    return found


def links(studies: Mapping[str, tuple[Study, dict]]) -> dict[str, str]:
    """id -> its title, in Markdown a link to the study's first page."""
    return {
        name: f"[{as_typed(study.title)}]({name}/index.md)" for name, (study, _) in studies.items()
    }


def shown_path(path: Path | str) -> str:
    """A path as pages give it: from the project's folder, or the name alone of what lies elsewhere.

    Whose home that is belongs on no page.
    """
    whole = (ROOT / Path(path).expanduser()).resolve()
    return one_line(whole.relative_to(ROOT) if whole.is_relative_to(ROOT) else whole.name)


def given_name(study: Study, file: Path | str) -> str:
    """What commands on pages call a study: its id, or its file (`shown_path`) if that has none."""
    own = STUDIES / f"{study.study}.yaml"
    known = own.resolve() == (ROOT / file).resolve()
    return study.study if known else shlex.quote(shown_path(file))


def read_result(path: Path) -> pd.DataFrame:
    """A result table that a chapter has written.

    Raises
    ------
    FileNotFoundError
        If the chapter has not been run.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: `make read` or `make book` runs the chapter that writes it"
        )
    return pd.read_csv(path, keep_default_na=False, na_values=[""])  # a class may be called NA


def headline(study: Study, errors: pd.DataFrame) -> pd.DataFrame:
    """Errors of each method in Markdown: of the first seed with intervals, and over the seeds.

    Parameters
    ----------
    study : advbook.studies.schema.Study
    errors : DataFrame
        The result table of the chapter on the average error, ``average_error.csv``.

    Returns
    -------
    DataFrame
        study, method, seeds ("0" with an interval, or "0, 1, 2" with mean ± SD), and a column a
        benchmark.
    """
    known = [name for name in HEADLINE if name in study.benchmarks]
    errors = errors[errors.benchmark.isin(known)]
    one = errors[errors.seed == study.seeds[0]]
    one = one.assign(seeds=str(study.seeds[0]), cell=one.apply(in_per_cent, axis=1))
    parts = [one]
    if len(study.seeds) > 1:
        many = over_seeds(errors, ["method", "benchmark"])
        cells = [with_spread(*pair) for pair in zip(many["mean"], many["sd"], strict=True)]
        parts.append(many.assign(cell=cells, seeds=", ".join(map(str, study.seeds))))
    rows = []
    for method, name in study.names.items():
        for part in parts:
            own = part[part.method == method].set_index("benchmark")
            row = {"study": as_typed(study.title), "method": as_typed(name)}
            row |= {"seeds": own.seeds.iloc[0]}
            rows.append(row | {HEADLINE[key]: own.cell.get(key, "–") for key in known})
    return pd.DataFrame(rows)


def lead(shown: Mapping[str, tuple[Study, str, int]]) -> str:
    """The study that stands for the book on its cover.

    One with all three methods of the paper before any other, then the reader's own run, then the
    one with the most evaluated images, then the most seeds.

    Parameters
    ----------
    shown : mapping
        id -> study, "fresh" or "committed", number of evaluated images.
    """

    def rank(name):
        study, source, n_images = shown[name]
        whole = set(claims.COMPARED) <= set(study.methods) and "pgd40" in study.attacks
        return whole, source == "fresh", n_images, len(study.seeds)

    return max(shown, key=rank)


def class_errors(study: Study, rows: pd.DataFrame) -> pd.DataFrame:
    """Class errors of the paper's methods, clean and attacked, for the cover's picture.

    Parameters
    ----------
    study : advbook.studies.schema.Study
    rows : DataFrame
        The result table of the chapter on class-wise error, ``classwise_error.csv``.

    Returns
    -------
    DataFrame
        method and benchmark (their names), class_name, error, n_images; of the first seed.
    """
    methods = [name for name in claims.COMPARED if name in study.methods] or study.methods
    attack = "pgd40" if "pgd40" in study.attacks else next(iter(study.attacks), None)
    benchmarks = {"clean": "Clean images"}
    if attack is not None:
        benchmarks[attack] = f"Attacked images ({HEADLINE.get(attack, attack)})"
    chosen = rows[rows.statistic == "error"]
    # The first of each table is that of all classes, whatever its classes are called.
    chosen = chosen[chosen.duplicated(["benchmark", "method", "seed"])]
    chosen = chosen[chosen.method.isin(methods) & chosen.benchmark.isin(benchmarks)]
    chosen = chosen[chosen.seed == study.seeds[0]]
    shown = chosen.rename(columns={"group": "class_name", "value": "error"})
    shown["method"] = shown.method.map(study.names)
    shown["benchmark"] = shown.benchmark.map(benchmarks)
    columns = ["method", "benchmark", "class_name", "error", "n_images"]
    return shown[columns].reset_index(drop=True)


def attack_in_short(study: Study) -> str:
    """The attack behind the headline, with a link to what it leaves out (Markdown)."""
    if study.predictions:
        return condition_of(study, "pgd40")
    name, _, size = str(study.threat("pgd40")).split(", ")[:3]
    return f"{name}, {size.partition(' (')[0]}; each page has its full {{term}}`threat model`"


def read_verdicts(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The comparisons and the verdicts that the verdict page has written."""
    comparisons = read_result(folder / "verdict-comparisons.csv")
    comparisons[["absent", "part"]] = comparisons[["absent", "part"]].fillna("")
    return comparisons, read_result(folder / "verdict.csv")


def answer(
    comparisons: pd.DataFrame,
    judged: pd.DataFrame,
    studies: Mapping[str, Study],
    classes: Mapping[str, pd.DataFrame],
) -> tuple[str, pd.DataFrame, str, list[str]]:
    """Does the paper's headline hold here? An opening, the figures, and which classes pay.

    Parameters
    ----------
    comparisons, judged : DataFrame
        As `read_verdicts` returns them.
    studies : mapping
        id -> the studies that were judged.
    classes : mapping
        id -> `class_errors` of each.

    Returns
    -------
    (str, DataFrame, str, str)
        The figures are text: one row for the paper and one a study, a column for each headline. The
        second sentence is about the other reading, mixed batches; empty where it was not asked. The
        third names the classes that pay; empty where that does not hold (`_hurt`).
    """
    default, mixed = claims.VARIANTS
    rows = comparisons[comparisons.claim.isin([*claims.HEADLINES, "widens_clean"])]
    rows = rows[(rows.variant == default) & (rows.absent == "")]
    verdict = judged[judged.variant == default].set_index(["study", "claim"]).verdict
    asked = rows[rows.claim == "pgd40"].set_index("study")
    if asked.empty:
        said = "No study here attacks both Adv and Adv⁺, so it was not measured."
        return said, pd.DataFrame(), "", ""
    found = [verdict[s, c] for s in asked.index for c in claims.HEADLINES]
    # What cannot be tested, or was not, speaks neither for the headline nor against it.
    held = [v in _AS_CLAIMED for v in found if v not in (claims.CEILING, claims.ABSENT)]
    several = len(asked) > 1
    sets = len({studies[name].dataset for name in asked.index})
    sets = f" ({sets} data set{'s' * (sets > 1)})"
    if all(held):
        opening = "Found here, in sign" + f", in all of {len(asked)} studies{sets}" * several
    elif any(held):
        opening = "Found here in part"
    else:
        either = "either" if len(asked) == 2 else "any"
        opening = "Not found here" + f", in {either} of {len(asked)} studies{sets}" * several
    if any(held) and claims.HOLDS not in found:
        n = sum(claims.ALIKE in {verdict[s, c] for c in claims.HEADLINES} for s in asked.index)
        opening += ", in one training" if n == 1 else f", in {n} single trainings"
    known = rows[rows.claim.isin(claims.HEADLINES)].groupby("study", sort=False)
    sizes = [all(claims.size_excluded(r) for _, r in own.groupby("claim")) for _, own in known]
    opening += f", with {default}, every image attacked"
    if all(sizes):
        one = not (asked.n_seeds > 1).all()
        opening += f"; {EXCLUDED}" + " everywhere" * several + OF_ONE_SEED * one
    theirs = comparisons.drop_duplicates("claim").set_index("claim").paper
    theirs = {c: per_cent(theirs[c]) for c in claims.HEADLINES}
    figures = [{"study": "the paper, on ImageNet", **theirs}]
    for name in asked.index:
        ours = {
            c: _moved(rows[(rows.study == name) & (rows.claim == c)], verdict[name, c], all(sizes))
            for c in claims.HEADLINES
        }
        title = f"[{as_typed(studies[name].title)}]({name}/index.md)"
        figures.append({"study": title, **ours})
    table = pd.DataFrame(figures).rename(columns=claims.HEADLINES)
    widened = {s: verdict[s, "widens_clean"] for s in asked.index}
    hurt = _hurt(widened, studies, classes)
    return f"{opening}.", table, _other_reading(comparisons, judged, studies, mixed), hurt


_AS_CLAIMED = (claims.HOLDS, claims.ALIKE)


def _other_reading(comparisons, judged, studies: Mapping[str, Study], variant: str) -> str:
    """Where the headline holds under the other reading, in a sentence; empty if nowhere asked."""
    rows = comparisons[(comparisons.variant == variant) & (comparisons.absent == "")]
    rows = rows[rows.claim.isin(claims.HEADLINES)]
    if rows.empty:
        return ""
    verdict = judged[judged.variant == variant].set_index(["study", "claim"]).verdict
    parts = []
    for name, title in claims.HEADLINES.items():
        own, moved = rows[rows.claim == name], {"falls": [], "rises": []}
        known = [verdict[study, name] for study in own.study]
        for row, found in zip(own.itertuples(), known, strict=True):
            if found not in (claims.OPEN, claims.CEILING):
                one = ", one seed" * (not row.n_seeds > 1)
                where = f"on {as_typed(studies[row.study].title)} ({in_points(row)} points{one})"
                moved["falls" if found in _AS_CLAIMED else "rises"].append(where)
        said = [f"{verb} {' and '.join(where)}" for verb, where in moved.items() if where]
        n_open, n_edge = known.count(claims.OPEN), known.count(claims.CEILING)
        if n_open == len(own) > 0:
            said = ["neither falls nor rises clearly"]
        elif n_open:
            said.append(f"does neither clearly on {_others(n_open, said)}")
        if n_edge:
            said.append(f"{claims.CEILING} on {_others(n_edge, said)}")
        if not said:
            said = ["was not measured"]
        parts.append(f"{title[0].lower()}{title[1:]} {', '.join(said)}")
    n = rows.study.nunique()
    asked = f" (asked in {n} {'study' if n == 1 else 'studies'})"
    return f"With {variant}, clean images beside the attacked{asked}, {'; '.join(parts)}."


def _others(n: int, said: list[str]) -> str:
    """ "the other", "the other 2" after what was said of some; else "1 study", "2 studies"."""
    if said:
        return f"the other{f' {n}' * (n > 1)}"
    return f"{n} {'study' if n == 1 else 'studies'}"


def _moved(rows: pd.DataFrame, verdict: str, size_told: bool) -> str:
    """One comparison as a verb, by all its intervals, with its figures."""
    if verdict == claims.ABSENT:
        return verdict
    side = int(claims.sides(rows)[0] * rows["sign"].iloc[0])
    verb = {-1: "lower", 0: "no clear change", 1: "higher"}[side]
    verb = verdict if verdict == claims.CEILING else verb
    row = next(rows.itertuples())
    out = "" if row.n_seeds > 1 else "<br>one seed"
    out += f"<br>{EXCLUDED}" * (not size_told and claims.size_excluded(rows))
    return f"{verb}: {in_points(row).replace('; ', '<br>')}{out}"


def _hurt(widened: Mapping[str, str], studies: Mapping[str, Study], classes: Mapping) -> str:
    """Which classes adversarial training hurts, in the studies in which it widens their spread.

    What one training shows is told where no study has several, as what it is.
    """
    several = any(len(studies[name].seeds) > 1 for name in widened)
    told = [s for s in widened if widened[s] == (claims.HOLDS if several else claims.ALIKE)]
    if not told:
        return ""
    said = (
        "**What does hold.** Adversarial training itself hurts"
        if several
        else "**What else is seen**, in one training a study. Adversarial training itself hurt"
    )
    return (
        f"{said} classes unequally. The hardest hit and the least hit class, from Std to Adv on "
        f"clean images: {'; '.join(_unequal(studies[s], classes[s]) for s in told)}."
    )


def _unequal(study: Study, errors: pd.DataFrame) -> str:
    """What adversarial training does to the hardest hit and the least hit class, in words."""
    clean = errors[errors.benchmark == errors.benchmark.iloc[0]]
    wide = clean.pivot(index="class_name", columns="method", values="error")
    change = (wide["Adv"] - wide["Std"]).sort_values(ascending=False)
    most, least = (
        f"{as_typed(name)} goes from {per_cent(wide.Std[name])} to {per_cent(wide.Adv[name])} %"
        for name in change.index[[0, -1]]
    )
    n = clean.set_index("class_name").n_images[change.index[[0, -1]]]
    images = f"{n.min():,}" if n.nunique() == 1 else f"{n.min():,} to {n.max():,}"
    where = f"(seed {study.seeds[0]}, {images} images a class)"
    return f"on {as_typed(study.title)} {most}, {least} {where}"


def counts(judged: pd.DataFrame, studies: Mapping[str, Study]) -> list[str]:
    """How the paper's claims fare in each study, and which of them do not hold (Markdown)."""
    lines = []
    for name, study in studies.items():
        own = judged[(judged.variant == next(iter(claims.VARIANTS))) & (judged.study == name)]
        if own.empty:
            continue
        failed = [claims.CLAIMS[c].title for c in own.claim[own.verdict == claims.FAILS]]
        which = f" What does not hold: {'; '.join(failed)}." if failed else ""
        lines.append(
            f"**{as_typed(study.title)}**: of {len(claims.CLAIMS)} claims, {counted(own.verdict)}."
            + which
        )
    return lines


def not_run(book: Mapping[str, Mapping]) -> pd.DataFrame:
    """The parts of the book's studies that no table here is of, and the command that runs each.

    Parameters
    ----------
    book : mapping
        As `book_studies` takes it.

    Returns
    -------
    DataFrame
        study (id), title, part (a key of `PARTS`), command.
    """
    rows = []
    for file, (study, sources) in zip(book, book_studies(book).values(), strict=True):
        for part, source in sources.items():
            if source is None:
                what = "book" if part == "study" else "audit"
                command = f"make {what} STUDY={given_name(study, file)}"
                rows.append((study.study, study.title, part, command))
    return pd.DataFrame(rows, columns=["study", "title", "part", "command"])


def tables_shown(study: Study, sources: Mapping[str, str | None]) -> list[Path]:
    """The prediction tables behind a study's pages, its audit's among them.

    Parameters
    ----------
    study : advbook.studies.schema.Study
    sources : mapping
        Part -> "fresh", "committed" or None, as in `book_studies`.
    """
    paths = {}
    for part, source in sources.items():
        if source is not None:
            folder = tables_folder(study, source)
            paths |= (
                table_paths(study, folder) if part == "study" else audit_paths(study, folder, part)
            )
    return [path for path, key in paths.items() if key]


def devices(studies: Mapping[str, tuple[Study, dict]]) -> pd.DataFrame:
    """How many prediction tables were made on which device, in which arithmetic.

    Parameters
    ----------
    studies : mapping
        As `book_studies` returns it.
    """
    facts = [
        read_facts(path)
        for study, sources in studies.values()
        for path in tables_shown(study, sources)
    ]
    table = pd.DataFrame(
        {key: [str(f.get(key, "not known")) for f in facts] for key in ("device", "dtype")}
    )
    table["dtype"] = table["dtype"].str.removeprefix("torch.")
    return (
        table.value_counts(sort=False)
        .rename("tables")
        .reset_index()
        .rename(columns={"dtype": "arithmetic"})
    )
