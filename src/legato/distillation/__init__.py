"""Data set -> tiny data set."""

from legato.distillation.anytime import Told, distill
from legato.distillation.augmentation import DSA, Draw
from legato.distillation.distilled import DistilledSet
from legato.distillation.experts import Expert, Recipe, train_expert
from legato.distillation.flat import FlatModel
from legato.distillation.inner_loop import Part, Unrolled, unrolled_grad
from legato.distillation.matching import Match, balance, mid_points, perturbed
from legato.distillation.objective import gradient_penalty
from legato.distillation.preprocessing import Preprocessing
from legato.distillation.selection import herding_rows, kmeans_rows, random_rows
from legato.distillation.settings import Settings, preset
from legato.distillation.students import Graded, Schooling, graded, label_robust_score, student_accuracy, train_student
from legato.distillation.whitening import Zca

__all__ = [
    "DSA",
    "DistilledSet",
    "Draw",
    "Expert",
    "FlatModel",
    "Graded",
    "Match",
    "Part",
    "Preprocessing",
    "Recipe",
    "Schooling",
    "Settings",
    "Told",
    "Unrolled",
    "Zca",
    "balance",
    "distill",
    "graded",
    "gradient_penalty",
    "herding_rows",
    "kmeans_rows",
    "label_robust_score",
    "mid_points",
    "perturbed",
    "preset",
    "random_rows",
    "student_accuracy",
    "train_expert",
    "train_student",
    "unrolled_grad",
]
