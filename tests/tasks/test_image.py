"""Pictures with a class each: folders, files and columns of them, whatever their mode and size; a small model
made of a configuration trains, is saved and assessed like any other.
"""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset, Features, Image, Value

pytest.importorskip("PIL", reason="pictures want the extra 'images'")

from field_models import make_field_model
from PIL import Image as Pillow
from test_train import script
from transformers import AutoModelForImageClassification

from finetune.adapters.assess import assess_task
from finetune.artefacts.folder import read_artefact
from finetune.cli.parser import parse
from finetune.data import pictures
from finetune.data.cells import file_bytes
from finetune.data.sources import DataArguments, load_rows
from finetune.errors import InputError
from finetune.models.images import colours
from finetune.tasks import image

TINY = (
    "image_size=8,patch_size=4,num_channels=1,hidden_size=16,num_hidden_layers=1,num_attention_heads=2,"
    "intermediate_size=32"
)


def encoded(values: np.ndarray, kind: str = "PNG", **options: object) -> bytes:
    held = io.BytesIO()
    Pillow.fromarray(values).save(held, kind, **options)
    return held.getvalue()


@pytest.fixture
def folder(tmp_path):
    """Bright and dark pictures, in folders by split and class."""
    generator = np.random.default_rng(0)
    for split, count in (("train", 12), ("validation", 6)):
        for label, low in (("bright", 160), ("dark", 0)):
            where = tmp_path / "pictures" / split / label
            where.mkdir(parents=True)
            for number in range(count):
                values = generator.integers(low, low + 90, (8, 8), dtype=np.uint8)
                (where / f"{number}.png").write_bytes(encoded(values))
    return tmp_path / "pictures"


def train(folder, out, *further: str) -> dict:
    main = script("train").main
    given = f"--task image --method full --from_config vit --config_overrides {TINY} --bf16 false "
    given += f"--dataset_name {folder} --output_dir {out}"
    main(*parse(main, [*given.split(), *further]))
    return json.loads((out / "metrics.json").read_text())


def test_a_folder_of_pictures_is_learnt_saved_and_assessed(folder, tmp_path):
    out = tmp_path / "run"
    figures = train(folder, out, "--num_train_epochs", "8", "--learning_rate", "5e-3")
    assert figures["accuracy"] == 1.0 and 0.5 < figures["intervals"]["accuracy"][0] < 1
    names = {one["name"] for one in json.loads((out / "baselines.json").read_text())}
    assert {"3 nearest neighbours", "support vector machine"} <= names
    first = json.loads((out / "predictions.jsonl").read_text().splitlines()[0])
    assert first["text"].startswith("data:image/png;base64,")
    assert json.loads((out / "passport.json").read_text())["base"] == "vit"
    assessed = assess_task(read_artefact(out), DataArguments([str(folder)], eval_split="validation"))
    assert assessed["accuracy"] == 1.0 and assessed["rows"] == 12
    with pytest.raises(InputError, match="was trained on all 24 of these rows"):
        assess_task(read_artefact(out), DataArguments([str(folder)], eval_split="train"))


def test_rows_of_bytes_paths_and_records_are_one(folder, tmp_path):
    """The same pictures as a folder, as paths in a table, as bytes and as `datasets` has them."""
    whole = image.examine(load_rows(DataArguments([str(folder)])), DataArguments([str(folder)]))
    train = whole.rows.train
    cells = [cell["path"] for cell in train["image"]]
    labels = [whole.labels[place] for place in train["label"]]
    held = [Path(path).read_bytes() for path in cells]
    (folder / "paths.jsonl").write_text(
        "\n".join(
            json.dumps({"file": path.removeprefix(f"{folder}/"), "label": label})
            for path, label in zip(cells, labels, strict=True)
        )
    )
    Dataset.from_dict({"image": held, "label": labels}).to_parquet(tmp_path / "bytes.parquet")
    typed = Features({"image": Image(), "label": Value("string")})
    records = [{"bytes": one, "path": None} for one in held]
    Dataset.from_dict({"image": records, "label": labels}, features=typed).to_parquet(
        tmp_path / "typed.parquet"
    )
    names = [folder / "paths.jsonl", tmp_path / "bytes.parquet", tmp_path / "typed.parquet"]
    found = []
    for name in names:
        data = DataArguments([str(name)])
        rows = image.examine(load_rows(data), data)
        parts = [rows.rows.train, rows.rows.eval]
        found.append(sorted(file_bytes(cell) for part in parts for cell in part[rows.columns.text]))
    assert found[0] == found[1] == found[2] == sorted(held)


