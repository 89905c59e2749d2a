"""What the emoji world's own scorer makes of a model's pictures."""

from erasure_lightning.diffusion.sampling import sample_images
from erasure_lightning.metrics.scorer import Scorer

#: Things that every erasure of something else must leave alone.
KEPT = ["fox", "grapes", "guitar", "snowman"]


def recognised(model, words, steps=20):
    """Share of pictures of ``a WORD``, drawn in so many steps, that the world's scorer calls so."""
    scorer, labels = Scorer.load(model.world.scorer), [label.name for label in model.world.labels]
    pictures = sample_images(
        model, [f"a {word}" for word in words], range(len(words)), steps=steps, guidance=4.0
    )
    nearest = (scorer.images(pictures) @ scorer.texts([f"a {label}" for label in labels]).T).argmax(
        dim=1
    )
    return sum(
        model.world.same(labels[i], word) for i, word in zip(nearest, words, strict=True)
    ) / len(words)
