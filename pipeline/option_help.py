"""Help texts of the options that are fields of the settings."""

HELP = {
    "size": "Side of the square images in pixels.",
    "channels": "Number of channels, 1 (grey) or 3 (colour).",
    "resize": "How an image is fitted to the square.",
    "jpeg": "Decode large JPEG images at a half, a quarter or an eighth of their size, which is "
    "faster, or in full.",
    "split_seed": "Seed of the split into training, validation and test images.",
    "val": "Share of validation images, if the source has no validation split.",
    "test": "Share of test images, if the source has no test split.",
    "max_unreadable": "Largest share of unreadable images that is accepted.",
    "unseen_classes": "Classes to test and not to train on: a number of classes such as 3, or a "
    "share such as 0.3.",
    "network": "Architecture: auto (chosen from the images), conv, conv-deep, efficientnet-lite0, "
    "-lite1 or -lite2, torchvision:NAME or timm:NAME.",
    "weights": "Initial weights: none (random), default (ImageNet) or a file.",
    "trunk": "Layers of the pretrained trunk to train: tune (all), frozen (none) or last-N "
    "(the last N blocks).",
    "dim": "Dimension of the embedding.",
    "mining": "Triplets of a batch that enter the loss. A loss pml:NAME takes a miner of "
    "pytorch-metric-learning.",
    "margin": "Triplet margin, or `soft` for the soft margin.",
    "distance": "Distance between embeddings: euclidean (0 to 2) or squared (0 to 4).",
    "classes_per_batch": "Classes per batch (P).",
    "images_per_class": "Images per class in a batch (K).",
    "epochs": "Passes over the training images.",
    "lr": "Peak learning rate.",
    "augment": "Augment training images: random shifts, rotations and scalings, less and less; for "
    "networks of a library random crops, mirror images and colours.",
    "patience": "Stop after this many epochs without a better validation score.",
    "seed": "Random seed of training.",
    "loss": "Loss: triplet, or pml:NAME, a loss of pytorch-metric-learning (extra `losses`).",
    "loss_options": "Parameters of a loss pml:NAME, as JSON; in a --config file a table, such as "
    "[embed.loss-options].",
    "mining_options": "Parameters of a miner pml:NAME, as for --loss-options.",
    "max_iter": "Maximum number of L-BFGS iterations per weight decay.",
    "dropout": "Share of the embedding's coordinates that dropout sets to zero.",
    "balance": "Weight classes inversely to their frequency.",
}

# Defaults that depend on the data.
AUTOMATIC = {
    "size": "that of the pretrained weights; else the images' own size if all share one of at most "
    "64; else 64",
    "channels": "1 if all images are grey",
    "classes_per_batch": "fills a batch of 160 images; of 32 if a library's trunk is trained",
    "images_per_class": "the median class size, from 2 to 16",
    "epochs": "chosen from the number of training images",
    "patience": "never",
    "loss_options": "the library's",
    "mining_options": "the library's",
}
