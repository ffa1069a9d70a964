"""Enrolment: unusable sources, contradictions, outputs and records."""

from hostile.case import Case, error, rejected, usage, works
from hostile.prepare import CLASSIFIER, EMBEDDING, copy, file, folder, image, record, steps

OUT = "--out new.safetensors"
ENROLLED = {
    "source": "new",
    "classifier_digest": "d",
    "images": {"ash": 1},
    "new_classes": [],
    "copies": 0,
    "distances": 0,
    "skipped": [],
}


def new_class(*names: str) -> object:
    """Write classes with one image each."""
    return steps(*(image(f"new/{name}/0.png") for name in names))


CASES: list[Case] = [
    usage("enroll", "SOURCE|--out"),
    usage("enroll new", "--out"),
    error(f"enroll nowhere {OUT}", "nowhere"),
    usage(f"enroll '' {OUT}", "empty"),
    error(f"enroll digits {OUT}", "digits"),
    error(f"enroll torchvision:MNIST {OUT}", "torchvision:MNIST"),
    error(f"enroll notes.txt {OUT}", "notes.txt", "csv"),
    error(f"enroll new {OUT}", "new", prepare=folder("new"), name="enroll: an empty folder"),
    error(f"enroll new {OUT}", "new", prepare=image("new/0.png"), name="enroll: no class folder"),
    error(
        f"enroll new {OUT}",
        "0.png",
        prepare=file("new/yew/0.png", "text"),
        name="enroll: nothing readable",
    ),
    error(
        f"enroll new.csv {OUT}",
        "new.csv",
        prepare=file("new.csv", "path,label\n"),
        name="enroll: no rows",
    ),
    error(
        f"enroll new.csv {OUT}",
        "gone.png",
        prepare=file("new.csv", "path,label\ngone.png,a\n"),
        name="enroll: a missing image",
    ),
    error(
        f"enroll new {OUT}",
        "Ash",
        "ash",
        "case",
        prepare=new_class("Ash"),
        name="enroll: a known class in another case",
    ),
    error(
        f"enroll new {OUT}",
        "Yew",
        "yew",
        prepare=new_class("Yew", "yew"),
        name="enroll: a new class in two cases",
    ),
    error(
        f"enroll new {OUT}",
        "same image",
        prepare=new_class("oak", "yew"),
        name="enroll: an image in two classes",
    ),
    error(
        f"enroll new {OUT}",
        "same image|several classes",
        "yew",
        prepare=copy("photos/ash", "new/yew"),
        name="enroll: known images as a new class",
    ),
    error(f"enroll new {OUT} --classifier gone", "gone", prepare=new_class("yew")),
    error(f"enroll new {OUT} --classifier {EMBEDDING}", EMBEDDING, prepare=new_class("yew")),
    error("enroll new --out notes.txt", "notes.txt", "--force", prepare=new_class("yew")),
    error(f"enroll new --out {CLASSIFIER}", CLASSIFIER, prepare=new_class("yew")),
    error(f"enroll new --force --out {CLASSIFIER}", CLASSIFIER, prepare=new_class("yew")),
    error(
        "enroll new.csv --force --out new.csv",
        "new.csv",
        prepare=steps(image("a.png"), file("new.csv", "path,label\na.png,yew\n")),
        name="enroll: the source as the output",
    ),
    rejected("enroll new --out photos", "photos", prepare=new_class("yew")),
    rejected("enroll new --out /proc/nowhere/x", "/proc/nowhere", prepare=new_class("yew")),
    # Records with impossible enrolments.
    *(
        error(
            "predict photos",
            CLASSIFIER,
            "enrolled",
            prepare=record(CLASSIFIER, {"enrolled": [{**ENROLLED, **change}]}),
            name=f"enrolled: {change}",
        )
        for change in (
            {"images": {}},
            {"images": {"ash": 0}},
            {"images": [1]},
            {"new_classes": [""]},
            {"images": {"yew": 1}},
            {"images": {"2": 10**6}, "new_classes": ["2"]},
            {"images": {"ash": 10**6}},
            {"images": {"ash": 24}},
            {"images": {"ash": 1, "birch": 10**15}},
            # The last image of the gallery is of the class cedar.
            {"images": {"ash": 1}},
            {"images": {"cedar": 2, "birch": 1}},
            {"images": {"cedar": 1}, "new_classes": ["ash"]},
            {"images": {"cedar": 1}, "new_classes": ["cedar", "cedar"]},
            {"images": {"cedar": 1, "ash": 1}, "new_classes": ["ash"]},
            {"images": {"cedar": 1}, "distances": 2},
            {"copies": -1},
            {"distances": "1"},
            {"distances": 3},
            {"skipped": [{"path": "a"}]},
            {"source": ""},
        )
    ),
    *(
        error(
            command,
            CLASSIFIER,
            "enrolled",
            prepare=steps(
                new_class("yew"),
                record(CLASSIFIER, {"enrolled": [{**ENROLLED, "images": {"cedar": 1000}}]}),
            ),
            name=f"enrolled: too many, {command.split()[0]}",
        )
        for command in (f"enroll new {OUT}", "report", "export --out model.onnx", "classify")
    ),
    error(
        "predict photos",
        CLASSIFIER,
        "enrolled",
        prepare=record(
            CLASSIFIER,
            {
                "enrolled": [
                    {**ENROLLED, "images": {"cedar": 1}, "new_classes": ["cedar"]},
                    {**ENROLLED, "images": {"birch": 1}, "new_classes": ["birch"]},
                ]
            },
        ),
        name="enrolled: new classes in another order",
    ),
    # Tolerated.
    works(
        "predict photos --out rows.csv",
        writes=("rows.csv",),
        prepare=record(EMBEDDING, {"enrolled": 5}),
        name="enrolled: an unknown field of an embedding",
    ),
    works(f"enroll new {OUT}", writes=("new.safetensors",), prepare=new_class("yew")),
    works(
        f"enroll new {OUT}",
        writes=("new.safetensors",),
        prepare=new_class("=yew\n\x1b[31m"),
        name="enroll: control characters",
    ),
    works(
        "enroll new --force --out notes.txt",
        writes=("notes.txt",),
        prepare=new_class("yew"),
        name="enroll: --force replaces a file",
    ),
    works(
        f"enroll new {OUT}",
        "skipped",
        writes=("new.safetensors",),
        prepare=steps(new_class("yew"), file("new/yew/bad.png", "text")),
        name="enroll: an unreadable image",
    ),
    works(
        f"enroll new {OUT}",
        "splits",
        writes=("new.safetensors",),
        prepare=steps(image("new/train/yew/0.png")),
        name="enroll: splits",
    ),
]
