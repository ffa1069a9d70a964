"""Verdict and tables of a comparison: two, three and more networks, ties and undefined values."""

import dataclasses
import re
from types import SimpleNamespace

import numpy as np
import pytest

from pipeline.report.comparison import ComparedRun, Comparison, compared_table
from pipeline.report.comparison_plots import draw_comparison
from pipeline.report.comparison_text import comparison_rows, comparison_text
from pipeline.report.comparison_verdict import (
    comparison_findings,
    details_of_comparison,
    headline_of_comparison,
    verdict_of_comparison,
)
from pipeline.report.plots import to_svg
from stages.evaluation.results import Score
from stages.evaluation.statistics import wilson_interval
from stages.settings import EmbedSettings


def entry(name: str, correct: np.ndarray, seconds: float | None = None) -> ComparedRun:
    """Return a run that classifies these of N images correctly, bool, shape (N,)."""
    correct = np.asarray(correct, dtype=bool)
    count = len(correct)
    value = float(correct.mean()) if count else None
    low, high = wilson_interval(value, count) if count else (None, None)
    nothing = np.zeros(count)
    evaluation = SimpleNamespace(
        score=lambda metric: Score(metric, "test", value, low, high, count, "made up"),
        correct={"knn_accuracy": correct, "classification_accuracy": correct},
        measures=SimpleNamespace(
            total=nothing,
            won=nothing,
            won_any=nothing,
            total_any=nothing,
            map_at_r=np.full(count, np.nan),
        ),
    )
    run = SimpleNamespace(
        run=name,
        embedding={"fingerprint": "f" * 64},
        images=SimpleNamespace(ids=tuple(map(str, range(count)))),
        evaluation=evaluation,
    )
    settings = EmbedSettings(network="conv")
    return ComparedRun(name, settings, 32, run, seconds_per_image=seconds, memory=2**20)


def first(correct: int, count: int = 140) -> np.ndarray:
    """Return N results of which the first are correct."""
    return np.arange(count) < correct


def verdict(*entries: ComparedRun, field: str = "network") -> str:
    return verdict_of_comparison(Comparison(field, entries))


def test_two_networks_that_are_not_distinguishable():
    text = verdict(entry("a", first(132), 0.01), entry("b", first(130), 0.031))
    assert re.match(r"a and b are not distinguishable on 140 images \(difference 1\.4 points", text)
    assert "a is 3.1 times as fast as b" in text and "adjusted" not in text
    slower_first = verdict(entry("b", first(130), 0.01), entry("a", first(132), 0.031))
    assert slower_first.startswith("a and b are") and "b is 3.1 times as fast as a" in slower_first


def test_interval_has_the_sign_of_the_best_one_whatever_the_order():
    texts = set()
    for order in (1, -1):
        entries = [entry("a", first(132), 0.01), entry("b", first(130), 0.031)][::order]
        texts.add(verdict(*entries))
    assert len(texts) == 1
    low, high = re.search(r"interval (\S+) to ([^,]+),", texts.pop()).groups()
    assert low.startswith("\u2212") and float(high) > 1.4


def test_two_networks_of_which_one_is_better():
    text = verdict(entry("a", first(90), 0.01), entry("b", first(130), 0.01))
    assert text.startswith("b is better than a on 140 images (classification accuracy 92.9%")
    assert "64.3%" in text and "p < 0.001" in text and "fast" not in text


def test_equal_networks_are_tied_and_the_faster_one_is_named_first():
    text = verdict(entry("a", first(130), 0.03), entry("b", first(130), 0.01))
    assert text.startswith("b and a are not distinguishable on 140 images (difference 0.0 points")
    assert "p = 1.0" in text and "b is 3.0 times as fast as a" in text


@pytest.mark.parametrize("seconds", [(0.010, 0.011), (0.011, 0.010)])
def test_similar_times_are_no_difference(seconds):
    entries = [entry(name, first(130), time) for name, time in zip("ab", seconds, strict=True)]
    assert "about equally fast" in verdict(*entries)
    assert "fast" not in verdict(*entries, field="loss")


def test_unknown_times_are_left_out():
    assert "fast" not in verdict(entry("a", first(130), 0.01), entry("b", first(130)))


def test_three_networks_of_which_two_are_equally_good():
    entries = (
        entry("a", first(60), 0.001),
        entry("b", first(130), 0.01),
        entry("c", first(129), 0.03),
    )
    text = verdict(*entries)
    assert text.startswith("b is better than a on 140 images")
    assert "; b and c are not distinguishable (difference 0.7 points" in text
    assert text.endswith("b is 3.0 times as fast as c.")
    assert "adjusted p" in text


