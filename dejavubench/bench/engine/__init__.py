"""The batch maker, the prompts, steps and logits of microbatches, and the clock around them."""
