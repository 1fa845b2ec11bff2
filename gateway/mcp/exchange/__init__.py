"""One call in progress: following its run, asking its client for input, and putting its result in words."""
