"""Options: values out of range, of the wrong type, unknown, or in conflict."""

import sys

from hostile.case import Case, error, rejected, usage, works
from hostile.prepare import file, folder

NEW = "--out new.safetensors"
EMBED = f"embed --data photos {NEW}"
RUN = "run --data photos --out new"
COMPARE = "compare --data photos --out new"
OTHER_DEVICE = "cuda" if sys.platform == "darwin" else "mps"

# Option -> command that takes it.
WHOLE_NUMBERS = {
    "--size": "embed",
    "--channels": "embed",
    "--dim": "embed",
    "--classes-per-batch": "embed",
    "--images-per-class": "embed",
    "--epochs": "embed",
    "--patience": "embed",
    "--seed": "embed",
    "--split-seed": EMBED,
    "--threads": "embed",
    "--max-iter": "classify",
    "--folds": "run",
    "--repeats": "run --folds 2",
}
NUMBERS = {
    "--lr": "embed",
    "--margin": "embed",
    "--val": "embed",
    "--test": "embed",
    "--max-unreadable": "embed",
    "--unseen-classes": "embed",
    "--dropout": "classify",
}
CHOICES = {
    "--mining hardest": "embed",
    "--distance cosine": "embed",
    "--resize zoom": "embed",
    "--precision fp16": "embed",
    "--device gpu": "classify",
    "--device CPU:0": "predict photos",
}

NOT_NUMBERS: list[Case] = []
OUT_OF_RANGE: list[Case] = []
for option, command in WHOLE_NUMBERS.items():
    OUT_OF_RANGE += [rejected(f"{command} {option} -1", option, "-1")]
    if "seed" not in option:
        OUT_OF_RANGE += [rejected(f"{command} {option} 0", option, "0")]
    for value in ("many", "1.5", "''"):
        NOT_NUMBERS += [usage(f"{command} {option} {value}", option, value)]
for option, command in NUMBERS.items():
    NOT_NUMBERS += [usage(f"{command} {option} much", option, "much")]
    NOT_NUMBERS += [usage(f"{command} {option} ''", option)]
    for value in ("nan", "-inf", "1e400", "-1"):
        shown = "inf" if value == "1e400" else value
        OUT_OF_RANGE += [rejected(f"{command} {option} {value}", option, shown)]
for option, command in CHOICES.items():
    NOT_NUMBERS += [usage(f"{command} {option}", *option.split())]

