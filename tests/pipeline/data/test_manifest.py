"""Read CSV manifests, unusual and invalid ones included."""

import random

import pytest
from sample_sources import (
    ROWS,
    Check,
    Writer,
    check_readable,
    check_rejected,
    count_images,
    file_with,
    manifest,
    write_manifest,
)

from pipeline.data.sources import load_dataset
from stages.errors import PipelineError
from stages.settings import ReadSettings

LINES = ROWS.split()

READABLE: dict[str, tuple[Writer, Check]] = {
    "path and label": (
        manifest("path,label\n" + ROWS),
        lambda audit: audit["images"] == 20 and list(audit["classes"]) == ["a", "b"],
    ),
    "saved by a spreadsheet": (
        manifest("\ufeffPath , LABEL\r\n" + ROWS.replace("\n", "\r\n")),
        lambda audit: audit["images"] == 20,
    ),
    "splits": (
        manifest(
            "path,label,split\n"
            + "".join(f"{line},{'test' if '/1' in line else 'Train'}\n" for line in LINES)
        ),
        lambda audit: audit["given"] == ["train", "test"] and count_images(audit)[2] == 2,
    ),
    "rows without a split": (
        manifest(
            "path,label,split\n" + ROWS.replace("\n", ",\n").replace("0.png,a,", "0.png,a,test")
        ),
        lambda audit: count_images(audit)[2] == 1 and audit["images"] == 20,
    ),
    "missing files": (
        manifest("path,label\n" + ROWS + "none.png,a\nb,a\n"),
        lambda audit: len(audit["unreadable"]) == 2,
    ),
    "quotes": (
        manifest("path,label\n" + ROWS + '"a/0.png","x, y"\n"a/1.png","x, y"\n'),
        lambda audit: "x, y" in audit["classes"],
    ),
    "other columns": (
        manifest("id,path,label\n" + "".join(f"7,{line}\n" for line in LINES)),
        lambda audit: audit["images"] == 20,
    ),
    "labels that pandas reads as missing": (
        manifest("path,label\n" + ROWS.replace(",a", ",NA").replace(",b", ",null")),
        lambda audit: list(audit["classes"]) == ["NA", "null"],
    ),
    "a label of 5,000 digits": (
        manifest("path,label\n" + ROWS.replace(",a", "," + "9" * 5000)),
        lambda audit: audit["images"] == 20,
    ),
    "spaces around values": (
        manifest(" path , label \n" + ROWS.replace(",a", " , a ")),
        lambda audit: audit["images"] == 20 and list(audit["classes"]) == ["a", "b"],
    ),
    "empty rows": (
        manifest("\n\npath,label\n\n" + ROWS.replace("\n", "\n\n,\n  ,  \n")),
        lambda audit: audit["images"] == 20,
    ),
    "line ends of old systems": (
        manifest("path,label\r" + ROWS.replace("\n", "\r")),
        lambda audit: audit["images"] == 20,
    ),
    "paths of Windows": (
        manifest("path,label\n" + ROWS.replace("/", "\\")),
        lambda audit: audit["images"] == 20,
    ),
    "paths with two dots": (
        manifest("path,label\n" + "".join(f"../source/{line}\n" for line in LINES)),
        lambda audit: audit["images"] == 20,
    ),
    "an image twice": (
        manifest("path,label\n" + ROWS + "a/0.png,a\na/1.png,b\n"),
        lambda audit: (
            audit["images"] == 22
            and audit["exact_duplicates"] == [["a/0.png"] * 2, ["a/1.png"] * 2]
            and audit["label_conflicts"] == [["a/1.png"] * 2]
        ),
    ),
    "a label with a line break": (
        manifest("path,label\n" + ROWS.replace(",a", ',"a\nb"')),
        lambda audit: list(audit["classes"]) == ["a\nb", "b"],
    ),
    "short rows": (
        manifest("path,label,split,group\n" + ROWS),
        lambda audit: audit["images"] == 20,
    ),
    "roles": (
        manifest(
            "path,label,split,role\n"
            + "".join(f"{line},test,{('Query', ' gallery')['/1' in line]}\n" for line in LINES[:2])
            + "".join(f"{line},,\n" for line in LINES[2:])
        ),
        lambda audit: count_images(audit)[2] == 2,
    ),
    "an empty column of roles": (
        manifest("path,label,role\n" + ROWS.replace("\n", ",\n")),
        lambda audit: audit["images"] == 20,
    ),
    "a path with a null byte": (
        manifest("path,label\n" + ROWS + "a\0b.png,a\n"),
        lambda audit: audit["images"] == 20,
    ),
}


