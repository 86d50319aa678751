import numpy as np
import torch

from p2es.groups import (
    Affinity,
    GroupFinder,
    contrastive_loss,
    over_present,
    prototype_loss,
    spectrally_bounded,
)
from p2es.leads import LeadRole


def unit(rows):
    x = torch.tensor(rows, dtype=torch.float64)
    return x / x.norm(dim=1, keepdim=True)


def test_no_spectral_norm_exceeds_one_and_small_matrices_are_kept():
    generator = torch.Generator().manual_seed(0)
    large = 3 * torch.randn(50, 8, 8, generator=generator)
    assert torch.linalg.matrix_norm(spectrally_bounded(large), 2).max() <= 1 + 1e-6
    small = 0.01 * large
    torch.testing.assert_close(spectrally_bounded(small), small)


def test_absent_leads_give_nothing_and_rows_keep_their_weight():
    matrix = torch.randn(4, 8, 8)
    present = torch.tensor([[True] * 8, [True] * 4 + [False] * 4, [False] * 7 + [True], [False] * 8])
    kept = over_present(matrix, present)
    assert (kept[~present[:, None, :].expand_as(kept)] == 0).all()
    torch.testing.assert_close(kept[0], matrix[0])
    torch.testing.assert_close(kept[:3].abs().sum(-1), matrix[:3].abs().sum(-1))


def test_affinity_depends_on_group_input_and_roles():
    torch.manual_seed(0)
    affinity = Affinity(prototypes=3, condition_width=5)
    weights, condition = torch.eye(3), torch.randn(3, 5)
    roles = torch.full((3, 8), int(LeadRole.TARGET))
    same = affinity(weights[[0, 0, 0]], condition[[0, 0, 0]], roles)
    torch.testing.assert_close(same[0], same[1])
    by_group = affinity(weights, condition[[0, 0, 0]], roles)
    by_input = affinity(weights[[0, 0, 0]], condition, roles)
    assert not torch.allclose(by_group[0], by_group[1])
    assert not torch.allclose(by_input[0], by_input[1])
    assert (affinity(weights, condition, roles) < 0).any(), "the affinity is signed"


def test_contrast_pulls_neighbours_and_ignores_the_persons_own_windows():
    # Windows 0 and 1 are of one person, 2 is a neighbour's, 3 a stranger's.
    same = torch.eye(4, dtype=torch.bool)
    same[0, 1] = same[1, 0] = True
    positive = torch.zeros(4, 4, dtype=torch.bool)
    positive[[0, 1, 2, 2], [2, 2, 0, 1]] = True
    near = contrastive_loss(unit([[1, 0], [1, 0], [1, 0.1], [-1, 0]]), positive, same, 0.1)
    far = contrastive_loss(unit([[1, 0], [1, 0], [-1, 0.1], [1, 0]]), positive, same, 0.1)
    assert near < far
    # With window 1 out of everybody's positives, only the denominators of 2 and 3 can see it move; 0's must not.
    only_first = torch.zeros(4, 4, dtype=torch.bool)
    only_first[0, 2] = True
    moved = [
        contrastive_loss(unit([[1, 0], own, [1, 0.1], [-1, 0]]), only_first, same, 0.1)
        for own in ([0.0, 1.0], [-1.0, 0.5])
    ]
    torch.testing.assert_close(moved[0], moved[1])


def test_contrast_equals_its_formula():
    rng = np.random.default_rng(0)
    e = unit(rng.normal(size=(6, 3)).tolist())
    same = torch.eye(6, dtype=torch.bool)
    positive = torch.zeros(6, 6, dtype=torch.bool)
    for i, j in ((0, 1), (0, 2), (3, 4)):
        positive[i, j] = positive[j, i] = True
    terms = []
    for i in range(6):
        partners = [j for j in range(6) if positive[i, j]]
        if partners:
            bottom = sum(np.exp(float(e[i] @ e[k]) / 0.2) for k in range(6) if k != i)
            terms.append(-np.mean([np.log(np.exp(float(e[i] @ e[j]) / 0.2) / bottom) for j in partners]))
    assert np.isclose(float(contrastive_loss(e, positive, same, 0.2)), np.mean(terms))


def test_contrast_of_a_batch_without_neighbours_is_zero_and_trains_nothing():
    e = unit([[1, 0], [0, 1]]).requires_grad_()
    loss = contrastive_loss(e, torch.zeros(2, 2, dtype=torch.bool), torch.eye(2, dtype=torch.bool), 0.1)
    loss.backward()
    assert float(loss.detach()) == 0
    assert torch.isfinite(e.grad).all()


def test_people_without_a_cluster_do_not_count():
    logits = torch.tensor([[2.0, 0.0], [0.0, 5.0]])
    both = prototype_loss(logits, torch.tensor([0, 1]))
    one = prototype_loss(logits, torch.tensor([0, -1]))
    assert one > both
    assert float(prototype_loss(logits, torch.tensor([-1, -1]))) == 0


def test_embeddings_are_unit_vectors():
    finder = GroupFinder(prototypes=4, pulse_width=6)
    e = finder.embed(torch.randn(5, 8), torch.randn(5, 6))
    torch.testing.assert_close(e.norm(dim=1), torch.ones(5))
    assert finder.logits(e).shape == (5, 4)
