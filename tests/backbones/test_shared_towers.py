"""Text towers of a model and of its original, which share what is not edited."""

import torch

from erasure_lightning.backbones.tiny import TinyXL


def test_a_tower_that_shares_blocks_with_another_reads_the_layer_that_it_should():
    """transformers' records of hidden states count a shared block once for each of its models."""
    model = TinyXL()
    alone = TinyXL()
    prompts = ["a cat", "a photo of a star", "a dog", "a photo of a hat"]
    read = alone.encode(prompts)
    original = model.frozen_copy([name for name in model.text_parameters() if ".layers.1." in name])
    for _ in range(2):
        for either in (original, model):
            conditioning = either.contextualize(either.embed(prompts))
            assert torch.equal(conditioning.tokens, read.tokens)
            assert torch.equal(conditioning.pooled, read.pooled)


def test_a_tower_reads_what_the_pipeline_reads():
    model = TinyXL()
    for tower, embedded in zip(model.towers, model.embed(["a cat"]), strict=True):
        states = tower.model(input_ids=embedded.ids, output_hidden_states=True).hidden_states
        assert torch.equal(tower.encode(embedded).tokens, states[-2])
        assert not torch.equal(states[-2], states[-1])
