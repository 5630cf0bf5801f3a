"""Imprinted classifiers: the formulas on small numbers."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from bitwright.errors import UnsupportedError
from bitwright.mixed.sensitivity.imprinting import (
    augmented,
    class_sums,
    confidences,
    entropy,
    fused,
    pyramid,
    similarities,
    templates,
)

GENERATOR = torch.Generator().manual_seed(0)
SCALES = [torch.tensor([[5.0, 1.0, 0.0]]), torch.tensor([[0.0, 1.0, 0.9]])]


def test_a_template_is_the_mean_of_unit_features_by_confidence() -> None:
    (e,) = pyramid(torch.tensor([[3.0, 4.0], [1.0, 0.0]]), (1,))
    sums, totals = class_sums(e, torch.tensor([0.9, 0.3]), torch.tensor([0, 0]), 1)
    torch.testing.assert_close(sums / totals[:, None], torch.tensor([[0.7, 0.6]]))
    torch.testing.assert_close(templates(sums, totals), torch.tensor([[0.759257, 0.650791]]), atol=1e-6, rtol=0)


def test_sums_of_batches_give_the_templates_of_all_images() -> None:
    e = torch.rand(12, 5, generator=GENERATOR)
    confidence, labels = torch.rand(12, generator=GENERATOR), torch.arange(12) % 3
    whole = class_sums(e, confidence, labels, 3)
    parts = [class_sums(e[at], confidence[at], labels[at], 3) for at in (slice(0, 5), slice(5, 12))]
    torch.testing.assert_close(templates(*whole), templates(parts[0][0] + parts[1][0], parts[0][1] + parts[1][1]))


def test_scales_are_weighted_by_entropy_as_printed_and_the_other_way_round() -> None:
    found = torch.cat([entropy(s, tau=1.0) for s in SCALES])
    torch.testing.assert_close(found, torch.tensor([0.129083, 1.022657]), atol=1e-6, rtol=0)
    printed, certain = fused(SCALES, tau=1.0), fused(SCALES, tau=1.0, weighting="confidence")
    torch.testing.assert_close(printed, torch.tensor([[0.560383, 1.0, 0.799131]]), atol=1e-6, rtol=0)
    torch.testing.assert_close(certain, torch.tensor([[4.636745, 1.0, 0.065386]]), atol=1e-6, rtol=0)
    assert (int(printed.argmax()), int(certain.argmax())) == (1, 0)


def test_unit_features_need_a_temperature_for_their_entropies_to_differ() -> None:
    scales = [torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([[0.4, 0.5, 0.5]])]
    shares = {tau: float(entropy(scales[0], tau) / sum(entropy(s, tau) for s in scales)) for tau in (1.0, 10.0)}
    assert shares[1.0] > 0.45 and shares[10.0] < 0.01


def test_scales_without_any_weight_count_evenly() -> None:
    certain = torch.tensor([[1.0, 0.0]])
    assert fused([certain, certain * 3], tau=1e4).tolist() == [[2.0, 0.0]]
    unknown = torch.zeros(1, 2)
    assert fused([unknown, unknown], weighting="confidence").tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize("weighting", ["printed", "confidence"])
def test_a_class_without_images_changes_nothing_and_is_no_answer(weighting: str) -> None:
    e = functional.normalize(torch.rand(6, 4, generator=GENERATOR, dtype=torch.double), dim=1)
    labels = torch.tensor([0, 0, 2, 2, 2, 0])
    confidence = torch.full((6,), 0.5, dtype=torch.double)
    four = similarities(-e, templates(*class_sums(e, confidence, labels, 4)))
    two = similarities(-e, templates(*class_sums(e, confidence, labels // 2, 2)))
    assert four[:, [1, 3]].eq(-math.inf).all() and four[:, [0, 2]].lt(0).all()
    scores = fused([four, four / 2], weighting=weighting)  # type: ignore[arg-type]
    torch.testing.assert_close(scores[:, [0, 2]], fused([two, two / 2], weighting=weighting))  # type: ignore[arg-type]
    assert set(scores.argmax(1).tolist()) <= {0, 2}


def test_confidence_is_of_the_true_or_of_the_predicted_class() -> None:
    p = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6]])
    labels = torch.tensor([1, 2])
    torch.testing.assert_close(confidences(p, labels), torch.tensor([0.2, 0.6]))
    torch.testing.assert_close(confidences(p, labels, "predicted"), torch.tensor([0.7, 0.6]))


def test_sizes_of_features_and_their_unit_length() -> None:
    maps = torch.rand(2, 3, 7, 5, generator=GENERATOR)
    lengths = {how: [e.shape[1] for e in pyramid(maps, (1, 2, 4), how)] for how in ("each", "literal", "fused")}
    assert lengths == {"each": [3, 12, 48], "literal": [48, 48, 48], "fused": [144]}
    for how in ("each", "literal", "fused"):
        for e in pyramid(maps, (1, 2, 4), how):
            torch.testing.assert_close(e.norm(dim=1), torch.ones(2))


@pytest.mark.parametrize("size", [(16, 16), (8, 12), (6, 6), (7, 5), (4, 4), (2, 2), (1, 1), (4, 2)])
@pytest.mark.parametrize("pools", [(1, 2, 4), (4, 1), (2, 3), (3,), (2, 2)])
def test_maps_are_averaged_to_each_size(size: tuple[int, int], pools: tuple[int, ...]) -> None:
    maps = torch.rand(2, 3, *size, generator=GENERATOR)
    for d, e in zip(pools, pyramid(maps, pools), strict=True):
        own = functional.adaptive_avg_pool2d(maps, d).flatten(1)
        torch.testing.assert_close(e, functional.normalize(own, dim=1))


def test_upsampling_weighs_only_the_scales_that_it_interpolates() -> None:
    a, b = torch.rand(2, 1, 3, 6, 6, generator=GENERATOR)
    each, literal = ([x @ y.T for x, y in zip(pyramid(a, (1, 2, 4), how), pyramid(b, (1, 2, 4), how), strict=True)]
                     for how in ("each", "literal"))  # fmt: skip
    torch.testing.assert_close(each[0], literal[0])  # one value, repeated
    torch.testing.assert_close(each[2], literal[2])  # the largest size as it is
    assert (each[1] - literal[1]).abs() > 1e-4


def test_features_that_are_no_maps_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="msq: a layer that gives"):
        pyramid(torch.zeros(2, 3, 4), (1,))


def test_augmented_images_are_cut_beside_their_place_and_mirrored() -> None:
    images = torch.arange(64.0).reshape(1, 1, 8, 8).repeat(64, 1, 1, 1) + 1
    found = augmented(images, GENERATOR)
    padded = functional.pad(images[0, 0], (1, 1, 1, 1))
    known = [padded[y : y + 8, x : x + 8] for y in range(3) for x in range(3)]
    known += [cut.flip(1) for cut in known]
    seen = {next(i for i, cut in enumerate(known) if torch.equal(cut, image[0])) for image in found}
    assert len(seen) > 12
