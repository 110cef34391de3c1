"""Prediction tables brought from elsewhere: reading, refusing, and the order of their classes."""

import gzip

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from advlib import metrics
from advlib.data.annotations import imagenet_labels
from advlib.importing import check_label_order, read_predictions
from advlib.predictions import COLUMNS, check_predictions, write_predictions


@pytest.fixture(scope="module")
def validation():
    """ImageNet-X's convention: names, classes and probabilities of all validation images."""
    labels = imagenet_labels().reset_index()
    wrong = np.arange(len(labels)) % 4 == 0
    predicted = np.where(wrong, (labels.label + 7) % 1000, labels.label)
    return pd.DataFrame(
        {
            "file_name": labels.file_name,
            "predicted_class": predicted,
            "predicted_probability": 0.5,
        }
    )


def written(table, path):
    if path.suffix == ".parquet":
        table.to_parquet(path, index=False)
    else:
        table.to_csv(path, index=False)
    return path


@pytest.mark.parametrize("name", ["model.csv", "model.csv.gz", "MODEL.CSV", "model.parquet"])
def test_labels_join_by_file_name(validation, tmp_path, name):
    shuffled = validation.sample(frac=1, random_state=0)[list(reversed(validation.columns))]
    found = read_predictions(written(shuffled, tmp_path / name), "imagenet")
    assert list(found.columns) == list(COLUMNS)
    assert found.file_name.tolist() == shuffled.file_name.tolist()
    labels = imagenet_labels()
    assert (found.label.to_numpy() == labels[found.file_name.astype(str)].to_numpy()).all()
    assert (found.label != found.predicted_class).mean() == 0.25


@pytest.mark.parametrize("folder", ["val/n01440764/", "C:\\images\\val\\"])
def test_paths_are_reduced_to_base_names(validation, tmp_path, folder):
    paths = validation.assign(file_name=folder + validation.file_name)
    found = read_predictions(written(paths, tmp_path / "model.csv"), "imagenet")
    assert found.file_name.tolist() == validation.file_name.tolist()


def test_other_data_sets_keep_their_paths(table, tmp_path):
    paths = table.assign(file_name=["cat/1.png", "dog/1.png", "dog/2.png"])
    found = read_predictions(written(paths, tmp_path / "model.csv"))
    assert found.file_name.tolist() == paths.file_name.tolist()


def test_names_that_look_like_numbers_stay_text(table, tmp_path):
    names = ["001", "1", "1.0"]
    found = read_predictions(written(table.assign(file_name=names), tmp_path / "model.csv"))
    assert found.file_name.tolist() == names


def test_whole_floats_are_classes(table, tmp_path):
    floats = table.assign(predicted_class=[0.0, 8.0, 1.0], label=[0.0, 1.0, 2.0])
    for name in ("model.csv", "model.parquet"):
        found = read_predictions(written(floats, tmp_path / name))
        assert found.predicted_class.tolist() == [0, 8, 1]
        assert pd.api.types.is_integer_dtype(found.predicted_class)
        assert pd.api.types.is_integer_dtype(found.label)


def test_unknown_columns_are_left_out(table, tmp_path):
    more = table.assign(note="x", severity=3, corruption="fog", linf=0.1)
    found = read_predictions(written(more, tmp_path / "model.csv"))
    assert list(found.columns) == [*COLUMNS, "corruption", "severity", "linf"]


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_a_file_may_say_which_rows_are_correct(table, tmp_path, ending):
    right = np.arange(len(table)) > 0
    for values in (right, right.astype(int)):
        path = written(table.assign(correct=values), tmp_path / f"model.{ending}")
        assert metrics.correct(read_predictions(path)).tolist() == right.tolist()
    for values in (right.astype(int) + 1, ["yes"] * len(table), [True] * (len(table) - 1) + [None]):
        path = written(table.assign(correct=values), tmp_path / f"model.{ending}")
        with pytest.raises(ValueError, match="the column correct must hold True or False"):
            read_predictions(path)


def test_a_csv_of_a_spreadsheet_is_read(table, tmp_path):
    """A byte order mark, quotes, blanks after commas, other line ends, a numbered first column."""
    lines = ['"", "file_name", "label", "predicted_class", "predicted_probability"']
    lines += ['1, "a", 0, 0, 0.9', '2, "b", 1, 1, 0.8', '3, "c", 2, 1, 0.5', ""]
    path = tmp_path / "model.csv"
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    pd.testing.assert_frame_equal(read_predictions(path), table)