def test_best_of_three_names_the_closest_one():
    text = verdict(entry("a", first(60)), entry("b", first(130)), entry("c", first(80)))
    assert text.startswith("b is better than c and a on 140 images")
    assert "57.1% for c, the next best" in text


def test_three_networks_that_are_not_distinguishable():
    entries = [entry(name, first(130 - row), 0.01 * (row + 1)) for row, name in enumerate("abc")]
    text = verdict(*entries)
    assert text.startswith("a, b and c are not distinguishable on 140 images (largest difference,")
    assert "between a and c: 1.4 points" in text and "a is also the fastest of them" in text
    assert "c is the fastest of them, 3.0 times as fast as a" in verdict(
        *(entry(name, first(130 - row), 0.03 / (row + 1)) for row, name in enumerate("abc"))
    )


def test_correction_for_three_networks_can_take_away_significance():
    a, b, c = first(140), first(135), first(140)
    alone = verdict(entry("a", a), entry("b", b))
    assert alone.startswith("a is better than b")
    text = verdict(entry("a", a), entry("b", b), entry("c", c))
    assert "a, c and b are not distinguishable" in text


def test_two_networks_can_differ_although_neither_differs_from_the_best():
    """The best one is right on other images than the rest, which makes its tests weak."""
    best = np.roll(first(84, 160), 76)
    second, third = first(80, 160), first(66, 160)
    entries = entry("best", best), entry("second", second), entry("third", third)
    comparison = Comparison("network", entries)
    assert comparison.difference(entries[1], entries[2]).significant
    assert not comparison.difference(entries[0], entries[2]).significant
    text = verdict_of_comparison(comparison)
    assert "second and third are not distinguishable from best" in text
    assert "although second is better than third" in text


def test_few_images_decide_nothing():
    text = verdict(entry("a", first(2, 2)), entry("b", first(1, 2)))
    assert text.startswith("a and b are not distinguishable on 2 images")
    text = verdict(entry("a", first(1, 1)), entry("b", first(0, 1)))
    assert "not distinguishable on 1 image (" in text


def test_one_network_is_left(tmp_path):
    failures = [ComparedRun(name, None, None, error="out of memory") for name in "bc"]
    comparison = Comparison("network", (entry("a", first(130)), *failures))
    texts = [finding.text for finding in comparison_findings(comparison)]
    assert texts[0].startswith("Only one network could be evaluated: a has a classification")
    assert texts[1:] == ["b and c could not be evaluated; the table shows why."]
    text = comparison_text(comparison, [])
    assert text.count("out of memory") == 1
    assert "The networks b and c could not be evaluated: out of memory." in text


def headline(*entries: ComparedRun, field: str = "network") -> str:
    return headline_of_comparison(Comparison(field, entries))


def random_start(name: str, correct: np.ndarray, seconds: float | None = None) -> ComparedRun:
    """Return a run of a library's network that starts with random weights."""
    settings = EmbedSettings(network=name)
    return dataclasses.replace(entry(name, correct, seconds), settings=settings)


def test_headline_is_one_short_sentence_and_the_details_have_the_numbers():
    entries = (entry("a", first(132), 0.01), entry("b", first(130), 0.031))
    assert headline(*entries) == (
        "a and b are not distinguishable on 140 images; a is 3.1 times as fast."
    )
    assert headline(*entries, field="loss") == "a and b are not distinguishable on 140 images."
    details = details_of_comparison(Comparison("network", entries))
    low, high = re.search(r"interval (\S+) to ([^,]+),", verdict(*entries)).groups()
    p = re.search(r"p = [0-9.]+[0-9]", verdict(*entries))[0]
    assert details == (
        f"The difference between a and b is 1.4 points (95% interval {low} to {high}, {p})."
    )


def test_headline_counts_many_networks():
    four = [entry(name, first(130), 0.01 * (row + 1)) for row, name in enumerate("abcd")]
    assert headline(*four) == (
        "The 4 networks are not distinguishable on 140 images; a is the fastest."
    )
    worse = [entry(name, first(60 - row)) for row, name in enumerate("wxyz")]
    assert headline(four[0], *worse) == "a is better than the 4 other networks on 140 images."
    text = headline(*four[:2], *worse)
    assert text == (
        "a is better than 4 of the 5 other networks on 140 images, and not distinguishable from b."
    )
    details = details_of_comparison(Comparison("network", (*four[:2], *worse)))
    assert "is 92.9% for a and 42.9% for w, the next best: a difference of 50.0 points (" in details
    assert "The difference between a and b is 0.0 points (" in details
    assert details.endswith(" a is 2.0 times as fast as b.")


