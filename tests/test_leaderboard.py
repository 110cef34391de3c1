"""The leaderboard: records against the tables they were made from, what is refused, the page."""

import dataclasses
import json
import shutil

import jsonschema
import numpy as np
import pandas as pd
import pytest

from advbook.__main__ import main
from advbook.studies.schema import ROOT, load_study
from advbook.zoo import leaderboard
from advbook.zoo.leaderboard import read_records, record_network
from advlib import metrics
from advlib.importing import read_predictions
from advlib.predictions import read_facts, write_predictions
from conftest import as_text, run_notebook

COMMITTED = leaderboard.FOLDER
TABLES = ROOT / "results/fashion_mnist_quick/predictions"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Records are written here; what was there before is not."""
    monkeypatch.setattr(leaderboard, "FOLDER", tmp_path / "leaderboard")
    return tmp_path / "leaderboard"


@pytest.fixture
def files(tmp_path):
    """Brought predictions: a published network's, as CSV files."""
    found = {}
    for benchmark in ("clean", "pgd40"):
        table = read_predictions(TABLES / benchmark / "adv-seed0.parquet")
        table = table[["file_name", "label", "predicted_class", "predicted_probability"]]
        found[benchmark] = tmp_path / f"{benchmark}.csv"
        table.to_csv(found[benchmark], index=False)
    return found


def n_images():
    return read_facts(TABLES / "clean/adv-seed0.parquet")["n_images"]


def command(files, **changes):
    """The words of a command that records brought predictions; None leaves an option out."""
    given = {"name": "My network", "dataset": "fashion_mnist", "images": n_images(), "classes": 10}
    given |= {"threat": ["norm=Linf", "eps=8/255"]}
    given |= {"predictions": [f"{name}={path}" for name, path in files.items()]} | changes
    words = ["record"]
    for name, value in given.items():
        if value is not None:
            words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return words


@pytest.mark.parametrize("method", ["adv", "std"])
def test_a_record_has_the_figures_of_its_tables(folder, method):
    study = "fashion_mnist_quick"  # which asks for no AutoAttack
    path = record_network(load_study(study), method, 0, {})
    (record,) = read_records(folder).values()
    assert path.name == f"{study}-{method}-seed0.json" and record.autoattack_acc is None
    assert record.eps == "0.1"
    for benchmark, found in record.classwise.benchmarks.items():
        table = read_predictions(
            ROOT / f"results/{study}/predictions/{benchmark}/{method}-seed0.parquet"
        )
        classes, summary = metrics.class_error(table), metrics.class_summary(table)
        assert found.errors == pytest.approx(classes.error.tolist(), abs=1e-6)
        assert found.n_images == classes.n_images.tolist() and found.drawn is None
        expected = metrics.summarise(table).set_index("statistic")
        for name, estimate in found.statistics.items():
            assert estimate.value == pytest.approx(expected.value[name], abs=1e-6)
            if estimate.low is None:  # the spread where every image is broken
                assert set(found.errors) == {1} and name in ("sd", "sd_noise_corrected")
                continue
            assert estimate.low <= estimate.value <= estimate.high
        if benchmark == "clean":
            right = 100 * (1 - metrics.error(table))
            assert float(record.clean_acc) == pytest.approx(right, abs=0.00501)
            name = record.classwise.class_names[int(summary.worst_class)]
            assert found.worst_class == name
            for name in ("error", "sd_noise_corrected"):  # as the book's other pages say
                ends = expected.loc[name, ["low", "high"]].tolist()
                estimate = found.statistics[name]
                assert [estimate.low, estimate.high] == pytest.approx(ends, abs=5e-4)
    if method == "std":  # every image is broken
        assert record.classwise.benchmarks["pgd40"].worst_class is None


def test_the_committed_records_are_those_of_the_published_tables(folder):
    """After a study is published anew: `python -m advbook record --study <id>`."""
    one = {record.classwise.study: path for path, record in read_records(COMMITTED).items()}
    assert len(one) >= 4
    for study, path in one.items():
        if study is not None:
            of = json.loads(path.read_text())["classwise"]
            again = record_network(load_study(study), of["method"], of["seed"], {})
            assert again.read_text() == path.read_text(), path.name


