import dataclasses
import json
import re
import subprocess
import sys

import jsonschema
import pytest
import yaml

from advbook.studies.identity import data_settings, recipe_of, training_settings
from advbook.studies.inputs import audit_set, images_of
from advbook.studies.parameters import notebook_parameters
from advbook.studies.places import data_root, named_file, tables_folder
from advbook.studies.schema import (
    ROOT,
    STUDIES,
    Study,
    find_study,
    json_schema,
    load_study,
    make_study,
)
from advbook.studies.views import to_make
from advlib.recipes import RECIPES

SHORT = {"study": "mine", "dataset": "digits", "model": "cifar_resnet8", "pretrain_epochs": 1}


SHARES = {"pgd40_half": 0.5, "pgd40_double": 2}  # of the study's ε


@pytest.mark.parametrize("path", sorted(STUDIES.glob("*.yaml")), ids=lambda p: p.stem)
def test_committed_studies_are_valid(path):
    study = load_study(path)
    assert study.study == path.stem
    for attack in study.attacks:
        assert study.threat(attack).eps / study.eps == pytest.approx(SHARES.get(attack, 1))


def test_the_committed_json_schema_is_that_of_the_code():
    """Else editors would complete what is refused: `python -m advbook.studies.schema` writes it."""
    committed = json.loads((STUDIES / "study.schema.json").read_text(encoding="utf-8"))
    assert committed == json.loads(json_schema())
    keys = {key.name for key in dataclasses.fields(Study)}
    assert set(committed["properties"]) == keys and committed["additionalProperties"] is False
    for path in STUDIES.glob("*.yaml"):
        text = path.read_text(encoding="utf-8")
        assert text.startswith("# yaml-language-server: $schema=study.schema.json\n")
        jsonschema.validate(yaml.safe_load(text), committed)
    for wrong in ({"epocs": 3}, {"epochs": "3"}, {"dataset": "digit"}, {"delta": 1}, {"seeds": 0}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(SHORT | wrong, committed)
    jsonschema.validate(SHORT | {"eps": "8/255"}, committed)


def test_a_changed_study_is_checked_too():
    study = make_study(SHORT)
    with pytest.raises(
        ValueError, match="^eps is a finite number or a text such as '8/255', got 'x'$"
    ):
        dataclasses.replace(study, eps="x")
    with pytest.raises(dataclasses.FrozenInstanceError):
        study.eps = 0.1


def test_the_imagenet_study_is_the_papers():
    study = load_study("imagenet")
    paper = dict(
        model="resnet50", weights="DEFAULT", epochs=10, lr=0.01, lr_final_factor=1e-4,
        momentum=0.9, batch_size=64, eval_batch_size=64, norm="Linf", eps=0.03, train_steps=10,
        delta=0.03,
    )  # fmt: skip
    assert {key: getattr(study, key) for key in paper} == paper
    assert study.threat("pgd40").steps == 40


@pytest.mark.parametrize(
    "change, said",
    [
        ({"epocs": 3}, "unknown parameter 'epocs': did you mean 'epochs'"),
        ({"zzz": 3}, "known are study, dataset"),
        ({"epochs": "3"}, "epochs is a valid integer, got '3'"),
        ({"epochs": True}, "epochs is a valid integer, got True"),
        ({"epochs": 0}, "epochs is greater than or equal to 1, got 0"),
        ({"eps": 8}, "^ε is in .*; did you mean 8/255"),
        ({"eps": "8:255"}, "eps is a finite number or a text"),
        ({"lr": -1}, "lr is greater than 0, got -1"),
        ({"lr": float("inf")}, "lr is a finite number .*got inf"),
        ({"weight_decay": "1e400"}, "weight_decay is a finite number"),
        ({"momentum": 1}, "momentum is less than 1"),
        ({"mean": [float("nan")], "std": [1]}, "mean is a finite number .*got nan"),
        ({"mean": [123.7], "std": [58.4]}, "mean is less than or equal to 1, got 123.7"),
        ({"train_step_size": float("nan")}, "train_step_size is a finite number"),
        ({"train_step_size": 0}, "^train_step_size is greater than 0"),
        ({"train_steps": 0}, "^train_steps is greater than or equal to 1"),
        ({"norm": "linf"}, "^norm is 'Linf' or 'L2'"),
        ({"n_resamples": 10**11}, "n_resamples is less than or equal to 1000000, got 1000"),
        ({"num_transforms": 10**9}, "num_transforms is less than or equal to 1000,"),
        ({"seeds": [2**63]}, "seeds is less than"),
        ({"class_names": ["a", "b"]}, "digits has names of its own: leave class_names out"),
        ({"delta": 1}, "delta is less than 1"),
        ({"methods": ["adv", "advplus"]}, "methods is one of pretrained"),
        ({"methods": "adv"}, "methods is a valid list"),
        ({"seeds": [0, 0]}, "without repetition"),
        ({"attacks": ["pgd41"]}, "attacks is one of pgd10_train"),
        ({"study": "a b"}, "letters, digits"),
        ({"study": "a;{b}"}, "letters, digits"),
        ({"study": "paper"}, "other than 'paper'"),
        (
            {"study": "benchmark"},
            "'imagenet_models', 'leaderboard'; got 'benchmark'",
        ),
        ({"study": "plan"}, "got 'plan'"),
        ({"study": "18"}, "with a letter"),
        ({"study": "1e5"}, "no number"),
        ({"study": "nan"}, "no number"),
        ({"train_images": -5}, "train_images is greater than or equal to 1"),
        ({"holdout_images": -5}, "holdout_images is greater than or equal to 0"),
        ({"seeds": [-1]}, "seeds is greater than or equal to 0"),
        ({"methods": ["adv"]}, "name at least two"),
        ({"pretrain_epochs": 0}, "needs pretrain_epochs"),
        ({"augment": "flip"}, "augment is 'none', 'crop'"),
        ({"model": ""}, "the key 'model' is missing"),
        ({"mean": [0.5]}, "mean and std are given together"),
        ({"mean": [0.5], "std": [0.0]}, "std is greater than or equal to 0.001"),
        ({"interpolation": "nearest"}, "interpolation is 'bilinear' or 'bicubic'"),
        ({"corruptions": "some"}, "corruptions is 'generated', 'published' or 'none'"),
        ({"corruption_images": 0}, "corruption_images is greater than or equal to 1"),
        ({"groups": {"a": ["x", "y"], "b": ["y"]}}, "groups: y in more than one place"),
        ({"groups": {"a": "x"}}, "groups is a valid list"),
        ({"groups": {"a": ["x"], " ": ["y"]}}, "groups: number 2 of 2, '', is empty"),
        ({"groups": {"a b": ["x"], "a  b ": ["y"]}}, "groups: number 2 of 2, 'a b', is .* there"),
        ({"class_names": ["hen", "crane", "crane"]}, "number 3 of 3, 'crane', is"),
        ({"class_names": ["hen", ""]}, "class_names: number 2 of 2, '', is"),
        ({"checkpoints": {"Adv": "f.pt"}, "methods": ["Adv", "adv"]}, "2 of 2, 'Adv', is"),
        ({"checkpoints": {"a b": "f.pt"}}, "letters, digits"),
        ({"checkpoints": {"a": "f.pt"}, "methods": ["std", "adv"]}, "leaves out the checkpoints a"),
        ({"predictions": {"a": "f.csv"}, "methods": ["std"]}, "holds nothing else"),
        ({"predictions": "f.csv", "dataset": "digits"}, "dataset is one of imagenet, none"),
        ({"predictions": "f.csv", "dataset": "none", "seeds": [1]}, "leave seeds out"),
        ({"checkpoints": {"a": "f.pt"}, "seeds": [0, 1]}, "leave seeds out"),
        ({"checkpoints": {"18": "f.pt"}}, "with a letter.* got '18': write"),
        ({"checkpoints": {"label": "f.pt"}}, "none of label, .* got 'label'"),
        ({"predictions": {"0.3": "f.csv"}, "dataset": "none"}, "with a letter"),
        ({"ablations": {"0.3": {"method": "adv", "lr": 1}}}, "with a letter.* got '0.3'"),
        ({"ablations": {"place": {"method": "adv", "lr": 1}}}, "none of label.* got 'place'"),
        ({"dataset": "digit"}, "dataset is 'digits', .* got 'digit'"),
        ({"dataset": "none", "checkpoints": {"a": "f.pt"}}, "dataset is one of digits"),
        ({8: "x", True: "y"}, "unknown parameter 8: known are study"),
        ({"ablations": {"a": {True: 1}}}, "unknown parameter True: known are method"),
        ({"ablations": {"a": {"method": ["adv"]}}}, "a: method is a name, got"),
        ({"ablations": {"a": {"method": "adv", "options": 5}}}, "a: options is a mapping, got 5"),
        ({"zoo": True, "methods": ["pretrained", "trades", "dafa"]}, "with adv, under pgd40"),
        ({"eps": "1e-99999999/1"}, "eps is a finite number"),
    ],
)
def test_bad_values_name_their_key(change, said):
    with pytest.raises(ValueError, match=said):
        make_study(SHORT | change)


def test_what_a_study_compares():
    """Methods, names, pairs and benchmarks of trained, brought and mixed studies."""
    paper = make_study(SHORT)
    assert paper.methods == ["pretrained", "std", "adv", "adv_plus"]
    assert paper.pairs == [("std", "adv"), ("std", "adv_plus"), ("adv", "adv_plus")]
    assert paper.benchmarks == ("clean", "pgd40", "corruptions")
    other = make_study(SHORT | {"methods": ["pretrained", "adv", "trades"]})
    assert other.pairs == [("adv", "trades")]  # all start from pretrained
    own = make_study(SHORT | {"checkpoints": {"ours": "a.pt", "theirs": "b.pt"}})
    assert own.methods == ["ours", "theirs"] and own.pairs == [("ours", "theirs")]
    assert "training" in own.unavailable and own.names == {"ours": "ours", "theirs": "theirs"}
    files = {"adv": "a.csv", "adv_plus": "b.csv"}
    read = make_study({"study": "s", "dataset": "imagenet", "predictions": files})
    assert read.benchmarks == ("clean",) and read.names == {"adv": "Adv", "adv_plus": "Adv⁺"}
    assert set(read.unavailable) == {"training", "corruptions", "gallery"}
    read = make_study({"study": "s", "dataset": "none", "predictions": "some/net.csv.gz"})
    assert read.predictions == {"net": "some/net.csv.gz"} and read.pairs == []
    assert {"factors", "evaluate_real", "evaluate_imagenet_x", "groups"} <= set(read.unavailable)


def test_numbers_in_lists_may_be_fractions():
    assert make_study(SHORT | {"mean": ["1/2"], "std": [1]}).mean == [0.5]


def test_epsilon_as_a_fraction():
    assert make_study(SHORT | {"eps": "8/255"}).eps == 8 / 255


def test_missing_studies_list_the_known(tmp_path):
    with pytest.raises(FileNotFoundError, match="fashion_mnist_quick"):
        load_study("nope")
    (tmp_path / "list.yaml").write_text("- a\n- b\n")
    with pytest.raises(ValueError, match="list.yaml: expected lines of `key: value`, got list"):
        load_study(tmp_path / "list.yaml")
    (tmp_path / "broken.yaml").write_text("a: [1\n")
    with pytest.raises(ValueError, match="not valid YAML"):
        load_study(tmp_path / "broken.yaml")
    for text in ("eps: 0.1\nstudy: a\neps: 0.2\n", "groups: {eps: [a], eps: [b]}\n"):
        (tmp_path / "twice.yaml").write_text(text)
        with pytest.raises(ValueError, match="twice.yaml is not .* key 'eps' comes twice: leave"):
            load_study(tmp_path / "twice.yaml")
    (tmp_path / "latin.yaml").write_bytes("title: Vögel\n".encode("latin-1"))
    with pytest.raises(ValueError, match="latin.yaml: 'utf-8' codec can't decode"):
        load_study(tmp_path / "latin.yaml")


def test_paths_do_not_depend_on_the_working_directory(tmp_path, monkeypatch):
    study = make_study(SHORT | {"data_dir": "here"})
    monkeypatch.chdir(tmp_path)
    assert data_root(study) == ROOT / "here"
    monkeypatch.delenv("ADVLIB_RUNS")
    assert study.runs == ROOT / "runs" / "mine"
    assert load_study("digits").study == "digits"


def test_notebook_parameters_from_a_study_file():
    injected = SHORT | {"eps": "8/255", "method": "adv", "seed": 1}
    study, own = notebook_parameters(injected, method=RECIPES, seed=int)
    assert study == Study(**SHORT, eps=8 / 255)
    assert (own.method, own.seed) == ("adv", 1)


def test_other_values_than_the_files_get_runs_of_their_own():
    """A trial must neither overwrite a study's tables nor be taken for them."""
    study, _ = notebook_parameters({"study": "digits", "epochs": 1})
    filed = load_study("digits")
    assert study.study.startswith("digits-") and study.runs != filed.runs
    assert study == dataclasses.replace(filed, epochs=1, study=study.study)
    again, _ = notebook_parameters(filed.to_dict() | {"epochs": 1})
    assert again == study
    same, _ = notebook_parameters(filed.to_dict())
    assert same == filed


def test_a_trial_of_a_file_elsewhere_gets_runs_of_its_own(tmp_path):
    """Whatever the file is called, and wherever it lies."""
    from advbook.studies.runs import read_run

    file = tmp_path / "my study.yaml"
    file.write_text("\n".join(f"{key}: {value}" for key, value in SHORT.items()))
    plain, _ = notebook_parameters({"study": str(file)})
    trial, _ = notebook_parameters({"study": str(file), "eps": "60/255"})
    assert plain == make_study(SHORT) and trial.runs != plain.runs
    said = re.escape(f"-p study '{file}' -p method adv -p seed 0")
    with pytest.raises(FileNotFoundError, match=f"{said}, with the same parameters"):
        read_run(trial, "adv", 0)
    with pytest.raises(FileNotFoundError, match=f"{said}$"):
        read_run(plain, "adv", 0)
    with pytest.raises(FileNotFoundError, match=re.escape(f"run `make book STUDY='{file}'`")):
        tables_folder(plain, "fresh")


def test_a_network_of_other_settings_than_the_studys_is_not_judged():
    from advbook.studies.runs import load_run

    study = load_study("fashion_mnist_quick")
    assert load_run(study, "adv", 0, "committed")[1]["method"] == "adv"
    changed = dataclasses.replace(study, lr=0.2, eps=0.2)
    with pytest.raises(ValueError, match="trained with another lr, threat than .*train.ipynb"):
        load_run(changed, "adv", 0, "committed")


def test_predictions_without_an_id_have_a_folder_of_their_own(tmp_path, monkeypatch):
    """Two at once, or one after the other, are two, also where paths from two folders are equal."""
    given = {"study": "", "dataset": "none", "predictions": "a.csv"}
    found = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.csv").touch()
        monkeypatch.chdir(tmp_path / name)
        found += [notebook_parameters(given)[0].study for _ in range(2)]
    assert found[0] == found[1] != found[2] == found[3]
    assert "bring_your_own.ipynb with these files again" in to_make(notebook_parameters(given)[0])


def test_of_two_files_at_one_path_none_is_taken(tmp_path, monkeypatch):
    """From the project's folder and from the working directory: which is meant?"""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("advbook.studies.places.ROOT", tmp_path / "project")
    for folder in (tmp_path, tmp_path / "project"):
        folder.mkdir(exist_ok=True)
        (folder / "a.csv").write_text("the same")
    assert named_file("a.csv") == tmp_path / "project/a.csv"
    (tmp_path / "a.csv").write_text("another")
    for find in (named_file, find_study):
        with pytest.raises(ValueError, match="two files a.csv, which differ.* whole path"):
            find("a.csv")
    (tmp_path / "project/a.csv").unlink()
    assert named_file("a.csv").read_text() == "another"


@pytest.mark.parametrize("name", [5, 1.5, None, ""])
def test_a_study_is_named_by_a_text(name):
    with pytest.raises(ValueError, match="study is an id or the path of a study file, got"):
        load_study(name)


def test_bad_input_ends_a_command_with_its_sentence():
    for command in (["pipeline/jobs.py"], ["-m", "advbook", "train", "--method", "adv", "--study"]):
        done = subprocess.run(
            [sys.executable, *command, "nosuch"], cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == 1 and done.stderr.count("\n") == 1
        assert ": no study 'nosuch': expected one of" in done.stderr


def test_a_trial_that_is_not_trained_names_the_study_that_there_is():
    from advbook.studies.runs import read_run

    study, _ = notebook_parameters({"study": "digits", "epochs": 1})
    with pytest.raises(FileNotFoundError) as error:
        read_run(study, "std", 0)
    assert "-p study digits -p method std -p seed 0, with the same parameters" in str(error.value)
    with pytest.raises(FileNotFoundError, match="-p study digits -p method std -p seed 0$"):
        read_run(load_study("digits"), "std", 0)


def test_a_note_decides_nothing():
    """Words on a page: tables stay current, and runs stay where they are."""
    study = load_study("digits")
    noted = dataclasses.replace(study, note="Another text.")
    assert study.note and data_settings(noted) == data_settings(study)
    settings = [training_settings(one, "adv_plus", 0, "", None) for one in (study, noted)]
    assert settings[0] == settings[1]
    assert notebook_parameters(noted.to_dict())[0].study == "digits"


def test_the_check_may_run_again(tmp_path):
    """By hand, `study` is then the study itself and not its name."""
    study, _ = notebook_parameters({"study": "digits"})
    again, own = notebook_parameters({"study": study, "seed": 3}, seed=int)
    assert again == study and own.seed == 3


@pytest.mark.parametrize(
    "change, said",
    [
        ({"metod": "adv"}, "unknown parameter 'metod': did you mean 'method'"),
        ({"method": "advv"}, "method is one of"),
        ({"seed": "0"}, "seed is of type int"),
        ({"seconds": float("inf")}, "seconds is a finite number"),
        ({"seed": True}, "seed is of type int"),
        ({"epochs": -1}, "epochs is greater than or equal to 1"),
    ],
)
def test_mistyped_notebook_parameters_are_refused(change, said):
    with pytest.raises(ValueError, match=said):
        notebook_parameters(
            {"study": "digits", "method": "adv", "seed": 0, "seconds": 1} | change,
            method=RECIPES,
            seed=int,
            seconds=float,
        )


def test_what_a_notebook_computed_is_not_taken_for_a_parameter():
    """By hand in JupyterLab the first cells may run again after all the others."""
    cells = ["", "# Parameters\nstudy = 'digits'\nseed = 0", "n = 5"]
    study, own = notebook_parameters({"In": cells, "study": "digits", "seed": 0, "n": 5}, seed=int)
    assert own.seed == 0
    mistyped = ["", cells[1] + "\nsed = 1", "check"]
    values = {"study": "digits", "seed": 0, "sed": 1}
    with pytest.raises(ValueError, match="unknown parameter 'sed'"):
        notebook_parameters({"In": mistyped, **values}, seed=int)
    mended = [*mistyped, cells[1], "check"]
    assert notebook_parameters({"In": mended, **values}, seed=int)[1].seed == 0


def test_a_notebook_about_no_study_has_its_parameters_checked():
    assert notebook_parameters({"published": "a.csv"}, published=str)[1].published == "a.csv"
    with pytest.raises(ValueError, match="'publishd': did you mean 'published'"):
        notebook_parameters({"published": "a.csv", "publishd": "b"}, published=str)


def test_an_l2_radius_may_exceed_one():
    study = make_study(SHORT | {"norm": "L2", "eps": 2.0})
    assert (study.threat("pgd40").norm, study.threat("pgd40").eps) == ("L2", 2.0)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"method": "adv_minus"}, "adv_minus"),
        ({"method": "pretrained"}, "pretrained"),
        ({"method": "adv", "batch_size": 3}, "batch_size"),
        ({"method": "adv_plus", "delta": 1.5}, "ablation new: delta"),
        ({"method": "adv", "delta": 0.3}, "trained just as adv is"),
        ({"method": "adv_plus", "delta": 0.3, "title": "Adv"}, "titles .* 'Adv', is"),
        ({"method": "adv_plus", "transforms": [{"label": 1}]}, "ablation new.*label"),
        ({"method": "adv_plus", "transforms": [{"steps": 0}]}, "ablation new.*steps"),
        ({"method": "adv_plus", "transforms": [{"loss": "dlr"}]}, "ablation new.*climbs Eq. 4"),
        ({"method": "adv_plus", "transforms": [{}]}, "trained just as adv_plus is"),
    ],
)
def test_an_ablation_that_cannot_be_meant_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        load_study("digits", ablations={"new": changes})