def test_what_lies_beside_pictures_is_no_row_and_no_class(folder, caplog):
    train = folder / "train"
    for name in ("bright/readme.txt", "dark/notes.csv", ".cache/7.png", "__MACOSX/bright/7.png"):
        (train / name).parent.mkdir(exist_ok=True, parents=True)
        (train / name).write_bytes(b"text" if name[-1] in "tv" else encoded(np.zeros((8, 8), np.uint8)))
    whole = image.examine(load_rows(DataArguments([str(folder)])), DataArguments([str(folder)]))
    assert whole.labels == ["bright", "dark"] and len(whole.rows.train) == 24
    assert "2 text files beside them" in caplog.text
    with pytest.raises(InputError, match="4 channels.*num_channels=3"):
        pictures.mode_of(4)


def test_files_of_a_class_that_are_no_pictures_are_said_and_links_to_nothing_named(folder, caplog):
    for name in ("bright/phone.heic", "bright/drawing.svg", "dark/all.zip"):
        (folder / "train" / name).write_bytes(b"x")
    data = DataArguments([str(folder)])
    image.examine(load_rows(data), data)
    assert "3 files in folders of classes have no ending of a picture" in caplog.text
    assert "train/bright/drawing.svg" in caplog.text and "wanted png jpg" in caplog.text
    (folder / "train" / "dark" / "gone.png").symlink_to("nowhere.png")
    with pytest.raises(InputError, match="1 of 25 training rows.*no file .*dark/gone.png"):
        image.examine(load_rows(data), data)


def test_a_table_in_a_splits_folder_names_the_files_beside_it(tmp_path):
    """As `datasets` lays out pictures with what is known of them: metadata.csv in each split."""
    for split, grey in (("train", 0), ("test", 200)):
        (tmp_path / split).mkdir()
        lines = ["file_name,label"]
        for number in range(4):
            values = np.full((8, 8), grey + number, np.uint8)
            (tmp_path / split / f"{number}.png").write_bytes(encoded(values))
            lines.append(f"{number}.png,{'ab'[number % 2]}")
        (tmp_path / split / "metadata.csv").write_text("\n".join(lines))
    data = DataArguments([str(tmp_path)])
    rows = image.examine(load_rows(data), data).rows
    for part, grey in ((rows.train, 0), (rows.eval, 200)):
        found = sorted(int(np.asarray(pictures.opened(cell, "L")).mean()) for cell in part["file_name"])
        assert found == [grey + number for number in range(4)]


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        ("https://x.org/a.png", "an address, https://x.org/a.png.*fetch it first"),
        ("iVBORw0KGgo" * 400, "a text of 4,4.. letters"),
        ("data:image/png;base64,AAAA", "a text of 26 letters"),
    ],
)
def test_cells_that_are_no_paths_are_named(tmp_path, cell, said):
    rows = "\n".join(f"{cell},{'ab'[number % 2]}" for number in range(6))
    (tmp_path / "rows.csv").write_text(f"image,label\n{rows.replace(cell, chr(34) + cell + chr(34))}")
    data = DataArguments([str(tmp_path / "rows.csv")], eval_split="train")
    # where none can be read, another column was meant
    with pytest.raises(InputError, match=rf"6 of 6 training rows.*{said}.*or set --text_column$"):
        image.examine(load_rows(data), data)


def test_a_text_beside_pictures_that_is_the_same_everywhere_is_not_read_already(folder):
    rows = [f"{file},a note that nobody reads" for file in sorted((folder / "train").glob("*/*.png"))]
    labelled = [f"{row},{'ab'[place % 2]}" for place, row in enumerate(rows)]
    (folder / "rows.csv").write_text("\n".join(["image,note,label", *labelled]))
    data = DataArguments([str(folder / "rows.csv")])
    with pytest.raises(InputError, match="'note' holds text that nothing reads.*--ignore_columns note"):
        image.examine(load_rows(data), data)


def test_pictures_without_folders_of_classes_are_named(tmp_path):
    (tmp_path / "0.png").write_bytes(encoded(np.zeros((8, 8), np.uint8)))
    (tmp_path / "1.png").write_bytes(encoded(np.ones((8, 8), np.uint8)))
    with pytest.raises(InputError, match="files without a class; wanted them in a folder of their class"):
        image.examine(load_rows(DataArguments([str(tmp_path)])), DataArguments([str(tmp_path)]))


