"""Folders, lists, parquet files and saved data sets: the same images and labels come out of each."""

import json
import os
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from packing_sources import (
    CLASS_NAMES,
    expected,
    hugging_face_table,
    images,
    members,
    samples,
    write_folder,
    write_list,
    write_parquet,
    write_saved,
)
from tars import image, source_tar

from pipeline.classes import read_classes
from pipeline.errors import ConfigError
from pipeline.packing.job import plan_packing, run_packing
from pipeline.packing.options import PackingOptions
from pipeline.packing.plan import make_plan, unique_keys
from pipeline.views.codec import decode_image
from pipeline.views.source import read_samples


def pack(source, out, **options):
    """Pack in this process; returns the folder of the tars."""
    packed = run_packing(make_plan(PackingOptions(str(source), str(out), **options)))
    assert packed.failed == {}
    return out


def write_mixed_list(folder):
    """Two images with the labels 7 and x in a list."""
    folder.mkdir()
    for number in (0, 1):
        (folder / f"{number}.jpg").write_bytes(image(number))
    (folder / "a.csv").write_text("path,label\n0.jpg,7\n1.jpg,x\n")
    return folder / "a.csv"


def write_mixed_tables(folder):
    """The same in two parquet files, one with numbers."""
    folder.mkdir()
    pq.write_table(pa.table({"image": [image(0)], "label": [7]}), folder / "a.parquet")
    pq.write_table(pa.table({"image": [image(1)], "label": ["x"]}), folder / "b.parquet")
    return folder


@pytest.mark.parametrize("write", [write_folder, write_list, write_parquet, write_saved])
def test_every_source_gives_the_same_images_and_labels(write, tmp_path):
    out = pack(write(tmp_path / "source"), tmp_path / "out", images_per_tar=8)
    assert samples(out) == expected()
    assert tuple(one.name for one in read_classes(out / "classes.json", "--class-names")) == CLASS_NAMES
    assert [len(files) for files in members(out).values()] == [14, 16, 14, 16]  # image and label
    assert not (out / ".packing").exists()


@pytest.mark.parametrize("source", ["saved", "hub"])
def test_what_the_datasets_library_wrote_is_read(source, tmp_path):
    folder = Path(__file__).parent / "saved_by_datasets" / source  # by make_saved_data_set.py
    out = pack(folder, tmp_path / "out")
    (files,) = members(out).values()
    labels = {name: data for name, data in files if name.endswith(".cls")}
    assert labels == {f"photo_{number}.cls": b"%d" % (number % 3) for number in range(6)}
    assert json.loads((out / "classes.json").read_text()) == ["ant", "bee", "cow"]
    for name, data in files:
        if name.endswith(".jpg"):
            red = decode_image(data)[0, 0, 0]
            assert abs(int(red) - 40 * int(name[6])) < 5


def test_parquet_and_saved_data_sets_give_the_same_tars(tmp_path):
    parquet = pack(write_parquet(tmp_path / "parquet"), tmp_path / "1" / "set")
    saved = pack(write_saved(tmp_path / "saved"), tmp_path / "2" / "set")
    assert members(parquet) == members(saved)


def test_tars_are_a_shuffle_of_the_whole_by_the_seed(tmp_path):
    folder = write_folder(tmp_path / "source", 60)
    first, second = (pack(folder, tmp_path / name / "set", images_per_tar=20) for name in "ab")
    assert members(first) == members(second)
    other = pack(folder, tmp_path / "c" / "set", images_per_tar=20, seed=1)
    assert members(other) != members(first)
    for files in members(first).values():  # the folder is sorted by class, a tar is not
        assert len({data for name, data in files if name.endswith(".cls")}) == 4


def test_names_become_keys_and_formats_extensions(tmp_path):
    out = pack(write_folder(tmp_path / "source", 10), tmp_path / "train")
    (files,) = members(out).values()
    assert list(members(out)) == ["train-000000.tar"]
    names = sorted(name for name, _ in files if not name.endswith(".cls"))
    assert names == [*(f"{n:03d}.jpg" for n in (0, 1, 2, 3, 4, 5, 6)), "007.png", "008.jpg", "009.jpg"]


