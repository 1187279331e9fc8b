"""What an attack climbs: from the scores of the attacked inputs to one number a row, the larger the worse for the model."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from legato import errors
from legato.losses.arguments import check_indices, check_range, num_classes

AttackLoss = Callable[[Tensor, Tensor], Tensor]
"""(scores [B, C], classes int64 [B]) -> [B]."""


def cross_entropy(scores: Tensor, target: Tensor) -> Tensor:
    """-log softmax(scores)[y]."""
    own_scores(scores, target)
    return F.cross_entropy(scores, target, reduction="none")


def margin(scores: Tensor, target: Tensor) -> Tensor:
    """max over j != y of h_j - h_y: positive where the row is misclassified. Its gradient does not vanish as that of cross-entropy does."""
    own = own_scores(scores, target, classes=2)
    return scores.scatter(1, target[:, None], -torch.inf).amax(1) - own


def dlr(scores: Tensor, target: Tensor) -> Tensor:
    """Difference of logits ratio, (max over j != y of h_j - h_y) / (largest h - third largest h): no change of scale hides it.

    Source: Croce and Hein 2020, arXiv 2003.01690, with 1e-12 added to the denominator as in their code.
    """
    own_scores(scores, target, classes=3)
    top = scores.topk(3, dim=1).values
    return margin(scores, target) / (top[:, 0] - top[:, 2] + 1e-12)


def toward(targets: Tensor) -> AttackLoss:
    """The targeted margin h_t - h_y for one wrong class t a row, int64 [B]."""

    def targeted_margin(scores: Tensor, target: Tensor) -> Tensor:
        return scores.gather(1, targets[:, None])[:, 0] - own_scores(scores, target)

    return targeted_margin


def kl_from_clean(scores: Tensor, target: Tensor, clean: Tensor) -> Tensor:
    """KL(softmax(clean) || softmax(scores)) of each row; the classes are not looked at."""
    return kl(clean, scores)


def squared_margin_shift(scores: Tensor, target: Tensor, clean: Tensor) -> Tensor:
    """||Delta(x') - Delta(x)||_2^2 of each row, where Delta in R^(C-1) has the margins h_y - h_j over the classes j != y.

    With d = scores - clean it is the sum over j of (d_y - d_j)^2, so that a constant added to all scores does nothing.
    """
    d = scores - clean
    return (own_scores(d, target)[:, None] - d).square().sum(1)


def kl(p_scores: Tensor, q_scores: Tensor) -> Tensor:
    """KL(p || q) in nats, [B], of p = softmax(p_scores) and q = softmax(q_scores), both [B, C].

    A class with p = 0 adds 0, in the gradients too, also where its score is -inf.
    """
    log_p, log_q = F.log_softmax(p_scores, 1), F.log_softmax(q_scores, 1)
    p = log_p.exp()
    return (p * (log_p - log_q).masked_fill(p == 0, 0)).sum(1)


ON_SCORES: dict[str, AttackLoss] = {"cross-entropy": cross_entropy, "margin": margin, "dlr": dlr}
AGAINST_CLEAN: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "kl": kl_from_clean,
    "margin-shift": squared_margin_shift,
}
"""These compare with the scores of the clean inputs, (scores, classes, clean scores) -> [B]."""


def own_scores(scores: Tensor, target: Tensor, *, classes: int = 1) -> Tensor:
    """h_y of each row, [B].

    Raises: LegatoValueError for classes that do not fit the scores, on the CPU also for one out of range, and for scores of fewer
        than `classes` classes.
    """
    check_indices(scores, target)
    if num_classes(scores) < classes:
        got = f"{num_classes(scores)} scores a row"
        raise errors.argument("model", expected=f"at least {classes} scores a row for this attack loss", got=got)
    if target.device.type == "cpu":
        check_range(target, num_classes(scores), ignore_index=0)  # class 0 is in range: nothing is ignored
    return scores.gather(1, target[:, None])[:, 0]
