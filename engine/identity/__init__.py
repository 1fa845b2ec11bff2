"""Who acts: the signed statement that binds a principal, an actor and a run."""
