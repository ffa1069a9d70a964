"""Choice of the fold for a group. tests/pipeline/commands tests whole cross-validations."""

from collections import Counter

from pipeline.data.folds import least_filled_fold


def test_fold_with_fewest_images_of_the_class_is_chosen():
    class_counts = [Counter(a=2), Counter(a=1, b=9), Counter(a=3)]
    assert least_filled_fold(Counter(a=1), class_counts, [2, 10, 3]) == 1


def test_classes_count_by_their_images_in_the_group():
    class_counts = [Counter(a=2), Counter(b=3)]  # 2 * 2 = 4 and 1 * 3 = 3
    assert least_filled_fold(Counter(a=2, b=1), class_counts, [2, 3]) == 1
    assert least_filled_fold(Counter(a=1, b=1), class_counts, [2, 3]) == 0


def test_ties_go_to_the_smallest_fold_then_to_the_first():
    class_counts = [Counter(b=5), Counter(b=3), Counter(b=3)]
    assert least_filled_fold(Counter(a=1), class_counts, [5, 3, 3]) == 1
