import secrets

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from advbook.studies.inputs import images_of
from advbook.studies.parts import kept, kept_rows, parts_of
from advbook.studies.tables import read_data
from advlib.importing import read_predictions
from advlib.networks.build import build_model
from advlib.predictions import COLUMNS, check_predictions, predict, read_facts, write_predictions


def test_predictions_are_those_of_the_class_logits(tiny_study, linear_model):
    test = images_of(tiny_study, "test")

    class Fixed(torch.nn.Module):
        """Class 3 among the classes, and a larger transformation logit that must not count."""

        def forward(self, x):
            logits = torch.zeros(len(x), 11)
            logits[:, 3], logits[:, 10] = 2.0, 9.0
            return logits

    tables = predict({"a": Fixed(), "b": Fixed()}, test, num_classes=10, batch_size=30)
    for table in tables.values():
        assert table.file_name.tolist() == test.file_names  # none dropped, in order
        assert table.label.tolist() == test.labels.tolist()
        assert set(table.predicted_class) == {3}
        e2 = torch.tensor(2.0).exp()
        assert table.predicted_probability[0] == pytest.approx(float(e2 / (e2 + 9)))


def test_a_callers_autocast_changes_no_verdict(tiny_study):
    model = build_model("cifar_resnet8", num_classes=10, mean=(0.3,), std=(0.4,))
    test = images_of(tiny_study, "test")
    plain = predict({"a": model}, test, num_classes=10)["a"]
    torch.set_float32_matmul_precision("medium")
    with torch.autocast("cpu", torch.bfloat16):
        inside = predict({"a": model}, test, num_classes=10)["a"]
    assert torch.get_float32_matmul_precision() == "medium"
    torch.set_float32_matmul_precision("highest")
    pd.testing.assert_frame_equal(inside, plain)


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda t: t.drop(columns="label"), "lacks the columns label"),
        (lambda t: t.iloc[:0], "is empty"),
        (lambda t: pd.concat([t, t.iloc[:1]]), "'a' among them"),
        (lambda t: t.assign(label=[0, 1, 3]), r"label is in \[0, 3\)"),
        (lambda t: t.assign(label=[0.0, 1.0, 2.0]), "label holds whole numbers"),
        (lambda t: t.assign(label=["cat", "dog", "owl"]), "label holds whole numbers"),
        (lambda t: t.assign(predicted_class=[0, -1, 1]), "predicted_class"),
        (lambda t: t.assign(predicted_probability=[0.1, 0.2, 1.2]), r"in \[0, 1\]"),
        (lambda t: t.assign(predicted_probability=[0.1, None, 0.2]), "missing values"),
        (lambda t: pd.concat([t.assign(attack="x"), t.iloc[:2].assign(attack="y")]), "2 images"),
    ],
)
def test_broken_tables_are_refused(table, change, said):
    with pytest.raises(ValueError, match=said):
        check_predictions(change(table), num_classes=3)


def test_tables_are_written_small_and_no_error_changes(table, tmp_path):
    table["predicted_probability"] = [0.98765, 1 / 3, 0.9999]
    secret = secrets.token_hex(20_000)
    path = write_predictions(table, tmp_path / "t.parquet", note=secret)
    again = read_predictions(path)
    assert again.predicted_probability.tolist() == pytest.approx([0.988, 0.333, 1.0])
    assert again.predicted_class.tolist() == table.predicted_class.tolist()
    assert read_facts(path)["note"] == secret
    # The facts of a network and its attacks are longer than some tables: they are stored once.
    assert path.stat().st_size < 1.2 * len(secret)


def test_missing_images_are_counted(table):
    with pytest.raises(ValueError, match="3 images in one condition, 4 expected"):
        check_predictions(table, n_images=4)


def test_written_tables_are_read_back_with_their_facts(table, tmp_path):
    path = write_predictions(table, tmp_path / "sub/t.parquet", study="s", threat={"eps": 0.1})
    read = read_predictions(path)  # in compact types
    pd.testing.assert_frame_equal(read, table, check_dtype=False, check_categorical=False)
    facts = read_facts(path)
    assert facts["study"] == "s" and facts["threat"] == {"eps": 0.1} and facts["n_images"] == 3
    assert facts["versions"]["torch"] and facts["time"]
    assert [p.name for p in path.parent.iterdir()] == ["t.parquet"]


def test_anybodys_csv_is_read_as_it_is(table, tmp_path):
    table.to_csv(tmp_path / "model.csv.gz", index=False)
    pd.testing.assert_frame_equal(read_predictions(tmp_path / "model.csv.gz"), table)


def test_file_names_that_look_like_missing_values_are_names(table, tmp_path):
    rows = table.assign(file_name=["NA", "größe", "null"])
    rows.to_csv(tmp_path / "t.csv", index=False)
    pd.testing.assert_frame_equal(read_predictions(tmp_path / "t.csv"), rows)