def test_keys_are_names_then_paths_then_numbers():
    assert unique_keys(["a/x.y.jpg", "b/z.png"]) == ["x_y", "z"]
    assert unique_keys(["a/x.jpg", "b/x.jpg"]) == ["a/x", "b/x"]
    assert unique_keys(["a/x.jpg", "a/x.png"]) == ["00000000", "00000001"]
    assert unique_keys(["", "b.jpg"]) == ["00000000", "00000001"]
    assert unique_keys([f"{'n' * 210}.jpg"]) == ["00000000"]
    assert unique_keys(["größe 1.jpg", "caf\udce9.jpg"]) == ["größe_1", "caf_"]


def test_a_flat_folder_has_no_labels(tmp_path):
    for number in range(5):
        (tmp_path / f"{number}.jpg").write_bytes(image(number))
    (tmp_path / ".hidden.jpg").write_bytes(b"x")
    for other in ("notes.txt", "a.HEIC", "b.heic", "README"):
        (tmp_path / other).write_bytes(b"x")
    plan = make_plan(PackingOptions(str(tmp_path), str(tmp_path / "out")))
    assert (plan.images, plan.unlabelled, plan.class_names) == (5, 5, ())
    assert plan.source.left_out == {".heic": 2, ".txt": 1, "": 1}
    assert set(samples(pack(tmp_path, tmp_path / "out")).values()) == {None}
    assert not (tmp_path / "out" / "classes.json").exists()


def test_file_names_may_have_any_bytes_but_class_names_not(tmp_path):
    odd = write_folder(tmp_path / "odd", 4)
    for name, data in (("caf\udce9.jpg", image(9)), ("\udce9.jpg", b"damaged"), ("line\nbreak.jpg", b"")):
        (odd / "ant" / name).write_bytes(data)
    packed = run_packing(plan_packing(PackingOptions(str(odd), str(tmp_path / "out"))))
    assert samples(tmp_path / "out") == expected(4) | {image(9): 0}
    assert sorted(one.name for one in packed.left_out) == ["ant/\\udce9.jpg", "ant/line\nbreak.jpg"]
    (odd / "caf\udce9").mkdir()
    (odd / "caf\udce9" / "1.jpg").write_bytes(image(5))
    with pytest.raises(ConfigError, match=r"class folder '.*' has a name that is not UTF-8: rename it"):
        plan_packing(PackingOptions(str(odd), str(tmp_path / "other")))


def test_keys_with_accents_and_long_keys_are_read_again(tmp_path):
    keys = ["größe_1", "n" * 150, "plain"]
    for number, key in enumerate(keys):
        (tmp_path / f"{key}.jpg").write_bytes(image(number))
    out = pack(tmp_path, tmp_path / "out")
    found = {sample.key: sample.image for sample in read_samples(source_tar(out / "out-000000.tar"))}
    assert found == {key: image(number) for number, key in enumerate(keys)}


def test_what_is_no_file_is_left_out(tmp_path):
    """A named pipe would be waited for without end."""
    write_folder(tmp_path / "images", 8)
    os.mkfifo(tmp_path / "images" / "ant" / "pipe.jpg")
    (tmp_path / "images" / "ant" / "gone.jpg").symlink_to("nowhere")
    packed = run_packing(make_plan(PackingOptions(str(tmp_path / "images"), str(tmp_path / "out"))))
    reasons = [one.reason for one in packed.left_out]
    assert sorted(reasons) == [
        "cannot be read (No such file or directory)",
        "cannot be read (not a regular file)",
    ]


def test_links_to_folders_and_images_are_followed_once(tmp_path):
    write_folder(tmp_path / "real", 8)
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "ant").symlink_to(tmp_path / "real" / "ant")
    (tmp_path / "real" / "ant" / "round").symlink_to(tmp_path / "real" / "ant")
    (tmp_path / "linked" / "bee").mkdir()
    (tmp_path / "linked" / "bee" / "b.jpg").symlink_to(tmp_path / "real" / "bee" / "001.jpg")
    assert samples(pack(tmp_path / "linked", tmp_path / "out")) == {image(0): 0, image(4): 0, image(1): 1}


