"""Files of labelled series as archives have them."""

from __future__ import annotations

import pytest

from finetune.data.sources import DataArguments, load_rows
from finetune.data.ts import read_ts
from finetune.errors import InputError

HEAD = "# told\n@problemName x\n@univariate false\n@classLabel true up down\n@data\n"


def test_channels_gaps_and_labels():
    columns, lines = read_ts(HEAD + "1,2.5,?:3,4,5:up\n\n-1e2,0:7,8:down\n", "x.ts")
    assert columns["series"] == [[[1, 2.5, None], [3, 4, 5]], [[-100, 0], [7, 8]]]
    assert columns["label"] == ["up", "down"] and lines == [6, 8]


def test_a_file_without_labels():
    columns, _ = read_ts("@classLabel false\n@data\n1,2:3,4\n", "x.ts")
    assert columns == {"series": [[[1, 2], [3, 4]]]}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("1,2:up", "no line @data"),
        (HEAD + "1,2,3:up\n1,two,3:up", "Line 7 of x.ts.*'two'"),
        (HEAD + "(0,1),(3,2):up", "Line 6 of x.ts gives its values times"),
    ],
)
def test_what_cannot_be_read_is_named_with_its_line(text, said):
    with pytest.raises(InputError, match=said):
        read_ts(text, "x.ts")


def test_a_folder_of_such_files_is_a_data_set(tmp_path):
    for split in ("train", "test"):
        (tmp_path / f"{split}.ts").write_text(HEAD + "1,2:3,4:up\n5,6:7,8:down\n")
    rows = load_rows(DataArguments([str(tmp_path)]))
    assert rows.train["label"][:] == ["up", "down"] and rows.eval["series"][1] == [[5, 6], [7, 8]]