@pytest.mark.parametrize(
    "content, said",
    [
        ("file_name\ngröße".encode("latin-1"), "'utf-8' codec can't decode byte 0xf6"),
        (b"PK\x03\x04", "the first line is 'PK"),
        (b"PAR1", "the first line is 'PAR1', expected a header"),
        (b"", "No columns to parse"),
    ],
)
def test_what_is_no_csv_is_named(tmp_path, content, said):
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(ValueError, match=f"t.csv: .*{said}"):
        read_predictions(tmp_path / "t.csv")


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_clean_rows_may_say_so(table, tmp_path, ending):
    """Some write none or clean, with severity 0, where others leave the cells empty."""
    rows = [table.assign(corruption=name, severity=int(name == "fog")) for name in ("None", "fog")]
    path, rows = tmp_path / f"t.{ending}", pd.concat(rows)
    rows.to_csv(path, index=False) if ending == "csv" else rows.to_parquet(path)
    found = read_predictions(path)
    assert found.corruption.isna().tolist() == [True] * 3 + [False] * 3
    rows = rows.assign(severity=2)
    rows.to_csv(path, index=False) if ending == "csv" else rows.to_parquet(path)
    with pytest.raises(ValueError, match="severity is 2 in a row without corruption, of 'a'"):
        read_predictions(path)


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "\xff"])
def test_damaged_facts_name_their_file_and_the_way_out(tmp_path, content):
    (tmp_path / "data.json").write_text(content, encoding="latin-1")
    with pytest.raises(OSError, match="data.json is damaged .*: restore it .*, or delete it"):
        read_data(tmp_path)


def test_a_table_without_facts_is_named(table, tmp_path):
    table.to_parquet(tmp_path / "t.parquet")
    with pytest.raises(ValueError, match="t.parquet does not say how it was made"):
        read_facts(tmp_path / "t.parquet")
    (tmp_path / "t.parquet").write_bytes(b"PAR1")
    with pytest.raises(OSError, match="t.parquet cannot be read as a table .*: restore it"):
        read_facts(tmp_path / "t.parquet")


@pytest.mark.parametrize(
    "text",
    [
        f"{','.join(COLUMNS)}\na.png,0,1,0,97\n",  # a decimal comma
        "label,predicted_class,predicted_probability,file_name\n0,1,0.97,a,b.png\n",
    ],
)
def test_a_line_longer_than_the_header_is_refused(text, tmp_path):
    path = tmp_path / "model.csv"
    path.write_text(text)
    said = "model.csv: a line has more fields than the header: quote names .* with a point"
    with pytest.raises(ValueError, match=said):
        read_predictions(path)
    # A comma at the end of each line is no field.
    path.write_text(f"{','.join(COLUMNS)}\na.png,0,1,0.97,\n")
    assert read_predictions(path).predicted_probability.tolist() == [0.97]


def test_a_column_that_occurs_twice_is_refused(table, tmp_path):
    for name in ("predicted_class", "label"):
        twice = pd.concat([table, table[[name]]], axis=1)
        twice.to_csv(tmp_path / "t.csv", index=False)
        columns = [pa.array(twice.iloc[:, i]) for i in range(twice.shape[1])]
        pq.write_table(pa.table(columns, names=list(twice.columns)), tmp_path / "t.parquet")
        for file in ("t.csv", "t.parquet"):
            with pytest.raises(ValueError, match=f"{file}: the column {name} occurs twice: keep"):
                read_predictions(tmp_path / file)


def test_a_damaged_parquet_file_is_named(table, tmp_path):
    """Its first page is gone: for pyarrow that is an OSError, which does not say the path."""
    path = write_predictions(table, tmp_path / "t.parquet")
    whole = path.read_bytes()
    path.write_bytes(whole[:4] + bytes(16) + whole[20:])
    with pytest.raises(ValueError, match="t.parquet cannot be read as a table .*: restore it"):
        read_predictions(path)


def test_no_flipped_bit_of_a_table_goes_unnoticed(table, tmp_path):
    """In pages and their headers; of the names and facts behind them there is no checksum."""
    table = pd.concat([table.assign(corruption="fog", severity=s) for s in range(1, 6)])
    path = write_predictions(table, tmp_path / "t.parquet", study="s", threat={"eps": 0.1})
    whole, expected, noticed = path.read_bytes(), read_predictions(path), 0
    pages = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    for place in range(0, pages, 3):
        content = bytearray(whole)
        content[place] ^= 1 << place % 8
        path.write_bytes(content)
        try:
            found = read_predictions(path)
            assert read_facts(path)["study"] == "s"
            pd.testing.assert_frame_equal(found, expected)  # a bit that says nothing
        except (ValueError, OSError) as error:
            assert "t.parquet cannot be read as a table" in str(error)
            noticed += 1
    assert noticed > pages / 5


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-9]),
        lambda path: path.write_bytes(b""),
        lambda path: pd.read_parquet(path).iloc[::-1].to_parquet(path),
        lambda path: pd.DataFrame({"x": [1, 2]}).to_parquet(path),
    ],
)
def test_a_part_that_is_damaged_or_foreign_is_made_anew(table, tmp_path, spoil):
    path, names, made = tmp_path / "part.parquet", table.file_name.tolist(), []

    def make():
        made.append(len(made))
        return table

    kept(path, make, names)
    spoil(path)
    with pytest.warns(UserWarning, match="part.parquet is damaged .*set aside.*made anew"):
        pd.testing.assert_frame_equal(kept(path, make, names), table)
    pd.testing.assert_frame_equal(kept(path, make, names), table)
    assert made == [0, 1]
    # Of two networks, one after the other.
    kept(tmp_path / "two.parquet", lambda: pd.concat([table, table]))
    assert len(kept_rows(tmp_path / "two.parquet", names)) == 6


@pytest.mark.parametrize("n_images, part, processes", [(101, 25, 1), (101, 25, 3), (3, 25, 2)])
def test_parts_are_dealt_without_gaps_or_repetition(n_images, part, processes):
    parts = parts_of(n_images, part, processes)
    assert [i for one in parts for i in one] == list(range(n_images))
    assert max(map(len, parts)) <= part
    shares = [sum(map(len, parts[rank::processes])) for rank in range(processes)]
    assert max(shares) - min(shares) <= max(map(len, parts))
