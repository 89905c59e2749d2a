"""Recognition of generated images by the emoji world's own scorer."""

from functools import cache

from erasure_lightning.diffusion.sampling import sample_images
from erasure_lightning.metrics.scorer import Scorer

#: Labels that every erasure of another label must retain.
KEPT = ["fox", "grapes", "guitar", "snowman"]

_of_originals = {}


def recognised(model, words, steps=10):
    """Share of pictures of ``a WORD``, drawn in so many steps, that the world's scorer calls so."""
    return named(model.world, drawn(model, words, steps), words)


def recognised_before(module, words, steps=10):
    """`recognised` of a method's original, which is the world as it came: once in a process."""
    key = (module.original.world.name, *words, steps)
    if key not in _of_originals:
        _of_originals[key] = recognised(module.original, words, steps)
    return _of_originals[key]


def drawn(model, words, steps=10):
    """Pictures of ``a WORD``, each from noise of its own."""
    prompts = [f"a {word}" for word in words]
    return sample_images(model, prompts, range(len(words)), steps=steps, guidance=4.0)


def named(world, pictures, words):
    """Share of pictures that the world's scorer calls by their word."""
    pairs = zip(names(world, pictures), words, strict=True)
    return sum(world.same(name, word) for name, word in pairs) / len(words)


def names(world, pictures):
    """What the world's scorer calls pictures."""
    labels = tuple(label.name for label in world.labels)
    scorer, texts = _scorer(world.scorer, labels)
    nearest = (scorer.images(pictures) @ texts.T).argmax(dim=1)
    return [labels[i] for i in nearest.tolist()]


@cache
def _scorer(path, labels):
    scorer = Scorer.load(path)
    return scorer, scorer.texts([f"a {label}" for label in labels])