@pytest.mark.parametrize(
    ("labels", "numbers", "names"),
    [
        (["b", "a", "", "b"], [1, 0, None, 1], ("a", "b")),
        (["7", "0", "", "-1"], [7, 0, None, None], ()),
        (["3.0", "1.0", "", "2.0"], [3, 1, None, 2], ()),  # as pandas writes whole numbers beside a gap
    ],
)
def test_labels_of_a_list_are_names_or_numbers(labels, numbers, names, tmp_path):
    lines = [f"{number}.jpg, {label}" for number, label in enumerate(labels)]
    for number in range(len(labels)):
        (tmp_path / f"{number}.jpg").write_bytes(image(number))
    (tmp_path / "a.csv").write_text("\n".join(["File, Target", *lines]) + "\n")
    out = pack(tmp_path / "a.csv", tmp_path / "out", path_column="File", label_column="Target")
    assert samples(out) == {image(number): label for number, label in enumerate(numbers)}
    assert make_plan(PackingOptions(str(tmp_path / "a.csv"), "o", path_column="File")).class_names == names


def test_a_class_with_a_name_that_cannot_be_printed_is_refused(tmp_path):
    (tmp_path / "0.jpg").write_bytes(image(0))
    (tmp_path / "a.csv").write_text("path,label\n0.jpg,\x1b[31mred\n")
    with pytest.raises(
        ConfigError, match=r"has a class with the name '\\x1b\[31mred', which cannot be printed"
    ):
        make_plan(PackingOptions(str(tmp_path / "a.csv"), "out"))


@pytest.mark.parametrize("write", [write_mixed_list, write_mixed_tables])
def test_numbers_beside_names_need_a_file_of_classes(write, tmp_path):
    source = write(tmp_path / "source")
    match = "whole numbers, such as '7', and others, such as 'x': correct them, or give --classes FILE"
    with pytest.raises(ConfigError, match=match):
        make_plan(PackingOptions(str(source), "out"))
    (tmp_path / "classes.txt").write_text("x\n7\n", encoding="utf-8-sig")
    out = pack(source, tmp_path / "out", classes=tmp_path / "classes.txt")
    assert samples(out) == {image(0): 1, image(1): 0}


def test_other_labels_are_another_packing(tmp_path):
    def plan(labels):
        table = pa.table({"image": [image(0), image(1)], "label": pa.array(labels, pa.int64())})
        pq.write_table(table, tmp_path / "a.parquet")
        return plan_packing(PackingOptions(str(tmp_path / "a.parquet"), str(tmp_path / "out")))

    run_packing(plan([3, 4]))
    with pytest.raises(ConfigError, match="packed with other options or images \\(source_sha256"):
        plan([4, 3])


@pytest.mark.parametrize(
    "columns",
    [
        {"image": pa.array([image(0)]).cast(pa.binary_view()), "label": pa.array(["a"]).cast("string_view")},
        {"image": [image(0)], "label": pa.nulls(1)},
    ],
)
def test_views_and_columns_of_nulls_are_read(columns, tmp_path):
    with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as sink:
        table = pa.table(columns)
        with pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
    label = None if pa.types.is_null(table.schema.field("label").type) else 0
    assert samples(pack(tmp_path / "a.arrow", tmp_path / "out")) == {image(0): label}


def test_class_folders_with_numbers_are_ordered_by_value(tmp_path):
    for name in ("10", "9", "100"):
        (tmp_path / "source" / name).mkdir(parents=True)
        (tmp_path / "source" / name / f"{name}.jpg").write_bytes(image(int(name)))
    out = pack(tmp_path / "source", tmp_path / "out")
    assert samples(out) == {image(9): 0, image(10): 1, image(100): 2}


def test_a_file_of_classes_decides_the_numbers(tmp_path):
    listed = [
        {"wnid": "cow", "name": "Kuh"},
        {"wnid": "bee", "name": "Biene"},
        {"name": "ant"},
        {"name": "dog"},
    ]
    (tmp_path / "classes.json").write_text(json.dumps(listed))
    found = {}
    for write in (write_folder, write_parquet):
        out = tmp_path / write.__name__ / "out"
        pack(write(tmp_path / write.__name__ / "in", 8), out, classes=tmp_path / "classes.json")
        found[write] = samples(out)
        assert json.loads((out / "classes.json").read_text()) == ["Kuh", "Biene", "ant", "dog"]
    numbers = {"cow": 0, "bee": 1, "ant": 2, "dog": 3}
    wanted = {data: numbers[name.partition("/")[0]] for name, data in images(8).items()}
    assert found == {write_folder: wanted, write_parquet: wanted}