def test_the_committed_schema_is_that_of_the_code_and_of_the_records():
    """`python -m advbook.zoo.leaderboard` writes it."""
    schema = json.loads((COMMITTED / "schema.json").read_text())
    assert schema == json.loads(leaderboard.json_schema())
    for path, record in read_records(COMMITTED).items():
        plain = json.loads(path.read_text())
        jsonschema.validate(plain, schema)
        assert leaderboard.Record(**plain) == record and dataclasses.asdict(record) == plain
    for wrong in ({"clean_acc": 62.4}, {"rank": 1}, {"classwise": {}}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(plain | wrong, schema)


def test_a_fresh_run_goes_first_and_autoattack_is_taken_along(folder):
    study = load_study("fashion_mnist_quick")
    for place in ("predictions/clean", "predictions/pgd40"):
        shutil.copytree(study.published / place, study.runs / place)
    shutil.copy(study.published / "data.json", study.runs)
    path = study.runs / "predictions/pgd40/adv-seed0.parquet"
    table, facts = read_predictions(path), read_facts(path)
    stands = metrics.correct(table)
    table["drawn"] = stands & (table[stands].groupby("label").cumcount() < 20)
    fell = table.drawn & (np.arange(len(table)) % 3 == 0)
    table["broken_by"] = np.select([~stands, fell], ["cheap", "apgd_t"], "")
    facts |= {"width": study.autoattack_width}
    write_predictions(table, study.runs / "audit/autoattack/adv-seed0.parquet", **facts)
    record_network(study, "adv", 0, {"authors": "A. B."})
    (record,) = read_records(folder).values()
    found, expected = record.classwise.benchmarks["autoattack"], metrics.two_phase(table)
    assert record.authors == "A. B." and found.drawn == expected.classes.drawn.tolist()
    assert found.errors == pytest.approx(expected.classes.error.tolist(), abs=1e-6)
    error = expected.statistics.value[0]
    assert float(record.autoattack_acc) == pytest.approx(100 * (1 - error), abs=0.006)
    assert error > record.classwise.benchmarks["pgd40"].statistics["error"].value


def test_brought_predictions_become_a_record(folder, files, capsys):
    main(command(files, about=["architecture=ResNet-18", "additional_data=true"]))
    path = folder / "fashion_mnist-My-network.json"
    assert capsys.readouterr().out == f"{path}\n"
    record, ours = (
        read_records(folder)[path],
        record_network(load_study("fashion_mnist_quick"), "adv", 0, {}),
    )
    ours = read_records(folder)[ours].classwise
    assert record.classwise.benchmarks == ours.benchmarks
    assert record.classwise.class_names == ours.class_names
    assert (record.eps, record.architecture, record.additional_data) == ("8/255", "ResNet-18", True)
    assert record.classwise.threat.steps == 40 and record.classwise.selection is None
    assert set(dataclasses.asdict(record)) == set(
        "link name authors additional_data number_forward_passes dataset venue architecture eps "
        "clean_acc reported autoattack_acc footnote unreliable classwise".split()
    )

    main(command(files, selection="last epoch"))  # the same network may be written again
    assert read_records(folder)[path].classwise.selection == "last epoch"
    with pytest.raises(SystemExit, match="My-network.json is the record of another network, 'My"):
        main(command(files | {"clean": files["pgd40"]}))
    with pytest.raises(SystemExit, match="My-network.json is the record of another network"):
        main(command(files | {"clean": files["pgd40"]}, dataset="clothes"))


def test_one_file_may_hold_all_benchmarks_of_many_classes(folder, tmp_path):
    """The worst tenth is told where it is more than one class."""
    labels = np.repeat(np.arange(20), 30)
    rng = np.random.default_rng(0)
    clean = pd.DataFrame({"file_name": [f"{i}.png" for i in range(600)], "label": labels})
    parts = []
    for attack, share in (("none", 0.1), ("pgd40", 0.4), ("autoattack", 0.5)):
        wrong = rng.random(600) < share * (0.5 + labels / 20)
        predicted = np.where(wrong, (labels + 1) % 20, labels)
        parts.append(clean.assign(predicted_class=predicted, attack=attack))
    fog = parts[0].assign(corruption="fog", severity=1)
    table = pd.concat([*parts, fog]).assign(predicted_probability=0.5)
    table.to_csv(tmp_path / "all.csv", index=False)
    files = dict.fromkeys(leaderboard.BENCHMARKS, tmp_path / "all.csv")
    main(command(files, dataset="mine", images=600, classes=20))
    (record,) = read_records(folder).values()
    for part, name in zip(parts, leaderboard.BENCHMARKS, strict=True):
        found = record.classwise.benchmarks[name]
        assert found.errors == pytest.approx(metrics.class_error(part).error.tolist(), abs=1e-6)
        decile = found.statistics["worst_decile"]
        worst = metrics.class_summary(part).worst_decile
        assert decile.value == pytest.approx(worst, abs=1e-6)
        assert decile.low < decile.value < decile.high
    assert record.classwise.class_names[3] == "class 3"


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"threat": None}, "lacks --threat norm=… eps=…"),
        ({"threat": ["norm=Linf"]}, "lacks --threat norm=… eps=…"),
        ({"threat": ["norm=Linf", "eps=8"]}, "did you mean 8/255"),
        ({"threat": ["norm=Linf", "eps=0.1", "step=3"]}, "unknown parameter 'step'.*'steps'"),
        ({"threat": ["norm=Linf", "eps=0.1", "steps=20"]}, "pgd40 takes 40 steps, .* steps=20"),
        ({"images": None}, "lacks --images"),
        ({"classes": None}, "lacks --classes"),
        ({"name": None}, "lacks --name"),
        ({"images": 10_001}, r"images in one condition, 10001 expected"),
        ({"classes": 100}, "fashion_mnist has 10 classes, and --classes says 100"),
        ({"classes": 12, "dataset": "mine"}, "2 classes have no image, 'class 10' first"),
        ({"selection": "the best"}, "--selection is one of last epoch, .* got 'the best'"),
        ({"about": ["additional_data=perhaps"]}, "additional_data is .* got 'perhaps'"),
        ({"about": ["clean_acc=99"]}, "unknown parameter 'clean_acc'"),
    ],
)
def test_what_a_record_lacks_is_refused(folder, files, changes, said):
    with pytest.raises(SystemExit, match=said):
        main(command(files, **changes))
    assert not list(folder.glob("*"))


