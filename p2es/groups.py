"""GroupFinder: which demographic group a person belongs to, softly, and what that group's leads share.

P2Es' abstract says that k-nearest-neighbour clustering with contrastive learning assigns affinity matrices for the
reverse process. Our reading: people are embedded from demographics and pulse; demographic neighbours are pulled
together (multi-positive InfoNCE), prototypes learn the clusters, and the softmax over prototypes mixes one affinity
matrix a group. Embedding and prototypes live in the model and alone serve: no neighbour is looked up at inference.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from p2es.leads import N_INDEPENDENT, LeadRole

N_FIELDS = 4


class GroupFinder(nn.Module):
    """Embed people and mix group affinities.

    e = normalise(W [MLP(demographics); pulse]), w_m = softmax(e . c_m / tau)
    """

    def __init__(self, prototypes: int, pulse_width: int, width: int = 32, temperature: float = 0.2) -> None:
        super().__init__()
        self.temperature = temperature
        self.demographics = nn.Sequential(nn.Linear(2 * N_FIELDS, width), nn.SiLU(), nn.Linear(width, width))
        self.pulse = nn.Linear(pulse_width, width)
        self.join = nn.Linear(2 * width, width)
        self.prototypes = nn.Parameter(torch.randn(prototypes, width) / width**0.5)

    def embed(self, people: Tensor, pulse: Tensor) -> Tensor:
        """Embed people.

        Parameters
        ----------
        people : Tensor (batch, 8)
            Standardised demographics, then 1 for each field that is unknown.
        pulse : Tensor (batch, pulse_width)
            Features of the pulse, averaged over time.

        Returns
        -------
        Tensor (batch, width)
            Unit vectors.
        """
        joined = torch.cat([self.demographics(people), self.pulse(pulse)], dim=-1)
        return F.normalize(self.join(F.silu(joined)), dim=-1)

    def logits(self, embedding: Tensor) -> Tensor:
        """Give the scaled similarity to each prototype, (batch, prototype)."""
        return embedding @ F.normalize(self.prototypes, dim=-1).T / self.temperature


class Affinity(nn.Module):
    """Mix one signed lead-by-lead matrix a group, refined by the input, and make it safe to apply.

    A = sum_m w_m A_m + U(c) V(c)^T, with A_m and the rank-2 refinement both learned. Then columns of absent leads are
    dropped and each row is scaled back to its weight, and A is divided by max(1, sqrt(|A|_1 |A|_inf)), which bounds
    the spectral norm by 1 (Holder), so that stacking blocks cannot blow the signal up.
    """

    RANK = 2

    def __init__(self, prototypes: int, condition_width: int) -> None:
        super().__init__()
        n = N_INDEPENDENT
        self.bank = nn.Parameter(torch.eye(n).repeat(prototypes, 1, 1) * 0.5 + 0.1 * torch.randn(prototypes, n, n))
        self.refine = nn.Linear(condition_width, 2 * self.RANK * n)
        nn.init.normal_(self.refine.weight, std=0.02)
        nn.init.normal_(self.refine.bias, std=0.02)

    def forward(self, weights: Tensor, condition: Tensor, roles: Tensor) -> Tensor:
        """Give the affinity of each window.

        Parameters
        ----------
        weights : Tensor (batch, prototype)
            Soft group.
        condition : Tensor (batch, condition_width)
        roles : Tensor (batch, 8)
            `LeadRole` of each independent lead.

        Returns
        -------
        Tensor (batch, 8, 8)
            Row: the lead that receives; column: the lead that gives.
        """
        n = N_INDEPENDENT
        left, right = self.refine(condition).view(-1, 2, n, self.RANK).unbind(dim=1)
        matrix = torch.einsum("bm,mij->bij", weights, self.bank) + left @ right.transpose(1, 2)
        return spectrally_bounded(over_present(matrix, roles != LeadRole.ABSENT))


def over_present(matrix: Tensor, present: Tensor) -> Tensor:
    """Drop the columns of absent leads and give each row its absolute sum back.

    Parameters
    ----------
    matrix : Tensor (batch, lead, lead)
    present : Tensor (batch, lead)
        True for leads that carry something.
    """
    kept = matrix * present[:, None, :].to(matrix.dtype)
    whole, left = matrix.abs().sum(-1, keepdim=True), kept.abs().sum(-1, keepdim=True)
    return kept * torch.where(left > 1e-6, whole / left.clamp_min(1e-6), torch.zeros_like(left))


def spectrally_bounded(matrix: Tensor) -> Tensor:
    """Divide (batch, n, n) matrices so that no spectral norm exceeds 1: |A|_2 <= sqrt(|A|_1 |A|_inf)."""
    columns = matrix.abs().sum(dim=1).amax(dim=-1)
    rows = matrix.abs().sum(dim=2).amax(dim=-1)
    bound = (columns * rows).clamp_min(1e-12).sqrt()
    return matrix / bound.clamp_min(1.0)[:, None, None]


def contrastive_loss(embedding: Tensor, positive: Tensor, excluded: Tensor, temperature: float) -> Tensor:
    """Multi-positive InfoNCE over a batch.

    L = -mean_i (1/|P_i|) sum_{j in P_i} log( exp(e_i.e_j/tau) / sum_{k not excluded} exp(e_i.e_k/tau) )

    Parameters
    ----------
    embedding : Tensor (batch, width)
        Unit vectors.
    positive : Tensor (batch, batch)
        True where j is a demographic neighbour of i.
    excluded : Tensor (batch, batch)
        True where j is i's own person: neither pulled nor pushed, or the embedding would learn identity.
    temperature : float

    Returns
    -------
    Tensor ()
        0 when no window of the batch has a neighbour in it.
    """
    similarity = embedding @ embedding.T / temperature
    log_share = similarity - torch.logsumexp(similarity.masked_fill(excluded, -torch.inf), dim=1, keepdim=True)
    pulled = positive & ~excluded
    count = pulled.sum(dim=1)
    each = log_share.masked_fill(~pulled, 0.0).sum(dim=1) / count.clamp_min(1)
    anchors = count > 0
    return -(each * anchors).sum() / anchors.sum().clamp_min(1)


def prototype_loss(logits: Tensor, cluster: Tensor) -> Tensor:
    """Cross entropy between soft group and k-means cluster; people without a cluster (-1) do not count."""
    known = cluster >= 0
    each = F.cross_entropy(logits, cluster.clamp_min(0), reduction="none")
    return (each * known).sum() / known.sum().clamp_min(1)