def test_plain_bytes_and_names_in_parquet(tmp_path):
    rows = images(8)
    labels = [name.partition("/")[0] for name in rows]
    table = pa.table({"id": list(range(8)), "content": list(rows.values()), "animal": labels})
    pq.write_table(table, tmp_path / "a.parquet")
    out = pack(tmp_path / "a.parquet", tmp_path / "out", label_column="animal")
    assert samples(out) == expected(8)
    assert sorted(name for name, _ in members(out)["out-000000.tar"])[0] == "00000000.cls"


def test_a_path_that_no_file_can_have_is_left_out(tmp_path):
    (tmp_path / "a.jpg").write_bytes(image(0))
    (tmp_path / "list.csv").write_bytes(b"path,label\na.jpg,0\na\0.jpg,1\n")
    options = PackingOptions(source=str(tmp_path / "list.csv"), out=str(tmp_path / "out"), workers=0)
    packed = run_packing(plan_packing(options))
    (left_out,) = packed.left_out
    assert left_out.name == "a\0.jpg"
    assert re.fullmatch(r"cannot be read \(.*embedded null (byte|character).*\)", left_out.reason)


def test_rows_without_bytes_are_read_from_their_path(tmp_path):
    folder = write_folder(tmp_path / "source", 4)
    pictures = [{"bytes": None, "path": name} for name in images(4)]
    table = pa.table({"image": pa.array(pictures, hugging_face_table(4).schema.field("image").type)})
    pq.write_table(table, folder / "a.parquet")
    assert set(samples(pack(folder / "a.parquet", tmp_path / "out"))) == set(images(4).values())


REFUSED = {
    "none": "SOURCE '{tmp}/none' does not exist: give a folder of class folders or of images",
    "empty": "folder '{tmp}/empty' holds no images (jpg, jpeg",
    "splits": "holds the splits test, train, which are not classes: pack each into its own tars",
    "tarred": "holds tars, such as '{tmp}/tarred/a.tar': give them to extract-teacher",
    "dict": "holds a data set of several splits: give one of them, '{tmp}/dict/train'",
    "hub": "holds the splits test, train: pack each into its own tars, such as pack-images",
    "lacks": "lacks 'b.arrow': copy the data set whole",
    "nested": "'{tmp}/nested/state.json' is damaged (",
    "broken.parquet": "file '{tmp}/broken.parquet' cannot be read (",
    "texts.parquet": "has no column with the bytes of images, only text (string): save the images too",
    "two.parquet": "has no column called image, img, ",
    "lacks/*": "SOURCE '{tmp}/lacks/dataset_info.json' is not of a known kind",
    "t*.parquet": "has no column with the bytes of images",
    "two.*": "SOURCE '{tmp}/two.csv' is one of several kinds, .csv, .parquet: give",
    "a**b": "SOURCE '{tmp}/a**b' does not exist: give",
    "tarred/a.tar": "is a tar: give it to extract-teacher if it holds KEY.jpg and KEY.cls, else unpack it",
    "image.jpg": "SOURCE '{tmp}/image.jpg' is not of a known kind",
    "no_path.csv": "has no column called path, image_path, file_name",
    "ragged.csv": "has 3 values where line 1 names 2 columns in line 3: correct it there",
    "gone.csv": "names 'gone.jpg' first, and '{tmp}/gone.jpg' does not exist: paths are relative",
    "only.csv": "names no images",
    "nothing.csv": "has no names of columns in line 1: put path,label there",
    "twice.csv": "has two columns called 'path': rename one",
    "twice.parquet": "has two columns called 'image': rename one",
    "floats.parquet": "has labels of double in column 'label': give whole numbers or names, in this or",
    "kinds": "'{tmp}/kinds/b.parquet' has a column 'image' of int64: give one with the bytes of images",
    "latin.csv": "cannot be read (",
    "s3://bucket/x": "SOURCE 's3://bucket/x' is a URL: pack from and to a disk",
}