def test_tables_that_do_not_belong_together_are_refused(folder, files):
    with pytest.raises(SystemExit, match="lacks --predictions pgd40=FILE"):
        main(command({"clean": files["clean"]}))
    with pytest.raises(
        SystemExit, match="benchmark is one of clean, pgd40, autoattack, got 'fgsm'"
    ):
        main(command(files | {"fgsm": files["pgd40"]}))
    table = pd.read_csv(files["pgd40"])
    renamed = table.assign(file_name=table.file_name.where(table.index > 0, "other.png"))
    renamed.to_csv(files["pgd40"], index=False)
    said = "clean and pgd40 are not about the same images with the same labels: 2 differ"
    with pytest.raises(SystemExit, match=said):
        main(command(files))
    table.assign(attack="fgsm").to_csv(files["pgd40"], index=False)
    with pytest.raises(SystemExit, match="pgd40.csv has no rows of pgd40, as its column attack"):
        main(command(files))
    pd.concat([table.assign(seed=s) for s in (0, 1)]).to_csv(files["pgd40"], index=False)
    with pytest.raises(SystemExit, match="pgd40 has .* rows: keep one of each image"):
        main(command(files))
    assert not list(folder.glob("*"))


def test_a_study_that_does_not_know_its_attack_or_has_no_tables_is_refused(folder, tmp_path, files):
    settings = {"study": "brought", "dataset": "none", "attacks": ["pgd40"]}
    settings["predictions"] = {"mine": str(files["clean"])}
    (tmp_path / "brought.yaml").write_text(json.dumps(settings))  # JSON is YAML
    with pytest.raises(SystemExit, match="does not know their threat model: record them by"):
        main(["record", "--study", str(tmp_path / "brought.yaml")])
    with pytest.raises(SystemExit, match="data.json is missing: run `make book STUDY=imagenet`"):
        main(["record", "--study", "imagenet", "--method", "adv"])
    with pytest.raises(SystemExit, match="method is one of pretrained, .* got 'adversarial'"):
        main(["record", "--study", "cifar10", "--method", "adversarial"])
    with pytest.raises(SystemExit, match="adv-seed7.parquet is missing"):
        main(["record", "--study", "cifar10", "--method", "adv", "--seed", "7"])


