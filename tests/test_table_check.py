"""What the printed tables imply: rounding, noise, conventions, the algebra; and the two pages."""

import ast
import itertools
import subprocess
import sys

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
import vl_convert
from scipy import stats
from torch.nn import functional as F

from advbook.claims import table_check
from advbook.studies.schema import ROOT
from advlib.labels import label_augmentation_targets
from advlib.metrics import class_summary

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


# ---------------------------------------------------------------- rounding


def test_rounding_range_is_that_of_every_number_that_rounds_to_the_printed_one():
    a, b = 0.1778, 0.1676
    steps = np.linspace(-0.5e-4, 0.5e-4, 21)
    every = [(a + i - b - j) / (a + i) for i, j in itertools.product(steps, steps)]
    low, high = table_check.rounding_range(a, b)
    assert (low, high) == (pytest.approx(min(every)), pytest.approx(max(every)))
    assert table_check.rounding_range(b, a)[0] < (a - b) / b < table_check.rounding_range(b, a)[1]
    assert table_check.rounding_range(0.2, 0.20005)[0] == 0  # perhaps no change at all


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


@pytest.mark.parametrize("mean, sd", [(0.94, 0.0471), (0.27, 0.157), (0.70, 0.145)])
def test_drawing_images_gives_back_the_true_spread(mean, sd):
    seen, corrected = table_check.simulated_spread(mean, sd, np.random.default_rng(1), repeats=200)
    assert corrected.mean() == pytest.approx(sd, abs=5e-4)
    assert seen.mean() ** 2 - sd**2 == pytest.approx((mean * (1 - mean) - sd**2) / 50, rel=0.03)


def test_impossible_figures_are_refused():
    for mean, sd, said in [(20.87, 15.65, "as fractions"), (0.1, 0.4, "cannot have the SD")]:
        with pytest.raises(ValueError, match=said):
            table_check.sampling_noise(mean, sd)
    with pytest.raises(ValueError, match="2 images a class"):
        table_check.noise_corrected_sd(0.2, 0.1, n_images=1)
    with pytest.raises(ValueError, match="no beta distribution"):
        table_check.simulated_spread(0.2, 0.4, np.random.default_rng(0))


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
        misses[name] = 100 * table_check.miss_from_line(
            models.clean_error, models[name], clean, real
        )
        expected = 100 * (real - line.intercept - line.slope * clean)
        assert misses[name] == pytest.approx(expected, abs=1e-10)
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


# ---------------------------------------------------------------- the algebra


@pytest.fixture(params=[(1, 0.03), (2, 0.0), (5, 0.4)], ids=str)
def images(request):
    """Random logits of 7 classes and M transformations, as NumPy arrays."""
    m, delta = request.param
    rng = np.random.default_rng(m)
    logits = rng.normal(scale=4, size=(500, 7 + m))
    return logits, rng.integers(7, size=500), rng.integers(m, size=500), m, delta


def test_targets_are_those_of_training(images):
    _, y, j, m, delta = images
    ours = table_check.soft_targets(y, j, 7, m, delta)
    theirs = label_augmentation_targets(
        torch.tensor(y), torch.tensor(j), num_classes=7, num_transforms=m, delta=delta
    )
    assert ours == pytest.approx(theirs.numpy(), abs=1e-7)


def test_the_split_is_exact_and_the_loss_is_torchs(images):
    logits, y, j, m, delta = images
    targets = table_check.soft_targets(y, j, 7, m, delta)
    known = F.cross_entropy(torch.tensor(logits), torch.tensor(targets), reduction="none").numpy()
    assert np.abs(table_check.augmented_loss(logits, targets) - known).max() < 1e-12
    class_part, rest = table_check.split_loss(logits, y, j, 7, delta)
    assert np.abs(class_part + rest - known).max() < 1e-12
    of_classes = F.cross_entropy(torch.tensor(logits[:, :7]), torch.tensor(y), reduction="none")
    assert np.abs(class_part - (1 - delta) * of_classes.numpy()).max() < 1e-12
    other = table_check.split_loss(logits, (y + 1) % 7, j, 7, delta)[1]
    assert (other == rest).all()  # it knows nothing of the class