def test_a_transformation_has_a_loss_of_its_own_only_where_that_is_climbed():
    losses = [{"loss": "dlr"}, {"loss": "margin"}]
    with pytest.raises(ValueError, match="attack of adv_plus climbs Eq. 4.*train_objective"):
        load_study("digits", transforms=losses)
    for changes in ({"train_objective": "cross_entropy"}, {"methods": ["std", "adv"]}):
        study = load_study("digits", transforms=losses, **changes)
        assert [threat.loss for threat in study.train_threats] == ["dlr", "margin"]
    # An ablation of Adv climbs them, whatever else the study trains.
    study = load_study("digits", ablations={"new": {"method": "adv", "transforms": losses}})
    assert [
        threat["loss"] for threat in training_settings(study, "new", 0, "", None)["threat"]
    ] == [
        "dlr",
        "margin",
    ]


def test_an_ablation_has_a_name_of_its_own():
    for name in ("adv", "pretrained", "adv_mix"):
        with pytest.raises(ValueError, match="that of no method"):
            load_study("digits", ablations={name: {"method": "adv_plus", "delta": 0.1}})
    study = load_study("digits", ablations={"new": {"method": "adv_plus", "delta": 0.1}})
    assert study.ablation_names == {"new": "new"}


def test_an_ablation_without_the_studys_transformations_has_one_logit():
    study = load_study(
        "digits",
        transforms=[{}, {"steps": 1}],
        ablations={"one": {"method": "adv_plus", "transforms": []}},
    )
    assert study.num_transforms == 2 and recipe_of(study, "one")[0].num_transforms == 1


