"""What the printed tables imply: rounding, noise, conventions; and the page that says it."""

import shutil

import numpy as np
import pandas as pd
import pytest
import vl_convert
from scipy import stats

from advbook.claims import table_check
from advbook.studies.schema import ROOT
from advlib.metrics import class_summary
from conftest import run_notebook

PAPER = ROOT / "results" / "paper"
UNLABELLED = 3163 / 50000  # of ImageNet's validation images: no ReaL label (Beyer et al.)


@pytest.fixture(scope="module")
def printed():
    table = pd.read_csv(PAPER / "published.csv")
    number = table.provenance.str.extract(r"Table (\d)")[0].astype(int)
    return table.set_index([number, "benchmark", "statistic", "method"]).value.sort_index()


def cells(printed, benchmark):
    """Mean and SD of Std, Adv and Adv+ under a benchmark, from Table 2."""
    found = [printed[2, benchmark, s][["std", "adv", "adv_plus"]] for s in ("mean", "sd")]
    return [values.to_numpy() for values in found]


# ---------------------------------------------------------------- sampling noise


def test_noise_from_two_printed_numbers_is_that_of_the_class_table():
    """The formula of `class_summary`, which sees every class, on 30 classes of 20 images."""
    rng = np.random.default_rng(0)
    wrong = rng.random((30, 20)) < rng.beta(2, 5, size=(30, 1))
    table = pd.DataFrame(
        {
            "file_name": [f"{i}" for i in range(600)],
            "label": np.repeat(np.arange(30), 20),
            "predicted_class": np.where(wrong.ravel(), 30, np.repeat(np.arange(30), 20)),
        }
    )
    known = class_summary(table)
    found = table_check.noise_corrected_sd(known["mean"], known["sd"], n_images=20, n_classes=30)
    assert found == pytest.approx(known["sd_noise_corrected"], abs=1e-12)


def test_noise_in_the_cells_of_the_paper(printed):
    """By hand: Adv under PGD-40, .999 (.7032 × .2968 - .1577²) / 49 = .06122²."""
    clean = 100 * table_check.sampling_noise(*cells(printed, "clean"))
    attacked = 100 * table_check.sampling_noise(*cells(printed, "pgd40"))
    assert (clean.min().round(1), clean.max().round(1)) == (5.4, 6.2)
    assert (attacked.min().round(1), attacked.max().round(1)) == (3.3, 6.3)
    assert attacked[1] == pytest.approx(6.122, abs=0.001)


def test_classes_that_are_equally_hard_have_no_spread_but_noise():
    p, n = 0.3, 50
    seen = np.sqrt(p * (1 - p) / n)  # as if each class had shown just the binomial's variance
    assert table_check.noise_corrected_sd(p, seen, n, 10**9) == pytest.approx(0, abs=1e-5)
    assert table_check.noise_corrected_sd(p, 0.0) == 0.0
    assert table_check.sampling_noise(0.5, 0.5) == 0.0  # classes all right or all wrong


def test_impossible_figures_are_refused():
    for mean, sd, said in [(20.87, 15.65, "as fractions"), (0.1, 0.4, "cannot have the SD")]:
        with pytest.raises(ValueError, match=said):
            table_check.sampling_noise(mean, sd)


# ---------------------------------------------------------------- the figures of others


def test_public_models_agree_with_themselves():
    """Counting the images without labels as errors: one convention follows from the other."""
    models = pd.read_csv(PAPER / "public_models.csv")
    counted = models.real_error_dropped * (1 - UNLABELLED) + UNLABELLED
    assert np.abs(counted - models.real_error_counted).max() < 1.01e-4
    assert (models.recomputed == "no").all() and models.source.str.contains("imagenetx").all()


def test_the_paper_fits_counted_as_errors_and_not_dropped(printed):
    models, (clean, _) = pd.read_csv(PAPER / "public_models.csv"), cells(printed, "clean")
    real, _ = cells(printed, "real")
    misses = {}
    for name in ("real_error_dropped", "real_error_counted"):
        line = stats.linregress(models.clean_error, models[name])
        misses[name] = 100 * (real - line.intercept - line.slope * clean)
    assert misses["real_error_dropped"].min() > 4
    assert np.abs(misses["real_error_counted"]).max() < 1