def test_a_damaged_record_is_named(folder):
    path = record_network(load_study("cifar10"), "adv", 0, {})
    record = json.loads(path.read_text())
    del record["classwise"]["threat"]
    path.write_text(json.dumps(record))
    with pytest.raises(
        ValueError, match="cifar10-adv-seed0.json: the key 'classwise.threat' is mi"
    ):
        read_records(folder)


def test_the_page_shows_every_record(folder, files):
    for name in ("adv", "adv_plus"):
        record_network(load_study("cifar10"), name, 0, {})
    own = {"autoattack": files["pgd40"]}
    main(command(files | own, threat=["norm=L2", "eps=0.5", "label_source=predicted"]))
    page = run_notebook("leaderboard", folder=str(folder))
    (chart,), (table,) = page.shown["fig-records"], page.shown["tab-leaderboard"]
    chart, table = json.dumps(chart.to_dict()), as_text(table)
    for name in ("Adv, CIFAR-10, seed 0", "Adv⁺, CIFAR-10, seed 0", "My network"):
        assert name in table and json.dumps(name)[1:-1] in chart
    assert "leaves the predicted label" in table and "AutoAttack, worst class" in table
    assert 'class="sortable"' in table


def test_a_readers_better_network_leaves_the_page_whole(tmp_path):
    """The page speaks of the book's networks, whatever stands beside them."""
    folder = shutil.copytree(ROOT / "results/leaderboard", tmp_path / "records")
    better = json.loads((folder / "cifar10_zoo-dafa-seed0.json").read_text())
    better["name"] = "My network"
    for found in better["classwise"]["benchmarks"].values():
        found["statistics"]["worst"] = {"value": 0.1, "low": 0.08, "high": 0.12}
    (folder / "mine.json").write_text(json.dumps(better))
    page = run_notebook("leaderboard", folder=str(folder))
    assert {"My network", "FAAL"} <= {*page.names["points"].label}
    assert (page.glued["colour"], page.glued["gray"]) == ("76.5%", "50.2%")


def test_a_click_on_a_heading_sorts(browser, tmp_path):
    """Numbers by their size, words by the alphabet, what is not there last."""
    cells = [("b", "9.5 [8.0, 10.0]"), ("c", "10.2"), ("a", "–"), ("d", "−1.0")]
    rows = "".join(f"<tr><td>{name}</td><td>{value}</td></tr>" for name, value in cells)
    script = (ROOT / "book/_static/book.js").read_text()
    page = tmp_path / "page.html"
    page.write_text(
        f"<meta charset='utf-8'><script>{script}</script><table class='sortable'><thead><tr>"
        f"<th>name</th><th>error</th></tr></thead><tbody>{rows}</tbody></table>"
    )
    opened = browser.new_page()
    opened.goto(page.as_uri())
    order = "[...document.querySelectorAll('td:first-child')].map((c) => c.textContent).join('')"
    for heading, expected in (("error", "dbca"), ("error", "cbda"), ("name", "abcd")):
        opened.get_by_role("button", name=heading).click()
        assert opened.evaluate(order) == expected
    assert opened.locator("th[aria-sort]").text_content() == "name"
    opened.close()