CASES = [
    *NOT_NUMBERS,
    *OUT_OF_RANGE,
    # Far too large.
    rejected(f"{EMBED} --epochs {10**20}", "--epochs", f"{10**20}"),
    rejected(f"{EMBED} --dim {10**20}", "--dim", f"{10**20}"),
    rejected(f"{EMBED} --size 5000", "--size", "5000"),
    rejected(f"{EMBED} --seed {2**32}", "--seed", f"{2**32}"),
    rejected(f"{EMBED} --split-seed {10**30}", "--split-seed", f"{10**30}"),
    rejected(f"{EMBED} --images-per-class 99999", "--images-per-class", "99999"),
    rejected(f"{EMBED} --images-per-class {10**20}", "--images-per-class", f"{10**20}"),
    rejected(f"{EMBED} --unseen-classes 2", "--unseen-classes", "photos"),
    rejected(f"{EMBED} --unseen-classes {10**20}", "--unseen-classes", f"{10**20}"),
    usage("run --data photos --folds 2 --unseen-classes 2 --out new", "--unseen-classes"),
    rejected(f"{EMBED} --classes-per-batch 100", "--classes-per-batch", "100"),
    rejected("run --data photos --folds 1000 --out new", "--folds", "1000"),
    rejected(f"run --data photos --folds {10**20} --out new", "--folds", f"{10**20}"),
    rejected("run --data photos --folds 2 --repeats 99999999999 --out new", "--repeats"),
    # Just outside.
    error(f"{EMBED} --size 3", "--size", "3"),
    error(f"{EMBED} --channels 2", "--channels", "2"),
    error(f"{EMBED} --classes-per-batch 1", "--classes-per-batch", "1"),
    error(f"{EMBED} --classes-per-batch 4", "--classes-per-batch", "4", "3"),
    error(f"{EMBED} --images-per-class 1", "--images-per-class", "1"),
    error(f"{EMBED} --unseen-classes 1", "--unseen-classes", "1"),
    error(f"{EMBED} --unseen-classes 1.5", "--unseen-classes", "1.5"),
    error(f"{EMBED} --unseen-classes 2.0", "--unseen-classes", "2.0", "whole"),
    error(f"{EMBED} --unseen-classes 1e9", "--unseen-classes", "1000000000"),
    error("predict photos --reject -0.1", "--reject", "-0.1"),
    error(f"{EMBED} --lr 0", "--lr", "0"),
    error(f"{EMBED} --lr 2", "--lr", "2"),
    error(f"{EMBED} --margin 0", "--margin", "0"),
    error(f"{EMBED} --margin 5", "--margin", "5"),
    error(f"{EMBED} --margin 2.5", "--margin", "2.5", "soft"),
    error(f"{EMBED} --margin 5 --distance squared", "--margin", "5", "4"),
    error(f"{EMBED} --val 0.95", "--val", "0.95"),
    error(f"{EMBED} --test 1", "--test", "1"),
    error(f"{EMBED} --val 0.5 --test 0.5", "--val", "0.5"),
    error(f"{EMBED} --max-unreadable 2", "--max-unreadable", "2"),
    error("classify --dropout 1", "--dropout", "1"),
    error("run --data photos --folds 1", "--folds", "1"),
    error("run --data photos --folds 25 --out new", "--folds", "25", "24"),
    # Networks and weights.
    error(f"{EMBED} --network nonsense", "--network", "nonsense"),
    error(f"{EMBED} --network vit_tiny_patch16_224", "--network", "timm:vit_tiny_patch16_224"),
    error(f"{EMBED} --network ''", "--network"),
    error(f"{EMBED} --network torchvision:", "--network", "torchvision:"),
    error(f"{EMBED} --network torchvision:nonsense", "--network", "nonsense"),
    error(f"{EMBED} --network timm:", "--network", "timm:"),
    error(f"{EMBED} --network timm:nonsense", "--network", "timm:nonsense"),
    error(f"{EMBED} --network huggingface:resnet", "--network", "huggingface:resnet"),
    error(f"{EMBED} --trunk last-0", "--trunk", "last-0"),
    error(f"{EMBED} --trunk last-", "--trunk", "last-"),
    error(f"{EMBED} --trunk last--1", "--trunk", "last--1"),
    error(f"{EMBED} --trunk thaw", "--trunk", "thaw"),
    error(f"{EMBED} --trunk last-999", "--trunk", "last-999"),
    error(f"{EMBED} --network torchvision:resnet18 --trunk last-999", "--trunk", "last-999"),
    works(f"{EMBED} --trunk frozen --epochs 1", "frozen", may_write=True),
    error(f"{EMBED} --weights default", "--weights", "default", "network"),
    error("embed --data photos --network conv-deep --dim 8", "network conv instead of conv-deep"),
    error(f"{EMBED} --weights ''", "--weights"),
    error(f"{EMBED} --network efficientnet-lite0 --weights nowhere.pth", "nowhere.pth"),
    error(f"{EMBED} --network efficientnet-lite0 --weights photos", "--weights", "photos"),
    error(f"{EMBED} --network efficientnet-lite0 --weights notes.txt", "--weights", "notes.txt"),
    error(
        f"{EMBED} --network efficientnet-lite0 --weights empty.safetensors",
        "empty.safetensors",
        prepare=file("empty.safetensors"),
    ),
    error(
        f"{EMBED} --network efficientnet-lite0 --weights checkpoints/embedding.safetensors",
        "checkpoints/embedding.safetensors",
    ),
    error(f"{EMBED} --device {OTHER_DEVICE}", "--device", OTHER_DEVICE),
    # Losses of pytorch-metric-learning.
    error(f"{EMBED} --loss pml:Nonsense", "--loss", "pml:Nonsense", "pml:"),
    error(f"{EMBED} --loss pml:", "--loss", "pml:"),
    error(f"{EMBED} --loss contrastive", "--loss", "contrastive", "pml:NAME"),
    error(f"{EMBED} --loss pml:VICRegLoss", "--loss", "two views"),
    error(f"{EMBED} --loss pml:SupConLoss --mining batch-hard", "--mining", "batch-hard"),
    error(f"{EMBED} --loss pml:SupConLoss --margin 0.3", "--margin", "triplet loss"),
    usage(f"{EMBED} --loss pml:SupConLoss --loss-options '{{'", "--loss-options", "{"),
    *[
        error(f"{EMBED} --loss pml:SupConLoss --loss-options '{options}'", "--loss-options", text)
        for options, text in {
            '{"alpha": 1}': "temperature",
            '{"temperature": NaN}': "finite",
            '{"distance": "nonsense"}': "CosineSimilarity",
            '{"distance": ["LpDistance"]}': "LpDistance",
        }.items()
    ],
    error(f"{EMBED} --loss-options '{{\"margin\": 0.2}}'", "--loss-options", "triplet"),
    # Seeds, folds and repeats.
    usage(f"{RUN} --seeds 0,0", "--seeds", "0,0"),
    usage(f"{RUN} --seeds 0,x", "--seeds", "0,x"),
    usage(f"{RUN} --seeds 1.5", "--seeds", "1.5"),
    usage(f"{RUN} --seeds 0,,1", "--seeds", "0,,1"),
    usage(f"{RUN} --seeds ,", "--seeds", ","),
    rejected(f"{RUN} --embedding e --classifier c --seeds ''", "--seeds"),
    rejected(f"{RUN} --seeds -1", "--seed", "-1"),
    rejected(f"{RUN} --seeds {2**32}", "--seed", f"{2**32}"),
    usage(f"{RUN} --repeats 2", "--repeats", "--folds"),
    usage(f"{RUN} --folds 2 --seeds 0,1", "--folds", "--seeds"),
    usage(f"{RUN} --folds 2 --resume", "--folds", "--resume"),
    usage(f"{RUN} --folds 2 --embedding e", "--folds", "--embedding"),
    usage(f"{RUN} --folds 2 --classifier c", "--folds", "--classifier"),
    usage(f"{RUN} --folds 2 --test 0.5", "--folds", "--test"),
    # Comparisons.
    usage(COMPARE, "--networks"),
    usage(f"{COMPARE} --networks conv", "--networks"),
    usage(f"{COMPARE} --networks conv,conv", "--networks", "conv"),
    usage(f"{COMPARE} --networks conv,", "--networks", "conv,"),
    usage(f"{COMPARE} --networks ''", "--networks"),
    usage(f"{COMPARE} --networks conv,conv-deep --mining random,batch-all", "--mining"),
    usage(f"{COMPARE} --network conv", "--network"),
    usage(f"{COMPARE} --networks conv,conv-deep --resume", "--resume"),
    usage(f"{COMPARE} --networks conv,conv-deep --repeats 2", "--repeats", "--folds"),
    usage(f"{COMPARE} --networks conv,conv-deep --folds 2 --test 0.5", "--folds", "--test"),
    error(f"{COMPARE} --networks conv,conv-deep --weights default", "--weights", "conv"),
    error(f"{COMPARE} --networks conv,conv-deep --dim 0", "--dim", "0"),
    error(f"{COMPARE} --networks conv,conv-deep --trunk thaw", "--trunk", "thaw"),
    error(f"{COMPARE} --networks conv,conv-deep --folds 25", "--folds", "25", "24"),
    error(f"{COMPARE} --networks conv,conv-deep --folds 2 --repeats 0", "--repeats", "0"),
    error(f"{COMPARE} --networks conv,auto", "--networks", "auto", "conv"),
    error(f"{COMPARE} --networks nonsense,timm:nonsense", "nonsense", "timm:nonsense"),
    error(f"{COMPARE} --losses nonsense,hinge", "nonsense", "hinge"),
    error(f"{COMPARE} --losses pml:Nonsense,pml:Hinge", "pml:Nonsense", "pml:Hinge"),
    error(f"{COMPARE} --mining hardest,softest", "hardest", "softest"),
    error(f"{COMPARE} --networks conv,conv-deep --data nowhere", "nowhere"),
    # The command line itself.
    usage("train", "train"),
    usage("embed --nonsense", "--nonsense"),
    usage("embed --dims 8", "--dims"),
    usage("embed --dim", "--dim"),
    usage("embed --dim=", "--dim"),
    usage("embed --no-augment=1", "--no-augment"),
    usage("embed --quiet=yes", "--quiet"),
    usage("embed photos extra", "extra"),
    usage("data photos extra", "extra"),
    usage("embed --config x.toml", "--config"),
    usage("classify --precision bf16", "--precision"),
    usage("report --force-all", "--force-all"),
    usage("--nonsense", "--nonsense"),
    usage("predict", "IMAGE"),
    usage("predict --json", "IMAGE"),
    rejected("embed --dim 8 --dim 0", "--dim", "0"),
    rejected("embed --data digits --data nowhere", "nowhere"),
    rejected("embed --tensorboard notes.txt --data photos " + NEW, "notes.txt"),
    error("report --classifier a --classifier b", "--classifier", "2"),
    error("report --embedding a --embedding b", "--classifier|--embedding", "2"),
    rejected("run --data photos --embedding same --classifier same", "same"),
    rejected("run --data photos --embedding same --classifier ./same", "same"),
    error("embed --cache notes.txt --data photos " + NEW, "notes.txt"),
    error("embed --cache notes.txt/below --data photos " + NEW, "notes.txt"),
    error("data torchvision:MNIST --root notes.txt", "torchvision:MNIST", "notes.txt"),
    # Tolerated.
    works("data photos --size ８", prints=("8 x 8",)),
    works("data photos --size ' 8 '", prints=("8 x 8",)),
    works("data photos --size 1_0", prints=("10 x 10",)),
    works("data photos --val 0", prints=("0 validation",)),
    works("data photos --test 0", prints=("0 test",)),
    works("data photos --val 0 --test 0", prints=("24 training",)),
    works("data --data photos", prints=("24 images",)),
    works("data photos --cache deep/er", prints=("24 images",), may_write=True),
    works(
        f"{EMBED} --epochs 1 --val 0",
        "no validation",
        writes=("new.safetensors", "new.history.csv", "new.state"),
    ),
    works(f"embed photos --epochs 1 {NEW}", may_write=True, writes=("new.safetensors",)),
    works(f"{EMBED} --epochs 1 --margin soft", may_write=True, writes=("new.safetensors",)),
    works(f"{EMBED} --epochs 1 --patience 1", may_write=True, writes=("new.safetensors",)),
    works(
        "run --data photos --test 0 --epochs 1 --embedding new/e.safetensors "
        "--classifier new/c.safetensors --out new/reports",
        "test",
        may_write=True,
        writes=("new/e.safetensors", "new/c.safetensors"),
        name="run --test 0",
    ),
    works("embed --help", prints=("--images-per-class",), prepare=folder("stages")),
    works("embed --help", environment={"COLUMNS": "1"}, name="COLUMNS=1 embed --help"),
    works("embed --help", environment={"COLUMNS": "-5"}, name="COLUMNS=-5 embed --help"),
]
