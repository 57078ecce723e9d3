"""What files look like that the program writes."""

import json

from collectionlora.system.files import write_json


def test_a_list_of_numbers_stands_on_one_line(tmp_path):
    value = {
        "numbers": [1, -2.5, 1e-9, None, True],
        "rows": [[1, 2], [3]],
        "empty": [],
        "words": ["a [", "1", "]", "b\n[\n1\n]"],
        "mappings": [{"x": [0.5, 1]}],
    }
    write_json(tmp_path / "a.json", value)
    text = (tmp_path / "a.json").read_text()
    assert json.loads(text) == value
    lines = text.splitlines()
    assert lines[1:5] == [' "numbers": [1, -2.5, 1e-09, null, true],', ' "rows": [', "  [1, 2],", "  [3]"]
    assert '   "x": [0.5, 1]' in lines
