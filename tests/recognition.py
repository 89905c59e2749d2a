"""Recognition of generated images by the emoji world's own scorer."""

from erasure_lightning.diffusion.sampling import sample_images
from erasure_lightning.metrics.scorer import Scorer

#: Labels that every erasure of another label must retain.
KEPT = ["fox", "grapes", "guitar", "snowman"]


def recognised(model, words, steps=20):
    """Share of images of ``a WORD`` that the world's scorer classifies as the word, 0..1.

    Args:
        model: The model to sample from.
        words: One for each image.
        steps: Sampling steps.
    """
    world = model.world
    scorer = Scorer.load(world.scorer)
    labels = [label.name for label in world.labels]
    prompts = [f"a {word}" for word in words]
    images = sample_images(model, prompts, range(len(words)), steps=steps, guidance=4.0)
    texts = scorer.texts([f"a {label}" for label in labels])
    nearest = (scorer.images(images) @ texts.T).argmax(dim=1)
    hits = [world.same(labels[i], word) for i, word in zip(nearest, words, strict=True)]
    return sum(hits) / len(words)
