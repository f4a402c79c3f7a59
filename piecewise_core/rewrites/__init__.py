"""Changes to graphs that keep the numbers: what they are, in which order they run, who brought them."""