@pytest.mark.parametrize(
    ("values", "options", "grey"),
    [
        (np.full((5, 3), 200, np.uint8), {}, 200),
        (np.full((4, 4, 3), 200, np.uint8), {}, 200),
        (np.full((4, 4), 200 * 257, np.uint16), {}, 200),
        (np.zeros((4, 4, 4), np.uint8), {}, 255),  # wholly transparent: what is behind it is white
        (np.full((4, 4, 3), 200, np.uint8), {"kind": "JPEG"}, 200),
    ],
    ids=["grey", "colour", "16 bits", "transparent", "jpeg"],
)
def test_pictures_of_other_modes_are_converted(values, options, grey):
    cell = {"bytes": encoded(values, **options), "path": None}
    for mode in (pictures.GREY, pictures.COLOUR):
        found = np.asarray(pictures.opened(cell, mode))
        assert found.shape[:2] == values.shape[:2] and found.ndim == (2 if mode == "L" else 3)
        assert abs(int(found.mean()) - grey) <= 1


def test_conversions_are_said(folder, tmp_path, caplog):
    for number, size in enumerate([(8, 8), (20, 10)]):
        values = np.full((*size, 3), 200, np.uint8)
        (folder / "train" / "bright" / f"colour{number}.png").write_bytes(encoded(values))
    train(folder, tmp_path / "run", "--max_steps", "1")
    assert "2 of mode RGB pictures are read as L" in caplog.text
    assert "brought to 8 x 8 pixels: 1 of 10 x 20" in caplog.text


def test_every_mode_and_files_of_several_pictures_are_said(caplog):
    grey = Pillow.fromarray(np.full((4, 4), 200, np.uint8))
    cells = []
    for mode in ("1", "P", "RGB", "RGBA", "CMYK", "LA", "YCbCr"):
        held = io.BytesIO()
        grey.convert(mode).save(held, "TIFF" if mode in ("CMYK", "YCbCr") else "PNG")
        cells.append({"bytes": held.getvalue(), "path": None})
    moving = io.BytesIO()
    grey.save(moving, "GIF", save_all=True, append_images=[Pillow.fromarray(np.zeros((4, 4), np.uint8))])
    cells.append({"bytes": moving.getvalue(), "path": None})
    pictures.say_kinds(cells, "L", {"height": 4, "width": 4})
    assert all(f"1 of mode {mode}" in caplog.text for mode in ("1", "RGB", "RGBA", "CMYK", "LA", "YCbCr"))
    assert "1 files move or hold several pictures; the first of each is read" in caplog.text
    assert np.asarray(pictures.opened(cells[-1], "L")).mean() == 200


def test_a_dark_picture_of_16_bits_stays_dark():
    dark, bright = (
        np.asarray(pictures.opened({"bytes": encoded(np.full((4, 4), level, np.uint16)), "path": None}, "L"))
        for level in (250, 60000)
    )
    assert dark.max() == 1 and bright.min() == 233


@pytest.mark.parametrize("family", ["vit", "convnext"])
def test_a_processor_that_is_made_gives_one_shape(family):
    _, made = make_field_model(family, AutoModelForImageClassification)
    assert made(np.zeros((5, 9, 1), np.uint8), input_data_format="channels_last", return_tensors="np")[
        "pixel_values"
    ].shape[2:] == (8, 8)


def test_sizes_that_do_not_fit_are_named_before_training(folder, tmp_path):
    with pytest.raises(InputError, match="made of a row .pixel_values 1 x 1 x 8 x 8.*overrides"):
        train(folder, tmp_path / "run", "--config_overrides", TINY.replace("patch_size=4", "patch_size=16"))
    assert not (tmp_path / "run" / "metrics.json").exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"no picture at all", "UnidentifiedImageError"), (b"", "UnidentifiedImageError"), ("cut", "truncated")],
)
def test_a_broken_file_is_named_with_its_row(folder, tmp_path, content, said):
    whole = encoded(np.random.default_rng(0).integers(0, 255, (40, 40), dtype=np.uint8))
    broken = folder / "train" / "dark" / "broken.png"
    broken.write_bytes(whole[: len(whole) // 2] if content == "cut" else content)
    data = DataArguments([str(folder)])
    with pytest.raises(InputError, match=rf"1 of 25 training rows.*dark/broken.png.*{said}.*drop_empty_rows"):
        image.examine(load_rows(data), data)
    data = DataArguments([str(folder)], drop_empty_rows=True)
    assert len(image.examine(load_rows(data), data).rows.train) == 24


def test_other_methods_want_a_model_that_knows_something(folder, tmp_path):
    with pytest.raises(InputError, match="'lora'.*--from_config makes one that knows nothing"):
        train(folder, tmp_path / "run", "--method", "lora")


def test_palettes():
    assert colours(512).shape == (512, 3) and len(np.unique(colours(512)[:, 0])) == 8
    assert np.allclose(colours(16)[:, 0], np.linspace(-1, 1, 16)) and (np.ptp(colours(16), axis=1) == 0).all()
