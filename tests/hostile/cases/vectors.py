"""`pipeline vectors`: outputs, images and names that cannot be written, and full disks."""

from hostile.case import Case, error, rejected, some_unreadable, usage, works
from hostile.cases.environments import shell
from hostile.prepare import CLASSIFIER, EMBEDDING, copy, file, folder, link, steps, tensors

ENDINGS = (".safetensors", ".npz", ".csv", ".parquet")


def negative_variances(values: dict) -> None:
    """Make the network's vectors NaN, with finite values."""
    for name, value in values.items():
        if name.endswith("running_var"):
            value.fill_(-1)


CASES: list[Case] = [
    usage("vectors photos", "--out"),
    usage("vectors --out v.npz", "IMAGE"),
    usage(f"vectors photos --out v.npz --embedding {EMBEDDING} --classifier {CLASSIFIER}", "one"),
    rejected("vectors photos --out ''", "--out|''|ending|path"),
    rejected("vectors photos --out photos", "photos"),
    *(error(f"vectors photos --out {name}", name, ".npz") for name in ("v", "v.txt", ".npz")),
    error("vectors photos --out notes.txt/v.npz", "notes.txt"),
    error("vectors photos --out loop/v.npz", "loop", prepare=link("loop", "loop")),
    error("vectors photos --out folder.npz", "folder.npz", prepare=folder("folder.npz")),
    error(f"vectors photos --out {EMBEDDING} --force", EMBEDDING, "input"),
    error(
        "vectors photos v.npz --out v.npz --force", "v.npz", "input", prepare=file("v.npz", "notes")
    ),
    *(
        error(f"vectors photos --out v{end}", f"v{end}", "--force", prepare=file(f"v{end}", "old"))
        for end in ENDINGS
    ),
    *(
        works(
            f"vectors photos --out v{end} --force",
            prepare=file(f"v{end}", "old"),
            writes=(f"v{end}",),
        )
        for end in ENDINGS
    ),
    *(works(f"vectors photos --out new/v{end}", may_write=True) for end in ENDINGS),
    works(f"vectors photos --classifier {CLASSIFIER} --out v.npz", writes=("v.npz",)),
    works("vectors photos photos --out V.NPZ", "48 vectors", writes=("V.NPZ",)),
    works(
        "vectors photos --out v.safetensors",
        "skipped: photos/ash/0.png",
        prepare=file("photos/ash/0.png", "no image"),
        writes=("v.safetensors",),
        name="vectors: an unreadable image",
    ),
    # The readable images are written.
    some_unreadable(
        "vectors photos notes.txt --out v.npz", "notes.txt", "1 of 25", prints=(), writes=("v.npz",)
    ),
    error("vectors notes.txt --out v.npz", "notes.txt"),
    error("vectors empty --out new/v.npz", "empty", prepare=folder("empty")),
    error("vectors nowhere --out v.npz", "nowhere"),
    error("vectors photos --embedding notes.txt --out v.npz", "notes.txt"),
    error("vectors photos --embedding nowhere.safetensors --out v.npz", "nowhere.safetensors"),
    error("vectors photos --embedding checkpoints/unfinished.state --out v.npz", "state"),
    error(
        "vectors photos --out v.safetensors",
        "photos/ash/0.png",
        "finite",
        prepare=tensors(EMBEDDING, "embedding", negative_variances),
        name="vectors: not finite",
    ),
    # Names.
    *(
        works(
            f"vectors odd --out v{end}",
            prepare=steps(
                *(
                    copy("photos/ash/0.png", f"odd/{name}")
                    for name in ("=1+1.png", "a\nb/c\rd.png", 'q"u,o.png', "@x/-1.png", "猫.png")
                )
            ),
            writes=(f"v{end}",),
            name=f"names: {end}",
        )
        for end in ENDINGS
    ),
    *(
        works(
            f"vectors odd --out v{end}",
            prepare=copy("photos/ash/0.png", b"odd/caf\xe9/\xff.png"),
            writes=(f"v{end}",),
            name=f"names that are not UTF-8: {end}",
        )
        for end in ENDINGS[:3]
    ),
    error(
        "vectors odd --out v.parquet",
        "v.parquet",
        "UTF-8",
        prepare=copy("photos/ash/0.png", b"odd/caf\xe9/\xff.png"),
        name="names that are not UTF-8: .parquet",
    ),
]

SHELL_CASES: list[Case] = [
    # A limit of the size of files acts as a full disk.
    *(
        shell(
            error,
            f"ulimit -f 1; pipeline vectors photos --out new/v{end}",
            f"v{end}",
            "cannot be written",
        )
        for end in (".safetensors", ".npz", ".csv", ".parquet")
    ),
    shell(works, "ls photos/*/*.png | pipeline vectors - --out v.npz", writes=("v.npz",)),
    shell(error, "pipeline vectors - --out v.npz < /dev/null", "-: "),
    shell(error, "pipeline vectors - --out v.npz <&-", "-: "),
    shell(error, "WORLD_SIZE=2 pipeline vectors photos --out v.npz", "RANK"),
]
