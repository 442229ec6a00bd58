import numpy as np
import pandas
import pytest

from tfbp.data import tables
from tfbp.errors import UserError


def csv_file(tmp_path, content):
    path = tmp_path / "table.csv"
    path.write_text(content, encoding="utf-8")
    return path


def test_numbers_are_predicted_from_the_other_columns(tmp_path):
    path = csv_file(tmp_path, "\ufeffa,price,b\n1,10.5,2\n\n3,-1e3, 4\n")
    splits = tables.load(path, target="price", validation=0, test=0)
    x, y = splits.train.read([0, 1])
    assert splits.train.columns == ("a", "b") and splits.train.values == ("price",)
    assert x.numpy().tolist() == [[1, 2], [3, 4]]
    assert y.numpy().tolist() == [[10.5], [-1000]]
    assert [splits.train.name(index) for index in range(2)] == ["row 1", "row 2"]


def test_text_is_a_class(tmp_path):
    path = csv_file(tmp_path, 'a,"kind"\n1,"big, red"\n2,small\n')
    splits = tables.load(path, target="kind", validation=0, test=0)
    assert splits.classes == ("big, red", "small")
    assert splits.train.labels.tolist() == [0, 1]


def test_numbers_are_classes_where_classes_are_given(tmp_path):
    path = csv_file(tmp_path, "a,digit\n1,7\n2,8\n3,9\n4,7\n")
    splits = tables.load(path, target="digit", classes=["8", "7"], validation=0, test=0)
    assert splits.classes == ("8", "7")
    assert splits.train.labels.tolist() == [1, 0, 1]
    assert [splits.train.name(index) for index in range(3)] == ["row 1", "row 2", "row 4"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a,b\n1,2\n", "`target` must name one column"),
        ("a,pricey\n1,2\n", "Did you mean 'pricey'"),
        ("price,a,price\n1,2,3\n", "'price' has two"),
        ("a,a,price\n1,2,3\n", "'a' has two"),
        ("a,,price\n1,2,3\n", "must have names: number 2 has none"),
        ("", "at least one row"),
        ("a,price\n", "at least one row"),
        ("price\n1\n", "a column beside 'price'"),
        ("a,price\n1,2\nx,3\n", r"\(row 2, column 'a' of .*\). Received: 'x'"),
        ("a,price\n1,2\ninf,3\n", r"finite number \(row 2, column 'a' of .*\). Received: 'inf'"),
        ("a,price\n1,2\n2,cheap\n", "row 2, column 'price'"),
        ("a,price\n1,2\n1\n", "Row 2 of .* must have 2 cells. Received: 1"),
        (f"a,price\n1,2\n{2**63},3\n", r"digits than can be held \(row 2, column 'a'"),
        (f"a,b,price\n1,0.5,2\n{2**53 + 1},1,3\n", r"digits than can be held \(row 2, column 'a'"),
    ],
)
def test_tables_that_cannot_be_read_are_refused(tmp_path, content, message):
    with pytest.raises(UserError, match=message):
        tables.load(csv_file(tmp_path, content), target="price")


def test_a_missing_file_and_a_binary_one_are_refused(tmp_path):
    with pytest.raises(UserError, match="No such file"):
        tables.read_csv(tmp_path / "nowhere.csv")
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(UserError, match="utf-8"):
        tables.read_csv(tmp_path / "binary.csv")


GAPS = "a,b,kind\n1,2,yes\n2,,no\n3,4,\n4,NA,<NA>\n5,6,no\n6,7,yes\n"


def test_rows_with_missing_cells_are_listed_by_row_and_column(tmp_path):
    path = csv_file(tmp_path, GAPS)
    with pytest.raises(UserError) as error:
        tables.load(path, target="kind")
    assert str(error.value) == (
        f"Rows of {path} with missing cells, 3 of 6:\n"
        " - row 2, column 'b': ''\n"
        " - row 3, column 'kind': ''\n"
        " - row 4, column 'b': 'NA'\n"
        " - row 4, column 'kind': '<NA>'\n"
        "Fill them, or leave such rows out with `on_bad_example=skip`. A class that is called so "
        "is named in `classes`."
    )