def test_a_parquet_index_is_a_column(table, tmp_path):
    table.set_index("file_name").to_parquet(tmp_path / "model.parquet")
    assert read_predictions(tmp_path / "model.parquet").file_name.tolist() == ["a", "b", "c"]


def test_parquet_is_read_in_compact_types(table, tmp_path):
    clean = table.assign(corruption=None, severity=None)
    parts = [clean, *(table.assign(corruption="fog", severity=s) for s in (1, 2))]
    mixed = pd.concat(parts, ignore_index=True)
    path = tmp_path / "model.parquet"
    # Several row groups: each has a dictionary of its own.
    pq.write_table(pa.Table.from_pandas(mixed), path, row_group_size=2)
    found = read_predictions(path)
    assert isinstance(found.file_name.dtype, pd.CategoricalDtype)
    assert isinstance(found.corruption.dtype, pd.CategoricalDtype)
    assert found.label.dtype == found.predicted_class.dtype == np.int32
    assert found.predicted_probability.dtype == np.float32
    assert found.file_name.tolist() == ["a", "b", "c"] * 3
    assert found.corruption.isna().sum() == 3 and found.severity.tolist()[3:] == [1] * 3 + [2] * 3
    again = read_predictions(write_predictions(found, tmp_path / "again.parquet"))
    pd.testing.assert_frame_equal(again, found)


def test_numbers_too_large_for_the_compact_type_are_refused(table, tmp_path):
    path = written(table.assign(label=[0, 1, 2**40]), tmp_path / "model.parquet")
    with pytest.raises(ValueError, match="1099511627776"):
        read_predictions(path)


@pytest.mark.parametrize(
    "content, said",
    [
        (
            "file_name;label;predicted_class\na;0;0\n",
            "first line is 'file_name;label.*separated by commas",
        ),
        ("file_name\tlabel\tpredicted_class\na\t0\t0\n", "expected a header, separated by commas"),
        ("a,0,0,0.9\nb,1,1,0.8\n", "first line is 'a,0,0,0.9', expected a header"),
        ("", "No columns to parse"),
        ("file_name,label,predicted_class\na,0,0\n", "lacks the columns predicted_probability"),
        ("file_name,predicted_class,predicted_probability\na,0,1\n", "dataset='imagenet'"),
        (f"{','.join(COLUMNS)}\n", "is empty"),
        (f"{','.join(COLUMNS)}\na,0,n01440764,1\n", "whole numbers, got str, such as 'n01440764'"),
        (f"{','.join(COLUMNS)}\na,0,3,1\nb,1,x,1\n", "predicted_class holds .*'x'"),
        (f"{','.join(COLUMNS)}\na,0,3,1\nb,1,2.5,1\n", "predicted_class holds .*2.5"),
        (f"{','.join(COLUMNS)}\na,0,3,1\nb,1,,1\n", "missing values in predicted_class"),
        (f"{','.join(COLUMNS)}\na,0,3,87%\n", "predicted_probability holds numbers.*'87%'"),
        (f"{','.join(COLUMNS)}\na,0,3,87\n", "percentages a division by 100"),
        (f"{','.join(COLUMNS)}\na,0,3,-2.5\n", "logits need a softmax"),
        (f"{','.join(COLUMNS)}\na,0,3,inf\n", "logits need a softmax"),
        (f"{','.join(COLUMNS)}\na,0,3,\n", "missing values in predicted_probability"),
        (f"{','.join(COLUMNS)}\na,0,3,1\na,0,3,1\n", "1 images occur twice, 'a' among them"),
    ],
)
def test_broken_files_are_refused(tmp_path, content, said):
    path = tmp_path / "model.csv"
    path.write_text(content)
    with pytest.raises(ValueError, match=said) as refusal:
        read_predictions(path)
    assert str(path) in str(refusal.value)


def test_text_in_parquet_is_refused(table, tmp_path):
    for change, said in (
        ({"predicted_class": ["n1", "n2", "n3"]}, "whole numbers, got category, such as 'n1'"),
        ({"predicted_class": [True, False, True]}, "whole numbers, got bool, such as 'True'"),
        ({"predicted_probability": ["1", "1", "1"]}, "predicted_probability holds numbers"),
        ({"file_name": [b"a", b"b", b"\xff"]}, "UTF8"),
    ):
        path = written(table.assign(**change), tmp_path / "model.parquet")
        with pytest.raises(ValueError, match=said):
            read_predictions(path)