@pytest.mark.parametrize("name", READABLE)
def test_unusual_manifests_are_read(name, tmp_path, capsys):
    check_readable(*READABLE[name], tmp_path, capsys)


def with_roles(*roles: str) -> Writer:
    """Return a writer whose first rows have a split and a role."""
    rows = [f"{line},{role}\n" for line, role in zip(LINES, roles, strict=False)]
    rows += [f"{line},,\n" for line in LINES[len(roles) :]]
    return manifest("path,label,split,role\n" + "".join(rows))


REJECTED: dict[str, tuple[Writer, str]] = {
    "one missing file": (
        manifest("path,label\nnone.png,a\n"),
        "the first: no such file: ",
    ),
    "empty": (manifest(""), "no column path"),
    "no rows": (manifest("path,label\n"), "no row"),
    "no labels": (manifest("path,split\na/0.png,train\n"), "no column label"),
    "no header": (manifest(ROWS), "no column path"),
    "semicolons": (manifest("path;label\n" + ROWS.replace(",", ";")), "semicolons"),
    "two label columns": (manifest("path,label,Label\n" + ROWS), "several columns label"),
    "two split columns": (manifest("path,label,split,split\n" + ROWS), "several columns split"),
    "an unknown role": (with_roles("test,judge"), "line 2 has the role 'judge'"),
    "a role without a split": (with_roles(",query"), "line 2 has the role query"),
    "a role in training": (with_roles("train,query"), "in the split train"),
    "a role missing": (with_roles("test,query", "test,gallery", "test,"), "line 4 has no role"),
    "queries alone": (with_roles("test,query"), "no test image has the role gallery"),
    "a gallery alone": (with_roles("test,gallery"), "no test image has the role query"),
    "tabs": (manifest("path\tlabel\n" + ROWS.replace(",", "\t")), "tabs"),
    "UTF-16": (manifest("path,label\n" + ROWS, "utf-16"), "UTF-8"),
    "latin-1": (
        manifest("path,label\na/0.png,a\noufs/é.png,é\n", "latin-1"),
        "line 3 is not in UTF-8",
    ),
    "binary": (file_with(bytes(range(256)) * 9, "list.csv"), "list.csv"),
    "an empty label": (manifest("path,label\n" + ROWS + "a/1.png,\n"), "line 22 has no label"),
    "an empty path": (manifest("path,label\n" + ROWS + ",a\n"), "line 22 has no path"),
    "an empty label behind empty rows and a line break": (
        manifest('path,label\n\na/1.png,"a\nb"\n\na/2.png,\n'),
        "line 6 has no label",
    ),
    "a row that is too long": (
        manifest("path,label\n" + ROWS + "a/1.png,a,b,c\n"),
        "line 22 has 4 values for 2 columns",
    ),
    "a field of 10 MB": (
        manifest("path,label\n" + ROWS + f"a/1.png,{'x' * 10_000_000}\n"),
        "line 22",
    ),
    "an unknown split": (manifest("path,label,split\na/0.png,a,valid\n"), "'valid'"),
    "only test images": (manifest("path,label,split\n" + ROWS.replace("\n", ",test\n")), "0 class"),
    "an open quote": (manifest('path,label\n"a/0.png,a\n' + ROWS), "line 2: "),
}


@pytest.mark.parametrize("name", REJECTED)
def test_invalid_manifests_are_one_error(name, tmp_path, capsys):
    write, message = REJECTED[name]
    check_rejected(write, message, tmp_path, capsys)


def test_number_of_cases():
    assert len(READABLE) + len(REJECTED) >= 26


def corrupt(content: bytes, generator: random.Random, *, keep_length: bool) -> bytes:
    """Replace one to eight bytes, or pieces of up to four bytes."""
    corrupted = bytearray(content)
    for _ in range(generator.choice((1, 2, 8))):
        position = generator.randrange(len(corrupted))
        if keep_length:
            corrupted[position] = generator.randrange(256)
        else:
            end = position + generator.randrange(5)
            piece = generator.choices(b',\n"\r;\0 a1', k=generator.randrange(4))
            corrupted[position:end] = bytes(piece)
    return bytes(corrupted)


@pytest.mark.slow
def test_corrupted_manifests_are_read_or_one_error(tmp_path):
    generator = random.Random(1)
    rows = "".join(f"{line},,g{index % 7}\n" for index, line in enumerate(LINES))
    valid = ("path,label,split,group\n" + rows).encode()
    path = write_manifest(tmp_path / "source", "")
    read = 0
    for case in range(1500):
        path.write_bytes(corrupt(valid, generator, keep_length=case % 2 == 1))
        try:
            load_dataset(str(path), ReadSettings(), cache=tmp_path / "cache")
            read += 1
        except PipelineError:
            pass
    assert 100 < read < 1400