def test_rows_with_missing_cells_are_left_out_on_request(tmp_path, monkeypatch):
    lines = []
    monkeypatch.setattr("absl.logging.warning", lambda text, *values: lines.append(text % values))
    splits = tables.load(
        csv_file(tmp_path, GAPS), target="kind", on_bad_example="skip", validation=0, test=0
    )
    assert splits.classes == ("no", "yes")
    assert [splits.train.name(index) for index in range(3)] == ["row 1", "row 5", "row 6"]
    assert len(lines) == 1 and "3 of 6:" in lines[0] and lines[0].endswith("They are left out.")
    with pytest.raises(UserError, match="No row is left"):
        tables.load(csv_file(tmp_path, "a,b\n1,\n2,\n"), target="b", on_bad_example="skip")
    with pytest.raises(UserError, match="`on_bad_example` must be"):
        tables.load(csv_file(tmp_path, GAPS), target="kind", on_bad_example="skp")


def test_a_class_that_is_called_like_nothing_is_one_if_it_is_named(tmp_path):
    path = csv_file(tmp_path, "a,country\n1,NA\n2,ZA\n3,NA\n4,ZA\n")
    with pytest.raises(UserError, match="2 of 4"):
        tables.load(path, target="country")
    assert tables.load(path, target="country", classes=["NA", "ZA"]).classes == ("NA", "ZA")


def test_the_index_that_pandas_writes_is_no_feature(tmp_path, monkeypatch):
    lines = []
    monkeypatch.setattr("absl.logging.warning", lambda text, *values: lines.append(text % values))
    table = pandas.DataFrame({"width": [1.5, 2.5, 3.5], "kind": ["a", "b", "a"]}, index=[7, 3, 9])
    table.to_csv(tmp_path / "table.csv")
    splits = tables.load(tmp_path / "table.csv", target="kind", validation=0, test=0)
    assert splits.train.columns == ("width",)
    (line,) = lines
    assert "first column of" in line and "give it a name" in line
    table.to_csv(tmp_path / "named.csv", index_label="number")
    named = tables.load(tmp_path / "named.csv", target="kind", validation=0, test=0)
    assert named.train.columns == ("number", "width")


def test_whole_numbers_of_a_table_keep_their_digits(tmp_path):
    rows = "".join(f"{1_650_000_000 + 15 * row},{'ab'[row % 2]}\n" for row in range(60))
    splits = tables.load(csv_file(tmp_path, f"time,kind\n{rows}"), target="kind")
    assert {name: part.size for name, part in splits.parts().items()} == {
        "train": 48,
        "validation": 6,
        "test": 6,
    }
    assert splits.train.spec[0].dtype.name == "int32"