def test_what_is_refused_says_what_it_is(tmp_path):
    for folder in (
        "empty",
        "splits/train/a",
        "splits/test/a",
        "tarred",
        "dict/train",
        "hub",
        "lacks",
        "nested",
        "kinds",
    ):
        (tmp_path / folder).mkdir(parents=True)
    table = {"text": ["a"]}
    pq.write_table(pa.table(table), tmp_path / "texts.parquet")
    pq.write_table(pa.table({"left": [b"a"], "right": [b"b"]}), tmp_path / "two.parquet")
    pq.write_table(pa.table([[b"a"], [b"b"]], ["image", "image"]), tmp_path / "twice.parquet")
    pq.write_table(pa.table({"image": [b"a"], "label": [1.5]}), tmp_path / "floats.parquet")
    pq.write_table(pa.table({"image": [b"a"]}), tmp_path / "kinds" / "a.parquet")
    pq.write_table(pa.table({"image": [1]}), tmp_path / "kinds" / "b.parquet")
    for name, data in {
        "splits/train/a/1.jpg": b"x",
        "splits/test/a/1.jpg": b"x",
        "tarred/a.tar": b"x",
        "tarred/a.parquet": b"x",  # beside tars, as img2dataset writes it
        "dict/dataset_dict.json": b"{}",
        "dict/train/dataset_info.json": b"{}",
        "hub/train-00000-of-00001.parquet": b"x",
        "hub/test-00000-of-00001-abc.parquet": b"x",
        "lacks/dataset_info.json": b"{}",
        "lacks/state.json": b'{"_data_files": [{"filename": "b.arrow"}]}',
        "nested/dataset_info.json": b"[" * 60_000,
        "nested/state.json": b"[" * 60_000,
        "broken.parquet": b"PAR1 no",
        "image.jpg": b"x",
        "no_path.csv": b"name,label\na,1\n",
        "ragged.csv": b"path,label\nimage.jpg,1\nimage.jpg,1,2\n",
        "gone.csv": b"path,label\ngone.jpg,1\n",
        "only.csv": b"path,label\n",
        "nothing.csv": b"",
        "twice.csv": b"path,label,path\nimage.jpg,1,2\n",
        "two.csv": b"path,label\n",
        "latin.csv": b"path,label\n\xff.jpg,1\n",
    }.items():
        (tmp_path / name).write_bytes(data)
    wrong = {}
    for source, text in REFUSED.items():
        address = source if "://" in source else str(tmp_path / source)
        with pytest.raises(ConfigError) as refused:
            make_plan(PackingOptions(address, str(tmp_path / "out")))
        if text.format(tmp=tmp_path) not in str(refused.value):
            wrong[source] = str(refused.value)
    assert wrong == {}


def test_wrong_options_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "few.json").write_text('["ant", "bee", "cow"]')
    folder = write_folder(tmp_path / "source", 8)
    few = "label 'dog' is not in --classes 'few.json', which has 3 classes such as"
    for options, text in (
        ({"images_per_tar": 20_000}, "--images-per-tar 20000 is out of range: give 1 to 16,384"),
        ({"classes": Path("few.json")}, few),
        *(
            ({f"{name}_column": "x"}, f"--{name}-column 'x' has no effect on a folder: leave it out")
            for name in ("path", "label", "image")
        ),
        ({"out": "few.json"}, "few.json' is a file; give a new or empty folder"),
        ({"out": "few.json/out"}, "few.json' is a file; give a new or empty folder"),
    ):
        with pytest.raises(ConfigError, match=re.escape(text)):
            plan_packing(PackingOptions(**{"source": str(folder), "out": "out"} | options))


def test_files_whose_numbers_mean_other_classes_are_refused(tmp_path):
    table = hugging_face_table(8)
    text = table.schema.metadata[b"huggingface"].decode()
    other = text.replace('"ant", "bee"', '"bee", "ant"')
    assert other != text
    pq.write_table(table, tmp_path / "a.parquet")
    pq.write_table(table.replace_schema_metadata({"huggingface": other}), tmp_path / "b.parquet")
    with pytest.raises(
        ConfigError, match=r"b.parquet' has other names for the numbers of its labels than the"
    ):
        make_plan(PackingOptions(str(tmp_path), "out"))


def test_a_label_beyond_the_names_is_refused(tmp_path):
    table = hugging_face_table(8)
    wrong = table.set_column(1, "label", pa.array([0, 1, 2, 9] * 2)).replace_schema_metadata(
        table.schema.metadata
    )
    pq.write_table(wrong, tmp_path / "a.parquet")
    with pytest.raises(ConfigError, match="has the label 9, but names only 4 classes"):
        make_plan(PackingOptions(str(tmp_path / "a.parquet"), "out"))