def test_headline_does_not_claim_that_networks_are_equal_which_differ():
    best = np.roll(first(84, 160), 76)
    entries = entry("best", best), entry("b", first(80, 160)), entry("c", first(66, 160))
    text = headline(*entries)
    assert text == "best is not distinguishable from b and c on 160 images."
    assert "However, b is better than c." in details_of_comparison(Comparison("network", entries))


def test_random_weights_of_a_library_are_marked(tmp_path):
    entries = [entry("conv", first(130)), random_start("timm:resnet10t", first(60))]
    comparison = Comparison("network", tuple(entries))
    marked = "timm:resnet10t (random weights)"
    assert f"conv is better than {marked} on" in verdict(*entries)
    assert f"conv is better than {marked} on" in headline(*entries)
    assert f"{marked}  " in comparison_text(comparison, [])
    assert [row["remark"] for row in comparison_rows(comparison)] == ["", "(random weights)"]
    svg = to_svg(draw_comparison(comparison)["compared"], "x").decode()
    assert svg.index(">timm:resnet10t</text>") < svg.index(">(random weights)</text>")
    assert svg.count("(random weights)</text>") == 1 and ">conv</text>" in svg
    # A headline that only counts them leaves this to the details.
    others = [entry(name, first(50)) for name in "ab"]
    comparison = Comparison("network", (*entries, *others))
    assert "random" not in headline(*comparison.entries)
    assert details_of_comparison(comparison).endswith("timm:resnet10t has random weights.")


def test_pretrained_networks_and_losses_are_not_marked():
    trained = EmbedSettings(network="timm:resnet10t", weights="default")
    assert dataclasses.replace(entry("timm:resnet10t", first(9)), settings=trained).title == (
        "timm:resnet10t"
    )
    loss = dataclasses.replace(random_start("timm:resnet10t", first(9)), name="triplet")
    assert loss.title == "triplet" and entry("conv", first(9)).title == "conv"
    assert ComparedRun("b", None, None, error="out of memory").title == "b"


def test_without_known_test_images_nothing_can_be_compared():
    comparison = Comparison("loss", (entry("a", first(0, 0)), entry("b", first(0, 0))))
    assert verdict_of_comparison(comparison).startswith("The losses cannot be compared")
    assert [row["classification_accuracy"] for row in comparison_rows(comparison)] == ["\u2013"] * 2
    assert compared_table(comparison)["classification_accuracy"].isna().all()
    assert draw_comparison(comparison) == {}


def test_verdict_is_the_last_line_in_the_terminal(tmp_path):
    comparison = Comparison("network", (entry("a", first(132), 0.01), entry("b", first(90), 0.1)))
    lines = comparison_text(comparison, [tmp_path / "compared.csv"]).splitlines()
    assert lines[-1] == verdict_of_comparison(comparison)
    assert lines[1].split()[:2] == ["a", "94.3%"] and lines[2].split()[:2] == ["b", "64.3%"]
    assert str(tmp_path / "compared.csv") in lines


def test_names_are_no_formulas_in_the_table_and_no_mathematics_in_the_figures():
    names = "=cmd|' /C calc'!A0", "$\\frac{$", "x" * 90
    entries = [entry(name, first(100 + row), 0.01) for row, name in enumerate(names)]
    comparison = Comparison("network", tuple(entries))
    assert compared_table(comparison)["run"][0].startswith("'=")
    figures = draw_comparison(comparison)
    assert set(figures) == {"compared", "compared-speed"}
    for figure in figures.values():
        figure.draw_without_rendering()


def test_names_are_outside_the_plot_of_speed_so_they_cover_no_interval():
    names = [f"network-{row}" for row in range(12)]
    entries = [entry(name, first(130 - row), 0.01) for row, name in enumerate(names)]
    figure = draw_comparison(Comparison("network", tuple(entries)))["compared-speed"]
    figure.draw_without_rendering()
    (axes,), (legend,) = figure.axes, figure.legends
    assert [text.get_text() for text in legend.get_texts()] == names and not axes.texts
    assert not legend.get_window_extent().overlaps(axes.get_window_extent())
    dots = [line for line in axes.lines if line.get_marker() != "None"]
    assert len({(dot.get_color(), dot.get_marker()) for dot in dots}) == len(names)
