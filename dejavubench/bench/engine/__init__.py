"""The batch maker, the steps of a microbatch, and the clock around them."""
