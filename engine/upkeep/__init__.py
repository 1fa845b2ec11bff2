"""What is done by the clock, in nobody's name: grants kept alive, upstreams told, what is over put away."""
