"""All architectures, by name."""

from __future__ import annotations

from models import (
    classifiers,
    detectors,
    hugging_face,
    others,
    pictures,
    sequences,
    transformers_plain,
)
from models.architecture import Architecture

GROUPS = (classifiers, pictures, detectors, sequences, transformers_plain, others, hugging_face)
ARCHITECTURES: dict[str, Architecture] = {each.name: each for group in GROUPS for each in group.ARCHITECTURES}
assert len(ARCHITECTURES) == sum(len(group.ARCHITECTURES) for group in GROUPS), "two of one name"