def test_rows_of_a_group_stay_together(tmp_path):
    path = csv_file(
        tmp_path,
        "a,kind,patient\n"
        + "".join(f"{row / 8},{'ab'[row // 8 % 2]},p{row // 4}\n" for row in range(120)),
    )
    splits = tables.load(path, target="kind", group="patient")
    assert splits.train.columns == ("a",)
    owners = [
        {(int(part.name(index).split()[1]) - 1) // 4 for index in range(part.size)}
        for part in splits.parts().values()
    ]
    assert [len(owner) for owner in owners] == [24, 3, 3]
    assert len(set.union(*owners)) == 30


def test_a_split_that_the_table_has_is_taken(tmp_path):
    path = csv_file(
        tmp_path,
        "a,kind,fold\n"
        + "".join(
            f"{row / 8},{'ab'[row % 2]},{('Train', 'VAL', 'testing')[row % 20 // 8]}\n"
            for row in range(120)
        ),
    )
    splits = tables.load(path, target="kind", split="fold")
    rows = {
        name: {int(part.name(index).split()[1]) - 1 for index in range(part.size)}
        for name, part in splits.parts().items()
    }
    for number, part in enumerate(("train", "validation", "test")):
        assert rows[part] == {row for row in range(120) if row % 20 // 8 == number}
    with pytest.raises(UserError, match="`split` must be a column of splits, and 'kind' holds"):
        tables.load(path, target="fold", split="kind")


def test_a_group_on_two_sides_of_a_split_that_the_table_has_is_refused(tmp_path):
    path = csv_file(
        tmp_path,
        "a,kind,who,fold\n"
        + "".join(
            f"{row / 8},{'ab'[row % 2]},{row % 5},{'train' if row < 30 else 'test'}\n"
            for row in range(40)
        ),
    )
    with pytest.raises(UserError, match=r"alone\. Received: '0' in `train` and in `test`"):
        tables.load(path, target="kind", split="fold", group="who")


def test_the_last_rows_in_time_are_held_out(tmp_path):
    path = csv_file(
        tmp_path,
        "a,kind,day\n"
        + "".join(
            f"{row / 8},{'ab'[row % 2]},2024-{1 + row * 7 % 12:02d}-{1 + row * 5 % 28:02d}\n"
            for row in range(120)
        ),
    )
    days = [(1 + row * 7 % 12, 1 + row * 5 % 28) for row in range(120)]
    splits = tables.load(path, target="kind", order="day", validation=0.2, test=0.1)
    rows = [
        [int(part.name(index).split()[1]) - 1 for index in range(part.size)]
        for part in splits.parts().values()
    ]
    last = [max(days[row] for row in part) for part in rows]
    first = [min(days[row] for row in part) for part in rows]
    assert last[0] < first[1] and last[1] < first[2]
    assert [len(part) for part in rows] == pytest.approx([84, 24, 12], abs=2)


def test_a_column_has_one_use(tmp_path):
    path = csv_file(tmp_path, "a,kind\n1,x\n2,y\n")
    with pytest.raises(UserError, match="`target` must name a column that is used for nothing"):
        tables.load(path, target="kind", group="kind")
    with pytest.raises(UserError, match=r"`group` must name one column .* Received: 'patient'"):
        tables.load(path, target="kind", group="patient")


def test_the_line_has_the_slope_and_intercept_it_says():
    train = tables.line(seed=1).train
    x, y = train.read(np.arange(100))
    (slope, intercept), (squares,) = np.polyfit(x[:, 0], y[:, 0], 1, full=True)[:2]
    assert slope == pytest.approx(3, abs=0.1)
    assert intercept == pytest.approx(2, abs=0.05)
    assert np.sqrt(squares / 100) == pytest.approx(0.1, rel=0.3)


def test_proportional_points_are_equal_and_all_for_training():
    splits = tables.proportional()
    x, y = splits.train.read([0, 1, 2])
    assert x.numpy().tolist() == y.numpy().tolist() == [[1], [2], [3]]
    assert splits.validation is splits.test is None


def test_the_index_that_pandas_has_read_and_written_again_is_no_feature(tmp_path, caplog):
    path = csv_file(tmp_path, "Unnamed: 0.1,Unnamed: 0,a,y\n0,0,5,1.5\n1,1,6,2.5\n2,2,8,3.5\n")
    assert list(tables.read_csv(path).columns) == ["a", "y"]
    assert "'Unnamed: 0.1', is what pandas calls" in caplog.text
    path = csv_file(tmp_path, "a,Unnamed: 0,y\n0,0,5\n")
    assert list(tables.read_csv(path).columns) == ["a", "Unnamed: 0", "y"]


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        (["1", "2", "x"], r"The target must .*\(row 3, column 'y' of .*Received: 'x'.*`classes`"),
        (["1", "2_0", "3"], r"The target must .*\(row 2, .*Received: '2_0'\."),
    ],
)
def test_a_target_that_is_a_number_in_some_rows_is_refused_as_the_target(tmp_path, cells, message):
    rows = "".join(f"{number},{cell}\n" for number, cell in enumerate(cells))
    path = csv_file(tmp_path, f"a,y\n{rows}")
    with pytest.raises(UserError, match=message):
        tables.load(path, target="y", validation=0, test=0)


def test_a_number_with_an_underscore_is_none(tmp_path):
    path = csv_file(tmp_path, "a,y\n1,1.5\n3_0,2.5\n")
    with pytest.raises(UserError, match=r"finite number \(row 2, column 'a'.*Received: '3_0'"):
        tables.load(path, target="y", validation=0, test=0)