def test_names_that_a_writer_of_parquet_called_bytes_are_text(table, tmp_path):
    names = ["a.png", "b.png", "é.png"]
    as_bytes = table.assign(file_name=[name.encode() for name in names])
    read = read_predictions(written(as_bytes, tmp_path / "model.parquet"))
    assert read.file_name.tolist() == names


def test_files_that_cannot_be_read_are_named(tmp_path, table):
    with pytest.raises(FileNotFoundError, match="no prediction table .*model.csv"):
        read_predictions(tmp_path / "model.csv")
    for name, said in (("model.xlsx", "ends in .parquet, .csv"), ("model.gz", "ends in")):
        (tmp_path / name).touch()
        with pytest.raises(ValueError, match=said):
            read_predictions(tmp_path / name)
    (tmp_path / "text.parquet").write_text(table.to_csv(index=False))
    whole = gzip.compress(table.to_csv(index=False).encode())
    (tmp_path / "cut.csv.gz").write_bytes(whole[: len(whole) // 2])
    for name in ("text.parquet", "cut.csv.gz"):
        with pytest.raises(ValueError, match=name):
            read_predictions(tmp_path / name)


@pytest.mark.parametrize(
    "change, said",
    [
        (
            lambda t: t.iloc[2:],
            "2 file names of ImageNet's 50,000 .* missing, first ILSVRC2012_val_00000293",
        ),
        (lambda t: pd.concat([t, t.iloc[5:8]]), "3 images occur twice"),
        (lambda t: t.assign(file_name=t.file_name.str[:-5]), "50,000 file names are not those of"),
        (lambda t: t.assign(file_name=[None, *t.file_name[1:]]), "missing values in file_name"),
        (
            lambda t: t.assign(file_name=["x.JPEG", *t.file_name[1:]]),
            "1 file names are not .* first x.JPEG",
        ),
        (
            lambda t: t.assign(predicted_class=t.predicted_class + 1),
            r"in \[0, 1000\), got 1 to 1000; they count from 1\? Then subtract 1",
        ),
        (
            lambda t: t.assign(predicted_class=[1000, *t.predicted_class[1:]]),
            "got 0 to 1000; is there a background class 0",
        ),
        (lambda t: t.assign(predicted_class=[1234, *t.predicted_class[1:]]), "got 0 to 1234$"),
        (lambda t: t.assign(label=7), "49,950 labels are not ImageNet's: .* label 7, expected 0"),
        (lambda t: t.drop(columns="predicted_probability"), "lacks the columns predicted_prob"),
    ],
)
def test_tables_of_other_images_are_refused(validation, tmp_path, change, said):
    path = tmp_path / "model.parquet"
    change(validation).to_parquet(path)
    with pytest.raises(ValueError, match=said):
        read_predictions(path, "imagenet")


def test_a_label_column_that_agrees_is_fine(validation, tmp_path):
    given = validation.assign(label=imagenet_labels().to_numpy())
    found = read_predictions(written(given, tmp_path / "model.parquet"), "imagenet")
    assert found.label.tolist() == given.label.tolist()


def conditions(table):
    """The clean rows, whose corruption is missing, and two severities of fog."""
    clean = table.assign(corruption=None, severity=np.nan)
    foggy = [table.assign(corruption="fog", severity=s) for s in (1, 2)]
    return pd.concat([clean, *foggy], ignore_index=True).astype({"corruption": object})


@pytest.mark.parametrize("kind", ["object", "str", "category"])
def test_a_missing_corruption_is_a_condition(table, kind):
    mixed = conditions(table).astype({"corruption": kind, "file_name": kind})
    assert check_predictions(mixed, n_images=3) is mixed
    with pytest.raises(ValueError, match="1 corrupted images are not among the clean ones.* 'a'"):
        check_predictions(mixed.iloc[1:])
    fewer = mixed[mixed.corruption.isna() | (mixed.file_name != "c")].copy()
    assert check_predictions(fewer, n_images=3) is fewer
    with pytest.raises(ValueError, match=r"2 images .* \(corruption fog, severity 2.0\)"):
        check_predictions(mixed.iloc[:-1])
    with pytest.raises(ValueError, match="1 images occur twice, 'b' among them"):
        check_predictions(pd.concat([mixed, mixed.iloc[[1]]]))


def test_conditions_hold_the_same_images_and_labels(table):
    mixed = conditions(table)
    renamed = mixed.file_name.where(mixed.index != 8, "d")
    with pytest.raises(ValueError, match="2 conditions hold 4 different images, 3 each"):
        check_predictions(mixed.assign(file_name=renamed))
    relabelled = mixed.label.where(mixed.index != 8, 0)
    with pytest.raises(ValueError, match="'c' has different labels"):
        check_predictions(mixed.assign(label=relabelled))


def test_unused_categories_are_no_images(table):
    names = pd.Categorical(table.file_name, categories=["z", "c", "b", "a"])
    check_predictions(table.assign(file_name=names), n_images=3)


def model(k, n, accuracy, seed=0):
    """Labels and predictions of n images a class; the errors fall on any class."""
    rng = np.random.default_rng(seed)
    label = np.repeat(np.arange(k), n)
    return label, np.where(rng.random(k * n) < accuracy, label, rng.integers(0, k, k * n))


def order_of(label, predicted):
    rows = np.random.default_rng(1).permutation(len(label))
    table = pd.DataFrame({"label": label, "predicted_class": predicted}).iloc[rows]
    check_label_order(table)


def test_honest_predictions_pass():
    for k, n, accuracy in [(1000, 50, 0.76), (1000, 50, 0.1), (1000, 50, 0), (1000, 1, 0.76)]:
        order_of(*model(k, n, accuracy))
    for seed in range(50):
        order_of(*model(10, 20, 0.3, seed))
        order_of(*model(2, 100, 0.1, seed))  # right for 55 %
    order_of(*model(5, 1, 1))
    label, predicted = model(10, 100, 0.9)
    order_of(label, np.zeros_like(label))


def test_one_image_a_class_shows_no_order():
    label, predicted = model(1000, 1, 0.9)
    order_of(label, predicted[::-1].copy())


def test_a_class_taken_for_another_is_an_error_of_the_model():
    rng = np.random.default_rng(0)
    label, predicted = model(10, 1000, 0.9)
    shirt = np.where((label == 6) & (rng.random(len(label)) < 0.95), 0, predicted)
    order_of(label, shirt)
    exchanged = np.arange(10)
    exchanged[[0, 6]] = 6, 0
    order_of(label, exchanged[predicted])  # two classes: perhaps the model's own error
    label, predicted = model(2, 500, 1)
    order_of(label, np.where(rng.random(1000) < 0.4, predicted, 1 - predicted))


TEXT = np.array(sorted(range(1000), key=str))


@pytest.mark.parametrize(
    "reorder, said",
    [
        (
            np.random.default_rng(3).permutation(1000),
            r"0\.0% .* 76\.0% .*: number both in the order",
        ),
        (np.arange(1000)[::-1], "number both in the order of the same list"),
        (np.arange(1, 1001), "one too high, as after a background class 0: subtract 1"),
        (np.arange(-1, 999).clip(0), "one too low, as after labels that count from 1: add 1"),
        (np.argsort(TEXT), "they number the classes sorted as text"),
        (TEXT, "; the labels number the classes sorted as text"),
        # A third of the list was sorted in another way.
        (np.concatenate([np.roll(np.arange(300), 40), np.arange(300, 1000)]), "renaming 30. of"),
    ],
)
def test_another_order_is_refused_by_name(reorder, said):
    label, predicted = model(1000, 50, 0.76)
    with pytest.raises(ValueError, match=said):
        order_of(label, reorder[predicted])


def test_another_order_of_few_classes_is_refused():
    for k, n in [(2, 100), (3, 40), (10, 10)]:
        label, predicted = model(k, n, 0.9)
        with pytest.raises(ValueError, match="another order"):
            order_of(label, (predicted + 1) % k)


def test_a_weak_model_in_another_order_is_refused_and_in_the_right_one_not():
    label, predicted = model(1000, 50, 0.15)
    order_of(label, predicted)
    with pytest.raises(ValueError, match="another order"):
        order_of(label, np.roll(np.arange(1000), 500)[predicted])
