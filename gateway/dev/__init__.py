"""For development: the whole stack on one machine, and the package that a builder begins with."""
