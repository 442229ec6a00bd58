from tfbp.reporting.table import table


def test_columns_are_aligned_and_numbers_end_alike():
    rows = [("layer", "count"), ("conv", "1,792"), ("a", "2")]
    assert table(rows, numbers=[1]) == "layer  count\nconv   1,792\na          2"


def test_no_line_ends_in_spaces():
    assert table([("a", "long"), ("b", "")]) == "a  long\nb"
