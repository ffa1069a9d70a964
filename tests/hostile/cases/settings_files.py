"""Settings files of ``--config``: unreadable, malformed, unknown names, values of a wrong type."""

from hostile.case import Case, error, rejected, works
from hostile.prepare import fifo, file, folder, link

OUT = 'data = "photos"\nout = "new.safetensors"\n'


def toml(text: str | bytes, command: str = "embed", *mentions: str, name: str = "") -> Case:
    """Expect that a command rejects a settings file."""
    title = name or str(text).replace("\n", " ")
    prepare = file("x.toml", text)
    return rejected(f"--config x.toml {command}", *mentions, prepare=prepare, name=title)


def value(text: str, *mentions: str) -> Case:
    """Expect that `embed` rejects the value of an option, which the message names."""
    key = text.split(" = ")[0]
    return toml(f"[embed]\n{OUT}{text}\n", "embed", key, *mentions, name=f"[embed] {text}")


def accepted(text: str | bytes, command: str, *mentions: str, name: str = "") -> Case:
    """Expect that `data` or another fast command accepts a settings file."""
    prepare = file("x.toml", text)
    title = name or str(text).replace("\n", " ")
    return works(f"--config x.toml {command}", *mentions, prepare=prepare, name=title)


CASES = [
    # The file.
    error("--config nowhere.toml embed", "--config", "nowhere.toml"),
    error("--config photos embed", "--config", "photos"),
    error("--config notes.txt embed", "--config", "notes.txt"),
    error("--config photos/ash/0.png embed", "--config", "photos/ash/0.png"),
    rejected("--config '' embed", "--config"),
    rejected("--config notes.txt/x embed", "notes.txt/x"),
    rejected(f"--config {'x' * 300} embed", "--config", "xxx"),
    rejected("--config pipe embed", "--config", "pipe", prepare=fifo("pipe")),
    rejected("--config loop embed", "--config", "loop", prepare=link("loop", "loop")),
    rejected("--config /dev/zero embed", "--config", "/dev/zero"),
    rejected("--config photos.toml embed", "photos.toml", prepare=folder("photos.toml")),
    toml(b"[embed]\nnetwork = '\xe9'\n", "embed", "x.toml", name="latin-1"),
    toml("[embed]\nepochs = 5\n".encode("utf-16"), "embed", "x.toml", name="UTF-16"),
    toml("[embed]\nepochs = 5\0\n", "embed", "x.toml", name="NUL"),
    toml(b"\x00" * 1000, "embed", "x.toml", name="zeros"),
    # The syntax and the names.
    toml("[embed\nepochs = 5\n", "embed", "x.toml", "line 1"),
    toml("[embed]\nepochs = \n", "embed", "x.toml", "line 2"),
    toml("[embed]\nepochs = 5\nepochs = 6\n", "embed", "x.toml", "line 3"),
    toml("[embed]\n[embed]\n", "embed", "x.toml", "line 2"),
    toml("epochs = 5\n", "embed", "x.toml", "epochs"),
    toml("embed = 5\n", "embed", "x.toml", "embed"),
    toml("[train]\nepochs = 5\n", "embed", "x.toml", "train"),
    toml("[[embed]]\nepochs = 5\n", "embed", "x.toml", "embed"),
    toml("[embed]\nepoch = 5\n", "embed", "x.toml", "epoch", "epochs"),
    toml("[embed]\nmax-iter = 5\n", "embed", "x.toml", "max-iter"),
    toml("[embed]\n--epochs = 5\n", "embed", "x.toml", "--epochs"),
    toml("[embed]\nEPOCHS = 5\n", "embed", "x.toml", "EPOCHS"),
    toml("[embed.nested]\nepochs = 5\n", "embed", "x.toml", "nested"),
    toml('[embed]\n"" = 5\n', "embed", "x.toml"),
    toml('[embed]\n"\\u001b[2J" = 5\n', "embed", "x.toml", name="escape code as an option"),
    toml("[classify]\nepochs = 5\n", "embed", "x.toml", "epochs", name="error in another table"),
    # Values.
    value("epochs = [1]"),
    value('epochs = "1"'),
    value("epochs = { a = 1 }"),
    value("epochs = 2026-11-24"),
    value("epochs = 12:30:00"),
    value("epochs = 1.9", "1.9"),
    value("epochs = true"),
    value('epochs = "many"', "many"),
    value('epochs = ""'),
    value("epochs = 0", "0"),
    value(f"epochs = {10**20}", f"{10**20}"),
    value("dim = inf", "inf"),
    value("lr = nan", "nan"),
    value("lr = [0.1]"),
    value("lr = true"),
    value('lr = "fast"', "fast"),
    value("margin = -1", "-1"),
    value("margin = []"),
    value('mining = "hardest"', "hardest"),
    value("mining = 3", "3"),
    value('mining = ["random"]'),
    value('augment = "maybe"', "maybe"),
    value("augment = 3"),
    value("augment = [true]"),
    value("network = 5"),
    value("network = []"),
    value("cache = [1]"),
    value("cache = true"),
    toml('[embed]\nout = 5\ndata = "photos"\n', "embed", "out"),
    toml('[embed]\nout = [1]\ndata = "photos"\n', "embed", "out"),
    toml('[embed]\nout = "a\\u0000b"\ndata = "photos"\n', "embed", "out|a\\x00b"),
    toml('[embed]\nout = ""\ndata = "photos"\n', "embed", "out"),
    toml("[embed]\ndata = 5\n", "embed", "data|5"),
    toml("[embed]\ndata = [1, 2]\n", "embed", "data"),
    toml('[embed]\ndata = "a\\u0000b"\n', "embed", "data|a\\x00b"),
    toml("[report]\nembedding = [1]\n", "report", "embedding"),
    toml("[report]\nembedding = { a = 1 }\n", "report", "embedding"),
    toml('[run]\nseeds = ["a"]\n', "run --data photos --out new", "seeds"),
    toml("[run]\nseeds = 1.5\n", "run --data photos --out new", "seeds"),
    toml("[run]\nfolds = true\n", "run --data photos --out new", "folds"),
    toml("[classify]\ndropout = [1]\n", "run --data photos --out new", "dropout"),
    toml("[classify]\ndropout = 1.5\n", "run --data photos --out new", "dropout", "1.5"),
    toml("[classify]\nmax-iter = 0\n", "run --data photos --out new", "max-iter", "0"),
    toml("[predict]\nimages = 5\n", "predict", "images|IMAGE"),
    # Tolerated.
    accepted("", "data photos", name="empty settings"),
    accepted("# only a comment", "data photos", name="only a comment"),
    accepted("\ufeff[data]\nsize = 8\n", "data photos", name="settings with a byte order mark"),
    accepted("[data]\r\nsize = 8\r\n", "data photos", name="settings with Windows line ends"),
    accepted("[data]\n[embed]\n[run]\n", "data photos", name="empty tables"),
    accepted("[data]\nmax_unreadable = 0.5\n", "data photos", name="underscore in a name"),
    accepted("[data]\nval = 0\n", "data photos", name="whole number for a share"),
    accepted("[data]\nsize = 3\n", "data photos --size 8", name="an option wins over the file"),
]
