"""CSV manifests: malformed tables, invalid rows, and unusual ones that are read."""

from hostile.case import Case, error, works
from hostile.prepare import file, manifest

ROWS = "".join(
    f"photos/{name}/{number}.png,{name}\n"
    for name in ("ash", "birch", "cedar")
    for number in range(8)
)
FIRST = "photos/ash/0.png"
TABLE = "path,label\n" + ROWS


def with_column(name: str, *values: str) -> str:
    """Return the table with another column, whose values repeat."""
    rows = [f"{row},{values[index % len(values)]}\n" for index, row in enumerate(ROWS.split())]
    return f"path,label,{name}\n" + "".join(rows)


def invalid(title: str, text: str, *mentions: str, encoding: str = "utf-8") -> Case:
    """Expect that a manifest is rejected."""
    prepare = manifest(text, encoding)
    return error("data list.csv", "list.csv", *mentions, prepare=prepare, name=f"CSV: {title}")


def read(title: str, text: str, *mentions: str, images: int = 24, encoding: str = "utf-8") -> Case:
    """Expect that a manifest is read."""
    prepare = manifest(text, encoding)
    return works(
        "data list.csv",
        *mentions,
        prints=(f"{images} images",),
        prepare=prepare,
        name=f"CSV: {title}",
    )


CASES = [
    invalid("empty", ""),
    invalid("only line breaks", "\n\n\n"),
    invalid("no rows", "path,label\n", "row"),
    invalid("no header", ROWS, "path"),
    invalid("no path", TABLE.replace("path", "file"), "path", "file"),
    invalid("no label", TABLE.replace("label", "class"), "label", "class"),
    invalid("path twice", "path,path,label\n" + f"{FIRST},{FIRST},ash\n", "path"),
    invalid("label twice", f"path,label,label\n{FIRST},ash,birch\n", "label"),
    invalid("split twice", f"path,label,split,split\n{FIRST},ash,train,test\n", "split"),
    invalid("label twice in two cases", f"path,label,Label\n{FIRST},ash,birch\n", "label"),
    invalid("semicolons", TABLE.replace(",", ";"), "path"),
    invalid("tabs", TABLE.replace(",", "\t"), "path"),
    invalid("a line for spreadsheets", "sep=,\n" + TABLE),
    invalid("one column", "path\n" + FIRST, "label"),
    invalid("latin-1", TABLE + "photos/é.png,é\n", "UTF-8", encoding="latin-1"),
    invalid("UTF-16", TABLE, "UTF-8", encoding="utf-16"),
    invalid("a row that is too long", TABLE + f"{FIRST},ash,b,c\n", "26"),
    invalid("a row that is too short", TABLE + f"{FIRST}\n", "line 26", "label"),
    invalid("an empty label", TABLE + f"{FIRST},\n", "line 26", "label"),
    invalid("a label of spaces", TABLE + f"{FIRST},   \n", "line 26", "label"),
    invalid("an empty path", TABLE + ",ash\n", "line 26", "path"),
    invalid("an open quote", f'path,label\n"{FIRST},ash\n' + ROWS),
    invalid("an unknown split", with_column("split", "train", "dev"), "line 3", "dev"),
    invalid("a split of numbers", with_column("split", "0", "1"), "line 2", "0"),
    invalid("an unknown role", with_column("split,role", "test,judge"), "line 2", "judge"),
    invalid("a role in training", with_column("split,role", "train,query"), "line 2", "query"),
    invalid("a role missing", with_column("split,role", "test,query", "test,"), "line 3", "role"),
    invalid("queries alone", with_column("split,role", "train,", "test,query"), "gallery"),
    invalid("all files missing", TABLE.replace("photos", "nowhere")),
    invalid("addresses", TABLE.replace("photos", "https://example.org"), "https://example.org"),
    invalid("a list of paths", "path,label\nphotos,ash\nphotos/ash,birch\n"),
    invalid("NUL everywhere", "\0".join(TABLE)),
    error(
        "data list.csv",
        "list.csv",
        prepare=file("list.csv", bytes(range(256)) * 9),
        name="CSV: binary",
    ),
    error("data list.csv", "list.csv", prepare=file("list.csv", b"\0" * 5000), name="CSV: zeros"),
    error(
        "embed --data list.csv --out new.safetensors --epochs 5000",
        "list.csv",
        prepare=manifest(with_column("split", "test")),
        name="CSV: only test images",
    ),
    error(
        "embed --data list.csv --out new.safetensors --epochs 5000",
        "list.csv",
        "1 class",
        prepare=manifest(
            "path,label\n"
            + ROWS[:200].rpartition("\n")[0].replace("birch,", "ash,").replace(",birch", ",ash")
        ),
        name="CSV: one class",
    ),
    error(
        "embed --data list.csv --out new.safetensors --epochs 5000",
        "list.csv",
        "--max-unreadable",
        prepare=manifest(TABLE + ROWS.replace("photos", "nowhere")),
        name="CSV: half of the files missing",
    ),
    # Tolerated.
    read("byte order mark", "\ufeff" + TABLE),
    read("Windows line ends", TABLE.replace("\n", "\r\n")),
    read("old Mac line ends", TABLE.replace("\n", "\r")),
    read("no line break at the end", TABLE.rstrip()),
    read("empty lines", TABLE.replace("\n", "\n\n")),
    read("header in capitals", TABLE.replace("path,label", "PATH,Label")),
    read("spaces around names", TABLE.replace("path,label", " path , label ")),
    read(
        "spaces around paths",
        "path,label\n" + ROWS.replace("photos", " photos").replace(".png,", ".png ,"),
    ),
    read("spaces around labels", TABLE.replace(",ash", ", ash ")),
    read("other columns", with_column("note", "x")),
    read("other columns twice", with_column("note,note", "x,y")),
    read(
        "quotes",
        "path,label\n"
        + "".join('"{}","{}, a tree"\n'.format(*row.split(",")) for row in ROWS.split()),
    ),
    read(
        "columns in another order",
        "label,path\n" + "".join("{1},{0}\n".format(*row.split(",")) for row in ROWS.split()),
    ),
    read("splits in capitals", with_column("split", "Train", "TEST", " val ")),
    read("empty splits", with_column("split", "", "train", "")),
    read("roles", with_column("split,role", "train,", "train,", "test,Query", "test,gallery")),
    read("groups", with_column("group", "a", "b", "", "c")),
    read("one group", with_column("group", "a")),
    read("numbers as labels", TABLE.replace(",ash", ",1").replace(",birch", ",1.0")),
    read("missing values as labels", TABLE.replace(",ash", ",NA").replace(",birch", ",nan")),
    read("a formula as a label", TABLE.replace(",ash", ",=1+1")),
    read("escape codes in a label", TABLE.replace(",ash", ",\x1b[2J\x07")),
    read("a long label", TABLE.replace(",ash", "," + "x" * 5000)),
    read("one missing file", TABLE + "photos/ash/9.png,ash\n"),
    read("a path with NUL", TABLE + "photos/\0.png,ash\n"),
    read("the same path twice", TABLE + f"{FIRST},ash\n", images=25),
    works(
        "data list.csv",
        prints=("label conflicts", FIRST),
        prepare=manifest(TABLE + f"{FIRST},birch\n"),
        name="CSV: two labels for one path",
    ),
    works("data LIST.CSV", prints=("24 images",), prepare=file("LIST.CSV", TABLE)),
    works(
        "data deep/list.csv",
        prints=("24 images",),
        prepare=file("deep/list.csv", TABLE.replace("photos", "../photos")),
    ),
]
