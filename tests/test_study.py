import dataclasses

import pytest

from advlib.study import (
    METHODS,
    ROOT,
    STUDIES,
    Study,
    load_study,
    make_study,
    notebook_parameters,
)

SHORT = {"study": "mine", "dataset": "digits", "model": "cifar_resnet8", "pretrain_epochs": 1}


@pytest.mark.parametrize("path", sorted(STUDIES.glob("*.yaml")), ids=lambda p: p.stem)
def test_committed_studies_are_valid(path):
    study = load_study(path)
    assert study.study == path.stem
    for attack in study.attacks:
        assert study.threat(attack).eps == study.eps


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
        ({"epochs": "3"}, "epochs is int, got '3'"),
        ({"epochs": True}, "epochs is int, got True"),
        ({"epochs": 0}, "epochs is at least 1"),
        ({"eps": 8}, "did you mean 8/255"),
        ({"eps": "8:255"}, "eps is a number"),
        ({"lr": -1}, "positive"),
        ({"delta": 1}, r"delta is in \[0, 1\)"),
        ({"methods": ["adv", "advplus"]}, "methods is one of pretrained"),
        ({"methods": "adv"}, "methods is list"),
        ({"seeds": [0, 0]}, "without repetition"),
        ({"attacks": ["pgd41"]}, "attacks is one of pgd10_train"),
        ({"study": "a b"}, "letters, digits"),
        ({"pretrain_epochs": 0}, "needs pretrain_epochs"),
        ({"augment": "flip"}, "augment is one of"),
    ],
)
def test_bad_values_name_their_key(change, said):
    with pytest.raises(ValueError, match=said):
        make_study(SHORT | change)


def test_epsilon_as_a_fraction():
    assert make_study(SHORT | {"eps": "8/255"}).eps == 8 / 255


def test_missing_studies_list_the_known(tmp_path):
    with pytest.raises(FileNotFoundError, match="fashion_mnist_quick"):
        load_study("nope")
    (tmp_path / "list.yaml").write_text("- a\n- b\n")
    with pytest.raises(ValueError, match="list of `key: value` lines"):
        load_study(tmp_path / "list.yaml")
    (tmp_path / "broken.yaml").write_text("a: [1\n")
    with pytest.raises(ValueError, match="not valid YAML"):
        load_study(tmp_path / "broken.yaml")


def test_paths_do_not_depend_on_the_working_directory(tmp_path, monkeypatch):
    study = make_study(SHORT | {"data_dir": "here"})
    monkeypatch.chdir(tmp_path)
    assert study.data_root == ROOT / "here"
    monkeypatch.delenv("ADVLIB_RUNS")
    assert study.runs == ROOT / "runs" / "mine"
    assert load_study("digits").study == "digits"


def test_notebook_parameters_from_a_study_file():
    injected = SHORT | {"eps": "8/255", "method": "adv", "seed": 1}
    study, own = notebook_parameters(injected, method=METHODS, seed=int)
    assert study == Study(**SHORT, eps=8 / 255)
    assert (own.method, own.seed) == ("adv", 1)


def test_notebook_parameters_by_hand_with_one_change():
    study, own = notebook_parameters({"study": "digits", "epochs": 1}, **{})
    assert study == dataclasses.replace(load_study("digits"), epochs=1)


@pytest.mark.parametrize(
    "change, said",
    [
        ({"metod": "adv"}, "unknown parameter 'metod': did you mean 'method'"),
        ({"method": "advv"}, "method is one of"),
        ({"seed": "0"}, "seed is a int"),
        ({"seed": True}, "seed is a int"),
        ({"epochs": -1}, "epochs is at least 1"),
    ],
)
def test_mistyped_notebook_parameters_are_refused(change, said):
    with pytest.raises(ValueError, match=said):
        notebook_parameters(
            {"study": "digits", "method": "adv", "seed": 0} | change, method=METHODS, seed=int
        )


def test_what_a_notebook_computed_is_not_taken_for_a_parameter():
    """By hand in JupyterLab the first cells may run again after all the others."""
    cells = ["", "# Parameters\nstudy = 'digits'\nseed = 0", "n = 5"]
    study, own = notebook_parameters({"In": cells, "study": "digits", "seed": 0, "n": 5}, seed=int)
    assert own.seed == 0
    cells[1] += "\nsed = 1"
    with pytest.raises(ValueError, match="unknown parameter 'sed'"):
        notebook_parameters({"In": cells, "study": "digits", "seed": 0, "sed": 1}, seed=int)