def test_at_p_t_equal_to_delta_the_classes_are_pulled_as_in_adv():
    rng, delta = np.random.default_rng(3), 0.03
    logits, y = rng.normal(scale=4, size=(200, 9)), rng.integers(7, size=200)
    targets = table_check.soft_targets(y, rng.integers(2, size=200), 7, 2, delta)
    moved = table_check.with_transform_probability(logits, 7, delta)
    p_t = torch.softmax(torch.tensor(moved), 1)[:, 7:].sum(1).numpy()
    assert np.abs(p_t - delta).max() < 1e-12
    assert (moved[:, :7] == logits[:, :7]).all()
    for given in (moved, logits):
        x = torch.tensor(given, requires_grad=True)
        F.cross_entropy(x, torch.tensor(targets), reduction="sum").backward()
        found = table_check.class_gradient(given, targets, 7)
        assert np.abs(found - x.grad[:, :7].numpy()).max() < 1e-12
    adv = torch.tensor(logits[:, :7], requires_grad=True)
    F.cross_entropy(adv, torch.tensor(y), reduction="sum").backward()
    scaled = (1 - delta) * adv.grad.numpy()
    assert np.abs(table_check.class_gradient(moved, targets, 7) - scaled).max() < 1e-12
    assert np.abs(table_check.class_gradient(logits, targets, 7) - scaled).max() > 0.01


# ---------------------------------------------------------------- the pages


def cells_of(name):
    return nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4).cells


def execute(name, **parameters):
    """The names that a notebook defines, and what each cell shows, by the cell's id."""
    code = [cell for cell in cells_of(name) if cell.cell_type == "code"]
    namespace, shown = {"In": [code[0].source]}, {}
    for cell in code:
        tree = ast.parse(cell.source)
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, cell.id, "exec"), namespace)
        if last is not None:
            shown[cell.id] = eval(compile(ast.Expression(last.value), cell.id, "eval"), namespace)
        if cell is code[0]:
            namespace |= parameters
    return namespace, shown


@pytest.fixture(scope="module")
def page():
    return execute("table_check", repeats=100, n_random=500)


def test_the_page_says_what_its_numbers_say(page):
    names, shown = page
    claims = names["claims"].set_index("printed")
    assert len(claims) == 12 and (claims.agrees == "yes").sum() == 11  # "Eleven of the twelve"
    assert claims.recomputed[5.73] == 5.74
    assert ((claims.lowest <= claims.index) & (claims.index <= claims.highest)).all()
    one, two = names["one"], names["two"]
    gaps = [round(one[m] - two[m], 6) for m in ("std", "adv", "adv_plus")]
    assert gaps == [0, 1e-4, 1e-4]  # "a difference of 0.01"
    pairs = names["pairs"]
    assert pairs["dropped"].min() > 4 and pairs["counted as errors"].between(-1, 0).all()
    spread = names["spread"].set_index(["benchmark", "reading"])
    along = spread.loc[("Clean", "SD / √(p(1−p))"), ["Std", "Adv", "Adv⁺"]].astype(float)
    assert along.max() - along.min() < 0.01  # "lie along one curve"
    assert names["falls"]["SD / √(p(1−p))"] == pytest.approx(0.45, abs=0.005)
    assert names["cv"].idxmin() == "Adv" and names["cv"].idxmax() == "Std"  # "turns round"
    assert names["algebra"][["loss", "gradient, p_T = δ"]].max().max() < 1e-12
    found = shown["summary"].data
    for said in ("11 of the 12", "Std, Adv, Adv⁺", "5.4 to 6.2", "3.3 to 6.3", "5.2 points above"):
        assert said in found
    assert "consistent with" in found and "consistent with" in shown["leaderboard-read"].data


def test_every_chart_of_the_page_is_drawn(page):
    _, shown = page
    marks = {"real-chart": 11, "noise-chart": 18, "spread-chart": 9, "leaderboard-chart": 18}
    for name, expected in marks.items():
        svg = vl_convert.vegalite_to_svg(shown[name].to_dict() | {"width": 340})
        assert svg.count('aria-roledescription="point"') == expected, name
        assert "NaN" not in svg and "undefined" not in svg


def test_the_claims_stay_short():
    """The page repeats what is printed; what follows from it is the other page's."""
    names, _ = execute("claims")
    headline = names["headline"].set_index("claim")["reduction (points)"].round(2).tolist()
    prose = " ".join(cell.source for cell in cells_of("claims") if cell.cell_type == "markdown")
    assert headline == [37.62, 1.02]
    assert prose.count("37.62") == prose.count("1.02 points") + 1 == 2
    labels = {}
    for page in ("claims", "table_check"):
        figures = [c.metadata.get("mystnb", {}).get("figure", {}) for c in cells_of(page)]
        labels[page] = {figure["name"] for figure in figures if figure}
    assert labels["claims"] == {"tab-table-1", "fig-table-1", "tab-table-2", "tab-points"}
    assert not labels["claims"] & labels["table_check"]


def test_the_page_needs_no_torch():
    code = (
        "import sys; import advbook.claims.table_check, advbook.charts.base\n"
        "import advbook.studies.parameters\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