def test_ablations_leave_the_methods_settings_alone():
    plain = load_study("digits")
    study = load_study("digits", ablations={"new": {"method": "adv_plus", "delta": 0.2}})
    assert training_settings(plain, "adv_plus", 0, "", None) == training_settings(
        study, "adv_plus", 0, "", None
    )
    changed = training_settings(study, "new", 0, "", None)
    assert changed["delta"] == 0.2 and changed["method"] == "adv_plus"


def test_audited_images_are_as_many_of_each_class():
    study = load_study("digits")
    images = images_of(study, "test")
    for asked, got in ((57, 50), (3, 10), (10_000, len(images)), (None, len(images))):
        subset = audit_set(images, asked)
        assert len(subset) == got
        if got < len(images):
            assert subset.labels.unique(return_counts=True)[1].tolist() == [got // 10] * 10
    kept = [i for i, label in enumerate(images.labels) if label != 7 or i < 60]
    rare = images.subset(images.labels.new_tensor(kept))
    assert len(audit_set(rare, 200)) == 10 * (rare.labels == 7).sum() < 100


def test_runs_are_kept_in_a_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("ADVLIB_RUNS", str(tmp_path / "new"))
    assert load_study("digits").runs == tmp_path / "new/digits"


def test_half_and_twice_the_radius_are_those_of_the_study():
    study = load_study("fashion_mnist_quick")
    radii = {name: study.threat(name).eps for name in ("pgd40", "pgd40_half", "pgd40_double")}
    assert radii == {"pgd40": 0.1, "pgd40_half": 0.05, "pgd40_double": 0.2}
    assert study.threat("pgd40_double").step == pytest.approx(2 * study.threat("pgd40").step)
