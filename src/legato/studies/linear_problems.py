"""Small linear classifiers under attack, where the worst attack inside a cube is computed exactly, whatever is attacked."""

from dataclasses import dataclass
from itertools import combinations, product

import numpy as np

from legato.losses.guarantees import Floats


@dataclass(frozen=True)
class LinearProblems:
    """N problems: h(x) = W x + c at K points each, with attacks of at most gamma on each of the d inputs.

    A margin is h_y(x) - h_y'(x). Label y has n - 1 of them, one for each other class y'.
    """

    margins: Floats
    """[N, K, n, n-1] at the points themselves."""
    slopes: Floats
    """[N, n, n-1, d], the change of each margin with the input: W_y - W_y'."""
    p: Floats
    """[N, K, n], the class probabilities at the points."""
    gamma: Floats
    """[N], the radius of the attacks."""
    rho: Floats
    """[N], the margin at which the margin loss is 0."""

    def errs(self) -> Floats:
        """[N, K, n]: 1 where some attack makes a margin of the label 0 or less. A margin falls by at most gamma |W_y - W_y'|_1."""
        fall = self.gamma[:, None, None] * np.abs(self.slopes).sum(-1)
        return np.where((self.margins - fall[:, None]).min(-1) <= 0, 1.0, 0.0)

    def worst_move(self) -> Floats:
        """[N, 1, n]: the largest 2-norm by which an attack moves the margins of a label. A norm is convex: it is at a corner."""
        corners = np.array(list(product((-1.0, 1.0), repeat=self.slopes.shape[-1])))
        moves = np.linalg.norm(np.einsum("nyjd,cd->nyjc", self.slopes, corners), axis=2).max(-1)
        return np.asarray(self.gamma[:, None] * moves)[:, None]

    def margin_sum(self, attack: Floats) -> Floats:
        """[N, K, n, A]: the sum over y' of clip(1 - margin/rho, 0, 1) after the attacks [N, K, n, A, d]."""
        margins = self.margins[..., None, :] + np.einsum("nyjd,nkyad->nkyaj", self.slopes, attack)
        return np.asarray(np.clip(1 - margins / self.rho[:, None, None, None, None], 0, 1).sum(-1))

    def worst_margin_sum(self) -> Floats:
        """[N, K, n]: the largest `margin_sum` of any attack.

        The planes where a margin is 0 cut the cube into cells. On a cell each term is 1 throughout, or max(0, 1 - margin/rho), which is
        convex, and so the sum is largest at a corner of a cell: where d of these planes and of the faces of the cube meet.
        """
        n, points, classes, others = self.margins.shape
        d = self.slopes.shape[-1]
        faces = np.broadcast_to(np.eye(d), (n, points, classes, d, d))
        planes = np.broadcast_to(self.slopes[:, None], (n, points, classes, others, d))
        normals = np.concatenate([faces, faces, planes], axis=3)
        edge = np.broadcast_to(self.gamma[:, None, None, None], (n, points, classes, d))
        offsets = np.concatenate([edge, -edge, -self.margins], axis=3)
        chosen = np.array(list(combinations(range(normals.shape[3]), d)))
        matrix, right = normals[..., chosen, :], offsets[..., chosen]
        flat = np.abs(np.linalg.det(matrix)) < 1e-12 * np.prod(np.linalg.norm(matrix, axis=-1), axis=-1)
        corner = np.linalg.solve(np.where(flat[..., None, None], np.eye(d), matrix), right[..., None])[..., 0]
        limit = self.gamma[:, None, None, None, None]
        return np.asarray(
            self.margin_sum(np.clip(corner, -limit, limit)).max(-1)
        )  # what met outside is an attack too, once inside


def linear_problems(d: int, n: int, count: int, points: int, generator: np.random.Generator) -> LinearProblems:
    """Random problems, whose weights, offsets, radii and margins are of all sizes.

    Args:
        d: inputs.
        n: >= 2 classes.
        count: problems N.
        points: K of each.
        generator: draws them.
    """

    def size(*shape: int) -> Floats:
        return 10 ** generator.uniform(-1.5, 1.0, (count, *shape))

    weights = size(1, 1) * generator.standard_normal((count, n, d))
    offsets = size(1) * generator.standard_normal((count, n))
    x = generator.standard_normal((count, points, d))
    scores = np.einsum("nyd,nkd->nky", weights, x) + offsets[:, None]
    other = np.array([[j for j in range(n) if j != y] for y in range(n)])
    p = generator.dirichlet(np.ones(n), (count, points)) ** generator.uniform(0.2, 3, (count, points, 1))
    return LinearProblems(
        margins=scores[..., None] - scores[..., other],
        slopes=weights[:, :, None] - weights[:, other],
        p=p / p.sum(-1, keepdims=True),
        gamma=size(),
        rho=size(),
    )
