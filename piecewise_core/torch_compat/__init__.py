"""Every private name of torch that piecewise uses, by area, and what is done without it."""