def test_figures_of_public_models_name_their_source():
    board = pd.read_csv(PAPER / "leaderboard.csv")
    assert board[["clean_accuracy", "robust_accuracy"]].stack().between(0, 1).all()
    assert (board.robust_accuracy <= board.clean_accuracy).all()
    assert (board.recomputed == "no").all()
    assert board.source.str.match(r"https://github\.com/\S+/blob/[0-9a-f]{40}/\S+$").all()
    pd.to_datetime(board.read_on, format="%Y-%m-%d")
    at_4 = board[(board.eps_255 == 4) & (board.attack == "AutoAttack")]
    assert at_4.robust_accuracy.max() == 0.6212
    pgd = board.set_index(["model", "eps_255"]).robust_accuracy
    assert pgd["MadryLab, trained at 8/255", 8] == 0.1952
    assert pgd["MadryLab, trained at 4/255", 4] == 0.3338


# ---------------------------------------------------------------- the page


@pytest.fixture(scope="module")
def page():
    return run_notebook("table_check", repeats=100)


def test_the_page_says_what_the_tables_say(page):
    known = {"robust_plus": "67.3", "pixels": "7.65", "normalised": "1.7", "best": "62.1"}
    known |= {"odd": "5.74", "points_pgd40": "37.62", "points_sd": "1.02", "standard": "0.03"}
    known |= {"falls": "5.74", "falls_room": "0.45", "rises": "13.6"}
    known |= {"noise_clean_least": "5.4", "noise_clean_most": "6.2", "share_std": "49"}
    assert known.items() <= page.glued.items()


@pytest.mark.parametrize(
    "file, row, column, value",
    [
        ("published", "paper,adv_plus,,clean,,classes,sd", "value", 0.1750),  # a smaller fall
        ("percentages", "1,pgd40,error,adv,adv_plus", "printed", 53.51),
        ("leaderboard", "MeanSparse,Swin-L,,4,AutoAttack", "robust_accuracy", 0.6812),
    ],
)
def test_tables_that_no_longer_say_it_stop_the_page(tmp_path, file, row, column, value):
    shutil.copytree(PAPER, tmp_path / "paper")
    path = tmp_path / f"paper/{file}.csv"
    table = pd.read_csv(path)
    starts = [line.startswith(row) for line in path.read_text().splitlines()[1:]]
    assert sum(starts) == 1
    table.loc[starts, column] = value
    table.to_csv(path, index=False)
    with pytest.raises(AssertionError):
        run_notebook("table_check", repeats=100, folder=str(tmp_path / "paper"))


def test_every_chart_of_the_page_is_drawn(page):
    points = {"fig-real-convention": 11, "fig-spread-mean": 9, "fig-leaderboard": 18}
    for name, expected in points.items():
        (chart,) = page.shown[name]
        svg = vl_convert.vegalite_to_svg(chart.to_dict() | {"width": 340})
        assert svg.count('aria-roledescription="point"') == expected, name
        assert "NaN" not in svg and "undefined" not in svg


def test_the_public_networks_are_as_robustbench_lists_them():
    public = pd.read_csv(PAPER / "robustbench.csv")
    assert public.model.is_unique and public.notna().all(axis=None)
    assert public.robust_accuracy.between(0.3, 1).all()
    assert (public.robust_accuracy < public.clean_accuracy).all()
    assert (public.groupby("architecture").parameters.nunique() == 1).all()
    assert public.eps.isin(["8/255", "0.031"]).all() and (public.eps == "0.031").sum() == 5
    place = r"https://github.com/RobustBench/robustbench/blob/[0-9a-f]{40}/model_info/cifar10/Linf/"
    assert public.source.str.match(place).all()
    # What sees other images too is the most robust: a column read the wrong way would say it isn't.
    assert public.loc[public.robust_accuracy.idxmax(), "more_images"]
    assert np.isclose(public.robust_accuracy.max(), 0.7371)
