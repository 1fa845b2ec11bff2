"""Who waits for a person's answer, and how the answer reaches them."""
