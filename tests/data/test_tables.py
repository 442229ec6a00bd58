import numpy as np
import pytest

from tfbp.data import tables
from tfbp.errors import UserError


def csv_file(tmp_path, content):
    path = tmp_path / "table.csv"
    path.write_text(content, encoding="utf-8")
    return path


def test_numbers_are_predicted_from_the_other_columns(tmp_path):
    x, y, columns = tables.read_csv(
        csv_file(tmp_path, "\ufeffa,price,b\n1,10.5,2\n\n3,-1e3, 4\n"), "price"
    )
    assert columns == ["a", "b"]
    assert x.tolist() == [[1, 2], [3, 4]]
    assert y.tolist() == [10.5, -1000]


def test_text_is_a_class(tmp_path):
    path = csv_file(tmp_path, 'a,"kind"\n1,"big, red"\n2,small\n')
    assert tables.read_csv(path, "kind")[1].tolist() == ["big, red", "small"]


def test_numbers_are_classes_on_request(tmp_path):
    path = csv_file(tmp_path, "a,digit\n1,7\n2,8\n")
    assert tables.read_csv(path, "digit", labels=True)[1].tolist() == ["7", "8"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a,b\n1,2\n", "`target` must name one column"),
        ("a,pricey\n1,2\n", "Did you mean 'pricey'"),
        ("price,a,price\n1,2,3\n", "one column"),
        ("a,a,price\n1,2,3\n", "'a' has two"),
        ("", "`target` must name one column"),
        ("a,price\n", "at least one row"),
        ("price\n1\n", "a column beside its target"),
        ("a,price\n1,2\nx,3\n", r"\(row 2, column 'a' of .*\). Received: 'x'"),
        ("a,price\n1,2\n,3\n", r"\(row 2, column 'a' of .*\). Received: ''"),
        ("a,price\n1,2\nnan,3\n", "row 2, column 'a'"),
        ("a,price\n1,2\n2,cheap\n", "row 2, column 'price'"),
        ("a,price\n1,2\n1\n", "Row 2 of .* must have 2 cells. Received: 1"),
    ],
)
def test_tables_that_cannot_be_read_are_refused(tmp_path, content, message):
    with pytest.raises(UserError, match=message):
        tables.read_csv(csv_file(tmp_path, content), "price")


def test_a_missing_file_and_a_binary_one_are_refused(tmp_path):
    with pytest.raises(UserError, match="No such file"):
        tables.read_csv(tmp_path / "nowhere.csv", "price")
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(UserError, match="utf-8"):
        tables.read_csv(tmp_path / "binary.csv", "price")


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
